"""Exercises of notebook 03: the latent, both ways to attend to it, what each costs.

One file each, in the reader's order. The expected values in a check are computed another way than
the solution computes them.
"""

# ruff: noqa: I001

from __future__ import annotations

from minids3.course.exercises.nb03_latent_attention import (
    compress,
    naive,
    cache_size,
    absorb,
    choose,
    intensity,
)

__all__ = ["absorb", "cache_size", "choose", "compress", "intensity", "naive"]
