"""Dense causal attention: multi-head, grouped-query or multi-query, by the key-value heads."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minids3.config import ModelConfig
from minids3.nn.rope import apply_rope

__all__ = ["GroupedQueryAttention", "LayerCache", "as_wide_as", "causal_sdpa"]


class LayerCache(Protocol):
    """What attention needs from a cache: put new keys and values in, get all of them back."""

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store ``k, v [B, Hk, T, d]`` of ``layer``; return all S so far, ``[B, Hk, S, d]``."""
        ...


def causal_sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    visible: Tensor | None = None,
) -> Tensor:
    """Causal attention by PyTorch's fused function; the queries are the last T positions.

    Args:
        q: ``[B, H, T, d]``.
        k: ``[B, Hk, S, d]``, H a multiple of Hk.
        v: ``[B, Hk, S, dv]``.
        scale: factor on the scores, default ``d ** -0.5``.
        visible: ``[B, 1, T, S]`` bool, the keys that each query may see; default: all up to itself.

    Returns:
        ``[B, H, T, dv]``.
    """
    n_queries, n_keys = q.shape[-2], k.shape[-2]
    mask = visible
    if (
        mask is None and 1 < n_queries < n_keys
    ):  # a chunk after a cached prefix: PyTorch's is_causal aligns top-left
        mask = torch.ones(n_queries, n_keys, dtype=torch.bool, device=q.device)
        mask = mask.tril(n_keys - n_queries)
    narrow = v.shape[-1]
    v = as_wide_as(v, k)
    out = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        is_causal=mask is None and 1 < n_queries == n_keys,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out[..., :narrow]


def as_wide_as(v: Tensor, k: Tensor) -> Tensor:
    """Values with columns of zeros up to the width of the keys, which fused kernels want."""
    missing = k.shape[-1] - v.shape[-1]
    return F.pad(v, (0, missing)) if missing > 0 else v


class GroupedQueryAttention(nn.Module):
    """Attention with rotary positions in which groups of query heads share one key-value head.

    Grouped-query attention: Ainslie et al. 2023, arXiv 2305.13245. With as many key-value heads as
    heads it is the multi-head attention of every textbook.
    """

    def __init__(self, cfg: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = cfg.head_dim
        self.interleaved = cfg.rope_interleave
        self.q_proj = nn.Linear(cfg.hidden_size, cfg.num_attention_heads * cfg.head_dim, bias=False)
        self.k_proj = nn.Linear(cfg.hidden_size, cfg.num_key_value_heads * cfg.head_dim, bias=False)
        self.v_proj = nn.Linear(cfg.hidden_size, cfg.num_key_value_heads * cfg.head_dim, bias=False)
        self.o_proj = nn.Linear(cfg.num_attention_heads * cfg.head_dim, cfg.hidden_size, bias=False)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: LayerCache | None = None,
        visible: Tensor | None = None,
    ) -> Tensor:
        """Attend within ``x [B, T, D]`` and to what ``cache`` holds; returns ``[B, T, D]``.

        ``cos`` and ``sin`` are ``[T, head_dim // 2]``, at the absolute positions of ``x``, or
        ``[B, 1, T, head_dim // 2]`` if rows differ; ``visible`` is that of ``causal_sdpa``.
        """
        q, k, v = self.project(x, cos, sin)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        out = causal_sdpa(q, k, v, visible=visible)
        return self.o_proj(out.transpose(1, 2).flatten(-2))

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``[B, H, T, d]``, keys and values ``[B, Hk, T, d]``, the first two rotated."""
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q = apply_rope(q, cos, sin, self.interleaved)
        return q, apply_rope(k, cos, sin, self.interleaved), v
