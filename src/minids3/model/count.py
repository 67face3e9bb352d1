"""Counting a model by walking through its modules.

``minids3.sim`` counts from a configuration alone; here the built model is asked, which may stand on
the meta device, where 671 billion parameters take no memory. The two ways know nothing of each
other and must agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import nn

from minids3.model.transformer import Transformer
from minids3.nn import Experts, Gate, GroupedQueryAttention, LatentAttention

__all__ = ["activated_parameters", "attention_macs_per_token", "training_flops_per_token"]


def _parts(model: Transformer, mtp: bool) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if mtp or not name.startswith("mtp."):
            yield name, module


def _own(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters(recurse=False))


def _activated_experts(model: Transformer, name: str, experts: Experts) -> int:
    """Parameters of the K of E experts that one token uses."""
    gate = model.get_submodule(name.removesuffix("experts") + "gate")
    assert isinstance(gate, Gate)
    return _own(experts) * gate.top_k // experts.down_proj.shape[0]


def activated_parameters(model: Transformer, embedding: bool = True, head: bool = True) -> int:
    """Parameters of the main model that one token passes through: K of E routed experts.

    37.552B for V3, 36.626B without the embedding lookup, 35.699B without the head too
    [C-activated]; a head tied to the embedding is counted once.
    """
    total = 0
    for name, module in _parts(model, False):
        if isinstance(module, Experts):
            total += _activated_experts(model, name, module)
        elif module is model.embed_tokens:
            total += _own(module) if embedding else 0
        elif module is model.lm_head:
            tied = model.config.tie_word_embeddings and embedding
            total += _own(module) if head and not tied else 0
        else:
            total += _own(module)
    return total


def attention_macs_per_token(
    model: Transformer,
    seq_len: int,
    attention: Literal["causal", "full"] = "causal",
    mtp: bool = False,
) -> float:
    """Multiply-adds of scores and weighted sums, per token of a sequence of ``seq_len``.

    A causal token sees S/2 positions on average, as in the published counts (exactly (S + 1) / 2).
    """
    seen = seq_len / 2 if attention == "causal" else seq_len
    width = 0
    for _, module in _parts(model, mtp):
        if isinstance(module, LatentAttention):
            width += module.n_heads * (module.nope + module.rope + module.v_dim)
        elif isinstance(module, GroupedQueryAttention):
            width += 2 * module.q_proj.out_features
    return width * seen


def training_flops_per_token(
    model: Transformer,
    seq_len: int,
    attention: Literal["causal", "full"] = "causal",
    mtp: bool = False,
) -> float:
    """FLOPs of forward and backward for one token: 6 for every weight it is multiplied by.

    250.4 GFLOP for V3, causal, S = 4096 [C-flops]. Norms, softmax and the embedding lookup
    multiply no matrix and are left out.
    """
    weights = 0
    for name, module in _parts(model, mtp):
        if isinstance(module, nn.Linear | Gate):
            weights += module.weight.numel()
        elif isinstance(module, Experts):
            weights += _activated_experts(model, name, module)
    if mtp:  # every module uses the shared head once more
        weights += len(model.mtp) * model.lm_head.weight.numel()
    return 6 * (weights + attention_macs_per_token(model, seq_len, attention, mtp))
