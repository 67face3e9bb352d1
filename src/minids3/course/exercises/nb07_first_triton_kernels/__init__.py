"""Exercises of notebook 07: vector add, reading PTX, softmax, RMSNorm there and back, roofline.

One file each. The imports stand in the reader's order, which is the order exercises are listed in.
"""

# ruff: noqa: I001

from __future__ import annotations

from minids3.course.exercises.nb07_first_triton_kernels import (
    add,
    loads,
    softmax,
    rms_norm,
    rms_backward,
    least_time,
)

__all__ = ["add", "least_time", "loads", "rms_backward", "rms_norm", "softmax"]
