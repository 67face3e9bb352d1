"""Try every worked solution and every alternative with many seeds, and every known mistake.

``minids3 grade`` draws a fresh seed each time, so that one seed in a thousand that a right answer
does not pass costs some class its points. ``python -m minids3.course seeds`` tries a thousand, and
goes on where it was stopped: what is done is kept in a file, and counts as long as the exercise's
source stays the same. With ``--mutants`` the known mistakes are tried: each must be rejected, and
be told its own cause and no other.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from minids3.course.check import format_report
from minids3.course.registry import Exercise, Mutant
from minids3.course.run import checked, run_check, solution_labels

__all__ = ["Answers", "misjudged", "mistaken", "rejected", "run"]

Answers = dict[str, Callable[..., Any]]
_EVERY = 20  # seeds between two notes of what is done


def answers(exercise: Exercise) -> Answers:
    """Return the right answers of an exercise by name, the worked solution first."""
    return {"solution": exercise.solution, **{a.name: a.fn for a in exercise.alternatives}}


def rejected(exercise: Exercise, seed: int) -> Iterator[str]:
    """Yield, in words, which right answers the check rejects with ``seed``, and where."""
    try:
        solution_labels(exercise, seed)
    except AssertionError as error:
        yield str(error)
        return
    for name, fn in answers(exercise).items():
        bad = [i for i in checked(exercise, fn, seed).items if i.status != "ok"]
        if bad:
            yield f"{exercise.id}: {name} fails at {bad[0].label!r}: {bad[0].reason}"


def mistaken(exercise: Exercise, mutant: Mutant, seed: int) -> str:
    """Say what the check makes of a known mistake that it should not; nothing if it is right."""
    report = run_check(exercise, mutant.fn, seed)
    if report.ok:
        return "the check accepts this wrong answer"
    text = " ".join(format_report(exercise, report).split())
    said = [m.name for m in exercise.mutants if " ".join(m.diagnosis.split()) in text]
    if said == [mutant.name]:
        return ""
    return f"it is told {', '.join(said) or 'no cause'} instead of its own cause"


def misjudged(exercise: Exercise, seed: int) -> Iterator[str]:
    """Yield, in words, which known mistakes the check accepts or explains wrongly."""
    for mutant in exercise.mutants:
        if fault := mistaken(exercise, mutant, seed):
            yield f"{exercise.id}: {mutant.name}: {fault}"


def _key(exercise: Exercise) -> str:
    """Return the exercise's id and a mark of its module's source."""
    source = inspect.getsource(sys.modules[exercise.check.__module__])
    return f"{exercise.id} {hashlib.sha256(source.encode()).hexdigest()[:12]}"


def _load(path: Path) -> dict[str, int]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        raise ValueError(f"{path} is damaged: remove it, and all seeds are tried again") from None
    return {str(k): int(v) for k, v in found.items()}


def _save(path: Path, done: dict[str, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(done, file, indent=1, sort_keys=True)
    os.replace(name, path)


def run(exercises: list[Exercise], count: int, progress: Path, mutants: bool = False) -> list[str]:
    """Try seeds 0 .. ``count`` - 1 of each exercise, and return what was judged wrongly.

    Seeds that an earlier run has passed are not tried again. An exercise stops at its first
    failure.

    Args:
        exercises: what to try.
        count: how many seeds each.
        progress: the file that keeps what is done.
        mutants: try the known mistakes instead of the right answers.

    Raises:
        ValueError: ``progress`` is damaged.
    """
    done, found = _load(progress), []
    faults_of = misjudged if mutants else rejected
    for exercise in exercises:
        key = _key(exercise) + (" mutants" if mutants else "")
        for seed in range(done.get(key, 0), count):
            bad = list(faults_of(exercise, seed))
            if bad:
                found += [f"seed {seed}: {text}" for text in bad]
                break
            done[key] = seed + 1
            if (seed + 1) % _EVERY == 0:
                _save(progress, done)
        _save(progress, done)
        print(f"{exercise.id:<24} {done.get(key, 0)} seeds passed", flush=True)
    return found
