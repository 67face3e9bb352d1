"""The three products of ``ops.gemm`` by Triton kernels, for one matrix and for grouped experts."""

from __future__ import annotations

import torch
from torch import Tensor

from minids3.kernels import gemm, grouped_fp8, moe_quant, quant

__all__ = ["kernel_backward", "kernel_forward"]


def kernel_forward(
    x: Tensor,
    weight: Tensor,
    counts: Tensor | None,
    power_of_two: bool,
    keep: str,
    output: torch.dtype,
) -> tuple[Tensor, list[Tensor]]:
    """Output, and the operands that backward reads.

    Args:
        x: ``[M, K]``.
        weight: ``[E, N, K]``.
        counts: ``[E]``, rows per expert; None for a single one.
        power_of_two: scales of x.
        keep: ``"operand"`` or ``"e5m6"``, how x waits for backward; the latter without experts.
        output: dtype of the product.
    """
    x = x.contiguous()
    a, a_scale = quant.act_quant(x, power_of_two=power_of_two)
    b, b_scale = _quantize_weights(weight)
    if counts is None:
        out = gemm.fp8_gemm_nt(a, a_scale, b[0], b_scale[0], output)
    else:
        out = grouped_fp8.fp8_grouped_gemm_nt(a, a_scale, b, b_scale, counts, output)
    if keep == "e5m6":
        a, a_scale = quant.cache_quant(x)
    return out.to(x.dtype), [a, a_scale, b, b_scale]


def kernel_backward(
    grad: Tensor,
    kept: tuple[Tensor, ...],
    counts: Tensor | None,
    power_of_two: bool,
    output: torch.dtype,
    need: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x in the dtype of ``grad`` and of the weight in fp32, where needed."""
    x, x_scale, weight, weight_scale = kept
    grad = grad.contiguous()
    grad_x = grad_weight = None
    if need[0]:
        g, g_scale = quant.act_quant(grad)
        w, w_scale = weight.transpose(1, 2).contiguous(), weight_scale.transpose(1, 2).contiguous()
        if counts is None:
            grad_x = gemm.fp8_gemm_nt(g, g_scale, w[0], w_scale[0], output)
        else:
            grad_x = grouped_fp8.fp8_grouped_gemm_nt(g, g_scale, w, w_scale, counts, output)
        grad_x = grad_x.to(grad.dtype)
    if not need[1]:
        return grad_x, None
    if counts is None:
        g, g_scale = quant.act_quant_transposed(grad)
        a, a_scale = quant.requantize_transposed(x, x_scale, power_of_two=power_of_two)
        grad_weight = gemm.fp8_gemm_nt(g, g_scale, a, a_scale, torch.float32)[None]
    else:
        g, g_scale = moe_quant.grouped_quant_transposed(grad, counts)
        a, a_scale = moe_quant.grouped_quant_transposed(x, counts, x_scale, power_of_two)
        grad_weight = grouped_fp8.fp8_grouped_wgrad(g, g_scale, a, a_scale, counts)
    return grad_x, grad_weight


def _quantize_weights(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``[E, N, K]`` and its scales ``[E, ceil(N / 128), ceil(K / 128)]``; one launch if N fits."""
    n_experts, rows, _ = weight.shape
    if n_experts == 1 or rows % 128 == 0:
        q, scale = quant.weight_quant(weight.contiguous().flatten(0, 1))
        return q.unflatten(0, (n_experts, rows)), scale.unflatten(0, (n_experts, -1))
    parts = [quant.weight_quant(matrix) for matrix in weight.contiguous()]
    # fp8 tensors cannot be concatenated everywhere; bytes can
    stacked = torch.stack([part.view(torch.uint8) for part, _ in parts])
    return stacked.view(torch.float8_e4m3fn), torch.stack([scale for _, scale in parts])
