"""One look for every figure.

Figures are opaque soft-white cards, so that the same PNG reads on a light and on a dark theme. The
palette is Okabe and Ito's, which colour-blind readers can tell apart.
"""

from __future__ import annotations

__all__ = ["CARD", "COLORS", "INK", "MUTED", "PALETTE", "apply"]

PALETTE = [
    "#0072B2",  # blue
    "#E69F00",  # orange
    "#009E73",  # green
    "#D55E00",  # vermilion
    "#CC79A7",  # purple
    "#56B4E9",  # sky
    "#F0E442",  # yellow
    "#4D4D4D",  # grey (the palette's black, softened)
]

CARD = "#FBFAF7"
INK = "#22262B"
MUTED = "#6B7077"

COLORS = {
    "ours": PALETTE[0],
    "baseline": PALETTE[1],
    "control": PALETTE[3],
    "floor": PALETTE[2],
    "published": PALETTE[4],
    "train": PALETTE[5],
    "valid": PALETTE[0],
    "muted": MUTED,
    "ink": INK,
    "card": CARD,
    "stories": PALETTE[0],
    "arithmetic": PALETTE[1],
    "code": PALETTE[2],
    "facts": PALETTE[4],
}


def apply() -> None:
    """Set matplotlib's defaults for this process."""
    import matplotlib as mpl
    from cycler import cycler

    mpl.rcParams.update(
        {
            "figure.facecolor": CARD,
            "savefig.facecolor": CARD,
            "axes.facecolor": CARD,
            "figure.figsize": (7.2, 3.6),
            "figure.dpi": 110,
            "savefig.dpi": 110,
            "font.family": "sans-serif",
            "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib: same picture everywhere
            "font.size": 9.5,
            "axes.titlesize": 11,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.titlepad": 10,
            "axes.labelsize": 9.5,
            "axes.labelcolor": INK,
            "axes.edgecolor": "#B9BBBE",
            "axes.linewidth": 0.8,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.prop_cycle": cycler(color=PALETTE),
            "grid.color": "#E4E2DC",
            "grid.linewidth": 0.7,
            "text.color": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "xtick.major.size": 0,
            "ytick.major.size": 0,
            "lines.linewidth": 1.9,
            "lines.solid_capstyle": "round",
            "legend.frameon": False,
            "image.cmap": "cividis",
        }
    )
