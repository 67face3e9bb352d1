"""The instructor's notebook with a student's answers in it: the whole, and the checks alone.

``pytest --nbval-lax --nbval-current-env`` over the second tells the public story of a submission in
seconds: set-up, answers and check cells without the workbook's long runs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from minids3.grade.records import Program
from minids3.grade.submissions.pristine import Pristine

__all__ = ["merged_notebook", "public_notebook"]


def merged_notebook(pristine: Pristine, programs: tuple[Program, ...]) -> dict[str, Any]:
    """Return all of the instructor's notebook, with answers and the helpers that they need."""
    return _notebook(pristine, programs, whole=True)


def public_notebook(pristine: Pristine, programs: tuple[Program, ...]) -> dict[str, Any]:
    """Return set-up, answers, check cells, and of the rest only what the answers need."""
    return _notebook(pristine, programs, whole=False)


def _notebook(pristine: Pristine, programs: tuple[Program, ...], whole: bool) -> dict[str, Any]:
    made = copy.deepcopy(pristine.notebook)
    by_id = {p.id: p for p in programs}
    cells: list[dict[str, Any]] = []
    shown: set[tuple[str, str]] = set()
    for raw, given in zip(made["cells"], pristine.all_cells, strict=True):
        if given is None or given.kind == "given":
            if whole or (given is not None and given.id == "setup"):
                cells.append(raw)
        elif given.kind == "check" or given.exercise not in by_id:
            cells.append(raw)
        else:
            cells += _answer(by_id[given.exercise], raw, shown, whole)
    made["cells"] = cells
    return made


def _answer(
    program: Program, raw: dict[str, Any], shown: set[tuple[str, str]], whole: bool
) -> Iterator[dict[str, Any]]:
    """Yield the cells of one answer; what an earlier one showed is not repeated."""
    if not any(p.kind == "answer" for p in program.pieces):
        yield raw  # the stub
    for number, piece in enumerate(program.pieces):
        if piece.kind == "answer":
            yield {**raw, "source": piece.code}
        elif (piece.kind == "helper" or not whole) and (piece.cell, piece.code) not in shown:
            shown.add((piece.cell, piece.code))
            yield {
                "cell_type": "code",
                "execution_count": None,
                "id": f"{piece.kind}-{number}-{program.id}"[:64],
                "metadata": {"tags": [piece.kind]},
                "outputs": [],
                "source": piece.code,
            }
