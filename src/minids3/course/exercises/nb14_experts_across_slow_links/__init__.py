"""Exercises of notebook 14: copies and bytes across links, dispatch, its backward, gradients.

One file each. The imports stand in the reader's order, which is the order exercises are listed in.
"""

# ruff: noqa: I001

from __future__ import annotations

from minids3.course.exercises.nb14_experts_across_slow_links import (
    copies,
    sent_bytes,
    plan,
    backward,
    gradients,
)

__all__ = ["backward", "copies", "gradients", "plan", "sent_bytes"]
