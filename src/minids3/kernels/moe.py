"""Rows of a mixture of experts on a GPU: out to the experts and back.

``inverse [N*K]`` says at which place each token-expert pair stands after sorting by expert. Every
kernel here walks over tokens or pairs in their own order and looks their place up, so each token is
read once and each sum has a fixed order; nothing is added atomically.

What lies between the two moves can be imported from here as well: the grouped products (from
``kernels.grouped`` and ``grouped_fp8``) and what makes their operands (``kernels.moe_quant``).
"""

# ruff: noqa: ANN001, ANN202  (kernels' arguments have no Python types)
from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from minids3.kernels.compile import Spec
from minids3.kernels.grouped import (
    grouped_gemm_nn,
    grouped_gemm_nt,
    grouped_wgrad,
    power_of_two_from,
)
from minids3.kernels.grouped_fp8 import fp8_grouped_gemm_nt, fp8_grouped_wgrad
from minids3.kernels.language import jit, tl
from minids3.kernels.launch import cdiv, check_tensors
from minids3.kernels.moe_quant import grouped_quant_transposed, swiglu_quant

__all__ = [
    "SPECS",
    "combine_bwd",
    "fp8_grouped_gemm_nt",
    "fp8_grouped_wgrad",
    "grouped_gemm_nn",
    "grouped_gemm_nt",
    "grouped_quant_transposed",
    "grouped_wgrad",
    "permute",
    "swiglu_quant",
    "unpermute",
]


@jit
def _permute_kernel(
    x_ptr,
    inverse_ptr,
    y_ptr,
    D,
    TOP_K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """y[inverse[n K + k]] = x[n] for each slot k of token n.

    x [N, D]; inverse [N K], K = TOP_K; y [N K, D]. A program copies BLOCK columns of one token.
    """
    token = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + token * D + d, mask=d < D)
    for k in tl.static_range(TOP_K):
        place = tl.load(inverse_ptr + token * TOP_K + k).to(tl.int64)
        tl.store(y_ptr + place * D + d, x, mask=d < D)


@jit
def _unpermute_kernel(
    y_ptr,
    weights_ptr,
    inverse_ptr,
    out_ptr,
    D,
    TOP_K: tl.constexpr,
    BLOCK: tl.constexpr,
    WEIGHTED: tl.constexpr,
):
    """out[n] = sum_k w[n, k] y[inverse[n K + k]], w = 1 unless WEIGHTED; summed in fp32.

    y [N K, D], K = TOP_K; weights w [N, K]; inverse [N K]; out [N, D].
    """
    token = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in tl.static_range(TOP_K):
        place = tl.load(inverse_ptr + token * TOP_K + k).to(tl.int64)
        y = tl.load(y_ptr + place * D + d, mask=d < D, other=0.0).to(tl.float32)
        if WEIGHTED:
            y *= tl.load(weights_ptr + token * TOP_K + k).to(tl.float32)
        total += y
    tl.store(out_ptr + token * D + d, total.to(out_ptr.dtype.element_ty), mask=d < D)


@jit
def _combine_bwd_kernel(
    grad_ptr,
    y_ptr,
    weights_ptr,
    inverse_ptr,
    grad_y_ptr,
    grad_weights_ptr,
    D,
    TOP_K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dy[i] = w[n, k] g[n],  dw[n, k] = sum_d g[n, d] y[i, d],  with i = inverse[n K + k].

    grad g [N, D]; y and grad_y dy [N K, D]; weights w and grad_weights dw [N, K]. One program a
    pair (n, k).
    """
    pair = tl.program_id(0).to(tl.int64)
    grad_ptr += pair // TOP_K * D
    place = tl.load(inverse_ptr + pair).to(tl.int64)
    weight = tl.load(weights_ptr + pair).to(tl.float32)
    product = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, D, BLOCK):
        d = start + tl.arange(0, BLOCK)
        grad = tl.load(grad_ptr + d, mask=d < D, other=0.0).to(tl.float32)
        product += grad * tl.load(y_ptr + place * D + d, mask=d < D, other=0.0).to(tl.float32)
        grad_y = (grad * weight).to(grad_y_ptr.dtype.element_ty)
        tl.store(grad_y_ptr + place * D + d, grad_y, mask=d < D)
    total = tl.sum(product)
    tl.store(grad_weights_ptr + pair, total.to(grad_weights_ptr.dtype.element_ty))


def permute(x: Tensor, *, inverse: Tensor, top_k: int) -> Tensor:
    """Copy each token to the places of its pairs: ``[N, D] -> [N*K, D]``, sorted by expert.

    Args:
        x: ``[N, D]``, any dtype of 1, 2, 4 or 8 bytes.
        inverse: ``[N*K]`` int32 or int64, the place of pair ``token * K + slot``.
        top_k: K.

    Raises:
        ValueError: shapes do not fit, or a tensor is not contiguous.
    """
    check_tensors(x=x, inverse=inverse)
    if x.ndim != 2 or inverse.shape != (x.shape[0] * top_k,):
        raise ValueError(
            f"x {list(x.shape)}, inverse {list(inverse.shape)}, top_k={top_k}: expected [N, D] "
            "and [N * top_k]"
        )
    n, d = x.shape
    out = x.new_empty(n * top_k, d)
    if out.numel() == 0:
        return out
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    block = _block(d)
    _permute(top_k, block).launch((n, cdiv(d, block)), x.view(bits), inverse, out.view(bits), d)
    return out


def unpermute(
    y: Tensor, weights: Tensor | None, inverse: Tensor, top_k: int | None = None
) -> Tensor:
    """Sum each token's K rows, by weight if there are weights: ``[N*K, D] -> [N, D]``.

    Args:
        y: ``[N*K, D]`` fp32, fp16 or bf16.
        weights: ``[N, K]`` of any floating dtype, or None for a plain sum.
        inverse: as in ``permute``.
        top_k: K; needed only without weights.

    Returns:
        ``[N, D]`` in the dtype of ``y``, summed in fp32 in the order of the slots.

    Raises:
        ValueError: shapes do not fit, or a tensor is not contiguous.
    """
    check_tensors(y=y, weights=weights, inverse=inverse)
    if top_k is None:
        if weights is None:
            raise ValueError("without weights, top_k says how many rows a token has")
        top_k = weights.shape[-1]
    n = inverse.numel() // max(top_k, 1)
    if y.ndim != 2 or y.shape[0] != inverse.numel() or n * top_k != y.shape[0]:
        raise ValueError(
            f"y {list(y.shape)}, inverse {list(inverse.shape)}, top_k={top_k}: expected "
            "[N * top_k, D] and [N * top_k]"
        )
    if weights is not None and weights.shape != (n, top_k):
        raise ValueError(f"weights are {list(weights.shape)}, expected {[n, top_k]}")
    d = y.shape[1]
    out = y.new_empty(n, d)
    if out.numel() == 0:
        return out
    block = _block(d)
    spec = _unpermute(top_k, block, weights is not None)
    read = y if weights is None else weights
    spec.launch((n, cdiv(d, block)), y, read, inverse, out, d)
    return out


def combine_bwd(
    grad: Tensor, y: Tensor, weights: Tensor, *, inverse: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of ``unpermute`` with weights, in one pass over the rows.

    Args:
        grad: ``[N, D]``; y: ``[N*K, D]``; weights: ``[N, K]``; inverse: ``[N*K]``.

    Returns:
        Gradients of ``y`` and of ``weights``, in their dtypes.

    Raises:
        ValueError: shapes do not fit, or a tensor is not contiguous.
    """
    check_tensors(grad=grad, y=y, weights=weights, inverse=inverse)
    fits = weights.ndim == 2 and grad.ndim == 2 and y.ndim == 2
    if not fits or y.shape != (weights.numel(), grad.shape[1]) or len(grad) != len(weights):
        raise ValueError(
            f"grad {list(grad.shape)}, y {list(y.shape)}, weights {list(weights.shape)}: expected "
            "[N, D], [N * K, D] and [N, K]"
        )
    d = grad.shape[1]
    grad_y, grad_weights = torch.empty_like(y), torch.empty_like(weights)
    if y.numel() == 0:
        return grad_y, grad_weights.zero_()
    spec = _combine_bwd(weights.shape[1], _block(d))
    spec.launch((weights.numel(),), grad, y, weights, inverse, grad_y, grad_weights, d)
    return grad_y, grad_weights


def _block(d: int) -> int:
    """Columns of a row per program: rows are long, so a few pieces each."""
    return min(1024, power_of_two_from(d))


def _spec(name: str, kernel: Any, tensors: dict[str, str], **constexprs: Any) -> Spec:
    signature = {**tensors, "inverse_ptr": "*i64", "D": "i32"}
    return Spec(name, kernel, signature, constexprs, divisible=("D",))


@cache
def _permute(top_k: int, block: int) -> Spec:
    tensors = {"x_ptr": "*i16", "y_ptr": "*i16"}
    return _spec("permute", _permute_kernel, tensors, TOP_K=top_k, BLOCK=block)


@cache
def _unpermute(top_k: int, block: int, weighted: bool) -> Spec:
    tensors = {"y_ptr": "*bf16", "weights_ptr": "*fp32", "out_ptr": "*bf16"}
    constexprs = {"TOP_K": top_k, "BLOCK": block, "WEIGHTED": weighted}
    return _spec("unpermute", _unpermute_kernel, tensors, **constexprs)


@cache
def _combine_bwd(top_k: int, block: int) -> Spec:
    tensors = dict.fromkeys(("grad_ptr", "y_ptr", "grad_y_ptr"), "*bf16")
    tensors |= dict.fromkeys(("weights_ptr", "grad_weights_ptr"), "*fp32")
    return _spec("combine_bwd", _combine_bwd_kernel, tensors, TOP_K=top_k, BLOCK=block)


SPECS = (_permute(8, 1024), _unpermute(8, 1024, True), _combine_bwd(8, 1024))
