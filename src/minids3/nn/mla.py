"""Multi-head latent attention (MLA): what is remembered of a token is one small latent.

Per token and layer the cache holds ``latent [C + R]``: the normalised ``c_kv`` (C numbers, from
which all heads' keys and values can be rebuilt) and one rotary key ``k_rope`` (R numbers, shared by
all heads). Two ways to attend give the same result:

*naive*     rebuild keys and values of every head, then plain attention: cheap per pair of tokens,
            but every cached token must be expanded again at every step;
*absorbed*  fold the key expansion into the query and apply the value expansion after averaging, so
            that all heads attend to the latents: more work per pair, nothing to expand.

Training and prefill want the first, decoding the second; ``forward`` counts and picks. Storing
expanded keys would be a third way, and gives the memory back that the latent saved.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from minids3.config import ModelConfig
from minids3.nn.attention import as_wide_as, causal_sdpa
from minids3.nn.norm import RMSNorm
from minids3.nn.rope import apply_rope, attention_scale
from minids3.ops.recompute import recomputable

__all__ = ["LatentAttention", "LatentLayerCache"]


class LatentLayerCache(Protocol):
    """What latent attention needs from a cache."""

    def update(self, layer: int, latent: Tensor) -> Tensor:
        """Store ``latent [B, T, C + R]`` of ``layer``; return all S so far, ``[B, S, C + R]``."""
        ...


class LatentAttention(nn.Module):
    """MLA with decoupled RoPE and optional query compression (TR eq. 1-11).

    ``absorb`` chooses the path: None counts multiply-adds and takes the cheaper one.
    """

    def __init__(self, cfg: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_heads, self.rank = cfg.num_attention_heads, cfg.kv_lora_rank
        self.nope, self.rope, self.v_dim = (
            cfg.qk_nope_head_dim,
            cfg.qk_rope_head_dim,
            cfg.v_head_dim,
        )
        self.interleaved = cfg.rope_interleave
        self.scale = attention_scale(cfg)
        self.absorb: bool | None = None
        dim, queries = cfg.hidden_size, self.n_heads * (self.nope + self.rope)
        self.compresses_queries = cfg.q_lora_rank is not None
        if cfg.q_lora_rank is None:
            self.q_proj = nn.Linear(dim, queries, bias=False)
        else:
            self.q_a_proj = nn.Linear(dim, cfg.q_lora_rank, bias=False)
            self.q_a_layernorm = RMSNorm(cfg.q_lora_rank)
            self.q_b_proj = nn.Linear(cfg.q_lora_rank, queries, bias=False)
        # The latent norms keep the default eps whatever rms_norm_eps is: so does the released code.
        self.kv_a_proj_with_mqa = nn.Linear(dim, self.rank + self.rope, bias=False)
        self.kv_a_layernorm = RMSNorm(self.rank)
        self.kv_b_proj = nn.Linear(self.rank, self.n_heads * (self.nope + self.v_dim), bias=False)
        self.o_proj = nn.Linear(self.n_heads * self.v_dim, dim, bias=False)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: LatentLayerCache | None = None,
        visible: Tensor | None = None,
    ) -> Tensor:
        """Attend within ``x [B, T, D]`` and to what ``cache`` holds; returns ``[B, T, D]``.

        ``cos`` and ``sin`` are ``[T, R // 2]``, at the absolute positions of ``x``, or ``[B, 1, T,
        R // 2]`` if rows differ. ``visible [B, 1, T, S]`` bool: the keys that each query may see;
        default: all up to itself.
        """
        c_q = self.compress_queries(x)
        latent = self.compress(x, cos, sin)
        if cache is not None:
            latent = cache.update(self.layer, latent)
        absorb = self.absorb
        if absorb is None:
            absorb = self.absorbing_is_cheaper(x.shape[1], latent.shape[1])
        if absorb:
            out = self.attend_absorbed(*self.expand_queries(c_q, cos, sin), latent, visible)
        else:
            q, k, v = recomputable(self._expand, c_q, latent, cos, sin)
            out = causal_sdpa(q, k, v, self.scale, visible)[..., : self.v_dim]
        return self.o_proj(out.transpose(1, 2).flatten(-2))

    def queries(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Every head's query: without position ``[B, H, T, dn]``, rotated ``[B, H, T, R]``."""
        return self.expand_queries(self.compress_queries(x), cos, sin)

    def compress_queries(self, x: Tensor) -> Tensor:
        """The queries' latent ``[B, T, Cq]``, not yet normed; ``x`` itself where there is none."""
        return self.q_a_proj(x) if self.compresses_queries else x

    def expand_queries(self, c_q: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """What ``queries`` returns, from what ``compress_queries`` returned."""
        if self.compresses_queries:
            q = self.q_b_proj(self.q_a_layernorm(c_q))
        else:
            q = self.q_proj(c_q)
        q = q.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        q_nope, q_rope = q.split((self.nope, self.rope), -1)
        return q_nope, apply_rope(q_rope, cos, sin, self.interleaved)

    def compress(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """What is remembered of ``x [B, T, D]``: ``[B, T, C + R]``, normalised c_kv | k_rope."""
        c_kv, k_rope = self.kv_a_proj_with_mqa(x).split((self.rank, self.rope), -1)
        k_rope = apply_rope(k_rope[:, None], cos, sin, self.interleaved)[:, 0]
        return torch.cat((self.kv_a_layernorm(c_kv), k_rope), -1)

    def attend_naive(
        self, q_nope: Tensor, q_rope: Tensor, latent: Tensor, visible: Tensor | None = None
    ) -> Tensor:
        """Rebuild keys and values from ``latent [B, S, C + R]``; returns ``[B, H, T, dv]``."""
        q = torch.cat((q_nope, q_rope), -1)
        return causal_sdpa(q, *self.keys_and_values(latent), self.scale, visible)

    def keys_and_values(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Every head's key ``[B, H, S, dn + R]`` and value ``[B, H, S, dv]``."""
        c_kv, k_rope = latent.split((self.rank, self.rope), -1)
        kv = self.kv_b_proj(c_kv).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        k_nope, v = kv.split((self.nope, self.v_dim), -1)
        k_rope = k_rope[:, None].expand(-1, self.n_heads, -1, -1)
        return torch.cat((k_nope, k_rope), -1), v

    def _expand(
        self, c_q: Tensor, latent: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What fused attention reads, and would keep: queries, keys and values of every head."""
        q = torch.cat(self.expand_queries(c_q, cos, sin), -1)
        k, v = self.keys_and_values(latent)
        return q, k, as_wide_as(v, k)

    def attend_absorbed(
        self, q_nope: Tensor, q_rope: Tensor, latent: Tensor, visible: Tensor | None = None
    ) -> Tensor:
        """Attend to ``latent [B, S, C + R]`` itself; returns ``[B, H, T, dv]``."""
        q = self.fold_queries(q_nope, q_rope)
        n_queries, n_keys = q.shape[2], latent.shape[1]
        # One set of keys for all heads: the heads are so many more queries of one product.
        scores = q.flatten(1, 2) @ latent.transpose(1, 2) * self.scale
        scores = scores.unflatten(1, (self.n_heads, n_queries))
        if visible is not None:
            scores = scores.masked_fill(~visible, -torch.inf)
        elif n_queries > 1:
            future = torch.ones(n_queries, n_keys, dtype=torch.bool, device=q.device)
            scores = scores.masked_fill(future.triu(n_keys - n_queries + 1), -torch.inf)
        weights = scores.softmax(-1, dtype=torch.float32).to(q.dtype).flatten(1, 2)
        mean = (weights @ latent[..., : self.rank]).unflatten(1, (self.n_heads, n_queries))
        return self.unfold_values(mean)

    def fold_queries(self, q_nope: Tensor, q_rope: Tensor) -> Tensor:
        """Every head's query of latents and rotary keys, ``[B, H, T, C + R]``."""
        w_uk, _ = self._expansions()
        return torch.cat((_per_head(q_nope, w_uk), q_rope), -1)

    def unfold_values(self, mean: Tensor) -> Tensor:
        """Every head's value ``[B, H, T, dv]`` of its mean latent ``[B, H, T, C]``."""
        _, w_uv = self._expansions()
        return _per_head(mean, w_uv.transpose(1, 2))

    def _expansions(self) -> tuple[Tensor, Tensor]:
        """What makes keys ``[H, dn, C]`` and values ``[H, dv, C]`` of a latent."""
        weight = self.kv_b_proj.weight.unflatten(0, (self.n_heads, -1))
        w_uk, w_uv = weight.split((self.nope, self.v_dim), 1)
        return w_uk, w_uv

    def absorbing_is_cheaper(self, n_queries: int, n_keys: int) -> bool:
        """Whether the absorbed path takes fewer multiply-adds, per head, for T queries on S keys.

        Naive: T*S*(dn + R + dv) and the expansion S*C*(dn + dv). Absorbed: T*S*(2C + R) and the
        folding T*C*(dn + dv). For V3 and one query the first costs more at any S [C-absorb].
        """
        pairs, expand = n_queries * n_keys, self.rank * (self.nope + self.v_dim)
        naive = pairs * (self.nope + self.rope + self.v_dim) + n_keys * expand
        absorbed = pairs * (2 * self.rank + self.rope) + n_queries * expand
        return absorbed < naive


def _per_head(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply ``x [B, H, T, m]`` by each head's ``weight [H, m, n]``: ``[B, H, T, n]``.

    The heads go first, so that the weights are read once and not once per sequence.
    """
    batch, n_heads, steps, _ = x.shape
    out = torch.bmm(x.transpose(0, 1).reshape(n_heads, batch * steps, -1), weight)
    return out.unflatten(1, (batch, steps)).transpose(0, 1)
