"""The gradebook: which submissions are graded already, and the files that hold the grades.

``GRADES/results/`` has one JSON file per student, written as soon as a grade is there; the tables
and pages are made from those. A grade is kept as long as its key is the same: a fingerprint of the
submission, the notebook, the exercises with their checks, the grader, the seed and the options.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import minids3
from minids3.grade.files import write
from minids3.grade.records import ExerciseResult, SubmissionResult
from minids3.grade.reports.decisions import Decisions
from minids3.grade.submissions.collect import Collected, Submission
from minids3.grade.submissions.pristine import Pristine
from minids3.grade.tables import clean, csv_text, safe

__all__ = ["Gradebook", "Options", "choose_seed", "file_names"]


# Modules that decide no grade: a better page or a stricter sandbox is no reason to grade again.
_MATTER = ("submissions", "process", "judging")
_NO_MATTER = {"collect", "pool", "nbval_run", "setup", "progress"}


@dataclass(frozen=True)
class Options:
    """What decides a grade beside the submission itself."""

    seed: int
    isolate: bool = True
    private: Path | None = None
    hidden: tuple[Path, ...] = ()
    nbval: bool = False
    exercises: dict[str, float | None] = field(default_factory=dict)  # those that count, if not all
    limits: dict[str, float] = field(default_factory=dict)  # that differ from the usual ones


def file_names(students: Iterable[str]) -> dict[str, str]:
    """Return a file name for each student: readable, and no two alike on any file system."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for student in students:
        name = re.sub(r"[^\w.-]+", "_", student).strip("._")[:80] or "student"
        if name.casefold() in taken or name != student[:80]:
            digest = hashlib.sha256(student.encode("utf-8", "replace")).hexdigest()
            name = f"{name}-{digest[:8]}"
        taken.add(name.casefold())
        names[student] = name
    return names


def _digest(paths: Iterable[Path]) -> str:
    sum = hashlib.sha256()
    for path in sorted(paths):
        sum.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return sum.hexdigest()


def grader_digest(notebook: str) -> str:
    """Return a fingerprint of the notebook's exercises with their checks, and what grades them."""
    home = Path(minids3.__file__).parent
    files = [*(home / "course").glob("*.py")]
    files += [p for room in _MATTER for p in (home / "grade" / room).glob("*.py")]
    own = [
        p
        for place in (home / "course" / "exercises").glob(f"nb{notebook}*")
        for p in ([place] if place.is_file() else sorted(place.rglob("*.py")))
    ]
    return _digest([*(p for p in files if p.stem not in _NO_MATTER), *own])


def choose_seed(out: Path, given: int | None) -> int:
    """Return the seed: the one given, else that of the run in ``out``, else a fresh one."""
    place = out / "run.json"
    if given is None and place.exists():
        try:
            return int(json.loads(place.read_text(encoding="utf-8"))["seed"])
        except (ValueError, KeyError, TypeError):
            pass
    return secrets.randbelow(2**31) if given is None else given


@dataclass
class Gradebook:
    """Grades of one notebook, in the folder ``out``."""

    out: Path
    pristine: Pristine
    path: Path  # of the notebook
    options: Options
    results: dict[str, SubmissionResult] = field(default_factory=dict)
    _common: str = ""

    def __post_init__(self) -> None:
        """Fingerprint all that the submissions share."""
        private = self.options.private
        kept = _digest(private.rglob("*.py")) if private else ""
        parts = [self.pristine.digest, grader_digest(self.pristine.name), self.options.seed]
        o = self.options
        parts += [self.pristine.points, o.isolate, o.nbval, kept, o.limits]
        self._common = json.dumps(parts, sort_keys=True)

    # what is to do -----------------------------------------------------------------------------

    def key(self, submission: Submission) -> str:
        """Return the fingerprint under which a submission's grade is kept."""
        text = submission.path.read_bytes() if submission.path else b""
        return hashlib.sha256(self._common.encode() + b"\0" + text).hexdigest()

    def resume(
        self, submissions: list[Submission], students: Collection[str] = (), force: bool = False
    ) -> list[Submission]:
        """Take over the grades that still hold, and return what is left to grade.

        Where ``students`` are named, only theirs are left, and the others' grades stay as they are.
        ``force`` leaves what is graded already, too.
        """
        names = file_names(s.student for s in submissions)
        left = []
        for s in submissions:
            if s.path is None:
                self.results[s.student] = _nothing(s, self.pristine, self.options.seed)
                continue
            known = _read(self._place(names[s.student]))
            meant = not students or s.student in students
            # A fault of the grader's is tried again.
            holds = known and known.key == self.key(s) and not known.error and not _faulty(known)
            if known and (not meant or (holds and not force)):
                self.results[s.student] = known
            elif meant:
                left.append(s)
        return left

    def task(self, submission: Submission) -> dict[str, Any]:
        """Return what a grading process has to know, as plain data."""
        o = self.options
        return {
            "student": submission.student,
            "id": submission.id,
            "path": str(submission.path),
            "notebook": str(self.path),
            "seed": o.seed,
            "isolate": o.isolate,
            "private": str(o.private) if o.private else "",
            "hidden": [str(p) for p in o.hidden],
            "nbval": o.nbval,
            "exercises": o.exercises,
            "limits": o.limits,
        }

    # what is kept ------------------------------------------------------------------------------

    def _place(self, name: str) -> Path:
        return self.out / "results" / f"{name}.json"

    def keep(self, submission: Submission, result: SubmissionResult, name: str) -> None:
        """Note a grade and write it at once: an interruption costs only what is under way."""
        result.key = self.key(submission)
        self.results[submission.student] = result
        write(self._place(name), json.dumps(result.to_dict(), indent=1) + "\n")

    def finish(
        self, submissions: Collected, late: dict[str, str], decisions: Decisions
    ) -> list[SubmissionResult]:
        """Write grades.csv, grades.json and decisions.csv; return the results in order."""
        found = []
        for s in submissions:
            result = self.results.get(s.student)
            if result is None:
                continue
            result.late = late.get(s.student, "")
            result.problems = list(dict.fromkeys([*s.problems, *result.problems]))
            result.remarks = [*s.remarks, *_against_nbval(result)]
            result.id, result.look = s.id, list(s.look)
            result.platform = s.platform
            result.exercises = [e for e in result.exercises if e.id in self.pristine.ids]
            found.append(decisions.apply(result))
        decisions.write(found)
        write(self.out / "grades.csv", _table(found, self.pristine))
        write(
            self.out / "grades.json",
            json.dumps(
                {
                    "notebook": self.pristine.name,
                    "seed": self.options.seed,
                    "submissions": [r.to_dict() for r in found],
                    "not taken": [[e.place, e.reason] for e in submissions.left],
                },
                indent=1,
            )
            + "\n",
        )
        return found

    def begin(self) -> None:
        """Write what this run is, so that an interrupted one can go on with the same seed.

        Raises:
            ValueError: the folder holds grades of another notebook.
        """
        place = self.out / "run.json"
        if place.exists():
            before = json.loads(place.read_text(encoding="utf-8")).get("notebook")
            if before != self.pristine.name:
                raise ValueError(f"{self.out} holds grades of {before}; choose another folder")
        record = {"notebook": self.pristine.name, "seed": self.options.seed}
        write(place, json.dumps(record) + "\n")


def _against_nbval(result: SubmissionResult) -> list[str]:
    """Say where nbval's public story and the grade differ: a reason to read that answer."""
    said = {c.id.removeprefix("check-"): c.outcome for c in result.nbval}
    found = []
    for e in result.exercises:
        outcome = said.get(e.id)
        if outcome == "passed" and e.status in ("partial", "failed", "stub"):
            found.append(f"{e.id}: nbval's public check passed, graded {e.status}")
        elif outcome == "failed" and e.status == "passed":
            found.append(f"{e.id}: nbval's public check failed, graded passed")
    return found


def _read(path: Path) -> SubmissionResult | None:
    try:
        return SubmissionResult.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def _faulty(result: SubmissionResult) -> bool:
    return any(e.status == "grader error" for e in result.exercises)


def _nothing(s: Submission, pristine: Pristine, seed: int) -> SubmissionResult:
    """Return the grade of a student without a notebook that can be read."""
    status = "needs a human" if s.unreadable else "missing"
    points, titles = pristine.points, pristine.titles
    made = [
        ExerciseResult(id, titles.get(id, id), 0, points[id], status, notes=s.problems[:1])
        for id in pristine.ids
    ]
    return SubmissionResult(
        s.student, pristine.name, "", made, problems=list(s.problems), seed=seed
    ).total()


def _table(results: list[SubmissionResult], pristine: Pristine) -> str:
    header = ["student", *pristine.ids, "total", "max", "late", "needs a human", "problems"]
    rows = [[*header, "file", "id", "comment"]]
    for r in results:
        by_id = {e.id: e for e in r.exercises}
        cells = [_cell(by_id.get(id)) for id in pristine.ids]
        total = "" if r.undecided else "EX" if r.excused else f"{r.points:g}"
        told = (r.needs_human, [*r.problems, *r.remarks])
        comments = [r.comment, *(f"{e.id}: {e.comment}" for e in r.exercises if e.comment)]
        rows.append(
            [
                *(safe(r.student), *cells, total, f"{r.max_points:g}", r.late),
                *(safe("; ".join(t)) for t in told),
                *(safe(clean(Path(r.path).name)), r.id, safe(" ".join(filter(None, comments)))),
            ]
        )
    return csv_text(rows)


def _cell(e: ExerciseResult | None) -> str:
    """Return an exercise's points; what nobody has decided is no number, least of all 0."""
    if e is None or e.needs_human:
        return ""
    return "EX" if e.status == "excused" else f"{e.points:g}"
