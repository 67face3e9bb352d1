"""The learning rate of every step."""

from __future__ import annotations

import math

__all__ = ["lr_at"]


def lr_at(
    step: int,
    *,
    steps: int,
    lr: float,
    warmup_steps: int = 0,
    decay_start: int | None = None,
    min_lr: float = 0.0,
) -> float:
    """Linear warm-up, a plateau, then a cosine down to ``min_lr``: the shape of TR section 4.2.

    Args:
        step: 0-based; step 0 already moves, by lr / warmup_steps.
        steps: how many steps the run has; the cosine ends there.
        lr: the plateau.
        warmup_steps: length of the ramp.
        decay_start: first step of the cosine, default right after the ramp (no plateau).
        min_lr: where the cosine ends, and what any later step gets.

    Returns:
        The learning rate.

    Raises:
        ValueError: the three phases do not fit into ``steps``.
    """
    start = warmup_steps if decay_start is None else decay_start
    if not 0 <= warmup_steps <= start <= steps:
        raise ValueError(
            f"need 0 <= warmup_steps <= decay_start <= steps, got {warmup_steps}, {start}, {steps}"
        )
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    if step < start:
        return lr
    if step >= steps:
        return min_lr
    progress = (step - start) / (steps - start)
    return min_lr + 0.5 * (lr - min_lr) * (1 + math.cos(math.pi * progress))
