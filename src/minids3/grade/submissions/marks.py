"""Which exercises a notebook has, and which of them somebody answered."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Collection, Iterator, Mapping

from minids3.grade.submissions.reading import Cell
from minids3.grade.submissions.slices import dump, python_of

__all__ = ["answers_of", "exercises_of", "find_exercises"]

_MARKER = re.compile(r"^[ \t]*#[ \t]*EXERCISE[ \t:]+([a-z0-9-]+)[ \t]*$", re.MULTILINE | re.I)
_LEFT_OPEN = re.compile(r"^[^#\n]*raise NotImplementedError", re.MULTILINE)
_LONG = 20_000  # characters; a longer cell is compared as text


def find_exercises(source: str, ids: tuple[str, ...] = (), grade_id: str = "") -> list[str]:
    """Return the ids of exercises that a cell says it answers, the surest first."""
    found = [grade_id] if grade_id else []
    found += [i.removeprefix("answer-") for i in ids if i.startswith("answer-")]
    found += [m.lower() for m in _MARKER.findall(source)]
    return list(dict.fromkeys(found))


def _marked(cells: list[Cell]) -> Iterator[tuple[str, Cell]]:
    """Yield the cells that name an exercise, each with the exercise's id."""
    for cell in cells:
        if not cell.grade_id.endswith("-check") and cell.source.strip():
            for id in find_exercises(cell.source, cell.ids, cell.grade_id):
                yield id, cell


def _named(cells: list[Cell], names: Mapping[str, str]) -> Iterator[tuple[str, Cell]]:
    """Yield the cells that define an exercise's function, each with the exercise's id."""
    for cell in cells:
        if cell.kind == "code":
            defined = set(re.findall(r"^(?:async )?def (\w+)", cell.source, re.MULTILINE))
            for id, name in names.items():
                if name in defined:
                    yield id, cell


def exercises_of(
    cells: list[Cell], wanted: Collection[str] | None = None, names: Mapping[str, str] | None = None
) -> list[str]:
    """Return the exercises that cells name; where no mark is left, whose functions they define."""
    found = (id for id, _ in _marked(cells))
    made = list(dict.fromkeys(id for id in found if wanted is None or id in wanted))
    return made or list(dict.fromkeys(id for id, _ in _named(cells, names or {})))


def answers_of(
    cells: list[Cell], wanted: Collection[str], names: Mapping[str, str]
) -> dict[str, str]:
    """Return what each answer means that is more than a stub: the last one of its exercise.

    A cell with an exercise's mark comes before one that only defines its function.
    """
    found: dict[str, str] = {}
    pairs = [p for p in (*_named(cells, names), *_marked(cells)) if p[0] in wanted]
    with warnings.catch_warnings():  # Python's, of a student's backslashes
        warnings.simplefilter("ignore")
        for id, cell in pairs:
            if cell.kind == "code" and _written(cell.source, names.get(id, "")):
                found[id] = _meaning(cell.source)
    return found


def _meaning(source: str) -> str:
    """Return what can be compared of an answer: its meaning, or its text if it is not Python."""
    return (len(source) < _LONG and dump(python_of(source))) or source.strip()


def _written(source: str, name: str) -> bool:
    """Whether a cell is more than a stub; a raise that a return stands before is no matter."""
    try:
        body = ast.parse(python_of(source)).body if len(source) < _LONG else None
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        body = None
    if body is None:
        return not _LEFT_OPEN.search(source)
    found = [n for n in body if isinstance(n, ast.FunctionDef) and name in ("", n.name)]
    return bool(body) and not (found and _open(found[-1]))


def _open(function: ast.FunctionDef) -> bool:
    """Whether a function does nothing yet, or raises NotImplementedError when it is called."""
    for statement in function.body:
        if isinstance(statement, ast.Return):
            return False
        if isinstance(statement, ast.Raise):
            names = (n.id for n in ast.walk(statement) if isinstance(n, ast.Name))
            return "NotImplementedError" in names
    return all(
        isinstance(s, ast.Pass) or (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))
        for s in function.body
    )
