"""The block-scaled FP8 product on a GPU: E4M3 in, fp32 sums, one scale for each 128 of K.

A program owns a tile of the output and walks along K in steps of 128. The tensor core adds up one
step; then the step's sum is multiplied by its scales and added to an fp32 total in ordinary
registers. Scaling has to happen there anyway, because the scales change from step to step, and it
is the promotion that Hopper's short accumulators need (TR section 3.3.2), so both cost one
multiply-add per 128 products.

Both operands lie with K contiguous ("nt"). fprop, dgrad and wgrad all take that form: the weight is
transposed as it is, since a square block is a block of the transpose; the operands of wgrad come
transposed out of ``kernels.quant``.

From Hopper on a copy engine fetches whole tiles (``TILES``: ``a_ptr`` and ``b_ptr`` are tensor
descriptors); before, every thread computes addresses of its own.

Where there is no E4M3 arithmetic the same kernel reads bytes, decodes them to fp16 (exact) and has
the fp16 units multiply. For a T4 Triton emits no tensor-core instruction: right, and slow.
"""

# ruff: noqa: ANN001, ANN202  (kernels' arguments have no Python types)
from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from minids3.kernels.compile import Spec, operand
from minids3.kernels.fp8 import decode_e4m3
from minids3.kernels.grouped import place_of
from minids3.kernels.language import jit, tl
from minids3.kernels.launch import (
    ALIGNMENT,
    aligned,
    capability,
    cdiv,
    check_fp8,
    check_scale,
    check_tensors,
    copy_engine,
    fp8_mode,
    in_tiles,
)

__all__ = ["SPECS", "fp8_gemm_nt"]

TILE = 128  # of K that share a scale, and of N for weights
GROUP_M = 8


@jit
def _fp8_gemm_kernel(
    a_ptr,
    a_scale_ptr,
    b_ptr,
    b_scale_ptr,
    y_ptr,
    M,
    N,
    K,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    EVEN_K: tl.constexpr,
    B_BLOCKS: tl.constexpr,
    NATIVE: tl.constexpr,
    TILES: tl.constexpr,
):
    """y[m, n] = sum_t sa[m, t] sb[n, t] sum_(k in t) a[m, k] b[n, k], with t the tiles of 128 k.

    a [M, K] and b [N, K] E4M3, y [M, N]. a_scale [M, K/128]; b_scale [N/128, K/128] if B_BLOCKS,
    else [N, K/128]. EVEN_K: BLOCK_K divides K, so no masks. NATIVE: E4M3 is multiplied as such.
    TILES: a_ptr and b_ptr are tensor descriptors.
    """
    m_tile, n_tile = place_of(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP_M)
    k_tiles = tl.cdiv(K, 128)
    rows = m_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = n_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    # Beyond the edge the last row is read again, without a mask, and not stored.
    row_at = tl.minimum(rows, M - 1).to(tl.int64)
    column_at = tl.minimum(columns, N - 1).to(tl.int64)
    if not TILES:
        a_at = a_ptr + row_at[:, None] * K + k[None, :]
        b_at = b_ptr + column_at[None, :] * K + k[:, None]
    a_scale_at = a_scale_ptr + row_at * k_tiles
    if B_BLOCKS:  # BLOCK_N divides 128: one scale for the tile
        b_scale_at = b_scale_ptr + (n_tile * BLOCK_N // 128).to(tl.int64) * k_tiles
    else:
        b_scale_at = b_scale_ptr + column_at * k_tiles
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for at in range(0, K, BLOCK_K):
        if TILES:
            a = a_ptr.load([m_tile * BLOCK_M, at])
            b = b_ptr.load([n_tile * BLOCK_N, at]).T
        elif EVEN_K:
            a, b = tl.load(a_at), tl.load(b_at)
        else:
            a = tl.load(a_at, mask=(k < K - at)[None, :], other=0.0)
            b = tl.load(b_at, mask=(k < K - at)[:, None], other=0.0)
        if not NATIVE:
            a, b = decode_e4m3(a), decode_e4m3(b)
        a_scale, b_scale = tl.load(a_scale_at + at // 128), tl.load(b_scale_at + at // 128)
        if B_BLOCKS:
            total += tl.dot(a, b) * (a_scale * b_scale)[:, None]
        else:
            total += tl.dot(a, b) * a_scale[:, None] * b_scale[None, :]
        if not TILES:
            a_at += BLOCK_K
            b_at += BLOCK_K
    y_at = y_ptr + rows.to(tl.int64)[:, None] * N + columns[None, :]
    inside = (rows < M)[:, None] & (columns < N)[None, :]
    tl.store(y_at, total.to(y_ptr.dtype.element_ty), mask=inside)


def fp8_gemm_nt(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """``a @ b.T`` of scaled E4M3 matrices, accumulated in fp32 and rounded once.

    Args:
        a: ``[M, K]`` float8_e4m3fn.
        a_scale: ``[M, ceil(K / 128)]`` fp32.
        b: ``[N, K]`` float8_e4m3fn.
        b_scale: fp32, ``[ceil(N / 128), ceil(K / 128)]`` for weights (fprop, dgrad) or
            ``[N, ceil(K / 128)]`` for tiles on both sides (wgrad). Where both readings have the
            same shape (N of 1) they mean the same.
        out_dtype: of the result.

    Returns:
        ``[M, N]`` in ``out_dtype``.

    Raises:
        ValueError: shapes or dtypes do not fit, or a tensor is not contiguous.
    """
    check_tensors(a=a, a_scale=a_scale, b=b, b_scale=b_scale)
    check_fp8(a=a, b=b)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"a {list(a.shape)} and b {list(b.shape)}: expected [M, K] and [N, K]")
    (m, k), n = a.shape, b.shape[0]
    k_tiles = cdiv(k, TILE)
    blocks = tuple(b_scale.shape) == (cdiv(n, TILE), k_tiles)
    check_scale("a_scale", a_scale, (m, k_tiles))
    if not blocks:
        check_scale("b_scale", b_scale, (n, k_tiles))
    out = torch.empty(m, n, device=a.device, dtype=out_dtype)
    if out.numel() == 0 or k == 0:
        return out.zero_()
    a, b = _aligned(a), _aligned(b)
    k = a.shape[1]
    native = fp8_mode(a.device) == "native"
    config = _config(a.device, native, blocks)
    block_m, block_n, block_k = config[:3]
    if not native:
        a, b = a.view(torch.uint8), b.view(torch.uint8)
    tiles = copy_engine(a, b)
    spec = _settle(config, native, k % block_k == 0, blocks, tiles)
    spec.launch(
        (cdiv(m, block_m) * cdiv(n, block_n),),
        in_tiles(a, block_m, block_k) if tiles else a,
        a_scale,
        in_tiles(b, block_n, block_k) if tiles else b,
        b_scale,
        out,
        m,
        n,
        k,
    )
    return out


def _aligned(x: Tensor) -> Tensor:
    """``x``, copied if rows do not begin at multiples of 16 bytes: cheaper than single bytes."""
    if aligned(x):
        return x
    bytes_ = F.pad(x.view(torch.uint8), (0, -x.shape[1] % ALIGNMENT))  # copies also for 0
    return bytes_.view(torch.float8_e4m3fn)


# Sides of a tile along M, N and K, warps, stages of the pipeline. A tile's sum and its total both
# lie in registers. On Hopper two programs of 64 x 128 share a multiprocessor, and one multiplies
# while the other scales; 128 x 128 takes more than half of the registers, and with a vector of
# scales on both sides nearly all that a thread can have.
_HOPPER = (64, 128, 128, 4, 4)
_LARGE, _NARROW = (128, 128, 128, 8, 3), (128, 64, 128, 8, 3)
_FP16, _NO_CORES = (64, 64, 128, 4, 2), (64, 64, 16, 4, 2)


def _config(device: torch.device, native: bool, blocks: bool) -> tuple[int, int, int, int, int]:
    """Fixed choices, each compiled in ``SPECS`` without a spill."""
    if native and capability(device)[0] == 9:
        return _HOPPER
    if native:
        return _LARGE if blocks else _NARROW
    return _FP16 if capability(device) >= (8, 0) else _NO_CORES


@cache
def _settle(
    config: tuple[int, int, int, int, int], native: bool, even: bool, blocks: bool, tiles: bool
) -> Spec:
    """The kernel with all its constants: what is launched is what ``SPECS`` compiles."""
    block_m, block_n, block_k, warps, stages = config
    kind = "fp8e4nv" if native else "u8"
    signature = {
        "a_ptr": operand(kind, (block_m, block_k) if tiles else None),
        "a_scale_ptr": "*fp32",
        "b_ptr": operand(kind, (block_n, block_k) if tiles else None),
        "b_scale_ptr": "*fp32",
    }
    signature |= {"y_ptr": "*bf16" if blocks else "*fp32", "M": "i32", "N": "i32", "K": "i32"}
    constexprs = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "GROUP_M": GROUP_M}
    constexprs |= {"EVEN_K": even, "B_BLOCKS": blocks, "NATIVE": native, "TILES": tiles}
    return Spec(
        "fp8_gemm",
        _fp8_gemm_kernel,
        signature,
        constexprs,
        warps,
        stages,
        ("M", "N", "K") if even else ("K",),
    )


def _spec(
    name: str,
    config: tuple[int, int, int, int, int],
    targets: tuple[str, ...],
    *,
    even: bool = True,
    blocks: bool = True,
    tiles: bool = False,
) -> Spec:
    native = targets[0] in _CORES_FP8
    expects = _CORES_FP8 if native else {"sm_80": r"mma\.sync.*f16"}
    settled = _settle(config, native, even, blocks, tiles)
    return replace(settled, name=name, targets=targets, expects=expects)


_CORES_FP8 = {"sm_89": r"mma\.sync.*e4m3", "sm_90": r"wgmma.*e4m3", "sm_100": r"tcgen05\.mma"}
_CORES_FP8["sm_120"] = _CORES_FP8["sm_89"]
_NEW = ("sm_89", "sm_90", "sm_100", "sm_120")
SPECS = (
    _spec("fp8_gemm", _LARGE, _NEW),
    _spec("fp8_gemm_ragged", _LARGE, _NEW, even=False),
    _spec("fp8_gemm_h100", _HOPPER, ("sm_90",)),
    _spec("fp8_gemm_ragged_h100", _HOPPER, ("sm_90",), even=False),
    _spec("fp8_gemm_tiles", _LARGE, ("sm_100", "sm_120"), tiles=True),
    _spec("fp8_gemm_tiles_h100", _HOPPER, ("sm_90",), tiles=True),
    _spec("fp8_gemm_wgrad_tiles", _NARROW, ("sm_100", "sm_120"), tiles=True, blocks=False),
    _spec("fp8_gemm_wgrad_tiles_h100", _HOPPER, ("sm_90",), tiles=True, blocks=False),
    _spec("fp8_gemm_wgrad_h100", _HOPPER, ("sm_90",), even=False, blocks=False),
    _spec("fp8_gemm_wgrad", _NARROW, ("sm_89", "sm_100", "sm_120"), blocks=False),
    _spec(
        "fp8_gemm_wgrad_ragged", _NARROW, ("sm_89", "sm_100", "sm_120"), even=False, blocks=False
    ),
    _spec("fp8_gemm_a100", _FP16, ("sm_80",)),
    _spec("fp8_gemm_a100_ragged", _FP16, ("sm_80",), even=False),
    _spec("fp8_gemm_a100_wgrad", _FP16, ("sm_80",), even=False, blocks=False),
    _spec("fp8_gemm_t4", _NO_CORES, ("sm_75",)),
    _spec("fp8_gemm_t4_ragged", _NO_CORES, ("sm_75",), even=False),
    _spec("fp8_gemm_t4_wgrad", _NO_CORES, ("sm_75",), even=False, blocks=False),
)
