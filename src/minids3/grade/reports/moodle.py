"""Which columns of Moodle's grading worksheet hold what, in whatever language it was written."""

from __future__ import annotations

import re
from dataclasses import dataclass

from minids3.grade.tables import Table

__all__ = ["Moodle"]

_GRADE = {
    "grade", "bewertung", "note", "calificación", "valutazione", "voto", "cijfer",
    "beoordeling", "nota", "qualificació", "ocena", "karakter", "karaktär", "betyg", "arvosana",
    "hodnocení", "not", "оценка", "成绩",
}  # fmt: skip
_MAXIMUM = {
    "maximum grade", "bestwertung", "note maximale", "calificación máxima", "nota máxima",
    "valutazione massima", "voto massimo", "maximumcijfer", "maximale beoordeling",
    "qualificació màxima", "maksymalna ocena", "最高分",
}  # fmt: skip
_COMMENT = ("feedback", "commentaire", "comentari", "comentário", "commenti", "komentar")


@dataclass(frozen=True)
class Moodle:
    """The columns' names; "" for one that is not there."""

    grade: str
    maximum: str
    feedback: str

    @classmethod
    def of(cls, table: Table, grade: str = "") -> Moodle:
        """Find the columns by their usual names, else by place: the maximum follows the grade.

        Args:
            table: the worksheet.
            grade: the column of the grade, if somebody said so.

        Raises:
            ValueError: there is no column for the grade.
        """
        header = table.header
        if grade and grade not in header:
            raise ValueError(f"{table.path}: there is no column {grade!r}; it has "
                             f"{', '.join(header)}")  # fmt: skip
        grade = grade or next((c for c in header if c.casefold() in _GRADE), "")
        maximum = next((c for c in header if c.casefold() in _MAXIMUM and c != grade), "")
        if not grade:
            at = [i for i in range(2, len(header)) if _constant(table, header[i], "[.,][0-9]{2}")]
            grade, maximum = (header[at[-1] - 1], header[at[-1]]) if at else ("", "")
        if not grade:
            raise ValueError(f"{table.path}: there is no column for the grade; say which one it is "
                             f"with --grade-column: {', '.join(header)}")  # fmt: skip
        after = header[header.index(grade) + 1 :][:1]
        if not maximum and after and _constant(table, after[0], "([.,][0-9]*)?"):
            maximum = after[0]
        said = [c for c in header if any(word in c.casefold() for word in _COMMENT)]
        return cls(grade, maximum, said[-1] if said else "")


def _constant(table: Table, column: str, decimals: str) -> bool:
    """Whether all rows hold the same number there."""
    values = {row[column] for _, row in table.rows}
    return len(values) == 1 and bool(re.fullmatch("[0-9]+" + decimals, values.pop()))
