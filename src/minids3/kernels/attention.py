"""Absorbed decoding over a paged cache of latents: one read for all heads, split over the keys.

Every head of a sequence attends to the same rows ``[c | rotary key]``, so a block of heads (and of
the T query tokens) shares each row that is loaded, once as key and once as value. One sequence
would keep one processor busy; so its keys are split, each program makes a softmax of its own part,
and a second kernel merges the parts by their log-sum-exp (natural base throughout: parts that were
summed in base 2 and merged in base e are a well-known mistake). A part without keys is known by
arithmetic and never read.

A program holds up to 64 queries, which is half of V3's 128 heads: the second half finds the row in
the L2 cache. Pages may lie anywhere; a row's place is looked up once and used for all its numbers.
Lines of FP8 (``ref.attention.pack_latent_ref``) are turned into numbers in registers, so that only
656 bytes of V3's 1,152 are read.
"""

# ruff: noqa: ANN001, ANN202  (kernels' arguments have no Python types)
from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from minids3.kernels.compile import Spec
from minids3.kernels.fp8 import decode_e4m3
from minids3.kernels.language import jit, tl
from minids3.kernels.launch import capability, cdiv, check_tensors, fp8_mode
from minids3.numerics.pages import check_pages

__all__ = ["SPECS", "latent_decode", "splits_for"]

GROUP = 128  # numbers of a latent that share a scale


@jit
def _decode_kernel(
    q_ptr,
    c_ptr,
    r_ptr,
    s_ptr,
    table_ptr,
    lengths_ptr,
    out_ptr,
    lse_ptr,
    scale,
    n_rows,
    n_heads,
    n_queries,
    most,
    page,
    C,
    R,
    c_stride,
    r_stride,
    s_stride,
    SPLITS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    SCALED: tl.constexpr,
    NATIVE: tl.constexpr,
):
    """One part of the keys: o = sum_s e^(x_s - m) c_s / l, lse = m + ln l, l = sum_s e^(x_s - m).

    x_s = scale (q_c . c_s + q_r . r_s), m = max_s x_s. q [B, T H, C + R]; row s of the cache starts
    at c_ptr + s c_stride (C numbers) and r_ptr + s r_stride (R numbers); with SCALED the C numbers
    are E4M3 codes, times fp32 scales at s_ptr + s s_stride for every 128. table [B, most] of pages;
    lengths [B], the T queries included; out [B, SPLITS, T H, C] fp32 and lse [B, SPLITS, T H].
    Query row i is of token i // H, which sees length - T + i // H + 1 positions.
    """
    sequence = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    part = tl.program_id(2)
    length = tl.load(lengths_ptr + sequence)
    blocks = tl.cdiv(tl.cdiv(length, BLOCK_N), SPLITS)
    start = part * blocks * BLOCK_N
    end = tl.minimum(start + blocks * BLOCK_N, length)
    if start >= end:  # nothing here: the merge knows it, too
        return
    rows = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    c = tl.arange(0, BLOCK_C)
    r = tl.arange(0, BLOCK_R)
    width = C + R
    q_at = q_ptr + (sequence * n_rows + rows.to(tl.int64))[:, None] * width
    q_c = tl.load(q_at + c[None, :], mask=(rows < n_rows)[:, None] & (c < C)[None, :], other=0.0)
    q_r = tl.load(
        q_at + C + r[None, :], mask=(rows < n_rows)[:, None] & (r < R)[None, :], other=0.0
    )
    sees = length - n_queries + rows // n_heads  # the last position that a query sees
    peak = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    mean = tl.zeros((BLOCK_Q, BLOCK_C), tl.float32)
    for at in range(start, end, BLOCK_N):
        s = at + tl.arange(0, BLOCK_N)
        inside = s < end
        lent = tl.load(table_ptr + sequence * most + s // page, mask=inside, other=0)
        row = lent.to(tl.int64) * page + s % page
        # Beyond the end a page may hold anything, NaN too: it is not loaded.
        if SCALED:
            g = tl.arange(0, BLOCK_C // 128)
            codes = tl.load(
                c_ptr + (row * c_stride)[:, None] + c[None, :],
                mask=inside[:, None] & (c < C)[None, :],
                other=0.0 if NATIVE else 0,
            )
            scales = tl.load(
                s_ptr + (row * s_stride)[:, None] + g[None, :],
                mask=inside[:, None] & (g < C // 128)[None, :],
                other=0.0,
            )
            if NATIVE:
                values = codes.to(tl.float32)
            else:
                values = decode_e4m3(codes).to(tl.float32)
            values = tl.reshape(values, (BLOCK_N, BLOCK_C // 128, 128)) * scales[:, :, None]
            k_c = tl.reshape(values, (BLOCK_N, BLOCK_C)).to(q_c.dtype)
        else:
            k_c = tl.load(
                c_ptr + (row * c_stride)[:, None] + c[None, :],
                mask=inside[:, None] & (c < C)[None, :],
                other=0.0,
            ).to(q_c.dtype)
        k_r = tl.load(
            r_ptr + (row * r_stride)[:, None] + r[None, :],
            mask=inside[:, None] & (r < R)[None, :],
            other=0.0,
        ).to(q_r.dtype)
        x = tl.dot(q_c, tl.trans(k_c), input_precision="ieee")
        x = tl.dot(q_r, tl.trans(k_r), x, input_precision="ieee") * scale
        x = tl.where(inside[None, :] & (s[None, :] <= sees[:, None]), x, float("-inf"))
        higher = tl.maximum(peak, tl.max(x, 1))
        safe = tl.where(higher == float("-inf"), 0.0, higher)  # a query that has seen no key yet
        shrink = tl.exp(peak - safe)
        weights = tl.exp(x - safe[:, None])
        total = total * shrink + tl.sum(weights, 1)
        mean = mean * shrink[:, None]
        mean = tl.dot(weights.to(k_c.dtype), k_c, mean, input_precision="ieee")
        peak = higher
    some = total > 0.0
    mean = mean / tl.where(some, total, 1.0)[:, None]
    lse = tl.where(some, peak + tl.log(tl.where(some, total, 1.0)), float("-inf"))
    out_row = (sequence * SPLITS + part) * n_rows + rows
    kept = rows < n_rows
    tl.store(
        out_ptr + out_row[:, None] * C + c[None, :], mean, mask=kept[:, None] & (c < C)[None, :]
    )
    tl.store(lse_ptr + out_row, lse, mask=kept)


@jit
def _merge_kernel(
    out_ptr,
    lse_ptr,
    lengths_ptr,
    y_ptr,
    n_rows,
    C,
    SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """y = sum_i e^(lse_i - m) o_i / sum_i e^(lse_i - m), m = max_i lse_i, over parts with keys.

    out [B, SPLITS, T H, C] and lse [B, SPLITS, T H], both fp32; lengths [B]; y [B, T H, C]. A row
    without any key is 0. Parts that hold no key were never written: which they are follows from the
    length, by the same arithmetic as in the first kernel.
    """
    sequence = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1)
    length = tl.load(lengths_ptr + sequence)
    blocks = tl.cdiv(tl.cdiv(length, BLOCK_N), SPLITS)
    c = tl.arange(0, BLOCK_C)
    peak = tl.full((), float("-inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    mean = tl.zeros((BLOCK_C,), tl.float32)
    for part in range(0, SPLITS):
        at = (sequence * SPLITS + part) * n_rows + row
        written = tl.where(part * blocks * BLOCK_N < length, C, 0)  # columns: all, or none
        lse = tl.load(lse_ptr + at, mask=written > 0, other=float("-inf"))
        values = tl.load(out_ptr + at * C + c, mask=c < written, other=0.0)
        higher = tl.maximum(peak, lse)
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        shrink = tl.exp(peak - safe)
        weight = tl.exp(lse - safe)
        total = total * shrink + weight
        mean = mean * shrink + weight * values
        peak = higher
    mean = mean / tl.where(total > 0.0, total, 1.0)
    y_at = y_ptr + (sequence * n_rows + row) * C + c
    tl.store(y_at, mean.to(y_ptr.dtype.element_ty), mask=c < C)


def splits_for(n_texts: int, n_rows: int, longest: int, processors: int) -> int:
    """Into how many parts to split the keys: enough programs to fill the GPU, parts worth a start.

    A power of two, so that few kernels are compiled.
    """
    programs = n_texts * cdiv(n_rows, 64)
    wanted = max(1, min(2 * processors // max(programs, 1), longest // 128, 64))
    return 1 << (wanted.bit_length() - 1)


def latent_decode(
    q: Tensor,
    pages: Tensor,
    table: Tensor,
    lengths: Tensor,
    *,
    rank: int,
    scale: float,
    splits: int | None = None,
) -> Tensor:
    """Absorbed attention over latents in pages; see ``ref.attention.latent_decode_ref``.

    Args:
        q: ``[B, T, H, C + R]`` fp32, fp16 or bf16.
        pages: ``[pages, page, C + R]`` floating, or ``[pages, page, bytes]`` uint8.
        table: ``[B, most]`` int32 or int64.
        lengths: ``[B]`` int32 or int64.
        rank: C.
        scale: factor on the scores.
        splits: parts of the keys; default: by the size of the GPU.

    Returns:
        ``[B, T, H, C]`` in the dtype of ``q``.

    Raises:
        ValueError: shapes, dtypes or devices do not fit.
        RuntimeError: CPU tensors without the interpreter.
    """
    check_pages(q, pages, table, lengths, rank)
    q = q.contiguous()
    check_tensors(q=q, pages=pages, table=table, lengths=lengths)
    n_texts, n_queries, n_heads, width = q.shape
    page, most, rope = pages.shape[1], table.shape[1], width - rank
    n_rows, device = n_queries * n_heads, q.device
    y = torch.empty(n_texts, n_queries, n_heads, rank, dtype=q.dtype, device=device)
    if y.numel() == 0:
        return y
    scaled = pages.dtype == torch.uint8
    native = scaled and fp8_mode(device) == "native"
    if splits is None:
        splits = splits_for(n_texts, n_rows, most * page, _processors(device))
    decode = _settle(n_rows, rank, rope, splits, scaled, native, capability(device), q.dtype)
    block_q, block_n = (decode.constexprs[name] for name in ("BLOCK_Q", "BLOCK_N"))
    out = torch.empty(n_texts, splits, n_rows, rank, dtype=torch.float32, device=device)
    lse = torch.empty(n_texts, splits, n_rows, dtype=torch.float32, device=device)
    c, r, s = _views(pages, rank, native)
    decode.launch(
        (n_texts, cdiv(n_rows, block_q), splits),
        *(q, c, r, s, table, lengths, out, lse, scale, n_rows, n_heads, n_queries, most, page),
        *(rank, rope, c.stride(0), r.stride(0), s.stride(0)),
    )
    merge = _settle_merge(rank, splits, block_n)
    merge.launch((n_texts, n_rows), out, lse, lengths, y, n_rows, rank)
    return y


def _views(pages: Tensor, rank: int, native: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, rotary keys and scales of every row, each starting at its first number.

    Lines of FP8 hold three dtypes, so the same bytes are looked at three ways.
    """
    rows = pages.flatten(0, 1)
    if pages.dtype != torch.uint8:
        return rows, rows[:, rank:], rows
    tail = rank + 4 * (rank // GROUP)
    codes = rows.view(torch.float8_e4m3fn) if native else rows
    return (
        codes,
        rows.view(torch.bfloat16)[:, tail // 2 :],
        rows.view(torch.float32)[:, rank // 4 :],
    )


def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 4  # the interpreter runs one after the other; a few parts keep the tests honest
    return torch.cuda.get_device_properties(device).multi_processor_count


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def _settle(
    n_rows: int,
    rank: int,
    rope: int,
    splits: int,
    scaled: bool,
    native: bool,
    at: tuple[int, int],
    dtype: torch.dtype,
) -> Spec:
    """Blocks by what a processor's shared memory and registers hold: queries, and rows in flight.

    Sums of 64 queries by 512 are half of all registers, so on Hopper 16 rows come at a time; with
    32 the compiler would keep some in memory. Turning FP8 into numbers takes registers of its own
    (1.5 KB a thread in memory beside 64 queries), so there are 16 queries then.
    """
    block_c, block_r = max(16, _power_of_two(rank)), max(16, _power_of_two(rope))
    if scaled:
        block_c = max(128, block_c)
    wide = block_c > 256
    roomy = at >= (9, 0) or at == (8, 0)  # 164 KiB and more
    most = 64 if roomy and wide and not scaled else 16 if wide else 32
    block_q = max(16, min(most, _power_of_two(n_rows)))
    if dtype == torch.float32:
        block_q = 16
    few = at < (8, 0) or dtype == torch.float32 or scaled or (block_q == 64 and at >= (9, 0))
    block_n = 16 if few else 32
    warps = 8 if block_q * block_c >= 64 * 512 or (wide and scaled) else 4
    constexprs = {
        "SPLITS": splits, "BLOCK_Q": block_q, "BLOCK_N": block_n, "BLOCK_C": block_c,
        "BLOCK_R": block_r, "SCALED": scaled, "NATIVE": native,
    }  # fmt: skip
    kind = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
    codes, rope_kind = (("fp8e4nv" if native else "u8"), "bf16") if scaled else (kind, kind)
    signature = {
        "q_ptr": f"*{kind}", "c_ptr": f"*{codes}", "r_ptr": f"*{rope_kind}",
        "s_ptr": "*fp32" if scaled else f"*{kind}", "table_ptr": "*i32", "lengths_ptr": "*i32",
        "out_ptr": "*fp32", "lse_ptr": "*fp32", "scale": "fp32",
    }  # fmt: skip
    whole = ("n_rows", "n_heads", "n_queries", "most", "page", "C", "R")
    strides = ("c_stride", "r_stride", "s_stride")
    signature |= dict.fromkeys((*whole, *strides), "i32")
    divisible = ("C", "R", *(() if scaled else strides))
    stages = 2 if at >= (8, 0) and not scaled else 1
    return Spec("latent_decode", _decode_kernel, signature, constexprs, warps, stages, divisible)


def _settle_merge(rank: int, splits: int, block_n: int, kind: str = "bf16") -> Spec:
    signature = {
        "out_ptr": "*fp32", "lse_ptr": "*fp32", "lengths_ptr": "*i32", "y_ptr": f"*{kind}",
        "n_rows": "i32", "C": "i32",
    }  # fmt: skip
    constexprs = {"SPLITS": splits, "BLOCK_N": block_n, "BLOCK_C": max(16, _power_of_two(rank))}
    return Spec("latent_merge", _merge_kernel, signature, constexprs, 4, 1, ("C",))


def _v3(name: str, at: tuple[int, int], **changes: Any) -> Spec:
    """V3's sizes: 128 heads, a latent of 512, 64 rotary channels."""
    scaled, native = "fp8" in name, "native" in name
    settled = _settle(128, 512, 64, 8, scaled, native, at, torch.bfloat16)
    return replace(settled, name=name, **changes)


def _small(name: str, dtype: torch.dtype, **changes: Any) -> Spec:
    """The sizes of the workbook's own model: 4 heads, a latent of 64, 32 rotary channels."""
    return replace(_settle(4, 64, 32, 2, False, False, (7, 5), dtype), name=name, **changes)


_CORES = {"sm_80": r"mma\.sync", "sm_89": r"mma\.sync", "sm_90": "wgmma", "sm_100": "tcgen05"}
_SMALL_CORES = dict.fromkeys(("sm_80", "sm_89", "sm_90", "sm_100"), r"mma\.sync")
_ROOMY = ("sm_90", "sm_100")
SPECS = (
    _v3("latent_decode_bf16_h100", (9, 0), targets=_ROOMY, expects=_CORES),
    _v3("latent_decode_bf16_a100", (8, 0), targets=("sm_80",), expects=_CORES),
    _v3("latent_decode_bf16_l4", (8, 9), targets=("sm_89",), expects=_CORES),
    _v3("latent_decode_fp8_native", (9, 0), targets=("sm_89", *_ROOMY), expects=_SMALL_CORES),
    _v3("latent_decode_fp8_a100", (8, 0), targets=("sm_80",), expects=_SMALL_CORES),
    _small("latent_decode_fp16_t4", torch.float16, targets=("sm_75",)),
    _small("latent_decode_fp32", torch.float32),
    replace(_settle_merge(512, 8, 32), name="latent_merge_bf16", targets=tuple(_SMALL_CORES)),
    replace(_settle_merge(64, 2, 16, "fp16"), name="latent_merge_fp16_t4", targets=("sm_75",)),
)
