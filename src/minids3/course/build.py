"""From ``notebooks/source/NN_name.py`` to the student's and the solved notebook.

A source is jupytext's py:percent. Three first lines are markers: ``# SETUP`` becomes the set-up
cell, ``# EXERCISE id`` the stub or the solution, ``# CHECK id`` the check. ``{{badge}}`` in a
markdown cell becomes the Colab badge. Cell ids come from the exercise or from the cell's own text,
so that a build is the same byte for byte everywhere and a cell keeps its id when others move.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import os
import re
import symtable
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minids3.course.hints import source_of
from minids3.course.registry import Exercise, exercises, get
from minids3.course.repository import address, root

__all__ = ["BuildError", "Source", "build", "check", "sources", "stub_of", "student"]

_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
_MARKER = re.compile(r"# (SETUP|EXERCISE|CHECK)\b[ ]*([a-z0-9-]*)[ ]*(?:\n|$)")
_GIVEN = {"math", "torch", "F", "np", "plt", "check", "hint", "progress", "setup", "solution"}
_GIVEN |= {"viz"}

_SETUP = """\
# Set-up. On Colab this installs the workbook; elsewhere it must be there.
import importlib.util, sys

if importlib.util.find_spec("minids3") is None:
    if "google.colab" not in sys.modules:
        raise ModuleNotFoundError("minids3 is not installed here: run 'make lab' "
                                  "in the repository, or 'pip install .'")
    %pip install -q "minids3 @ git+{address}"

import math
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from minids3 import viz
from minids3.course import check, hint, progress, setup, solution

setup("{name}")"""


class BuildError(ValueError):
    """A notebook source that cannot be built; says which cell and what to do."""


@dataclass(frozen=True)
class Source:
    """One notebook source and where its products go."""

    path: Path

    @property
    def name(self) -> str:
        """Return ``NN_name``."""
        return self.path.stem

    @property
    def student_path(self) -> Path:
        """Where the student's notebook goes."""
        return self.path.parent.parent / f"{self.name}.ipynb"

    @property
    def solved_path(self) -> Path:
        """Where the solved notebook goes."""
        return self.path.parent.parent / "solutions" / f"{self.name}.ipynb"


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


# the text of cells --------------------------------------------------------------------------------


def stub_of(exercise: Exercise) -> str:
    """Return the solution's signature and docstring, and a body that raises."""
    source = source_of(exercise.id)
    function = ast.parse(source).body[0]
    if not isinstance(function, ast.FunctionDef) or not ast.get_docstring(function):
        raise BuildError(f"{exercise.id}: the solution must be one function with a docstring")
    head = source.splitlines()[: function.body[0].end_lineno]
    return "\n".join([*head, "    raise NotImplementedError"])


def _free_names(source: str) -> set[str]:
    """Return the names that ``source`` takes from its surroundings."""
    top = symtable.symtable(source, "<solution>", "exec")
    own = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported()}
    used: set[str] = set()

    def walk(table: symtable.SymbolTable) -> None:
        for symbol in table.get_symbols():
            outer = symbol.is_global() or table is top
            if symbol.is_referenced() and outer:
                used.add(symbol.get_name())
        for child in table.get_children():
            walk(child)

    walk(top)
    return used - own - set(dir(builtins))


def _defined(code: str) -> set[str]:
    """Return the names that a cell binds at its top level."""
    plain = "\n".join("pass" if line[:1] in "%!" and line else line for line in code.splitlines())
    table = symtable.symtable(plain, "<cell>", "exec")
    return {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}


def _badge(name: str) -> str:
    repository = address().removeprefix("https://github.com/")
    link = f"https://colab.research.google.com/github/{repository}/blob/main/notebooks/{name}.ipynb"
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({link})"


def _effort(exercise: Exercise) -> str:
    return (
        f"*Difficulty {exercise.difficulty} of 5 · importance {exercise.importance} of 5 · "
        f"{exercise.minutes} minutes.*"
    )


def _grade(id: str, **fields: Any) -> dict[str, Any]:
    base = {"grade": False, "grade_id": id, "locked": False, "schema_version": 3, "task": False}
    return {"nbgrader": {**base, **fields}}


# the notebook -------------------------------------------------------------------------------------


def _read(source: Source) -> Any:
    import jupytext

    return jupytext.reads(source.path.read_text(encoding="utf-8"), fmt="py:percent")


def student(source: Source, solved: bool = False) -> Any:
    """Build one notebook, not executed: the student's, or with ``solved`` the one with answers.

    Raises:
        BuildError: an unknown marker or exercise, an exercise used twice or not at all, a solution
            that uses a name the notebook does not have yet.
    """
    import nbformat
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

    cells: list[Any] = []
    seen: dict[str, list[str]] = {"EXERCISE": [], "CHECK": []}
    hashes: dict[str, int] = {}
    names = set(_GIVEN)
    raws = _read(source).cells

    def next_exercise(number: int) -> Exercise | None:
        """Return the exercise of the cell after cell ``number``, if it is one."""
        text = raws[number].source.strip("\n") if number < len(raws) else ""
        found = _MARKER.match(text)
        if not found or found.group(1) != "EXERCISE" or raws[number].cell_type != "code":
            return None
        return _exercise(found.group(2), source, f"{source.path.name}, cell {number + 1}")

    for number, raw in enumerate(raws, 1):
        text, tags = raw.source.strip("\n"), list(raw.metadata.get("tags", []))
        metadata: dict[str, Any] = {"tags": tags} if tags else {}
        marker = _MARKER.match(text)
        kind, id = (marker.group(1), marker.group(2)) if marker else ("", "")
        where = f"{source.path.name}, cell {number}"
        cell_id = None
        if kind in seen and raw.cell_type == "code":
            exercise = _exercise(id, source, where)
            seen[kind].append(id)
            if kind == "EXERCISE":
                body = source_of(id) if solved else stub_of(exercise)
                missing = _free_names(source_of(id)) - names
                if missing:
                    raise BuildError(
                        f"{where}: the solution of {id} uses {', '.join(sorted(missing))}, which "
                        "no earlier cell defines"
                    )
                text, cell_id = f"# EXERCISE {id}\n{body}", f"answer-{id}"
                metadata.update(_grade(id, solution=True))
                names.add(exercise.name)
            else:
                text = f'{exercise.name} = check("{id}", {exercise.name})'
                cell_id = f"check-{id}"
                points = exercise.points
                grade = {"grade": True, "locked": True, "points": points, "solution": False}
                metadata.update(_grade(f"{id}-check", **grade), editable=False, deletable=False)
        elif kind == "SETUP" and raw.cell_type == "code":
            text, cell_id = _SETUP.format(address=address(), name=source.name), "setup"
        elif raw.cell_type == "code":
            names |= _names_of(text, where)
        else:
            text = text.replace("{{badge}}", _badge(source.name))
            text = _statement(text, next_exercise(number))
            _no_stray_maths(text, where)
        if cell_id is None:
            digest = hashlib.sha256(f"{raw.cell_type}\n{text}".encode()).hexdigest()[:12]
            hashes[digest] = hashes.get(digest, 0) + 1
            cell_id = digest if hashes[digest] == 1 else f"{digest}-{hashes[digest]}"
        if raw.cell_type == "code":
            cells.append(new_code_cell(text, id=cell_id[:64], metadata=metadata))
        else:
            cells.append(new_markdown_cell(text, id=cell_id[:64], metadata=metadata))
    _all_used(source, seen)
    notebook = new_notebook(
        cells=cells,
        metadata={
            "colab": {"name": f"{source.name}.ipynb", "provenance": [], "toc_visible": True},
            "kernelspec": dict(_KERNEL),
            "language_info": {"file_extension": ".py", "name": "python"},
        },
    )
    notebook.nbformat_minor = 5
    nbformat.validate(notebook)
    return notebook


def _exercise(id: str, source: Source, where: str) -> Exercise:
    try:
        exercise = get(id)
    except KeyError as error:
        raise BuildError(f"{where}: {error}") from None
    if exercise.notebook != source.name:
        raise BuildError(f"{where}: exercise {id} belongs to {exercise.notebook}")
    return exercise


def _statement(text: str, exercise: Exercise | None) -> str:
    """Return the text before an exercise's cell: a marker line goes, the effort comes."""
    if exercise is None:
        return text
    first, _, rest = text.partition("\n")
    if re.match(r"#* ?EXERCISE\b", first):
        text = rest.strip("\n")
    return f"{text}\n\n{_effort(exercise)}"


def _no_stray_maths(text: str, where: str) -> None:
    """Refuse amounts of money that a notebook would typeset as formulas."""
    amounts = re.findall(r"(?<!\\)\$\d[^ ]*", text)
    if amounts:
        raise BuildError(f"{where}: write {amounts[0]} as \\{amounts[0]}, or it starts a formula")


def _names_of(text: str, where: str) -> set[str]:
    try:
        return _defined(text)
    except SyntaxError as error:
        raise BuildError(f"{where}: {error.msg} in line {error.lineno}") from None


def _all_used(source: Source, seen: dict[str, list[str]]) -> None:
    wanted = [e.id for e in exercises(source.name)]
    for kind, ids in seen.items():
        if sorted(ids) != sorted(wanted):
            raise BuildError(
                f"{source.path.name} must have one '# {kind} id' cell for each of "
                f"{', '.join(wanted) or 'no exercise'}; it has {', '.join(ids) or 'none'}"
            )


def text_of(notebook: Any) -> str:
    """Return a notebook as the text that is written."""
    import nbformat

    return nbformat.writes(notebook, version=4).rstrip("\n") + "\n"


def execute(notebook: Any, timeout: int = 900) -> Any:
    """Run ``notebook`` in a fresh kernel and return it with outputs and nothing that varies.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    from nbclient import NotebookClient

    with tempfile.TemporaryDirectory() as folder:
        given = {
            "MINIDS3_STRICT": "1",
            "MINIDS3_HOME": folder,
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }
        before = {k: os.environ.get(k) for k in given}
        os.environ.update(given)
        try:
            NotebookClient(
                notebook,
                timeout=timeout,
                kernel_name="python3",
                store_widget_state=True,  # it answers the kernel; dropped below
                record_timing=False,
                extra_arguments=["--log-level=40"],
                resources={"metadata": {"path": folder}},
            ).execute()
        finally:
            for key, value in before.items():
                if value is None:
                    os.environ.pop(key, None)
                else:
                    os.environ[key] = value
    notebook.metadata.kernelspec = dict(_KERNEL)
    notebook.metadata.language_info = {"file_extension": ".py", "name": "python"}
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = _tidy(cell.outputs)
    return notebook


def _tidy(outputs: list[Any]) -> list[Any]:
    """Drop widget views (their models are gone), progress bars and empty output; join streams."""
    kept: list[Any] = []
    for out in outputs:
        data = out.get("data", {})
        widget = "application/vnd.jupyter.widget-view+json"
        if widget in data:
            del data[widget]
            out.get("metadata", {}).pop(widget, None)
            if re.match(r"\s*\d+%\|.*\[.*\]", data.get("text/plain", "")):
                continue  # tqdm's bar, frozen at its first step
        if out.output_type == "stream" and out.name == "stderr":
            if "it/s" in out.text or "s/it" in out.text or "\r" in out.text:
                continue
            raise BuildError(f"a cell wrote to stderr: {out.text[:200]}")
        same_stream = out.output_type == "stream" and kept and kept[-1].output_type == "stream"
        if same_stream and kept[-1].name == out.name:
            kept[-1].text += out.text
        else:
            kept.append(out)
    return kept


def write(path: Path, text: str) -> bool:
    """Write ``text`` through a temporary file; return whether anything changed."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return True


def build(source: Source, run: bool = True, timeout: int = 900) -> list[Path]:
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
