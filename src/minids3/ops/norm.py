"""RMSNorm with its own gradient."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from minids3.ops.backend import use_triton
from minids3.ref.norm import rms_norm_ref

__all__ = ["RMSNormFunction", "rms_norm"]

WIDEST_ROW = 16384  # the kernel holds a row in registers


class RMSNormFunction(torch.autograd.Function):
    """The Triton kernels as one node of the graph; keeps ``x`` and one number per row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Normalise ``x [..., D]``."""
        from minids3.kernels.norm import rms_norm_fwd

        x, weight = x.contiguous(), weight.contiguous()
        y, rstd = rms_norm_fwd(x, weight, eps)
        ctx.save_for_backward(x, weight, rstd)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of ``x`` and ``weight``."""
        from minids3.kernels.norm import rms_norm_bwd

        return *rms_norm_bwd(grad.contiguous(), *ctx.saved_tensors), None


class _RMSNormPlain(torch.autograd.Function):
    """The same without Triton: PyTorch's own function is ten nodes and twice as slow to train."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, rstd = _normalise(x, weight, eps)
        ctx.save_for_backward(x, weight, rstd)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        # dx = rstd * w * g - x * rstd^3 * mean(w * g * x);  dw = sum over rows of g * x * rstd
        x, weight, rstd = ctx.saved_tensors
        product = grad * x
        rows = product.reshape(-1, weight.numel())
        grad_weight = rstd.flatten() @ rows
        along = (rows @ weight).view_as(rstd).mul_(rstd.pow(3)).div_(-weight.numel())
        grad_x = torch.mul(grad, weight, out=product).mul_(rstd).addcmul_(x, along)
        return grad_x, grad_weight, None


def _normalise(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The normalised ``x`` and the reciprocal root of each row's mean square."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    rstd = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (x * rstd).mul_(weight), rstd


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6, *, backend: str = "auto") -> Tensor:
    """Divide each vector by its root mean square, then scale each channel.

    Args:
        x: ``[..., D]``.
        weight: ``[D]``.
        eps: added to the mean square.
        backend: ``"triton"``; ``"ref"``, the formula in plain PyTorch; ``"auto"``, Triton for CUDA
            tensors up to 16,384 wide; else a few of PyTorch's functions in fp32 and fp64, and its
            own RMSNorm in other dtypes.

    Returns:
        ``[..., D]`` in the dtype of ``x``.
    """
    too_wide = backend == "auto" and x.shape[-1] > WIDEST_ROW
    if use_triton(x, backend) and not too_wide:
        return RMSNormFunction.apply(x, weight, eps)
    if backend == "ref":
        return rms_norm_ref(x, weight, eps)
    if x.dtype != weight.dtype or x.dtype not in (torch.float32, torch.float64):
        return F.rms_norm(x, weight.shape, weight, eps)
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"weight has shape {list(weight.shape)}, x needs [{x.shape[-1]}]")
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _RMSNormPlain.apply(x, weight, eps)
    return _normalise(x, weight, eps)[0]
