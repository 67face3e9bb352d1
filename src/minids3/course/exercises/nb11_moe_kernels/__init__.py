"""Exercises of notebook 11: offsets, the tile map, the grouped product, SwiGLU into E4M3, combine.

One file each. The imports stand in the reader's order, which is the order exercises are listed in.
"""

# ruff: noqa: I001

from __future__ import annotations

from minids3.course.exercises.nb11_moe_kernels import (
    offsets,
    tile_map,
    grouped,
    swiglu,
    combine,
)

__all__ = ["combine", "grouped", "offsets", "swiglu", "tile_map"]
