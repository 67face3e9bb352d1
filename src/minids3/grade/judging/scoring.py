"""From checklists to points: what counts, what is said, and what does not count."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from minids3.course.baselines import earning, most
from minids3.course.registry import Exercise
from minids3.course.run import Report, solution_labels
from minids3.grade.judging import shortcuts
from minids3.grade.judging.oracle import Remote
from minids3.grade.private import PrivateCheck
from minids3.grade.records import LOOK, ExerciseResult, ItemResult, Program
from minids3.grade.submissions.slices import packages

__all__ = ["Run", "absent", "fault", "judge", "score", "told", "untouched"]


@dataclass(frozen=True)
class Run:
    """One run of a check on the student's function."""

    seed: int
    hidden: bool
    report: Report


def untouched(exercise: Exercise, program: Program, result: ExerciseResult) -> ExerciseResult:
    """Return the result of a cell that is gone or as it came."""
    said = {
        "stub": "the cell is as it came: nothing was written",
        "missing": "there is no cell for this exercise: it was deleted or renamed",
    }[program.status]
    labels = solution_labels(exercise, 0)
    share = exercise.points / len(labels)
    result.items = [ItemResult(label, "not reached", "", 0.0, share) for label in labels]
    result.items[0] = ItemResult(labels[0], "no", said, 0.0, share)
    result.status = program.status
    return result


# points -------------------------------------------------------------------------------------------


def _earned(
    exercise: Exercise, passed: set[int], extra: list[tuple[PrivateCheck, Report]]
) -> set[int]:
    """Return which items that passed earn their points (``baselines``), private checks' too."""
    begin = len(solution_labels(exercise, 0))
    found = earning(exercise, passed)
    for check, report in extra:
        own = {n - begin for n in passed if begin <= n < begin + len(report.items)}
        found |= {n + begin for n in earning(check.of(exercise), own)}
        begin += len(report.items)
    return found


def score(
    exercise: Exercise,
    result: ExerciseResult,
    runs: list[Run],
    extra: list[tuple[PrivateCheck, Report]],
) -> None:
    """Put items, points, status and diagnosis into ``result``."""
    first = runs[0].report
    whole = len(first.items) + sum(len(r.items) for _, r in extra)
    share = exercise.points / whole
    for n, item in enumerate(first.items):
        status, reason = item.status, item.reason
        for run in runs[1:]:
            other = run.report.items[n] if n < len(run.report.items) else None
            if status == "ok" and (other is None or other.status != "ok"):
                status = other.status if other else "not reached"
                reason = f"with other inputs: {other.reason}" if other and other.reason else (
                    "not with other inputs")  # fmt: skip
        result.items.append(ItemResult(item.label, status, reason, 0.0, share))
    for check, report in extra:
        for item in report.items:
            label = f"{check.title}: {item.label}"
            result.items.append(ItemResult(label, item.status, item.reason, 0.0, share))
    passed = {n for n, item in enumerate(result.items) if item.status == "ok"}
    whole_mark = len(passed) == len(result.items)
    cap = float(exercise.points)
    if not whole_mark:
        cap *= most(exercise, {n for n in passed if n < len(first.items)})
        earned = _earned(exercise, passed, extra)
        if passed and not earned:
            result.notes.append("what passes here would pass for a function that computes nothing: "
                                "no points for that")  # fmt: skip
        passed = earned
    each = min(share, cap / len(passed)) if passed else share
    for n in passed:
        result.items[n].points = each
    result.points = float(exercise.points) if whole_mark else round(each * len(passed), 2)
    failed = [r.report for r in runs if not r.report.ok]
    if len({r.mutant for r in failed}) == 1:  # the same mistake with all inputs that show one
        result.diagnosis, result.mutant = failed[0].diagnosis, failed[0].mutant
    stub = first.stub and first.passed == 0
    result.status = (
        "passed" if whole_mark else "stub" if stub else "partial" if passed else "failed"
    )


def told(remote: Remote, program: Program) -> list[str]:
    """Say what happened in the child beside the check's own items."""
    lines = [f"your process: {reason}" for reason in dict.fromkeys(remote.ended)]
    first = len(remote.pieces) - len(program.pieces)
    for said in remote.failed:
        number = said.get("piece")
        if not isinstance(number, int) or not first <= number < len(remote.pieces):
            continue
        piece = program.pieces[number - first]
        if piece.kind != "given":
            what = f"{str(said.get('raised'))[:60]}: {str(said.get('text'))[:160]}"
            lines.append(f"{piece.cell or piece.kind} raised {what}")
    return lines


def absent(remote: Remote, own: Iterable[str]) -> str:
    """Say which packages an answer failed for that are not installed here, or return ""."""
    raised = remote.raised | {str(f.get("raised")) for f in remote.failed}
    if "ModuleNotFoundError" not in raised:
        return ""
    lost = sorted(n for n in packages(own) - set(sys.stdlib_module_names) if _unknown(n))
    return f"imports {', '.join(lost[:5])}, not installed where it was graded" if lost else ""


def _unknown(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is None
    except (ImportError, ValueError):
        return True


def judge(
    exercise: Exercise,
    result: ExerciseResult,
    remote: Remote,
    named: list[str],
    own: list[str],
    foreign: list[str],
) -> None:
    """Take the points of an answer that calls what it should have written.

    ``foreign`` is what a kernel uses that is not Triton's.
    """
    called = [n for n in remote.tripped if n not in named]
    reasons = [f"calls {n}, which this exercise asks you to write" for n in [*named, *called]]
    if foreign and result.points:
        reasons.append(f"a Triton kernel is asked for, and this one uses {', '.join(foreign[:5])}")
    if reasons:
        result.notes[:0] = reasons
        result.status, result.points = "forbidden", 0.0
        for item in result.items:
            item.points = 0.0
        return
    odd = shortcuts.unusual(own)
    if odd:
        result.notes.append(f"{LOOK}the code uses {', '.join(odd)}")


def fault(error: BaseException) -> str:
    """Say what of ours went wrong, and where."""
    last = inspect.getinnerframes(error.__traceback__)[-1] if error.__traceback__ else None
    where = f" ({Path(last.filename).name}, line {last.lineno})" if last else ""
    return f"GRADER ERROR, not the student's: {type(error).__name__}: {error!s:.300}{where}"
