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


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6, *, backend: str = "auto") -> Tensor:
    """Divide each vector by its root mean square, then scale each channel.

    Args:
        x: ``[..., D]``.
        weight: ``[D]``.
        eps: added to the mean square.
        backend: ``"triton"``; ``"ref"``, the formula in plain PyTorch; ``"auto"``, Triton for CUDA
            tensors up to 16,384 wide and PyTorch's own function, the same numbers, elsewhere.

    Returns:
        ``[..., D]`` in the dtype of ``x``.
    """
    too_wide = backend == "auto" and x.shape[-1] > WIDEST_ROW
    if use_triton(x, backend) and not too_wide:
        return RMSNormFunction.apply(x, weight, eps)
    if backend == "ref":
        return rms_norm_ref(x, weight, eps)
    return F.rms_norm(x, weight.shape, weight, eps)
