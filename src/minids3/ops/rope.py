"""Rotary position embedding with its own gradient, which is the rotation back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minids3.ops.backend import use_triton
from minids3.ref.rope import apply_rope_ref, check_tables

__all__ = ["RopeFunction", "apply_rope"]


class RopeFunction(torch.autograd.Function):
    """The Triton kernel as one node of the graph; keeps nothing but the tables."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        """Rotate ``x [..., T, R]``."""
        from minids3.kernels.rope import rope

        cos, sin = cos.float().contiguous(), sin.float().contiguous()
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        return rope(_together(x), cos, sin, interleaved)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """Rotate the gradient back."""
        from minids3.kernels.rope import rope

        cos, sin = ctx.saved_tensors
        return rope(_together(grad), cos, sin, ctx.interleaved, inverse=True), None, None, None


def apply_rope(
    x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = True, *, backend: str = "auto"
) -> Tensor:
    """Rotate every pair of channels of ``x`` by its position's angle.

    Arguments, result and errors are those of ``minids3.ref.rope.apply_rope_ref``. Interleaved fp32
    pairs are complex numbers already lying in memory, so without Triton one complex product
    replaces four real ones and a re-stacking; every other case goes through the reference, and so
    do tables with positions of their own for every row, which the Triton kernel has not learnt.

    ``backend``: ``"triton"``; ``"ref"``; ``"auto"``, Triton for CUDA tensors, else PyTorch.
    """
    if use_triton(x, backend) and not (backend == "auto" and cos.ndim > 2):
        return RopeFunction.apply(x, cos, sin, interleaved)
    plain = not interleaved or x.dtype != torch.float32 or x.device.type == "mps"
    if backend == "ref" or plain:
        return apply_rope_ref(x, cos, sin, interleaved)
    check_tables(x, cos, sin)
    # A pair at an odd address, or torn apart, is no complex number. contiguous() does not do here:
    # it gives back a tensor that is contiguous already, odd address and all.
    if x.storage_offset() % 2 or x.stride(-1) != 1 or any(s % 2 for s in x.stride()[:-1]):
        x = x.clone(memory_format=torch.contiguous_format)
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.complex(cos.float(), sin.float())).flatten(-2)


def _together(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
