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

from dataclasses import replace
from functools import cache
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
    """s = largest / TOP, if POWER_OF_TWO 2^ceil(log2 of it); 1 where there is nothing to scale."""
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
    """|x|, but 0 if |x| = inf or x is NaN: they must not touch a scale."""
    magnitude = tl.abs(x)
    return tl.where(magnitude <= 3.4028234663852886e38, magnitude, 0.0)


@jit
def to_e4m3(x, scale, NATIVE: tl.constexpr):
    """q = E4M3(x / scale), or its code; to nearest even, |q| at most 448. ``scale`` broadcasts."""
    scaled = tl.div_rn(x, tl.broadcast_to(scale, x.shape))
    if NATIVE:
        return scaled.to(tl.float8e4nv)
    else:
        return encode_e4m3(scaled)


@jit
def to_e5m6(x):
    """E5M6(x) = x rounded to 1 + 6 bits, ties to even, |x| at most 65,024; as FP16.

    Steps are 2^(e - 6) for 2^e <= |x| < 2^(e + 1), and 2^-20 below 2^-14.
    """
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
    """s[m, t] = max over k in t of |x[m, k]| / 448,  q[m, k] = E4M3(x[m, k] / s[m, t]).

    t are tiles of 128 k; x and q [M, K], scale s [M, K/128], n_tiles of them, TILES a program.
    WHOLE: 128 divides K.
    """
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
    """s = 2^ceil(log2(max over k in t of |x[m, k]| / 65,024)),  kept = E5M6(x / s).

    t are tiles of 128 k; x and kept [M, K], scale s [M, K/128]; ROWS rows of a tile a program.
    """
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
    """s[k, t] = max over m in t of |x[m, k]| / 448,  q[k, m] = E4M3(x[m, k] / s[k, t]).

    t are tiles of 128 m. x [M, K], if SCALED E4M3 or E5M6 to be multiplied by x_scale [M, K/128]
    first; q [K, M], scale s [K, M/128]. A program has BLOCK_K columns of one tile.
    """
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
    """s = max over a block of 128 x 128 of |w| / 448,  q = E4M3(w / s).

    w and q [N, K], scale s [N/128, K/128]; one program a block.
    """
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
    """w = q s; q and w [N, K], scale s [N/128, K/128]; one program a block of 128 x 128."""
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
    spec = _act_quant(k % TILE == 0, power_of_two, native)
    grid = (cdiv(scale.numel(), spec.constexprs["TILES"]),)
    spec.launch(grid, x, _readable(q, native), scale, scale.numel(), k)
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
        grid = cdiv(m, _CACHE_QUANT.constexprs["ROWS"]), scale.shape[1]
        _CACHE_QUANT.launch(grid, x, kept, scale, m, k)
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
    spec = _weight_quant(power_of_two, native)
    spec.launch(tuple(scale.shape), w, _readable(q, native), scale, n, k)
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
    _weight_dequant(native).launch(tuple(scale.shape), _readable(q, native), scale, w, n, k)
    return w


def _transposed(x: Tensor, x_scale: Tensor | None, power_of_two: bool) -> tuple[Tensor, Tensor]:
    m, k = x.shape
    q, scale = _outputs(x, (k, m), (k, cdiv(m, TILE)))
    if q.numel() == 0:
        return q, scale
    native = fp8_mode(x.device) == "native"
    spec = _quant_transposed(x_scale is not None, power_of_two, native)
    spec.launch(
        (cdiv(m, TILE), cdiv(k, spec.constexprs["BLOCK_K"])),
        _readable(x, native) if x.dtype == torch.float8_e4m3fn else x,
        scale if x_scale is None else x_scale,
        _readable(q, native),
        scale,
        m,
        k,
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


def _spec(name: str, kernel: Any, native: bool, warps: int = 4, **constexprs: Any) -> Spec:
    """A kernel with its constants: what is launched is what ``SPECS`` compiles."""
    e4m3 = "*fp8e4nv" if native else "*u8"
    types = {"x_ptr": "*bf16", "w_ptr": "*bf16", "kept_ptr": "*fp16", "q_ptr": e4m3}
    types |= dict.fromkeys(("x_scale_ptr", "scale_ptr"), "*fp32")
    types |= dict.fromkeys(("n_tiles", "M", "N", "K"), "i32")
    signature = {a: types[a] for a in kernel.arg_names if a in types}
    return Spec(name, kernel, signature, constexprs, warps, divisible=("M", "N", "K"))


@cache
def _act_quant(whole: bool, power_of_two: bool, native: bool) -> Spec:
    constexprs = {"TILES": 32, "WHOLE": whole, "POWER_OF_TWO": power_of_two, "NATIVE": native}
    return _spec("act_quant", _act_quant_kernel, native, **constexprs)


@cache
def _quant_transposed(scaled: bool, power_of_two: bool, native: bool) -> Spec:
    constexprs = {"SCALED": scaled, "POWER_OF_TWO": power_of_two, "NATIVE": native}
    return _spec("act_quant_transposed", _quant_transposed_kernel, native, BLOCK_K=64, **constexprs)


@cache
def _weight_quant(power_of_two: bool, native: bool) -> Spec:
    constexprs = {"POWER_OF_TWO": power_of_two, "NATIVE": native}
    return _spec("weight_quant", _weight_quant_kernel, native, 8, **constexprs)


@cache
def _weight_dequant(native: bool) -> Spec:
    return _spec("weight_dequant", _weight_dequant_kernel, native, 8, NATIVE=native)


_CACHE_QUANT = _spec("cache_quant", _cache_quant_kernel, True, ROWS=16)


def _specs(native: bool) -> tuple[Spec, ...]:
    def cell(spec: Spec, name: str, x: str = "*bf16") -> Spec:
        signature = {**spec.signature, "x_ptr": x} if "x_ptr" in spec.signature else spec.signature
        suffix = "" if native else "_software"
        return replace(spec, name=name + suffix, signature=signature, targets=targets)

    targets = ("sm_89", "sm_90", "sm_100", "sm_120") if native else ("sm_75", "sm_80")
    kept = _quant_transposed(True, True, native)
    return (
        cell(_act_quant(True, True, native), "act_quant"),
        cell(_act_quant(False, True, native), "act_quant_ragged"),
        cell(_quant_transposed(False, True, native), "act_quant_transposed"),
        cell(kept, "requantize_transposed", kept.signature["q_ptr"]),
        cell(kept, "requantize_transposed_e5m6", "*fp16"),
        cell(_CACHE_QUANT, "cache_quant"),
        cell(_weight_quant(True, native), "weight_quant"),
        cell(_weight_dequant(native), "weight_dequant"),
    )


SPECS = (*_specs(True), *_specs(False))
