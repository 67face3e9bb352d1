"""Evaluation: what a model can do, asked for rather than read off its loss."""

from minids3.evals.bits import bits_per_byte, loss_above_floor
from minids3.evals.long_rows import LongRows
from minids3.evals.needle import (
    Found,
    Haystack,
    build_haystack,
    draw_haystack,
    recall,
    recall_by_length,
)

__all__ = [
    "Found",
    "Haystack",
    "LongRows",
    "bits_per_byte",
    "build_haystack",
    "draw_haystack",
    "loss_above_floor",
    "recall",
    "recall_by_length",
]
