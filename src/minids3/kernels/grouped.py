"""Grouped products: many experts' matrices, one launch, and no number of rows ever leaves the GPU.

The rows of ``x [M, K]`` lie sorted by expert, ``counts [E]`` says how many each has. A loop over
the experts would need the counts on the CPU (a wait) and launch E small products. Here the launch
covers the most tiles there can be, M // BLOCK_M + min(E, M), and each program finds its own expert
in the prefix sum of ceil(counts / BLOCK_M). A tile never crosses from one expert to the next;
programs beyond the last tile return at once. From Hopper on a copy engine fetches the tiles
(``TILES``: ``x_ptr`` and ``w_ptr`` are tensor descriptors). The alternative, padding each expert
to full tiles, needs the padded total on the CPU and moves rows that nobody wants.
"""

# ruff: noqa: ANN001, ANN201, ANN202  (kernels' arguments have no Python types)
from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from minids3.kernels.compile import Spec, operand
from minids3.kernels.language import jit, tl
from minids3.kernels.launch import capability, cdiv, check_tensors, copy_engine, in_tiles

__all__ = [
    "SPECS",
    "find_tile",
    "grouped_gemm_nn",
    "grouped_gemm_nt",
    "grouped_wgrad",
    "most_tiles",
    "place_of",
    "power_of_two_from",
]


@jit
def find_tile(counts_ptr, tile, n_experts, BLOCK_M: tl.constexpr, E_PAD: tl.constexpr):
    """Expert, first row and end of that expert's rows, for a tile; expert >= n_experts: no tile.

    With tiles[e] = ceil(counts[e] / BLOCK_M): expert = the first with sum_(i <= expert) tiles[i] >
    tile; first = sum_(i < expert) counts[i] + BLOCK_M (tile - sum_(i < expert) tiles[i]).
    """
    e = tl.arange(0, E_PAD)
    counts = tl.load(counts_ptr + e, mask=e < n_experts, other=0).to(tl.int32)
    tiles = (counts + BLOCK_M - 1) // BLOCK_M
    tile_ends = tl.cumsum(tiles, 0)
    expert = tl.sum((tile_ends <= tile).to(tl.int32))
    before = e < expert
    start = tl.sum(tl.where(before, counts, 0))
    first = start + (tile - tl.sum(tl.where(before, tiles, 0))) * BLOCK_M
    return expert, first, start + tl.sum(tl.where(e == expert, counts, 0))


@jit
def place_of(program, m_tiles, n_tiles, GROUP_M: tl.constexpr):
    """Tile row and column of a program: bands of GROUP_M tile rows, so that the L2 cache helps.

    row = GROUP_M band + i mod height, column = i div height; i = program mod (GROUP_M n_tiles).
    """
    band = program // (GROUP_M * n_tiles)
    height = tl.minimum(m_tiles - band * GROUP_M, GROUP_M)
    within = program % (GROUP_M * n_tiles)
    return band * GROUP_M + within % height, within // height


@jit
def _grouped_gemm_kernel(
    x_ptr,
    w_ptr,
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
    EVEN_N: tl.constexpr,
    EVEN_K: tl.constexpr,
    TILES: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    """y[m, n] = sum_k x[m, k] w[e, n, k] (TRANSPOSED) or sum_k x[m, k] w[e, k, n]; e owns row m.

    x [M, K], sorted by expert; w [E, N, K] or [E, K, N]; counts [E]; y [M, N]. EVEN_N, EVEN_K: the
    blocks divide N and K, so no masks. TILES: x_ptr and w_ptr are tensor descriptors.
    """
    tile, n_tile = place_of(tl.program_id(0), m_tiles, tl.cdiv(N, BLOCK_N), GROUP_M)
    expert, first, end = find_tile(counts_ptr, tile, n_experts, BLOCK_M, E_PAD)
    if expert >= n_experts:
        return
    rows = first + tl.arange(0, BLOCK_M)
    columns = n_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    # Rows past the expert's end read its last row again, and are not stored.
    if not TILES:
        x_at = x_ptr + tl.minimum(rows, end - 1).to(tl.int64)[:, None] * K + k[None, :]
        w_ptr += expert.to(tl.int64) * N * K
        if TRANSPOSED:
            w_at = w_ptr + columns.to(tl.int64)[None, :] * K + k[:, None]
        else:
            w_at = w_ptr + k.to(tl.int64)[:, None] * N + columns[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for at in range(0, K, BLOCK_K):
        if TILES:
            x = x_ptr.load([first, at])
        elif EVEN_K:
            x = tl.load(x_at)
        else:
            x = tl.load(x_at, mask=(k < K - at)[None, :], other=0.0)
        if TILES and TRANSPOSED:
            w = w_ptr.load([expert * N + n_tile * BLOCK_N, at]).T
        elif TILES:
            w = w_ptr.load([expert * K + at, n_tile * BLOCK_N])
            if not EVEN_K:  # below the matrix lies the next expert's
                w = tl.where((k < K - at)[:, None], w, 0.0)
        elif EVEN_K and EVEN_N:
            w = tl.load(w_at)
        else:
            w = tl.load(w_at, mask=(k < K - at)[:, None] & (columns < N)[None, :], other=0.0)
        total = tl.dot(x, w, total, input_precision="ieee")
        if not TILES:
            x_at += BLOCK_K
            w_at += BLOCK_K if TRANSPOSED else BLOCK_K * N
    y_at = y_ptr + rows.to(tl.int64)[:, None] * N + columns[None, :]
    inside = (rows < end)[:, None] & (columns < N)[None, :]
    tl.store(y_at, total.to(y_ptr.dtype.element_ty), mask=inside)


@jit
def _grouped_wgrad_kernel(
    g_ptr,
    x_ptr,
    counts_ptr,
    dw_ptr,
    n_experts,
    N,
    K,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    E_PAD: tl.constexpr,
):
    """dw[e, n, k] = sum over the rows r of expert e: g[r, n] x[r, k].

    g [M, N] and x [M, K], sorted by expert; counts [E]; dw [E, N, K], 0 where e has no rows.
    """
    expert = tl.program_id(1)
    n_tile = tl.program_id(0) % tl.cdiv(N, BLOCK_N)
    k_tile = tl.program_id(0) // tl.cdiv(N, BLOCK_N)
    e = tl.arange(0, E_PAD)
    counts = tl.load(counts_ptr + e, mask=e < n_experts, other=0).to(tl.int32)
    start = tl.sum(tl.where(e < expert, counts, 0))
    end = start + tl.sum(tl.where(e == expert, counts, 0))
    n = n_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    k = k_tile * BLOCK_K + tl.arange(0, BLOCK_K)
    r = tl.arange(0, BLOCK_R)
    g_at = g_ptr + start.to(tl.int64) * N + r[:, None] * N + n[None, :]
    x_at = x_ptr + start.to(tl.int64) * K + r[:, None] * K + k[None, :]
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for at in range(start, end, BLOCK_R):  # an empty expert adds nothing and stores zeros
        valid = (r < end - at)[:, None]
        g = tl.load(g_at, mask=valid & (n < N)[None, :], other=0.0)
        x = tl.load(x_at, mask=valid & (k < K)[None, :], other=0.0)
        total = tl.dot(tl.trans(g), x, total, input_precision="ieee")
        g_at += BLOCK_R * N
        x_at += BLOCK_R * K
    dw_at = dw_ptr + expert.to(tl.int64) * N * K + n.to(tl.int64)[:, None] * K + k[None, :]
    inside = (n < N)[:, None] & (k < K)[None, :]
    tl.store(dw_at, total.to(dw_ptr.dtype.element_ty), mask=inside)


def most_tiles(rows: int, n_experts: int, block: int) -> int:
    """The most tiles that ``rows`` sorted rows can make, whatever the counts."""
    return rows // block + min(n_experts, rows)


def power_of_two_from(n: int) -> int:
    """The smallest power of two that is at least ``n`` and 16."""
    return max(16, 1 << (n - 1).bit_length())


def grouped_gemm_nt(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """Multiply each expert's rows by its own matrix, transposed: the forward product.

    Args:
        x: ``[M, K]`` fp32, fp16 or bf16, rows sorted by expert.
        weight: ``[E, N, K]`` of the same dtype.
        counts: ``[E]`` int32 or int64 on the same device, summing to M (not checked: that would
            wait for the GPU). Experts may be empty.

    Returns:
        ``[M, N]`` in the dtype of ``x``, summed in fp32.

    Raises:
        ValueError: shapes or dtypes do not fit, or a tensor is not contiguous.
    """
    _check_grouped(x, weight, counts, 2)
    n, k = weight.shape[1:]
    return _grouped_gemm(x, weight, counts, n, k, transposed=True)


def grouped_gemm_nn(grad: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """Multiply each expert's rows by its own matrix as it lies: the gradient of the input.

    Args:
        grad: ``[M, N]``; weight: ``[E, N, K]``; counts: ``[E]``; as in ``grouped_gemm_nt``.

    Returns:
        ``[M, K]``; raises as ``grouped_gemm_nt``.
    """
    _check_grouped(grad, weight, counts, 1)
    n, k = weight.shape[1:]
    return _grouped_gemm(grad, weight, counts, k, n, transposed=False)


def grouped_wgrad(grad: Tensor, x: Tensor, counts: Tensor) -> Tensor:
    """Gradient of each expert's matrix: ``grad_e^T x_e`` over its own rows, zero without rows.

    Args:
        grad: ``[M, N]``; x: ``[M, K]``, same dtype; counts: ``[E]``, as in ``grouped_gemm_nt``.

    Returns:
        ``[E, N, K]`` in the dtype of ``x``; raises as ``grouped_gemm_nt``.
    """
    check_tensors(x=x, grad=grad, counts=counts)
    if x.ndim != 2 or grad.ndim != 2 or grad.shape[0] != x.shape[0] or grad.dtype != x.dtype:
        raise ValueError(
            f"grad {list(grad.shape)} {grad.dtype} and x {list(x.shape)} {x.dtype}: expected "
            "[M, N] and [M, K] of one dtype"
        )
    n_experts, n, k = counts.numel(), grad.shape[1], x.shape[1]
    out = x.new_empty(n_experts, n, k)
    if out.numel() == 0:
        return out
    tile = _FP32_WGRAD if x.dtype == torch.float32 else _config(x, x.shape[0])
    spec = _settle_wgrad(tile, power_of_two_from(n_experts))
    grid = cdiv(n, tile[0]) * cdiv(k, tile[1]), n_experts
    spec.launch(grid, grad, x, counts, out, n_experts, n, k)
    return out


def _grouped_gemm(
    x: Tensor, weight: Tensor, counts: Tensor, n: int, k: int, transposed: bool
) -> Tensor:
    m, n_experts = x.shape[0], counts.numel()
    out = x.new_empty(m, n)
    if k == 0 or n_experts == 0:
        return out.zero_()
    if out.numel() == 0:
        return out
    # Not fp32: it is multiplied without tensor cores, and from whole tiles that spills registers.
    tiles = x.dtype != torch.float32 and copy_engine(x, weight)
    tile = _config(x, m // n_experts, tiles)
    block_m, block_n, block_k = tile[:3]
    m_tiles = most_tiles(m, n_experts, block_m)
    side = (block_n, block_k) if transposed else (block_k, block_n)
    even = n % block_n == 0, k % block_k == 0
    spec = _settle(tile, power_of_two_from(n_experts), *even, tiles, transposed)
    spec.launch(
        (m_tiles * cdiv(n, block_n),),
        in_tiles(x, block_m, block_k) if tiles else x,
        in_tiles(weight, *side) if tiles else weight,
        counts,
        out,
        m_tiles,
        n_experts,
        n,
        k,
    )
    return out


_Tile = tuple[int, int, int, int, int]  # three sides of a tile, warps, stages of the pipeline
_LARGE, _LOW, _WIDE = (128, 128, 64, 8, 3), (64, 128, 64, 4, 3), (128, 256, 64, 8, 4)
_PLAIN, _FP32 = (64, 64, 16, 4, 2), (64, 64, 32, 4, 2)
_FP32_WGRAD = (64, 64, 16, 8, 2)  # with 4 warps Triton 3.7 spills on sm_100, a longer one on sm_80


def _config(x: Tensor, rows: int, tiles: bool = False) -> _Tile:
    """The tile for about so many rows per expert."""
    if x.dtype == torch.float32:
        return _FP32
    if capability(x.device) < (8, 0):
        return _PLAIN  # no tensor cores through Triton: small, or registers spill
    if rows < 64:  # small experts: tall tiles would be mostly padding
        return _LOW
    return _WIDE if tiles and capability(x.device)[0] == 9 else _LARGE


def _check_grouped(x: Tensor, weight: Tensor, counts: Tensor, inner: int) -> None:
    check_tensors(x=x, weight=weight, counts=counts)
    fits = (
        x.ndim == 2
        and weight.ndim == 3
        and counts.shape == weight.shape[:1]
        and x.shape[1] == weight.shape[inner]
        and x.dtype == weight.dtype
        and x.dtype in (torch.float32, torch.float16, torch.bfloat16)
    )
    if not fits:
        shape = "[M, K]" if inner == 2 else "[M, N]"
        raise ValueError(
            f"x {list(x.shape)} {x.dtype}, weight {list(weight.shape)} {weight.dtype}, counts "
            f"{list(counts.shape)}: expected {shape}, [E, N, K] and [E], the first two of one "
            "dtype (float32, float16 or bfloat16)"
        )


@cache
def _settle(
    tile: _Tile,
    e_pad: int,
    even_n: bool,
    even_k: bool,
    tiles: bool,
    transposed: bool,
    kind: str = "bf16",
) -> Spec:
    """The product with its constants: what is launched is what ``SPECS`` compiles.

    ``kind`` is for compiling alone: at a launch the tensors say their types.
    """
    block_m, block_n, block_k, warps, stages = tile
    side = (block_n, block_k) if transposed else (block_k, block_n)
    signature = {
        "x_ptr": operand(kind, (block_m, block_k) if tiles else None),
        "w_ptr": operand(kind, side if tiles else None),
        "counts_ptr": "*i64",
        "y_ptr": f"*{kind}",
    }
    signature |= dict.fromkeys(("m_tiles", "n_experts", "N", "K"), "i32")
    constexprs = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "E_PAD": e_pad}
    constexprs |= {"GROUP_M": 8, "EVEN_N": even_n, "EVEN_K": even_k}
    constexprs |= {"TILES": tiles, "TRANSPOSED": transposed}
    return Spec("gemm", _grouped_gemm_kernel, signature, constexprs, warps, stages, ("N", "K"))


@cache
def _settle_wgrad(tile: _Tile, e_pad: int, kind: str = "bf16") -> Spec:
    block_n, block_k, block_r, warps, stages = tile
    signature = dict.fromkeys(("g_ptr", "x_ptr", "dw_ptr"), f"*{kind}") | {"counts_ptr": "*i64"}
    signature |= dict.fromkeys(("n_experts", "N", "K"), "i32")
    constexprs = {"BLOCK_N": block_n, "BLOCK_K": block_k, "BLOCK_R": block_r, "E_PAD": e_pad}
    return Spec("wgrad", _grouped_wgrad_kernel, signature, constexprs, warps, stages, ("N", "K"))


def _gemm(name: str, kind: str, tile: _Tile, *, tiles: bool = False, **changes: Any) -> Spec:
    settled = _settle(tile, 256, True, True, tiles, "_nt_" in name, kind)
    return replace(settled, name=name, **changes)


def _wgrad(name: str, kind: str, tile: _Tile, **changes: Any) -> Spec:
    return replace(_settle_wgrad(tile, 256, kind), name=name, **changes)


_MODERN = ("sm_80", "sm_89", "sm_90", "sm_100", "sm_120")
_CORES = {"sm_80": r"mma\.sync", "sm_89": r"mma\.sync", "sm_90": "wgmma", "sm_100": "tcgen05"}
_CORES["sm_120"] = _CORES["sm_89"]
_TILED = ("sm_90", "sm_100", "sm_120")
_OF_TILES: dict[str, Any] = {"tiles": True, "expects": _CORES}
SPECS = (
    _gemm("grouped_gemm_nt_bf16", "bf16", _LARGE, targets=_MODERN, expects=_CORES),
    _gemm("grouped_gemm_nt_bf16_low", "bf16", _LOW, targets=_MODERN, expects=_CORES),
    _gemm("grouped_gemm_nn_bf16", "bf16", _LARGE, targets=_MODERN, expects=_CORES),
    _gemm("grouped_gemm_nt_bf16_tiles_h100", "bf16", _WIDE, targets=("sm_90",), **_OF_TILES),
    _gemm("grouped_gemm_nn_bf16_tiles_h100", "bf16", _WIDE, targets=("sm_90",), **_OF_TILES),
    _gemm("grouped_gemm_nt_bf16_tiles", "bf16", _LARGE, targets=("sm_100", "sm_120"), **_OF_TILES),
    _gemm("grouped_gemm_nn_bf16_tiles", "bf16", _LARGE, targets=("sm_100", "sm_120"), **_OF_TILES),
    _gemm("grouped_gemm_nt_bf16_tiles_low", "bf16", _LOW, targets=_TILED, **_OF_TILES),
    _gemm("grouped_gemm_nn_bf16_tiles_low", "bf16", _LOW, targets=_TILED, **_OF_TILES),
    _gemm("grouped_gemm_nt_fp16_t4", "fp16", _PLAIN, targets=("sm_75",)),
    _gemm("grouped_gemm_nn_fp16_t4", "fp16", _PLAIN, targets=("sm_75",)),
    _gemm("grouped_gemm_nt_fp32", "fp32", _FP32),
    _wgrad("grouped_wgrad_bf16", "bf16", _LARGE, targets=_MODERN, expects=_CORES),
    _wgrad("grouped_wgrad_fp16_t4", "fp16", _PLAIN, targets=("sm_75",)),
    _wgrad("grouped_wgrad_fp32", "fp32", _FP32_WGRAD),
)
