"""Values that change while a model trains, as functions of the tokens it has seen.

DeepSeek-V3 moves four of them (TR section 4.2): learning rate, batch size, the weight of the MTP
loss and the speed of the experts' biases. Counted in tokens and not in steps, a schedule says the
same whatever the batch is, also while the batch grows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

__all__ = ["Phase", "Schedule", "lr_at"]


class Phase(NamedTuple):
    """A stretch of a schedule: up to ``end`` tokens, reaching ``value`` by ``shape``.

    ``"constant"`` holds ``value`` from the start of the phase on; ``"linear"`` and ``"cosine"``
    lead there from where the phase before ended.
    """

    end: float
    value: float
    shape: Literal["constant", "linear", "cosine"] = "constant"


@dataclass(frozen=True, init=False)
class Schedule:
    """A value for every number of tokens seen; after the last phase its value stays.

    Args:
        phases: in the order of their ends; plain triples will do.
        start: the value before the first token, where a first linear or cosine phase begins.

    Raises:
        ValueError: no phase, ends that do not grow, an unknown shape, a value that is not finite.
    """

    phases: tuple[Phase, ...]
    start: float

    def __init__(self, phases: Iterable[tuple[Any, ...]], start: float = 0.0) -> None:
        object.__setattr__(self, "phases", tuple(Phase(*phase) for phase in phases))
        object.__setattr__(self, "start", start)
        if not self.phases:
            raise ValueError("a schedule needs at least one phase")
        end = 0.0
        for phase in self.phases:
            if phase.shape not in ("constant", "linear", "cosine"):
                raise ValueError(f"shape={phase.shape!r} is unknown: constant, linear or cosine")
            if not phase.end > end:
                raise ValueError(
                    f"phases must end one after the other, got {phase.end} after {end}"
                )
            if not math.isfinite(phase.value) or phase.value < 0:
                raise ValueError(f"value={phase.value!r} must be a number of 0 or more")
            end = phase.end

    def __call__(self, tokens: float) -> float:
        """The value after ``tokens`` tokens."""
        begin, value = 0.0, self.start
        for phase in self.phases:
            if tokens < phase.end:
                if phase.shape == "constant":
                    return phase.value
                part = (tokens - begin) / (phase.end - begin)
                if phase.shape == "cosine":
                    part = 0.5 * (1 - math.cos(math.pi * part))
                return value + (phase.value - value) * part
            begin, value = phase.end, phase.value
        return value

    @property
    def end(self) -> float:
        """Tokens after which nothing changes any more."""
        return self.phases[-1].end


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

    The short form for runs of a few hundred steps of one size; ``Schedule`` is the general one.

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
