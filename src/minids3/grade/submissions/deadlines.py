"""When a submission is late: one time for all, or a table of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, time
from pathlib import Path

from minids3.grade.submissions.collect import Submission
from minids3.grade.tables import meant, read_table, same_name, text_of

__all__ = ["Deadlines"]


@dataclass
class Deadlines:
    """When a submission is late: a date for all, and other ones for some."""

    default: datetime | None = None
    students: dict[str, datetime] = field(default_factory=dict)
    submitted: dict[str, datetime] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)  # of the students in the table
    path: Path | None = None

    @classmethod
    def read(cls, path: Path) -> Deadlines:
        """Read a CSV file: ``student,deadline`` and, if known, ``submitted``; ``*`` is everybody.

        Times are ISO 8601 (``2026-10-01 23:59``) or ``01.10.2026 23:59``, in this machine's time
        zone unless they say otherwise; a date without a time is the end of that day. A file that is
        one time alone is everybody's deadline. A student is named as in the grades, or by the
        platform's number.

        Raises:
            ValueError: a line that cannot be understood; says which.
        """
        text = text_of(path).strip()
        if len(text.splitlines()) == 1 and not any(c in text for c in ",;\t"):
            return cls(default=_when(text, path, 1))
        table = read_table(path, ("student", "deadline"))
        table.demand(("student", "deadline", "submitted"))
        made = cls(path=path)
        for line, row in table.rows:
            student = same_name(row["student"])
            if not student:
                raise table.error(line, "names no student ('*' is everybody)")
            if student in made.lines:
                raise table.error(line, f"{student!r} stands in line {made.lines[student]}, too")
            made.lines[student] = line
            if row["deadline"]:
                when = _when(row["deadline"], path, line)
                if student == "*":
                    made.default = when
                else:
                    made.students[student] = when
            if row.get("submitted"):
                if student == "*":
                    raise table.error(line, "'submitted' is one student's: name the student")
                made.submitted[student] = _when(row["submitted"], path, line, end=False)
        return made

    def unknown(self, submissions: Iterable[Submission]) -> list[str]:
        """Return the students of the table that handed nothing in.

        Raises:
            ValueError: one of them is most likely somebody who did, written another way; or a line
                fits two students, or two lines one.
        """
        there: dict[str, set[str]] = {}
        for s in submissions:
            for name in {same_name(s.student), s.id} - {""}:
                there.setdefault(name, set()).add(s.student)
        self._check(there)
        missing = [n for n in self.lines if n != "*" and n not in there]
        free = {n for n in there if n not in self.lines}
        for name in missing:
            like = meant(name, free)
            if like:
                raise ValueError(
                    f"{self.path}, line {self.lines[name]}: nobody is called {name!r}; "
                    f"is it {' or '.join(map(repr, like))}? Correct the table, or the extension "
                    "is lost"
                )
        return missing

    def _check(self, there: Mapping[str, set[str]]) -> None:
        """Refuse a line that fits two students, and two lines that say the same of one."""
        first: dict[tuple[str, int], str] = {}
        for name, line in self.lines.items():
            students = there.get(name, set())
            if len(students) > 1:
                several = ", ".join(sorted(students))
                raise ValueError(
                    f"{self.path}, line {line}: {name!r} fits {several}; write one of these"
                )
            for student in students:
                for kind, table in enumerate((self.students, self.submitted)):
                    before = first.setdefault((student, kind), name) if name in table else name
                    if before != name:
                        raise ValueError(
                            f"{self.path}, line {line}: {name!r} stands in line "
                            f"{self.lines[before]} as {before!r}, too; take one out"
                        )

    def late(self, submission: Submission) -> str:
        """Return how late a submission is, in words; "" if it is not."""
        names = [n for n in (same_name(submission.student), submission.id) if n]
        deadline = next((self.students[n] for n in names if n in self.students), self.default)
        if deadline is None or submission.path is None:
            return ""
        when = next((self.submitted[n] for n in names if n in self.submitted), None)
        if when is None:
            when = datetime.fromtimestamp(submission.path.stat().st_mtime).astimezone()
        minutes = int((when - deadline).total_seconds() // 60)
        if minutes < 1:
            return ""
        days, hours = divmod(minutes // 60, 24)
        parts = [(days, "day"), (hours, "hour"), (minutes % 60, "minute")]
        words = [f"{n} {unit}{'s' if n > 1 else ''}" for n, unit in parts if n]
        return "late by " + " ".join(words[:2])


_GERMAN = re.compile(r"(\d\d?)\.(\d\d?)\.(\d{4})(.*)", re.DOTALL)


def _when(text: str, path: Path, line: int, end: bool = True) -> datetime:
    text = text.strip()
    dotted = _GERMAN.fullmatch(text)
    if dotted:
        day, month, year, rest = dotted.groups()
        text = f"{year}-{month:0>2}-{day:0>2}{re.sub(r'^ +(?=[0-9]:)', ' 0', rest)}"
    try:
        when = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        slashes = re.match(r"\d+/\d+/\d+", text)  # whose first number may be a month or a day
        hint = " in a cell that is formatted as text" if slashes else ""
        raise ValueError(
            f"{path}, line {line}: {text!r} is no time; write 2026-10-01 23:59{hint}"
        ) from None
    if end and len(text) <= 10:  # a date alone: that day counts
        when = datetime.combine(when.date(), time(23, 59))
    return when.astimezone()
