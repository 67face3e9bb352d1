"""Which of a student's files is the one to grade, and what a human has to decide about the others.

A notebook is known by its exercises, not by its name. Of several, the one that answers most counts,
of equals the one with the right name, then the newest. The workbook's own solved version is never
taken for a student's where another notebook is there:

- a file is that version if it is the repository's byte for byte, or if it lies in a folder
  ``solutions`` and answers every exercise as the repository does, comments and layout apart;
- what else lies in a folder ``solutions`` comes after the notebooks outside of one.

Answers alone prove nothing: an honest student may write exactly the worked solution.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from minids3.course.repository import root
from minids3.grade.submissions.files import File, is_notebook, why_not
from minids3.grade.submissions.identity import plain_name, sent, without_copy
from minids3.grade.submissions.marks import answers_of, exercises_of
from minids3.grade.submissions.reading import Cell, Unreadable, cells_of, load
from minids3.grade.tables import clean

__all__ = ["NOTHING", "Course", "Submission", "choose", "digest"]

NOTHING = "handed in no notebook"
_SOLVED = "solutions"


@dataclass
class Submission:
    """One student's notebook; ``path`` is None where there is none that can be graded."""

    student: str  # a name that is nobody else's
    path: Path | None
    problems: list[str] = field(default_factory=list)  # told to the student
    remarks: list[str] = field(default_factory=list)  # for the instructor alone
    unreadable: bool = False  # there is something, and a human has to look at it
    id: str = ""  # the platform's number
    look: list[str] = field(default_factory=list)  # what a human has to decide about the file
    entry: str = ""  # the folder or the file that told who it is
    platform: str = ""  # that gave the number


@dataclass(frozen=True)
class Course:
    """What is asked for: a notebook, the ids of its exercises, and their functions' names."""

    notebook: str
    wanted: Sequence[str]
    names: Mapping[str, str]

    @cached_property
    def solved(self) -> tuple[str, dict[str, str]]:
        """The solved version's digest and answers; nothing where there is no repository."""
        return _solved(self.notebook, tuple(self.wanted), tuple(self.names.items()))


@cache
def _solved(
    notebook: str, wanted: tuple[str, ...], names: tuple[tuple[str, str], ...]
) -> tuple[str, dict[str, str]]:
    try:
        path = root() / "notebooks" / _SOLVED / f"{notebook}.ipynb"
        return digest(path), answers_of(cells_of(load(path)), wanted, dict(names))
    except (OSError, Unreadable):
        return "", {}


def digest(path: Path) -> str:
    """Return what tells one file's bytes from another's, whichever system wrote its lines."""
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()


@dataclass
class _Candidate:
    file: File
    name: str  # what messages call it
    cells: list[Cell]
    exercises: list[str]
    course: Course

    @cached_property
    def answers(self) -> dict[str, str]:
        return answers_of(self.cells, self.course.wanted, self.course.names)

    @cached_property
    def is_solved(self) -> bool:
        """Whether it is the workbook's own solved version, not a student's notebook."""
        known, answers = self.course.solved
        if known and digest(self.file.path) == known:
            return True
        same = all(self.answers.get(id) == answer for id, answer in answers.items())
        return self.among_solved and bool(answers) and same

    @property
    def among_solved(self) -> bool:
        """Whether it lies in a folder of solutions."""
        return _SOLVED in (part.casefold() for part in self.file.parts[1:-1])

    @property
    def folder(self) -> tuple[str, ...]:
        """The student's folders that it lies in, whichever copy of them."""
        return tuple(without_copy(part) for part in self.file.parts[1:-1])

    @property
    def is_checkpoint(self) -> bool:
        """Whether it has the name that Jupyter gives to what it saves by itself."""
        return self.file.parts[-1].casefold().endswith("-checkpoint.ipynb")

    @cached_property
    def time(self) -> float:
        """When it was handed in, if a platform tells; else when it was written."""
        when = sent(self.file.parts[0])
        return self.file.path.lstat().st_mtime if when is None else when

    @property
    def rank(self) -> tuple[Any, ...]:
        """What makes it come before others; ``_WHY`` says it in words."""
        size = (len(self.exercises), len(self.answers))
        named = self.course.notebook.lower() in self.file.parts[-1].lower()
        return (*size, not self.is_checkpoint, named, self.time, str(self.file.path))


_WHY = ("answers most", "answers most", "is no checkpoint", "has the notebook's name",
        "is the newest", "comes last by name")  # fmt: skip
_SAME_TIME = 60  # seconds in which an archive is unpacked, or a copy made


def _called(file: File, whole: bool) -> str:
    """Return a file's name: below the student's folder, or as a ``whole``."""
    return clean("/".join(file.parts if whole else file.parts[1:] or file.parts))


@dataclass
class _Sorted:
    """A student's files by what they are."""

    candidates: list[_Candidate] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)  # with the reason
    others: list[str] = field(default_factory=list)  # notebooks without any of the exercises
    beside: list[str] = field(default_factory=list)  # no notebooks, with the reason


def _sort(files: Sequence[File], course: Course) -> _Sorted:
    made = _Sorted()
    whole = len({f.parts[0] for f in files}) > 1  # several attempts, each in a folder
    for file in files:
        name = _called(file, whole)
        if not file.spare and not is_notebook(file):
            made.beside.append(f"{name} {why_not(file)}")
            continue
        try:
            cells = cells_of(load(file.path))
        except Unreadable as error:
            made.broken.append(f"{name} {error}")
            continue
        exercises = exercises_of(cells, course.wanted, course.names)
        if exercises:
            made.candidates.append(_Candidate(file, name, cells, exercises, course))
        else:
            made.others.append(name)
    return made


def choose(student: str, files: Sequence[File], course: Course, alone: bool = False) -> Submission:
    """Pick the notebook to grade; the module's docstring says which.

    Args:
        student: whose files they are.
        files: all of them.
        course: what was asked for.
        alone: nobody else handed anything in, as far as the folder tells.
    """
    made = _sort([f for f in files if not f.spare], course)
    solved = [c for c in made.candidates if c.is_solved]
    own = [c for c in made.candidates if not c.is_solved]
    spares = [f for f in files if f.spare]
    if own:
        submission = _best(student, own, solved, made.broken)
        submission.look += _several(own, alone) + _spared(own, spares, course)
    elif kept := [c for c in _sort(spares, course).candidates if not c.is_solved]:
        submission = _best(student, kept, solved, made.broken)
        why = "an editor's copy: the notebook is not there, or cannot be read"
        submission.look.append(f"took {_first(kept).name}, {why}")
    elif solved and not made.broken:
        best = max(solved, key=lambda c: c.rank)
        submission = Submission(student, best.file.path)
        submission.look.append(f"{best.name} is the workbook's own solved version")
    else:
        return _nothing(student, made, solved, spares, course)
    lying = [*made.others[:5], *made.beside[:5]]
    submission.remarks = [f"also there, not taken: {name}" for name in lying]
    return submission


def _best(
    student: str, own: list[_Candidate], solved: list[_Candidate], broken: list[str]
) -> Submission:
    """Return the best of a student's own notebooks, and say which ones were not taken."""
    best = _first(own)
    rest = sorted((c for c in own if c is not best), key=lambda c: c.rank, reverse=True)
    problems = list(broken)
    if rest:
        names = ", ".join(c.name for c in rest[:10])
        near = next((c for c in rest if c.among_solved == best.among_solved), None)
        if near is None:
            why = "lies in no folder of solutions"
        else:
            pairs = zip(_WHY, best.rank, near.rank, strict=True)
            why = next((word for word, mine, its in pairs if mine != its), _WHY[-1])
        problems.append(f"took {best.name}, which {why}; not {names}")
    for c in solved[:10]:
        problems.append(f"did not take {c.name}, the workbook's own solved version")
    return Submission(student, best.file.path, problems)


def _first(own: list[_Candidate]) -> _Candidate:
    return max(own, key=lambda c: (not c.among_solved, c.rank))


def _several(own: list[_Candidate], alone: bool) -> list[str]:
    """Say where several notebooks may be several people's, or hold work that is not graded.

    Other answers in an earlier copy of the same file are everyday, and only the student is told,
    as long as something tells which one is the earlier.
    """
    best = _first(own)
    found = []
    for c in own:
        other = [id for id, answer in c.answers.items() if answer != best.answers.get(id)]
        names = {plain_name(x.file.parts[-1], x.course.notebook) for x in (c, best)}
        copy = c.folder == best.folder and (len(names) == 1 or "" in names)
        if c.rank[:-2] == best.rank[:-2] and abs(c.time - best.time) < _SAME_TIME:
            copy = False  # nothing tells which one is the later
        if other and not (copy and set(other) <= set(best.answers)):
            found.append(
                f"{c.name} has other answers than {best.name}, which was taken "
                f"({', '.join(other)}): is it the same student's?"
            )
    saved = [c.name for c in own if not c.is_checkpoint]
    if best.is_checkpoint and saved:
        found.append(f"took {best.name}, a checkpoint that answers more than {saved[0]}")
    folders = {c.file.parts[1] for c in own if len(c.file.parts) > 2}
    if not found and len(folders) > (1 if alone else 2):
        found.append(
            f"notebooks lie in {len(folders)} folders ({clean(', '.join(sorted(folders)[:10]))}): "
            "if each is a student's, give the command the folder around them"
        )
    return found


def _spared(own: list[_Candidate], spares: Sequence[File], course: Course) -> list[str]:
    """Say where the notebook is as it came, but an editor's copy of it has answers."""
    if _first(own).answers:
        return []
    kept = [c for c in _sort(spares, course).candidates if c.answers and not c.is_solved]
    return [f"{c.name}, an editor's copy, has answers; the notebook has none" for c in kept]


def _nothing(
    student: str, made: _Sorted, solved: list[_Candidate], spares: Sequence[File], course: Course
) -> Submission:
    """Return a submission without a notebook to grade; a human looks where anything is there."""
    problems = list(made.broken)
    problems += [f"{c.name} is the workbook's own solved version" for c in solved[:10]]
    if made.others:
        notebook, names = course.notebook, ", ".join(made.others[:5])
        problems.append(f"no exercise of {notebook} found in {names}")
    problems += made.beside[:10]
    if not problems and spares:
        problems.append(f"there is only {', '.join(_called(f, False) for f in spares[:10])}")
    if problems:
        return Submission(student, None, problems, unreadable=True)
    return Submission(student, None, [NOTHING])
