"""Causal attention, the reference: the whole score matrix in fp32, nothing fused."""

from __future__ import annotations

import torch
from torch import Tensor

from minids3.ref.norm import rms_norm_ref
from minids3.ref.rope import apply_rope_ref

__all__ = ["causal_attention_ref", "latent_attention_ref"]


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


def latent_attention_ref(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    w_q: Tensor,
    w_kv_a: Tensor,
    kv_norm: Tensor,
    w_kv_b: Tensor,
    w_o: Tensor,
    w_q_a: Tensor | None = None,
    q_norm: Tensor | None = None,
    v_head_dim: int,
    scale: float | None = None,
    interleaved: bool = True,
) -> Tensor:
    """Multi-head latent attention over a whole sequence, equation by equation (TR eq. 1-11).

    Every head's keys and values are rebuilt from the latent and nothing is cached or folded: the
    oracle of ``nn.mla``. The sizes H, dn, R and C are read off the weights.

    Args:
        x: ``[B, T, D]``.
        cos: ``[T, R // 2]``; with it R is known.
        sin: ``[T, R // 2]``.
        w_q: ``[H * (dn + R), Cq]``, or ``[H * (dn + R), D]`` without query compression.
        w_kv_a: ``[C + R, D]``, down to the latent and the shared rotary key.
        kv_norm: ``[C]``, scale of the latent's RMSNorm; the rotary key is not normalised.
        w_kv_b: ``[H * (dn + dv), C]``, per head the keys' rows, then the values'.
        w_o: ``[D, H * dv]``.
        w_q_a: ``[Cq, D]``, down to the query latent, or None.
        q_norm: ``[Cq]``, scale of its RMSNorm, or None.
        v_head_dim: dv.
        scale: factor on the scores, default ``(dn + R) ** -0.5``.
        interleaved: layout of the rotary pairs.

    Returns:
        ``[B, T, D]``.
    """
    if (w_q_a is None) != (q_norm is None):
        raise ValueError("w_q_a and q_norm go together: give both or neither")
    rope, rank = 2 * cos.shape[-1], kv_norm.shape[0]
    n_heads = w_o.shape[1] // v_head_dim
    query_input = x
    if w_q_a is not None and q_norm is not None:
        query_input = rms_norm_ref(x @ w_q_a.T, q_norm)
    q = torch.einsum("btc,hdc->bhtd", query_input, w_q.unflatten(0, (n_heads, -1)))
    down = torch.einsum("btd,cd->btc", x, w_kv_a)
    c_kv, k_rope = rms_norm_ref(down[..., :rank], kv_norm), down[..., rank:]
    kv = torch.einsum("btc,hdc->bhtd", c_kv, w_kv_b.unflatten(0, (n_heads, -1)))
    k_nope, v = kv[..., :-v_head_dim], kv[..., -v_head_dim:]
    nope = k_nope.shape[-1]
    q_rope = apply_rope_ref(q[..., nope:], cos, sin, interleaved)
    k_rope = apply_rope_ref(k_rope, cos, sin, interleaved)
    scores = torch.einsum("bhtd,bhsd->bhts", q[..., :nope], k_nope)
    scores = scores + torch.einsum("bhtr,bsr->bhts", q_rope, k_rope)
    scores = scores * ((nope + rope) ** -0.5 if scale is None else scale)
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
    weights = scores.masked_fill(future, -torch.inf).softmax(-1)
    out = torch.einsum("bhts,bhsv->bthv", weights, v)
    return out.flatten(-2) @ w_o.T
