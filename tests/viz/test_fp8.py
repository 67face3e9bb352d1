"""The byte's picture and its switches."""

import matplotlib
import pytest
import torch

from minids3.numerics import E4M3, E5M2, decode
from minids3.viz.fp8 import byte_figure, byte_toggles, explain

matplotlib.use("Agg")


@pytest.mark.parametrize(
    ("code", "fmt", "words"),
    [
        (0x38, E4M3, "2^(7 - 7) x (1 + 0/8) = 1"),
        (0xBC, E4M3, "-2^(7 - 7) x (1 + 4/8) = -1.5"),
        (0x01, E4M3, "2^-6 x 1/8 = 0.00195312   (subnormal)"),
        (0x7E, E4M3, "2^(15 - 7) x (1 + 6/8) = 448"),
        (0x7F, E4M3, "not a number (NaN)"),
        (0xFC, E5M2, "-infinity"),
    ],
)
def test_explain(code, fmt, words):
    assert explain(code, fmt) == words


@pytest.mark.parametrize("code", [0x00, 0x80, 0x7F, 0x7E, 0x01, 0xFF])
@pytest.mark.parametrize("fmt", [E4M3, E5M2])
def test_figure_draws_eight_bits(code, fmt):
    import matplotlib.pyplot as plt

    fig = byte_figure(code, fmt)
    assert len(fig.axes[0].patches) == 8
    shown = [t.get_text() for t in fig.axes[0].texts[:8]]
    assert "".join(shown) == f"{code:08b}"
    fig.canvas.draw()
    plt.close(fig)


def test_no_such_code():
    with pytest.raises(ValueError, match=r"lie in 0\.\.255"):
        byte_figure(256)


@pytest.mark.parametrize("fmt", [E4M3, E5M2])
def test_switches_say_what_they_are_and_follow_the_bits(fmt, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "minids3.viz.fp8.byte_figure", lambda c, f: drawn.append(c) or byte_figure(c, f)
    )
    box = byte_toggles(fmt)
    bits = box.children[1].children
    assert "".join(str(int(b.value)) for b in bits) == "00111100"
    # The name is all a screen reader has: no two alike, and none that is only a digit.
    names = [b.description for b in bits]
    assert len(set(names)) == 8
    assert names[0] == "sign"
    assert [n.split()[0] for n in names[1:]] == (
        ["exponent"] * fmt.exponent_bits + ["mantissa"] * fmt.mantissa_bits
    )
    # What a bit counts: the number that its field alone stands for.
    for place, name in enumerate(names[1 + fmt.exponent_bits :]):
        one = float(decode(torch.tensor(fmt.bias << fmt.mantissa_bits), fmt))
        code = (fmt.bias << fmt.mantissa_bits) | (1 << (fmt.mantissa_bits - 1 - place))
        more = float(decode(torch.tensor(code), fmt)) - one
        assert name == f"mantissa 1/{round(1 / more)}"
    assert names[fmt.exponent_bits] == "exponent 1"
    bits[0].value = True
    assert drawn == [0x3C, 0xBC]
    assert "live kernel" in repr(box)
