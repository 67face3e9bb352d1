"""The block-scaled FP8 product and the three GEMMs of a linear layer, the reference.

A tensor core multiplies the E4M3 numbers of one block of K and the sum is scaled before it joins
the others (TR section 3.3.2)::

    out[m, n] = sum over blocks k of  a_scale[m, k] * b_scale[n, k] * (a[m, k] . b[n, k])

Reading both operands into fp32 first and multiplying once gives the same numbers up to the order of
fp32 additions, because a product of two E4M3 numbers (8 significant bits) is exact in fp32. So the
reference is one ordinary matrix product, fast enough to train with on a CPU.

A linear layer ``y = x W^T`` needs three products. The names are the paper's:

fprop   y  [M, N] = x  [M, K] . W   [N, K]^T    tiles 1 x 128 along K; blocks 128 x 128
dgrad   dx [M, K] = dy [M, N] . W^T [K, N]^T    tiles 1 x 128 along N; the same blocks, transposed
wgrad   dW [N, K] = dy^T [N, M] . x^T [K, M]^T  both in tiles of 128 along M, the tokens

The sum of wgrad runs over tokens, so its scales must not change from token to token: x was stored
in tiles along K and is read, transposed and quantised again, in tiles of 128 x 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minids3.ref.quant import TILE, dequantize_ref, quantize_ref

__all__ = [
    "fp8_dgrad_ref",
    "fp8_fprop_ref",
    "fp8_gemm_nt_ref",
    "fp8_wgrad_ref",
    "requantize_transposed_ref",
    "truncated_mm_ref",
]


def fp8_gemm_nt_ref(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """``a @ b.T`` of scaled E4M3 matrices; accumulated in fp32, rounded once.

    What shares a scale is read from the scales' shapes: along each axis there is one for every row,
    one for every 128, or one for all.

    Args:
        a: ``[M, K]`` float8_e4m3fn.
        a_scale: fp32, ``[M, ceil(K / 128)]`` for activations.
        b: ``[N, K]`` float8_e4m3fn.
        b_scale: fp32, ``[ceil(N / 128), ceil(K / 128)]`` for weights, ``[N, ceil(K / 128)]`` for
            wgrad.
        out_dtype: of the result.

    Returns:
        ``[M, N]`` in ``out_dtype``.

    Raises:
        ValueError: shapes do not fit.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"cannot multiply {list(a.shape)} by the transpose of {list(b.shape)}")
    return (_read(a, a_scale, "a") @ _read(b, b_scale, "b").T).to(out_dtype)


def fp8_fprop_ref(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """Output ``[M, N]`` of ``x [M, K]`` (tiles 1 x 128) and ``weight [N, K]`` (blocks)."""
    return fp8_gemm_nt_ref(x, x_scale, weight, weight_scale, out_dtype)


def fp8_dgrad_ref(
    grad: Tensor,
    grad_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """Gradient ``[M, K]`` of the input, from ``grad [M, N]`` (tiles 1 x 128) and ``weight [N, K]``.

    A square block is one block in the transpose too, so the weight needs no second quantisation.
    """
    return fp8_gemm_nt_ref(grad, grad_scale, weight.T, weight_scale.T, out_dtype)


def fp8_wgrad_ref(
    grad_t: Tensor,
    grad_scale: Tensor,
    x_t: Tensor,
    x_scale: Tensor,
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Gradient ``[N, K]`` of the weight, from ``grad_t [N, M]`` and ``x_t [K, M]``, tiles along M.

    fp32 by default: it is added to a master weight, and over micro-batches.
    """
    return fp8_gemm_nt_ref(grad_t, grad_scale, x_t, x_scale, out_dtype)


def requantize_transposed_ref(
    quantized: Tensor,
    scale: Tensor,
    block: tuple[int, int] | None = TILE,
    power_of_two: bool = False,
) -> tuple[Tensor, Tensor]:
    """Read ``[M, K]``, transpose, quantise again: what wgrad takes of a cached activation.

    With powers of two as scales, before and after, the second rounding loses only what falls below
    the smallest E4M3 number of the new tile; with any scales it rounds everything once more.

    Args:
        quantized: ``[M, K]`` float8_e4m3fn.
        scale: of blocks ``block``.
        block: of the input and, transposed data in the same shape of block, of the result.
        power_of_two: scales of the result.

    Returns:
        ``[K, M]`` float8_e4m3fn and its scales, for tiles ``[K, ceil(M / 128)]``.
    """
    values = dequantize_ref(quantized, scale, block)
    return quantize_ref(values.T.contiguous(), block, power_of_two)


def truncated_mm_ref(
    a: Tensor,
    b: Tensor,
    fraction_bits: int = 13,
    step: int = 32,
    promote_every: int | None = None,
) -> Tensor:
    """``a @ b.T`` in a register of few bits, fast enough to train with.

    ``numerics.limited_matmul`` aligns every product; here the sum alone is cut, towards zero, after
    each ``step`` products, which takes one matrix product and one mask a step. For products of both
    signs, as training mostly has, the error is as large as there or up to 3 times larger. For
    products of one sign, whose single cuts cannot cancel, it is far smaller (20 times at K = 1024).

    Args:
        a: ``[M, K]``, as fp32.
        b: ``[N, K]``, as fp32.
        fraction_bits: kept after the leading one, at most 23.
        step: products added by one instruction.
        promote_every: add the register to an fp32 sum and empty it after so many products, a
            multiple of ``step``; None: never.

    Returns:
        ``[M, N]`` fp32.
    """
    if promote_every is not None and (promote_every < step or promote_every % step):
        raise ValueError(f"promote_every={promote_every} must be a multiple of step={step}")
    a, b = a.float(), b.float()
    register = a.new_zeros(a.shape[0], b.shape[0])
    total = torch.zeros_like(register) if promote_every else None
    kept = -1 << (23 - fraction_bits)
    for start in range(0, a.shape[1], step):
        stop = start + step
        register.addmm_(a[:, start:stop], b[:, start:stop].T)
        register.view(torch.int32).bitwise_and_(kept)
        if total is not None and promote_every and stop % promote_every == 0:
            total += register
            register.zero_()
    return register if total is None else total + register


def _read(quantized: Tensor, scale: Tensor, name: str) -> Tensor:
    """Dequantise, the block's sides deduced from the number of scales along each axis."""
    block = []
    for size, scales in zip(quantized.shape, scale.shape, strict=True):
        sides = {-(-size // side): side for side in (max(size, 1), 128, 1)}
        if scales not in sides:
            raise ValueError(
                f"{name} of shape {list(quantized.shape)} cannot have scales of shape "
                f"{list(scale.shape)}: along an axis there is one for each, for 128, or for all"
            )
        block.append(sides[scales])
    return dequantize_ref(quantized, scale, (block[0], block[1]))
