"""What a pipeline schedule is made of: actions, and for each rank the order of its actions.

A model is cut into stages; a rank holds one stage or more. A batch is cut into micro-batches, and
each passes through all stages forward and then backward. Five kinds of action:

    F   forward                                          needs F of the stage before
    B   backward: I and W in one                         needs F of its own, I of the stage after
    I   gradient of the stage's input alone              needs F of its own, I of the stage after
    W   gradient of its weights, put off                 needs I of its own
    FB  a forward and the B of another micro-batch, run together so that one computes while the
        other communicates (TR section 3.2)

Zero Bubble's authors call I "B" (arXiv 2401.10241): their B is not the report's, which is I + W.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Literal, get_args

__all__ = ["Action", "Kind", "Schedule", "Work", "check_sizes"]

Kind = Literal["F", "B", "I", "W", "FB"]
Work = tuple[str, int, int, int]
"""A piece of work: "F", "I" or "W", then direction, stage and micro-batch."""


@dataclass(frozen=True)
class Action:
    """One action of a rank: what, at which stage, for which micro-batch.

    ``direction`` is 1 for the micro-batches that DualPipe sends the other way round; stages and
    micro-batches are counted within a direction. ``backward`` is the B that an FB contains; kind,
    stage and micro-batch of an FB are its forward's.

    Raises:
        ValueError: there is no such kind; an FB lacks its B, or another kind has one.
    """

    kind: Kind
    stage: int
    microbatch: int
    direction: int = 0
    backward: Action | None = None

    def __post_init__(self) -> None:
        """Refuse what is no action."""
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind={self.kind!r}; choose one of {', '.join(get_args(Kind))}")
        if self.kind != "FB" and self.backward is not None:
            raise ValueError(f"{self.kind} takes no backward; only FB overlaps one")
        if self.kind == "FB" and (self.backward is None or self.backward.kind != "B"):
            raise ValueError(f"an FB needs backward=Action('B', ...), not {self.backward}")

    def __str__(self) -> str:
        """Write the action as PyTorch does, with a prime in DualPipe's other direction: 0F3."""
        if self.backward is not None:
            forward = Action("F", self.stage, self.microbatch, self.direction)
            return f"({forward};{self.backward})OVERLAP_F_B"
        return f"{self.stage}{self.kind}{self.microbatch}" + "'" * self.direction

    @property
    def parts(self) -> tuple[Action, ...]:
        """The two actions of an FB, forward first; the action itself otherwise."""
        if self.backward is None:
            return (self,)
        return (Action("F", self.stage, self.microbatch, self.direction), self.backward)

    @property
    def works(self) -> tuple[Work, ...]:
        """The pieces of work it does: a B is an I and a W, an FB all three."""
        return tuple(
            (letter, part.direction, part.stage, part.microbatch)
            for part in self.parts
            for letter in ("IW" if part.kind == "B" else part.kind)
        )


@dataclass(frozen=True)
class Schedule:
    """The order of actions on each rank.

    Attributes:
        name: what it is called.
        placement: rank of each stage, ``placement[direction][stage]``.
        n_microbatches: of the whole batch; each direction has an equal share.
        orders: actions of each rank, in the order in which it does them.

    Raises:
        ValueError: ``placement`` names ranks that have no order, directions differ in their stages,
            or have no equal share of the micro-batches.
    """

    name: str
    placement: tuple[tuple[int, ...], ...]
    n_microbatches: int
    orders: tuple[tuple[Action, ...], ...]

    def __post_init__(self) -> None:
        """Refuse a placement that does not fit."""
        check_sizes(n_microbatches=self.n_microbatches)
        stages = {len(ranks) for ranks in self.placement}
        if len(stages) != 1 or 0 in stages:
            raise ValueError(f"placement={self.placement}: each direction needs the same stages")
        if self.n_microbatches % len(self.placement):
            raise ValueError(
                f"n_microbatches={self.n_microbatches} cannot be shared equally by "
                f"{len(self.placement)} directions"
            )
        strange = {rank for ranks in self.placement for rank in ranks} - set(range(self.n_ranks))
        if strange:
            raise ValueError(f"placement names ranks {sorted(strange)}; orders has {self.n_ranks}")

    @property
    def n_ranks(self) -> int:
        """Ranks of the pipeline."""
        return len(self.orders)

    @property
    def n_stages(self) -> int:
        """Stages of the model, which a micro-batch passes one after another."""
        return len(self.placement[0])

    @property
    def n_microbatches_each(self) -> int:
        """Micro-batches of one direction."""
        return self.n_microbatches // len(self.placement)

    def rank_of(self, stage: int, direction: int = 0) -> int:
        """Return the rank that holds ``stage``."""
        return self.placement[direction][stage]

    def needs(self, action: Action) -> list[Work]:
        """Return the pieces of work whose results ``action`` takes, before it can begin."""
        # The W of a B follows its own I at once.
        first = [work for work in action.works if work[0] != "W" or action.kind == "W"]
        return [need for work in first for need in self._before(work)]

    def _before(self, work: Work) -> list[Work]:
        letter, direction, stage, microbatch = work
        if letter == "W":
            return [("I", direction, stage, microbatch)]
        if letter == "F":
            return [("F", direction, stage - 1, microbatch)] if stage > 0 else []
        needed = [("F", direction, stage, microbatch)]
        if stage < self.n_stages - 1:
            needed.append(("I", direction, stage + 1, microbatch))
        return needed

    def text(self) -> str:
        """Return the orders, one line a rank."""
        return "\n".join(_line(rank, order) for rank, order in enumerate(self.orders))


def check_sizes(**sizes: int) -> None:
    """Raise ``ValueError`` if a size is not an integer of 1 or more."""
    for name, size in sizes.items():
        if not isinstance(size, Integral) or size < 1:
            raise ValueError(f"{name}={size!r} must be an integer of 1 or more")


def _line(rank: int, order: Sequence[Action]) -> str:
    return f"rank {rank}: " + " ".join(map(str, order))
