"""What needs no knowledge earns nothing: which items of a check functions of no merit pass.

A function that gives zeros of the right shape *runs*, has shape and dtype, and is right wherever
zero happens to be. One that has learned the printed examples by heart is right on these. So an item
is *evidence* only if no such baseline passes it for several seeds, and an item earns its points
only where evidence passes in the same part of the check, or everywhere. An answer that passes
nothing that some known mistake does not pass, too, has at most half of the points; what a result
cost is left out there, since a program can lie about that. Both rules look at the items that passed
and at nothing else, so that a mistake cannot be hidden, and an answer that passes more never has
less.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from minids3.course.checker import Checker
from minids3.course.compare import snapshot
from minids3.course.launching import Guarded
from minids3.course.registry import Exercise
from minids3.course.run import checked, passed_by_mutants, solution_items

__all__ = ["KNOWN", "earning", "evidence", "most"]

KNOWN = 0.5  # of the points: the most for what a known mistake passes as well
_SEEDS = (0, 1)
_CONSTANTS = 6  # so many of a docstring's or of the common results are tried
_FOUND: dict[tuple[str, Any], tuple[bool, ...]] = {}

Answer = Callable[..., Any]  # of the right result, the arguments and the keyword arguments


def evidence(exercise: Exercise) -> tuple[bool, ...]:
    """Return, for each item of the check at seed 0, whether no baseline passes it."""
    key = (exercise.id, exercise.check)
    if key not in _FOUND:
        trivial: set[int] = set()
        for kind in _kernels(exercise) if exercise.kernel else _functions(exercise):
            passed: set[int] | None = None
            for seed in _SEEDS:
                c = checked(exercise, exercise.solution, seed, kind)
                ok = {i.label for i in c.items if i.status == "ok"}
                labels = [i.label for i in solution_items(exercise, seed)]
                here = {n for n, label in enumerate(labels) if label in ok}
                passed = here if passed is None else passed & here
            trivial |= passed or set()
        count = len(solution_items(exercise, 0))
        _FOUND[key] = tuple(n not in trivial for n in range(count))
    return _FOUND[key]


def earning(exercise: Exercise, passed: Iterable[int]) -> set[int]:
    """Return which of the items that passed earn their points in an answer that is not all right.

    That is all of those in parts where one passed that is evidence, and all there are where all the
    evidence passed: what is wrong then is an edge, not the idea.
    """
    items, proof = solution_items(exercise, 0), evidence(exercise)
    passed = {n for n in passed if n < len(items)}
    if any(proof) and all(n in passed for n, proves in enumerate(proof) if proves):
        return passed
    parts = {items[n].part for n in passed if proof[n]}
    return {n for n in passed if items[n].part in parts}


def most(exercise: Exercise, passed: Iterable[int]) -> float:
    """Return the largest share of the points that an answer which passed these items can have."""
    items, passed = solution_items(exercise, 0), set(passed)
    if len(passed) == len(items):
        return 1.0
    shown = {n for n in passed if n < len(items) and not items[n].cost}
    return KNOWN if any(shown <= known for known in passed_by_mutants(exercise)) else 1.0


# functions ----------------------------------------------------------------------------------------


def _functions(exercise: Exercise) -> list[type[Checker]]:
    """Return checkers in which a baseline answers; it may look at the right answer's form."""
    calls = [_calls(exercise, seed) for seed in _SEEDS]
    seen = [{args for args, _, _ in c} for c in calls]
    given = [{text for _, text, _ in c} for c in calls]
    known = set.intersection(*seen)
    common = {text: value for _, text, value in calls[0] if all(text in g for g in given)}
    answers: list[Answer] = [
        lambda right, args, kwargs: args[0] if args else None,
        lambda right, args, kwargs: tuple(args[: len(right)]) if _many(right) else args[-1],
        lambda right, args, kwargs: _by_heart(known, right, args, kwargs),
        _refuse,
    ]
    for number in (0, 1, *_numbers(exercise.solution.__doc__ or "")):
        answers.append(lambda right, args, kwargs, n=number: _like(right, n, (args, kwargs)))
    for value in [*common.values()][:_CONSTANTS]:
        answers.append(lambda right, args, kwargs, v=value: snapshot(v))
    return [_as_checker(exercise, answer) for answer in answers]


def _as_checker(exercise: Exercise, answer: Answer) -> type[Checker]:
    class Baseline(Checker):
        def _invoke(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            try:
                right = exercise.solution(*snapshot(args), **snapshot(kwargs))
            except Exception as error:
                right = error
            return answer(right, args, kwargs)

    return Baseline


def _calls(exercise: Exercise, seed: int) -> list[tuple[str, str, Any]]:
    """Return arguments and result (as text and as it is) of each call that the check makes."""
    calls: list[tuple[str, str, Any]] = []

    class Recording(Checker):
        def _invoke(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            given = _text((args, kwargs))
            out = exercise.solution(*args, **kwargs)
            calls.append((given, _text(out), snapshot(out)))
            return out

    checked(exercise, exercise.solution, seed, Recording)
    return calls


def _by_heart(known: set[str], right: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Be right for inputs that are the same for every seed, and zero elsewhere."""
    if _text((args, kwargs)) not in known:
        return _like(right, 0, (args, kwargs))
    if isinstance(right, Exception):
        raise right
    return right


def _refuse(right: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    raise ValueError("no")


def _many(value: Any) -> bool:
    return isinstance(value, tuple | list)


def _numbers(text: str) -> list[float]:
    found = re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?:e-?\d+)?(?![\w.]*\w)", text)
    return [n for n in dict.fromkeys(map(float, found)) if n not in (0, 1)][:_CONSTANTS]


def _like(right: Any, number: float, given: Any) -> Any:
    """Return a value of the form of ``right`` that is ``number`` everywhere."""
    if isinstance(right, Tensor):
        made = torch.full(right.shape, number).to(right.dtype)
        leaves = [t for t in _tensors(given) if t.requires_grad]
        if leaves and made.is_floating_point():  # a gradient of zero arrives at them
            made = made + sum((t.float() * 0).sum() for t in leaves).to(made.dtype)  # type: ignore[union-attr]
        return made
    if isinstance(right, bool | int | float):
        return type(right)(number)
    if isinstance(right, dict):
        return {k: _like(v, number, given) for k, v in right.items()}
    if type(right) in (tuple, list):
        return type(right)(_like(v, number, given) for v in right)
    return "" if isinstance(right, str) else None


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if _many(value) else ()
    return [t for v in inner for t in _tensors(v)]


def _text(value: Any) -> str:
    """Return text that tells values apart."""
    if isinstance(value, Tensor):
        return f"{value.dtype}{list(value.shape)}{value.detach().flatten().tolist()}"
    if isinstance(value, dict):
        return "{" + ",".join(f"{k!r}:{_text(v)}" for k, v in value.items()) + "}"
    if _many(value):
        return f"{type(value).__name__}({','.join(map(_text, value))})"
    return repr(value)


# kernels ------------------------------------------------------------------------------------------


def _kernels(exercise: Exercise) -> list[type[Checker]]:
    """Return checkers whose launches write nothing, one number, or a copy of an input."""

    def nothing(outputs: list[Guarded], inputs: list[Tensor]) -> None:
        pass

    def copy(outputs: list[Guarded], inputs: list[Tensor]) -> None:
        for out in outputs:
            same = [t for t in inputs if t.numel() == out.view.numel()]
            out.view.copy_(same[0].reshape(out.shape)) if same else out.view.zero_()

    writers = [nothing, copy]
    for number in (0, 1):
        writers.append(lambda outputs, inputs, n=number: [o.view.fill_(n) for o in outputs])  # type: ignore[arg-type, misc]
    return [_as_launcher(write) for write in writers]


def _as_launcher(write: Callable[[list[Guarded], list[Tensor]], Any]) -> type[Checker]:
    class Baseline(Checker):
        def _launch(self, grid: Any, args: tuple[Any, ...], constexprs: dict[str, Any]) -> bool:
            outputs = [a for a in args if isinstance(a, Guarded)]
            write(outputs, [a for a in args if isinstance(a, Tensor)])
            return False

    return Baseline
