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
from minids3.grade.judging.kernels import strangers
from minids3.grade.judging.oracle import Remote
from minids3.grade.judging.prepare import given_before, load_of
from minids3.grade.judging.scoring import Run, absent, fault, judge, score, told, untouched
from minids3.grade.private import PrivateCheck, load_private
from minids3.grade.process.zygote import GraderFault, Zygote
from minids3.grade.records import (
    Answers,
    ExerciseResult,
    Piece,
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
        made: dict[str, ExerciseResult] = {}
        for program in answers.programs:
            if program.status == "answered":
                _rehearse(program, seed)
        for program in answers.programs:
            tried = [p for p in (program, program.wider) if p is not None]
            for attempt in tried:
                own = _with_own_earlier(attempt, answers, made)
                graded = self.exercise(own, seed, before.get(program.id, ()))
                first = made.setdefault(program.id, graded)
                if graded.points > first.points:
                    made[program.id] = graded
                if first.status not in ("partial", "failed"):
                    break
        result = SubmissionResult(
            student=student,
            notebook=answers.notebook,
            path=path,
            exercises=list(made.values()),
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
            if program.points >= 0:  # the teacher's notebook says so
                exercise = replace(exercise, points=program.points)
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
        if program.human:  # not a zero: it may be right, and cannot run here
            result.status = "needs a human"
            result.notes.insert(0, program.human)
            return result
        if program.status in ("stub", "missing"):
            return untouched(exercise, program, result)
        for attempt in (1, 2):
            try:
                fresh = replace(result, notes=list(result.notes))
                return self._graded(exercise, program, fresh, before)
            except GraderFault as error:
                if attempt == 2:
                    result.notes.insert(0, fault(error))
                    return result
                self._restart()
            except Exception as error:
                if not self._works(exercise, result.seeds):
                    result.notes.insert(0, fault(error))
                    return result
                result.status = "needs a human"  # the check holds: it is the answer's values
                what = f"{type(error).__name__}: {error!s:.200}"
                result.notes.insert(0, f"what it returned could not be judged ({what})")
                return result
        return result

    @staticmethod
    def _works(exercise: Exercise, seeds: Iterable[int]) -> bool:
        """Whether the exercise's check accepts its own solution, so that no fault is ours."""
        try:
            return all(run_check(exercise, exercise.solution, seed).ok for seed in seeds)
        except Exception:
            return False

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
                report = run_check(exercise, remote, number, confirm=False)
                runs.append(Run(number, number != 0, report))
                if report.stub and not report.passed:
                    break  # it says itself that it is not written
            extra = []
            for check in self.private.get(exercise.id, []):
                remote.seed(0)
                extra.append(
                    (check, run_check(check.of(exercise), remote, result.seeds[-1], confirm=False))
                )
        finally:
            remote.close()
        score(exercise, result, runs, extra)
        for message in told(remote, program):
            result.notes.append(message)
        if result.status != "passed" and (why := absent(remote, own)):
            result.status, result.points = "needs a human", 0.0  # it may be right elsewhere
            result.notes.insert(0, why)
            for item in result.items:
                item.points = 0.0
            return result
        foreign = strangers(program.name, own, given) if exercise.kernel else []
        judge(exercise, result, remote, shortcuts.named(own, given, rules), own, foreign)
        return result

    def rules(self, exercise: Exercise, given: Iterable[str]) -> dict[str, str]:
        """Return what ``exercise`` forbids to call, after these cells of the notebook's."""
        key = (exercise.id, "\n".join(given))
        if key not in self._rules:
            self._rules[key] = shortcuts.forbidden(exercise, given)
        return self._rules[key]


def _with_own_earlier(
    program: Program, answers: Answers, made: dict[str, ExerciseResult]
) -> Program:
    """Return the program with the student's own earlier functions where they must be that.

    An earlier exercise's function comes from the library, so that an early mistake costs nothing
    later. Where the worked solution does without it, though, and the student has not solved it,
    the library's would do the student's work.
    """
    try:
        needed = shortcuts.uses(get(program.id))
        theirs = [i for i in program.earlier if get(i).name not in needed]
    except (KeyError, ImportError):
        return program
    theirs = [i for i in theirs if i in made and made[i].status != "passed"]
    pieces = [
        Piece("helper", p.code, p.cell)
        for i in theirs
        for p in answers[i].pieces
        if p.kind != "given"
    ]
    earlier = tuple(i for i in program.earlier if i not in theirs)
    return replace(program, pieces=(*pieces, *program.pieces), earlier=earlier)


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
