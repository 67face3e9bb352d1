"""``minids3 grade --self``: what the public checks say about one's own notebook.

A student's own code on a student's own machine: it runs right here, without a sandbox, and only
with the inputs that everybody knows. It tells the same story as
``pytest --nbval-lax --nbval-current-env`` over the notebook, in seconds.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path
from typing import Any

from minids3.course.baselines import earning, most
from minids3.course.check import LIBRARY, format_report
from minids3.course.launching import is_library, library_of
from minids3.course.registry import Exercise, get
from minids3.course.run import Report, run_check
from minids3.grade.process.runner import execute
from minids3.grade.records import Program
from minids3.grade.submissions.collect import exercise_ids
from minids3.grade.submissions.merge import merge
from minids3.grade.submissions.pristine import Pristine, find_notebook
from minids3.grade.submissions.reading import load

__all__ = ["check_own", "show"]

_NO_REPORT = {"stub": "not written yet", "missing": "its cell is gone", "answered": LIBRARY}


def _notebook_of(path: Path) -> Pristine:
    """Return the course's notebook that ``path`` is a copy of.

    Raises:
        ValueError: no exercise of the workbook is in it.
    """
    for id in exercise_ids(path):
        try:
            name = get(id).notebook
        except KeyError:
            continue
        try:
            return Pristine.read(find_notebook(name))
        except FileNotFoundError:
            return Pristine.read(path)  # no clone of the repository here: as it stands
    raise ValueError(f"there is no exercise of the workbook in {path.name}")


def _run(program: Program) -> Any:
    """Run the answer's cells here, and return the function they define."""
    space: dict[str, Any] = {"__name__": "__main__"}
    for id in program.earlier:
        space[get(id).name] = library_of(get(id))
    future = 0
    for piece in program.pieces:
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                name = f"<{piece.cell} for {program.id}>"
                future = execute(piece.code, name, space, future)
            except Exception as error:
                if piece.kind == "answer":
                    space.setdefault(program.name, f"{type(error).__name__}: {error}")
    return space.get(program.name)


def _report(exercise: Exercise, program: Program) -> Report | None:
    fn = _run(program)
    return None if is_library(exercise, fn) else run_check(exercise, fn)


def _share(exercise: Exercise, report: Report) -> float:
    """Return what part of the points the checklist is worth, as in grading."""
    if report.ok:
        return 1.0
    passed = {n for n, item in enumerate(report.items) if item.status == "ok"}
    return min(len(earning(exercise, passed)) / len(report.items), most(exercise, passed))


def _passed(report: Report) -> int:
    return report.passed


def check_own(path: Path) -> list[tuple[Exercise, Program, Report | None]]:
    """Return exercise, program and checklist of each exercise in ``path``.

    There is no checklist where nothing is written, or where the answer is the library's function.

    Raises:
        ValueError: it is no notebook, or none of the workbook's.
    """
    found = []
    for program in merge(_notebook_of(path), load(path)).programs:
        exercise = get(program.id)
        if program.status != "answered" or program.human:
            found.append((exercise, program, None))
            continue
        report = _report(exercise, program)
        if program.wider is not None and report is not None and not report.ok:
            report = max(report, _report(exercise, program.wider) or report, key=_passed)
        found.append((exercise, program, report))
    return found


def show(path: Path) -> int:
    """Print the checklists and the points of the public checks; return 0 if all passed."""
    import torch

    if not path.is_file():
        raise ValueError(f"there is no notebook {path}")
    if not torch.cuda.is_available() and "triton" not in sys.modules:
        os.environ.setdefault("TRITON_INTERPRET", "1")  # heard only before the first import
    total = whole = 0.0
    for exercise, program, report in check_own(path):
        whole += exercise.points
        if report is None:
            words = program.human or _NO_REPORT[program.status]
            print(f"{exercise.id}   {words}\n")
            continue
        total += exercise.points * _share(exercise, report)
        print(format_report(exercise, report))
        for problem in program.problems:
            print(f"  note  {problem}")
        print()
    print(
        f"public checks: {total:.3g} of {whole:g} points. Grading also uses inputs not shown here."
    )
    return 0 if total == whole else 1
