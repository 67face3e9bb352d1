"""The instructor's own notebook: which cells are given, answered and checked.

Made once per run from the student's notebook of the repository; all that a submission says about
its cells is compared with this.
"""

from __future__ import annotations

import ast
import hashlib
import json
from dataclasses import dataclass, field, replace
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
    chosen: dict[str, float | None] = field(
        default_factory=dict
    )  # exercises that count, if not all

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
        found = [c for c in self.cells if c.kind == "answer"]
        return [c for c in found if c.exercise in self.chosen] if self.chosen else found

    def only(self, chosen: dict[str, float | None]) -> Pristine:
        """Return the notebook with these exercises alone, with their points where some are given.

        Raises:
            ValueError: it has no such exercise.
        """
        for id in chosen:
            if id not in self.ids:
                raise ValueError(
                    f"{self.name} has no exercise {id!r}; it has {', '.join(self.ids)}"
                )
        return replace(self, chosen=dict(chosen))

    @property
    def points(self) -> dict[str, float]:
        """What each exercise is worth: by choice, by its check cell, or by the exercise itself."""
        said = {c.exercise: c.points for c in self.cells if c.kind == "check"}
        found = {}
        for id in self.ids:
            worth = self.chosen.get(id)
            worth = said.get(id, -1.0) if worth is None else worth
            found[id] = _registered(id) if worth < 0 else worth
        return found

    @property
    def names(self) -> dict[str, str]:
        """The functions that the exercises ask for, by id."""
        return {e.exercise: e.name for e in self.exercises}

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
        points = grade.get("points", -1)
        if isinstance(points, bool) or not isinstance(points, int | float) or points > 1e6:
            raise Unreadable(f"cell {cell.number}: {points!r} are no points")
        points = float(points)
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


def _registered(id: str) -> float:
    from minids3.course.registry import get

    try:
        return float(get(id).points)
    except (KeyError, ImportError):
        return 0.0


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
