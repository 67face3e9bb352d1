"""Checks that an instructor keeps to themselves: a folder of Python files outside the repository.

Each file defines checks as the workbook's own exercises do, for exercises that exist::

    from minids3.grade.private import private_check

    @private_check("mla-compress", title="long texts")
    def check_long(c):
        ...

Their items join the exercise's own and share its points. Students read the labels, not the inputs.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minids3.course.registry import Exercise, get
from minids3.course.run import run_check

__all__ = ["PrivateCheck", "load_private", "private_check"]


@dataclass(frozen=True)
class PrivateCheck:
    """A check for exercise ``id`` that students have not seen."""

    id: str
    title: str
    check: Callable[[Any], None]

    def of(self, exercise: Exercise) -> Exercise:
        """Return the exercise with this check in the place of its own."""
        return replace(exercise, check=self.check)


_FOUND: list[PrivateCheck] = []


def private_check(
    id: str, *, title: str = "private"
) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Say that the decorated function is a private check of exercise ``id``."""

    def note(check: Callable[[Any], None]) -> Callable[[Any], None]:
        _FOUND.append(PrivateCheck(id, title, check))
        return check

    return note


def load_private(folder: Path) -> dict[str, list[PrivateCheck]]:
    """Return the checks of a folder, by exercise; each is tried on the worked solution first.

    Raises:
        ValueError: no such folder, a file that fails, an unknown exercise, or a check that the
            solution does not pass.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder} with private checks")
    found: dict[str, list[PrivateCheck]] = {}
    for path in sorted(folder.glob("*.py")):
        _FOUND.clear()
        try:
            runpy.run_path(str(path))
            for check in _FOUND:
                exercise = get(check.id)
                run_check(check.of(exercise), exercise.solution, 0)  # raises if it fails its own
                found.setdefault(check.id, []).append(check)
        except (Exception, SystemExit) as error:
            raise ValueError(
                f"private checks in {path.name}: {type(error).__name__}: {error}"
            ) from None
    return found
