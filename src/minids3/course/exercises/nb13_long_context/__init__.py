"""Exercises of notebook 13: how often pairs turn, YaRN's two halves, needles, what it cost.

One file each. The imports stand in the reader's order, which is the order exercises are listed in.
"""

# ruff: noqa: I001

from __future__ import annotations

from minids3.course.exercises.nb13_long_context import (
    turns,
    frequencies,
    multipliers,
    haystack,
    cost,
)

__all__ = ["cost", "frequencies", "haystack", "multipliers", "turns"]
