"""One submission's grade: every exercise by itself, with public and hidden inputs.

An exercise gets a fresh process and a fresh namespace: the notebook's own cells that the answer
rests on, the worked solutions of earlier exercises that it uses, the student's helper cells, the
answer. So what goes wrong in one exercise, by accident or on purpose, stays there. Its check then
runs in this process (``oracle``) for the public inputs (seed 0) and for hidden ones, and again for
the private checks of an instructor's own folder. An item counts if it is ok every time.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import random
import sys
import textwrap
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from minids3.course.registry import Exercise, get
from minids3.course.run import run_check, solution_labels
from minids3.grade.judging import shortcuts
from minids3.grade.judging.oracle import Remote
from minids3.grade.judging.prepare import given_before, load_of
from minids3.grade.judging.scoring import Run, fault, judge, score, told, untouched
from minids3.grade.private import PrivateCheck, load_private
from minids3.grade.process.zygote import GraderFault, Zygote
from minids3.grade.records import (
    Answers,
    ExerciseResult,
    Program,
    SubmissionResult,
)
from minids3.isolation import sandbox
from minids3.isolation.sandbox import Limits

__all__ = ["Grader", "grade_submission", "hidden_seeds"]

_HIDDEN = 2


def hidden_seeds(seed: int, id: str, count: int = _HIDDEN) -> list[int]:
    """Return the seeds of an exercise's hidden inputs: the same for the same ``seed``, never 0."""
    digest = hashlib.sha256(f"minids3 {seed} {id}".encode()).digest()
    numbers = random.Random(digest)
    return [numbers.randrange(1, 1 << 31) for _ in range(count)]


class Grader:
    """Grades submissions; holds the process that students' code is forked from."""

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        isolate: bool = True,
        private: Path | None = None,
        hidden: Iterable[Path] = (),
        kernels: bool = False,
    ) -> None:
        """Start the process; see ``Zygote`` for what is raised.

        Args:
            limits: on time and memory.
            isolate: run students' code in the sandbox.
            private: folder with an instructor's own checks.
            hidden: folders that students' code may not read even where Python's library is.
            kernels: whether the exercises are Triton kernels.
        """
        if kernels and "triton" not in sys.modules and not torch.cuda.is_available():
            os.environ.setdefault("TRITON_INTERPRET", "1")  # heard only before the first import
        self.isolate = isolate
        self.private: dict[str, list[PrivateCheck]] = load_private(private) if private else {}
        self._make: Callable[[], Zygote] = lambda: Zygote(
            limits or Limits(), isolate=isolate, hidden=tuple(hidden), kernels=kernels
        )
        self._zygote = self._make()
        shortcuts.load_package(kernels)  # while that one starts
        self._rules: dict[tuple[str, str], dict[str, str]] = {}

    def close(self) -> None:
        """End the process."""
        self._zygote.close()

    def submission(
        self, answers: Answers, *, seed: int, student: str = "", path: str = ""
    ) -> SubmissionResult:
        """Grade all programs of one submission."""
        start = time.perf_counter()
        before = given_before(answers.merged)
        for program in answers.programs:
            if program.status == "answered":
                _rehearse(program, seed)
        result = SubmissionResult(
            student=student,
            notebook=answers.notebook,
            path=path,
            exercises=[
                self.exercise(program, seed, before.get(program.id, ()))
                for program in answers.programs
            ],
            problems=list(answers.problems),
            seed=seed,
            sandbox=sandbox.describe(self.isolate),
        )
        result.seconds = round(time.perf_counter() - start, 3)
        return result.total()

    def exercise(self, program: Program, seed: int, before: Iterable[str] = ()) -> ExerciseResult:
        """Grade one exercise; a fault of the grader's own is said, and is never a zero.

        ``before`` are the notebook's own cells above the answer: what they import may be used.
        """
        try:
            exercise = get(program.id)
        except Exception as error:
            return ExerciseResult(
                program.id, program.id, 0.0, 0.0, "grader error", notes=[fault(error)]
            )
        result = ExerciseResult(
            program.id,
            exercise.title,
            0.0,
            float(exercise.points),
            "grader error",
            hint=textwrap.dedent(exercise.hints[0]).strip(),
            code=program.code,
            seeds=[0, *hidden_seeds(seed, program.id)],
            notes=list(program.problems),
        )
        if program.status in ("stub", "missing"):
            return untouched(exercise, program, result)
        if program.newer:  # not a zero: it may be right, and cannot run here
            result.status = "needs a human"
            result.notes.insert(0, f"{program.newer}. Run it with that Python")
            return result
        for attempt in (1, 2):
            try:
                fresh = replace(result, notes=list(result.notes))
                return self._graded(exercise, program, fresh, before)
            except (Exception, GraderFault) as error:
                if attempt == 2:
                    result.notes.insert(0, fault(error))
                    return result
                self._restart()
        return result

    def _restart(self) -> None:
        self._zygote.close()
        self._zygote = self._make()

    # one exercise ------------------------------------------------------------------------------

    def _graded(
        self,
        exercise: Exercise,
        program: Program,
        result: ExerciseResult,
        before: Iterable[str],
    ) -> ExerciseResult:
        given = [*before, *(p.code for p in program.pieces if p.kind == "given")]
        own = [p.code for p in program.pieces if p.kind != "given"]
        rules = self.rules(exercise, given)
        remote = Remote(self._zygote, load_of(exercise, program, rules))
        try:
            runs = []
            for number in result.seeds:
                remote.seed(0)
                report = run_check(exercise, remote, number)
                runs.append(Run(number, number != 0, report))
                if report.stub and not report.passed:
                    break  # it says itself that it is not written
            extra = []
            for check in self.private.get(exercise.id, []):
                remote.seed(0)
                extra.append((check, run_check(check.of(exercise), remote, result.seeds[-1])))
        finally:
            remote.close()
        score(exercise, result, runs, extra)
        for message in told(remote, program):
            result.notes.append(message)
        judge(exercise, result, remote, shortcuts.named(own, given, rules), own)
        return result

    def rules(self, exercise: Exercise, given: Iterable[str]) -> dict[str, str]:
        """Return what ``exercise`` forbids to call, after these cells of the notebook's."""
        key = (exercise.id, "\n".join(given))
        if key not in self._rules:
            self._rules[key] = shortcuts.forbidden(exercise, given)
        return self._rules[key]


def _rehearse(program: Program, seed: int) -> None:
    """Run the solution on an exercise's inputs before anybody needs its checklist.

    The first time, that is while the process starts which students' code is forked from.
    """
    with contextlib.suppress(Exception):  # comes again where it can be told
        for number in (0, *hidden_seeds(seed, program.id)):
            solution_labels(get(program.id), number)


# the function that the command calls --------------------------------------------------------------

_GRADERS: dict[Any, Grader] = {}


def grade_submission(
    answers: Answers,
    *,
    seed: int,
    student: str = "",
    path: str = "",
    limits: Limits | None = None,
    isolate: bool = True,
    private: Path | None = None,
    hidden: Iterable[Path] = (),
) -> SubmissionResult:
    """Grade one submission; the process that forks students' code is kept for the next one.

    Args:
        answers: what ``merge`` made of the submission.
        seed: of the hidden inputs; the same seed gives the same grade.
        student: name, for the result.
        path: of the submission, for the result.
        limits: on time and memory of a student's code.
        isolate: run it in the sandbox.
        private: folder with an instructor's own checks.
        hidden: folders that a student's code may not read.

    Raises:
        sandbox.Unavailable: isolation is asked for, and this machine has none.
        ValueError: the private folder has a file that cannot be used.
    """
    kernels = any(_is_kernel(p.id) for p in answers.programs)
    hidden = tuple(hidden)
    key = (limits, isolate, private, hidden, kernels)
    if key not in _GRADERS:
        if not _GRADERS:
            atexit.register(_close_all)
        _GRADERS[key] = Grader(
            limits=limits, isolate=isolate, private=private, hidden=hidden, kernels=kernels
        )
    return _GRADERS[key].submission(answers, seed=seed, student=student, path=path)


def _is_kernel(id: str) -> bool:
    try:
        return get(id).kernel
    except Exception:
        return False


def _close_all() -> None:
    for grader in _GRADERS.values():
        grader.close()
    _GRADERS.clear()
