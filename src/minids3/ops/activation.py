"""SwiGLU with its own gradient."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from minids3.ops.backend import use_triton
from minids3.ref.activation import swiglu_ref

__all__ = ["SwiGLUFunction", "swiglu"]


class SwiGLUFunction(torch.autograd.Function):
    """The Triton kernels as one node of the graph; keeps its inputs, not the sigmoid."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor | None) -> Tensor:
        """silu(gate) * up, or of the two halves of ``gate``."""
        from minids3.kernels.activation import swiglu_fwd

        gate = gate.contiguous()
        up = None if up is None else up.contiguous()
        ctx.save_for_backward(gate, up)
        return swiglu_fwd(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        """Gradients of ``gate`` and ``up``."""
        from minids3.kernels.activation import swiglu_bwd

        return swiglu_bwd(grad.contiguous(), *ctx.saved_tensors)


def swiglu(gate: Tensor, up: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    """silu(gate) * up.

    Args:
        gate: ``[..., F]``, or without ``up`` the joint ``[..., 2F]``, gate first.
        up: ``[..., F]``, or None.
        backend: ``"triton"``; ``"ref"``, in fp32 throughout; ``"auto"``, Triton for CUDA tensors
            and two of PyTorch's functions elsewhere.

    Returns:
        ``[..., F]`` in the dtype of ``gate``.
    """
    if use_triton(gate, backend):
        return SwiGLUFunction.apply(gate, up)
    if up is None:
        gate, up = gate.chunk(2, -1)
    return swiglu_ref(gate, up) if backend == "ref" else F.silu(gate) * up
