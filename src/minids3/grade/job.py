"""One of the processes that grade: submissions in and grades out, as lines of JSON.

The command starts a few of these (``pool``). A process that dies or hangs takes only the submission
it was working on along, and that one is reported as the grader's error.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minids3.grade.records import ExerciseResult, SubmissionResult
from minids3.grade.submissions.pristine import Pristine
from minids3.grade.submissions.reading import Unreadable, load
from minids3.isolation.sandbox import Limits

__all__ = ["failed", "grade_one", "main"]


READING_SECONDS = 90  # for taking a notebook to pieces; an ordinary one needs a tenth of one
_MEMORY = 3 << 30  # bytes that a grading process may take beyond what it has after its imports


@functools.lru_cache(maxsize=4)
def _read(path: str) -> Pristine:
    return Pristine.read(Path(path))


def _pristine(task: dict[str, Any]) -> Pristine:
    chosen = task.get("exercises") or {}
    return _read(task["notebook"]).only(chosen) if chosen else _read(task["notebook"])


class _TooSlow(Exception):
    """A notebook that takes minutes to read."""


@contextlib.contextmanager
def _within(seconds: int) -> Iterator[None]:
    """Raise in the body if it takes longer, where the system has such a clock."""

    def late(*_: object) -> None:
        raise _TooSlow(f"reading its cells takes more than {seconds} s")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def grade_one(task: dict[str, Any]) -> SubmissionResult:
    """Grade the submission that ``task`` describes (see ``gradebook``)."""
    from minids3.grade.judging.grading import grade_submission
    from minids3.grade.submissions.merge import merge

    pristine = _pristine(task)
    try:
        with _within(READING_SECONDS):
            answers = merge(pristine, load(Path(task["path"])))
    except Exception as error:  # the file's fault, whatever it is: the course's own can be read
        reason = str(error) if isinstance(error, Unreadable | _TooSlow) else repr(error)[:300]
        return undecided(task, f"the notebook could not be taken to pieces: {reason}")
    hidden = tuple(Path(p) for p in task["hidden"])
    result = grade_submission(
        answers,
        seed=task["seed"],
        student=task["student"],
        path=task["path"],
        isolate=task["isolate"],
        private=Path(task["private"]) if task["private"] else None,
        hidden=hidden,
        limits=Limits(**task.get("limits", {})),
    )
    if task["nbval"]:
        from minids3.grade.judging.nbval_run import run_public

        result.nbval = run_public(answers.public, isolate=task["isolate"], hidden=hidden)
    return result


def failed(task: dict[str, Any], message: str) -> SubmissionResult:
    """Return the grade of a submission that the grader could not grade: an error, not a zero."""
    made = undecided(task, message, "grader error")
    made.error = message
    return made


def undecided(
    task: dict[str, Any], message: str, status: str = "needs a human"
) -> SubmissionResult:
    """Return the grade of a submission of which nothing could be graded, for a reason."""
    pristine = _pristine(task)
    titles = pristine.titles
    made = [
        ExerciseResult(id, titles[id], 0, pristine.points[id], status, notes=[message])
        for id in pristine.ids
    ]
    return SubmissionResult(
        task["student"], pristine.name, task["path"], made, seed=task["seed"]
    ).total()


def scrub(value: Any) -> Any:
    """Return plain data without half characters, which no file and no screen can hold."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, list):
        return [scrub(v) for v in value]
    return {k: scrub(v) for k, v in value.items()} if isinstance(value, dict) else value


def _limit_memory() -> None:
    """Give this process a limit of its own: what a student's process sends may swell here."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            now = int(file.read().split()[0]) * os.sysconf("SC_PAGESIZE")
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (now + _MEMORY, hard))


def _die_with_parent() -> None:
    with contextlib.suppress(OSError, AttributeError):
        if sys.platform.startswith("linux"):
            import ctypes

            ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG


def main() -> None:
    """Serve until the input ends."""
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton
    _die_with_parent()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is not an answer
    warnings.filterwarnings("ignore", category=RuntimeWarning)  # known mistakes divide by zero
    limited = False
    for line in sys.stdin:
        task = json.loads(line)
        if not limited and task.get("isolate"):
            with contextlib.suppress(Exception):  # it is told with the first submission
                import minids3.grade.judging.grading

                assert minids3.grade.judging.grading
                _limit_memory()
            limited = True
        try:
            result = grade_one(task)
        except KeyboardInterrupt:
            return
        except BaseException as error:  # also what is no Exception on purpose (GraderFault)
            traceback.print_exc()
            result = failed(task, f"{type(error).__name__}: {error!s:.300}")
        result.id = task.get("id", "")
        out.write(json.dumps(scrub(result.to_dict())) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
