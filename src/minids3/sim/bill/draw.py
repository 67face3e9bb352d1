"""The Bill as a bar figure: GPU-hours of each priced line, the published figure as a mark."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minids3.sim.bill.ledger import lines, quantity
from minids3.sim.bill.lines import PUBLISHED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["figure"]

# Two colours of the Okabe-Ito palette; viz has the whole of it but sim must not depend on viz.
_BAR, _MARK = "#0072B2", "#D55E00"


def figure(upto: str | None = None) -> Figure:
    """Draw the lines that price a training run, up to notebook ``upto``, on a logarithmic axis.

    Needs matplotlib, imported here so that the arithmetic does not. An unknown ``upto`` raises
    ``ValueError``.
    """
    import matplotlib.pyplot as plt

    priced = [line for line in lines(upto) if line.gpu_hours is not None]
    published = PUBLISHED.gpu_hours or 0.0
    fig, ax = plt.subplots(figsize=(7.6, 1.5 + 0.55 * len(priced)))
    hours = [line.gpu_hours or 0.0 for line in priced]
    rows = list(range(len(priced)))
    ax.barh(rows, hours, height=0.55, color=_BAR, zorder=2)
    for row, line, value in zip(rows, priced, hours, strict=True):
        label = f"{quantity(value)} h"
        if line.dollars is not None:
            label += f", ${quantity(line.dollars)}"
        ax.annotate(label, (value, row), (5, 0), textcoords="offset points", va="center")
    ax.axvline(published, color=_MARK, linestyle="--", linewidth=2, zorder=3)
    ax.annotate(
        f"published: {quantity(published)} h, ${quantity(PUBLISHED.dollars or 0)}",
        (published, 1.0),
        (0, 4),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        color=_MARK,
        ha="center",
        va="bottom",
    )
    ax.set_yticks(rows, [f"{line.notebook}  {line.title}" for line in priced])
    ax.invert_yaxis()
    ax.set_xscale("log")
    ax.set_xlim(min([published, *hours]) / 3, max([published, *hours]) * 12)
    ax.set_xlabel("H800 GPU-hours (log scale)")
    ax.grid(axis="y", visible=False)
    fig.tight_layout()
    return fig
