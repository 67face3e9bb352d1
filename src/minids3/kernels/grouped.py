"""Grouped products: many experts' matrices, one launch, and no number of rows ever leaves the GPU.

The rows of ``x [M, K]`` lie sorted by expert, ``counts [E]`` says how many each has. A loop over
the experts would need the counts on the CPU (a wait) and launch E small products. Here the launch
covers the most tiles there can be, M // BLOCK_M + min(E, M), and each program finds its own expert
in the prefix sum of ceil(counts / BLOCK_M). A tile never crosses from one expert to the next;
programs beyond the last tile return at once. The alternative, padding each expert to full tiles,
needs the padded total on the CPU and moves rows that nobody wants.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minids3.kernels.compile import Spec
from minids3.kernels.fp8 import decode_e4m3
from minids3.kernels.language import jit, tl
from minids3.kernels.launch import cdiv, check_tensors, fp8_mode

__all__ = [
    "SPECS",
    "fp8_grouped_gemm_nt",
    "fp8_grouped_wgrad",
    "grouped_gemm_nn",
    "grouped_gemm_nt",
    "grouped_wgrad",
    "most_tiles",
    "power_of_two_from",
]

TILE = 128  # rows, columns or channels that share a scale


@jit
def find_tile(counts_ptr, tile, n_experts, BLOCK_M: tl.constexpr, E_PAD: tl.constexpr):  # noqa: ANN001
    """Expert, first row and end of that expert's rows, for a tile; expert >= n_experts: no tile."""
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
def place_of(program, m_tiles, n_tiles, GROUP_M: tl.constexpr):  # noqa: ANN001
    """Tile row and column of a program: bands of GROUP_M tile rows, so that the L2 cache helps."""
    band = program // (GROUP_M * n_tiles)
    height = tl.minimum(m_tiles - band * GROUP_M, GROUP_M)
    within = program % (GROUP_M * n_tiles)
    return band * GROUP_M + within % height, within // height


@jit
def _grouped_gemm_kernel(
    x_ptr,  # noqa: ANN001
    w_ptr,  # noqa: ANN001
    counts_ptr,  # noqa: ANN001
    y_ptr,  # noqa: ANN001
    m_tiles,  # noqa: ANN001
    n_experts,  # noqa: ANN001
    N,  # noqa: ANN001
    K,  # noqa: ANN001
    stride_n,  # noqa: ANN001
    stride_k,  # noqa: ANN001
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    E_PAD: tl.constexpr,
    GROUP_M: tl.constexpr,
    EVEN_N: tl.constexpr,
    EVEN_K: tl.constexpr,
) -> None:
    tile, n_tile = place_of(tl.program_id(0), m_tiles, tl.cdiv(N, BLOCK_N), GROUP_M)
    expert, first, end = find_tile(counts_ptr, tile, n_experts, BLOCK_M, E_PAD)
    if expert >= n_experts:
        return
    rows = first + tl.arange(0, BLOCK_M)
    columns = n_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    # Rows past the expert's end read its last row again, and are not stored.
    x_at = x_ptr + tl.minimum(rows, end - 1).to(tl.int64)[:, None] * K + k[None, :]
    w_ptr += expert.to(tl.int64) * N * K
    w_at = w_ptr + columns.to(tl.int64)[None, :] * stride_n + k.to(tl.int64)[:, None] * stride_k
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for at in range(0, K, BLOCK_K):
        if EVEN_K:
            x = tl.load(x_at)
        else:
            x = tl.load(x_at, mask=(k < K - at)[None, :], other=0.0)
        if EVEN_K and EVEN_N:
            w = tl.load(w_at)
        else:
            w = tl.load(w_at, mask=(k < K - at)[:, None] & (columns < N)[None, :], other=0.0)
        total = tl.dot(x, w, total, input_precision="ieee")
        x_at += BLOCK_K
        w_at += BLOCK_K * stride_k
    y_at = y_ptr + rows.to(tl.int64)[:, None] * N + columns[None, :]
    inside = (rows < end)[:, None] & (columns < N)[None, :]
    tl.store(y_at, total.to(y_ptr.dtype.element_ty), mask=inside)


@jit
def _grouped_wgrad_kernel(
    g_ptr,  # noqa: ANN001
    x_ptr,  # noqa: ANN001
    counts_ptr,  # noqa: ANN001
    dw_ptr,  # noqa: ANN001
    n_experts,  # noqa: ANN001
    N,  # noqa: ANN001
    K,  # noqa: ANN001
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    E_PAD: tl.constexpr,
) -> None:
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


@jit
def _fp8_grouped_gemm_kernel(
    a_ptr,  # noqa: ANN001
    a_scale_ptr,  # noqa: ANN001
    b_ptr,  # noqa: ANN001
    b_scale_ptr,  # noqa: ANN001
    counts_ptr,  # noqa: ANN001
    y_ptr,  # noqa: ANN001
    m_tiles,  # noqa: ANN001
    n_experts,  # noqa: ANN001
    N,  # noqa: ANN001
    K,  # noqa: ANN001
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    E_PAD: tl.constexpr,
    GROUP_M: tl.constexpr,
    EVEN_K: tl.constexpr,
    NATIVE: tl.constexpr,
) -> None:
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
    a_at = a_ptr + row_at[:, None] * K + k[None, :]
    b_at = b_ptr + wide * N * K + column_at[None, :] * K + k[:, None]
    a_scale_at = a_scale_ptr + row_at * k_tiles
    # BLOCK_N and BLOCK_K divide 128: one scale of b for a tile, one of a for each of its rows.
    b_scale_at = b_scale_ptr + (wide * tl.cdiv(N, 128) + n_tile * BLOCK_N // 128) * k_tiles
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for at in range(0, K, BLOCK_K):
        if EVEN_K:
            a, b = tl.load(a_at), tl.load(b_at)
        else:
            a = tl.load(a_at, mask=(k < K - at)[None, :], other=0.0)
            b = tl.load(b_at, mask=(k < K - at)[:, None], other=0.0)
        if not NATIVE:
            a, b = decode_e4m3(a), decode_e4m3(b)
        scale = tl.load(a_scale_at + at // 128) * tl.load(b_scale_at + at // 128)
        total += tl.dot(a, b) * scale[:, None]
        a_at += BLOCK_K
        b_at += BLOCK_K
    y_at = y_ptr + rows.to(tl.int64)[:, None] * N + columns[None, :]
    inside = (rows < end)[:, None] & (columns < N)[None, :]
    tl.store(y_at, total.to(y_ptr.dtype.element_ty), mask=inside)


@jit
def _fp8_grouped_wgrad_kernel(
    g_ptr,  # noqa: ANN001
    g_scale_ptr,  # noqa: ANN001
    x_ptr,  # noqa: ANN001
    x_scale_ptr,  # noqa: ANN001
    counts_ptr,  # noqa: ANN001
    dw_ptr,  # noqa: ANN001
    row_tiles,  # noqa: ANN001
    n_experts,  # noqa: ANN001
    N,  # noqa: ANN001
    K,  # noqa: ANN001
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    E_PAD: tl.constexpr,
    NATIVE: tl.constexpr,
) -> None:
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
    g_at = g_ptr + n_at[:, None] * (row_tiles * 128) + start * 128 + r[None, :]
    x_at = x_ptr + k_at[None, :] * (row_tiles * 128) + start * 128 + r[:, None]
    g_scale_at = g_scale_ptr + n_at * row_tiles
    x_scale_at = x_scale_ptr + k_at * row_tiles
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for at in range(start * 128, end * 128, BLOCK_R):
        g, x = tl.load(g_at), tl.load(x_at)
        if not NATIVE:
            g, x = decode_e4m3(g), decode_e4m3(x)
        g_scale, x_scale = tl.load(g_scale_at + at // 128), tl.load(x_scale_at + at // 128)
        total += tl.dot(g, x) * g_scale[:, None] * x_scale[None, :]
        g_at += BLOCK_R
        x_at += BLOCK_R
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
    return _grouped_gemm(x, weight, counts, n, k, k, 1)


def grouped_gemm_nn(grad: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """Multiply each expert's rows by its own matrix as it lies: the gradient of the input.

    Args:
        grad: ``[M, N]``; weight: ``[E, N, K]``; counts: ``[E]``; as in ``grouped_gemm_nt``.

    Returns:
        ``[M, K]``; raises as ``grouped_gemm_nt``.
    """
    _check_grouped(grad, weight, counts, 1)
    n, k = weight.shape[1:]
    return _grouped_gemm(grad, weight, counts, k, n, 1, k)


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
    block_n, block_k, block_r, warps, stages = _config(x, x.shape[0])
    if x.dtype == torch.float32:
        block_r = 16  # without tensor cores a longer side spills registers
    _grouped_wgrad_kernel[(cdiv(n, block_n) * cdiv(k, block_k), n_experts)](
        grad,
        x,
        counts,
        out,
        n_experts,
        n,
        k,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        BLOCK_R=block_r,
        E_PAD=power_of_two_from(n_experts),
        num_warps=warps,
        num_stages=stages,
    )
    return out


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
    _check_fp8(a=a, b=b)
    if a.ndim != 2 or b.ndim != 3 or counts.shape != b.shape[:1] or a.shape[1] != b.shape[2]:
        raise ValueError(
            f"a {list(a.shape)}, b {list(b.shape)}, counts {list(counts.shape)}: expected [M, K], "
            "[E, N, K] and [E]"
        )
    (m, k), (n_experts, n, _) = a.shape, b.shape
    _check_scale("a_scale", a_scale, (m, cdiv(k, TILE)))
    _check_scale("b_scale", b_scale, (n_experts, cdiv(n, TILE), cdiv(k, TILE)))
    out = torch.empty(m, n, device=a.device, dtype=out_dtype)
    if k == 0 or n_experts == 0:
        return out.zero_()
    if out.numel() == 0:
        return out
    native = fp8_mode(a.device) == "native"
    tile = _fp8_config(a.device, native)
    if native and m < 64 * n_experts:  # small experts: tall tiles would be mostly padding
        tile = (64, 128, 128, 4, 3)
    block_m, block_n, block_k, warps, stages = tile
    if not native:
        a, b = a.view(torch.uint8), b.view(torch.uint8)
    m_tiles = most_tiles(m, n_experts, block_m)
    _fp8_grouped_gemm_kernel[(m_tiles * cdiv(n, block_n),)](
        a,
        a_scale,
        b,
        b_scale,
        counts,
        out,
        m_tiles,
        n_experts,
        n,
        k,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        E_PAD=power_of_two_from(n_experts),
        GROUP_M=8,
        EVEN_K=k % block_k == 0,
        NATIVE=native,
        num_warps=warps,
        num_stages=stages,
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
    _check_fp8(grad=grad, x=x)
    if grad.ndim != 2 or x.ndim != 2 or grad.shape[1] != x.shape[1] or x.shape[1] % TILE:
        raise ValueError(
            f"grad {list(grad.shape)} and x {list(x.shape)}: expected [N, T * 128] and "
            "[K, T * 128] as grouped_quant_transposed makes them"
        )
    n, k, tiles, n_experts = grad.shape[0], x.shape[0], x.shape[1] // TILE, counts.numel()
    _check_scale("grad_scale", grad_scale, (n, tiles))
    _check_scale("x_scale", x_scale, (k, tiles))
    out = torch.empty(n_experts, n, k, device=x.device, dtype=out_dtype)
    if out.numel() == 0:
        return out
    native = fp8_mode(x.device) == "native"
    block_n, block_k, block_r, warps, stages = _fp8_config(x.device, native)
    if native and torch.cuda.get_device_capability(x.device)[0] != 9:
        block_k = 64  # elsewhere 128 x 128 sums, twice over, do not fit in the registers
    if not native:
        grad, x = grad.view(torch.uint8), x.view(torch.uint8)
    _fp8_grouped_wgrad_kernel[(cdiv(n, block_n) * cdiv(k, block_k), n_experts)](
        grad,
        grad_scale,
        x,
        x_scale,
        counts,
        out,
        tiles,
        n_experts,
        n,
        k,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        BLOCK_R=block_r,
        E_PAD=power_of_two_from(n_experts),
        NATIVE=native,
        num_warps=warps,
        num_stages=stages,
    )
    return out


def _grouped_gemm(
    x: Tensor, weight: Tensor, counts: Tensor, n: int, k: int, stride_n: int, stride_k: int
) -> Tensor:
    m, n_experts = x.shape[0], counts.numel()
    out = x.new_empty(m, n)
    if k == 0 or n_experts == 0:
        return out.zero_()
    if out.numel() == 0:
        return out
    block_m, block_n, block_k, warps, stages = _config(x, m // n_experts)
    m_tiles = most_tiles(m, n_experts, block_m)
    _grouped_gemm_kernel[(m_tiles * cdiv(n, block_n),)](
        x,
        weight,
        counts,
        out,
        m_tiles,
        n_experts,
        n,
        k,
        stride_n,
        stride_k,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        E_PAD=power_of_two_from(n_experts),
        GROUP_M=8,
        EVEN_N=n % block_n == 0,
        EVEN_K=k % block_k == 0,
        num_warps=warps,
        num_stages=stages,
    )
    return out


def _config(x: Tensor, rows: int) -> tuple[int, int, int, int, int]:
    """BLOCK_M, BLOCK_N, BLOCK_K, warps, stages for about so many rows per expert."""
    if x.dtype == torch.float32:
        return 64, 64, 32, 4, 2
    if x.is_cuda and torch.cuda.get_device_capability(x.device) < (8, 0):
        return 64, 64, 16, 4, 2  # no tensor cores through Triton: small, or registers spill
    if rows < 64:  # small experts: tall tiles would be mostly padding
        return 64, 128, 64, 4, 3
    return 128, 128, 64, 8, 3


def _fp8_config(device: torch.device, native: bool) -> tuple[int, int, int, int, int]:
    """Three sides of a tile, warps, stages; the third side divides 128."""
    if native:
        return 128, 128, 128, 8, 3
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return 64, 64, 16, 4, 2
    return 64, 64, 128, 4, 2


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


def _check_fp8(**tensors: Tensor) -> None:
    for name, t in tensors.items():
        if t.dtype != torch.float8_e4m3fn:
            raise ValueError(f"{name} is {t.dtype}, expected float8_e4m3fn: quantise it first")


def _check_scale(name: str, scale: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(scale.shape) != shape or scale.dtype != torch.float32:
        raise ValueError(
            f"{name} is {list(scale.shape)} {scale.dtype}, expected {list(shape)} float32"
        )


def _specs() -> tuple[Spec, ...]:
    integers = {"m_tiles": "i32", "n_experts": "i32", "N": "i32", "K": "i32"}
    divisible = ("N", "K", "stride_n", "stride_k")

    def gemm(name: str, kind: str, tile: tuple[int, ...], **changes: Any) -> Spec:
        m, n, k, warps, stages = tile
        signature = {"x_ptr": f"*{kind}", "w_ptr": f"*{kind}", "counts_ptr": "*i64"}
        signature |= {"y_ptr": f"*{kind}", **integers}
        # stride 1 is specialised to a constant, as a launch does
        unit = "stride_n" if "nn" in name else "stride_k"
        signature |= {s: "i32" for s in ("stride_n", "stride_k") if s != unit}
        constexprs = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "E_PAD": 256, "GROUP_M": 8}
        constexprs |= {"EVEN_N": True, "EVEN_K": True, unit: 1}
        return Spec(
            name,
            _grouped_gemm_kernel,
            signature,
            constexprs,
            warps,
            stages,
            tuple(d for d in divisible if d != unit),
            **changes,
        )

    def wgrad(name: str, kind: str, tile: tuple[int, ...], **changes: Any) -> Spec:
        n, k, r, warps, stages = tile
        signature = {"g_ptr": f"*{kind}", "x_ptr": f"*{kind}", "counts_ptr": "*i64"}
        signature |= {"dw_ptr": f"*{kind}", "n_experts": "i32", "N": "i32", "K": "i32"}
        constexprs = {"BLOCK_N": n, "BLOCK_K": k, "BLOCK_R": r, "E_PAD": 256}
        return Spec(
            name, _grouped_wgrad_kernel, signature, constexprs, warps, stages, ("N", "K"), **changes
        )

    def fp8(
        name: str,
        kernel: Any,
        tile: tuple[int, ...],
        native: bool,
        even: bool = True,
        **changes: Any,
    ) -> Spec:
        kind = "*fp8e4nv" if native else "*u8"
        m, n, k, warps, stages = tile
        if kernel is _fp8_grouped_gemm_kernel:
            signature = {"a_ptr": kind, "a_scale_ptr": "*fp32", "b_ptr": kind}
            signature |= {"b_scale_ptr": "*fp32", "counts_ptr": "*i64", "y_ptr": "*bf16"}
            signature |= integers
            constexprs = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "GROUP_M": 8}
            constexprs |= {"EVEN_K": even}
        else:
            signature = {"g_ptr": kind, "g_scale_ptr": "*fp32", "x_ptr": kind}
            signature |= {"x_scale_ptr": "*fp32", "counts_ptr": "*i64", "dw_ptr": "*fp32"}
            signature |= {"row_tiles": "i32", "n_experts": "i32", "N": "i32", "K": "i32"}
            constexprs = {"BLOCK_N": m, "BLOCK_K": n, "BLOCK_R": k}
        constexprs |= {"E_PAD": 256, "NATIVE": native}
        return Spec(name, kernel, signature, constexprs, warps, stages, ("N", "K"), **changes)

    modern = ("sm_80", "sm_89", "sm_90", "sm_100")
    cores = {"sm_80": r"mma\.sync", "sm_89": r"mma\.sync", "sm_90": "wgmma", "sm_100": "tcgen05"}
    cores8 = {"sm_89": r"mma\.sync.*e4m3", "sm_90": r"wgmma.*e4m3", "sm_100": r"tcgen05\.mma"}
    fp8_gemm, fp8_wgrad = _fp8_grouped_gemm_kernel, _fp8_grouped_wgrad_kernel
    native = modern[1:]
    large, low, small = (128, 128, 64, 8, 3), (64, 128, 64, 4, 3), (64, 64, 16, 4, 2)
    large8, low8, narrow8 = (128, 128, 128, 8, 3), (64, 128, 128, 4, 3), (128, 64, 128, 8, 3)
    soft8 = (64, 64, 128, 4, 2)
    return (
        gemm("grouped_gemm_nt_bf16", "bf16", large, targets=modern, expects=cores),
        gemm("grouped_gemm_nt_bf16_low", "bf16", low, targets=modern, expects=cores),
        gemm("grouped_gemm_nn_bf16", "bf16", large, targets=modern, expects=cores),
        gemm("grouped_gemm_nt_fp16_t4", "fp16", small, targets=("sm_75",)),
        gemm("grouped_gemm_nn_fp16_t4", "fp16", small, targets=("sm_75",)),
        gemm("grouped_gemm_nt_fp32", "fp32", (64, 64, 32, 4, 2)),
        wgrad("grouped_wgrad_bf16", "bf16", large, targets=modern, expects=cores),
        wgrad("grouped_wgrad_fp16_t4", "fp16", small, targets=("sm_75",)),
        wgrad("grouped_wgrad_fp32", "fp32", small),
        fp8("fp8_grouped_gemm", fp8_gemm, large8, True, targets=native, expects=cores8),
        fp8("fp8_grouped_gemm_low", fp8_gemm, low8, True, targets=native, expects=cores8),
        fp8("fp8_grouped_gemm_ragged", fp8_gemm, large8, True, False, targets=native),
        fp8("fp8_grouped_gemm_t4_ragged", fp8_gemm, small, False, False, targets=("sm_75",)),
        fp8("fp8_grouped_gemm_t4", fp8_gemm, small, False, targets=("sm_75",)),
        fp8("fp8_grouped_gemm_a100", fp8_gemm, soft8, False, targets=("sm_80",), expects=cores),
        fp8("fp8_grouped_wgrad_h100", fp8_wgrad, large8, True, targets=("sm_90",), expects=cores8),
        fp8("fp8_grouped_wgrad", fp8_wgrad, narrow8, True, targets=native, expects=cores8),
        fp8("fp8_grouped_wgrad_t4", fp8_wgrad, small, False, targets=("sm_75",)),
        fp8("fp8_grouped_wgrad_a100", fp8_wgrad, soft8, False, targets=("sm_80",), expects=cores),
    )


SPECS = _specs()
