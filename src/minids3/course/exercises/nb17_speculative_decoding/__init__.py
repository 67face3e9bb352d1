"""Exercises of notebook 17: accept or reject, several drafts, their worth, caches, experts.

One file each. The imports stand in the reader's order, which is the order exercises are listed in.
"""

# ruff: noqa: I001

from __future__ import annotations

from minids3.course.exercises.nb17_speculative_decoding import (
    accept,
    verify,
    rollback,
    worth,
    experts,
)

__all__ = ["accept", "experts", "rollback", "verify", "worth"]
