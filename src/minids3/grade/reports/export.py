"""Grades in the form that a learning platform takes in, with its own roster's names and numbers.

A roster is what the platform itself gives out: Canvas's exported gradebook, Moodle's grading
worksheet, Gradescope's roster. Its identifying columns come back as they were; an answer that
nobody has decided yet is an empty cell, which changes nothing there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from minids3.grade.files import write
from minids3.grade.records import SubmissionResult
from minids3.grade.tables import Table, csv_text, read_table, safe, same_name

__all__ = ["FORMATS", "Export", "export"]

_CANVAS = ("Student", "ID", "SIS User ID", "SIS Login ID", "Section")
_MOODLE = ("Identifier", "Full name", "Email address", "Status", "Grade", "Maximum grade",
           "Feedback comments")  # fmt: skip
_GRADES = {"grade", "bewertung", "note", "calificación", "valutazione", "cijfer", "nota"}
_MAXIMUM = {"maximum grade", "bestwertung", "note maximale", "calificación máxima"}
_FEEDBACK = {"feedback comments", "feedback als kommentar", "commentaires", "comentarios"}


@dataclass
class Export:
    """What goes into the file."""

    results: Sequence[SubmissionResult]
    title: str  # of the assignment
    out_of: float | None = None  # another number of points, to which grades are scaled
    unmatched: list[str] = field(default_factory=list)  # students that the roster does not have
    used: set[str] = field(default_factory=set)

    @property
    def most(self) -> float:
        """The points that can be had."""
        return self.out_of or max((r.max_points for r in self.results), default=0.0)

    def grade(self, r: SubmissionResult | None) -> str:
        """Return a grade as a cell: empty if it is undecided, or if nothing was handed in."""
        if r is None or r.undecided or (not r.path and not r.decided):
            return ""
        if r.excused:
            return "EX"
        scale = self.out_of / r.max_points if self.out_of and r.max_points else 1.0
        return f"{round(r.points * scale, 2):g}"

    def find(self, id: str, *names: str) -> SubmissionResult | None:
        """Return the result of a row of the roster: by its number, else by a name of one student.

        Raises:
            ValueError: several students fit.
        """
        own = [r for r in self.results if r.id and r.id == id]
        if not own:
            wanted = {_letters(n) for n in names if n} | {_letters(_turned(n)) for n in names if n}
            own = [r for r in self.results if _letters(r.student) in wanted - {""}]
        if len(own) > 1:
            raise ValueError(f"several submissions fit {names[0]!r}: {own[0].student} and others")
        for r in own:
            if r.student in self.used:
                raise ValueError(f"{r.student} fits two rows of the roster, {names[0]!r} is one")
            self.used.add(r.student)
        return own[0] if own else None


def _letters(name: str) -> str:
    return "".join(c for c in same_name(name).casefold() if c.isalnum())


def _turned(name: str) -> str:
    """Return "First Last" of "Last, First", and the reverse."""
    last, comma, first = name.partition(",")
    return f"{first} {last}" if comma else " ".join(reversed(name.rsplit(" ", 1)))


def _canvas(e: Export, roster: Table | None) -> list[list[str]]:
    header = [*_CANVAS, e.title]
    rows = [["    Points Possible", "", "", "", "", f"{e.most:g}"]]
    if roster is None:
        return [header, *rows, *([safe(r.student), r.id, "", "", "", e.grade(r)]
                                 for r in e.results)]  # fmt: skip
    for _, row in roster.rows:
        name = row.get("Student", "")
        if "points possible" in name.casefold() or name.strip() == "Student, Test":
            continue
        result = e.find(row.get("ID", ""), name)
        kept = [row.get(c, "") for c in _CANVAS]
        rows.append([safe(kept[0]), *kept[1:4], safe(kept[4]), e.grade(result)])
    return [header, *rows]


def _column(table: Table, names: set[str]) -> str:
    return next((c for c in table.header if c.casefold() in names), "")


def _moodle(e: Export, roster: Table | None) -> list[list[str]]:
    if roster is None:
        return [list(_MOODLE), *([f"Participant {r.id}" if r.id else "", safe(r.student), "", "",
                                  e.grade(r), f"{e.most:g}", safe(_comment(r))]
                                 for r in e.results)]  # fmt: skip
    grade, most = _column(roster, _GRADES), _column(roster, _MAXIMUM)
    feedback = _column(roster, _FEEDBACK)
    if not grade:
        raise ValueError(f"{roster.path}: there is no column for the grade; it has "
                         f"{', '.join(roster.header)}")  # fmt: skip
    rows = []
    for line, row in roster.rows:
        numbers = re.findall(r"\d+", row[roster.header[0]])
        names = [row.get(c, "") for c in roster.header[1:3]]
        result = e.find(numbers[-1] if numbers else "", *names)
        text = e.grade(result)
        limit = row.get(most, "").replace(",", ".")
        if text not in ("", "EX") and re.fullmatch(r"[\d.]+", limit) and float(limit) != e.most:
            raise roster.error(line, f"Moodle's maximum grade is {float(limit):g}, and here it is "
                                     f"{e.most:g}: add --out-of {float(limit):g}")  # fmt: skip
        row = {**row, grade: "" if text == "EX" else text or row.get(grade, "")}
        if feedback and result is not None and _comment(result):
            row[feedback] = _comment(result)
        rows.append([row[roster.header[0]], *(safe(row[c]) for c in roster.header[1:])])
    return [roster.header, *rows]


def _gradescope(e: Export, roster: Table | None) -> list[list[str]]:
    ids = [x.id for x in e.results[0].exercises] if e.results else []
    columns = ["First Name", "Last Name", "SID", "Email"]
    header = [*columns, "Total Score", "Max Points", "Status", *ids]

    def row(kept: list[str], r: SubmissionResult | None) -> list[str]:
        status = "Missing" if r is None or not r.path else "Graded" if e.grade(r) else "Ungraded"
        return [*kept, e.grade(r), f"{e.most:g}", status, *(_cells(r) if r else [""] * len(ids))]

    if roster is None:
        names = [(r, safe(r.student).rpartition(" ")) for r in e.results]
        return [header, *(row([n[0], n[2], r.id, ""], r) for r, n in names)]
    rows = []
    for _, line in roster.rows:
        whole = line.get("Name", "") or f"{line.get('First Name', '')} {line.get('Last Name', '')}"
        result = e.find(line.get("SID", ""), whole.strip(), line.get("Email", ""))
        kept = [safe(line.get(c, "")) for c in columns]
        if not kept[0] and line.get("Name"):
            kept[0], _, kept[1] = safe(line["Name"]).rpartition(" ")
        rows.append(row(kept, result))
    return [header, *rows]


def _plain(e: Export, roster: Table | None) -> list[list[str]]:
    ids = [x.id for x in e.results[0].exercises] if e.results else []
    header = ["id", "student", *ids, "total", "max", "late", "needs a human", "comment"]
    rows = []

    def row(id: str, name: str, r: SubmissionResult | None) -> list[str]:
        if r is None:
            return [id, safe(name), *[""] * len(ids), "", f"{e.most:g}", "", "", ""]
        waits = safe("; ".join(r.needs_human))
        return [id, safe(name), *_cells(r), e.grade(r), f"{e.most:g}", r.late, waits,
                safe(_comment(r))]  # fmt: skip

    if roster is None:
        return [header, *(row(r.id, r.student, r) for r in e.results)]
    id_column = next((c for c in ("id", "ID", "SID", "student id") if c in roster.header), "")
    for _, line in roster.rows:
        id, name = line.get(id_column, ""), line["student"]
        rows.append(row(id, name, e.find(id, name)))
    return [header, *rows]


def _cells(r: SubmissionResult) -> list[str]:
    cells = []
    for e in r.exercises:
        cells.append("" if e.needs_human else "EX" if e.status == "excused" else f"{e.points:g}")
    return cells


def _comment(r: SubmissionResult) -> str:
    parts = [r.comment, *(f"{e.title}: {e.comment}" for e in r.exercises if e.comment)]
    return " ".join(p for p in parts if p)


FORMATS: dict[str, tuple[Callable[[Export, Table | None], list[list[str]]], tuple[str, ...]]] = {
    "canvas": (_canvas, ("Student", "ID")),
    "moodle": (_moodle, ()),
    "gradescope": (_gradescope, ()),
    "csv": (_plain, ("student",)),
}


def export(
    kind: str,
    place: Path,
    results: Sequence[SubmissionResult],
    title: str,
    roster: Path | None = None,
    out_of: float | None = None,
) -> list[str]:
    """Write ``place`` in the form that ``kind`` names; return the students whom the roster lacks.

    Raises:
        ValueError: the roster is not that platform's, or its rows and the students do not fit.
    """
    made = Export(results, title, out_of)
    rows_of, needed = FORMATS[kind]
    rows = rows_of(made, read_table(roster, needed) if roster else None)
    # With its mark, so that a spreadsheet knows that it is UTF-8.
    write(place, b"\xef\xbb\xbf" + csv_text(rows).encode("utf-8", "replace"))
    return [r.student for r in results if roster and r.student not in made.used and r.path]
