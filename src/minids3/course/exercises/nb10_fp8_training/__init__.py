"""Exercises of notebook 10: the three products of an FP8 linear layer, what else, and the moments.

One file each. The imports stand in the reader's order, which is the order exercises are listed in.
"""

# ruff: noqa: I001

from __future__ import annotations

from minids3.course.exercises.nb10_fp8_training import (
    forward,
    dgrad,
    wgrad,
    modules,
    moments,
)

__all__ = ["dgrad", "forward", "modules", "moments", "wgrad"]
