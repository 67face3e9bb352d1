"""Timelines of a pipeline: a row a rank, a box an action, blank where a rank is idle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from minids3.sim.pipeline import Timeline
from minids3.viz.style import CARD, COLORS, INK, PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["describe_streams", "describe_timelines", "streams", "timelines"]

ACTION_COLORS = {"F": PALETTE[5], "B": PALETTE[1], "I": PALETTE[6], "W": PALETTE[2]}
"""Forward blue, backward orange, its two halves yellow and green; an FB is blue over orange."""
_NAMES = {
    "F": "forward",
    "B": "backward",
    "I": "input gradient",
    "W": "weight gradient",
}
_LABELLED = 240  # boxes of a panel up to which micro-batches are numbered


def timelines(panels: Mapping[str, Timeline] | Timeline, unit: str = "") -> Figure:
    """Draw timelines one below the other, on one scale of time.

    A rank's second stage, or DualPipe's other direction, is paler.

    Args:
        panels: title -> timeline, simulated or measured; or one timeline.
        unit: of time, for the axis.

    Returns:
        A matplotlib figure that no global state knows of.

    Raises:
        ValueError: there is nothing to draw.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    panels = _named(panels)
    rows = [max(len(timeline.spans), 2) for timeline in panels.values()]
    fig = Figure(figsize=(9, 0.9 + sum(0.55 + 0.3 * n for n in rows)), layout="constrained")
    axes = fig.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=rows)[:, 0]
    kinds: set[str] = set()
    several = False
    for ax, (title, timeline) in zip(axes, panels.items(), strict=True):
        _draw(ax, timeline)
        idle = f"idle {100 * timeline.bubble_share:.0f} %"
        ax.set_title(f"{title}: {timeline.makespan:.4g} {unit}".rstrip() + f", {idle}", fontsize=10)
        kinds |= {span.action.kind for rank in timeline.spans for span in rank}
        several = several or any(
            len({(part.stage, part.direction) for span in rank for part in span.action.parts}) > 1
            for rank in timeline.spans
        )
    axes[-1].set_xlim(0, 1.01 * max(timeline.makespan for timeline in panels.values()))
    handles = [
        Patch(facecolor=color, edgecolor=CARD, label=_NAMES[kind])
        for kind, color in ACTION_COLORS.items()
        if kind in kinds or ("FB" in kinds and kind in "FB")
    ]
    notes = ["paler: a rank's other stage"] if several else []
    notes += ["one above the other: both together"] if "FB" in kinds else []
    under = f"time ({unit})" if unit else "time"
    axes[-1].set_xlabel("\n".join([under, "; ".join(notes)]).strip())
    fig.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8)
    return fig


def describe_timelines(panels: Mapping[str, Timeline] | Timeline, unit: str = "") -> str:
    """What the timelines show, a sentence each, for ``viz.show``'s alt text.

    Raises:
        ValueError: there is nothing to describe.
    """
    sentences = ["Timelines of pipeline schedules, a row for each rank."]
    for title, timeline in _named(panels).items():
        low, high = min(timeline.idle), max(timeline.idle)
        idle = f"{low:.3g}" if high - low < 1e-9 * max(high, 1) else f"{low:.3g} to {high:.3g}"
        sentences.append(
            f"{title}: {len(timeline.spans)} ranks take {timeline.makespan:.4g} {unit}".rstrip()
            + f" and are idle for {idle} of it, {100 * timeline.bubble_share:.0f} %."
        )
    return " ".join(sentences)


Streams = Mapping[str, "Mapping[str, tuple[float, float]]"]
"""Stream -> task -> (start, end); a task is called "what F 3": what, kind, layer."""


def streams(panels: Mapping[str, Streams], unit: str = "") -> Figure:
    """Draw what the streams of one GPU do at the same time, panels below each other on one scale.

    Args:
        panels: title -> streams. A task's second word is its kind, a key of ``ACTION_COLORS``; its
            first is written into its box. Every second layer (third word) is paler.
        unit: of time, for the axis.

    Returns:
        A matplotlib figure that no global state knows of.

    Raises:
        ValueError: there is nothing to draw, or a task has no known kind.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    ends = {title: _last_end(panel) for title, panel in panels.items()}
    if not ends or min(ends.values()) <= 0:
        raise ValueError("there is nothing to draw: no panel, or one in which nothing happens")
    rows = [len(panel) for panel in panels.values()]
    fig = Figure(figsize=(9, 0.9 + sum(0.55 + 0.6 * n for n in rows)), layout="constrained")
    axes = fig.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=rows)[:, 0]
    kinds: set[str] = set()
    for ax, (title, panel) in zip(axes, panels.items(), strict=True):
        for row, tasks in enumerate(panel.values()):
            for task, (start, end) in tasks.items():
                what, kind, layer = _task(task)
                kinds.add(kind)
                pale = layer % 2 == 1
                ax.broken_barh(
                    [(start, end - start)],
                    (row - 0.4, 0.8),
                    facecolor=_paler(kind) if pale else ACTION_COLORS[kind],
                    edgecolor=CARD,
                    linewidth=0.6,
                )
                width = (end - start) / max(ends.values())
                if width > 0.008:
                    turned = 0 if width > 0.0055 * len(what) else 90
                    ax.text(
                        (start + end) / 2, row, what, ha="center", va="center", rotation=turned,
                        fontsize=5.5, color=INK,
                    )  # fmt: skip
        ax.axvline(ends[title], color=COLORS["control"], lw=1)
        ax.set_title(f"{title}: {ends[title]:.4g} {unit}".rstrip(), fontsize=10)
        ax.set_ylim(len(panel) - 0.5, -0.5)
        ax.set_yticks(range(len(panel)), panel, fontsize=8)
        ax.grid(visible=False)
    axes[-1].set_xlim(0, 1.01 * max(ends.values()))
    axes[-1].set_xlabel((f"time ({unit})" if unit else "time") + "\npaler: every second layer")
    handles = [
        Patch(facecolor=color, edgecolor=CARD, label=_NAMES[kind])
        for kind, color in ACTION_COLORS.items()
        if kind in kinds
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8)
    return fig


def describe_streams(panels: Mapping[str, Streams], unit: str = "") -> str:
    """What ``streams`` shows, a sentence each, for ``viz.show``'s alt text.

    Raises:
        ValueError: there is nothing to describe.
    """
    if not panels:
        raise ValueError("there is nothing to describe")
    sentences = ["Streams of one GPU, a row each, a box for each task."]
    for title, panel in panels.items():
        busy = ", ".join(
            f"{name} is busy for {sum(end - start for start, end in tasks.values()):.4g}"
            for name, tasks in panel.items()
        )
        sentences.append(f"{title}: takes {_last_end(panel):.4g} {unit}".rstrip() + f"; {busy}.")
    return " ".join(sentences)


def _last_end(panel: Streams) -> float:
    return max((end for tasks in panel.values() for _, end in tasks.values()), default=0.0)


def _task(task: str) -> tuple[str, str, int]:
    """The three words of a task's name."""
    words = task.split()
    if len(words) != 3 or words[1] not in ACTION_COLORS or not words[2].isdigit():
        raise ValueError(f"task {task!r}: expected what, F, B, I or W, and a layer, as 'send F 3'")
    return words[0], words[1], int(words[2])


def _named(panels: Mapping[str, Timeline] | Timeline) -> Mapping[str, Timeline]:
    if isinstance(panels, Timeline):
        panels = {panels.name: panels}
    if not panels or not all(timeline.makespan > 0 for timeline in panels.values()):
        raise ValueError("there is nothing to draw: no timeline, or one in which nothing happens")
    return panels


def _paler(kind: str) -> str:
    """The colour of ``kind``, half of it the card's."""
    from matplotlib.colors import to_hex, to_rgb

    pairs = zip(to_rgb(ACTION_COLORS[kind]), to_rgb(CARD), strict=True)
    return to_hex([(a + b) / 2 for a, b in pairs]).upper()


def _draw(ax: Axes, timeline: Timeline) -> None:
    """Boxes of every rank; an FB is two, half as high, the forward above."""
    length = timeline.makespan
    numbered = sum(map(len, timeline.spans)) <= _LABELLED
    for rank, spans in enumerate(timeline.spans):
        parts_of_rank = [part for span in spans for part in span.action.parts]
        first = min((part.stage for part in parts_of_rank if not part.direction), default=0)
        for span in spans:
            parts = span.action.parts
            height = 0.86 / len(parts)
            for i, part in enumerate(parts):
                pale = part.direction > 0 or part.stage > first
                top = rank - 0.43 + i * height
                ax.broken_barh(
                    [(span.start, span.end - span.start)],
                    (top, height),
                    facecolor=_paler(part.kind) if pale else ACTION_COLORS[part.kind],
                    edgecolor=CARD,
                    linewidth=0.6,
                )
                if numbered and span.end - span.start > 0.012 * length:
                    ax.text(
                        (span.start + span.end) / 2, top + height / 2, str(part.microbatch),
                        ha="center", va="center", fontsize=6.5 if len(parts) == 1 else 5, color=INK,
                    )  # fmt: skip
    ax.axvline(length, color=COLORS["control"], lw=1)
    ax.set_ylim(len(timeline.spans) - 0.5, -0.5)
    ax.set_yticks(range(len(timeline.spans)))
    ax.set_ylabel("rank")
    ax.grid(visible=False)
