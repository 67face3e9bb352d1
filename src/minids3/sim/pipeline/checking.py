"""Is a schedule valid: nothing missing, nothing twice, and no action before what it needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from minids3.sim.pipeline.actions import Schedule, Work

__all__ = ["check_schedule", "schedule_problems"]

_WORDS = {"F": "forward", "I": "input gradient", "W": "weight gradient"}
_SHOWN = 10


def schedule_problems(schedule: Schedule) -> list[str]:
    """Return what is wrong with ``schedule``, a sentence each; an empty list if it is valid.

    First what each rank may do and how often; if that is right, whether all ranks come to an end:
    a rank does its actions strictly in order and waits for what the next one needs.
    """
    problems = [*_strangers(schedule), *_counts(schedule), *_own_order(schedule)]
    return problems or list(_stuck(schedule))


def check_schedule(schedule: Schedule) -> None:
    """Do nothing if ``schedule`` is valid.

    Raises:
        ValueError: with a line for each problem, the first ten of them.
    """
    problems = schedule_problems(schedule)
    if problems:
        shown = problems[:_SHOWN]
        if len(problems) > _SHOWN:
            shown.append(f"and {len(problems) - _SHOWN} more")
        raise ValueError(f"{schedule.name} is no valid schedule:\n  " + "\n  ".join(shown))


def _strangers(schedule: Schedule) -> Iterator[str]:
    """Actions of stages, directions and micro-batches that are not there, or not on this rank."""
    directions, each = len(schedule.placement), schedule.n_microbatches_each
    for rank, order in enumerate(schedule.orders):
        for i, action in enumerate(order):
            for part in action.parts:
                where = f"rank {rank}, action {i}, {part}"
                if not 0 <= part.direction < directions:
                    yield f"{where}: there is no direction {part.direction}"
                elif not 0 <= part.stage < schedule.n_stages:
                    last = schedule.n_stages - 1
                    yield f"{where}: there is no stage {part.stage}, only 0 to {last}"
                elif not 0 <= part.microbatch < each:
                    last = each - 1
                    yield f"{where}: there is no micro-batch {part.microbatch}, only 0 to {last}"
                elif schedule.rank_of(part.stage, part.direction) != rank:
                    owner = schedule.rank_of(part.stage, part.direction)
                    yield f"{where}: stage {part.stage} is on rank {owner}, not here"


def _counts(schedule: Schedule) -> Iterator[str]:
    """Pieces of work that are missing or done more than once."""
    counts = Counter(work for order in schedule.orders for a in order for work in a.works)
    for direction, ranks in enumerate(schedule.placement):
        for stage, rank in enumerate(ranks):
            for microbatch in range(schedule.n_microbatches_each):
                for letter, words in _WORDS.items():
                    work = (letter, direction, stage, microbatch)
                    if counts[work] == 0:
                        yield f"{_name(work)}, a {words} of rank {rank}, is missing"
                    elif counts[work] > 1:
                        times = counts[work]
                        yield f"{_name(work)}, a {words} of rank {rank}, is done {times} times"


def _own_order(schedule: Schedule) -> Iterator[str]:
    """Actions that come, on their own rank, before what they need from the same rank."""
    for rank, order in enumerate(schedule.orders):
        at: dict[Work, int] = {}
        for i, action in enumerate(order):
            for work in action.works:
                at.setdefault(work, i)
        for i, action in enumerate(order):
            for need in schedule.needs(action):
                if at.get(need, -1) > i:
                    yield (
                        f"rank {rank}: action {i}, {action}, comes before action {at[need]}, "
                        f"{order[at[need]]}, whose {_name(need)} it needs"
                    )


def _stuck(schedule: Schedule) -> Iterator[str]:
    """Let each rank go on as far as it gets, and say what those wait for that do not end."""
    reached = [0] * schedule.n_ranks
    done: set[Work] = set()
    moved = True
    while moved:
        moved = False
        for rank, order in enumerate(schedule.orders):
            while reached[rank] < len(order):
                action = order[reached[rank]]
                if not done.issuperset(schedule.needs(action)):
                    break
                done.update(action.works)
                reached[rank] += 1
                moved = True
    for rank, order in enumerate(schedule.orders):
        if reached[rank] == len(order):
            continue
        action = order[reached[rank]]
        need = next(need for need in schedule.needs(action) if need not in done)
        other = schedule.rank_of(need[2], need[1])
        if need in action.works:
            reason = "which is a part of the same action"
        else:
            reason = f"but rank {other} stops before it"
        where = f"rank {rank} stops at action {reached[rank]}, {action}"
        yield f"{where}: it needs {_name(need)}, {reason}"


def _name(work: Work) -> str:
    """Write a piece of work as an action is written: 0F3."""
    letter, direction, stage, microbatch = work
    return f"{stage}{letter}{microbatch}" + "'" * direction
