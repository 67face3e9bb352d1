"""Hints in three levels, and the worked solution.

A level is given when asked for: a question, then pseudocode, then the solution's source.
"""

from __future__ import annotations

import inspect
import textwrap

from minids3.course import progress
from minids3.course.registry import get

__all__ = ["hint", "solution", "source_of"]

_NAMES = {1: "a question", 2: "pseudocode", 3: "the worked solution"}
_SEEN: dict[str, int] = {}


def hint(id: str, level: int | None = None) -> None:
    """Print a hint of exercise ``id``: the next level at each call, or the one asked for.

    Raises:
        KeyError: no such exercise; the message names the nearest ones.
        ValueError: a level other than 1, 2, 3.
    """
    exercise = get(id)
    if level is None:
        level = min(max(_SEEN.get(id, 0), progress.hint_level(id)) + 1, 3)
    if level not in _NAMES:
        raise ValueError(f"level={level!r}: hints have levels 1, 2 and 3")
    _SEEN[id] = max(level, _SEEN.get(id, 0))
    progress.record_hint(id, level)
    print(f"{id}, hint {level} of 3: {_NAMES[level]}")
    if level == 3:
        print(textwrap.indent(source_of(id), "    "))
        return
    text = textwrap.dedent(exercise.hints[level - 1]).strip()
    if level == 1:
        text = textwrap.fill(" ".join(text.split()), 76)
    print(textwrap.indent(text, "    "))
    print(f'hint("{id}") again shows {_NAMES[level + 1]}.')


def solution(id: str) -> None:
    """Print the worked solution of exercise ``id``; ``KeyError`` if there is none of that name."""
    source = source_of(id)
    progress.record_hint(id, 3)
    print(source)


def source_of(id: str) -> str:
    """Return the source of the worked solution, as the solved notebook has it."""
    exercise = get(id)
    source = textwrap.dedent(inspect.getsource(exercise.solution)).rstrip()
    return f"@triton.jit\n{source}" if exercise.kernel else source
