"""Formulas for a pipeline's idle time, where they hold, and the published step taken apart.

The report's table (TR table 2) has one formula a schedule. Simulation (``simulate``) shows that
some are exact for some costs only; ``bubble`` says on which side the truth lies for the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from minids3.sim.pipeline.actions import Schedule
from minids3.sim.pipeline.schedules import SCHEDULES
from minids3.sim.pipeline.simulate import Costs, Timeline, simulate
from minids3.sim.pipeline.two_streams import dualpipe

__all__ = ["PUBLISHED_STEP", "Bubble", "DecodedStep", "PublishedStep", "bubble", "decode_step"]


@dataclass(frozen=True)
class Bubble:
    """A formula's idle time per rank, and how the idlest rank's compares with it.

    ``relation`` says what simulation gives: ``"exact"`` this time, ``"at most"`` or ``"at least"``.
    """

    time: float
    relation: Literal["exact", "at most", "at least"]


def bubble(name: str, n_ranks: int, costs: Costs | None = None) -> Bubble:
    """Return the idle time that the formula of a schedule gives, B = I + W.

    ====================  ============================  ===========================================
    GPipe, 1F1B           (P - 1)(F + B)                exact
    interleaved 1F1B      the same, F and B of a stage  exact
    ZB1P, interleaved ZB  (P - 1)(F + B - 2W)           exact if W <= F, I; else at least
    ZBV                   (P - 1) F                     exact if F = I = W, else at least
    DualPipe(V)           (S/2 - 1)(FB + B - 3W)        exact if F = I >= W; at most if F < I >= W;
                                                        else at least
    ====================  ============================  ===========================================

    P are the ranks, S the stages: P of DualPipe, 2P of DualPipeV. The formulas are TR table 2's,
    but for ZBV's, which is what its filling takes (arXiv 2401.10241 calls it zero: it lets the
    next step begin before this one ends). A W longer than F or I does not fit where ZB1P puts it:
    what is left is (P - 1)(F + I - min(F, I, W)). Of DualPipe's ranks those in the middle, where
    both streams meet, are the idlest; if FB < F + B, the outer ones have less.

    Args:
        name: as in ``make_schedule``. Micro-batches must be at least as many as ranks, and 2P - 1
            for ZBV, whose pipeline does not fill otherwise.
        n_ranks: ranks of the pipeline, P.
        costs: one number for all stages each; no communication between ranks.

    Raises:
        ValueError: there is no such schedule, or the formulas do not know such costs.
    """
    costs = costs or Costs()
    forward, input_grad, weight_grad = _plain(costs)
    if name not in SCHEDULES:
        raise ValueError(f"no schedule {name!r}; choose one of {', '.join(SCHEDULES)}")
    if n_ranks < 1:
        raise ValueError(f"n_ranks={n_ranks!r} must be 1 or more")
    backward = input_grad + weight_grad
    if name in ("gpipe", "1f1b", "interleaved_1f1b"):
        return Bubble((n_ranks - 1) * (forward + backward), "exact")
    if name in ("zb1p", "interleaved_zb"):
        time = (n_ranks - 1) * (forward + backward - 2 * weight_grad)
        return Bubble(time, "exact" if weight_grad <= min(forward, input_grad) else "at least")
    if name == "zbv":
        equal = forward == input_grad == weight_grad
        return Bubble((n_ranks - 1) * forward, "exact" if equal else "at least")
    pair = forward + backward if costs.overlapped is None else costs.overlapped
    halves = n_ranks if name == "dualpipev" else n_ranks / 2
    time = (halves - 1) * (pair + backward - 3 * weight_grad)
    if weight_grad > input_grad or forward > input_grad or pair > forward + backward:
        return Bubble(time, "at least")
    return Bubble(time, "exact" if forward == input_grad else "at most")


def _plain(costs: Costs) -> tuple[float, float, float]:
    times = (costs.forward, costs.input_grad, costs.weight_grad)
    if costs.communication or not all(isinstance(time, int | float) for time in times):
        raise ValueError(
            "the formulas know one cost of F, I and W for all stages and no communication between "
            "ranks: use simulate() for anything else"
        )
    return times  # type: ignore[return-value]


@dataclass(frozen=True)
class PublishedStep:
    """Seconds of one training step of V3, as published (ISCA table 4).

    ``pairs`` is what the table calls 1F1B: forwards and backwards that run together.
    """

    forward: float = 1.13
    bubble: float = 2.06
    backward: float = 1.99
    weight_grad: float = 0.48
    pairs: float = 13.95
    optimizer: float = 0.29
    step: float = 19.926

    @property
    def total(self) -> float:
        """The parts together; the table's own total is ``step``."""
        busy = self.forward + self.backward + self.weight_grad + self.pairs
        return busy + self.bubble + self.optimizer


PUBLISHED_STEP = PublishedStep()
_RANKS = 16  # stages of the pipeline (TR section 3.2)
_MICROBATCHES = 120  # 15,360 sequences over 128 data-parallel ranks, one each: inferred [C-bubble]


@dataclass(frozen=True)
class DecodedStep:
    """The published step divided by the actions of one rank of DualPipe; seconds.

    Attributes:
        counts: actions of that rank, by kind.
        costs: one action's time.
        formula: idle time by the report's formula.
        simulated: the whole step with these costs.
        measured: the idle time that was published.
    """

    counts: dict[str, int]
    costs: Costs
    formula: Bubble
    simulated: Timeline
    measured: float

    @property
    def unexplained(self) -> float:
        """What the formula leaves of the measured idle time."""
        return self.measured - self.formula.time


def decode_step(rank: int = 0, published: PublishedStep = PUBLISHED_STEP) -> DecodedStep:
    """Divide the published seconds by what ``rank`` does in a step of DualPipe [C-bubble].

    16 ranks, 120 micro-batches. Whose seconds were published is not known. Rank 0, an outer one,
    has 97 pairs; a middle one has 103. The middle six cannot be meant: a pair of theirs would take
    less than a backward alone. The table's 1B holds every B and I; an I is a B without its W.

    Raises:
        ValueError: there is no such rank, or the seconds cannot be its.
    """
    schedule: Schedule = dualpipe(_RANKS, _MICROBATCHES)
    if not 0 <= rank < _RANKS:
        raise ValueError(f"rank={rank!r}; the pipeline has ranks 0 to {_RANKS - 1}")
    kinds = [action.kind for action in schedule.orders[rank]]
    counts = {kind: kinds.count(kind) for kind in ("F", "B", "I", "W", "FB")}  # type: ignore[arg-type]
    weight_grad = published.weight_grad / counts["W"]
    backward = (published.backward + published.weight_grad) / (counts["B"] + counts["I"])
    pair = published.pairs / counts["FB"]
    if pair < backward:
        raise ValueError(
            f"the published seconds cannot be rank {rank}'s: with {counts['FB']} pairs each takes "
            f"{pair:.4f} s, less than a backward alone, {backward:.4f} s"
        )
    costs = Costs(
        forward=published.forward / counts["F"],
        input_grad=backward - weight_grad,
        weight_grad=weight_grad,
        overlapped=pair,
    )
    formula = bubble("dualpipe", _RANKS, costs)
    return DecodedStep(counts, costs, formula, simulate(schedule, costs), published.bubble)
