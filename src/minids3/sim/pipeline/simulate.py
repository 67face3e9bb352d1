"""Run a schedule on paper: when each action begins and ends, how long each rank is idle.

A rank does its actions strictly in order, each as soon as the rank is free and what it needs has
arrived. Results travel for ``Costs.communication`` between ranks; neither rank waits for the
transfer itself, only for what it brings, and no time passes between two stages of one rank. What
an action makes is there when it ends, the input gradient of a B or an FB too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from minids3.sim.pipeline.actions import Action, Schedule, Work
from minids3.sim.pipeline.checking import check_schedule

__all__ = ["Costs", "Span", "Timeline", "peak_activations", "simulate"]

_Cost = float | Sequence[float]


@dataclass(frozen=True)
class Costs:
    """How long actions take, in any one unit of time; a number, or a sequence with one per stage.

    Attributes:
        forward: F.
        input_grad: I.
        weight_grad: W; a B takes I + W.
        communication: from the end of an action to the arrival of its result on another rank.
        overlapped: FB, at least as long as the longer of F and B; ``None`` means that nothing is
            hidden, F + I + W.

    Raises:
        ValueError: a time is negative or not finite, or FB is shorter than F or B alone.
    """

    forward: _Cost = 1.0
    input_grad: _Cost = 1.0
    weight_grad: _Cost = 1.0
    communication: float = 0.0
    overlapped: float | None = None

    def __post_init__(self) -> None:
        """Refuse times that cannot be."""
        for name, cost in vars(self).items():
            for time in cost if _is_sequence(cost) else [cost]:
                if time is not None and not (math.isfinite(time) and time >= 0):
                    raise ValueError(f"{name}={cost!r}: a time must be finite and not negative")
        longer = max(_least(self.forward), _least(self.input_grad) + _least(self.weight_grad))
        if self.overlapped is not None and self.overlapped < longer * (1 - 1e-9):
            raise ValueError(
                f"overlapped={self.overlapped!r}: a forward and a backward together cannot take "
                f"less than the longer of them alone, {longer:g}"
            )

    def of(self, action: Action) -> float:
        """Return how long ``action`` takes."""
        if action.kind == "FB" and self.overlapped is not None:
            return self.overlapped
        times = {"F": self.forward, "I": self.input_grad, "W": self.weight_grad}
        return sum(_at(times[letter], stage) for letter, _, stage, _ in action.works)

    def check_stages(self, n_stages: int) -> None:
        """Raise ``ValueError`` if a sequence has not one time for each stage."""
        for name, cost in vars(self).items():
            if _is_sequence(cost) and len(cost) != n_stages:
                raise ValueError(f"{name} has {len(cost)} times for {n_stages} stages")


@dataclass(frozen=True)
class Span:
    """An action with its start and its end."""

    action: Action
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """What each rank did when, simulated or measured; the step begins at 0.

    Attributes:
        name: of the schedule.
        spans: of each rank, in order.
    """

    name: str
    spans: tuple[tuple[Span, ...], ...]

    @property
    def makespan(self) -> float:
        """End of the last action of all."""
        return max((rank[-1].end for rank in self.spans if rank), default=0.0)

    @property
    def busy(self) -> list[float]:
        """Time of each rank's actions together."""
        return [sum(span.end - span.start for span in rank) for rank in self.spans]

    @property
    def idle(self) -> list[float]:
        """The rest of the step of each rank: its bubble, from 0 to the makespan."""
        return [self.makespan - busy for busy in self.busy]

    @property
    def bubble_share(self) -> float:
        """Idle time of all ranks as a share of their time."""
        total = self.makespan * len(self.spans)
        return sum(self.idle) / total if total else 0.0


def simulate(schedule: Schedule, costs: Costs | None = None) -> Timeline:
    """Return when each action of ``schedule`` begins and ends.

    Args:
        schedule: a valid one.
        costs: of the actions; F = I = W = 1 and no communication by default.

    Raises:
        ValueError: the schedule is not valid (``check_schedule``), or costs per stage do not fit.
    """
    costs = costs or Costs()
    check_schedule(schedule)
    costs.check_stages(schedule.n_stages)
    ended: dict[Work, float] = {}
    spans: list[list[Span]] = [[] for _ in schedule.orders]
    left = sum(map(len, schedule.orders))
    while left:  # a valid schedule moves on in each pass
        for rank, order in enumerate(schedule.orders):
            while len(spans[rank]) < len(order):
                action = order[len(spans[rank])]
                needs = schedule.needs(action)
                if any(need not in ended for need in needs):
                    break
                start = spans[rank][-1].end if spans[rank] else 0.0
                for need in needs:
                    away = schedule.rank_of(need[2], need[1]) != rank
                    start = max(start, ended[need] + (costs.communication if away else 0.0))
                span = Span(action, start, start + costs.of(action))
                spans[rank].append(span)
                ended.update(dict.fromkeys(action.works, span.end))
                left -= 1
    return Timeline(schedule.name, tuple(map(tuple, spans)))


def peak_activations(schedule: Schedule, freed: Literal["input", "weight"] = "input") -> list[int]:
    """Return the most micro-batches whose activations a rank holds at once, one stage's each.

    They are there from the start of F until the end of I (``"input"``: what W needs is much less,
    and not counted) or until the end of W (``"weight"``). An FB holds both of its micro-batches.

    Raises:
        ValueError: ``freed`` is neither.
    """
    if freed not in ("input", "weight"):
        raise ValueError(f"freed={freed!r}; choose 'input' or 'weight'")
    peaks = []
    for order in schedule.orders:
        held = peak = 0
        for action in order:
            letters = [work[0] for work in action.works]
            held += letters.count("F")
            peak = max(peak, held)
            held -= letters.count("I" if freed == "input" else "W")
        peaks.append(peak)
    return peaks


def _at(cost: _Cost, stage: int) -> float:
    return cost[stage] if _is_sequence(cost) else cost  # type: ignore[return-value]


def _least(cost: _Cost) -> float:
    return min(cost) if _is_sequence(cost) else cost  # type: ignore[return-value]


def _is_sequence(cost: Any) -> TypeGuard[Sequence[float]]:
    return hasattr(cost, "__len__")  # an array, too
