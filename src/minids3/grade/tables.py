"""Tables that people write in a spreadsheet, and tables that a spreadsheet may open safely."""

from __future__ import annotations

import csv
import difflib
import io
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = [
    "Table",
    "clean",
    "csv_text",
    "letters",
    "meant",
    "plain",
    "read_table",
    "safe",
    "same_name",
    "spellings",
    "text_of",
]

_SHORTENED = re.compile(r"(\d)(?:[.,](\d+))?E\+?(\d+)", re.IGNORECASE)
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


def letters(name: str) -> str:
    """Return what is left of a name when only its letters and digits count, whatever their case."""
    return "".join(c for c in same_name(name).casefold() if c.isalnum())


def spellings(name: str) -> set[str]:
    """Return the letters of a name as it is, and with first and last name turned round."""
    last, comma, first = name.partition(",")
    turned = f"{first} {last}" if comma else " ".join(reversed(name.rsplit(" ", 1)))
    return {letters(name), letters(turned)} - {""}


def plain(number: str) -> str:
    """Return a number or a user name as it is compared: a spreadsheet adds ".0" and drops zeros."""
    number = re.sub(r"(?<=\d)[.,]0+$", "", number.strip()).casefold()
    return number.lstrip("0") or "0" if re.fullmatch(r"[0-9]+", number) else number


def meant(name: str, names: Iterable[str]) -> list[str]:
    """Return whom of ``names`` somebody most likely meant who wrote ``name``; none if nobody.

    Case, first and last name turned round, zeros in front of a number, and what a spreadsheet makes
    of a long one (2.0231E+11) tell nobody apart; a name may be misspelt, a number is another one.
    """
    names = sorted(names)
    mine = spellings(name)
    found = [n for n in names if mine & (spellings(n) | spellings(_bare(n)))]
    found += [n for n in names if n not in found and _same_number(name, n)]
    if found or re.fullmatch(r"[0-9]+", name):
        return found
    return difflib.get_close_matches(name, names, 1, 0.8)


def _bare(name: str) -> str:
    """Return a name without what was added to tell namesakes apart: "Kim (4711)" is Kim."""
    return re.sub(r" \([^()]*\)\**$", "", name)


def _same_number(one: str, other: str) -> bool:
    if _SHORTENED.fullmatch(other):
        one, other = other, one
    short = _SHORTENED.fullmatch(one)
    if not short:
        return plain(one) == plain(other)
    digits = short[1] + (short[2] or "")
    lost = int(short[3]) + 1 - len(digits)
    if not re.fullmatch(r"[0-9]+", other) or not 0 <= lost < 100:
        return False
    return abs(int(digits) * 10**lost - int(other)) <= 10**lost // 2


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

    def demand(self, columns: Sequence[str]) -> None:
        """Refuse a column that is nearly one of ``columns``, or there twice: it would be lost.

        Raises:
            ValueError: says which, and what to write.
        """
        near = {letters(c): c for c in columns if c not in self.header}
        for column in filter(None, self.header):
            like = difflib.get_close_matches(letters(column), near, 1, 0.85)
            if like and column not in columns:
                raise self.error(1, f"there is a column {column!r}; write {near[like[0]]!r}")
            if column in columns and self.header.count(column) > 1:
                raise self.error(1, f"there are two columns {column!r}")


def read_table(path: Path, needed: Sequence[str] = (), by_hand: bool = False) -> Table:
    """Read a CSV file with a header, its separator a comma, a semicolon or a tab.

    Args:
        path: of the file.
        needed: columns that have to be there.
        by_hand: it was written in an editor, so a separator too many is a text without quotes.

    Raises:
        ValueError: a column is missing, a line has more cells than the header, or the file is no
            table.
    """
    text = text_of(path).replace("\r\n", "\n").replace("\r", "\n")
    skipped = len(text) - len(text.lstrip("\n"))
    text = text.lstrip("\n")
    first = text.split("\n", 1)[0]
    if re.fullmatch(r"sep=.", first.strip(), re.IGNORECASE):  # Excel's own first line
        text = text.partition("\n")[2]
        first = text.split("\n", 1)[0]
        skipped += 1
    separator = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True, strict=True)
    table = Table(path, [], [], separator)
    while True:
        line = reader.line_num + 1 + skipped
        try:
            cells = next(reader, None)
        except csv.Error as error:
            hint = 'a " in a text is written twice, and the text between two of them'
            raise table.error(line, f"{error}; {hint}") from None
        if cells is None:
            break
        if not any(c.strip() for c in cells):
            continue
        if not table.header:
            table.header = [c.strip() for c in cells]
            continue
        surplus = cells[len(table.header) :]
        if surplus and (by_hand or any(c.strip() for c in surplus)):
            raise table.error(
                line,
                f"has {len(cells)} cells, and the header {len(table.header)}: a text with a "
                f'{separator!r} in it needs quotation marks, "like this{separator} and that"',
            )
        values = [c.strip() for c in cells] + [""] * (len(table.header) - len(cells))
        table.rows.append((line, dict(zip(table.header, values, strict=False))))
    missing = [c for c in needed if c not in table.header]
    if missing:
        raise ValueError(
            f"{path}: there is no column {missing[0]!r}; the first line must be a header "
            f"with {','.join(needed)} (it is {first[:80]!r})"
        )
    return table


def safe(text: str) -> str:
    """Keep a spreadsheet from taking text for a formula, whatever separates its cells.

    A "-" alone is none: platforms write it for "never".
    """
    if text.strip() == "-":
        return text
    return _FORMULA.sub(r"\1\2'", text)


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Return rows as CSV; what is text in them is made safe by whoever knows where it is from."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
