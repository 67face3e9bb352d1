"""Which cell of a submission is which: the instructor's, an answer, or the student's own.

By id first, then by text, then by likeness: an editor that drops ids, a copied cell that brings its
id along and a given cell with a line added to it are all everyday.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field

from minids3.grade.submissions.collect import find_exercises
from minids3.grade.submissions.pristine import Given, Pristine
from minids3.grade.submissions.reading import Cell
from minids3.grade.submissions.slices import Statement, python_of, statements

__all__ = ["Own", "recognise"]

_ALIKE = 0.6  # how much of an edited cell is still the given one
_LONG = 5_000  # cells longer than this are not compared letter by letter


@dataclass
class Own:
    """A cell of the student's: where it goes, and what it is."""

    cell: Cell
    code: str  # plain Python
    anchor: float = -1.0  # number of the given cell that it follows
    given: Given | None = None  # the given cell that it is, edited or not
    answers: list[str] = field(default_factory=list)  # ids that its marks name
    pool: list[Statement] = field(default_factory=list)
    parsed: bool = True

    def defines(self, name: str) -> bool:
        """Whether the cell binds ``name`` itself, not through ``check``."""
        return any(name in s.binds for s in self.pool)


def recognise(pristine: Pristine, cells: list[Cell]) -> list[Own]:
    """Say of each of the student's cells which given cell it is, if any, and where it stands."""
    own = []
    for cell in cells:
        code = python_of(cell.source)
        parsed = statements(code)
        marks = find_exercises(cell.source, cell.ids, cell.grade_id)
        known = [i for i in marks if i in pristine.ids]
        own.append(Own(cell, code, answers=known, pool=parsed or [], parsed=parsed is not None))
    free = {g.number: g for g in pristine.cells if g.kind != "answer"}
    rest = [o for o in own if not o.answers]
    for o in rest:  # by id, the unedited ones first: a copied cell may bring its id along
        same = [g for g in free.values() if g.id in o.cell.ids and g.source == _flat(o.cell.source)]
        _take(o, same, free)
    for o in rest:
        _take(o, [g for g in free.values() if g.id in o.cell.ids or _same_check(g, o)], free)
    for o in rest:
        _take(o, [g for g in free.values() if g.source == _flat(o.cell.source)], free)
    for o in rest:
        _take(o, _alike(o, free), free)
    position = -1.0
    for o in own:
        if o.given is not None:
            position = float(o.given.number)
        elif o.answers:
            position = float(pristine.exercise(o.answers[0]).number)
        o.anchor = position
    return own


def _take(o: Own, candidates: list[Given], free: dict[int, Given]) -> None:
    if o.given is None and candidates:
        o.given = free.pop(candidates[0].number)


def _same_check(given: Given, o: Own) -> bool:
    return given.kind == "check" and given.grade_id != "" and given.grade_id == o.cell.grade_id


def _alike(o: Own, free: dict[int, Given]) -> list[Given]:
    """Return the given cells that ``o`` may be an edited copy of, the likeliest first."""
    text = _flat(o.cell.source)
    if o.given is not None or not 20 < len(text) < _LONG:
        return []
    scored = []
    for g in free.values():
        if len(g.source) < _LONG:
            m = difflib.SequenceMatcher(None, g.source, text, autojunk=False)
            if m.real_quick_ratio() > _ALIKE and m.quick_ratio() > _ALIKE and m.ratio() > _ALIKE:
                scored.append((m.ratio(), -g.number, g))
    return [g for *_, g in sorted(scored, key=lambda s: s[:2], reverse=True)]


def _flat(source: str) -> str:
    return "\n".join(line.rstrip() for line in source.strip("\n").splitlines())
