"""Exercises and where to find them.

One module per notebook in ``minids3.course.exercises`` (``nb02_transformer_baseline.py`` for
``02_transformer_baseline``). The worked solution is an ordinary function there; the student's stub
and the solved notebook's cell are both cut from its source, so they cannot drift apart::

    def rms_norm(x, weight, eps=1e-6):
        '''...'''
        ...

    @exercise("rms-norm", solution=rms_norm, notebook="00_start_here", title="...", difficulty=1,
              importance=3, minutes=5, library=rms_norm_ref, hints=("a question", "pseudocode"),
              mutants=[Mutant("no_sqrt", fn, "You divided by ...")], alternatives=[...])
    def check_rms_norm(c):
        ...

Modules are imported when somebody asks for an exercise, one by one: a broken module stops only
those who need it.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minids3.course.checker import Checker

__all__ = ["Alternative", "Exercise", "Mutant", "exercise", "exercises", "get"]

Fn = Callable[..., Any]


@dataclass(frozen=True)
class Mutant:
    """A typical wrong answer, and the sentence that tells its author what went wrong."""

    name: str
    fn: Fn
    diagnosis: str


@dataclass(frozen=True)
class Alternative:
    """A right answer written another way; the check must accept it."""

    name: str
    fn: Fn


@dataclass(frozen=True)
class Exercise:
    """All that is known about one exercise."""

    id: str
    notebook: str
    title: str
    difficulty: int
    importance: int
    minutes: int
    points: int
    solution: Fn
    library: Fn
    check: Callable[[Checker], None]
    hints: tuple[str, str]
    mutants: tuple[Mutant, ...]
    alternatives: tuple[Alternative, ...]
    kernel: bool = False
    forbids: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of the function that the reader writes."""
        return self.solution.__name__

    def __post_init__(self) -> None:
        """Refuse what the build or the checker would stumble over later."""
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.id):
            raise ValueError(f"exercise id {self.id!r}: use lower-case words joined by '-'")
        if not re.fullmatch(r"\d\d_[a-z0-9_]+", self.notebook):
            raise ValueError(f"exercise {self.id}: notebook={self.notebook!r} is not 'NN_name'")
        for field in ("difficulty", "importance"):
            if getattr(self, field) not in range(1, 6):
                raise ValueError(f"exercise {self.id}: {field} must be 1 to 5")
        if len(self.hints) != 2 or not all(h.strip() for h in self.hints):
            raise ValueError(
                f"exercise {self.id}: hints are a question and pseudocode (the third level is "
                "the solution's source)"
            )
        names = [m.name for m in self.mutants] + [a.name for a in self.alternatives]
        if len(set(names)) != len(names):
            raise ValueError(f"exercise {self.id}: two mutants or alternatives share a name")
        if not self.solution.__doc__:
            raise ValueError(f"exercise {self.id}: the solution needs a docstring for the stub")


_REGISTRY: dict[str, Exercise] = {}
_FAILED: dict[str, Exception] = {}
_LOADED: set[str] = set()


def exercise(
    id: str,
    *,
    solution: Fn,
    notebook: str,
    title: str,
    difficulty: int,
    importance: int,
    minutes: int,
    hints: Sequence[str],
    mutants: Sequence[Mutant],
    alternatives: Sequence[Alternative],
    library: Fn | None = None,
    points: int | None = None,
    kernel: bool = False,
    forbids: Sequence[str] = (),
) -> Callable[[Callable[[Checker], None]], Callable[[Checker], None]]:
    """Register the decorated function as the check of exercise ``id``.

    Args:
        id: kebab-case, unique in the workbook.
        solution: the worked solution, with a docstring; its name is the one the reader writes.
        notebook: ``"NN_name"``.
        title: a few words.
        difficulty: 1 to 5.
        importance: 1 to 5.
        minutes: a reader's time.
        hints: a question and pseudocode.
        mutants: wrong answers, at least four.
        alternatives: other right answers, at least two.
        library: what the notebook goes on with when the reader's answer fails (the solution).
        points: of the graded cell, by default the importance.
        kernel: the solution is a Triton kernel. It, its mutants and alternatives are written here
            without ``@triton.jit``, which the notebook's cell gets; the check uses ``c.launch``.
        forbids: dotted names that an answer may not call when graded, such as torch's ready-made
            function; ``"module.*"`` stands for all of a module. What the check compares with and
            the library's own function are forbidden without saying so.

    Raises:
        ValueError: a malformed or duplicate exercise.
    """

    def register(check: Callable[[Checker], None]) -> Callable[[Checker], None]:
        known = _REGISTRY.get(id)
        if known is not None and known.check.__module__ != check.__module__:
            raise ValueError(f"exercise {id!r} exists already, in {known.check.__module__}")
        _REGISTRY[id] = Exercise(
            id=id,
            notebook=notebook,
            title=title,
            difficulty=difficulty,
            importance=importance,
            minutes=minutes,
            points=importance if points is None else points,
            solution=solution,
            library=solution if library is None else library,
            check=check,
            hints=tuple(hints),  # type: ignore[arg-type]
            mutants=tuple(mutants),
            alternatives=tuple(alternatives),
            kernel=kernel,
            forbids=tuple(forbids),
        )
        return check

    return register


def _modules() -> list[str]:
    package = importlib.import_module("minids3.course.exercises")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name[:2] == "nb")


def _load(module: str) -> None:
    if module in _LOADED:
        return
    try:
        importlib.import_module(f"minids3.course.exercises.{module}")
    except Exception as error:  # reported when somebody needs that module
        _FAILED[module] = error
    else:
        _FAILED.pop(module, None)
        _LOADED.add(module)


def get(id: str) -> Exercise:
    """Return exercise ``id``.

    Raises:
        KeyError: no such exercise; the message names the nearest ids.
    """
    for module in _modules():
        if id in _REGISTRY:
            break
        _load(module)
    if id in _REGISTRY:
        return _REGISTRY[id]
    for module, error in _FAILED.items():
        raise ImportError(f"minids3.course.exercises.{module} cannot be imported") from error
    raise UnknownExercise(id, sorted(_REGISTRY))


class UnknownExercise(KeyError):
    """No exercise of that name; says which ones are near."""

    def __init__(self, id: object, known: list[str]) -> None:
        near = difflib.get_close_matches(str(id), known, n=3, cutoff=0.4) or known
        super().__init__(f"there is no exercise {id!r}. Did you mean {', '.join(near)}?")

    def __str__(self) -> str:
        return str(self.args[0])

    def _render_traceback_(self) -> list[str]:
        """What IPython shows: the message alone, not our own lines."""
        return [f"UnknownExercise: {self}"]


def exercises(notebook: str | None = None) -> list[Exercise]:
    """Return the exercises of ``notebook`` ("NN_name"), or all, in the order of definition.

    Raises:
        ImportError: a module that is needed cannot be imported.
    """
    for module in _modules():
        if notebook is None or module == f"nb{notebook}":
            _load(module)
            if module in _FAILED:
                raise ImportError(f"minids3.course.exercises.{module} is broken") from _FAILED[
                    module
                ]
    found = [e for e in _REGISTRY.values() if notebook is None or e.notebook == notebook]
    return sorted(found, key=lambda e: e.notebook)
