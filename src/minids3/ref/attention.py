"""Causal attention, the reference: the whole score matrix in fp32, nothing fused.

Latents of decoding may lie in pages, in their own dtype or as lines of FP8 (``pack_latent_ref``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from minids3.numerics.pages import SCALED, check_pages, packed_bytes
from minids3.ref.norm import rms_norm_ref
from minids3.ref.quant import dequantize_ref, quantize_ref
from minids3.ref.rope import apply_rope_ref

__all__ = [
    "causal_attention_ref",
    "latent_attention_ref",
    "latent_decode_ref",
    "merge_splits_ref",
    "pack_latent_ref",
    "unpack_latent_ref",
]


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


def latent_decode_ref(
    q: Tensor,
    pages: Tensor,
    table: Tensor,
    lengths: Tensor,
    *,
    rank: int,
    scale: float,
) -> Tensor:
    """Absorbed attention of the last T tokens of every sequence over latents that lie in pages.

    o_t = sum_s softmax_s(q_t . k_s * scale) c_s over the positions s up to that of query t, where
    k_s = [c_s | rotary key] is one row of the cache, for all heads the same (TR section 2.1.1,
    absorbed). A query that sees no position gives 0.

    Args:
        q: ``[B, T, H, C + R]``, the keys' up-projection folded in.
        pages: ``[pages, page, C + R]`` floating, or ``[pages, page, bytes]`` uint8 as
            ``pack_latent_ref`` writes them.
        table: ``[B, most]`` integer; position s of sequence b lies in ``pages[table[b, s // page],
            s % page]``. Entries beyond the sequence's end are not followed.
        lengths: ``[B]`` integer, positions of each sequence, those of its T queries included.
        rank: C.
        scale: factor on the scores.

    Returns:
        ``[B, T, H, C]`` in the dtype of ``q``.

    Raises:
        ValueError: shapes or dtypes do not fit each other.
    """
    check_pages(q, pages, table, lengths, rank)
    n_queries, page = q.shape[1], pages.shape[1]
    position = torch.arange(table.shape[1] * page, device=q.device)
    inside = position < lengths[:, None]
    # What lies beyond the end may be anything, NaN too: it must not even meet a weight of 0.
    chosen = table.long().repeat_interleave(page, 1).masked_fill(~inside, 0)
    rows = pages[chosen, position % page]
    if pages.dtype == torch.uint8:
        rows = unpack_latent_ref(rows, rank)
    kind = torch.promote_types(q.dtype, torch.float32)
    rows = rows.to(kind).masked_fill(~inside[..., None], 0.0)
    last = lengths[:, None] - n_queries + torch.arange(n_queries, device=q.device)
    hidden = (position > last[..., None])[:, :, None]  # [B, T, 1, S]
    scores = (q.to(kind).flatten(1, 2) @ rows.mT * scale).unflatten(1, q.shape[1:3])
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    weights = weights.masked_fill(hidden, 0.0)  # where nothing is visible, softmax made NaN of it
    out = weights.flatten(1, 2) @ rows[..., :rank]
    return out.unflatten(1, q.shape[1:3]).to(q.dtype)


def merge_splits_ref(out: Tensor, lse: Tensor) -> Tensor:
    """One softmax from several over parts of the keys: o = sum_i e^(lse_i - m) o_i / sum_i e^(..).

    ``lse_i`` is the natural logarithm of the sum of exponentials of part i's scores, m their
    maximum. A part without keys has lse -inf and counts nothing, whatever its ``out`` holds; where
    no part has any, the result is 0.

    Args:
        out: ``[..., parts, d]``, each normalised by itself.
        lse: ``[..., parts]``.

    Returns:
        ``[..., d]``.
    """
    peak = lse.amax(-1, keepdim=True)
    weights = torch.exp(lse - peak.masked_fill(peak == -torch.inf, 0.0))  # all empty: no inf - inf
    total = weights.sum(-1, keepdim=True)
    weights = weights / total.masked_fill(total == 0, 1.0)
    return (weights[..., None] * out.masked_fill(weights[..., None] == 0, 0.0)).sum(-2)


def pack_latent_ref(latent: Tensor, rank: int) -> Tensor:
    """Write latents as FP8 cache lines: the rotary key stays BF16, since positions must be exact.

    A line is ``C`` bytes of E4M3, ``C / 128`` fp32 scales (multiplied when reading) and ``R``
    numbers in BF16, as in FlashMLA's cache for V3.2 [FM-fp8-cache].

    Args:
        latent: ``[..., C + R]``.
        rank: C.

    Returns:
        ``[..., bytes]`` uint8, of ``packed_bytes``.

    Raises:
        ValueError: as ``packed_bytes``.
    """
    packed_bytes(rank, latent.shape[-1] - rank)
    flat = latent.reshape(-1, latent.shape[-1])
    codes, scales = quantize_ref(flat[:, :rank])
    rope = flat[:, rank:].to(torch.bfloat16).contiguous()
    parts = [part.view(torch.uint8) for part in (codes, scales.contiguous(), rope)]
    return torch.cat(parts, 1).view(*latent.shape[:-1], -1)


def unpack_latent_ref(lines: Tensor, rank: int) -> Tensor:
    """Read what ``pack_latent_ref`` wrote: ``[..., C + R]`` fp32 of ``lines [..., bytes]``."""
    flat, tail = lines.reshape(-1, lines.shape[-1]), rank + 4 * (rank // SCALED)
    codes, scales, rope = (
        part.contiguous() for part in flat.split((rank, tail - rank, flat.shape[1] - tail), 1)
    )
    latent = dequantize_ref(codes.view(torch.float8_e4m3fn), scales.view(torch.float32))
    both = torch.cat((latent, rope.view(torch.bfloat16).float()), 1)
    return both.view(*lines.shape[:-1], -1)
