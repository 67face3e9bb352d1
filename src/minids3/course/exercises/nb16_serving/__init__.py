"""Exercises of notebook 16: rows into pages, decoding over pages, merging splits, experts, price.

One file each. The imports stand in the reader's order, which is the order exercises are listed in.
"""

# ruff: noqa: I001

from __future__ import annotations

from minids3.course.exercises.nb16_serving import (
    store,
    decode,
    merge,
    experts,
    price,
)

__all__ = ["decode", "experts", "merge", "price", "store"]
