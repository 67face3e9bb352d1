"""The twenty notebooks as a path."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING

from minids3.viz.style import CARD, INK, MUTED, PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["NOTEBOOKS", "PARTS", "workbook_map"]

# number, what is on the sign, which part it belongs to
NOTEBOOKS = (
    ("00", "start\nhere", "base"),
    ("01", "data and\ntokens", "base"),
    ("02", "a trans-\nformer", "base"),
    ("03", "latent\nattention", "architecture"),
    ("04", "mixture\nof experts", "architecture"),
    ("05", "load\nbalancing", "architecture"),
    ("06", "multi-token\nprediction", "architecture"),
    ("07", "first\nkernels", "machine"),
    ("08", "FP8\nnumbers", "machine"),
    ("09", "FP8\nGEMM", "machine"),
    ("10", "FP8\ntraining", "machine"),
    ("11", "MoE\nkernels", "machine"),
    ("12", "training\nrun", "training"),
    ("13", "long\ncontext", "training"),
    ("14", "slow\nlinks", "training"),
    ("15", "pipelines", "training"),
    ("16", "serving", "use"),
    ("17", "speculative\ndecoding", "use"),
    ("18", "post-\ntraining", "use"),
    ("19", "evaluation,\nthe Bill", "use"),
)

PARTS = {
    "base": ("baseline", PALETTE[0]),
    "architecture": ("architecture", PALETTE[2]),
    "machine": ("numbers and kernels", PALETTE[3]),
    "training": ("training at scale", PALETTE[4]),
    "use": ("serving and judging", "#8A6A00"),
}


def workbook_map(ready: Collection[str] = (), solved: Mapping[str, float] | None = None) -> Figure:
    """Draw the path through the workbook.

    Args:
        ready: numbers of the notebooks that exist ("00"); the others are drawn as outlines.
        solved: number -> share of its exercises solved, drawn as a ring.
    """
    import matplotlib.pyplot as plt
    from matplotlib.patches import Wedge

    solved = solved or {}
    fig, ax = plt.subplots(figsize=(8.6, 5.2))
    per_row, step, drop = 5, 2.05, 1.75
    places, road = [], []
    for i in range(len(NOTEBOOKS)):
        row, column = divmod(i, per_row)
        turned = row % 2 == 1  # back and forth, like a road
        x, y = (per_row - 1 - column if turned else column) * step, -row * drop
        if column == 0 and row:  # the bend runs outside, clear of the signs
            side = -1 if not turned else 1
            for angle in (math.pi * k / 24 for k in range(25)):
                bend = 0.45 * side + side * 0.62 * math.sin(angle)
                road.append((x + bend, y + drop / 2 + drop / 2 * math.cos(angle)))
        places.append((x, y))
        road.append((x, y))
    ax.plot(
        *zip(*road, strict=True),
        color="#E8E4D9",
        linewidth=9,
        zorder=1,
        solid_joinstyle="round",
    )
    for (x, y), (next_x, next_y) in pairwise(places):
        if y == next_y:  # which way the road runs
            marker = ">" if next_x > x else "<"
            ax.plot((x + next_x) / 2, y, marker, ms=5, color=MUTED, zorder=2)
    for (number, words, part), (x, y) in zip(NOTEBOOKS, places, strict=True):
        colour = PARTS[part][1]
        there = number in ready
        disc = plt.Circle(
            (x, y),
            0.36,
            facecolor=colour if there else CARD,
            edgecolor=colour,
            linewidth=1.6,
            linestyle="-" if there else (0, (2, 1.5)),
            zorder=3,
        )
        ax.add_patch(disc)
        share = solved.get(number, 0.0)
        if share > 0:
            ring = Wedge((x, y), 0.5, 90 - 360 * share, 90, width=0.08, color=INK, zorder=3)
            ax.add_patch(ring)
        ink = "white" if there else colour
        ax.text(x, y, number, ha="center", va="center", color=ink, weight="bold", zorder=4)
        tone = INK if there else MUTED
        ax.text(x, y - 0.56, words, ha="center", va="top", fontsize=8, color=tone, zorder=4)
    for words, colour in PARTS.values():
        ax.scatter([], [], s=45, color=colour, label=words)
    ax.legend(
        loc="lower center",
        bbox_to_anchor=(0.5, 0.97),
        ncols=len(PARTS),
        fontsize=8,
        handletextpad=0.1,
        columnspacing=1.3,
    )
    ax.set(xlim=(-1.3, 9.5), ylim=(-3 * drop - 1.25, 0.75), aspect="equal")
    ax.axis("off")
    return fig
