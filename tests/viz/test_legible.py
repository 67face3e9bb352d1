"""Letters of at least 11 pixels, with a contrast of 4.5 to 1, whatever a figure asks for."""

import matplotlib.pyplot as plt
import pytest
from matplotlib.text import Text

from minids3.viz.legible import contrast, ink_of, legible
from minids3.viz.show import picture
from minids3.viz.style import CARD, COLORS, INK, PALETTE

GROUNDS = ["#ffffff", CARD, "#f7f7f7"]  # cards are opaque: the same on a light and a dark theme


@pytest.mark.parametrize(
    ("a", "b", "value"),
    [("#ffffff", "#000000", 21.0), ("#777777", "#ffffff", 4.478), ("#0000ff", "#ffffff", 8.592)],
)
def test_contrast_is_that_of_wcag(a, b, value):
    assert contrast(a, b) == contrast(b, a) == pytest.approx(value, abs=1e-3)


def test_every_ink_reads_on_every_ground():
    for ground in [*GROUNDS, *PALETTE, "#767676", "#000000"]:
        for color in {*PALETTE, *COLORS.values(), "grey", "0.7", "C1", "tab:cyan", "white"}:
            assert contrast(ink_of(color, ground), ground) >= 4.5, (color, ground)


def test_what_reads_already_is_left_alone():
    assert ink_of(INK) == INK.lower()
    assert ink_of("#ffffff", "#222222") == "#ffffff"
    assert len({ink_of(c) for c in PALETTE}) == len(PALETTE)  # still told apart


def crowded(size, width=8.0):
    fig, ax = plt.subplots(figsize=(width, 3))
    ax.set(xlim=(0, 8), ylim=(0, 4), xlabel="step", title="A title")
    for i, color in enumerate(PALETTE):
        ax.add_patch(plt.Rectangle((i, 0), 1, 1, fc=color))
        ax.text(i + 0.5, 0.5, "white", color="white", ha="center", fontsize=size)
        ax.text(i + 0.5, 2.5, "word", color=color, ha="center", fontsize=size)
    ax.tick_params(labelsize=size)
    ax.legend(["a line"], labelcolor=PALETTE[6], fontsize=size)
    return fig


@pytest.mark.parametrize(("size", "dpi"), [(5.5, 66), (8, 84), (8, 110), (12, 110)])
def test_letters_of_a_figure(size, dpi):
    fig = crowded(size)
    grown = legible(fig, dpi)
    assert dpi <= grown <= max(dpi, 100)
    on_boxes = []
    for text in (t for t in fig.findobj(Text) if t.get_text()):
        assert text.get_fontsize() * grown / 72 >= 10.999
        if text.get_text() == "white":
            on_boxes.append(text.get_color())
        else:
            assert contrast(text.get_color(), CARD) >= 4.5, text
    for ink, box in zip(on_boxes, PALETTE, strict=True):
        assert contrast(ink, box) >= 4.5
    plt.close(fig)


def test_a_figure_is_enlarged_for_its_letters_and_stays_within_a_column():
    small, large = (picture(crowded(8), "Words in the colours", dpi) for dpi in (84, 110))
    assert small.width == pytest.approx(large.width * 99 / 110, abs=3)
    wide = crowded(8, width=12)
    assert legible(wide, 60) == pytest.approx(800 / 12)
    plt.close("all")


def test_letters_on_an_image_are_left_to_the_one_who_drew_it():
    fig, ax = plt.subplots()
    ax.imshow([[0, 1], [1, 0]])
    text = ax.text(0, 0, "7", color="white")
    legible(fig, 110)
    assert text.get_color() == "white"
    plt.close(fig)


def test_letters_on_every_box_of_a_token_strip():
    from minids3.viz.tokens import _CYCLE, _shade

    for ground in (*_CYCLE, *(_shade(n / 20) for n in range(21)), CARD):
        assert contrast(INK, ground) >= 4.5, ground
