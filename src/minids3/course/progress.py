"""What the reader has solved so far, in one small JSON file.

The file is ``progress.json`` in MINIDS3_HOME, by default ``~/.minids3``. Under pytest nothing is
recorded unless MINIDS3_HOME is set, so that testing the notebooks does not solve them for you.
"""

from __future__ import annotations

import html
import json
import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minids3.course.registry import Exercise

__all__ = ["Progress", "progress", "record"]

_VERSION = 1


def home() -> Path:
    """Return the folder that progress is kept in."""
    chosen = os.environ.get("MINIDS3_HOME")
    return Path(chosen).expanduser() if chosen else Path.home() / ".minids3"


def _path() -> Path:
    return home() / "progress.json"


def load() -> dict[str, dict[str, int]]:
    """Return id -> {"passed", "total", "best", "tries", "hints"}; empty if nothing is recorded.

    A file that cannot be read is kept as ``progress.json.bak``, with a warning.
    """
    path = _path()
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        entries = data["exercises"]
        keys = ("passed", "total", "best", "tries", "hints")
        return {str(k): {f: int(v[f]) for f in keys} for k, v in entries.items()}
    except FileNotFoundError:
        return {}
    except OSError as error:
        warnings.warn(f"progress cannot be read: {error.strerror}", stacklevel=2)
        return {}
    except (ValueError, KeyError, TypeError, AttributeError):
        backup = path.with_suffix(".json.bak")
        try:
            os.replace(path, backup)
            kept = f"it is kept as {backup.name}, next to the new one"
        except OSError:
            kept = "it could not be moved aside"
        warnings.warn(f"progress.json was damaged and starts afresh; {kept}", stacklevel=2)
        return {}


def _save(entries: dict[str, dict[str, int]]) -> None:
    folder = home()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"version": _VERSION, "exercises": entries}, indent=1, sort_keys=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix=".progress-", suffix=".json")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text + "\n")
        os.replace(name, _path())
    except OSError as error:  # a full or read-only disk must not stop a lesson
        warnings.warn(f"progress is not saved: {error.strerror}", stacklevel=2)


def _recording() -> bool:
    return "PYTEST_VERSION" not in os.environ or "MINIDS3_HOME" in os.environ


def _update(id: str, change: Any) -> None:
    if not _recording():
        return
    entries = load()
    entry = entries.setdefault(id, {"passed": 0, "total": 0, "best": 0, "tries": 0, "hints": 0})
    change(entry)
    _save(entries)


def record(exercise: Exercise, passed: int, total: int) -> None:
    """Note the outcome of one check."""

    def change(entry: dict[str, int]) -> None:
        best = entry["best"] if entry["total"] == total else 0
        entry.update(passed=passed, total=total, best=max(best, passed))
        entry["tries"] += 1

    _update(exercise.id, change)


def record_hint(id: str, level: int) -> None:
    """Note that the reader has seen hint ``level``."""
    _update(id, lambda entry: entry.update(hints=max(entry["hints"], level)))


def hint_level(id: str) -> int:
    """Return the highest hint level seen so far."""
    return load().get(id, {}).get("hints", 0) if _recording() else 0


@dataclass(frozen=True)
class Row:
    """One exercise in the table."""

    notebook: str
    id: str
    title: str
    passed: int
    total: int
    tries: int
    hints: int

    @property
    def solved(self) -> bool:
        """Whether every item has passed once."""
        return self.total > 0 and self.passed == self.total


@dataclass(frozen=True, repr=False)
class Progress:
    """A table that shows itself as HTML in a notebook and as text elsewhere."""

    rows: tuple[Row, ...]

    @property
    def solved(self) -> int:
        """How many exercises are solved."""
        return sum(r.solved for r in self.rows)

    def __repr__(self) -> str:
        lines = [f"{self.solved} of {len(self.rows)} exercises solved"]
        width = max((len(r.id) for r in self.rows), default=0)
        for r in self.rows:
            filled = 0 if not r.total else round(10 * r.passed / r.total)
            bar = "#" * filled + "." * (10 - filled)
            count = f"{r.passed} of {r.total}" if r.total else "not tried"
            lines.append(f"  {r.notebook[:2]}  {r.id:<{width}}  {bar}  {count}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        body = "".join(_html_row(r) for r in self.rows)
        head = "".join(
            f'<th style="text-align:left">{h}</th>'
            for h in ("Notebook", "Exercise", "Share", "Items passed", "Tries", "Hints")
        )
        return (
            f"<p><b>{self.solved} of {len(self.rows)}</b> exercises solved</p>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )


def _html_row(r: Row) -> str:
    share = 0 if not r.total else round(100 * r.passed / r.total)
    colour = "#009E73" if r.solved else "#E69F00"
    bar = (
        '<div style="width:8em;height:.7em;border:1px solid #8888;border-radius:.35em">'
        f'<div style="width:{share}%;height:100%;background:{colour};border-radius:.3em"></div>'
        "</div>"
    )
    count = f"{r.passed} of {r.total}" if r.total else "not tried"
    cells = (r.notebook[:2], f"<code>{html.escape(r.id)}</code> {html.escape(r.title)}", bar, count)
    numbers = (str(r.tries or ""), str(r.hints or ""))
    return (
        "<tr>"
        + "".join(f'<td style="text-align:left">{c}</td>' for c in (*cells, *numbers))
        + "</tr>"
    )


def progress(notebook: str | None = None) -> Progress:
    """Return a table of the exercises, of one notebook ("NN" or "NN_name") or of all."""
    from minids3.course.registry import exercises

    entries = load()
    rows = []
    for e in exercises():
        if notebook is not None and not e.notebook.startswith(notebook):
            continue
        got = entries.get(e.id, {})
        rows.append(
            Row(
                e.notebook,
                e.id,
                e.title,
                got.get("best", 0),
                got.get("total", 0),
                got.get("tries", 0),
                got.get("hints", 0),
            )
        )
    return Progress(tuple(rows))
