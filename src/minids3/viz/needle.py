"""A map of what a model finds: length of the text against place of the needle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from minids3.evals.needle import Found
from minids3.viz.style import COLORS, INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["needle_maps", "needle_shares"]


def needle_shares(
    found: Sequence[Found], n_bins: int = 6
) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Share of needles found, by length of the text and place of the needle.

    Args:
        found: outcomes; texts of up to 20 tokens' difference count as one length.
        n_bins: places, equal parts of the text by the needle's actual index.

    Returns:
        The lengths, ascending; shares ``[lengths, n_bins]``, NaN where there was no needle; and how
        many needles there were, of the same shape.

    Raises:
        ValueError: nothing was looked for.
    """
    if not found:
        raise ValueError("no needle was looked for: found is empty")
    lengths: list[int] = []
    for length in sorted({f.length for f in found}, reverse=True):
        if not lengths or lengths[-1] - length > 20:
            lengths.append(length)
    lengths.reverse()
    right, count = np.zeros((len(lengths), n_bins)), np.zeros((len(lengths), n_bins))
    for one in found:
        row = next(i for i, length in enumerate(lengths) if one.length <= length)
        column = min(one.start * n_bins // one.length, n_bins - 1)
        right[row, column] += one.right
        count[row, column] += 1
    with np.errstate(invalid="ignore"):
        return lengths, right / count, count


def needle_maps(
    maps: Mapping[str, Sequence[Found]], trained: Mapping[str, int] | None = None, n_bins: int = 6
) -> Figure:
    """Draw maps side by side, one a model.

    Args:
        maps: title -> outcomes.
        trained: title -> longest text the model was trained on; a line is drawn above it.
        n_bins: as in ``needle_shares``.
    """
    import matplotlib.pyplot as plt

    trained = trained or {}
    fig, axes = plt.subplots(
        1, len(maps), figsize=(0.9 + 3.0 * len(maps), 3.3), sharey=True, squeeze=False
    )
    for ax, (title, found) in zip(axes[0], maps.items(), strict=True):
        lengths, shares, _ = needle_shares(found, n_bins)
        shown = ax.imshow(shares, vmin=0, vmax=1, aspect="auto", origin="lower", cmap="cividis")
        for (row, column), share in np.ndenumerate(shares):
            if share == share:
                tone = INK if share > 0.6 else "white"
                ax.text(
                    column, row, f"{100 * share:.0f}", ha="center", va="center",
                    fontsize=8, color=tone,
                )  # fmt: skip
        inside = sum(length <= trained.get(title, 0) + 20 for length in lengths)
        if 0 < inside < len(lengths):
            ax.axhline(inside - 0.5, color=COLORS["control"], lw=2)
        ax.set_title(title, fontsize=10)
        ax.set_xticks([-0.5, n_bins - 0.5], ["start", "end"])
        ax.set_xlabel("place of the needle")
        ax.grid(visible=False)
    axes[0][0].set_yticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    axes[0][0].set_ylabel("tokens of the text")
    fig.tight_layout()
    fig.colorbar(shown, ax=list(axes[0]), label="found (%)", fraction=0.025, pad=0.02).set_ticks(
        [0, 0.5, 1], labels=["0", "50", "100"]
    )
    return fig
