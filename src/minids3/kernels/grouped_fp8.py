"""Grouped products of scaled E4M3 numbers: forward, input gradient, weight gradient.

As in ``kernels.grouped`` each program finds its expert by itself. As in ``kernels.gemm`` each block
of 128 along the summed dimension is multiplied on its own, scaled in fp32 and then added: that is
also the promotion that Hopper's short accumulators need (TR section 3.3.2). From Hopper on a copy
engine fetches the tiles (``TILES``: the operands are tensor descriptors).

For the weight gradient the summed dimension is the rows, so scales stand for 128 rows of a channel.
Such a tile must not mix two experts: ``moe_quant.grouped_quant_transposed`` sees to that.
"""

# ruff: noqa: ANN001, ANN202  (kernels' arguments have no Python types)
from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from minids3.kernels.compile import Spec, operand
from minids3.kernels.fp8 import decode_e4m3
from minids3.kernels.grouped import find_tile, most_tiles, place_of, power_of_two_from
from minids3.kernels.language import jit, tl
from minids3.kernels.launch import (
    capability,
    cdiv,
    check_fp8,
    check_scale,
    check_tensors,
    copy_engine,
    fp8_mode,
    in_tiles,
)

__all__ = ["SPECS", "fp8_grouped_gemm_nt", "fp8_grouped_wgrad"]

TILE = 128  # rows, columns or channels that share a scale


@jit
def _fp8_grouped_gemm_kernel(
    a_ptr,
    a_scale_ptr,
    b_ptr,
    b_scale_ptr,
    counts_ptr,
    y_ptr,
    m_tiles,
    n_experts,
    N,
    K,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    E_PAD: tl.constexpr,
    GROUP_M: tl.constexpr,
    EVEN_K: tl.constexpr,
    NATIVE: tl.constexpr,
    TILES: tl.constexpr,
):
    """y[m, n] = sum_t sa[m, t] sb[e, n, t] sum_(k in t) a[m, k] b[e, n, k]; e owns row m.

    t are the tiles of 128 k. a [M, K] and b [E, N, K] E4M3, y [M, N]; a_scale [M, K/128], b_scale
    [E, N/128, K/128], counts [E]. EVEN_K, NATIVE, TILES as in ``kernels.gemm``.
    """
    tile, n_tile = place_of(tl.program_id(0), m_tiles, tl.cdiv(N, BLOCK_N), GROUP_M)
    expert, first, end = find_tile(counts_ptr, tile, n_experts, BLOCK_M, E_PAD)
    if expert >= n_experts:
        return
    k_tiles = tl.cdiv(K, 128)
    rows = first + tl.arange(0, BLOCK_M)
    columns = n_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    row_at = tl.minimum(rows, end - 1).to(tl.int64)
    column_at = tl.minimum(columns, N - 1).to(tl.int64)
    wide = expert.to(tl.int64)
    if not TILES:
        a_at = a_ptr + row_at[:, None] * K + k[None, :]
        b_at = b_ptr + wide * N * K + column_at[None, :] * K + k[:, None]
    a_scale_at = a_scale_ptr + row_at * k_tiles
    # BLOCK_N and BLOCK_K divide 128: one scale of b for a tile, one of a for each of its rows.
    b_scale_at = b_scale_ptr + (wide * tl.cdiv(N, 128) + n_tile * BLOCK_N // 128) * k_tiles
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for at in range(0, K, BLOCK_K):
        if TILES:
            a = a_ptr.load([first, at])
            b = b_ptr.load([expert * N + n_tile * BLOCK_N, at]).T
        elif EVEN_K:
            a, b = tl.load(a_at), tl.load(b_at)
        else:
            a = tl.load(a_at, mask=(k < K - at)[None, :], other=0.0)
            b = tl.load(b_at, mask=(k < K - at)[:, None], other=0.0)
        if not NATIVE:
            a, b = decode_e4m3(a), decode_e4m3(b)
        scale = tl.load(a_scale_at + at // 128) * tl.load(b_scale_at + at // 128)
        total += tl.dot(a, b) * scale[:, None]
        if not TILES:
            a_at += BLOCK_K
            b_at += BLOCK_K
    y_at = y_ptr + rows.to(tl.int64)[:, None] * N + columns[None, :]
    inside = (rows < end)[:, None] & (columns < N)[None, :]
    tl.store(y_at, total.to(y_ptr.dtype.element_ty), mask=inside)


@jit
def _fp8_grouped_wgrad_kernel(
    g_ptr,
    g_scale_ptr,
    x_ptr,
    x_scale_ptr,
    counts_ptr,
    dw_ptr,
    row_tiles,
    n_experts,
    N,
    K,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    E_PAD: tl.constexpr,
    NATIVE: tl.constexpr,
    TILES: tl.constexpr,
):
    """dw[e, n, k] = sum_t sg[n, t] sx[k, t] sum_(r in t) g[n, r] x[k, r], t the tiles of expert e.

    g [N, 128 T] and x [K, 128 T] E4M3, a tile being 128 rows of one expert; g_scale [N, T] and
    x_scale [K, T] with T = row_tiles; counts [E] rows; dw [E, N, K], 0 where e has no tile.
    """
    expert = tl.program_id(1)
    n_tile = tl.program_id(0) % tl.cdiv(N, BLOCK_N)
    k_tile = tl.program_id(0) // tl.cdiv(N, BLOCK_N)
    e = tl.arange(0, E_PAD)
    counts = tl.load(counts_ptr + e, mask=e < n_experts, other=0).to(tl.int32)
    tiles = (counts + 127) // 128
    start = tl.sum(tl.where(e < expert, tiles, 0))
    end = start + tl.sum(tl.where(e == expert, tiles, 0))
    n = n_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    k = k_tile * BLOCK_K + tl.arange(0, BLOCK_K)
    r = tl.arange(0, BLOCK_R)
    n_at, k_at = tl.minimum(n, N - 1).to(tl.int64), tl.minimum(k, K - 1).to(tl.int64)
    if not TILES:
        g_at = g_ptr + n_at[:, None] * (row_tiles * 128) + start * 128 + r[None, :]
        x_at = x_ptr + k_at[None, :] * (row_tiles * 128) + start * 128 + r[:, None]
    g_scale_at = g_scale_ptr + n_at * row_tiles
    x_scale_at = x_scale_ptr + k_at * row_tiles
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for at in range(start * 128, end * 128, BLOCK_R):
        if TILES:
            g = g_ptr.load([n_tile * BLOCK_N, at])
            x = x_ptr.load([k_tile * BLOCK_K, at]).T
        else:
            g, x = tl.load(g_at), tl.load(x_at)
        if not NATIVE:
            g, x = decode_e4m3(g), decode_e4m3(x)
        g_scale, x_scale = tl.load(g_scale_at + at // 128), tl.load(x_scale_at + at // 128)
        total += tl.dot(g, x) * g_scale[:, None] * x_scale[None, :]
        if not TILES:
            g_at += BLOCK_R
            x_at += BLOCK_R
    dw_at = dw_ptr + expert.to(tl.int64) * N * K + n.to(tl.int64)[:, None] * K + k[None, :]
    inside = (n < N)[:, None] & (k < K)[None, :]
    tl.store(dw_at, total.to(dw_ptr.dtype.element_ty), mask=inside)


def fp8_grouped_gemm_nt(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    counts: Tensor,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """``grouped_gemm_nt`` of scaled E4M3 numbers (TR section 3.3): forward and input gradient.

    Each block of 128 along K is multiplied on its own, scaled in fp32 and then added, which is also
    the promotion that Hopper's short accumulators need.

    Args:
        a: ``[M, K]`` float8_e4m3fn, rows sorted by expert.
        a_scale: ``[M, ceil(K / 128)]`` fp32.
        b: ``[E, N, K]`` float8_e4m3fn; for the input gradient the transposed weights.
        b_scale: ``[E, ceil(N / 128), ceil(K / 128)]`` fp32.
        counts: ``[E]`` as in ``grouped_gemm_nt``.
        out_dtype: of the result.

    Returns:
        ``[M, N]``.

    Raises:
        ValueError: shapes or dtypes do not fit, or a tensor is not contiguous.
    """
    check_tensors(a=a, a_scale=a_scale, b=b, b_scale=b_scale, counts=counts)
    check_fp8(a=a, b=b)
    if a.ndim != 2 or b.ndim != 3 or counts.shape != b.shape[:1] or a.shape[1] != b.shape[2]:
        raise ValueError(
            f"a {list(a.shape)}, b {list(b.shape)}, counts {list(counts.shape)}: expected [M, K], "
            "[E, N, K] and [E]"
        )
    (m, k), (n_experts, n, _) = a.shape, b.shape
    check_scale("a_scale", a_scale, (m, cdiv(k, TILE)))
    check_scale("b_scale", b_scale, (n_experts, cdiv(n, TILE), cdiv(k, TILE)))
    out = torch.empty(m, n, device=a.device, dtype=out_dtype)
    if k == 0 or n_experts == 0:
        return out.zero_()
    if out.numel() == 0:
        return out
    native, tiles = fp8_mode(a.device) == "native", copy_engine(a, b)
    tile = _fp8_config(a.device, native)
    if native and m < 64 * n_experts:  # small experts: tall tiles would be mostly padding
        tile = _LOW
    block_m, block_n, block_k = tile[:3]
    if not native:
        a, b = a.view(torch.uint8), b.view(torch.uint8)
    m_tiles = most_tiles(m, n_experts, block_m)
    e_pad = power_of_two_from(n_experts)
    spec = _settle(tile, e_pad, k % block_k == 0, native, tiles)
    spec.launch(
        (m_tiles * cdiv(n, block_n),),
        in_tiles(a, block_m, block_k) if tiles else a,
        a_scale,
        in_tiles(b, block_n, block_k) if tiles else b,
        b_scale,
        counts,
        out,
        m_tiles,
        n_experts,
        n,
        k,
    )
    return out


def fp8_grouped_wgrad(
    grad: Tensor,
    grad_scale: Tensor,
    x: Tensor,
    x_scale: Tensor,
    counts: Tensor,
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Gradient of each expert's matrix from operands of ``grouped_quant_transposed``.

    Args:
        grad: ``[N, T * 128]`` float8_e4m3fn, T the most tiles of 128 rows that there can be.
        grad_scale: ``[N, T]`` fp32.
        x: ``[K, T * 128]`` and x_scale ``[K, T]``, likewise.
        counts: ``[E]`` rows per expert; expert e has the next ceil(counts[e] / 128) tiles.
        out_dtype: of the result.

    Returns:
        ``[E, N, K]``, zero for experts without rows.

    Raises:
        ValueError: shapes or dtypes do not fit, or a tensor is not contiguous.
    """
    check_tensors(grad=grad, grad_scale=grad_scale, x=x, x_scale=x_scale, counts=counts)
    check_fp8(grad=grad, x=x)
    if grad.ndim != 2 or x.ndim != 2 or grad.shape[1] != x.shape[1] or x.shape[1] % TILE:
        raise ValueError(
            f"grad {list(grad.shape)} and x {list(x.shape)}: expected [N, T * 128] and "
            "[K, T * 128] as grouped_quant_transposed makes them"
        )
    n, k, row_tiles, n_experts = grad.shape[0], x.shape[0], x.shape[1] // TILE, counts.numel()
    check_scale("grad_scale", grad_scale, (n, row_tiles))
    check_scale("x_scale", x_scale, (k, row_tiles))
    out = torch.empty(n_experts, n, k, device=x.device, dtype=out_dtype)
    if out.numel() == 0:
        return out
    native, tiles = fp8_mode(x.device) == "native", copy_engine(grad, x)
    tile = _fp8_config(x.device, native, wgrad=True)
    block_n, block_k, block_r = tile[:3]
    if not native:
        grad, x = grad.view(torch.uint8), x.view(torch.uint8)
    spec = _settle_wgrad(tile, power_of_two_from(n_experts), native, tiles)
    spec.launch(
        (cdiv(n, block_n) * cdiv(k, block_k), n_experts),
        in_tiles(grad, block_n, block_r) if tiles else grad,
        grad_scale,
        in_tiles(x, block_k, block_r) if tiles else x,
        x_scale,
        counts,
        out,
        row_tiles,
        n_experts,
        n,
        k,
    )
    return out


# Three sides of a tile, warps, stages of the pipeline; the third side divides 128. Registers
# decide: a vector of scales on both sides, as in wgrad, leaves room for half a tile.
_Tile = tuple[int, int, int, int, int]
_LARGE, _LOW = (128, 128, 128, 8, 3), (64, 128, 128, 4, 3)
_HOPPER, _HOPPER_WGRAD, _WGRAD = (128, 128, 128, 8, 4), (64, 128, 128, 4, 4), (128, 64, 128, 8, 3)
_A100, _T4 = (64, 64, 128, 4, 2), (64, 64, 16, 4, 2)


def _fp8_config(device: torch.device, native: bool, wgrad: bool = False) -> _Tile:
    if native and capability(device)[0] == 9:
        return _HOPPER_WGRAD if wgrad else _HOPPER
    if native:
        return _WGRAD if wgrad else _LARGE
    return _A100 if capability(device) >= (8, 0) else _T4


@cache
def _settle(tile: _Tile, e_pad: int, even: bool, native: bool, tiles: bool) -> Spec:
    """The product with its constants: what is launched is what ``SPECS`` compiles."""
    block_m, block_n, block_k, warps, stages = tile
    kind = "fp8e4nv" if native else "u8"
    signature = {
        "a_ptr": operand(kind, (block_m, block_k) if tiles else None),
        "b_ptr": operand(kind, (block_n, block_k) if tiles else None),
        "counts_ptr": "*i64",
        "y_ptr": "*bf16",
    }
    signature |= dict.fromkeys(("a_scale_ptr", "b_scale_ptr"), "*fp32")
    signature |= dict.fromkeys(("m_tiles", "n_experts", "N", "K"), "i32")
    constexprs = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "E_PAD": e_pad}
    constexprs |= {"GROUP_M": 8, "EVEN_K": even, "NATIVE": native, "TILES": tiles}
    return Spec("gemm", _fp8_grouped_gemm_kernel, signature, constexprs, warps, stages, ("N", "K"))


@cache
def _settle_wgrad(tile: _Tile, e_pad: int, native: bool, tiles: bool) -> Spec:
    block_n, block_k, block_r, warps, stages = tile
    kind = "fp8e4nv" if native else "u8"
    signature = {
        "g_ptr": operand(kind, (block_n, block_r) if tiles else None),
        "x_ptr": operand(kind, (block_k, block_r) if tiles else None),
        "counts_ptr": "*i64",
        "dw_ptr": "*fp32",
    }
    signature |= dict.fromkeys(("g_scale_ptr", "x_scale_ptr"), "*fp32")
    signature |= dict.fromkeys(("row_tiles", "n_experts", "N", "K"), "i32")
    constexprs = {"BLOCK_N": block_n, "BLOCK_K": block_k, "BLOCK_R": block_r, "E_PAD": e_pad}
    constexprs |= {"NATIVE": native, "TILES": tiles}
    return Spec(
        "wgrad", _fp8_grouped_wgrad_kernel, signature, constexprs, warps, stages, ("N", "K")
    )


_NATIVE = ("sm_89", "sm_90", "sm_100", "sm_120")
_CORES = {"sm_89": r"mma\.sync.*e4m3", "sm_90": r"wgmma.*e4m3", "sm_100": r"tcgen05\.mma"}
_CORES |= {"sm_80": r"mma\.sync.*f16", "sm_120": _CORES["sm_89"]}


def _spec(
    name: str, tile: _Tile, targets: tuple[str, ...], even: bool = True, tiles: bool = False
) -> Spec:
    native = targets[0] in _NATIVE
    if "wgrad" in name:
        settled = _settle_wgrad(tile, 256, native, tiles)
    else:
        settled = _settle(tile, 256, even, native, tiles)
    expects = {} if targets == ("sm_75",) else _CORES
    return replace(settled, name=name, targets=targets, expects=expects)


SPECS = (
    _spec("fp8_grouped_gemm", _LARGE, _NATIVE),
    _spec("fp8_grouped_gemm_ragged", _LARGE, _NATIVE, even=False),
    _spec("fp8_grouped_gemm_h100", _HOPPER, ("sm_90",)),
    _spec("fp8_grouped_gemm_h100_ragged", _HOPPER, ("sm_90",), even=False),
    _spec("fp8_grouped_gemm_low", _LOW, _NATIVE),
    _spec("fp8_grouped_gemm_tiles_h100", _HOPPER, ("sm_90",), tiles=True),
    _spec("fp8_grouped_gemm_tiles", _LARGE, ("sm_100", "sm_120"), tiles=True),
    _spec("fp8_grouped_gemm_tiles_low", _LOW, ("sm_90", "sm_100", "sm_120"), tiles=True),
    _spec("fp8_grouped_gemm_a100", _A100, ("sm_80",)),
    _spec("fp8_grouped_gemm_t4", _T4, ("sm_75",)),
    _spec("fp8_grouped_gemm_t4_ragged", _T4, ("sm_75",), even=False),
    _spec("fp8_grouped_wgrad_h100", _HOPPER_WGRAD, ("sm_90",)),
    _spec("fp8_grouped_wgrad_tiles_h100", _HOPPER_WGRAD, ("sm_90",), tiles=True),
    _spec("fp8_grouped_wgrad_tiles", _WGRAD, ("sm_100", "sm_120"), tiles=True),
    _spec("fp8_grouped_wgrad", _WGRAD, ("sm_89", "sm_100", "sm_120")),
    _spec("fp8_grouped_wgrad_a100", _A100, ("sm_80",)),
    _spec("fp8_grouped_wgrad_t4", _T4, ("sm_75",)),
)
