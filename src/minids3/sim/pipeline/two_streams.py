"""Schedules whose ranks serve two streams of work: ZBV, DualPipe and DualPipeV."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from minids3.sim.pipeline.actions import Action, Schedule, check_sizes

__all__ = ["dualpipe", "dualpipev", "zbv"]


def zbv(n_ranks: int, n_microbatches: int) -> Schedule:
    """Two stages a rank laid out as a V, backward split (arXiv 2401.10241, section 6).

    Rank r holds stages r and 2P - 1 - r, so that the last stage is on the first rank.
    """
    check_sizes(n_ranks=n_ranks, n_microbatches=n_microbatches)
    # Below 2P - 1 micro-batches the order is cut out of a longer one.
    total = max(2 * n_ranks - 1, n_microbatches)
    orders = []
    for rank in range(n_ranks):
        do = _Rank((rank, 0), (2 * n_ranks - 1 - rank, 0))
        for _ in range(2 * (n_ranks - rank) - 1):
            do.forward(0)
        for _ in range(rank):
            do.forward(1)
            do.forward(0)
        for _ in range(n_ranks - rank):
            do.forward(1)
            do.split(1)
        while do.done["F", 1] < total:
            if do.done["F", 0] < total:
                do.forward(0)
            do.split(0)
            do.forward(1)
            do.split(1)
        for _ in range(rank):
            do.backward(0, "I")
            do.backward(1, "I")
        for _ in range(n_ranks - rank):
            do.backward(0, "I")
            do.weight(0)
        for side in (1, 0):
            while do.waiting(side):
                do.weight(side)
        orders.append([action for action in do.order if action.microbatch < n_microbatches])
    return Schedule("ZBV", (_v(n_ranks),), n_microbatches, tuple(map(tuple, orders)))


def dualpipe(n_ranks: int, n_microbatches: int) -> Schedule:
    """Half of the micro-batches enter at the first rank, half at the last (TR section 3.2, DP).

    Each rank holds a stage for either direction, so the weights are held twice. Where both
    directions meet, a forward of one runs together with a backward of the other.

    Raises:
        ValueError: ``n_ranks`` or ``n_microbatches`` is odd, or there are fewer than
            ``2 * n_ranks`` micro-batches.
    """
    check_sizes(n_ranks=n_ranks, n_microbatches=n_microbatches)
    if n_ranks % 2 or n_microbatches % 2 or n_microbatches < 2 * n_ranks:
        raise ValueError(
            "DualPipe needs an even number of ranks and an even number of micro-batches, at least "
            f"two a rank: not n_ranks={n_ranks}, n_microbatches={n_microbatches}"
        )
    orders = []
    for rank in range(n_ranks):
        sides = ((rank, 0), (n_ranks - 1 - rank, 1))
        near = sides if rank < n_ranks // 2 else sides[::-1]  # the nearer end's stream comes first
        half = min(rank, n_ranks - 1 - rank)
        orders.append(_dual(_Rank(*near), half, n_ranks // 2, n_microbatches // 2))
    ranks = tuple(range(n_ranks))
    return Schedule("DualPipe", (ranks, ranks[::-1]), n_microbatches, tuple(orders))


def dualpipev(n_ranks: int, n_microbatches: int) -> Schedule:
    """DualPipe cut in half: two stages a rank laid out as a V, and one direction (DP).

    Raises:
        ValueError: fewer micro-batches than stages, of which there are ``2 * n_ranks``.
    """
    check_sizes(n_ranks=n_ranks, n_microbatches=n_microbatches)
    if n_microbatches < 2 * n_ranks:
        raise ValueError(
            "DualPipeV needs at least as many micro-batches as stages: "
            f"n_microbatches={n_microbatches} is less than {2 * n_ranks}"
        )
    orders = tuple(
        _dual(_Rank((rank, 0), (2 * n_ranks - 1 - rank, 0)), rank, n_ranks, n_microbatches)
        for rank in range(n_ranks)
    )
    return Schedule("DualPipeV", (_v(n_ranks),), n_microbatches, orders)


def _v(n_ranks: int) -> tuple[int, ...]:
    """Return the ranks of stages that go down the ranks and come back."""
    down = tuple(range(n_ranks))
    return down + down[::-1]


class _Rank:
    """Writes the order of a rank that serves two sides, each a (stage, direction)."""

    def __init__(self, *sides: tuple[int, int]) -> None:
        self.sides = sides
        self.order: list[Action] = []
        self.done: Counter[tuple[str, int]] = Counter()  # ("F" or "B", side) -> micro-batches
        self.queue: list[Action] = []  # Is whose W has not been done

    def _next(self, letter: Literal["F", "B"], side: int) -> tuple[int, int, int]:
        """Return stage, micro-batch and direction of what comes next, and count it."""
        stage, direction = self.sides[side]
        self.done[letter, side] += 1
        return stage, self.done[letter, side] - 1, direction

    def forward(self, side: int) -> None:
        self.order.append(Action("F", *self._next("F", side)))

    def backward(self, side: int, kind: Literal["B", "I"] = "B") -> None:
        self.order.append(Action(kind, *self._next("B", side)))
        if kind == "I":
            self.queue.append(self.order[-1])

    def together(self, forward: int, backward: int) -> None:
        """Overlap a forward of one side and a backward of the other."""
        paired = Action("B", *self._next("B", backward))
        self.order.append(Action("FB", *self._next("F", forward), backward=paired))

    def waiting(self, side: int | None = None) -> list[Action]:
        """Return the Is of a side, or of both, that still wait for their W; the oldest first."""
        if side is None:
            return self.queue
        return [
            action for action in self.queue if (action.stage, action.direction) == self.sides[side]
        ]

    def weight(self, side: int | None = None) -> None:
        """Do the W that has waited longest."""
        oldest = self.waiting(side)[0]
        self.queue.remove(oldest)
        self.order.append(Action("W", oldest.stage, oldest.microbatch, oldest.direction))

    def split(self, side: int) -> None:
        self.backward(side, "I")
        self.weight(side)


def _dual(do: _Rank, rank: int, n_ranks: int, n_microbatches: int) -> tuple[Action, ...]:
    """Write DP's eight steps for ``rank`` of one half; a side has ``n_microbatches``.

    Side 0 is the stream whose entrance is nearer, side 1 the one that comes back (or from the other
    end). ``rank`` counts from that entrance.
    """
    later = n_ranks - 1 - rank
    for _ in range(2 * later):  # 1
        do.forward(0)
    for _ in range(rank + 1):  # 2
        do.forward(0)
        do.forward(1)
    for _ in range(later):  # 3
        do.split(1)
        do.forward(1)
    for i in range(n_microbatches - 2 * n_ranks + rank + 1):  # 4, the main one
        if i == 0 and later == 0:  # where both streams meet the first pair is kept apart
            do.forward(0)
            do.backward(1)
        else:
            do.together(0, 1)
        do.together(1, 0)
    for _ in range(later):  # 5
        do.backward(1)
        do.together(1, 0)
    # 6: half-way through these 2 (rank + 1) backwards W begins to be put off; an odd rank does so
    # before side 1's backward, an even one after it.
    put_off = 2 * ((rank + 1) // 2) + (rank + 1) % 2
    for i in range(2 * (rank + 1)):
        do.backward(1 - i % 2, "I" if i >= put_off else "B")
    for _ in range(later):  # 7
        do.weight()
        do.backward(0, "I")
    while do.waiting():  # 8
        do.weight()
    return tuple(do.order)
