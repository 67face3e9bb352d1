"""Reading a submitted notebook, whatever wrote it: plain JSON in, a list of cells out.

JupyterLab, VS Code and Colab differ in what they keep (cell ids, metadata, the format's minor
version), so nothing is required of a cell but its kind and its text. Nothing of the file is
trusted: it may be broken, huge or built to break the reader.
"""

from __future__ import annotations

import json
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["MAX_BYTES", "MAX_CELLS", "Cell", "Unreadable", "cells_of", "load"]

MAX_BYTES = 200_000_000  # notebooks with all their pictures
MAX_CELLS = 3_000
MAX_SOURCE = 200_000  # characters of one cell; an answer has some hundred
MAX_SOURCES = 2_000_000  # of all cells together
_MAX_COMMAS, _MAX_BRACKETS = 5_000_000, 1_000_000  # each is a value, and some 50 bytes of memory


class Unreadable(ValueError):
    """A file that is no notebook; the message says in what way."""


@dataclass(frozen=True)
class Cell:
    """What is known of one cell: ``ids`` are all that name it, wherever an editor put them."""

    number: int  # from 1, among all cells
    kind: str  # "code", "markdown" or "raw"
    source: str
    ids: tuple[str, ...] = ()
    grade_id: str = ""

    @property
    def label(self) -> str:
        """Return what a message calls the cell."""
        return f"cell {self.number}"


def load(path: Path) -> dict[str, Any]:
    """Return the notebook in ``path`` as plain data.

    Raises:
        Unreadable: not an ordinary file, too large, not JSON, or not a notebook.
    """
    try:
        info = path.lstat()
        if stat.S_ISLNK(info.st_mode):
            raise Unreadable("is a link, not a file")
        if not stat.S_ISREG(info.st_mode):
            raise Unreadable("is not an ordinary file")
        if info.st_size > MAX_BYTES:
            raise Unreadable(
                f"has {info.st_size / 1e6:.0f} MB; clear its outputs and send it again"
            )
        raw = path.read_bytes()
    except OSError as error:
        raise Unreadable(f"cannot be read ({error.strerror or type(error).__name__})") from None
    return parse(raw)


def parse(raw: bytes) -> dict[str, Any]:
    """Return the notebook whose file holds ``raw``.

    Raises:
        Unreadable: as of ``load``.
    """
    if not raw.strip():
        raise Unreadable("is empty")
    if raw.startswith(b"PK\x03\x04"):
        raise Unreadable("is a zip archive under a notebook's name")
    if raw.count(b",") > _MAX_COMMAS or raw.count(b"[") + raw.count(b"{") > _MAX_BRACKETS:
        raise Unreadable("holds millions of values; clear its outputs and send it again")
    text = _decode(raw)
    try:
        data, _ = json.JSONDecoder().raw_decode(text.lstrip())  # what follows it is no matter
    except (ValueError, RecursionError, MemoryError) as error:
        if "<<<<<<<" in text and ">>>>>>>" in text:
            raise Unreadable("holds the marks of an unfinished git merge") from None
        where = f" in line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise Unreadable(f"is not JSON{where}: it may have been cut off") from None
    if not isinstance(data, dict) or not isinstance(_raw_cells(data), list):
        raise Unreadable("is JSON, but not a notebook: it has no list of cells")
    return data


def _decode(raw: bytes) -> str:
    for mark, name in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16")):
        if raw.startswith(mark):
            return raw.decode(name, errors="replace")
    return raw.decode("utf-8", errors="replace")


def _whole(text: str) -> str:
    """Return ``text`` with half characters (lone surrogates) joined or replaced."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _raw_cells(data: dict[str, Any]) -> Any:
    """Return the list of cells; format 3 kept it in worksheets."""
    if "cells" not in data and isinstance(data.get("worksheets"), list):
        sheets = [s for s in data["worksheets"] if isinstance(s, dict)]
        return [c for s in sheets if isinstance(s.get("cells"), list) for c in s["cells"]]
    return data.get("cells")


def cells_of(notebook: dict[str, Any]) -> list[Cell]:
    """Return the notebook's cells; what is malformed in one of them is left out."""
    found = []
    room = MAX_SOURCES
    for number, raw in enumerate(_raw_cells(notebook)[:MAX_CELLS], 1):
        if not isinstance(raw, dict):
            continue
        kind = raw.get("cell_type")
        source = raw.get("source", raw.get("input", ""))
        if isinstance(source, list):
            source = "".join(s for s in source if isinstance(s, str))
        if not isinstance(source, str) or kind not in ("code", "markdown", "raw"):
            continue
        source = source[: min(MAX_SOURCE, room)]
        room -= len(source)
        source = _whole(source.replace("\r\n", "\n").replace("\r", "\n").replace("\0", ""))
        metadata = raw.get("metadata")
        metadata = metadata if isinstance(metadata, dict) else {}
        nbgrader = metadata.get("nbgrader")
        grade_id = nbgrader.get("grade_id") if isinstance(nbgrader, dict) else ""
        ids = (raw.get("id"), metadata.get("id"))  # Colab keeps it in the metadata
        found.append(
            Cell(
                number,
                kind,
                source,
                tuple(dict.fromkeys(_whole(i) for i in ids if isinstance(i, str) and i)),
                _whole(grade_id) if isinstance(grade_id, str) else "",
            )
        )
    return found
