"""Scaled E4M3 on a GPU, the numbers of ``ref.quant`` bit for bit, one read and one write each.

Activations share a scale among 128 neighbours of a row, weights in squares of 128 x 128. The weight
gradient sums over tokens, so its operands need tiles of 128 tokens of one channel: the transpose is
quantised in the same pass, either from 16-bit numbers or from an activation that is kept as E4M3 or
E5M6 (dequantise, transpose, requantise: TR section 3.3.2).

Quotients are correctly rounded: Triton's ``/`` may be off by a unit in the last place, and with it
now and then a number that lies halfway between two codes.
"""

# ruff: noqa: ANN001, ANN201, ANN202  (kernels' arguments have no Python types)
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minids3.kernels.compile import Spec
from minids3.kernels.fp8 import decode_e4m3, encode_e4m3
from minids3.kernels.language import jit, tl
from minids3.kernels.launch import cdiv, check_fp8, check_tensors, fp8_mode

__all__ = [
    "SPECS",
    "act_quant",
    "act_quant_transposed",
    "cache_quant",
    "finite_magnitude",
    "requantize_transposed",
    "scale_of",
    "to_e4m3",
    "weight_dequant",
    "weight_quant",
]

TILE = 128


@jit
def scale_of(largest, POWER_OF_TWO: tl.constexpr, TOP: tl.constexpr = 448.0):
    """The scale that brings ``largest`` to ``TOP``; 1 where there is nothing to scale."""
    scale = tl.div_rn(largest, tl.full(largest.shape, TOP, tl.float32))
    if POWER_OF_TWO:
        tiny = scale < 1.1754943508222875e-38  # subnormal: round up where the bits are regular
        lifted = scale * tl.where(tiny, 18446744073709551616.0, 1.0)
        bits = (lifted.to(tl.int32, bitcast=True) + 0x7FFFFF) & 0x7F800000
        lifted = bits.to(tl.float32, bitcast=True)
        scale = lifted * tl.where(tiny, 5.421010862427522e-20, 1.0)
    return tl.where(scale > 0, scale, 1.0)


@jit
def finite_magnitude(x):
    """Magnitude of each number, 0 for infinities and NaN: they must not touch a scale."""
    magnitude = tl.abs(x)
    return tl.where(magnitude <= 3.4028234663852886e38, magnitude, 0.0)


@jit
def to_e4m3(x, scale, NATIVE: tl.constexpr):
    """``x / scale`` as E4M3 (or its code), to nearest even and saturating; ``scale`` broadcasts."""
    scaled = tl.div_rn(x, tl.broadcast_to(scale, x.shape))
    if NATIVE:
        return scaled.to(tl.float8e4nv)
    else:
        return encode_e4m3(scaled)


@jit
def to_e5m6(x):
    """The E5M6 number nearest to each, ties to even, saturating at 65,024; as FP16."""
    bits = x.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    is_nan = magnitude > 0x7F800000
    limited = tl.minimum(magnitude, 0x477E0000)  # 65,024
    rounded = (limited + 0xFFFF + ((limited >> 17) & 1)) & -0x20000
    normal = rounded.to(tl.float32, bitcast=True)
    # Below 2^-14: steps of 2^-20. Adding 1.5 * 2^3 leaves no room for finer ones.
    small = limited.to(tl.float32, bitcast=True) + 12.0 - 12.0
    value = tl.where(limited < 0x38800000, small, normal)
    value = tl.where(is_nan, float("nan"), value).to(tl.float16)
    sign = ((bits >> 16) & 0x8000).to(tl.int16)  # as a bit, or the minus of a zero is lost
    return (value.to(tl.int16, bitcast=True) | sign).to(tl.float16, bitcast=True)


@jit
def _act_quant_kernel(
    x_ptr,
    q_ptr,
    scale_ptr,
    n_tiles,
    K,
    TILES: tl.constexpr,
    WHOLE: tl.constexpr,
    POWER_OF_TWO: tl.constexpr,
    NATIVE: tl.constexpr,
):
    # Tiles are numbered row by row, so neighbours in a program are neighbours in memory.
    first = tl.program_id(0).to(tl.int64) * TILES
    within = tl.arange(0, TILES)
    inside = (within < n_tiles - first)[:, None]
    if WHOLE:  # K is a multiple of 128: tiles lie end to end
        at = first * 128 + (within * 128)[:, None] + tl.arange(0, 128)[None, :]
    else:
        per_row, tile = tl.cdiv(K, 128), first + within
        column = (tile % per_row * 128)[:, None] + tl.arange(0, 128)[None, :]
        at = (tile // per_row * K)[:, None] + column
        inside &= column < K
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    scale = scale_of(tl.max(finite_magnitude(x), 1), POWER_OF_TWO)
    tl.store(q_ptr + at, to_e4m3(x, scale[:, None], NATIVE), mask=inside)
    tl.store(scale_ptr + first + within, scale, mask=within < n_tiles - first)


@jit
def _cache_quant_kernel(x_ptr, kept_ptr, scale_ptr, M, K, ROWS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * 128 + tl.arange(0, 128)
    at = row[:, None] * K + column[None, :]
    inside = (row < M)[:, None] & (column < K)[None, :]
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    scale = scale_of(tl.max(finite_magnitude(x), 1), True, 65024.0)
    scaled = tl.div_rn(x, tl.broadcast_to(scale[:, None], x.shape))
    tl.store(kept_ptr + at, to_e5m6(scaled), mask=inside)
    scale_at = row * tl.cdiv(K, 128) + tl.program_id(1)
    tl.store(scale_ptr + scale_at, scale, mask=row < M)


@jit
def _quant_transposed_kernel(
    x_ptr,
    x_scale_ptr,
    q_ptr,
    scale_ptr,
    M,
    K,
    BLOCK_K: tl.constexpr,
    SCALED: tl.constexpr,
    POWER_OF_TWO: tl.constexpr,
    NATIVE: tl.constexpr,
):
    tile = tl.program_id(0)
    row = tile * 128 + tl.arange(0, 128)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = (row < M)[:, None] & (k < K)[None, :]
    x = tl.load(x_ptr + row.to(tl.int64)[:, None] * K + k[None, :], mask=inside, other=0.0)
    if SCALED:
        if x_ptr.dtype.element_ty == tl.uint8:
            x = decode_e4m3(x)
        # BLOCK_K divides 128: one scale for each row of this block.
        at = row.to(tl.int64) * tl.cdiv(K, 128) + tl.program_id(1) * BLOCK_K // 128
        x = x.to(tl.float32) * tl.load(x_scale_ptr + at, mask=row < M, other=0.0)[:, None]
    x = tl.trans(x.to(tl.float32))  # [BLOCK_K, 128]: a row is a tile of the transpose
    scale = scale_of(tl.max(finite_magnitude(x), 1), POWER_OF_TWO)
    wide = k.to(tl.int64)
    q_at = q_ptr + wide[:, None] * M + row[None, :]
    tl.store(q_at, to_e4m3(x, scale[:, None], NATIVE), mask=tl.trans(inside))
    tl.store(scale_ptr + wide * tl.cdiv(M, 128) + tile, scale, mask=k < K)


@jit
def _weight_quant_kernel(
    w_ptr, q_ptr, scale_ptr, N, K, POWER_OF_TWO: tl.constexpr, NATIVE: tl.constexpr
):
    n = tl.program_id(0) * 128 + tl.arange(0, 128)
    k = tl.program_id(1) * 128 + tl.arange(0, 128)
    at = n.to(tl.int64)[:, None] * K + k[None, :]
    inside = (n < N)[:, None] & (k < K)[None, :]
    w = tl.load(w_ptr + at, mask=inside, other=0.0).to(tl.float32)
    largest = tl.max(tl.max(finite_magnitude(w), 1, keep_dims=True), 0, keep_dims=True)
    scale = scale_of(largest, POWER_OF_TWO)  # [1, 1]
    tl.store(q_ptr + at, to_e4m3(w, scale, NATIVE), mask=inside)
    one = tl.arange(0, 1)[:, None] + tl.arange(0, 1)[None, :]
    block = tl.program_id(0).to(tl.int64) * tl.cdiv(K, 128) + tl.program_id(1)
    tl.store(scale_ptr + block + one, scale)


@jit
def _weight_dequant_kernel(q_ptr, scale_ptr, w_ptr, N, K, NATIVE: tl.constexpr):
    n = tl.program_id(0) * 128 + tl.arange(0, 128)
    k = tl.program_id(1) * 128 + tl.arange(0, 128)
    at = n.to(tl.int64)[:, None] * K + k[None, :]
    inside = (n < N)[:, None] & (k < K)[None, :]
    q = tl.load(q_ptr + at, mask=inside, other=0.0)
    if not NATIVE:
        q = decode_e4m3(q)
    block = tl.program_id(0).to(tl.int64) * tl.cdiv(K, 128) + tl.program_id(1)
    w = q.to(tl.float32) * tl.load(scale_ptr + block)
    tl.store(w_ptr + at, w.to(w_ptr.dtype.element_ty), mask=inside)


def act_quant(x: Tensor, power_of_two: bool = False) -> tuple[Tensor, Tensor]:
    """Quantise rows in tiles of 128: operands of fprop and dgrad.

    Args:
        x: ``[M, K]`` fp32, fp16 or bf16.
        power_of_two: round scales up to powers of two.

    Returns:
        ``[M, K]`` float8_e4m3fn and ``[M, ceil(K / 128)]`` fp32.

    Raises:
        ValueError: no matrix, or not contiguous.
    """
    m, k = _check(x)
    q, scale = _outputs(x, (m, k), (m, cdiv(k, TILE)))
    if q.numel() == 0:
        return q, scale
    native = fp8_mode(x.device) == "native"
    tiles = 32
    _act_quant_kernel[(cdiv(scale.numel(), tiles),)](
        x,
        _readable(q, native),
        scale,
        scale.numel(),
        k,
        TILES=tiles,
        WHOLE=k % TILE == 0,
        POWER_OF_TWO=power_of_two,
        NATIVE=native,
    )
    return q, scale


def cache_quant(x: Tensor) -> tuple[Tensor, Tensor]:
    """Keep an activation in E5M6 with powers of two as scales, as ``ref.quant.cache_quantize_ref``.

    Args:
        x: ``[M, K]`` fp32, fp16 or bf16.

    Returns:
        ``[M, K]`` float16 that holds E5M6 numbers, and ``[M, ceil(K / 128)]`` fp32.

    Raises:
        ValueError: no matrix, or not contiguous.
    """
    m, k = _check(x)
    kept = torch.empty(m, k, device=x.device, dtype=torch.float16)
    scale = torch.empty(m, cdiv(k, TILE), device=x.device)
    if kept.numel():
        rows = 16
        _cache_quant_kernel[(cdiv(m, rows), scale.shape[1])](x, kept, scale, m, k, ROWS=rows)
    return kept, scale


def act_quant_transposed(x: Tensor, power_of_two: bool = False) -> tuple[Tensor, Tensor]:
    """Quantise the transpose, in tiles of 128 rows of ``x``: an operand of wgrad.

    Args:
        x: ``[M, K]`` fp32, fp16 or bf16.
        power_of_two: round scales up to powers of two.

    Returns:
        ``[K, M]`` float8_e4m3fn and ``[K, ceil(M / 128)]`` fp32, as ``act_quant(x.T)`` would.

    Raises:
        ValueError: no matrix, or not contiguous.
    """
    _check(x)
    return _transposed(x, None, power_of_two)


def requantize_transposed(
    q: Tensor, scale: Tensor, power_of_two: bool = False
) -> tuple[Tensor, Tensor]:
    """Turn a kept activation into an operand of wgrad: dequantise, transpose, requantise.

    Args:
        q: ``[M, K]`` float8_e4m3fn of ``act_quant``, or float16 of ``cache_quant``.
        scale: ``[M, ceil(K / 128)]`` fp32.
        power_of_two: round the new scales up to powers of two.

    Returns:
        ``[K, M]`` float8_e4m3fn and ``[K, ceil(M / 128)]`` fp32.

    Raises:
        ValueError: shapes or dtypes do not fit, or a tensor is not contiguous.
    """
    m, k = _check(q, scale)
    _check_scale(scale, (m, cdiv(k, TILE)))
    return _transposed(q, scale, power_of_two)


def weight_quant(w: Tensor, power_of_two: bool = False) -> tuple[Tensor, Tensor]:
    """Quantise in blocks of 128 x 128.

    Args:
        w: ``[N, K]`` fp32, fp16 or bf16.
        power_of_two: round scales up to powers of two.

    Returns:
        ``[N, K]`` float8_e4m3fn and ``[ceil(N / 128), ceil(K / 128)]`` fp32.

    Raises:
        ValueError: no matrix, or not contiguous.
    """
    n, k = _check(w)
    q, scale = _outputs(w, (n, k), (cdiv(n, TILE), cdiv(k, TILE)))
    if q.numel() == 0:
        return q, scale
    native = fp8_mode(w.device) == "native"
    _weight_quant_kernel[tuple(scale.shape)](
        w,
        _readable(q, native),
        scale,
        n,
        k,
        POWER_OF_TWO=power_of_two,
        NATIVE=native,
        num_warps=8,
    )
    return q, scale


def weight_dequant(q: Tensor, scale: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Undo ``weight_quant``: ``[N, K]`` in ``dtype``; the rounding remains.

    Args:
        q: ``[N, K]`` float8_e4m3fn.
        scale: ``[ceil(N / 128), ceil(K / 128)]`` fp32.
        dtype: of the result.

    Raises:
        ValueError: shapes or dtypes do not fit, or a tensor is not contiguous.
    """
    n, k = _check(q, scale)
    check_fp8(q=q)
    _check_scale(scale, (cdiv(n, TILE), cdiv(k, TILE)))
    w = torch.empty(n, k, device=q.device, dtype=dtype)
    if w.numel() == 0:
        return w
    native = fp8_mode(q.device) == "native"
    _weight_dequant_kernel[tuple(scale.shape)](
        _readable(q, native), scale, w, n, k, NATIVE=native, num_warps=8
    )
    return w


def _transposed(x: Tensor, x_scale: Tensor | None, power_of_two: bool) -> tuple[Tensor, Tensor]:
    m, k = x.shape
    q, scale = _outputs(x, (k, m), (k, cdiv(m, TILE)))
    if q.numel() == 0:
        return q, scale
    native = fp8_mode(x.device) == "native"
    block = 64
    _quant_transposed_kernel[(cdiv(m, TILE), cdiv(k, block))](
        _readable(x, native) if x.dtype == torch.float8_e4m3fn else x,
        scale if x_scale is None else x_scale,
        _readable(q, native),
        scale,
        m,
        k,
        BLOCK_K=block,
        SCALED=x_scale is not None,
        POWER_OF_TWO=power_of_two,
        NATIVE=native,
    )
    return q, scale


def _check(x: Tensor, scale: Tensor | None = None) -> tuple[int, int]:
    """Rows and columns of ``x``; with a scale it must be what ``act_quant`` or another made."""
    check_tensors(x=x, scale=scale)
    if x.ndim != 2:
        raise ValueError(f"only matrices are quantised, got shape {list(x.shape)}")
    if scale is not None and x.dtype not in (torch.float8_e4m3fn, torch.float16):
        raise ValueError(
            f"{x.dtype} has no scales to be read with, expected float8_e4m3fn or float16"
        )
    if scale is None and x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"cannot quantise {x.dtype}: expected float32, float16 or bfloat16")
    return x.shape[0], x.shape[1]


def _check_scale(scale: Tensor, shape: tuple[int, int]) -> None:
    if tuple(scale.shape) != shape or scale.dtype != torch.float32:
        raise ValueError(f"scale is {list(scale.shape)} {scale.dtype}, expected {list(shape)} fp32")


def _outputs(x: Tensor, shape: tuple[int, int], scales: tuple[int, int]) -> tuple[Tensor, Tensor]:
    q = torch.empty(shape, device=x.device, dtype=torch.float8_e4m3fn)
    return q, torch.empty(scales, device=x.device, dtype=torch.float32)


def _readable(q: Tensor, native: bool) -> Tensor:
    """E4M3 as a kernel takes it: as such, or as bytes."""
    return q if native else q.view(torch.uint8)


_NATIVE, _SOFTWARE = ("sm_89", "sm_90", "sm_100"), ("sm_75", "sm_80")


def _specs(native: bool) -> tuple[Spec, ...]:
    e4m3 = "*fp8e4nv" if native else "*u8"
    suffix = "" if native else "_software"
    targets = _NATIVE if native else _SOFTWARE
    flags = {"POWER_OF_TWO": True, "NATIVE": native}

    def spec(name: str, kernel: Any, x: str, sizes: str, warps: int = 4, **constexprs: Any) -> Spec:
        signature = {"x_ptr": x, "x_scale_ptr": "*fp32", "w_ptr": "*bf16", "q_ptr": e4m3}
        signature |= {"kept_ptr": "*fp16", "scale_ptr": "*fp32"}
        signature |= dict.fromkeys(("n_tiles", *sizes.split()), "i32")
        known = {name: signature[name] for name in kernel.arg_names if name in signature}
        divisible = ("M", "N", "K")
        return Spec(name + suffix, kernel, known, constexprs, warps, 3, divisible, targets=targets)

    transposed = {"BLOCK_K": 64, **flags}
    return (
        spec("act_quant", _act_quant_kernel, "*bf16", "K", TILES=32, WHOLE=True, **flags),
        spec("act_quant_ragged", _act_quant_kernel, "*bf16", "K", TILES=32, WHOLE=False, **flags),
        spec(
            "act_quant_transposed",
            _quant_transposed_kernel,
            "*bf16",
            "M K",
            SCALED=False,
            **transposed,
        ),
        spec(
            "requantize_transposed",
            _quant_transposed_kernel,
            e4m3,
            "M K",
            SCALED=True,
            **transposed,
        ),
        spec(
            "requantize_transposed_e5m6",
            _quant_transposed_kernel,
            "*fp16",
            "M K",
            SCALED=True,
            **transposed,
        ),
        spec("cache_quant", _cache_quant_kernel, "*bf16", "M K", ROWS=16),
        spec("weight_quant", _weight_quant_kernel, "", "N K", 8, **flags),
        spec("weight_dequant", _weight_dequant_kernel, "", "N K", 8, NATIVE=native),
    )


SPECS = (*_specs(True), *_specs(False))
