"""Schedules that go through the micro-batches in one order: GPipe, 1F1B, ZB1P, interleaved ones."""

from __future__ import annotations

from minids3.sim.pipeline.actions import Action, Schedule, check_sizes

__all__ = ["gpipe", "interleaved_1f1b", "interleaved_zb", "one_f_one_b", "zb1p"]

_Steps = list[tuple[int, int]]  # (stage, micro-batch), in the order of a rank's forwards


def gpipe(n_ranks: int, n_microbatches: int) -> Schedule:
    """All forwards, then all backwards (arXiv 1811.06965)."""
    check_sizes(n_ranks=n_ranks, n_microbatches=n_microbatches)
    orders = []
    for rank in range(n_ranks):
        steps = _steps(rank, n_ranks, n_microbatches, 1)
        orders.append(_alternate(steps, steps, warmup=n_microbatches))
    return _loop("GPipe", 1, n_microbatches, orders)


def one_f_one_b(n_ranks: int, n_microbatches: int) -> Schedule:
    """One forward, one backward in turn after a warm-up of one forward per later rank.

    Raises:
        ValueError: fewer micro-batches than ranks.
    """
    check_sizes(n_ranks=n_ranks, n_microbatches=n_microbatches)
    if n_microbatches < n_ranks:
        raise ValueError(
            f"1F1B needs at least as many micro-batches as stages: n_microbatches={n_microbatches} "
            f"is less than {n_ranks}; cut the batch finer or use fewer ranks"
        )
    orders = []
    for rank in range(n_ranks):
        steps = _steps(rank, n_ranks, n_microbatches, 1)
        orders.append(_alternate(steps, steps, warmup=n_ranks - 1 - rank))
    return _loop("1F1B", 1, n_microbatches, orders)


def interleaved_1f1b(n_ranks: int, n_microbatches: int, stages_per_rank: int = 2) -> Schedule:
    """1F1B where a rank holds several stages, ``n_ranks`` apart (arXiv 2104.04473).

    Raises:
        ValueError: micro-batches cannot be dealt into equal rounds of ``n_ranks`` or a few more.
    """
    return _interleaved("interleaved 1F1B", n_ranks, n_microbatches, stages_per_rank, split=False)


def interleaved_zb(n_ranks: int, n_microbatches: int, stages_per_rank: int = 2) -> Schedule:
    """Interleaved 1F1B with the backward split: a W follows ``rank`` steps after its I.

    Raises:
        ValueError: as in ``interleaved_1f1b``.
    """
    return _interleaved("interleaved ZB", n_ranks, n_microbatches, stages_per_rank, split=True)


def zb1p(n_ranks: int, n_microbatches: int) -> Schedule:
    """1F1B with the backward split, W filling the wait (arXiv 2401.10241, there ZB-H1).

    Raises:
        ValueError: as in ``interleaved_1f1b``.
    """
    return _interleaved("ZB1P", n_ranks, n_microbatches, 1, split=True)


def _interleaved(
    name: str, n_ranks: int, n_microbatches: int, stages_per_rank: int, split: bool
) -> Schedule:
    check_sizes(n_ranks=n_ranks, n_microbatches=n_microbatches, stages_per_rank=stages_per_rank)
    rounds = max(1, n_microbatches // n_ranks)
    if n_microbatches % rounds:
        raise ValueError(
            f"{name} needs micro-batches that can be dealt into {rounds} equal rounds: "
            f"n_microbatches={n_microbatches} cannot; take {rounds * (n_microbatches // rounds)}"
        )
    per_round = n_microbatches // rounds
    orders = []
    for rank in range(n_ranks):
        forwards = _steps(rank, n_ranks, n_microbatches, stages_per_rank)
        backwards = _steps(rank, n_ranks, n_microbatches, stages_per_rank, backward=True)
        later = n_ranks - 1 - rank
        warmup = (stages_per_rank - 1) * per_round + later * (1 if split else 2)
        orders.append(_alternate(forwards, backwards, warmup, rank if split else None))
    return _loop(name, stages_per_rank, n_microbatches, orders)


def _steps(
    rank: int, n_ranks: int, n_microbatches: int, stages_per_rank: int, backward: bool = False
) -> _Steps:
    """Return (stage, micro-batch) of a rank: a round of micro-batches through one of its stages,
    the same round through its next stage, and so on; backward the last stage comes first.
    """
    rounds = max(1, n_microbatches // n_ranks) if stages_per_rank > 1 else 1
    per_round = n_microbatches // rounds
    stages = range(rank, n_ranks * stages_per_rank, n_ranks)
    return [
        (stage, microbatch)
        for first in range(0, n_microbatches, per_round)
        for stage in (reversed(stages) if backward else stages)
        for microbatch in range(first, first + per_round)
    ]


def _alternate(
    forwards: _Steps, backwards: _Steps, warmup: int, wait: int | None = None
) -> list[Action]:
    """Do ``warmup`` forwards, then a forward and a backward in turn, then the other backwards.

    With ``wait`` backwards are split: the first W comes after ``wait + 1`` Is, then one after each.
    """
    order = [Action("F", *step) for step in forwards[:warmup]]
    ahead = forwards[warmup:]
    for i, step in enumerate(backwards):
        if i < len(ahead):
            order.append(Action("F", *ahead[i]))
        order.append(Action("B" if wait is None else "I", *step))
        if wait is not None and i >= wait:
            order.append(Action("W", *backwards[i - wait]))
    if wait is not None:
        order += [Action("W", *step) for step in backwards[max(0, len(backwards) - wait) :]]
    return order


def _loop(
    name: str, stages_per_rank: int, n_microbatches: int, orders: list[list[Action]]
) -> Schedule:
    """Return a schedule whose stages go round the ranks."""
    placement = tuple(range(len(orders))) * stages_per_rank
    return Schedule(name, (placement,), n_microbatches, tuple(map(tuple, orders)))
