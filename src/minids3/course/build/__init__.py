"""From ``notebooks/source/NN_name.py`` to the student's and the solved notebook.

A source is jupytext's py:percent. Three first lines are markers: ``# SETUP`` becomes the set-up
cell, ``# EXERCISE id`` the stub or the solution, ``# CHECK id`` the check. ``{{badge}}`` in a
markdown cell becomes the Colab badge (``cells``). The solved notebook is run for its
outputs (``execute``); ``check`` tells when a notebook no longer follows from its
source.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minids3.course.build.cells import BuildError, Source, student
from minids3.course.build.execute import execute
from minids3.course.repository import root

__all__ = ["Source", "build", "check", "sources", "text_of", "write"]


def sources(numbers: list[str] | None = None, folder: Path | None = None) -> list[Source]:
    """Return the notebook sources, all or those whose names start with ``numbers``.

    Raises:
        BuildError: a number that no source has.
    """
    folder = folder or root() / "notebooks" / "source"
    found = [Source(p) for p in sorted(folder.glob("[0-9][0-9]_*.py"))]
    if not numbers:
        return found
    for number in numbers:
        if not any(s.name.startswith(number) for s in found):
            known = ", ".join(s.name[:2] for s in found)
            raise BuildError(f"no notebook source starts with {number!r}; there are {known}")
    return [s for s in found if any(s.name.startswith(n) for n in numbers)]


def text_of(notebook: Any) -> str:
    """Return a notebook as the text that is written."""
    import nbformat

    return nbformat.writes(notebook, version=4).rstrip("\n") + "\n"


def write(path: Path, text: str) -> bool:
    """Write ``text`` through a temporary file; return whether anything changed."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return True


def build(source: Source, run: bool = True, timeout: int = 3600) -> list[Path]:
    """Write the student's notebook and, with ``run``, the executed solved one.

    Without ``run`` a solved notebook that exists keeps the outputs of cells that did not change.
    """
    changed = []
    if write(source.student_path, text_of(student(source))):
        changed.append(source.student_path)
    solved = student(source, solved=True)
    if run:
        execute(solved, timeout)
    else:
        _keep_outputs(solved, source.solved_path)
    if (run or source.solved_path.exists()) and write(source.solved_path, text_of(solved)):
        changed.append(source.solved_path)
    return changed


def _keep_outputs(notebook: Any, path: Path) -> None:
    import nbformat

    if not path.exists():
        return
    old = {c.id: c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"}
    for cell in notebook.cells:
        before = old.get(cell.id)
        if cell.cell_type == "code" and before is not None:
            cell.outputs, cell.execution_count = before.outputs, before.execution_count


def check(source: Source) -> Iterator[str]:
    """Yield a sentence for each way in which the generated notebooks drifted from ``source``."""
    import nbformat

    fix = f"run: python -m minids3.course build {source.name[:2]}"
    place = source.student_path
    if not place.exists():
        yield f"{_short(place)} is missing; {fix}"
    elif place.read_text(encoding="utf-8") != text_of(student(source)):
        cells = nbformat.read(place, as_version=4).cells
        which = _first_difference(student(source).cells, cells)
        yield f"{_short(place)} differs from its source{which}; {fix}"
    place = source.solved_path
    if not place.exists():
        yield f"{_short(place)} is missing; {fix}"
        return
    old = nbformat.read(place, as_version=4)
    for number, cell in enumerate(old.cells, 1):
        if cell.cell_type != "code":
            continue
        if any(o.output_type == "error" for o in cell.outputs):
            yield f"{_short(place)}: cell {number} ({cell.id}) holds an error; {fix}"
        elif cell.execution_count is None:
            yield f"{_short(place)}: cell {number} ({cell.id}) was never executed; {fix}"
        cell.outputs, cell.execution_count = [], None
    fresh = student(source, solved=True)
    if text_of(old) != text_of(fresh):
        which = _first_difference(fresh.cells, old.cells)
        yield f"{_short(place)} differs from its source{which}; {fix}"


def _short(path: Path) -> str:
    return "/".join(path.parts[-3:] if path.parent.name == "solutions" else path.parts[-2:])


def _first_difference(fresh: list[Any], old: list[Any]) -> str:
    for number, (a, b) in enumerate(zip(fresh, old, strict=False), 1):
        clean = {k: v for k, v in b.items() if k not in ("outputs", "execution_count")}
        if {k: v for k, v in a.items() if k not in ("outputs", "execution_count")} != clean:
            first = (a.source.splitlines() or [""])[0]
            return f" at cell {number} ({first[:50]!r})"
    return "" if len(fresh) == len(old) else f": it has {len(old)} cells, expected {len(fresh)}"
