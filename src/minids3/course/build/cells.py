"""The cells of a notebook, made from its source: markers become set-up, stubs, solutions, checks.

Cell ids come from the exercise or from the cell's own text, so that a build is the same byte for
byte everywhere and a cell keeps its id when others move.
"""

from __future__ import annotations

import ast
import builtins
import copy
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minids3.course.hints import source_of
from minids3.course.names import names_of
from minids3.course.registry import Exercise, exercises, get
from minids3.course.repository import address, pages

__all__ = ["METADATA", "BuildError", "Source", "stub_of", "student"]

# What every notebook says of its kernel: the same whatever machine built it.
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "name": "python"},
}
_MARKER = re.compile(r"# (SETUP|EXERCISE|CHECK)\b[ ]*([a-z0-9-]*)[ ]*(?:\n|$)")
# A link to a file beside the notebooks; the solved one lies a folder below.
_PAGE_LINK = re.compile(r"\]\((?![a-z]+:|#|[\w-]+\.ipynb)([^)\s]+)\)")
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
import minids3  # before torch, whose threads it has wait without spinning
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
    names = names_of(ast.parse(source))
    return set(names.loads - names.binds) - set(dir(builtins))


def _defined(code: str) -> set[str]:
    """Return the names that a cell binds at its top level."""
    plain = "\n".join("pass" if line[:1] in "%!" and line else line for line in code.splitlines())
    return set(names_of(ast.parse(plain)).binds)


def _badge(name: str) -> str:
    repository = address().removeprefix("https://github.com/")
    link = f"https://colab.research.google.com/github/{repository}/blob/main/notebooks/{name}.ipynb"
    read = f"{pages(address())}{name}.html"  # GitHub's preview may leave figures out
    # Words: an image would be fetched whenever the notebook is opened.
    return f"[Open in Colab]({link}) · [Read it solved, with all figures]({read})"


def _effort(exercise: Exercise) -> str:
    ready = [n for n in exercise.forbids if n.startswith("torch.") and "._" not in n]
    name = ready[0].replace("torch.nn.functional.", "F.") if ready else ""
    without = f" To be written without `{name}` and its like." if name else ""
    return (
        f"*Difficulty {exercise.difficulty} of 5 · importance {exercise.importance} of 5 · "
        f"{exercise.minutes} minutes.{without}*"
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
        if "fold" in tags:  # a cell that only draws: JupyterLab and Colab show its output
            metadata |= {"jupyter": {"source_hidden": True}, "cellView": "form"}
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
            if solved:
                text = _PAGE_LINK.sub(r"](../\1)", text)
            cells.append(new_markdown_cell(text, id=cell_id[:64], metadata=metadata))
    _all_used(source, seen)
    notebook = new_notebook(
        cells=cells,
        metadata={
            "colab": {"name": f"{source.name}.ipynb", "provenance": [], "toc_visible": True},
            **copy.deepcopy(METADATA),
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
    """Refuse amounts of money that a notebook would typeset as formulas.

    Markdown turns an escaped dollar into a plain one, and then JupyterLab typesets whatever stands
    between two dollars of one run of text (jupyterlab issues 9033 and 8645): so one in a paragraph,
    an item or a table's cell is safe, and two are not.
    """
    prose = re.sub(r"```.*?(?:```|\Z)|`[^`\n]*`", "", text, flags=re.DOTALL)
    amounts = re.findall(r"(?<!\\)\$\d[^ ]*", prose)
    if amounts:
        raise BuildError(f"{where}: write {amounts[0]} as \\{amounts[0]}, or it starts a formula")
    for block in re.split(r"\n[>\s]*\n|\n[>\s]*(?:[-*+]|\d+\.|#+) |\n(?=\|)|(?<!\\)\|", prose):
        money = re.findall(r"\\\$[^\s|]*", block)
        if len(money) > 1:
            raise BuildError(
                f"{where}: {money[0]} and {money[1]} stand in one paragraph or cell; a notebook "
                "makes a formula of what is between two dollars: write one in words, '14 cents'"
            )


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
