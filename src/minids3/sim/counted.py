"""Counting the multiply-adds that a piece of PyTorch makes, whatever it calls them.

PyTorch's own counter sees matrix products, convolutions and fused attention. The same sums can be
had from a matrix times a vector, or from a product by elements that is summed afterwards, and it
takes those for nothing. Here each number that such a call multiplies counts as one multiply-add.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop, shape_wrapper

__all__ = ["MultiplyAdds"]

_OTHERS = (
    "mul", "mul_", "mv", "dot", "vdot", "addr", "addmv", "addmv_", "addcmul", "addcmul_",
)  # fmt: skip


def _by_elements(*shapes: Any, out_shape: Any = (), **_: Any) -> int:
    """Return 2 FLOPs for each number of the largest tensor; by a single number nothing counts."""
    sizes = [math.prod(s) for s in shapes if isinstance(s, torch.Size)]
    if sum(size > 1 for size in sizes) < 2:
        return 0
    return 2 * max(*sizes, math.prod(out_shape))


def _of_three(*args: Any, out_shape: Any = (), **_: Any) -> int:
    """Return the FLOPs of ``_trilinear`` (``F.bilinear``): two products for each place."""
    shapes = []
    for shape, missing in zip(args[:3], args[3:6], strict=True):
        sides = list(shape)
        for axis in missing:
            sides.insert(axis, 1)
        shapes.append(sides)
    return 4 * math.prod(torch.broadcast_shapes(*shapes))


_FLOPS = {
    **flop_registry,
    torch.ops.aten._trilinear: shape_wrapper(_of_three),
    **{getattr(torch.ops.aten, name): shape_wrapper(_by_elements) for name in _OTHERS},
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
}


class MultiplyAdds(TorchDispatchMode):
    """Counts in a ``with`` block; ``total`` are the multiply-adds so far."""

    def __init__(self) -> None:
        """Begin at zero."""
        super().__init__()
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or the first use imports PyTorch's compiler, most of a second

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make one operation and count it, or the ones that it is made of."""
        kwargs = kwargs or {}
        flops = _FLOPS.get(getattr(func, "_overloadpacket", func))
        if flops is None and hasattr(func, "decompose"):
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if flops is not None:
            self.total += flops(*args, **kwargs, out_val=out) // 2
        return out
