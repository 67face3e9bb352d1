"""Tables that people write in a spreadsheet, and tables that a spreadsheet may open safely."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["Table", "clean", "csv_text", "read_table", "safe", "same_name", "text_of"]

_FORMULA = re.compile(r"(^|[;,\t\r\n|\"])(\s*)(?=[=+\-@])")


def clean(text: str) -> str:
    """Return a name as text that can be written and shown: any bytes, any half characters.

    A file name that is not UTF-8 is read as Windows wrote it. Control characters become "?".
    """
    raw = text.encode("utf-8", "surrogateescape" if _escaped(text) else "replace")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("cp1252", "replace")
    text = unicodedata.normalize("NFC", text)
    return "".join(c if c.isprintable() else "?" for c in text)


def _escaped(text: str) -> bool:
    """Whether the odd characters in ``text`` are bytes, as in the name of a file."""
    return all("\udc80" <= c <= "\udcff" for c in text if "\ud800" <= c <= "\udfff")


def same_name(name: str) -> str:
    """Return ``name`` as it is compared: letters however composed, blanks however many."""
    return " ".join(clean(name).split())


def text_of(path: Path) -> str:
    """Return the text of a file that a person wrote: UTF-8, UTF-16 with its mark, or cp1252."""
    raw = path.read_bytes()
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return raw.decode("utf-16", "replace")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("cp1252", "replace")


class Table:
    """Rows of a CSV file, each with the number of its line; columns by their names."""

    def __init__(
        self,
        path: Path,
        header: list[str],
        rows: list[tuple[int, dict[str, str]]],
        separator: str = ",",
    ) -> None:
        """Hold what was read."""
        self.path, self.header, self.rows, self.separator = path, header, rows, separator

    def error(self, line: int, text: str) -> ValueError:
        """Return the error to raise for what stands in a line."""
        return ValueError(f"{self.path}, line {line}: {text}")


def read_table(path: Path, needed: Sequence[str] = ()) -> Table:
    """Read a CSV file with a header, its separator a comma, a semicolon or a tab.

    Raises:
        ValueError: a column is missing, or the file is no table.
    """
    text = text_of(path).replace("\r\n", "\n").replace("\r", "\n")
    first = text.lstrip("\n").split("\n", 1)[0]
    if re.fullmatch(r"sep=.", first.strip(), re.IGNORECASE):  # Excel's own first line
        text = text.lstrip("\n").partition("\n")[2]
        first = text.split("\n", 1)[0]
    separator = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True)
    rows: list[tuple[int, dict[str, str]]] = []
    header: list[str] = []
    try:
        for cells in reader:
            if not any(c.strip() for c in cells):
                continue
            if not header:
                header = [c.strip() for c in cells]
                continue
            values = [c.strip() for c in cells] + [""] * (len(header) - len(cells))
            rows.append((reader.line_num, dict(zip(header, values, strict=False))))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from None
    missing = [c for c in needed if c not in header]
    if missing:
        raise ValueError(
            f"{path}: there is no column {missing[0]!r}; the first line must be a header "
            f"with {','.join(needed)} (it is {first[:80]!r})"
        )
    return Table(path, header, rows, separator)


def safe(text: str) -> str:
    """Keep a spreadsheet from taking text for a formula, whatever separates its cells."""
    return _FORMULA.sub(r"\1\2'", text)


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Return rows as CSV; what is text in them is made safe by whoever knows where it is from."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
