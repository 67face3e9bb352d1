"""The instructor's own notebook: which cells are given, answered and checked.

Made once per run from the student's notebook of the repository; all that a submission says about
its cells is compared with this.
"""

from __future__ import annotations

import ast
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minids3.grade.submissions.reading import Cell, Unreadable, cells_of, load
from minids3.grade.submissions.slices import Statement, dump, python_of, statements

__all__ = ["Given", "Pristine", "find_notebook", "is_stub"]


@dataclass(frozen=True)
class Given:
    """One code cell of the instructor's notebook."""

    number: int  # from 0, among all cells
    kind: str  # "given", "answer" or "check"
    id: str
    source: str
    pool: tuple[Statement, ...] = ()
    exercise: str = ""  # of a check cell: the id it checks
    grade_id: str = ""
    name: str = ""  # of an answer: the function it defines
    check: int = 0  # of an answer: the number of its check cell
    points: float = 0.0
    dumps: frozenset[str] = field(default=frozenset(), repr=False)


@dataclass(frozen=True)
class Pristine:
    """The instructor's notebook, read once."""

    name: str
    notebook: dict[str, Any] = field(repr=False)
    all_cells: tuple[Given | None, ...] = field(repr=False)  # None for text
    digest: str = ""

    @classmethod
    def read(cls, path: Path) -> Pristine:
        """Read the student's notebook at ``path``, as the repository holds it.

        Raises:
            ValueError: it has no exercises, or an exercise without a check.
        """
        notebook = load(path)
        cells = cells_of(notebook)
        if len(cells) != len(notebook["cells"]):
            raise Unreadable("has malformed cells")
        checks = {
            c.grade_id.removesuffix("-check"): c.number - 1
            for c in cells
            if c.kind == "code" and c.grade_id.endswith("-check")
        }
        made = tuple(
            _given(c, raw, checks) if c.kind == "code" else None
            for c, raw in zip(cells, notebook["cells"], strict=True)
        )
        text = json.dumps([[c.kind, c.source, c.grade_id] for c in cells])
        self = cls(path.stem, notebook, made, hashlib.sha256(text.encode()).hexdigest())
        if not self.exercises:
            raise Unreadable(f"({path.name}) has no exercise: give the course's own notebook")
        return self

    @property
    def cells(self) -> list[Given]:
        """The code cells."""
        return [c for c in self.all_cells if c is not None]

    @property
    def exercises(self) -> list[Given]:
        """The answers' cells, in order."""
        return [c for c in self.cells if c.kind == "answer"]

    @property
    def ids(self) -> list[str]:
        """The ids of the exercises."""
        return [c.exercise for c in self.exercises]

    @property
    def title(self) -> str:
        """The notebook's heading."""
        first = cells_of(self.notebook)[0].source.splitlines()[0] if self.notebook["cells"] else ""
        return first.lstrip("# ").strip() or self.name

    @property
    def titles(self) -> dict[str, str]:
        """Each exercise's title."""
        from minids3.course.registry import get

        found = {}
        for id in self.ids:
            try:
                found[id] = get(id).title
            except (KeyError, ImportError):
                found[id] = id
        return found

    def exercise(self, id: str) -> Given:
        """Return the answer's cell of exercise ``id``."""
        return next(c for c in self.exercises if c.exercise == id)

    def is_stub(self, id: str, code: str) -> bool:
        """Whether ``code`` is the cell as it came, or a function that still does nothing."""
        return is_stub(code, self.exercise(id).name, self.exercise(id).source)


def _given(cell: Cell, raw: dict[str, Any], checks: dict[str, int]) -> Given:
    code = python_of(cell.source)
    pool = tuple(statements(code) or ())
    number = cell.number - 1
    common = {
        "number": number,
        "id": cell.ids[0] if cell.ids else f"cell-{number}",
        "source": "\n".join(line.rstrip() for line in cell.source.strip("\n").splitlines()),
        # Seeds and the like matter to trials, not to answers.
        "pool": tuple(s for s in pool if not s.setting),
        "grade_id": cell.grade_id,
        "dumps": frozenset(s.dump for s in pool),
    }
    grade = raw["metadata"].get("nbgrader", {})
    if cell.grade_id.endswith("-check"):
        points = float(grade.get("points", 0))
        checked = cell.grade_id.removesuffix("-check")
        return Given(kind="check", exercise=checked, points=points, **common)
    if not grade.get("solution"):
        return Given(kind="given", **common)
    if cell.grade_id not in checks:
        raise Unreadable(f"has no check cell for {cell.grade_id}")
    functions = [n for n in ast.parse(code).body if isinstance(n, ast.FunctionDef)]
    if not functions:
        raise Unreadable(f"cell {cell.number} ({cell.grade_id}) defines no function")
    return Given(
        kind="answer",
        exercise=cell.grade_id,
        name=functions[-1].name,
        check=checks[cell.grade_id],
        **common,
    )


def is_stub(code: str, name: str, given: str = "") -> bool:
    """Whether ``code`` means what ``given`` does, or defines ``name`` with nothing in it."""
    if not code.strip():
        return True
    meaning = dump(code)
    if meaning and meaning == dump(given):
        return True
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    if not body:
        return True
    found = [n for n in body if isinstance(n, ast.FunctionDef) and n.name == name]
    return bool(found) and all(_does_nothing(n) for n in found[-1].body)


def _does_nothing(node: ast.stmt) -> bool:
    if isinstance(node, ast.Pass) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    ):
        return True
    return isinstance(node, ast.Raise) and "NotImplementedError" in ast.unparse(node)


def find_notebook(text: str) -> Path:
    """Return the notebook that ``text`` names: a path, ``03`` or ``03_latent_attention``.

    Raises:
        FileNotFoundError: there is no such notebook here.
    """
    path = Path(text)
    if path.is_file():
        return path
    from minids3.course.repository import root

    folder = root() / "notebooks"
    found = [p for p in sorted(folder.glob("[0-9][0-9]_*.ipynb")) if p.stem.startswith(path.stem)]
    if len(found) != 1 or not path.stem[:1].isdigit():
        known = ", ".join(p.stem for p in sorted(folder.glob("[0-9][0-9]_*.ipynb")))
        raise FileNotFoundError(f"{text!r} is no notebook; there are {known}")
    return found[0]
