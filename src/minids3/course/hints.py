"""Hints in three levels, and the worked solution.

A level is given when asked for: a question, then pseudocode, then the solution's source.
``solution`` also shows one other answer that the check accepts.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable
from typing import Any

from minids3.course import progress
from minids3.course.names import names_of
from minids3.course.registry import get

__all__ = ["NAMES", "hint", "next_level", "other_way", "solution", "source_of"]

NAMES = {1: "a question", 2: "pseudocode", 3: "the worked solution"}
_SEEN: dict[str, int] = {}


def hint(id: str, level: int | None = None) -> None:
    """Print a hint of exercise ``id``: the next level at each call, or the one asked for.

    Raises:
        KeyError: no such exercise; the message names the nearest ones.
        ValueError: a level other than 1, 2, 3.
    """
    exercise = get(id)
    if level is None:
        level = next_level(id)
    if level not in NAMES:
        raise ValueError(f"level={level!r}: hints have levels 1, 2 and 3")
    _SEEN[id] = max(level, _SEEN.get(id, 0))
    progress.record_hint(id, level)
    print(f"{id}, hint {level} of 3: {NAMES[level]}")
    if level == 3:
        print(textwrap.indent(source_of(id), "    "))
        return
    text = textwrap.dedent(exercise.hints[level - 1]).strip()
    if level == 1:
        text = textwrap.fill(" ".join(text.split()), 76)
    print(textwrap.indent(text, "    "))
    print(f'hint("{id}") again shows {NAMES[level + 1]}.')


def next_level(id: str) -> int:
    """Return the level of the hint that ``hint(id)`` shows next."""
    return min(max(_SEEN.get(id, 0), progress.hint_level(id)) + 1, 3)


def solution(id: str) -> None:
    """Print the worked solution of exercise ``id``, and one other way that the check accepts.

    Raises:
        KeyError: no such exercise; the message names the nearest ones.
    """
    source = source_of(id)
    progress.record_hint(id, 3)
    print(f"{source}\n\n\n# The check accepts other ways too. One of them:\n{other_way(id)}")


def source_of(id: str) -> str:
    """Return the source of the worked solution, as the solved notebook has it."""
    exercise = get(id)
    return _source(exercise.solution, exercise.kernel)


def other_way(id: str) -> str:
    """Return the source of an alternative of exercise ``id``, under the reader's name for it.

    It is the first that takes nothing from its module but what the notebook has as well; if none
    is like that, the first, after the helpers that it calls.
    """
    exercise = get(id)
    found = []
    for alternative in exercise.alternatives:
        helpers = _helpers(alternative.fn)
        whole = "\n\n\n".join(_source(fn, False) for fn in helpers)
        own = _source(alternative.fn, exercise.kernel)
        own = re.sub(rf"\b{alternative.fn.__name__}\b", exercise.name, own)
        borrowed = alternative.name.startswith("library")
        found.append((len(helpers) + borrowed, f"{whole}\n\n\n{own}".lstrip()))
    return min(found, key=lambda pair: pair[0])[1]


def _source(fn: Callable[..., Any], kernel: bool) -> str:
    source = textwrap.dedent(inspect.getsource(fn)).rstrip()
    return f"@triton.jit\n{source}" if kernel else source


def _helpers(fn: Callable[..., Any], known: tuple[str, ...] = ()) -> list[Callable[..., Any]]:
    """Return the private functions of its module that ``fn`` calls, the innermost first."""
    names = names_of(ast.parse(_source(fn, False)))
    inner: dict[str, Callable[..., Any]] = {}
    for name in sorted(names.loads - names.binds - set(known)):
        helper = fn.__globals__.get(name)
        if name.startswith("_") and inspect.isfunction(helper):
            for each in _helpers(helper, (*known, name)):
                inner[each.__name__] = each
            inner[name] = helper
    return list(inner.values())
