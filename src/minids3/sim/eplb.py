"""EPLB: which GPU holds which experts, and the busiest of them several times (EPLB README).

A layer's experts are *replicated* until there are as many replicas as places, one more each time
for the expert with the most load per replica; that makes the largest load per replica as small as
it can be. The replicas are then *packed*: heaviest first, each to the GPU with the least load so
far that still has room, which is a good heuristic and no more.

Hierarchical placement does that within each node, after packing whole groups of experts to nodes,
so that a token's experts lie on few nodes; it needs a number of groups that the nodes divide.
Global placement ignores groups and nodes. Which of the two was used stands in the result.

Ties: of equally loaded experts, groups, replicas, GPUs or nodes the first is taken, in the order
of their numbers (sorting is stable). Where each pack has room for one item, item i goes to pack i.
Arithmetic is in float32, as in the repository, whose placements these are [EPLB-rule].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

__all__ = ["Placement", "in_order", "pack", "place", "replicate"]

Policy = Literal["hierarchical", "global", "in order"]


@dataclass(frozen=True, eq=False)
class Placement:
    """Where the replicas of each layer's experts are; place p is on GPU p // (places per GPU).

    ``phy2log`` int64 [layers, places]: the expert that a place holds. ``logcnt`` int64
    [layers, experts]: replicas of an expert. ``log2phy`` int64 [layers, experts, most replicas]:
    the places of an expert in the order in which its replicas were made, filled up with -1.
    ``policy`` is what was used, and ``reason`` says why.
    """

    policy: Policy
    reason: str
    num_gpus: int
    phy2log: Tensor
    logcnt: Tensor
    log2phy: Tensor

    def gpu_load(self, load: Tensor | Sequence[Sequence[float]]) -> Tensor:
        """Return each GPU's load, float64 [layers, GPUs]; replicas of an expert share its load.

        ``load`` [layers, experts] may be another than the one that was placed for.
        Raises ``ValueError`` if it is not of this shape, or not finite and 0 or more.
        """
        given = _loads(load, ("layers", "experts"), torch.float64)
        if given.shape != self.logcnt.shape:
            raise ValueError(
                f"loads of shape {list(given.shape)} do not fit this placement of "
                f"{self.logcnt.shape[0]} layers with {self.logcnt.shape[1]} experts"
            )
        share = (given / self.logcnt).gather(1, self.phy2log)
        return share.unflatten(1, (self.num_gpus, -1)).sum(-1)

    def max_over_mean(self, load: Tensor | Sequence[Sequence[float]]) -> Tensor:
        """Return the busiest GPU's load over the mean, float64 [layers]; 0 if there is no load.

        A layer waits for its busiest GPU, so this is how many times too long its experts take.
        """
        per_gpu = self.gpu_load(load)
        mean = per_gpu.mean(1)
        return torch.where(mean > 0, per_gpu.amax(1) / mean, mean)

    def wasted_replicas(self) -> Tensor:
        """Return how many replicas lie beside another of the same expert, int64 [layers].

        Nothing forbids it. Such a replica takes memory and relieves no GPU.
        """
        on_gpu = self.phy2log.unflatten(1, (self.num_gpus, -1)).sort(-1).values
        return (on_gpu.diff(dim=-1) == 0).sum((1, 2))


def place(
    load: Tensor | Sequence[Sequence[float]],
    num_replicas: int,
    num_groups: int,
    num_nodes: int,
    num_gpus: int,
    policy: Literal["auto", "hierarchical", "global"] = "auto",
) -> Placement:
    """Replicate and place the experts of every layer for the loads that were observed.

    ``load`` [layers, experts], finite and 0 or more, in tokens or any other unit. ``"auto"`` is
    EPLB's rule: hierarchical if the groups can be divided among the nodes, else global. V3's 8
    groups can on 4 nodes (prefill) and cannot on 18 or 40 (decoding).
    Without any load, every additional replica is one of expert 0.

    Raises ``ValueError`` if a number is not a positive integer, there are fewer replicas than
    experts or the GPUs do not divide them, or if hierarchical placement is asked for, or follows,
    and experts, groups, nodes and GPUs do not divide as it needs.
    """
    loads = _loads(load, ("layers", "experts"))
    experts = loads.shape[1]
    _counts(
        num_replicas=num_replicas, num_groups=num_groups, num_nodes=num_nodes, num_gpus=num_gpus
    )
    _enough(num_replicas, experts)
    _divides("replicas", num_replicas, "GPUs", num_gpus)
    divided = num_groups % num_nodes == 0
    if policy not in ("auto", "hierarchical", "global"):
        raise ValueError(f"policy={policy!r}; choose 'auto', 'hierarchical' or 'global'")
    if policy == "hierarchical" or (policy == "auto" and divided):
        _divides("groups", num_groups, "nodes", num_nodes)
        _divides("experts", experts, "groups", num_groups)
        _divides("GPUs", num_gpus, "nodes", num_nodes)
        chosen: Policy = "hierarchical"
        reason = f"{num_groups} groups of experts on {num_nodes} nodes"
    else:
        chosen, reason = "global", "asked for"
        if not divided:
            reason = (
                f"{num_groups} groups cannot be divided among {num_nodes} nodes: they are "
                "ignored, and an expert may be on any node"
            )
        num_groups = num_nodes = 1
    group_loads = loads.unflatten(1, (num_groups, -1)).sum(-1)
    layers = [
        _place_layer(one, groups, num_replicas, num_nodes, num_gpus)
        for one, groups in zip(loads, group_loads, strict=True)
    ]
    return _placement(layers, experts, num_gpus, chosen, reason)


def in_order(layers: int, experts: int, num_gpus: int) -> Placement:
    """Return the plain placement to compare with: no replicas, experts on GPUs by their numbers."""
    _counts(layers=layers, experts=experts, num_gpus=num_gpus)
    _divides("experts", experts, "GPUs", num_gpus)
    plain = [(e, 0) for e in range(experts)]
    return _placement([plain] * layers, experts, num_gpus, "in order", "asked for")


def replicate(load: Tensor | Sequence[float], num_replicas: int) -> tuple[list[int], list[int]]:
    """Give each additional replica to the expert with the most load per replica.

    ``load`` [experts]. Returns the expert of each replica, the first ones of all experts before
    the additional ones, and the number of replicas of each expert. No other numbers of replicas
    have a smaller largest load per replica.
    Raises ``ValueError`` for fewer replicas than experts, or loads as ``place`` does.
    """
    load = _loads(load, ("experts",))
    _counts(num_replicas=num_replicas)
    _enough(num_replicas, len(load))
    expert_of, count = list(range(len(load))), torch.ones(len(load), dtype=torch.int64)
    while len(expert_of) < num_replicas:
        busiest = int((load / count).argmax())  # the first of equals
        expert_of.append(busiest)
        count[busiest] += 1
    return expert_of, count.tolist()


def pack(load: Tensor | Sequence[float], num_packs: int) -> list[list[int]]:
    """Distribute items over packs of equal size, heaviest first, to the lightest with room.

    ``load`` [items]. Returns each pack's items in the order in which they came; of equal items and
    of equal packs the first goes first. With one item a pack, pack i holds item i.
    Raises ``ValueError`` if the packs do not divide the items, or loads as ``place`` does.
    """
    load = _loads(load, ("items",))
    _counts(num_packs=num_packs)
    _divides("items", len(load), "packs", num_packs)
    room = len(load) // num_packs
    if room == 1:
        return [[item] for item in range(num_packs)]
    packs: list[list[int]] = [[] for _ in range(num_packs)]
    held = np.zeros(num_packs, dtype=np.float32)
    full = np.zeros(num_packs, dtype=bool)
    weight = load.numpy()
    for item in load.sort(descending=True, stable=True).indices.tolist():
        lightest = int(np.where(full, np.inf, held).argmin())
        packs[lightest].append(item)
        held[lightest] += weight[item]
        full[lightest] = len(packs[lightest]) == room
    return packs


def _place_layer(
    load: Tensor, group_loads: Tensor, num_replicas: int, num_nodes: int, num_gpus: int
) -> list[tuple[int, int]]:
    """Return for each place of a layer (expert, which of its replicas)."""
    size = len(load) // len(group_loads)
    places = []
    for groups in pack(group_loads, num_nodes):
        experts = [group * size + i for group in groups for i in range(size)]
        expert_of, count = replicate(load[experts], num_replicas // num_nodes)
        share = (load[experts] / torch.tensor(count))[expert_of]
        for replicas in pack(share, num_gpus // num_nodes):
            for r in replicas:
                places.append((experts[expert_of[r]], expert_of[:r].count(expert_of[r])))
    return places


def _placement(
    layers: list[list[tuple[int, int]]], experts: int, num_gpus: int, policy: Policy, reason: str
) -> Placement:
    table = torch.tensor(layers)  # [layers, places, (expert, replica)]
    phy2log, rank = table[..., 0], table[..., 1]
    logcnt = torch.stack([row.bincount(minlength=experts) for row in phy2log])
    log2phy = torch.full((len(layers), experts, int(logcnt.max())), -1)
    row = torch.arange(len(layers))[:, None]
    log2phy[row, phy2log, rank] = torch.arange(table.shape[1]).expand(len(layers), -1)
    return Placement(policy, reason, num_gpus, phy2log.contiguous(), logcnt, log2phy)


def _loads(load: Any, axes: tuple[str, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    shape = ", ".join(axes)
    try:
        given = torch.as_tensor(load).detach().cpu()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"loads must be numbers of shape [{shape}]: {error}") from error
    if given.ndim != len(axes) or not given.numel() or given.is_complex():
        raise ValueError(
            f"loads must be real numbers of shape [{shape}], and at least one; got {given.dtype} "
            f"of shape {list(given.shape)}"
        )
    given = given.to(dtype)
    wrong = ~(given.isfinite() & (given >= 0))
    if wrong.any():
        at = wrong.nonzero()[0].tolist()
        place = ", ".join(f"{a[:-1]} {i}" for a, i in zip(axes, at, strict=True))
        raise ValueError(
            f"loads must be finite and 0 or more: {given[tuple(at)].item()} at {place}"
        )
    if not given.sum(-1).isfinite().all():
        raise ValueError("these loads are too large to be added up; divide all by the same number")
    return given


def _counts(**numbers: Any) -> None:
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name}={value!r} must be a whole number, 1 or more")


def _enough(num_replicas: int, experts: int) -> None:
    if num_replicas < experts:
        raise ValueError(
            f"num_replicas={num_replicas} is less than the {experts} experts: each needs a place"
        )


def _divides(whole: str, number: int, parts: str, divisor: int) -> None:
    if number % divisor:
        raise ValueError(
            f"{number} {whole} cannot be divided equally among {divisor} {parts}; "
            f"choose a multiple of {divisor}"
        )
