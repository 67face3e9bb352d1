"""Finding the submissions: one notebook per student, however the folder is laid out.

A learning platform hands out a folder per student (nested as deep as it likes) or one flat folder
of files named after students. Files are renamed, downloaded twice and edited elsewhere, so a
notebook is known by the exercises in it; its name only decides between equals.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from minids3.grade.submissions.reading import Unreadable, cells_of, load

__all__ = ["Deadlines", "Submission", "collect", "exercise_ids", "find_exercises"]

_IGNORED = {".ipynb_checkpoints", "__pycache__", "__MACOSX", ".git", ".venv", "node_modules"}
# What downloads and copies add to a name. Numbers stay: they may be all that tells two students
# apart.
_COPY = re.compile(r"([ _-]*(\(\d+\)|-copy\d*|- copy|- kopie))+$", re.IGNORECASE)
_MOODLE = re.compile(r"_\d+_assignsubmission_\w+$")
_MARKER = re.compile(r"^[ \t]*#[ \t]*EXERCISE[ \t:]+([a-z0-9-]+)[ \t]*$", re.MULTILINE | re.I)


@dataclass
class Submission:
    """One student's notebook; ``path`` is None where there is none that can be graded."""

    student: str
    path: Path | None
    problems: list[str] = field(default_factory=list)  # told to the student
    remarks: list[str] = field(default_factory=list)  # for the instructor alone
    unreadable: bool = False  # there is something, and a human has to look at it


def find_exercises(source: str, ids: tuple[str, ...] = (), grade_id: str = "") -> list[str]:
    """Return the ids of exercises that a cell says it answers, the surest first."""
    found = [grade_id] if grade_id else []
    found += [i.removeprefix("answer-") for i in ids if i.startswith("answer-")]
    found += [m.lower() for m in _MARKER.findall(source)]
    return list(dict.fromkeys(found))


def exercise_ids(path: Path) -> list[str]:
    """Return the ids of the exercises in the notebook at ``path``, by any of their marks.

    Raises:
        Unreadable: it is no notebook.
    """
    found: list[str] = []
    for cell in cells_of(load(path)):
        if cell.kind == "code" and not cell.grade_id.endswith("-check"):
            found += find_exercises(cell.source, cell.ids, cell.grade_id)
    return list(dict.fromkeys(found))


def _files(folder: Path) -> list[Path]:
    found = []
    for place, folders, names in os.walk(folder, followlinks=False):
        folders[:] = sorted(f for f in folders if f not in _IGNORED)
        found += [Path(place) / n for n in sorted(names) if n.lower().endswith(".ipynb")]
    return found


def _student_of_file(path: Path, notebook: str) -> str:
    """Return the student's name in a flat folder: the file's name without the notebook's."""
    stem = path.name[: -len(".ipynb")]
    number, _, words = notebook.partition("_")
    loose = r"[ _-]*".join([number, *words.split("_")])
    stem = _COPY.sub("", stem)
    plain = re.sub(rf"[ _-]*{loose}(-\d\d?$)?[ _-]*", "_", stem, flags=re.IGNORECASE)
    return plain.strip(" _-.") or stem


def collect(folder: Path, notebook: str, wanted: list[str]) -> list[Submission]:
    """Return one submission per student in ``folder``, in the order of their names.

    Args:
        folder: of the submissions; a folder in it is a student, a file in it as well.
        notebook: ``"NN_name"``.
        wanted: the ids of its exercises.

    Raises:
        FileNotFoundError: there is no such folder, or nothing in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder of submissions")
    students: dict[str, list[Path]] = {}
    for entry in sorted(folder.iterdir()):
        if entry.is_symlink() or not entry.is_dir() or entry.name in _IGNORED:
            continue
        if not entry.name.startswith("."):
            students[_MOODLE.sub("", entry.name)] = []
    for path in _files(folder):
        inside = path.relative_to(folder).parts
        one = len(inside) == 1
        student = _student_of_file(path, notebook) if one else _MOODLE.sub("", inside[0])
        students.setdefault(student, []).append(path)
    if not students:
        raise FileNotFoundError(f"there are no notebooks in {folder}")
    found = [_choose(s, students[s], notebook, wanted) for s in sorted(students, key=str.casefold)]
    _name_twins(found)
    return found


def _choose(student: str, paths: list[Path], notebook: str, wanted: list[str]) -> Submission:
    """Pick the notebook that answers most of ``wanted``; of equals the right name, the newest."""
    ranked, problems = [], []
    for path in paths:
        try:
            ids = set(exercise_ids(path)) & set(wanted)
        except Unreadable as error:
            problems.append(f"{path.name} {error}")
            continue
        if ids:
            named = notebook.lower() in path.name.lower()
            answered = _answered(path)
            ranked.append((len(ids), answered, named, path.lstat().st_mtime, str(path), path))
    if ranked:
        ranked.sort(reverse=True)
        best = ranked[0][-1]
        others = [r[-1].name for r in ranked[1:]]
        if others:
            problems.append(f"took {best.name}, which answers most; not {', '.join(others)}")
        return Submission(student, best, problems)
    readable = len(paths) - len(problems)
    if problems:
        return Submission(student, None, problems, unreadable=True)
    if readable:
        names = ", ".join(p.name for p in paths[:5])
        problems.append(f"no exercise of {notebook} found in {names}")
        return Submission(student, None, problems, unreadable=True)
    return Submission(student, None, ["handed in no notebook"])


def _answered(path: Path) -> int:
    """Return how many marked cells were written in, that is, no longer raise the stub's error."""
    count = 0
    for cell in cells_of(load(path)):
        if cell.kind == "code" and find_exercises(cell.source, cell.ids, cell.grade_id):
            count += "raise NotImplementedError" not in cell.source
    return count


def _name_twins(submissions: list[Submission]) -> None:
    """Note who handed in the same file, byte for byte."""
    groups: dict[str, list[Submission]] = {}
    for s in submissions:
        if s.path is not None:
            groups.setdefault(hashlib.sha256(s.path.read_bytes()).hexdigest(), []).append(s)
    for group in groups.values():
        names = ", ".join(s.student for s in group)
        for s in group if len(group) > 1 else ():
            s.remarks.append(f"the same file, byte for byte: {names}")


# deadlines ----------------------------------------------------------------------------------------


@dataclass
class Deadlines:
    """When a submission is late: a date for all, and other ones for some."""

    default: datetime | None = None
    students: dict[str, datetime] = field(default_factory=dict)
    submitted: dict[str, datetime] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Deadlines:
        """Read a CSV file: ``student,deadline`` and, if known, ``submitted``; ``*`` is everybody.

        Times are ISO 8601 (``2026-10-01 23:59``), in this machine's time zone unless they say
        otherwise. A file that is one date alone is everybody's deadline.

        Raises:
            ValueError: a line that cannot be understood; says which.
        """
        text = path.read_text(encoding="utf-8-sig").strip()
        if "," not in text:
            return cls(default=_when(text, path, 1))
        made = cls()
        rows = list(csv.DictReader(io.StringIO(text), skipinitialspace=True))
        if not rows or "student" not in rows[0] or "deadline" not in rows[0]:
            raise ValueError(f"{path}: the first line must be 'student,deadline'")
        for number, row in enumerate(rows, 2):
            student = (row["student"] or "").strip()
            if row["deadline"]:
                when = _when(row["deadline"], path, number)
                if student == "*":
                    made.default = when
                else:
                    made.students[student] = when
            if row.get("submitted"):
                made.submitted[student] = _when(row["submitted"], path, number)
        return made

    def late(self, submission: Submission) -> str:
        """Return how late a submission is, in words; "" if it is not."""
        deadline = self.students.get(submission.student, self.default)
        if deadline is None or submission.path is None:
            return ""
        when = self.submitted.get(submission.student)
        if when is None:
            when = datetime.fromtimestamp(submission.path.stat().st_mtime).astimezone()
        minutes = int((when - deadline).total_seconds() // 60)
        if minutes < 1:
            return ""
        days, hours = divmod(minutes // 60, 24)
        parts = [(days, "day"), (hours, "hour"), (minutes % 60, "minute")]
        words = [f"{n} {unit}{'s' if n > 1 else ''}" for n, unit in parts if n]
        return "late by " + " ".join(words[:2])


def _when(text: str, path: Path, line: int) -> datetime:
    try:
        return datetime.fromisoformat(text.strip().replace("Z", "+00:00")).astimezone()
    except ValueError:
        raise ValueError(
            f"{path}, line {line}: {text.strip()!r} is no time; write 2026-10-01 23:59"
        ) from None
