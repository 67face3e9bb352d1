"""Operands of grouped products in E4M3: SwiGLU fused with quantisation, and transposed tiles."""

# ruff: noqa: ANN001, ANN202  (kernels' arguments have no Python types)
from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from minids3.kernels.compile import Spec
from minids3.kernels.fp8 import decode_e4m3
from minids3.kernels.grouped import find_tile, most_tiles, power_of_two_from
from minids3.kernels.language import jit, tl
from minids3.kernels.launch import cdiv, check_tensors, fp8_mode
from minids3.kernels.quant import finite_magnitude, scale_of, to_e4m3

__all__ = ["SPECS", "grouped_quant_transposed", "swiglu_quant"]

TILE = 128  # rows or channels that share a scale


@jit
def _swiglu_quant_kernel(
    x_ptr,
    q_ptr,
    scale_ptr,
    M,
    F,
    ROWS: tl.constexpr,
    POWER_OF_TWO: tl.constexpr,
    NATIVE: tl.constexpr,
):
    """h = silu(g) u,  s[m, t] = max over f in t of |h[m, f]| / 448,  q = E4M3(h / s).

    x [M, 2F] holds g, then u; t are tiles of 128 f; q [M, F], scale s [M, F/128]. A program has
    ROWS rows of one tile.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    tile = tl.program_id(1)
    f = tile * 128 + tl.arange(0, 128)
    inside = (rows < M)[:, None] & (f < F)[None, :]
    wide = rows.to(tl.int64)
    gate_at = x_ptr + wide[:, None] * (2 * F) + f[None, :]
    gate = tl.load(gate_at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_at + F, mask=inside, other=0.0).to(tl.float32)
    h = gate / (1.0 + tl.exp(-gate)) * up
    scale = scale_of(tl.max(finite_magnitude(h), 1), POWER_OF_TWO)
    q_at = q_ptr + wide[:, None] * F + f[None, :]
    tl.store(q_at, to_e4m3(h, scale[:, None], NATIVE), mask=inside)
    tl.store(scale_ptr + wide * tl.cdiv(F, 128) + tile, scale, mask=rows < M)


@jit
def _grouped_quant_transposed_kernel(
    x_ptr,
    x_scale_ptr,
    counts_ptr,
    q_ptr,
    scale_ptr,
    row_tiles,
    n_experts,
    K,
    BLOCK_K: tl.constexpr,
    E_PAD: tl.constexpr,
    SCALED: tl.constexpr,
    POWER_OF_TWO: tl.constexpr,
    NATIVE: tl.constexpr,
):
    """s[k, t] = max over r in t of |x[r, k]| / 448,  q[k, r in t] = E4M3(x[r, k] / s[k, t]).

    t are tiles of up to 128 rows of one expert, filled up with zeros. x [M, K], sorted by expert,
    if SCALED E4M3 to be multiplied by x_scale [M, K/128] first; counts [E]; q [K, 128 T] and scale
    s [K, T] with T = row_tiles.
    """
    tile = tl.program_id(0)
    expert, first, end = find_tile(counts_ptr, tile, n_experts, 128, E_PAD)
    if expert >= n_experts:
        return
    rows = first + tl.arange(0, 128)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = (rows < end)[:, None] & (k < K)[None, :]
    x = tl.load(x_ptr + rows.to(tl.int64)[:, None] * K + k[None, :], mask=inside, other=0.0)
    if SCALED:
        if not NATIVE:
            x = decode_e4m3(x)
        # BLOCK_K divides 128: one scale for each row of this block.
        scale_at = rows.to(tl.int64) * tl.cdiv(K, 128) + tl.program_id(1) * BLOCK_K // 128
        x_scale = tl.load(x_scale_ptr + scale_at, mask=rows < end, other=0.0)
        x = x.to(tl.float32) * x_scale[:, None]
    x = tl.trans(x.to(tl.float32))
    scale = scale_of(tl.max(finite_magnitude(x), 1), POWER_OF_TWO)
    wide = k.to(tl.int64) * row_tiles + tile
    q_at = q_ptr + wide[:, None] * 128 + tl.arange(0, 128)[None, :]
    tl.store(q_at, to_e4m3(x, scale[:, None], NATIVE), mask=(k < K)[:, None])
    tl.store(scale_ptr + wide, scale, mask=k < K)


def swiglu_quant(gate_up: Tensor, power_of_two: bool = False) -> tuple[Tensor, Tensor]:
    """SwiGLU and quantisation in one pass: the products never visit memory in 16 bits.

    Rounded once, from fp32 to E4M3. Going through bf16 first, as two kernels do, rounds twice.

    Args:
        gate_up: ``[M, 2F]`` fp32, fp16 or bf16, gate columns first.
        power_of_two: round scales up to powers of two.

    Returns:
        ``[M, F]`` float8_e4m3fn and ``[M, ceil(F / 128)]`` fp32, as ``ref.quant.quantize_ref``
        makes them of ``silu(gate) * up``.

    Raises:
        ValueError: an odd number of columns, or not contiguous.
    """
    check_tensors(gate_up=gate_up)
    if gate_up.ndim != 2 or gate_up.shape[1] % 2:
        raise ValueError(f"gate_up is {list(gate_up.shape)}, expected [M, 2F]")
    m, f = gate_up.shape[0], gate_up.shape[1] // 2
    q = torch.empty(m, f, device=gate_up.device, dtype=torch.float8_e4m3fn)
    scale = torch.empty(m, cdiv(f, TILE), device=gate_up.device)
    if q.numel() == 0:
        return q, scale
    native = fp8_mode(gate_up.device) == "native"
    spec = _swiglu_quant(power_of_two, native)
    grid = cdiv(m, spec.constexprs["ROWS"]), cdiv(f, TILE)
    spec.launch(grid, gate_up, q if native else q.view(torch.uint8), scale, m, f)
    return q, scale


def grouped_quant_transposed(
    x: Tensor, counts: Tensor, scale: Tensor | None = None, power_of_two: bool = False
) -> tuple[Tensor, Tensor]:
    """Transpose and quantise in tiles of 128 rows that never cross an expert: for weight gradients.

    An expert's last tile is filled up with zeros. Tiles beyond the last expert's are not written.

    Args:
        x: ``[M, K]`` fp32, fp16 or bf16, rows sorted by expert; or float8_e4m3fn with ``scale``.
        counts: ``[E]`` rows per expert, int32 or int64, summing to M.
        scale: ``[M, ceil(K / 128)]`` of a quantised ``x``: dequantised, transposed and requantised
            (TR section 3.3.2).
        power_of_two: round the new scales up to powers of two.

    Returns:
        ``[K, T * 128]`` float8_e4m3fn and ``[K, T]`` fp32 with T = M // 128 + min(E, M).

    Raises:
        ValueError: shapes do not fit, or a tensor is not contiguous.
    """
    check_tensors(x=x, counts=counts, scale=scale)
    if x.ndim != 2 or counts.ndim != 1 or (x.dtype == torch.float8_e4m3fn) != (scale is not None):
        raise ValueError(
            f"x {list(x.shape)} {x.dtype}, counts {list(counts.shape)}: expected [M, K] and [E], "
            "and a scale exactly if x is float8_e4m3fn"
        )
    m, k = x.shape
    if scale is not None and scale.shape != (m, cdiv(k, TILE)):
        raise ValueError(f"scale is {list(scale.shape)}, expected {[m, cdiv(k, TILE)]}")
    n_experts = counts.numel()
    tiles = most_tiles(m, n_experts, TILE)
    q = torch.empty(k, tiles * TILE, device=x.device, dtype=torch.float8_e4m3fn)
    new_scale = torch.empty(k, tiles, device=x.device)
    if q.numel() == 0:
        return q, new_scale
    native = fp8_mode(x.device) == "native"
    spec = _transposed(power_of_two_from(n_experts), scale is not None, power_of_two, native)
    spec.launch(
        (tiles, cdiv(k, spec.constexprs["BLOCK_K"])),
        x.view(torch.uint8) if scale is not None and not native else x,
        new_scale if scale is None else scale,
        counts,
        q if native else q.view(torch.uint8),
        new_scale,
        tiles,
        n_experts,
        k,
    )
    return q, new_scale


@cache
def _swiglu_quant(power_of_two: bool, native: bool) -> Spec:
    kind = "*fp8e4nv" if native else "*u8"
    signature = {"x_ptr": "*bf16", "q_ptr": kind, "scale_ptr": "*fp32", "M": "i32", "F": "i32"}
    constexprs = {"ROWS": 16, "POWER_OF_TWO": power_of_two, "NATIVE": native}
    return Spec("swiglu_quant", _swiglu_quant_kernel, signature, constexprs, divisible=("M", "F"))


@cache
def _transposed(e_pad: int, scaled: bool, power_of_two: bool, native: bool) -> Spec:
    kind = "*fp8e4nv" if native else "*u8"
    signature = {"x_ptr": kind if scaled else "*bf16", "q_ptr": kind, "counts_ptr": "*i64"}
    signature |= dict.fromkeys(("x_scale_ptr", "scale_ptr"), "*fp32")
    signature |= dict.fromkeys(("row_tiles", "n_experts", "K"), "i32")
    constexprs = {"BLOCK_K": 64, "E_PAD": e_pad, "SCALED": scaled}
    constexprs |= {"POWER_OF_TWO": power_of_two, "NATIVE": native}
    kernel = _grouped_quant_transposed_kernel
    return Spec("grouped_quant_transposed", kernel, signature, constexprs, divisible=("K",))


def _specs(native: bool) -> tuple[Spec, ...]:
    suffix = "" if native else "_software"
    targets = ("sm_89", "sm_90", "sm_100", "sm_120") if native else ("sm_75", "sm_80")
    cast = dict.fromkeys(targets, r"cvt\.rn\.satfinite\.e4m3x2") if native else {}
    plain, scaled = (_transposed(256, s, True, native) for s in (False, True))
    return (
        replace(
            _swiglu_quant(False, native),
            name="swiglu_quant" + suffix,
            expects=cast,
            targets=targets,
        ),
        replace(plain, name=plain.name + suffix, targets=targets),
        replace(scaled, name=f"{scaled.name}_fp8{suffix}", targets=targets),
    )


SPECS = (*_specs(True), *_specs(False))
