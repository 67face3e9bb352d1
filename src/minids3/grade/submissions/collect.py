"""Finding the submissions: one notebook per student, however the folder is laid out.

A learning platform hands out a folder per student (nested as deep as it likes), one flat folder of
files named after students, or a zip file of either. Files are renamed, downloaded twice and edited
elsewhere, so a notebook is known by the exercises in it; its name only decides between equals. What
is not taken is listed with the reason: nobody's work disappears in silence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from minids3.grade.submissions.choose import NOTHING, Course, Submission, choose, digest
from minids3.grade.submissions.files import (
    File,
    Left,
    class_in,
    harmless,
    is_notebook,
    walk,
    why_not,
)
from minids3.grade.submissions.gradescope import METADATA, submitters
from minids3.grade.submissions.identity import Names, Who, blackboard_user, is_late
from minids3.grade.submissions.marks import answers_of, exercises_of, find_exercises
from minids3.grade.submissions.reading import cells_of, load
from minids3.grade.tables import clean

__all__ = ["Collected", "Left", "Submission", "collect", "exercise_ids", "find_exercises"]


class Collected(list[Submission]):
    """Submissions, and in ``left`` the files that belong to nobody."""

    def __init__(self, found: Sequence[Submission] = (), left: Sequence[Left] = ()) -> None:
        """Hold both."""
        super().__init__(found)
        self.left = list(left)


def exercise_ids(path: Path) -> list[str]:
    """Return the ids of the exercises in the notebook at ``path``, by any of their marks.

    Raises:
        Unreadable: it is no notebook.
    """
    return exercises_of(cells_of(load(path)))


@dataclass
class _Student:
    who: Who
    entries: list[tuple[str, ...]] = field(default_factory=list)  # with what is around them
    files: list[File] = field(default_factory=list)

    def add(self, file: File) -> None:
        """Note a file or a folder of this student."""
        entry = (*file.around, file.parts[0])
        if entry not in self.entries:
            self.entries.append(entry)
        if file.spare or not file.path.is_dir():
            self.files.append(file)

    @property
    def place(self) -> str:
        """Where the first of it lies, to be shown."""
        return clean("/".join(self.entries[0]))

    @property
    def remarks(self) -> list[str]:
        """What the platform's names say to the instructor."""
        doubt = self.who.doubt
        found = [f"the user may be more or less of {doubt}: no other name tells"] if doubt else []
        late = [e[-1] for e in self.entries if is_late(e[-1])]
        return [*found, *(f"marked as late: {clean(name)}" for name in late)]

    @property
    def look(self) -> list[str]:
        """Say where a folder that stands around others may name somebody who is not in it."""
        places = [clean("/".join(e)) for e in self.entries]
        if len({e[:-1] for e in self.entries}) < 2:
            return []
        return [
            f"lies in several places: {', '.join(places[:10])}. Are all of them this student's?"
        ]

    def holds(self, left: Left) -> str:
        """Return the beginning of a place that is this student's, or ""."""
        places = (f"{clean('/'.join(entry))}/" for entry in self.entries)
        return next((p for p in places if f"{left.place}/".startswith(p)), "")


def collect(
    folder: Path,
    notebook: str,
    wanted: Sequence[str],
    names: Mapping[str, str] | None = None,
    home: Path | None = None,
) -> Collected:
    """Return one submission per student in ``folder``, in the order of their names.

    Args:
        folder: of the submissions, or a zip file of it; a folder in it is a student, a file in it
            as well.
        notebook: ``"NN_name"``.
        wanted: the ids of its exercises.
        names: of the functions that the exercises ask for, where all other marks are gone.
        home: a folder for what is unpacked; without it zip files are only listed.

    Raises:
        FileNotFoundError: there is no such folder, or nothing in it.
    """
    left: list[Left] = []
    if folder.is_file() and folder.suffix.lower() == ".zip" and home is not None:
        files = class_in(folder, home, left)
    elif folder.is_dir():
        files = list(walk(folder, (), home, left))
    else:
        raise FileNotFoundError(f"{folder} is not a folder of submissions")
    students = _students(files, notebook, left)
    if not students and not left:
        raise FileNotFoundError(f"there are no notebooks in {folder}")
    course = Course(notebook, wanted, names or {})
    shown = _shown(students)
    found = []
    for key, student in students.items():
        alone = len(students) == 1 and not student.who.platform
        made = choose(shown[key], student.files, course, alone)
        made.id, made.platform = student.who.id, student.who.platform
        made.entry = student.entries[0][-1]
        made.remarks = [*student.remarks, *made.remarks]
        made.look += student.look
        inside = [e for e in left if student.holds(e)]
        left = [e for e in left if e not in inside]
        made.problems += [f"{e.place.removeprefix(student.holds(e))}: {e.reason}" for e in inside]
        if made.path is None and inside:
            made.unreadable = True
            made.problems = [p for p in made.problems if p != NOTHING]
        found.append(made)
    found.sort(key=lambda s: (s.student.casefold(), s.student))
    _note_namesakes(found, {k: s.who for k, s in students.items()}, shown)
    _note_twins(found, course)
    return Collected(found, left)


def _students(
    files: Sequence[File], notebook: str, left: list[Left]
) -> dict[tuple[str, ...], _Student]:
    """Return the files by student; those that are nobody's go to ``left``."""
    names = _names(files, notebook)
    students: dict[tuple[str, ...], _Student] = {}
    for file in files:
        if file.parts == (METADATA,):
            continue
        alone = len(file.parts) == 1 and not file.path.is_dir()
        zipped = file.parts[0].lower().endswith(".zip")
        whos = names[file.around].of(file.parts[0], folder=not alone and not zipped)
        if alone and not whos[0].platform and not is_notebook(file):
            left.append(Left(file.place, why_not(file), not harmless(file)))
            continue
        for who in whos:
            students.setdefault(_key(file, who), _Student(who)).add(file)
    return students


def _key(file: File, who: Who) -> tuple[str, ...]:
    """Return what a student is known by: a name of no platform tells nothing in another folder."""
    return who.key if who.platform else (*who.key, *file.around)


def _names(files: Sequence[File], notebook: str) -> dict[tuple[str, ...], Names]:
    """Return who is who in each folder of a class."""
    entries: dict[tuple[str, ...], dict[str, str]] = {}
    people: dict[tuple[str, ...], dict[str, list[Who]]] = {}
    for file in files:
        users = entries.setdefault(file.around, {})
        users.setdefault(file.parts[0], "")
        if file.parts == (METADATA,):
            people[file.around] = submitters(file.path)
        elif len(file.parts) == 1:
            users[file.parts[0]] = blackboard_user(file.path)
    return {a: Names(users, notebook, users, people.get(a)) for a, users in entries.items()}


def _shown(students: Mapping[tuple[str, ...], _Student]) -> dict[tuple[str, ...], str]:
    """Return a name for each student that is nobody else's."""
    counts: dict[str, int] = {}
    for student in students.values():
        counts[student.who.name] = counts.get(student.who.name, 0) + 1
    shown: dict[tuple[str, ...], str] = {}
    taken: set[str] = set()
    for key, student in students.items():
        name = student.who.name
        if counts[name] > 1:
            name = f"{name} ({student.who.id or student.place})"
        while name in taken:
            name += "*"
        taken.add(name)
        shown[key] = name
    return shown


def _note_namesakes(
    found: list[Submission],
    whos: Mapping[tuple[str, ...], Who],
    shown: Mapping[tuple[str, ...], str],
) -> None:
    """Say where two were not taken for one: the platform's numbers tell, or a human has to."""
    by_name: dict[str, list[tuple[str, ...]]] = {}
    by_id: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    for key, who in whos.items():
        by_name.setdefault(who.name, []).append(key)
        if who.id:
            by_id.setdefault((who.platform, who.id), []).append(key)
    where = {s.student: s for s in found}
    for name, keys in by_name.items():
        if len(keys) > 1:
            others = ", ".join(shown[k] for k in keys[:10])
            text = f"{len(keys)} submissions are called {name}: {others}. Graded one by one"
            for key in keys:
                where[shown[key]].remarks.append(text)
                if not whos[key].id:
                    where[shown[key]].look.append(
                        f"{text}. If they are one person's, put them into one folder"
                    )
    for (_, id), keys in by_id.items():
        if len(keys) > 1:
            others = ", ".join(shown[k] for k in keys[:10])
            for key in keys:
                where[shown[key]].look.append(f"the number {id} has several names: {others}")


def _note_twins(submissions: list[Submission], course: Course) -> None:
    """Note who handed in the same file, byte for byte; the notebook as it came is nobody's."""
    groups: dict[str, list[Submission]] = {}
    for s in submissions:
        if s.path is not None:
            groups.setdefault(digest(s.path), []).append(s)
    for group in groups.values():
        names = ", ".join(s.student for s in group[:10])
        more = f" and {len(group) - 10} more" if len(group) > 10 else ""
        if len({s.path for s in group}) == 1:
            text = "handed in together"
        elif _anything(group[0].path, course):
            text = "the same file, byte for byte"
        else:
            continue
        for s in group if len(group) > 1 else ():
            s.remarks.append(f"{text}: {names}{more}")


def _anything(path: Path | None, course: Course) -> bool:
    assert path is not None
    return bool(answers_of(cells_of(load(path)), course.wanted, course.names))
