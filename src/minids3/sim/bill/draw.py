"""The Bill as a bar figure: GPU-hours of each priced line, the published figure as a mark."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minids3.sim.bill.ledger import lines, quantity
from minids3.sim.bill.lines import PUBLISHED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["figure"]

# Colours of viz, which sim must not depend on: ours, the same paler, and what is published.
_WITH, _WITHOUT, _MARK = "#0072B2", "#B5D3E7", "#CC79A7"


def figure(upto: str | None = None) -> Figure:
    """Draw the lines that price a training run, up to notebook ``upto``, from zero.

    A dark bar is a whole run, a pale one behind it the same run without the line's idea. Needs
    matplotlib, imported here so that the arithmetic does not. An unknown ``upto`` raises
    ``ValueError``.
    """
    import matplotlib.pyplot as plt

    priced = [line for line in lines(upto) if line.gpu_hours is not None]
    published = PUBLISHED.gpu_hours or 0.0
    fig, ax = plt.subplots(figsize=(8.4, 1.5 + 0.5 * len(priced)))
    hours = [line.gpu_hours or 0.0 for line in priced]
    longest = [line.without_hours or line.gpu_hours or 0.0 for line in priced]
    rows = list(range(len(priced)))
    unit = 1e6
    ax.barh(rows, [h / unit for h in longest], height=0.55, color=_WITHOUT, zorder=1)
    ax.barh(rows, [h / unit for h in hours], height=0.55, color=_WITH, zorder=2)
    for row, line, value in zip(rows, priced, longest, strict=True):
        label = f"{quantity(line.gpu_hours or 0.0)}"
        if line.without_hours is not None:
            label += f", without it {quantity(line.without_hours)}"
        ax.annotate(label, (value / unit, row), (8, 0), textcoords="offset points", va="center")
    ax.axvline(published / unit, color=_MARK, linestyle="--", linewidth=2, zorder=3)
    ax.annotate(
        f"published: {quantity(published)} h, ${quantity(PUBLISHED.dollars or 0)}",
        (published / unit, 1.0),
        (-2, 4),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="left",
        va="bottom",
    )
    ax.set_yticks(rows, [f"{line.notebook}  {line.title}" for line in priced])
    ax.invert_yaxis()
    ax.set_xlim(0, max(longest) / unit * 1.36)
    ax.set_xlabel("GPU-hours of a whole run (millions); pale: without the line's idea")
    ax.grid(axis="y", visible=False)
    fig.tight_layout()
    return fig
