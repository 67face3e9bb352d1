"""Counting the multiply-adds that a piece of PyTorch makes, whatever it calls them.

PyTorch's own counter sees matrix products, convolutions and fused attention. The same sums can be
had from a matrix times a vector, or from a product by elements that is summed afterwards, and it
takes those for nothing. Here each number that such a call multiplies counts as one multiply-add.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["multiply_add_counter"]

_OTHERS = (
    "mul", "mul_", "mv", "dot", "vdot", "addr", "addmv", "addmv_", "addcmul", "addcmul_",
)  # fmt: skip


def _flops(*shapes: Any, out_shape: Any = (), **_: Any) -> int:
    """Return 2 FLOPs for each number of the largest tensor; by a single number nothing counts."""
    sizes = [math.prod(s) for s in shapes if isinstance(s, torch.Size)]
    if sum(size > 1 for size in sizes) < 2:
        return 0
    return 2 * max(*sizes, math.prod(out_shape))


def multiply_add_counter() -> FlopCounterMode:
    """Return a counter for a ``with`` block; ``get_total_flops() // 2`` are the multiply-adds."""
    counted = {getattr(torch.ops.aten, name): _flops for name in _OTHERS}
    return FlopCounterMode(display=False, custom_mapping=counted)
