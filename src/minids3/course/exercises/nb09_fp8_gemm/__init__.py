"""Exercises of notebook 09: quantise activations, the product's main loop, edges, wgrad's operands.

One file each. The imports stand in the reader's order, which is the order exercises are listed in.
"""

# ruff: noqa: I001

from __future__ import annotations

from minids3.course.exercises.nb09_fp8_gemm import quantise, loop, edges, requantise

__all__ = ["edges", "loop", "quantise", "requantise"]
