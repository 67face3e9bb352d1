"""Where one token's copies go: GPUs as squares, a column for each node, an arrow for each copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from minids3.viz.style import CARD, COLORS, INK, MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["copies_map", "describe_copies", "token_copies"]

_PALE = "#BBD9EC"
Copy = tuple[int, int]
"""From one GPU to another."""


def token_copies(
    experts: Sequence[int], home: int, experts_per_gpu: int, gpus_per_node: int, forward: bool
) -> tuple[list[Copy], list[Copy]]:
    """Return a token's copies over InfiniBand and over NVLink.

    Args:
        experts: that it chose.
        home: its GPU.
        experts_per_gpu: dealt to the GPUs in order.
        gpus_per_node: dealt to the nodes in order.
        forward: one copy to each other node, to the GPU of home's number there, which forwards it;
            otherwise one for every choice, straight to its GPU.
    """
    if not forward:
        targets = [expert // experts_per_gpu for expert in experts]
        away = [t // gpus_per_node != home // gpus_per_node for t in targets]
        infiniband = [(home, t) for t, far in zip(targets, away, strict=True) if far]
        near = [(home, t) for t, far in zip(targets, away, strict=True) if not far and t != home]
        return infiniband, near
    infiniband_, nvlink = set(), set()
    for target in {expert // experts_per_gpu for expert in experts}:
        entry = target // gpus_per_node * gpus_per_node + home % gpus_per_node
        if entry != home:
            infiniband_.add((home, entry))
        if entry != target:
            nvlink.add((entry, target))
    return sorted(infiniband_), sorted(nvlink)


def copies_map(
    panels: Mapping[str, bool],
    experts: Sequence[int],
    home: int,
    n_experts: int = 256,
    n_gpus: int = 64,
    gpus_per_node: int = 8,
) -> Figure:
    """Draw the copies of one token, a panel for each way of sending them.

    Args:
        panels: title -> ``forward`` of ``token_copies``; the number of copies is added to it.
        experts: that the token chose.
        home: its GPU.
        n_experts: of the layer.
        n_gpus: that they are dealt to.
        gpus_per_node: GPUs of a column.

    Returns:
        A matplotlib figure that no global state knows of.

    Raises:
        ValueError: an expert or ``home`` does not exist, or experts cannot be dealt out equally.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    share = _share(experts, home, n_experts, n_gpus, gpus_per_node)
    fig = Figure(figsize=(4.6 * len(panels), 3.9), layout="constrained")
    axes = fig.subplots(1, len(panels), squeeze=False)[0]
    for ax, (title, forward) in zip(axes, panels.items(), strict=True):
        infiniband, nvlink = token_copies(experts, home, share, gpus_per_node, forward)
        counts = [experts_on.count(True) for experts_on in _chosen(experts, share, n_gpus)]
        passing = {end for _, end in infiniband} if forward else set()
        _squares(ax, counts, home, gpus_per_node, passing)
        for pairs, color in ((infiniband, COLORS["control"]), (nvlink, COLORS["floor"])):
            for i, (start, end) in enumerate(pairs):
                _arrow(ax, start, end, gpus_per_node, color, pairs[:i].count((start, end)))
        ax.set_title(
            f"{title}\n{len(infiniband)} over InfiniBand, {len(nvlink)} over NVLink", fontsize=9.5
        )
    handles = [
        Line2D([], [], color=COLORS["control"], label="InfiniBand"),
        Line2D([], [], color=COLORS["floor"], label="NVLink"),
        *_marks(),
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=8)
    return fig


def describe_copies(
    panels: Mapping[str, bool],
    experts: Sequence[int],
    home: int,
    n_experts: int = 256,
    n_gpus: int = 64,
    gpus_per_node: int = 8,
) -> str:
    """What ``copies_map`` shows, for ``viz.show``'s alt text; errors as there."""
    share = _share(experts, home, n_experts, n_gpus, gpus_per_node)
    nodes = sorted({expert // share // gpus_per_node for expert in experts})
    sentences = [
        f"{n_gpus} GPUs in {n_gpus // gpus_per_node} nodes. A token on GPU {home} chose "
        f"{len(experts)} experts on {len(nodes)} nodes."
    ]
    for title, forward in panels.items():
        infiniband, nvlink = token_copies(experts, home, share, gpus_per_node, forward)
        sentences.append(
            f"{title}: {len(infiniband)} arrows over InfiniBand, {len(nvlink)} over NVLink."
        )
    return " ".join(sentences)


def _share(
    experts: Sequence[int], home: int, n_experts: int, n_gpus: int, gpus_per_node: int
) -> int:
    if n_experts % n_gpus or n_gpus % gpus_per_node:
        raise ValueError(
            f"{n_experts} experts, {n_gpus} GPUs, {gpus_per_node} a node: each must divide the one "
            "before"
        )
    if not experts or not all(0 <= expert < n_experts for expert in experts):
        raise ValueError(f"experts={list(experts)} must lie between 0 and {n_experts - 1}")
    if not 0 <= home < n_gpus:
        raise ValueError(f"home={home} must lie between 0 and {n_gpus - 1}")
    return n_experts // n_gpus


def _chosen(experts: Sequence[int], share: int, n_gpus: int) -> list[list[bool]]:
    return [[expert // share == gpu for expert in experts] for gpu in range(n_gpus)]


def _squares(
    ax: Axes, counts: Sequence[int], home: int, gpus_per_node: int, passing: set[int]
) -> None:
    """A square for every GPU; one with chosen experts says how many, one that forwards is pale."""
    from matplotlib.patches import FancyBboxPatch, Rectangle
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=3, foreground=COLORS["ours"])]  # over an arrow that passes
    for gpu, count in enumerate(counts):
        x, y = divmod(gpu, gpus_per_node)
        face = COLORS["ours"] if count else _PALE if gpu in passing else CARD
        edge = INK if gpu == home else "#B9BBBE"
        width = 2.2 if gpu == home else 0.8
        square = Rectangle((x - 0.28, y - 0.34), 0.56, 0.68, fc=face, ec=edge, lw=width, zorder=2)
        ax.add_patch(square)
        if count:
            ax.text(
                x, y, str(count), ha="center", va="center", color=CARD, fontsize=8, zorder=4,
                path_effects=halo,
            )  # fmt: skip
    n_nodes = len(counts) // gpus_per_node
    for node in range(n_nodes):
        box = FancyBboxPatch(
            (node - 0.4, -0.5), 0.8, gpus_per_node, boxstyle="round,pad=0,rounding_size=0.12",
            fc="none", ec=MUTED, lw=0.7,
        )  # fmt: skip
        ax.add_patch(box)
    ax.set_xlim(-0.6, n_nodes - 0.4)
    ax.set_ylim(gpus_per_node - 0.3, -0.7)
    ax.set_xticks(range(n_nodes))
    ax.set_xlabel("node")
    ax.set_yticks(range(gpus_per_node))
    ax.set_ylabel("GPU of the node")
    ax.grid(visible=False)
    for side in ax.spines.values():
        side.set_visible(False)


def _arrow(ax: Axes, start: int, end: int, gpus_per_node: int, color: str, again: int) -> None:
    """An arrow between two GPUs, bent so that it lies on no other and, in a node, on no square."""
    from matplotlib.patches import FancyArrowPatch

    a, b = divmod(start, gpus_per_node), divmod(end, gpus_per_node)
    curve = 0.45 if a[0] == b[0] else 0.05 * abs(a[0] - b[0]) + 0.12 * again
    patch = FancyArrowPatch(
        a, b, connectionstyle=f"arc3,rad={curve}", arrowstyle="-|>", mutation_scale=9, color=color,
        lw=1.3, shrinkA=7, shrinkB=7, zorder=3,
    )  # fmt: skip
    ax.add_patch(patch)


def _marks() -> list[object]:
    from matplotlib.patches import Patch

    return [
        Patch(facecolor=CARD, edgecolor=INK, linewidth=2, label="the token's GPU"),
        Patch(facecolor=COLORS["ours"], label="holds experts it chose, how many"),
        Patch(facecolor=_PALE, label="passes copies on"),
    ]
