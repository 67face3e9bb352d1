"""Run the check of an exercise on a function, and say which known mistake it resembles.

The solution's own run tells the labels of the list; the mutants' runs, on the same inputs, tell the
misconceptions apart: a reader whose function did what a mutant did hears that mutant's sentence.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from minids3.course.checker import Checker, Item, Stop, short
from minids3.course.compare import describe, same
from minids3.course.registry import Exercise

__all__ = ["Report", "run_check", "solution_labels"]


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
    exercise: Exercise, fn: Callable[..., Any], seed: int, labels: list[str] | None
) -> Checker:
    c = Checker(exercise.id, fn, seed, labels)
    state = random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            random.seed(seed)
            exercise.check(c)
    except Stop:
        pass
    except Exception as error:
        if labels is None:  # the solution itself: a fault of ours, show it
            raise
        if not c.items or c.items[-1].status == "ok":
            reason = (
                "what your function returned cannot be used "
                f"({type(error).__name__}: {short(error)})"
            )
            with contextlib.suppress(Stop):
                c._fail(None, reason)
    finally:
        random.setstate(state)
    return c


_SOLUTIONS: dict[tuple[str, int, Any], list[str]] = {}
_MUTANTS: dict[tuple[str, int, str, Any], Checker] = {}


def solution_labels(exercise: Exercise, seed: int) -> list[str]:
    """Return the labels of the checklist, as the solution's own run tells them; kept for later.

    Raises:
        AssertionError: the solution fails its own check, or a label occurs twice.
    """
    key = (exercise.id, seed, exercise.check)
    if key not in _SOLUTIONS:
        c = _run(exercise, exercise.solution, seed, None)
        bad = [i for i in c.items if i.status != "ok"]
        if bad:
            raise AssertionError(
                f"the solution of {exercise.id} fails its own check at {bad[0].label!r}: "
                f"{bad[0].reason}"
            )
        labels = [i.label for i in c.items]
        if len(set(labels)) != len(labels):
            raise AssertionError(f"the check of {exercise.id} uses a label twice: {labels}")
        _SOLUTIONS[key] = labels
    return _SOLUTIONS[key]


def _diagnose(exercise: Exercise, c: Checker) -> tuple[str, str]:
    """Return name and sentence of the mutant that did the same as ``c``, or empty strings.

    The same in everything is looked for first, then the same up to the first failed item: a reader
    can make a known mistake and another one beside it.
    """
    labels = solution_labels(exercise, c.seed)
    statuses = [(i.label, i.status) for i in c.items]
    first = next(i for i in c.items if i.status == "no")
    start = c.outputs[: first.outputs]
    near = None
    for mutant in exercise.mutants:
        key = (exercise.id, c.seed, mutant.name, exercise.check)
        if key not in _MUTANTS:
            _MUTANTS[key] = _run(exercise, mutant.fn, c.seed, labels)
        twin = _MUTANTS[key]
        if statuses == [(i.label, i.status) for i in twin.items] and same(
            twin.outputs, c.outputs, 1e-4, 1e-6
        ):
            return mutant.name, mutant.diagnosis
        other = next((i for i in twin.items if i.status == "no"), None)
        raised = bool(start) and isinstance(start[-1], tuple) and start[-1][:1] == ("raised",)
        if near is None and start and not raised and other and other.label == first.label:
            alike = same(twin.outputs[: other.outputs], start, 1e-3, 1e-5)
            near = (mutant.name, mutant.diagnosis) if alike else None
    return near or ("", "")


def run_check(exercise: Exercise, fn: Callable[..., Any], seed: int = 0) -> Report:
    """Run the check of ``exercise`` on ``fn`` and return the whole checklist.

    Nothing that ``fn`` raises comes out of here, except for ``KeyboardInterrupt``.
    """
    labels = solution_labels(exercise, seed)
    if not callable(fn):
        items = [Item(label, "not reached") for label in labels]
        items[0] = Item(labels[0], "no", f"you passed {describe(fn)}, not a function")
        return Report(exercise.id, items)
    c = _run(exercise, fn, seed, labels)
    found = {i.label: i for i in c.items}
    items = [found.get(label) or Item(label, "not reached") for label in labels]
    report = Report(exercise.id, items, c.outputs, stub=c.stub)
    if not report.ok and not c.stub:
        report.mutant, report.diagnosis = _diagnose(exercise, c)
    return report
