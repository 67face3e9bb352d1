"""Grades in the form that a learning platform takes in, with its own roster's names and numbers.

A roster is what the platform itself gives out: Canvas's exported gradebook, Moodle's grading
worksheet, Gradescope's roster. Its identifying columns come back as they were; an answer that
nobody has decided yet is an empty cell, which changes nothing there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from minids3.grade.files import write
from minids3.grade.records import SubmissionResult
from minids3.grade.reports.roster import Match, Person, Roster, id_column, match
from minids3.grade.tables import csv_text, safe

__all__ = ["FORMATS", "Export", "Missing", "export", "whole"]

_CANVAS = ("Student", "ID", "SIS User ID", "SIS Login ID", "Section")
_MOODLE = ("Identifier", "Full name", "Email address", "Status", "Grade", "Maximum grade",
           "Feedback comments")  # fmt: skip


def whole(results: Iterable[SubmissionResult]) -> float:
    """Return the points of all exercises, whoever is excused from some."""
    worth: dict[str, float] = {}
    for e in (e for r in results for e in r.exercises):
        worth[e.id] = max(worth.get(e.id, 0.0), e.max_points)
    return round(sum(worth.values()), 2)


class Missing(list[str]):
    """Students that the roster lacks; what else to say of it stands beside."""

    unsure: list[str]  # who fits several people, a sentence each
    notes: list[str]  # what was not checked, or not written


@dataclass
class Export:
    """What goes into the file."""

    results: Sequence[SubmissionResult]
    title: str  # of the assignment
    out_of: float | None = None  # another number of points, to which grades are scaled
    roster: Roster | None = None
    matched: Match = field(default_factory=Match)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Find out who is who."""
        if self.roster is not None:
            self.matched = match(self.roster.kind, self.roster.people, self.results)

    @property
    def ids(self) -> list[str]:
        """The exercises that are in any result, in order."""
        return list(dict.fromkeys(e.id for r in self.results for e in r.exercises))

    @property
    def most(self) -> float:
        """The points that can be had."""
        return self.out_of or whole(self.results)

    def grade(self, r: SubmissionResult | None) -> str:
        """Return a grade as a cell: empty if it is undecided, or if nothing was handed in.

        Who is excused from some exercises has the same share of the points as of the others.
        """
        if r is None or r.undecided or (not r.path and not r.decided):
            return ""
        if r.excused:
            return "EX"
        partly = any(e.status == "excused" for e in r.exercises)
        scale = self.most / r.max_points if (self.out_of or partly) and r.max_points else 1.0
        return f"{round(r.points * scale, 2):g}"

    def rows(self) -> list[tuple[Person, SubmissionResult | None, bool]]:
        """Return the roster's people, each with the result, and whether a human has to find it."""
        assert self.roster is not None
        m = self.matched
        people = enumerate(self.roster.people)
        return [(p, m.found.get(k), k in m.doubtful) for k, p in people]


def _canvas(e: Export) -> list[list[str]]:
    header = [*_CANVAS, e.title]
    rows = [["    Points Possible", "", "", "", "", f"{e.most:g}"]]
    if e.roster is None:
        return [header, *rows, *([safe(r.student), r.id, "", "", "", e.grade(r)]
                                 for r in e.results)]  # fmt: skip
    for person, result, _ in e.rows():
        kept = [person.row.get(c, "") for c in _CANVAS]
        rows.append([safe(kept[0]), *kept[1:4], safe(kept[4]), e.grade(result)])
    return [header, *rows]


def _moodle(e: Export) -> list[list[str]]:
    if e.roster is None:
        return [list(_MOODLE), *([f"Participant {r.id}" if r.id else "", safe(r.student), "", "",
                                  _number(e, r), f"{e.most:g}", safe(_told(r))]
                                 for r in e.results)]  # fmt: skip
    columns, table = e.roster.columns, e.roster.table
    assert columns is not None
    if not columns.maximum:
        e.notes.append(f"{table.path} names no maximum grade: see that it is {e.most:g} in Moodle")
    if not columns.feedback and any(_told(r) for r in e.results):
        e.notes.append(f"{table.path} has no column for comments: they are not in the export")
    rows = []
    for person, result, _ in e.rows():
        text = _number(e, result)
        limit = person.row.get(columns.maximum, "").replace(",", ".")
        if text and re.fullmatch(r"[0-9]+(\.[0-9]*)?", limit) and float(limit) != e.most:
            raise ValueError(f"{person.where}: Moodle's maximum grade is {float(limit):g}, and "
                             f"here it is {e.most:g}: add --out-of {float(limit):g}")  # fmt: skip
        before = "" if result is not None and result.excused else person.row[columns.grade]
        row = {**person.row, columns.grade: text or before}
        if columns.feedback and result is not None and _told(result):
            row[columns.feedback] = _told(result)
        rows.append([row[table.header[0]], *(safe(row[c]) for c in table.header[1:])])
    return [table.header, *rows]


def _number(e: Export, r: SubmissionResult | None) -> str:
    """Return a grade for Moodle, which has no word for somebody who is excused."""
    text = e.grade(r)
    return "" if text == "EX" else text


def _told(r: SubmissionResult) -> str:
    """Return the comment for Moodle, where only that can say that somebody is excused."""
    said = _comment(r)
    return f"Excused. {said}".strip() if r.excused else said


def _gradescope(e: Export) -> list[list[str]]:
    columns = ["First Name", "Last Name", "SID", "Email"]
    header = [*columns, "Total Score", "Max Points", "Status", *e.ids]

    def row(kept: list[str], r: SubmissionResult | None, doubtful: bool = False) -> list[str]:
        status = "Ungraded" if doubtful else "Missing"
        if r is not None and (r.path or r.decided):
            status = "Excused" if r.excused else "Graded" if e.grade(r) else "Ungraded"
        return [*kept, e.grade(r), f"{e.most:g}", status, *_cells(r, e.ids)]

    if e.roster is None:
        names = [(r, safe(r.student).rpartition(" ")) for r in e.results]
        return [header, *(row([n[0], n[2], r.id, ""], r) for r, n in names)]
    rows = []
    for person, result, doubtful in e.rows():
        kept = [safe(person.row.get(c, "")) for c in columns]
        if not kept[0] and person.row.get("Name"):
            kept[0], _, kept[1] = safe(person.row["Name"]).rpartition(" ")
        rows.append(row(kept, result, doubtful))
    return [header, *rows]


def _plain(e: Export) -> list[list[str]]:
    header = ["id", "student", *e.ids, "total", "max", "late", "needs a human", "comment"]

    def row(id: str, name: str, r: SubmissionResult | None) -> list[str]:
        if r is None:
            return [id, safe(name), *_cells(r, e.ids), "", f"{e.most:g}", "", "", ""]
        waits = safe("; ".join(r.needs_human))
        return [id, safe(name), *_cells(r, e.ids), e.grade(r), f"{e.most:g}", r.late, waits,
                safe(_comment(r))]  # fmt: skip

    if e.roster is None:
        return [header, *(row(r.id, r.student, r) for r in e.results)]
    column = id_column(e.roster.table)
    return [header, *(row(p.row.get(column, ""), p.row["student"], r) for p, r, _ in e.rows())]


def _cells(r: SubmissionResult | None, ids: Sequence[str]) -> list[str]:
    by_id = {e.id: e for e in r.exercises} if r else {}
    cells = []
    for e in map(by_id.get, ids):
        undecided = e is None or e.needs_human
        cells.append("" if undecided else "EX" if e.status == "excused" else f"{e.points:g}")
    return cells


def _comment(r: SubmissionResult) -> str:
    parts = [r.comment, *(f"{e.title}: {e.comment}" for e in r.exercises if e.comment)]
    return " ".join(p for p in parts if p)


FORMATS: dict[str, Callable[[Export], list[list[str]]]] = {
    "canvas": _canvas,
    "moodle": _moodle,
    "gradescope": _gradescope,
    "csv": _plain,
}


def export(
    kind: str,
    place: Path,
    results: Sequence[SubmissionResult],
    title: str,
    roster: Roster | Path | None = None,
    out_of: float | None = None,
) -> Missing:
    """Write ``place`` in the form that ``kind`` names; return the students whom the roster lacks.

    Raises:
        ValueError: the roster is not that platform's, or its maximum is not the grades'.
    """
    if isinstance(roster, Path):
        roster = Roster.read(kind, roster)
    made = Export(results, title, out_of, roster)
    rows = FORMATS[kind](made)
    # With its mark, so that a spreadsheet knows that it is UTF-8.
    write(place, b"\xef\xbb\xbf" + csv_text(rows).encode("utf-8", "replace"))
    missing = Missing(r.student for r in made.matched.missing if r.path or r.decided)
    missing.unsure, missing.notes = made.matched.unsure, made.notes
    return missing
