"""Exercises of notebook 05: MaxVio, the bias update, its schedule, the sequence-wise
loss, what an expert tells about the domain.

One file each. The imports stand in the reader's order, which is the order exercises are listed in.
"""

# ruff: noqa: I001

from __future__ import annotations

from minids3.course.exercises.nb05_load_balancing import (
    violation,
    bias,
    schedule,
    sequence,
    information,
)

__all__ = ["bias", "information", "schedule", "sequence", "violation"]
