"""Exercises of notebook 08: read a byte, write one, share a scale, round it up, add in 14 bits.

One file each. The imports stand in the reader's order, which is the order exercises are listed in.
"""

# ruff: noqa: I001

from __future__ import annotations

from minids3.course.exercises.nb08_fp8_numbers import (
    decoding,
    encoding,
    tiles,
    powers,
    accumulation,
)

__all__ = ["accumulation", "decoding", "encoding", "powers", "tiles"]
