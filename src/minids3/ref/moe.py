"""Mixture of experts, the reference: every expert computes every token, a mask keeps the chosen.

E times too much work, and for that neither sorting nor slicing can go wrong in it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from minids3.ref.activation import swiglu_ref

__all__ = ["gate_ref", "moe_ref"]


def gate_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    top_k: int,
    n_group: int = 1,
    topk_group: int = 1,
    scoring: Literal["sigmoid", "softmax"] = "sigmoid",
    normalize: bool = True,
    scale: float = 1.0,
) -> Tensor:
    """Gate weight of every expert for every token, zero where it was not chosen (TR eq. 12-16).

    ``bias`` takes part in choosing, never in the weight. A group's score is the sum of its two best
    biased scores; only experts of the best ``topk_group`` groups can be chosen.

    Args:
        x: ``[N, D]``.
        weight: ``[E, D]``.
        bias: ``[E]`` or None.
        top_k: K experts per token.
        n_group: the experts form so many equal groups (the nodes that hold them).
        topk_group: groups that one token may use.
        scoring: how logits become scores.
        normalize: divide the chosen scores by their sum.
        scale: factor on the weights.

    Returns:
        ``[N, E]`` fp32 with K non-zero entries per row.
    """
    logits = x.float() @ weight.float().T
    scores = logits.sigmoid() if scoring == "sigmoid" else logits.softmax(-1)
    choice = scores.detach() + (0 if bias is None else bias.float())
    out = torch.zeros_like(scores)
    per_group = weight.shape[0] // n_group
    for n in range(x.shape[0]):  # token by token, as the sentence above says it
        groups = choice[n].unflatten(0, (n_group, per_group))
        group_scores = groups.sort(-1, descending=True).values[:, :2].sum(-1)
        allowed = group_scores.sort(descending=True).indices[:topk_group].tolist()
        open_experts = [e for e in range(weight.shape[0]) if e // per_group in allowed]
        chosen = sorted(open_experts, key=lambda e: -float(choice[n, e]))[:top_k]
        gate = scores[n, chosen]
        if normalize:
            gate = gate / gate.sum()
        out = out.index_put((torch.tensor(n), torch.tensor(chosen)), gate * scale)
    return out


def moe_ref(x: Tensor, gates: Tensor, gate_up_proj: Tensor, down_proj: Tensor) -> Tensor:
    """Sum over experts of gate weight times SwiGLU expert (TR eq. 12).

    Args:
        x: ``[N, D]``.
        gates: ``[N, E]``, zero for experts that were not chosen.
        gate_up_proj: ``[E, 2F, D]``, the gate's rows first.
        down_proj: ``[E, D, F]``.

    Returns:
        ``[N, D]`` in the dtype of ``x``.
    """
    gate, up = torch.einsum("nd,efd->enf", x, gate_up_proj).chunk(2, -1)
    y = torch.einsum("enf,edf->end", swiglu_ref(gate, up), down_proj)
    return torch.einsum("ne,end->nd", gates.to(x.dtype), y)
