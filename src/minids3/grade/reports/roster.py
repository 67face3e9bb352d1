"""A platform's own table of the class, and which of its people handed what in.

A number that a platform gave tells a student from all others; a name counts only where no number
speaks against it. Where two people or two submissions fit, nobody gets the grade and a human hears
of it: somebody else's grade is worse than none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from minids3.grade.records import SubmissionResult
from minids3.grade.reports.moodle import Moodle
from minids3.grade.tables import Table, plain, read_table, spellings

__all__ = ["KINDS", "Match", "Person", "Roster", "match"]

_STAFF = {"instructor", "ta", "teaching assistant", "reader", "grader", "observer"}
_SHORTENED = re.compile(r"[0-9][.,]?[0-9]*E\+?[0-9]+", re.IGNORECASE)


@dataclass(frozen=True)
class Person:
    """Somebody in a roster."""

    where: str  # "line 3 of FILE"
    row: dict[str, str]
    numbers: frozenset[str]  # of the platform's
    names: tuple[str, ...]  # and what else may tell who it is: an address, a user name
    email: str = ""

    @property
    def spellings(self) -> set[str]:
        """The names, as they are compared."""
        return {s for name in self.names for s in spellings(name)}


@dataclass(frozen=True)
class Roster:
    """The people in a platform's table."""

    kind: str
    table: Table
    people: tuple[Person, ...]
    columns: Moodle | None = None

    @classmethod
    def read(cls, kind: str, path: Path, grade_column: str = "") -> Roster:
        """Read the table that the platform ``kind`` gives out.

        Raises:
            ValueError: it is not that platform's, or a spreadsheet has spoilt its numbers.
        """
        needed, reader = KINDS[kind]
        table = read_table(path, needed)
        columns = Moodle.of(table, grade_column) if kind == "moodle" else None
        people = []
        for line, row in table.rows:
            who = reader(table, columns, row)
            if who is None:
                continue
            number, names, email = who
            if _SHORTENED.fullmatch(number):
                raise table.error(line, f"a spreadsheet has shortened the number {number}: take "
                                        "the platform's file as it was downloaded")  # fmt: skip
            numbers = frozenset({plain(number)} if number else ())
            names = tuple(filter(None, names))
            people.append(Person(f"line {line} of {path}", row, numbers, names, email))
        return cls(kind, table, tuple(people), columns)


# what each platform calls its columns -------------------------------------------------------------

_Who = tuple[str, Sequence[str], str]  # number, names, e-mail
_Reader = Callable[[Table, "Moodle | None", dict[str, str]], "_Who | None"]


def _canvas(table: Table, columns: Moodle | None, row: dict[str, str]) -> _Who | None:
    name, id = row["Student"], row["ID"]
    if "points possible" in name.casefold() or name == "Student, Test" or not (name or id):
        return None
    login = row.get("SIS Login ID", "")
    return id, (name, login, row.get("SIS User ID", "")), login if "@" in login else ""


def _moodle(table: Table, columns: Moodle | None, row: dict[str, str]) -> _Who | None:
    assert columns is not None
    numbers = re.findall(r"[0-9]+", row[table.header[0]])
    names = [row[c] for c in table.header[1 : table.header.index(columns.grade)]]
    email = next((n for n in names if re.fullmatch(r"\S+@\S+", n)), "")
    return numbers[-1] if numbers else "", names, email


def _gradescope(table: Table, columns: Moodle | None, row: dict[str, str]) -> _Who | None:
    if row.get("Role", "").casefold() in _STAFF:
        return None
    whole = row.get("Name") or f"{row.get('First Name', '')} {row.get('Last Name', '')}".strip()
    email = row.get("Email", "")
    return row.get("SID", ""), (whole, email), email


def _plain(table: Table, columns: Moodle | None, row: dict[str, str]) -> _Who | None:
    email = row.get("email", "")
    return row.get(id_column(table), ""), (row["student"], email), email


def id_column(table: Table) -> str:
    """Return what a table of one's own calls the column of the numbers; "" if it has none."""
    return next((c for c in ("id", "ID", "SID", "student id") if c in table.header), "")


KINDS: dict[str, tuple[tuple[str, ...], _Reader]] = {
    "canvas": (("Student", "ID"), _canvas),
    "moodle": ((), _moodle),
    "gradescope": ((), _gradescope),
    "csv": (("student",), _plain),
}


# who is who ---------------------------------------------------------------------------------------


@dataclass
class Match:
    """Which result is whose."""

    found: dict[int, SubmissionResult] = field(default_factory=dict)  # by the person's place
    doubtful: set[int] = field(default_factory=set)  # people whose result a human has to find
    missing: list[SubmissionResult] = field(default_factory=list)  # results of nobody here
    unsure: list[str] = field(default_factory=list)  # a sentence per result that fits several


def match(
    kind: str,
    people: Sequence[Person],
    results: Iterable[SubmissionResult],
    same_numbers: bool = True,
) -> Match:
    """Find the result of each person in a roster.

    Args:
        kind: the roster's platform. A number of another one says nothing.
        people: in the roster.
        results: of one notebook, one per student.
        same_numbers: whether the roster's platform gave the results their numbers, too. Then no
            name counts against a number that the roster does not have.
    """
    results = list(results)
    numbers = [_number(kind, r) for r in results]
    there = {n for p in people for n in p.numbers}
    known = any(n in there for n in numbers)
    by_number = {i: [k for k, p in enumerate(people) if n in p.numbers]
                 for i, n in enumerate(numbers) if n in there}  # fmt: skip
    taken = {k for fits in by_number.values() for k in fits}
    fits: dict[int, list[int]] = {}
    for i, r in enumerate(results):
        # Where no number at all occurs in the roster, it has numbers of another kind.
        binding = bool(numbers[i]) and (known or (same_numbers and r.platform == kind))
        fits[i] = by_number.get(i) or [
            k for k, p in enumerate(people)
            if k not in taken and not (binding and p.numbers) and spellings(r.student) & p.spellings
        ]  # fmt: skip
    return _settle(people, results, fits)


def _number(kind: str, r: SubmissionResult) -> str:
    """Return a result's number if it can be one of this roster's."""
    comparable = r.platform in ("", kind) or kind == "csv"
    return plain(r.id) if comparable and r.id else ""


def _settle(
    people: Sequence[Person], results: Sequence[SubmissionResult], fits: dict[int, list[int]]
) -> Match:
    """Take what fits one person who fits nothing else; all other things are for a human."""
    made = Match()
    for i, places in fits.items():
        r = results[i]
        rivals = [results[j].student for j, p in fits.items() if j != i and set(p) & set(places)]
        if not places:
            made.missing.append(r)
        elif len(places) == 1 and not rivals:
            made.found[places[0]] = r
        else:
            made.doubtful.update(places)
            where = " and ".join(people[k].where for k in places[:5])
            others = f", and so does {', '.join(rivals[:5])}" if rivals else ""
            made.unsure.append(f"{r.student} fits {where}{others}: nobody got this grade, "
                               "enter it by hand")  # fmt: skip
    return made
