"""Exercises of notebook 15: 1F1B, the split backward, where W goes, idle time, two streams.

One file each. The imports stand in the reader's order, which is the order exercises are listed in.
"""

# ruff: noqa: I001

from __future__ import annotations

from minids3.course.exercises.nb15_pipelines_and_dualpipe import (
    one_f_one_b,
    split,
    put_off,
    idle,
    streams,
)

__all__ = ["idle", "one_f_one_b", "put_off", "split", "streams"]
