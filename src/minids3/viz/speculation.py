"""Steps of speculative decoding: what was drafted, what stayed, what came after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minids3.viz.style import CARD, COLORS, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["DraftStep", "describe_steps", "speculation_steps"]

_ROOM = 44  # characters that a panel is wide at least


@dataclass(frozen=True)
class DraftStep:
    """One step: the texts of its drafts, how many were accepted, and the token after them.

    Raises ``ValueError`` if more were accepted than drafted.
    """

    drafts: tuple[str, ...]
    accepted: int
    token: str

    def __post_init__(self) -> None:
        """Refuse what cannot have happened."""
        if not 0 <= self.accepted <= len(self.drafts):
            raise ValueError(f"accepted={self.accepted} of {len(self.drafts)} drafts cannot be")

    @property
    def made(self) -> int:
        """Tokens that the step added to the text."""
        return self.accepted + 1

    @property
    def boxes(self) -> list[tuple[str, str]]:
        """Text and fate ("accepted", "rejected", "own") of each token, in the order drawn."""
        fates = ["accepted" if i < self.accepted else "rejected" for i in range(len(self.drafts))]
        return [*zip(self.drafts, fates, strict=True), (self.token, "own")]


_COLOURS = {"accepted": COLORS["ours"], "rejected": COLORS["control"], "own": "#DAD6CC"}
_WORDS = {
    "accepted": "draft, accepted",
    "rejected": "draft, rejected",
    "own": "drawn by the main model",
}


def speculation_steps(runs: Mapping[str, Sequence[DraftStep]], most: int = 12) -> Figure:
    """Draw runs side by side, a row for each of their first steps.

    Args:
        runs: title -> steps in order.
        most: rows at most.

    Raises:
        ValueError: a run without a step.
    """
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    for title, steps in runs.items():
        if not steps:
            raise ValueError(f"the run {title!r} has no steps to draw")
    rows = max(min(most, len(steps)) for steps in runs.values())
    fig, axes = plt.subplots(
        1, len(runs), figsize=(0.4 + 4.7 * len(runs), 0.75 + 0.29 * rows), squeeze=False
    )
    for ax, (title, steps) in zip(axes[0], runs.items(), strict=True):
        _panel(ax, title, list(steps)[:most], rows)
    fig.legend(
        handles=[Patch(color=_COLOURS[k], label=words) for k, words in _WORDS.items()],
        loc="lower center", ncols=3, fontsize=8, bbox_to_anchor=(0.5, -0.09),
    )  # fmt: skip
    fig.tight_layout()
    return fig


def _panel(ax: Axes, title: str, steps: Sequence[DraftStep], rows: int) -> None:
    from matplotlib.patches import FancyBboxPatch

    widest, total = float(_ROOM), 0
    for row, step in enumerate(steps):
        x = 3.0
        total += step.made
        ax.text(1.6, -row, str(row + 1), ha="right", va="center", fontsize=7, color=COLORS["muted"])
        for text, fate in step.boxes:
            shown = _visible(text)
            width = len(shown) + 1.0
            box = FancyBboxPatch(
                (x, -row - 0.36), width, 0.72, boxstyle="round,pad=0,rounding_size=0.25",
                facecolor=CARD if fate == "rejected" else _COLOURS[fate],
                edgecolor=_COLOURS[fate], linewidth=1.0,
            )  # fmt: skip
            ax.add_patch(box)
            ink = {"accepted": "white", "rejected": COLORS["control"], "own": INK}[fate]
            ax.text(
                x + width / 2, -row, shown, ha="center", va="center_baseline", color=ink,
                family="DejaVu Sans Mono", fontsize=7,
            )  # fmt: skip
            if fate == "rejected":
                ax.plot([x + 0.3, x + width - 0.3], [-row, -row], color=COLORS["control"], lw=0.9)
            x += width + 0.5
        widest = max(widest, x)
    ax.set(xlim=(-0.5, widest), ylim=(-rows + 0.3, 0.7))
    ax.set_title(f"{title}: {total} tokens in {len(steps)} steps", fontsize=9.5, loc="left")
    ax.axis("off")


def _visible(text: str) -> str:
    shown = text.replace(" ", "·").replace("\n", "⏎").replace("\t", "→") or "∅"
    return shown if len(shown) <= 14 else shown[:13] + "…"


def describe_steps(runs: Mapping[str, Sequence[DraftStep]], most: int = 12) -> str:
    """Say in words what ``speculation_steps`` draws: for an alt text."""
    words = []
    for title, steps in runs.items():
        shown = list(steps)[:most]
        drafted = sum(len(s.drafts) for s in shown)
        kept = sum(s.accepted for s in shown)
        made = sum(s.made for s in shown)
        part = f"{title}: {made} tokens in {len(shown)} steps"
        if drafted:
            part += f", {kept} of {drafted} drafts accepted"
        words.append(part)
    return "Steps of decoding, a row each, with accepted and rejected drafts. " + "; ".join(words)
