"""``check``: the reader's side of an exercise.

Interactively it prints a checklist and never raises. Under pytest (nbval) or MINIDS3_STRICT=1 a
failure raises ``CheckFailed``, so that the cell fails, but only after the function to go on with is
in the notebook's namespace, so that no later cell does.
"""

from __future__ import annotations

import itertools
import os
import textwrap
from collections.abc import Callable
from typing import Any

from minids3.course import progress
from minids3.course.hints import NAMES, next_level
from minids3.course.launching import is_library, library_of
from minids3.course.registry import Exercise, get
from minids3.course.run import Report, run_check

__all__ = ["LIBRARY", "CheckFailed", "check", "format_report", "namespace", "placeholder"]

_WIDTH = 92
LIBRARY = "this is the library's version: run your own cell above first"


class CheckFailed(Exception):
    """A check failed under pytest; its message is the short version of the checklist."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows: the message alone, no paths of this machine."""
        return [f"CheckFailed: {self}"]


def check(id: str, fn: Callable[..., Any], *, dry: bool = False) -> Callable[..., Any]:
    """Check ``fn`` against exercise ``id``, print a checklist, and return what to go on with.

    Args:
        id: of the exercise.
        fn: the reader's function.
        dry: only look: record no progress, and never raise.

    Returns:
        ``fn`` if every item passed, else the library's function of the same kind. That one, which
        a name holds after a failed check, is not checked, and nothing is recorded. Nor is an
        exercise that needs Triton where there is none.

    Raises:
        KeyError: no such exercise.
        CheckFailed: only under pytest or with MINIDS3_STRICT=1, when an item failed, or
            ``fn`` is the library's.
    """
    exercise = get(id)
    if is_library(exercise, fn):
        print(f"{id}   {LIBRARY}.\nNothing was checked, and nothing is recorded.")
        if not dry and strict():
            namespace()[exercise.name] = library_of(exercise)
            raise CheckFailed(f"{id}: {LIBRARY}")
        return library_of(exercise)
    try:
        report = run_check(exercise, fn)
    except ImportError as error:
        if error.name != "triton":
            raise
        print(f"{id}   skipped, no Triton. Nothing was checked, and nothing is recorded.")
        return library_of(exercise)
    if not dry:
        progress.record(exercise, report.passed, len(report.items))
    to_reader = not dry and not strict()
    print(format_report(exercise, report, next_level(id) if to_reader else 1))
    if report.ok and to_reader:  # for readers: a stored output has no use for it
        print(f'solution("{id}") shows the worked solution and one other accepted way.')
    chosen = fn if report.ok else library_of(exercise)
    if not report.ok and not dry and strict():
        namespace()[exercise.name] = chosen
        bad = next(i for i in report.items if i.status == "no")
        raise CheckFailed(
            f"{id}: {report.passed} of {len(report.items)}. {bad.label}: {bad.reason}"
        )
    return chosen


def strict() -> bool:
    """Whether a failed check is an error: under pytest, or when MINIDS3_STRICT is set."""
    return "PYTEST_VERSION" in os.environ or os.environ.get("MINIDS3_STRICT", "0") not in ("", "0")


def format_report(exercise: Exercise, report: Report, level: int = 1) -> str:
    """Return the checklist as text; ``level`` is that of the hint it offers after a failure."""
    lines = [f"{report.id}   {report.passed} of {len(report.items)}"]
    told = False
    for status, group in itertools.groupby(report.items, key=lambda item: item.status):
        items = list(group)
        if status == "not reached":
            what = items[0].label if len(items) == 1 else f"{len(items)} more items"
            lines.append(f"  ..    {what} (not reached)")
            continue
        for item in items:
            if status == "ok":
                lines.append(f"  ok    {item.label}")
                continue
            lines += _wrap("  no    ", f"{item.label}: {item.reason or 'it is not so'}")
            if report.diagnosis and not told:
                lines += _wrap("        ", report.diagnosis)
                told = True
    if report.ok:
        lines.append(f"The notebook goes on with your {exercise.name}.")
    else:
        lines.append(
            f'hint("{exercise.id}") has {NAMES[level]} for you. '
            "The notebook goes on with the library's version."
        )
    return "\n".join(lines)


def _wrap(prefix: str, text: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=prefix,
        subsequent_indent=" " * 8,
        break_long_words=False,
        break_on_hyphens=False,
    )


def namespace() -> dict[str, Any]:
    """Return the notebook's variables, or an empty dictionary where there is no notebook."""
    from IPython.core.getipython import get_ipython

    shell = get_ipython()
    return {} if shell is None else shell.user_ns


def placeholder(exercise: Exercise) -> Callable[..., Any]:
    """Return a function that stands in until the reader's cell has defined one.

    Without it a cell with a syntax error would leave the name undefined and stop every later cell.
    """

    def missing(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(
            f"{exercise.name} is not defined. Run the cell above, and see that it ends without an "
            "error"
        )

    missing.__name__ = exercise.name
    missing.is_placeholder = True  # type: ignore[attr-defined]
    return missing
