"""A byte of a small number format, bit by bit: a picture, and the same with switches."""

from __future__ import annotations

from typing import Any

import torch

from minids3.numerics import E4M3, FloatFormat, decode, fields
from minids3.viz.legible import ink_of
from minids3.viz.style import CARD, INK, MUTED, PALETTE

__all__ = ["byte_figure", "byte_toggles", "explain"]

# As inks: white digits stand on them.
SIGN, EXPONENT, MANTISSA = (ink_of(PALETTE[i], "white") for i in (3, 0, 2))


def explain(code: int, fmt: FloatFormat = E4M3) -> str:
    """Say in one line how ``code`` becomes a number.

    Raises ``ValueError`` if ``fmt`` has no such code.
    """
    value = float(decode(torch.tensor(code), fmt))
    sign, exponent, mantissa = (int(f) for f in fields(torch.tensor(code), fmt))
    if value != value:
        return "not a number (NaN)"
    minus = "-" if sign else ""
    if abs(value) == float("inf"):
        return f"{minus}infinity"
    one = 1 << fmt.mantissa_bits
    if exponent == 0 and fmt.signed:
        power = 1 - fmt.bias
        return f"{minus}2^{power} x {mantissa}/{one} = {value:.6g}   (subnormal)"
    power = exponent - fmt.bias
    return f"{minus}2^({exponent} - {fmt.bias}) x (1 + {mantissa}/{one}) = {value:.6g}"


def byte_figure(code: int, fmt: FloatFormat = E4M3) -> Any:
    """Draw the bits of ``code`` by field, the number they stand for, and its neighbours' places.

    Args:
        code: 0 .. 2^bits - 1.
        fmt: a format of at most 8 bits with a sign.

    Returns:
        a matplotlib figure.

    Raises:
        ValueError: ``fmt`` has no such code.
    """
    import matplotlib.pyplot as plt

    words = explain(code, fmt)
    fig, (top, line) = plt.subplots(2, 1, figsize=(8, 2.7), height_ratios=(1.5, 1))
    colors = [SIGN] + [EXPONENT] * fmt.exponent_bits + [MANTISSA] * fmt.mantissa_bits
    for place, color in enumerate(colors):
        bit = (code >> (fmt.bits - 1 - place)) & 1
        box = plt.Rectangle((place, 0), 0.92, 1, ec=color, lw=1.6, fc=color if bit else CARD)
        top.add_patch(box)
        ink = "white" if bit else color
        top.text(place + 0.46, 0.48, str(bit), ha="center", va="center", color=ink, fontsize=15)
    middle = 1 + fmt.exponent_bits / 2
    for x, name, color in (
        (0.46, "sign", SIGN),
        (middle, "exponent", EXPONENT),
        (1 + fmt.exponent_bits + fmt.mantissa_bits / 2, "mantissa", MANTISSA),
    ):
        top.text(x, 1.16, name, ha="center", color=color, fontsize=9)
    top.text(fmt.bits + 0.5, 0.72, f"{fmt.name}   0x{code:02X}", va="center", color=MUTED)
    top.text(fmt.bits + 0.5, 0.25, words, va="center", color=INK, fontsize=10.5)
    top.set(xlim=(-0.1, 17), ylim=(-0.1, 1.5))
    top.axis("off")
    _number_line(line, code, fmt)
    fig.tight_layout()
    return fig


def _number_line(ax: Any, code: int, fmt: FloatFormat) -> None:
    """Mark all positive numbers on a logarithmic line, and where the magnitude of ``code`` is."""
    values = decode(torch.arange(1, fmt.top_code + 1), fmt)
    subnormal = values < fmt.min_normal
    for some, color, height in ((subnormal, MUTED, 0.7), (~subnormal, EXPONENT, 1.0)):
        ax.vlines(values[some].tolist(), 0, height, color=color, lw=0.8)
    here = abs(float(decode(torch.tensor(code), fmt)))
    if 0 < here < float("inf"):
        ax.plot([here], [1.35], "v", ms=9, color=SIGN, clip_on=False)
    ax.set_xscale("log", base=2)
    ax.set(ylim=(0, 1.5), yticks=[], xlabel=f"the magnitudes that {fmt.name} has")
    ax.grid(visible=False)
    ax.spines["left"].set_visible(False)


def byte_toggles(fmt: FloatFormat = E4M3, code: int = 0b0_0111_100) -> Any:
    """Switches for the bits of a byte over ``byte_figure``; needs a live kernel.

    Args:
        fmt: the format.
        code: where the switches stand at first.

    Returns:
        an ipywidgets box; each switch says which bit it is and what that counts.
    """
    import ipywidgets as widgets
    from IPython.display import display

    from minids3.viz.show import picture

    # Boxes to tick rather than buttons: a screen reader is told what each is and whether it is set.
    weights = [str(1 << n) for n in reversed(range(fmt.exponent_bits))]
    parts = [f"1/{2 << n}" for n in range(fmt.mantissa_bits)]
    names = ["sign", *(f"exponent {w}" for w in weights), *(f"mantissa {p}" for p in parts)]
    bits = [
        widgets.Checkbox(
            value=bool((code >> (fmt.bits - 1 - place)) & 1),
            description=name,
            indent=False,
            layout=widgets.Layout(width="8.5em", margin="0 0.5em 0 0"),
        )
        for place, name in enumerate(names)
    ]
    output = widgets.Output()

    def draw(change: Any = None) -> None:
        now = 0
        for bit in bits:
            now = 2 * now + int(bit.value)
        with output:
            output.clear_output(wait=True)
            alt = f"Bits of the {fmt.name} code {now:#04x}: {explain(now, fmt)}"
            display(picture(byte_figure(now, fmt), alt))

    for bit in bits:
        bit.observe(draw, names="value")
    draw()

    class Byte(widgets.VBox):
        """The figure above its switches, with a text for front ends without widgets."""

        def __repr__(self) -> str:
            return (
                "Its switches need a live kernel: run this cell. "
                "The output above shows the same without them."
            )

    row = widgets.HBox(bits, layout=widgets.Layout(flex_flow="row wrap"))
    return Byte([output, row])
