"""What runs with an answer: the notebook's cells above it, earlier solutions, and what is off."""

from __future__ import annotations

from typing import Any

from minids3.course.hints import source_of
from minids3.course.registry import Exercise, get
from minids3.grade.judging import shortcuts
from minids3.grade.judging.kernels import definitions
from minids3.grade.records import Program
from minids3.grade.submissions.reading import cells_of
from minids3.grade.submissions.slices import python_of, readable

__all__ = ["given_before", "load_of"]

_PRELUDE = """\
import math
import numpy as np
import torch
import torch.nn.functional as F
from minids3.course import check, hint, progress, setup, solution
"""
_TOO_DEEP = "raise SyntaxError('this cell is nested too deeply, or a line too long, to be read')"
_KERNEL_PRELUDE = "from minids3.kernels.language import jit, tl, triton\n"


def given_before(notebook: dict[str, Any]) -> dict[str, list[str]]:
    """Return, for each exercise of a merged notebook, the instructor's cells above its answer."""
    above: list[str] = []
    found: dict[str, list[str]] = {}
    for cell in cells_of(notebook):
        if cell.kind != "code" or any(i.startswith("helper-") for i in cell.ids):
            continue
        if not cell.grade_id:
            above.append(python_of(cell.source))
        elif not cell.grade_id.endswith("-check"):
            found[cell.grade_id] = list(above)
    return found


def load_of(exercise: Exercise, program: Program, rules: dict[str, str]) -> dict[str, Any]:
    """Return what the child is to run and to disarm."""
    pieces = [{"kind": "setup", "code": _PRELUDE + (_KERNEL_PRELUDE if exercise.kernel else "")}]
    for id in program.earlier:
        pieces.append({"kind": "library", "code": _with_imports(id)})
    given = [p.code for p in program.pieces if p.kind == "given"]
    own = [p.code for p in program.pieces if p.kind != "given"]
    for p in program.pieces:
        code = p.code
        if p.kind != "given" and not readable(code):
            code = _TOO_DEEP
        elif p.kind != "given" and exercise.kernel:
            code = definitions(code, own, given)
        pieces.append({"kind": p.kind, "code": code})
    return {
        "pieces": pieces,
        "name": program.name,
        "forbid": sorted(n for n, why in rules.items() if why != shortcuts.INSIDE),
        "seed": 0,
    }


def _with_imports(id: str) -> str:
    """Return an earlier exercise's solution, and imports of what its notebook gave it."""
    exercise = get(id)
    lines = []
    for code in shortcuts.codes(exercise.solution):
        for name in code.co_names:
            value = exercise.solution.__globals__.get(name)
            where = shortcuts.dotted(value)
            if where and not where.startswith("minids3.course"):
                module, _, attribute = where.rpartition(".")
                lines.append(f"from {module} import {attribute} as {name}")
    return "\n".join([*dict.fromkeys(lines), source_of(id)])
