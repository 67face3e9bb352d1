"""Serving, drawn: whose rows lie in which page, and who had which place in a batch when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minids3.viz.style import CARD, COLORS, INK, PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Served", "batches", "in_places", "page_map"]

_EMPTY, _EDGE = "#EFEDE6", "#B9BBBE"


def page_map(
    tables: Sequence[Sequence[int]], lengths: Sequence[int], n_pages: int, size: int
) -> Figure:
    """Draw a memory of ``n_pages`` pages: a column each, a cell a row, a colour for every text.

    Args:
        tables: the numbers of each text's pages, in order.
        lengths: rows of each text; the rest of its last page stays empty.
        n_pages: of the memory; those in no table are free.
        size: rows of a page.

    Raises:
        ValueError: a page that does not exist or two texts have, or a text longer than its pages.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    held: dict[int, tuple[int, int]] = {}
    for text, (table, length) in enumerate(zip(tables, lengths, strict=True)):
        if length > len(table) * size:
            raise ValueError(f"text {text} has {length} rows and {len(table)} pages of {size}")
        for place, page in enumerate(table):
            if not 0 <= page < n_pages or page in held:
                raise ValueError(f"page {page} of text {text} does not exist, or is held twice")
            held[page] = (text, min(size, max(0, length - place * size)))
    fig = Figure(figsize=(0.36 * n_pages + 0.9, 0.3 * size + 0.8), layout="constrained")
    ax = fig.subplots()
    for page in range(n_pages):
        text, used = held.get(page, (0, 0))
        for row in range(size):
            face = PALETTE[text % len(PALETTE)] if row < used else _EMPTY
            ax.add_patch(Rectangle((page - 0.44, row - 0.44), 0.88, 0.88, fc=face, ec=CARD, lw=1))
        if page in held:
            edge = (page - 0.48, -0.48)
            ax.add_patch(Rectangle(edge, 0.96, size - 0.04, fc="none", ec=INK, lw=0.9))
            tone = INK if PALETTE[text % len(PALETTE)] == "#F0E442" else CARD
            if used:
                ax.text(page, 0, "ABCDEFGH"[text % 8], ha="center", va="center", color=tone)
    ax.set(xlim=(-0.7, n_pages - 0.3), ylim=(size - 0.3, -0.7), xlabel="page", ylabel="row of it")
    ax.set_xticks(range(n_pages))
    ax.set_yticks(range(size))
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    return fig


@dataclass(frozen=True)
class Served:
    """When a request arrived, was first computed, and was done, in steps from 0."""

    request: int
    arrived: int
    start: int
    stop: int

    def __post_init__(self) -> None:
        """Refuse an order that cannot be."""
        if not 0 <= self.arrived <= self.start < self.stop:
            raise ValueError(f"{self} must arrive, start and stop in this order")


def in_places(served: Sequence[Served]) -> list[int]:
    """Return for each request the first place that was free when it started."""
    until: list[int] = []
    places = [0] * len(served)
    for i in sorted(range(len(served)), key=lambda i: (served[i].start, served[i].request)):
        one = served[i]
        free = [p for p, stop in enumerate(until) if stop <= one.start]
        place = free[0] if free else len(until)
        until[place : place + 1] = [one.stop]
        places[i] = place
    return places


def batches(panels: Mapping[str, Sequence[Served]], n_places: int) -> Figure:
    """Draw who had which place of the batch, a panel for each way of serving, on one time axis.

    Grey is a place that is empty while the engine works.

    Raises:
        ValueError: nothing was served, or more at a time than there are places.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    if not panels or not all(panels.values()):
        raise ValueError("nothing was served: every panel needs at least one request")
    end = max(one.stop for served in panels.values() for one in served)
    fig = Figure(figsize=(9.2, 0.5 + len(panels) * (0.45 + 0.24 * n_places)), layout="constrained")
    axes = fig.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for ax, (title, served) in zip(axes, panels.items(), strict=True):
        places = in_places(served)
        if max(places) >= n_places:
            raise ValueError(f"{title}: {max(places) + 1} requests at a time in {n_places} places")
        last = max(one.stop for one in served)
        ax.add_patch(Rectangle((0, -0.5), last, n_places, fc="#D9D7D0", ec="none"))
        for one, place in zip(served, places, strict=True):
            bar = (one.start, place - 0.46)
            color = PALETTE[one.request % 6]
            ax.add_patch(Rectangle(bar, one.stop - one.start, 0.92, fc=color, ec=CARD, lw=0.8))
        ax.axvline(last, color=COLORS["control"], lw=1.2)
        ax.set_title(f"{title}: {last} steps", fontsize=10)
        ax.set(xlim=(0, end * 1.01), ylim=(n_places - 0.4, -0.6), ylabel="place")
        ax.set_yticks([])
        ax.grid(visible=False)
        for side in ("left", "bottom"):
            ax.spines[side].set_color(_EDGE)
    axes[-1].set_xlabel("steps of the engine")
    return fig
