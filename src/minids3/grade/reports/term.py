"""One gradebook over all notebooks of a term, from the folders of their grades."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from minids3.grade.files import write
from minids3.grade.records import SubmissionResult
from minids3.grade.reports.export import whole
from minids3.grade.reports.roster import Person, Roster, match
from minids3.grade.tables import csv_text, letters, safe

__all__ = ["read_grades", "write_term"]

# Whose numbers are the student's in every assignment. Moodle's is one submission's: its table maps
# "an assignment specific id number to a user". Where nobody knows whose it is, it may be either.
_OF_THE_USER = {"canvas", "brightspace", "blackboard", "sakai", "gradescope", "csv", ""}


@dataclass
class _Student:
    """One row of the table."""

    id: str
    name: str
    results: dict[str, SubmissionResult] = field(default_factory=dict)  # by notebook
    bare: str = ""  # the name without what told it from a namesake's


def read_grades(folder: Path) -> tuple[str, list[SubmissionResult]]:
    """Return the notebook and the results in a folder that ``minids3 grade`` wrote.

    Raises:
        ValueError: it is none.
    """
    place = folder / "grades.json"
    try:
        data = json.loads(place.read_text(encoding="utf-8"))
        return data["notebook"], [SubmissionResult.from_dict(s) for s in data["submissions"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} holds no grades of minids3 ({error})") from None


def write_term(folders: Sequence[Path], place: Path, rosters: Sequence[Roster] = ()) -> list[str]:
    """Write a row per student and a column per notebook; return what waits for a human.

    A student is known by the roster, if there is one; else by the platform's number where it is the
    same in every assignment; else by the name. Namesakes whom nothing tells apart have a row each
    and wait for a human. What is undecided is an empty cell, and so is that student's total.

    Raises:
        ValueError: a folder without grades, or two of one notebook.
    """
    books: dict[str, list[SubmissionResult]] = {}
    for folder in folders:
        notebook, results = read_grades(folder)
        if notebook in books:
            raise ValueError(f"{folder}: the grades of {notebook} were given already")
        books[notebook] = results
    students, waiting = _students(books, rosters)
    order = sorted(books)
    most = {n: whole(results) for n, results in books.items()}
    rows = [["id", "student", *order, "total", "max"]]
    for s in sorted(students, key=lambda s: s.name.casefold()):
        row, undecided = _row(s, order, most)
        rows.append(row)
        waiting += undecided
    write(place, b"\xef\xbb\xbf" + csv_text(rows).encode("utf-8", "replace"))
    return waiting


def _row(s: _Student, order: list[str], most: dict[str, float]) -> tuple[list[str], list[str]]:
    mine = [s.results.get(n) for n in order]
    cells, waiting = [], []
    for r in mine:
        undecided = r is not None and r.undecided
        cells.append("" if r is None or undecided else "EX" if r.excused else f"{r.points:g}")
        if r is not None and undecided:
            waiting.append(f"{s.name}: {r.notebook}")
    there = [r for r in mine if r is not None]
    # Of a notebook that was not handed in the points are the class's.
    worth = sum(r.max_points if r else most[n] for n, r in zip(order, mine, strict=True))
    points = (
        "" if any(r.undecided for r in there) else f"{round(sum(r.points for r in there), 2):g}"
    )
    return [s.id, safe(s.name), *cells, points, f"{worth:g}"], waiting


# who is who ---------------------------------------------------------------------------------------


def _students(
    books: dict[str, list[SubmissionResult]], rosters: Sequence[Roster]
) -> tuple[list[_Student], list[str]]:
    waiting: list[str] = []
    listed, rest = _by_roster(books, rosters, waiting) if rosters else ([], books)
    crowded = _crowded(books)
    students: dict[tuple[str, ...], _Student] = {}
    for notebook, results in rest.items():
        for r in results:
            bare = _bare(r)
            key: tuple[str, ...] = ("name", bare)
            if _of_the_user(r):
                key = ("id", r.id)
            elif bare in crowded:
                key = ("one", notebook, r.student)
            s = students.setdefault(key, _Student(r.id if key[0] == "id" else "", r.student))
            s.results[notebook], s.bare = r, bare
    found = _joined(students)
    if not rosters:
        waiting += [*_doubts(found), *(_blind(books) if len(books) > 1 else [])]
    return [*listed, *found], waiting


def _of_the_user(r: SubmissionResult) -> bool:
    blind = r.platform == "canvas" and not r.id.isdecimal()  # its anonymous ids are an assignment's
    return bool(r.id) and r.platform in _OF_THE_USER and not blind


def _bare(r: SubmissionResult) -> str:
    """Return a name without what told it from a namesake's."""
    return re.sub(rf" \({re.escape(r.id)}\)\**$", "", r.student) if r.id else r.student


def _crowded(books: dict[str, list[SubmissionResult]]) -> set[str]:
    """Return the names that several have in one notebook."""
    counts = [Counter(_bare(r) for r in results) for results in books.values()]
    return {name for c in counts for name, n in c.items() if n > 1}


def _joined(students: dict[tuple[str, ...], _Student]) -> list[_Student]:
    """Put who is known by a name alone to the one number of that name, if there is just one."""
    numbered: dict[str, list[_Student]] = {}
    for key, s in students.items():
        if key[0] == "id":
            numbered.setdefault(letters(s.bare), []).append(s)
    found = []
    for key, s in students.items():
        same = numbered.get(letters(s.bare), [])
        if key[0] == "name" and len(same) == 1 and not same[0].results.keys() & s.results.keys():
            same[0].results.update(s.results)
        else:
            found.append(s)
    return found


def _doubts(students: Sequence[_Student]) -> list[str]:
    """Say whose rows may be one person's: several of one name whom no number tells apart."""
    by_name: dict[str, list[_Student]] = {}
    for s in students:
        by_name.setdefault(s.bare, []).append(s)
    found = []
    for same in by_name.values():
        unsure = [s for s in same if not s.id or _platform(s) == ""]
        together = any(
            a.results.keys() & b.results.keys() for a in same for b in same if a is not b
        )
        numbers_tell = len(unsure) == 0 or (together and all(s.id for s in same))
        if len(same) > 1 and not numbers_tell:
            rows = ", ".join(f"{s.name} in {' and '.join(sorted(s.results))}" for s in same)
            found.append(f"{same[0].name}: {len(same)} rows of one name ({rows}), which nothing "
                         "tells apart; join what is one person's, or give a --roster")  # fmt: skip
    return found


def _blind(books: dict[str, list[SubmissionResult]]) -> list[str]:
    """Say which notebooks were marked blind, so that nobody in them can be joined to others."""
    found = []
    for notebook, results in sorted(books.items()):
        blind = [r.student for r in results
                 if r.id and not _of_the_user(r) and r.id in _bare(r)]  # fmt: skip
        if blind:
            found.append(f"{notebook}: {len(blind)} rows of a blind class ({blind[0]} ..), whose "
                         "numbers are that assignment's: download again with names, or give a "
                         "--roster")  # fmt: skip
    return found


def _platform(s: _Student) -> str:
    return next(iter(s.results.values())).platform


def _by_roster(
    books: dict[str, list[SubmissionResult]], rosters: Sequence[Roster], waiting: list[str]
) -> tuple[list[_Student], dict[str, list[SubmissionResult]]]:
    """Return a row per person in the rosters, and the results that are nobody's there."""
    people, kind = _people(rosters), rosters[0].kind
    made = [_Student(_label(p, kind), p.names[0] if p.names else p.where) for p in people]
    rest: dict[str, list[SubmissionResult]] = {}
    for notebook, results in books.items():
        m = match(kind, people, results, same_numbers=kind in _OF_THE_USER)
        for k, r in m.found.items():
            made[k].results[notebook] = r
        taken = {id(r) for r in m.found.values()}
        rest[notebook] = [r for r in results if id(r) not in taken]
        waiting += [f"{notebook}: {line}" for line in m.unsure]
        waiting += [f"{notebook}: {r.student}: not in the roster" for r in m.missing]
    return made, rest


def _people(rosters: Sequence[Roster]) -> list[Person]:
    """Return everybody once: the same address in several rosters is one person."""
    found: dict[object, Person] = {}
    for p in (p for roster in rosters for p in roster.people):
        key: object = p.email.casefold() or (p.numbers or p.where)
        before = found.get(key)
        if before is not None:
            names = tuple(dict.fromkeys([*before.names, *p.names]))
            p = Person(before.where, before.row, before.numbers | p.numbers, names, p.email)
        found[key] = p
    return list(found.values())


def _label(p: Person, kind: str) -> str:
    return next(iter(p.numbers), p.email) if kind in _OF_THE_USER else p.email
