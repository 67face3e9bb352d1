"""Run the check of an exercise on a function, and say which known mistake it resembles.

The solution's own run tells the labels of the list; the mutants' runs, on the same inputs, tell the
misconceptions apart: a reader whose function did what a mutant did hears that mutant's sentence.
"""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from minids3.course.checker import Checker, Item, Stop
from minids3.course.compare import describe, resembles
from minids3.course.registry import Exercise, Mutant

__all__ = [
    "Report",
    "checked",
    "passed_by_mutants",
    "run_check",
    "solution_items",
    "solution_labels",
]


@dataclass
class Report:
    """The outcome of one run of a check."""

    id: str
    items: list[Item]
    outputs: list[Any] = field(repr=False, default_factory=list)
    diagnosis: str = ""
    mutant: str = ""
    stub: bool = False

    @property
    def passed(self) -> int:
        """How many items are ok."""
        return sum(i.status == "ok" for i in self.items)

    @property
    def ok(self) -> bool:
        """Whether all items are ok."""
        return self.passed == len(self.items)


def _run(
    exercise: Exercise,
    fn: Callable[..., Any],
    seed: int,
    solved: Checker | None,
    kind: type[Checker] = Checker,
) -> Checker:
    if solved is None:
        c = kind(exercise.id, fn, seed)
    else:
        c = kind(exercise.id, fn, seed, [i.label for i in solved.items], solved.after)
    state = random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            random.seed(seed)
            exercise.check(c)
    except Stop:
        pass
    except Exception as error:
        if solved is None:  # the solution itself: a fault of ours, show it
            raise
        c.unusable(error)
    finally:
        random.setstate(state)
    return c


_SOLUTIONS: dict[tuple[str, int, Any], Checker] = {}
_MUTANTS: dict[tuple[str, int, str, Any], Checker] = {}
_KEPT = 512  # runs of each: more than a class's grading asks for again, less than fills a memory
_SEEDS = (1, 2)  # whose inputs a diagnosis must hold for, too


def _keep(runs: dict[Any, Checker], key: Any, run: Checker) -> None:
    """Keep a run for later, and forget the oldest ones."""
    while len(runs) >= _KEPT:
        del runs[next(iter(runs))]
    runs[key] = run


def _solved(exercise: Exercise, seed: int) -> Checker:
    key = (exercise.id, seed, exercise.check)
    if key not in _SOLUTIONS:
        c = _run(exercise, exercise.solution, seed, None)
        bad = [i for i in c.items if i.status != "ok"]
        if bad and importlib.util.find_spec("triton") is None:
            from minids3.kernels.language import NoTriton

            if any(isinstance(o, tuple) and o[:2] == ("raised", "NoTriton") for o in c.outputs):
                raise NoTriton
        if bad:
            raise AssertionError(
                f"the solution of {exercise.id} fails its own check at {bad[0].label!r}: "
                f"{bad[0].reason}"
            )
        labels = [i.label for i in c.items]
        if len(set(labels)) != len(labels):
            raise AssertionError(f"the check of {exercise.id} uses a label twice: {labels}")
        c.outputs = []  # of no use any more, and some are large
        _keep(_SOLUTIONS, key, c)
    return _SOLUTIONS[key]


def solution_items(exercise: Exercise, seed: int) -> list[Item]:
    """Return the items of the solution's own run; kept for later.

    Raises:
        AssertionError: the solution fails its own check, or a label occurs twice.
        NoTriton: the check needs Triton, which is not installed.
    """
    return _solved(exercise, seed).items


def solution_labels(exercise: Exercise, seed: int) -> list[str]:
    """Return the labels of the checklist, as the solution's own run tells them; see above."""
    return [i.label for i in solution_items(exercise, seed)]


def checked(
    exercise: Exercise, fn: Callable[..., Any], seed: int, kind: type[Checker] = Checker
) -> Checker:
    """Return what running the check on ``fn`` came to, without a diagnosis."""
    return _run(exercise, fn, seed, _solved(exercise, seed), kind)


def _twin(exercise: Exercise, mutant: Mutant, seed: int) -> Checker:
    key = (exercise.id, seed, mutant.name, exercise.check)
    if key not in _MUTANTS:
        _keep(_MUTANTS, key, checked(exercise, mutant.fn, seed))
    return _MUTANTS[key]


def passed_by_mutants(exercise: Exercise) -> list[set[int]]:
    """Return, for each known mistake, the numbers of the items that it passes at seed 0."""
    labels = solution_labels(exercise, 0)
    runs = (_twin(exercise, mutant, 0) for mutant in exercise.mutants)
    passed = ({i.label for i in run.items if i.status == "ok"} for run in runs)
    return [{n for n, label in enumerate(labels) if label in ok} for ok in passed]


def _equal(twin: Checker, c: Checker) -> bool:
    """Whether both runs gave the same outcomes and the same outputs throughout."""
    statuses = [[(i.label, i.status) for i in run.items] for run in (twin, c)]
    return statuses[0] == statuses[1] and resembles(twin.outputs, c.outputs, 1e-4, 1e-6)


def _rests_on(c: Checker, item: Item) -> list[Any]:
    """Return the outputs that an item rests on: of its part, or the last one before that."""
    return c.outputs[item.begin : item.outputs] or c.outputs[: item.outputs][-1:]


def _contains(twin: Checker, c: Checker) -> bool:
    """Whether ``c`` shows the mistake of ``twin`` beside another one.

    Wherever the mutant fails, ``c`` passes nowhere, and in most of these places, the first of its
    own failures among them, it gave the same outputs. An exception is no proof.
    """
    mine = {i.label: i for i in c.items}
    shared, others = [], 0
    for item in (i for i in twin.items if i.status == "no"):
        other = mine.get(item.label)
        if other is None:
            continue
        if other.status == "ok":
            return False
        a, b = _rests_on(twin, item), _rests_on(c, other)
        if not a or not resembles(a, b, 1e-3, 1e-5):
            others += 1
        elif not (isinstance(a[-1], tuple) and a[-1][:1] == ("raised",)):
            shared.append(item.label)
    first = next((i.label for i in c.items if i.status == "no"), None)
    return first in shared and len(shared) > others


def _diagnose(
    exercise: Exercise, fn: Callable[..., Any], c: Checker, confirm: bool
) -> tuple[str, str]:
    """Return name and sentence of the mutant that did the same as ``c``, or empty strings.

    The same in everything is looked for first; then a known mistake with another one beside it, and
    if two known ones would fit, none is named. With ``confirm`` the same must hold for other
    inputs, since two mistakes can give the same numbers once.
    """
    runs = {c.seed: c}
    for alike in (_equal, _contains):
        found = [m for m in exercise.mutants if alike(_twin(exercise, m, c.seed), c)]
        for seed in _SEEDS if confirm and found else ():
            run = runs.get(seed) or runs.setdefault(seed, checked(exercise, fn, seed))
            twins = [(m, _twin(exercise, m, seed)) for m in found]
            found = [m for m, twin in twins if _equal(twin, run) or _contains(twin, run)]
        if (alike is _equal and found) or len(found) == 1:
            return found[0].name, found[0].diagnosis
    return "", ""


def run_check(
    exercise: Exercise, fn: Callable[..., Any], seed: int = 0, *, confirm: bool | None = None
) -> Report:
    """Run the check of ``exercise`` on ``fn`` and return the whole checklist.

    ``confirm`` says whether a diagnosis must hold for other inputs, too: by default for seed 0, the
    reader's. Nothing that ``fn`` raises comes out of here, except for ``KeyboardInterrupt``.
    """
    labels = solution_labels(exercise, seed)
    if not callable(fn):
        items = [Item(label, "not reached") for label in labels]
        items[0] = Item(labels[0], "no", f"you passed {describe(fn)}, not a function")
        return Report(exercise.id, items)
    c = checked(exercise, fn, seed)
    found = {i.label: i for i in c.items}
    items = [found.get(label) or Item(label, "not reached") for label in labels]
    report = Report(exercise.id, items, c.outputs, stub=c.stub)
    if not report.ok and not c.stub:
        report.mutant, report.diagnosis = _diagnose(
            exercise, fn, c, seed == 0 if confirm is None else confirm
        )
    return report
