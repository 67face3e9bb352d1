"""From a submission to the code that is graded: the student's answers in the instructor's notebook.

Nothing but source text is taken from a submission: no outputs, no metadata, no points, no checks.
An answer is known by its ``grade_id``, its cell id or its ``# EXERCISE id`` line, and where all of
those are gone by the function it defines. The instructor's own cells always run as the instructor
wrote them. What else the student wrote (added cells, lines added to a given cell, helpers beside
another answer) is a *helper*: it runs before the answer, in the student's order, if the answer
needs it (``slices``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from minids3.grade.records import Answers, Piece, Program
from minids3.grade.submissions.collect import find_exercises
from minids3.grade.submissions.pristine import Given, Pristine
from minids3.grade.submissions.public import merged_notebook, public_notebook
from minids3.grade.submissions.reading import MAX_CELLS, MAX_SOURCES, Cell, cells_of
from minids3.grade.submissions.recognise import Own, recognise
from minids3.grade.submissions.slices import Statement, needed, newer, quiet

__all__ = ["merge"]

_WRITES = re.compile(r"\s*%%(?:writefile|file)\s+(?:-a\s+)?(\w+)\.py\s*$", re.MULTILINE)


def merge(pristine: Pristine, notebook: dict[str, Any]) -> Answers:
    """Return the answers of ``notebook``, a submission's plain JSON, and the merged notebook."""
    problems: list[str] = []
    everything = cells_of(notebook)
    cells = [c for c in everything if c.kind == "code"]
    if len(notebook.get("cells", [])) > MAX_CELLS:
        problems.append(f"only the first {MAX_CELLS} cells were read")
    if sum(len(c.source) for c in everything) >= MAX_SOURCES:
        problems.append(f"only the first {MAX_SOURCES} characters of its cells were read")
    own = recognise(pristine, cells)
    chosen: dict[str, Own] = {}
    status: dict[str, tuple[str, str, list[str]]] = {}
    for spec in pristine.exercises:
        cell, how, notes = _find_answer(pristine, own, spec)
        if cell is not None:
            chosen[spec.exercise] = cell
        stub = cell is not None and pristine.is_stub(spec.exercise, cell.code)
        state = "missing" if cell is None else "stub" if stub else "answered"
        status[spec.exercise] = (state, how, notes)
    lost = _lost(own, _version(notebook))
    texts = [c for c in everything if c.kind != "code"]
    programs = tuple(
        _program(pristine, own, chosen, spec, lost, *status[spec.exercise])
        for spec in pristine.exercises
    )
    programs = tuple(
        replace(p, human=p.human or _elsewhere(pristine, p, texts, problems)) for p in programs
    )
    return Answers(
        pristine.name,
        programs,
        merged_notebook(pristine, programs),
        public_notebook(pristine, programs),
        tuple(problems),
    )


def _elsewhere(pristine: Pristine, program: Program, texts: list[Cell], problems: list[str]) -> str:
    """Say where else an answer may be that is no code cell, or return ""."""
    if program.status == "answered":
        return ""
    for cell in texts:
        marks = find_exercises(cell.source, cell.ids, cell.grade_id)
        written = re.search(rf"^def\s+{program.name}\b", cell.source, re.MULTILINE)
        if (program.id in marks or written) and not pristine.is_stub(program.id, cell.source):
            return f"{cell.label} may be the answer, but it is a {cell.kind} cell, which is not run"
    if program.status == "missing" and problems:
        return problems[0]
    return ""


def _version(notebook: dict[str, Any]) -> str:
    """Return which Python the notebook says it ran with, or an empty string."""
    found: Any = notebook
    for key in ("metadata", "language_info", "version"):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, str) else ""


def _lost(own: list[Own], version: str) -> dict[str, str]:
    """Return what cells define that may be a newer Python's, each name with the reason."""
    lost = {}
    for o in own:
        if not o.parsed and (why := newer(o.code, version)):
            for name in re.findall(r"^(?:async def|def|class|type)\s+(\w+)", o.code, re.MULTILINE):
                lost[name] = f"{o.cell.label} is not Python here: {why}"
        written = re.match(
            r"\s*%%(?:writefile|file)\s+(?:-a\s+)?(\w+)\.py\s*$", o.cell.source, re.M
        )
        if written:  # a module of the student's own, which nothing here writes
            imported = re.compile(rf"^\s*(?:from|import)\s+{written[1]}\b")
            for s in (s for o in own for s in o.pool if imported.match(s.text)):
                why = f"{o.cell.label} writes {written[1]}.py, which is not imported here"
                lost |= dict.fromkeys(s.binds, why)
    return lost


# answers ------------------------------------------------------------------------------------------


def _find_answer(
    pristine: Pristine, own: list[Own], spec: Given
) -> tuple[Own | None, str, list[str]]:
    """Return the answer's cell, how it was found, and what should be said about it.

    As in the notebook, what stands last before the check counts; what was written after it counts
    where nothing before it does.
    """
    marked = [o for o in own if spec.exercise in o.answers]
    named = [
        o
        for o in own
        if o not in marked
        and o.defines(spec.name)
        and not (o.given is not None and o.given.kind != "check")
        and not any(i != spec.exercise for i in o.answers)
    ]
    check = next(
        (k for k, o in enumerate(own) if o.given is not None and o.given.exercise == spec.exercise),
        len(own),
    )
    notes: list[str] = []
    for group in (marked, named):
        good = [
            o for o in group if o.defines(spec.name) and not pristine.is_stub(spec.exercise, o.code)
        ]
        before = [o for o in good if own.index(o) <= check]
        if good:
            cell = (before or good)[-1]
            if len(good) > 1:
                others = ", ".join(o.cell.label for o in good if o is not cell)
                notes.append(
                    f"{spec.name} is written several times; took {cell.cell.label}, not {others}"
                )
            return cell, _how(cell, spec), notes
    written = [o for o in marked if not pristine.is_stub(spec.exercise, o.code) and o.code.strip()]
    if written:
        cell = written[-1]
        if not cell.parsed:
            notes.append(f"{cell.cell.label} is not Python: see the message below it")
        else:
            notes.append(f"{cell.cell.label} does not define {spec.name}")
        return cell, _how(cell, spec), notes
    if marked:
        return marked[0], _how(marked[0], spec), notes
    return None, "", notes


def _how(o: Own, spec: Given) -> str:
    if o.cell.grade_id == spec.exercise:
        return "grade_id"
    if f"answer-{spec.exercise}" in o.cell.ids:
        return "cell id"
    return "marker" if spec.exercise in o.answers else "name"


# programs -----------------------------------------------------------------------------------------


@dataclass
class _Unit:
    where: tuple[float, int, int]
    piece: str  # "given" or "helper"
    label: str
    statement: Statement


def _helpers(pristine: Pristine, own: list[Own], spec: Given, answer: Own) -> list[_Unit]:
    """Return the student's other statements that may run with the answer, in order."""
    found = []
    at = own.index(answer)
    others = {e.name for e in pristine.exercises}
    for k, o in enumerate(own):
        inside = spec.number <= o.anchor < spec.check
        edited_check = o.given is not None and o.given.exercise == spec.exercise
        if o is answer or not (k < at or inside or edited_check):
            continue
        if o.given is not None:
            pool = [s for s in o.pool if s.dump not in o.given.dumps]
        elif o.answers:  # helpers beside another answer, not that answer itself
            pool = [s for s in o.pool if not s.binds & others]
        else:
            pool = o.pool
        anchor = min(o.anchor, float(spec.number)) if k < at else o.anchor
        where = (anchor - 0.5 if k < at and o.anchor >= spec.number else anchor, 1, k)
        found += [_Unit(where, "helper", o.cell.label, s) for s in pool]
    return found


def _program(
    pristine: Pristine,
    own: list[Own],
    chosen: dict[str, Own],
    spec: Given,
    lost: dict[str, str],
    state: str,
    how: str,
    notes: list[str],
) -> Program:
    worth = pristine.points[spec.exercise]
    if state != "answered":
        code = chosen[spec.exercise].code if spec.exercise in chosen else ""
        pieces = (Piece("answer", code, chosen[spec.exercise].cell.label),) if code else ()
        return Program(spec.exercise, spec.name, pieces, (), state, how, tuple(notes), points=worth)
    answer = chosen[spec.exercise]
    units = [
        _Unit((float(g.number), 0, n), "given", f"given cell {g.number + 1}", s)
        for g in pristine.cells
        if g.kind == "given" and g.number < spec.check
        for n, s in enumerate(g.pool)
    ]
    given = {u.statement.dump for u in units} | {s.dump for s in answer.pool}
    units += [
        u
        for u in _helpers(pristine, own, spec, answer)
        if not (u.statement.dump in given and u.statement.text.startswith(("import ", "from ")))
    ]
    units.sort(key=lambda u: u.where)
    mine = {n for n, u in enumerate(units) if u.piece == "helper"}
    pool = [u.statement for u in units]
    wanted = _needs(answer, spec)

    def program(picked: set[int], names: set[str]) -> Program:
        why = next((lost[name] for name in sorted({*names, spec.name}) if name in lost), "")
        return Program(
            spec.exercise,
            spec.name,
            _pieces(units, picked, answer, spec),
            tuple(
                e.exercise for e in pristine.exercises if e.number < spec.number and e.name in names
            ),
            state,
            how,
            tuple(notes),
            why,
            worth,
        )

    picked, names = needed(pool, wanted, mine)
    more, all_names = needed(pool, wanted, mine, calls=True)
    found = program(picked, names)
    return found if more == picked else replace(found, wider=program(more, all_names))


def _pieces(units: list[_Unit], picked: set[int], answer: Own, spec: Given) -> tuple[Piece, ...]:
    """Return the picked statements, cell by cell, with the answer's cell where it stands."""
    before: list[Piece] = []
    after: list[Piece] = []
    for n in sorted(picked):
        u = units[n]
        side = before if u.where < (float(spec.number), 0, 0) else after
        if side and (side[-1].kind, side[-1].cell) == (u.piece, u.label):
            side[-1] = Piece(u.piece, f"{side[-1].code}\n{u.statement.text}", u.label)
        else:
            side.append(Piece(u.piece, u.statement.text, u.label))
    return (*before, Piece("answer", quiet(answer.code), answer.cell.label), *after)


def _needs(answer: Own, spec: Given) -> set[str]:
    """Return the names that the answer's cell needs, up to where the function is defined.

    What stands below it tries the function out: it may fail, and needs nothing.
    """
    last = max((n for n, s in enumerate(answer.pool) if spec.name in s.binds), default=None)
    if last is None:
        return {spec.name, *(name for s in answer.pool for name in s.loads)}
    # The function's own name too: a cell before the check may define it once more.
    used, bound = {spec.name}, set()
    for s in answer.pool[: last + 1]:
        if not s.function:
            used |= s.loads - bound
        bound |= s.fresh
    return used.union(*(s.loads - bound for s in answer.pool[: last + 1] if s.function))
