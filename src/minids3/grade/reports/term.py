"""One gradebook over all notebooks of a term, from the folders of their grades."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from minids3.grade.files import write
from minids3.grade.records import SubmissionResult
from minids3.grade.tables import csv_text, safe

__all__ = ["read_grades", "write_term"]


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


def write_term(folders: Sequence[Path], place: Path) -> list[str]:
    """Write a row per student and a column per notebook; return what waits for a human.

    A student is known by the platform's number where there is one, else by the name. What is
    undecided is an empty cell, and so is that student's total.

    Raises:
        ValueError: a folder without grades, or two of one notebook.
    """
    books: dict[str, dict[str, SubmissionResult]] = {}
    names: dict[str, tuple[str, str]] = {}
    for folder in folders:
        notebook, results = read_grades(folder)
        if notebook in books:
            raise ValueError(f"{folder}: the grades of {notebook} were given already")
        books[notebook] = {}
        for r in results:
            key = f"id {r.id}" if r.id else f"name {r.student}"
            books[notebook][key] = r
            names.setdefault(key, (r.id, r.student))
    order = sorted(books)
    header = ["id", "student", *order, "total", "max"]
    rows: list[list[str]] = [header]
    waiting = []
    for key, (id, student) in sorted(names.items(), key=lambda i: i[1][1].casefold()):
        mine = [books[n].get(key) for n in order]
        cells = []
        for r in mine:
            undecided = r is not None and r.undecided
            cells.append("" if r is None or undecided else "EX" if r.excused else f"{r.points:g}")
            if r is not None and undecided:
                waiting.append(f"{student}: {r.notebook}")
        there = [r for r in mine if r is not None]
        whole = round(sum(r.points for r in there), 2)
        # Of a notebook that was not handed in the points are the class's.
        most = sum(r.max_points if r is not None else _most(books[n])
                   for n, r in zip(order, mine, strict=True))  # fmt: skip
        total = "" if any(r.undecided for r in there) else f"{whole:g}"
        rows.append([id, safe(student), *cells, total, f"{most:g}"])
    write(place, b"\xef\xbb\xbf" + csv_text(rows).encode("utf-8", "replace"))
    return waiting


def _most(book: dict[str, SubmissionResult]) -> float:
    return max((r.max_points for r in book.values()), default=0.0)
