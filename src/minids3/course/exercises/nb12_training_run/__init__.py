"""Exercises of notebook 12: schedules, clipping, accumulation, averages, checkpoints, spikes.

One file each. The imports stand in the reader's order, which is the order exercises are listed in.
"""

# ruff: noqa: I001

from __future__ import annotations

from minids3.course.exercises.nb12_training_run import (
    schedule,
    clip,
    accumulate,
    average,
    checkpoint,
    spikes,
)

__all__ = ["accumulate", "average", "checkpoint", "clip", "schedule", "spikes"]
