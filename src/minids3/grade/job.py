"""One of the processes that grade: submissions in and grades out, as lines of JSON.

The command starts a few of these (``pool``). A process that dies or hangs takes only the submission
it was working on along, and that one is reported as the grader's error.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

from minids3.grade.records import ExerciseResult, SubmissionResult
from minids3.grade.submissions.pristine import Pristine
from minids3.grade.submissions.reading import load

__all__ = ["failed", "grade_one", "main"]


@functools.lru_cache(maxsize=4)
def _pristine(path: str) -> Pristine:
    return Pristine.read(Path(path))


def grade_one(task: dict[str, Any]) -> SubmissionResult:
    """Grade the submission that ``task`` describes (see ``gradebook``)."""
    from minids3.grade.judging.grading import grade_submission
    from minids3.grade.submissions.merge import merge

    pristine = _pristine(task["notebook"])
    answers = merge(pristine, load(Path(task["path"])))
    hidden = tuple(Path(p) for p in task["hidden"])
    result = grade_submission(
        answers,
        seed=task["seed"],
        student=task["student"],
        path=task["path"],
        isolate=task["isolate"],
        private=Path(task["private"]) if task["private"] else None,
        hidden=hidden,
    )
    if task["nbval"]:
        from minids3.grade.judging.nbval_run import run_public

        result.nbval = run_public(answers.public, isolate=task["isolate"], hidden=hidden)
    return result


def failed(task: dict[str, Any], message: str) -> SubmissionResult:
    """Return the grade of a submission that the grader could not grade: an error, not a zero."""
    pristine = _pristine(task["notebook"])
    points = {c.exercise: c.points for c in pristine.cells if c.kind == "check"}
    made = [
        ExerciseResult(id, id, 0, points[id], "grader error", notes=[message])
        for id in pristine.ids
    ]
    return SubmissionResult(
        task["student"], pristine.name, task["path"], made, seed=task["seed"], error=message
    ).total()


def main() -> None:
    """Serve until the input ends."""
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is not an answer
    warnings.filterwarnings("ignore", category=RuntimeWarning)  # known mistakes divide by zero
    for line in sys.stdin:
        task = json.loads(line)
        try:
            result = grade_one(task)
        except KeyboardInterrupt:
            return
        except BaseException as error:  # also what is no Exception on purpose (GraderFault)
            traceback.print_exc()
            result = failed(task, f"{type(error).__name__}: {error!s:.300}")
        out.write(json.dumps(result.to_dict()) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
