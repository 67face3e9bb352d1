"""Keeping experts evenly busy: the bias that steers, the losses that push, the metrics that tell.

DeepSeek-V3 balances by a bias on the choice of experts, moved after each step against the load
(Wang et al. 2024, arXiv 2408.15664; TR section 2.1.2), and adds a very small loss per sequence
against extremes within one text (TR eq. 17-20). The auxiliary loss over the batch, the usual
method before, is here as the baseline.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from minids3.nn import Gate, Routing

__all__ = [
    "batch_balance_loss",
    "expert_load",
    "load_entropy",
    "max_violation",
    "mutual_information",
    "routing_loads",
    "sequence_balance_loss",
    "update_expert_bias",
    "update_expert_biases",
]


def expert_load(indices: Tensor, n_experts: int) -> Tensor:
    """Number of token-expert pairs each expert got: ``[E]`` int64 from ``indices [..., K]``."""
    return torch.bincount(indices.flatten(), minlength=n_experts)


def routing_loads(routings: Mapping[str, Routing]) -> dict[str, Tensor]:
    """The load ``[E]`` of every gate in what ``record_routing`` collected."""
    return {name: expert_load(r.indices, r.scores.shape[-1]) for name, r in routings.items()}


def max_violation(load: Tensor) -> Tensor:
    """MaxVio, (largest load - mean load) / mean load, over the last axis (arXiv 2408.15664).

    0 is even; E / K - 1 is the most that K choices of E experts can reach. Where nothing was
    routed it is 0.
    """
    load = load.double()
    mean = load.mean(-1)
    return torch.where(mean > 0, (load.amax(-1) - mean) / mean.clamp_min(1e-300), 0.0)


def load_entropy(load: Tensor) -> Tensor:
    """Entropy of the load over the last axis, divided by ln E: 1 is even, 0 a single expert."""
    if load.shape[-1] < 2:
        raise ValueError("the entropy of a load needs at least two experts")
    share = load.double() / load.double().sum(-1, keepdim=True).clamp_min(1e-300)
    entropy = -torch.special.xlogy(share, share).sum(-1)
    return entropy / torch.log(torch.tensor(float(load.shape[-1]), dtype=torch.float64))


def mutual_information(counts: Tensor) -> Tensor:
    """How many bits the column tells about the row, and the row about the column.

    The sum over rows d and columns e of p log2(p / (p_d p_e)), p the share of a count in all of
    them: H(D) - H(D | E), the same as H(E) - H(E | D). With domains and experts it says how far
    experts have specialised. From few counts it comes out too large: compare with groups that
    cannot differ.

    Args:
        counts: ``[..., D, E]``, 0 or more, integers or not; whole rows and columns may be 0.

    Returns:
        ``[...]`` float64, 0 where nothing was counted.

    Raises:
        ValueError: fewer than two axes, or a count below 0.
    """
    if counts.ndim < 2:
        raise ValueError(f"counts need two axes [..., D, E], got a shape of {list(counts.shape)}")
    if bool((counts < 0).any()):
        raise ValueError("a count is below 0: these must be numbers of choices")
    p = counts.double()
    p = p / p.sum((-2, -1), keepdim=True).clamp_min(1e-300)
    independent = p.sum(-1, keepdim=True) * p.sum(-2, keepdim=True)
    nats = torch.special.xlogy(p, p) - torch.special.xlogy(p, independent)
    return nats.sum((-2, -1)).clamp_min(0) / math.log(2)


def sequence_balance_loss(scores: Tensor, top_k: int) -> Tensor:
    """Sum over experts of f_i P_i within each sequence, averaged over sequences (TR eq. 17-20).

    f_i is how often expert i is among the K best **unbiased** scores, times E / (K T): 1 when even.
    It is a count and passes no gradient. P_i is the mean of the scores normalised per token. An
    even sequence gives 1. The published weight is 1e-4; it is not included here.

    Args:
        scores: ``[B, T, E]``, positive.
        top_k: K.

    Returns:
        A scalar fp32.
    """
    n_tokens, n_experts = scores.shape[-2:]
    chosen = scores.detach().topk(top_k, -1).indices
    hits = torch.zeros_like(scores).scatter_(-1, chosen, 1.0).sum(-2)
    frequency = hits * n_experts / (top_k * n_tokens)
    probability = (scores / scores.sum(-1, keepdim=True)).mean(-2)
    return (frequency * probability).sum(-1).mean()


def batch_balance_loss(scores: Tensor, indices: Tensor) -> Tensor:
    """The usual auxiliary loss, sum of f_i P_i over all tokens of a batch at once.

    Fedus et al. 2021, arXiv 2101.03961, eq. 4-6, with f counted from the experts really used. As a
    baseline it needs a weight large enough to balance, and then pulls on the scores themselves.

    Args:
        scores: ``[..., E]``, positive.
        indices: ``[..., K]`` experts chosen for the same tokens.

    Returns:
        A scalar fp32; 1 when even.
    """
    n_experts, top_k = scores.shape[-1], indices.shape[-1]
    flat = scores.reshape(-1, n_experts)
    hits = expert_load(indices, n_experts).to(flat.dtype)
    frequency = hits * n_experts / (top_k * flat.shape[0])
    probability = (flat / flat.sum(-1, keepdim=True)).mean(0)
    return (frequency * probability).sum()


@torch.no_grad()
def update_expert_bias(bias: Tensor, load: Tensor, speed: float) -> Tensor:
    """Move each expert's bias one step against its load, in place; returns it.

    b_i += speed * sign(mean load - load_i) (arXiv 2408.15664, algorithm 1): the size of the
    difference does not matter, so one wild batch cannot throw the bias far.

    Args:
        bias: ``[E]`` fp32.
        load: ``[E]``, counted over the whole batch (all ranks, all accumulation steps).
        speed: gamma; 0.001 in TR section 4.2, and 0 for its last 500B tokens.
    """
    load = load.to(bias.device, torch.float64)
    return bias.add_(speed * torch.sign(load.mean() - load).to(bias.dtype))


def update_expert_biases(model: nn.Module, loads: Mapping[str, Tensor], speed: float) -> None:
    """Update the gate of every name in ``loads``: all layers with experts, MTP modules included."""
    for name, load in loads.items():
        gate = model.get_submodule(name)
        if not isinstance(gate, Gate):
            raise TypeError(f"{name!r} is a {type(gate).__name__}, not a Gate")
        update_expert_bias(gate.expert_bias, load, speed)
