"""What a person decided: ``decisions.csv`` beside the grades, read back at every run.

The command writes a row for each answer that waits for somebody. Whoever decides fills in
``points``, or ``excused``, and a ``comment`` if there is something to say to the student; rows of
one's own may be added for any answer. What was filled in is never touched again, and holds until it
is taken out of the file.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from minids3.grade.files import write
from minids3.grade.records import LOOK, ExerciseResult, SubmissionResult
from minids3.grade.submissions.collect import Submission
from minids3.grade.tables import Table, meant, read_table, safe, same_name

__all__ = ["ALL", "Decision", "Decisions"]

_HEADER = ("student", "exercise", "points", "comment", "excused", "reason")
ALL = "*"  # in the place of an exercise: the whole submission
# With what spreadsheets write for TRUE and FALSE in other languages.
_YES = {
    "1", "x", "y", "yes", "true", "ex", "excused", "ja", "j", "wahr", "oui", "o", "vrai", "sí",
    "si", "sì", "s", "verdadero", "vero", "sim", "verdadeiro", "waar", "sann", "sant", "sand",
    "tosi", "prawda", "tak", "pravda", "ano", "igaz", "doğru", "да", "истина", "是", "真",
}  # fmt: skip
_NO = {
    "0", "n", "no", "false", "nein", "falsch", "non", "faux", "falso", "não", "nao", "nee",
    "onwaar", "nei", "nej", "usann", "falskt", "falsk", "epätosi", "fałsz", "nie", "nepravda",
    "ne", "hamis", "yanlış", "yanliş", "нет", "ложь", "否", "假",
}  # fmt: skip


@dataclass(frozen=True)
class Decision:
    """One filled-in row."""

    student: str
    exercise: str
    points: float | None
    comment: str
    excused: bool | None  # None where nothing was said


@dataclass
class Decisions:
    """The rows of a file of decisions."""

    path: Path
    rows: list[dict[str, str]] = field(default_factory=list)  # as they stand, those filled in
    found: dict[tuple[str, str], Decision] = field(default_factory=dict)
    separator: str = ","
    _lines: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, points: Mapping[str, float]) -> Decisions:
        """Read the file, if there is one; ``points`` says what each exercise is worth.

        Raises:
            ValueError: a row that cannot be meant so; says which, and why.
        """
        made = cls(path)
        if not path.exists():
            return made
        table = read_table(path, ("student", "exercise", "points"), by_hand=True)
        table.demand(_HEADER)
        made.separator = table.separator
        for line, row in table.rows:
            filled = {k: row.get(k, "") for k in ("points", "comment", "excused")}
            if not any(filled.values()):
                continue  # nobody has decided yet
            decision = _decision(table, line, row, points)
            key = (decision.student, decision.exercise)
            if key in made.found:
                raise table.error(line, f"{key[0]}, {key[1]} is decided twice")
            made.found[key] = decision
            made.rows.append(row)
            made._lines.setdefault(decision.student, line)
        return made

    def unknown(self, handed_in: Iterable[Submission | SubmissionResult]) -> list[str]:
        """Return the students of the file that handed nothing in.

        Raises:
            ValueError: one of them is most likely somebody who did, written another way; or a row
                fits two students, or two rows decide the same.
        """
        there: dict[str, set[str]] = {}
        for r in handed_in:
            for name in {same_name(r.student), r.id} - {""}:
                there.setdefault(name, set()).add(r.student)
        self._check(there)
        missing = [n for n in self._lines if n not in there]
        for name in missing:
            like = meant(name, there)
            if like:
                other = f" (or, if {name} is somebody else, make an empty folder of that name)"
                raise ValueError(
                    f"{self.place(name)}: nobody is called {name!r}; is it "
                    f"{' or '.join(map(repr, like))}? Correct the file, or the decision is lost"
                    + ("" if name[:1].isdecimal() else other)
                )
        return missing

    def _check(self, there: Mapping[str, set[str]]) -> None:
        """Refuse a row that fits two students, and rows by name and by number that are of one."""
        first: dict[tuple[str, str], str] = {}
        for name, exercise in self.found:
            students = there.get(name, set())
            if len(students) > 1:
                several = ", ".join(sorted(students))
                raise ValueError(f"{self.place(name)}: {name!r} fits {several}; write one of these")
            for student in students:
                before = first.setdefault((student, exercise), name)
                if before != name:
                    raise ValueError(
                        f"{self.place(name)}: {student}, {exercise} is decided twice, as {before} "
                        f"and as {name}: take one of them out"
                    )

    def place(self, student: str) -> str:
        """Return where a student stands in the file."""
        return f"{self.path}, line {self._lines[student]}"

    def settles(self, student: str, ids: Iterable[str]) -> bool:
        """Whether all of a notebook is decided for somebody, even if nothing was handed in.

        That takes a row for the whole (``*``), so that no misspelt name becomes a student.
        """
        whole = self.found.get((student, ALL))
        if whole is None:
            return False
        rows = [self.found.get((student, id)) for id in ids]
        return all(_settled(mine, whole) for mine in rows)

    def apply(self, result: SubmissionResult) -> SubmissionResult:
        """Put what was decided into a result, and return it."""
        names = [n for n in (same_name(result.student), result.id) if n]

        def of(exercise: str) -> Decision | None:
            return next((d for n in names if (d := self.found.get((n, exercise)))), None)

        whole = of(ALL)
        if whole is not None:
            result.look = []
            result.comment = whole.comment
        for e in result.exercises:
            mine = of(e.id)
            if mine is not None:
                _apply(e, mine)
            if whole is not None and whole.excused and _open(mine):
                own = "" if mine is None else mine.comment  # the whole's stands above all of it
                _apply(e, replace(whole, comment=own))
        return result.total()

    def write(self, results: Iterable[SubmissionResult]) -> int:
        """Write the file anew, with a row for each answer that waits; return how many wait."""
        waiting = [row for r in results for row in _waiting(r)]
        rows = [*self.rows, *waiting]
        header = list(dict.fromkeys([*_HEADER, *(k for row in self.rows for k in row)]))
        buffer = io.StringIO()
        out = csv.DictWriter(buffer, header, "", delimiter=self.separator, lineterminator="\n")
        out.writeheader()
        out.writerows(rows)
        content = b"\xef\xbb\xbf" + buffer.getvalue().encode("utf-8", "replace")
        if (rows or self.path.exists()) and not (
            self.path.exists() and self.path.read_bytes() == content
        ):
            write(self.path, content)
        return len(waiting)


def _decision(table: Table, line: int, row: dict[str, str], worth: Mapping[str, float]) -> Decision:
    student, exercise = row["student"], row["exercise"] or ALL
    if student[:1] == "'" and student[1:2] in tuple("=+-@"):  # how a formula was kept away
        student = student[1:]
    if not student:
        raise table.error(line, "names no student")
    if student == ALL:
        raise table.error(line, "a decision is one student's: name the student")
    if exercise != ALL and exercise not in worth:
        raise table.error(line, f"there is no exercise {exercise!r}; there are {', '.join(worth)}")
    excused = _yes_or_no(table, line, row.get("excused", ""))
    points = None
    if row["points"]:
        try:
            points = float(row["points"].replace(",", ".").replace("_", "?"))
        except ValueError:
            raise table.error(line, f"{row['points']!r} are no points") from None
        if exercise == ALL:
            raise table.error(line, "points are an exercise's: say which one")
        if not 0 <= points <= worth[exercise]:
            most = worth[exercise]
            raise table.error(line, f"{exercise} has 0 to {most:g} points, not {points:g}")
        if excused:
            raise table.error(line, "what is excused has no points: take one of them out")
    return Decision(same_name(student), exercise, points, row.get("comment", ""), excused)


def _yes_or_no(table: Table, line: int, text: str) -> bool | None:
    """Return what the column ``excused`` says, None if nothing; never guess."""
    said = text.casefold()
    if said in _YES or said in _NO:
        return said in _YES
    if text:
        raise table.error(
            line,
            f"'excused' is yes or no, not {text!r}; if that is the comment's, put the whole "
            "comment into quotation marks",
        )
    return None


def _open(decision: Decision | None) -> bool:
    """Whether an exercise's own row leaves it to the row of the whole submission."""
    return decision is None or (decision.points is None and decision.excused is None)


def _settled(mine: Decision | None, whole: Decision) -> bool:
    if mine is None or _open(mine):
        return bool(whole.excused)
    return mine.points is not None or bool(mine.excused)


def _apply(e: ExerciseResult, decision: Decision) -> None:
    e.comment = decision.comment
    if decision.excused:
        e.status, e.points, e.max_points = "excused", 0.0, 0.0
    elif decision.points is not None:
        e.status, e.points = "decided", decision.points
    elif e.needs_human:
        return  # a comment alone decides nothing
    e.notes = [n for n in e.notes if not n.startswith(LOOK)]


def _waiting(r: SubmissionResult) -> list[dict[str, str]]:
    rows = []

    def note(exercise: str, reason: str) -> None:
        rows.append({"student": safe(r.student), "exercise": exercise, "reason": safe(reason)})

    for text in r.look:
        note(ALL, text)
    for e in r.exercises:
        asked = [n.removeprefix(LOOK) for n in e.notes if n.startswith(LOOK)]
        if e.needs_human and not e.comment:
            note(e.id, f"{e.status}: {e.notes[0]}" if e.notes else e.status)
        elif asked:
            note(e.id, f"{asked[0]} (now {e.points:g} of {e.max_points:g} points)")
    return rows
