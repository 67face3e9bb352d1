import base64
import io
import re

import matplotlib.pyplot as plt
import pytest
from PIL import Image

from minids3 import viz
from minids3.viz.show import picture


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def figure(n=50):
    fig, ax = plt.subplots()
    ax.plot(range(n), [i * i for i in range(n)])
    ax.set(xlabel="step", ylabel="loss (nats)")
    return fig


def test_picture_is_small_opaque_closed_and_described():
    viz.style.apply()
    fig = figure()
    shown = picture(fig, 'A curve that "rises"\n to 2,401 & stays <there>')
    assert not plt.fignum_exists(fig.number)
    assert len(shown.image) < 45_000
    image = Image.open(io.BytesIO(shown.image))
    assert image.format == "WEBP"
    assert image.width == pytest.approx(2 * shown.width, abs=1)
    assert image.convert("RGBA").getextrema()[3] == (255, 255)
    data, metadata = shown._repr_mimebundle_()
    assert metadata["text/html"]["alt"].startswith('A curve that "rises" to 2,401')
    assert (
        'alt="A curve that &quot;rises&quot; to 2,401 &amp; stays &lt;there&gt;"'
        in (data["text/html"])
    )
    source = re.search(r"base64,([^\"]+)", data["text/html"]).group(1)
    assert base64.b64decode(source) == shown.image


def test_alt_text_survives_nbconvert():
    import nbformat.v4 as v4
    from nbconvert import HTMLExporter

    data, metadata = picture(figure(), "A curve that rises to 2,401")._repr_mimebundle_()
    cell = v4.new_code_cell("x", outputs=[v4.new_output("display_data", data, metadata=metadata)])
    page, _ = HTMLExporter().from_notebook_node(v4.new_notebook(cells=[cell]))
    assert 'alt="A curve that rises to 2,401"' in page


@pytest.mark.parametrize("alt", ["", "  ", "a plot", None])
def test_alt_is_required(alt):
    with pytest.raises(ValueError, match="too short"):
        viz.show(figure(), alt=alt)
    plt.close("all")


def test_ink_reads_on_the_card_and_roles_are_distinct():
    assert contrast(viz.COLORS["ink"], viz.COLORS["card"]) > 12
    assert contrast(viz.COLORS["muted"], viz.COLORS["card"]) > 4.5
    assert len(set(viz.PALETTE)) == 8
    domains = [viz.COLORS[d] for d in ("stories", "arithmetic", "code", "facts")]
    assert len(set(domains)) == 4


def test_token_strip():
    strip = viz.token_strip(["the", " <cat", "\n", "sat"], [0.1, 2.0, 0.0, 4.0])
    page = strip._repr_html_()
    assert "·&lt;cat" in page
    assert "<cat" not in page
    assert "2 nats" in page
    assert repr(strip).startswith("the(0.1) ·<cat(2)")
    assert len(picture(strip.figure(title="Tokens"), "Four tokens in boxes").image) < 20_000
    assert repr(viz.token_strip(["a", "b"])) == "a|b"
    with pytest.raises(ValueError, match="2 tokens and 1 values"):
        viz.token_strip(["a", "b"], [1.0])
    with pytest.raises(ValueError, match="tokens and"):
        viz.token_strip(["a"], [])


def test_play_redraws():
    seen = []

    def draw(n, name):
        """A line of n points."""
        seen.append((n, name))
        return figure(n)

    box = viz.play(draw, n=(1, 9), name=["a", "b"])
    slider, choice = box.children[1:]
    assert seen == [(5, "a")]
    slider.value = 7
    choice.value = "b"
    assert seen == [(5, "a"), (7, "a"), (7, "b")]
    assert slider.continuous_update is False
    assert "live kernel" in repr(box)
    assert len(repr(box)) <= 110


def test_play_opens_at_the_defaults():
    opened = {}

    def layer(experts=256, top_k=8, share=0.87, mean=True, text="a word", free=3):
        """A layer."""
        names = ("experts", "top_k", "share", "mean", "text", "free")
        opened.update({name: value for name, value in locals().items() if name in names})

    viz.play(
        layer,
        experts=[8, 16, 256, 512],
        top_k=(1, 16, 1),
        share=(0.0, 1.0, 0.01),
        mean=False,
        text="another",
    )
    # A bool or a string that is given as the control is itself what it opens at.
    wanted = {"experts": 256, "top_k": 8, "share": 0.87, "mean": False, "text": "another"}
    assert opened == {**wanted, "free": 3}
    with pytest.raises(Exception, match="not found"):
        viz.play(layer, experts=[8, 16])


def test_a_text_table_breaks_no_short_column_and_sets_no_formula():
    long = "six words that may be broken"
    page = viz.text_table(["a", "b"], [["arithmetic", long], ["x", "$1 and $2"]])._repr_html_()
    assert page.count("white-space:pre;") == page.count("white-space:pre-wrap;") == 2
    assert "<span>$</span>1 and <span>$</span>2" in page


def test_text_table_and_map():
    table = viz.text_table(["you", "it"], [["a <b>", "c\nd"]])
    assert "a &lt;b&gt;" in table._repr_html_()
    assert "c\nd" in table._repr_html_()
    assert repr(table) == "you\n    a <b>\nit\n    c\n    d"
    with pytest.raises(ValueError, match="2 cells"):
        viz.text_table(["you", "it"], [["a"]])
    road = viz.workbook_map({"00", "01"}, {"00": 0.5})
    said = {text.get_text() for text in road.axes[0].texts}
    assert {f"{n:02}" for n in range(20)} <= said
    assert len(picture(road, "A road of twenty numbered stops").image) < 45_000
