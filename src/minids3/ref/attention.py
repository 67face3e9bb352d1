"""Causal attention, the reference: the whole score matrix in fp32, nothing fused."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["causal_attention_ref"]


def causal_attention_ref(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """Softmax attention in which position t sees positions 0 .. t.

    o_t = sum_s softmax_s(q_t . k_s * scale) v_s (Vaswani et al. 2017, arXiv 1706.03762, eq. 1,
    masked). The queries are the **last** T of the S positions, so the same function serves training
    (T = S) and decoding with a cache (T < S). Key-value heads are repeated for grouped-query
    attention.

    Args:
        q: ``[B, H, T, d]``.
        k: ``[B, Hk, S, d]``, H a multiple of Hk.
        v: ``[B, Hk, S, dv]``.
        scale: factor on the scores, default ``d ** -0.5``.

    Returns:
        ``[B, H, T, dv]`` in the dtype of ``q``.

    Raises:
        ValueError: the heads do not divide, or there are more queries than keys.
    """
    n_heads, n_queries, dim = q.shape[-3:]
    n_kv_heads, n_keys = k.shape[-3:-1]
    if n_heads % n_kv_heads:
        raise ValueError(f"{n_heads} query heads cannot share {n_kv_heads} key-value heads evenly")
    if n_queries > n_keys:
        raise ValueError(
            f"{n_queries} queries but only {n_keys} keys: a query is one of the positions"
        )
    k = k.repeat_interleave(n_heads // n_kv_heads, -3)
    v = v.repeat_interleave(n_heads // n_kv_heads, -3)
    scores = q.float() @ k.float().transpose(-1, -2) * (dim**-0.5 if scale is None else scale)
    future = torch.ones(n_queries, n_keys, dtype=torch.bool, device=q.device)
    future = future.triu(n_keys - n_queries + 1)
    weights = scores.masked_fill(future, -torch.inf).softmax(-1)
    return (weights @ v.float()).to(q.dtype)
