"""Exercises of notebook 09: quantise, the product's loop, its edges, wgrad's operands, order.

One file each. The imports stand in the reader's order, which is the order exercises are listed in.
"""

# ruff: noqa: I001

from __future__ import annotations

from minids3.course.exercises.nb09_fp8_gemm import quantise, loop, edges, requantise, order

__all__ = ["edges", "loop", "order", "quantise", "requantise"]
