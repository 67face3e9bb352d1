"""Exercises of notebook 04: the gate, the group limit, dispatch, combine, activated parameters.

One file each. The expected values in a check are computed another way than the solution computes
them. The imports stand in the reader's order, which is the order exercises are listed in.
"""

# ruff: noqa: I001

from __future__ import annotations

from minids3.course.exercises.nb04_mixture_of_experts import (
    gate,
    groups,
    dispatch,
    combine,
    activated,
)

__all__ = ["activated", "combine", "dispatch", "gate", "groups"]
