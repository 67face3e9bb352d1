"""Exercises of notebook 02: RoPE, causal attention, SwiGLU, the loss, AdamW, the next token.

One file each. The expected values in a check are computed another way than the solution computes
them. The imports stand in the reader's order, which is the order exercises are listed in.
"""

# ruff: noqa: I001

from __future__ import annotations

from minids3.course.exercises.nb02_transformer_baseline import (
    rope,
    attention,
    swiglu,
    loss,
    adamw,
    choose,
)

__all__ = ["adamw", "attention", "choose", "loss", "rope", "swiglu"]
