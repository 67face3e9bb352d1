"""Finding the submissions: one notebook per student, however the folder is laid out.

A learning platform hands out a folder per student (nested as deep as it likes), one flat folder of
files named after students, or a zip file of either. Files are renamed, downloaded twice and edited
elsewhere, so a notebook is known by the exercises in it; its name only decides between equals. What
is not taken is listed with the reason: nobody's work disappears in silence.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minids3.grade.submissions.archives import MAX_DEPTH, unpack
from minids3.grade.submissions.identity import Who, of_file, of_folder, platform_of
from minids3.grade.submissions.reading import Cell, Unreadable, cells_of, load
from minids3.grade.tables import clean

__all__ = ["Collected", "Left", "Submission", "collect", "exercise_ids", "find_exercises"]

# What editors, systems and platforms leave behind: nobody's work.
_IGNORED = {".ipynb_checkpoints", "__pycache__", "__MACOSX", ".git", ".venv", "node_modules"}
_DROPPING = re.compile(
    r"^(\._.*|~\$.*|\.DS_Store|Thumbs\.db|desktop\.ini|\.gitkeep|\.directory|.*\.(swp|tmp|pyc)|"
    r"submission_metadata\.yml|.*-checkpoint\.ipynb)$",
    re.IGNORECASE,
)
_ARCHIVE = re.compile(r"\.(tar|tgz|gz|bz2|xz|rar|7z|zst)$", re.IGNORECASE)
_BESIDE = re.compile(r"\.(txt|md|csv|ya?ml|log|html?|json|cfg|toml)$", re.IGNORECASE)
_DEEP = 24  # folders in folders
_MARKER = re.compile(r"^[ \t]*#[ \t]*EXERCISE[ \t:]+([a-z0-9-]+)[ \t]*$", re.MULTILINE | re.I)


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


@dataclass(frozen=True)
class Left:
    """A file that was not taken, and why; ``grave`` if it may be somebody's work."""

    place: str
    reason: str
    grave: bool = True


class Collected(list[Submission]):
    """Submissions, and in ``left`` the files that belong to nobody."""

    def __init__(self, found: Sequence[Submission] = (), left: Sequence[Left] = ()) -> None:
        """Hold both."""
        super().__init__(found)
        self.left = list(left)


def find_exercises(source: str, ids: tuple[str, ...] = (), grade_id: str = "") -> list[str]:
    """Return the ids of exercises that a cell says it answers, the surest first."""
    found = [grade_id] if grade_id else []
    found += [i.removeprefix("answer-") for i in ids if i.startswith("answer-")]
    found += [m.lower() for m in _MARKER.findall(source)]
    return list(dict.fromkeys(found))


def exercise_ids(path: Path) -> list[str]:
    """Return the ids of the exercises in the notebook at ``path``, by any of their marks.

    Raises:
        Unreadable: it is no notebook.
    """
    return list(_marked(cells_of(load(path))))


def _marked(cells: list[Cell]) -> dict[str, bool]:
    """Return the exercises that cells name, each with whether something was written there."""
    found: dict[str, bool] = {}
    for cell in cells:
        if cell.grade_id.endswith("-check") or not cell.source.strip():
            continue
        code = cell.kind == "code"
        for id in find_exercises(cell.source, cell.ids, cell.grade_id):
            written = code and "raise NotImplementedError" not in cell.source
            found[id] = found.get(id, False) or written
    return found


# files --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _File:
    parts: tuple[str, ...]  # below the folder of submissions; a zip file counts as a folder
    path: Path


def _walk(
    folder: Path, parts: tuple[str, ...], home: Path | None, left: list[Left], depth: int = 0
) -> Iterator[_File]:
    """Yield the files below ``folder``, those in zip files too; folders are yielded as well."""
    for entry in sorted(folder.iterdir()):
        here = (*parts, entry.name)
        place = clean("/".join(here))
        if entry.name in _IGNORED or _DROPPING.match(entry.name):
            continue
        if entry.is_symlink():
            if not parts or not entry.name.lower().endswith(".ipynb"):
                left.append(Left(place, "is a link, not a file"))
            else:
                yield _File(here, entry)
            continue
        if entry.is_dir():
            if len(here) > _DEEP:
                left.append(Left(place, f"is nested in more than {_DEEP} folders"))
            else:
                yield _File(here, entry)
                try:
                    yield from _walk(entry, here, home, left, depth)
                except OSError as error:
                    left.append(Left(place, f"cannot be read ({error.strerror})"))
            continue
        if entry.name.lower().endswith(".zip"):
            yield from _in_zip(entry, here, home, left, depth)
            continue
        yield _File(here, entry)


def _in_zip(
    archive: Path, here: tuple[str, ...], home: Path | None, left: list[Left], depth: int
) -> Iterator[_File]:
    place = clean("/".join(here))
    if home is None or depth >= MAX_DEPTH:
        reason = "zip files are not unpacked here" if home is None else "is nested too deep"
        left.append(Left(place, reason))
        return
    try:
        folder, out = unpack(archive, home)
    except (ValueError, OSError) as error:
        left.append(Left(place, str(error)))
        return
    left += [Left(f"{place}/{clean(name)}", reason) for name, reason in out]
    inside = [e.name for e in folder.iterdir()]
    # A platform's archive of a class holds students; any other one is a student's.
    klass = len(here) == 1 and any(platform_of(n) for n in inside)
    if not klass:
        yield _File(here, folder)
    yield from _walk(folder, () if klass else here, home, left, depth + 1)


def _is_notebook(file: _File) -> bool:
    """Whether a file is meant to be a notebook: browsers add .txt and .json to its name."""
    name = file.parts[-1].lower()
    if ".ipynb" in name:
        return True
    if not name.endswith((".json", ".txt")) or file.path.is_symlink():
        return False
    try:
        with file.path.open("rb") as text:
            head = text.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
            return head.startswith(b"{") and b'"cells"' in head + text.read(1 << 20)
    except OSError:
        return False


# students -----------------------------------------------------------------------------------------


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
        files = _class_in(folder, home, left)
    elif folder.is_dir():
        files = list(_walk(folder, (), home, left))
    else:
        raise FileNotFoundError(f"{folder} is not a folder of submissions")
    students: dict[tuple[str, ...], tuple[Who, list[_File]]] = {}
    entries: dict[tuple[str, ...], str] = {}
    strays: list[_File] = []
    for file in files:
        if len(file.parts) > 1 or file.path.is_dir():
            zipped = file.parts[0].lower().endswith(".zip")
            who = of_file(file.parts[0], notebook) if zipped else of_folder(file.parts[0])
        elif _is_notebook(file):
            who = of_file(file.parts[0], notebook)
        else:
            strays.append(file)
            continue
        entries.setdefault(who.key, file.parts[0])
        have = students.setdefault(who.key, (who, []))[1]
        if not file.path.is_dir():
            have.append(file)
    for file in strays:
        who = of_file(file.parts[0], notebook)
        if who.platform and who.key in students:
            students[who.key][1].append(file)
        else:
            left.append(Left(clean(file.parts[0]), _why_not(file), not _harmless(file)))
    if not students and not left:
        raise FileNotFoundError(f"there are no notebooks in {folder}")
    shown = _shown({key: who for key, (who, _) in students.items()}, entries)
    found = []
    for key, (who, have) in students.items():
        made = _choose(shown[key], have, notebook, wanted, names or {})
        made.id, made.entry = who.id, entries[key]
        mine = f"{clean(entries[key])}/"
        inside = [e for e in left if f"{e.place}/".startswith(mine) and len(mine) > 1]
        left = [e for e in left if e not in inside]
        made.problems += [f"{e.place.removeprefix(mine)}: {e.reason}" for e in inside]
        if made.path is None and inside:
            made.unreadable = True
            made.problems = [p for p in made.problems if p != _NOTHING]
        found.append(made)
    found.sort(key=lambda s: (s.student.casefold(), s.student))
    _note_namesakes(found, {k: w for k, (w, _) in students.items()}, shown)
    _note_twins(found, wanted)
    return Collected(found, left)


def _class_in(archive: Path, home: Path, left: list[Left]) -> list[_File]:
    """Return the files of a class's zip file; one folder around everything is taken off.

    Raises:
        FileNotFoundError: it cannot be unpacked.
    """
    try:
        folder, out = unpack(archive, home)
    except ValueError as error:
        raise FileNotFoundError(f"{archive} {error}") from None
    left += [Left(clean(name), reason) for name, reason in out]
    inside = [e for e in folder.iterdir() if e.name not in _IGNORED]
    if len(inside) == 1 and inside[0].is_dir() and platform_of(inside[0].name) is None:
        within = [e for e in inside[0].iterdir() if not _DROPPING.match(e.name)]
        if len(within) != 1 or within[0].is_dir():
            folder = inside[0]
    return list(_walk(folder, (), home, left, 1))


def _shown(
    whos: Mapping[tuple[str, ...], Who], entries: Mapping[tuple[str, ...], str]
) -> dict[tuple[str, ...], str]:
    """Return a name for each student that is nobody else's."""
    counts: dict[str, int] = {}
    for who in whos.values():
        counts[who.name] = counts.get(who.name, 0) + 1
    shown: dict[tuple[str, ...], str] = {}
    taken: set[str] = set()
    for key, who in whos.items():
        name = who.name
        if counts[name] > 1:
            name = f"{name} ({who.id or clean(entries[key])})"
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


_NOTHING = "handed in no notebook"


def _why_not(file: _File) -> str:
    name = file.parts[-1]
    if _ARCHIVE.search(name):
        return "is an archive that is not read: unpack it, or ask for a notebook"
    return f"is no notebook ({file.path.suffix.lower() or 'no file type'})"


def _harmless(file: _File) -> bool:
    return bool(_BESIDE.search(file.parts[-1]))


@dataclass(frozen=True)
class _Ranked:
    exercises: int
    answered: int
    named: bool
    time: float
    file: _File

    @property
    def rank(self) -> tuple[Any, ...]:
        return (self.exercises, self.answered, self.named, self.time, str(self.file.path))


def _choose(
    student: str,
    files: list[_File],
    notebook: str,
    wanted: Sequence[str],
    names: Mapping[str, str],
) -> Submission:
    """Pick the notebook that answers most of ``wanted``; of equals the right name, the newest."""
    ranked: list[_Ranked] = []
    broken: list[str] = []
    others: list[str] = []
    beside: list[str] = []
    for file in files:
        name = clean(file.parts[-1])
        if not _is_notebook(file):
            beside.append(f"{name} {_why_not(file)}")
            continue
        try:
            cells = cells_of(load(file.path))
        except Unreadable as error:
            broken.append(f"{name} {error}")
            continue
        marks = {i: w for i, w in _marked(cells).items() if i in wanted}
        marks = marks or _by_name(cells, names)
        if marks:
            named = notebook.lower() in name.lower()
            time = file.path.lstat().st_mtime
            ranked.append(_Ranked(len(marks), sum(marks.values()), named, time, file))
        else:
            others.append(name)
    if ranked:
        ranked.sort(key=lambda r: r.rank, reverse=True)
        best, *rest = ranked
        problems = list(broken)
        if rest:
            names_of_rest = ", ".join(clean(r.file.parts[-1]) for r in rest[:10])
            problems.append(
                f"took {clean(best.file.parts[-1])}, which answers most; not {names_of_rest}"
            )
        remarks = [f"also there, not taken: {b}" for b in [*others[:5], *beside[:5]]]
        return Submission(student, best.file.path, problems, remarks)
    if broken or others or beside:
        problems = list(broken)
        if others:
            problems.append(f"no exercise of {notebook} found in {', '.join(others[:5])}")
        return Submission(student, None, [*problems, *beside[:10]], unreadable=True)
    return Submission(student, None, [_NOTHING])


def _by_name(cells: list[Cell], names: Mapping[str, str]) -> dict[str, bool]:
    """Return the exercises whose functions a notebook defines, where no mark says so."""
    text = "\n".join(c.source for c in cells if c.kind == "code")
    defined = set(re.findall(r"^(?:async )?def (\w+)", text, re.MULTILINE))
    return {id: True for id, name in names.items() if name in defined}


def _note_twins(submissions: list[Submission], wanted: Sequence[str]) -> None:
    """Note who handed in the same file, byte for byte; the notebook as it came is nobody's."""
    groups: dict[str, list[Submission]] = {}
    for s in submissions:
        if s.path is not None:
            groups.setdefault(hashlib.sha256(s.path.read_bytes()).hexdigest(), []).append(s)
    for group in groups.values():
        if len(group) < 2 or not _anything(group[0].path, wanted):
            continue
        names = ", ".join(s.student for s in group[:10])
        more = f" and {len(group) - 10} more" if len(group) > 10 else ""
        for s in group:
            s.remarks.append(f"the same file, byte for byte: {names}{more}")


def _anything(path: Path | None, wanted: Sequence[str]) -> bool:
    assert path is not None
    marks = _marked(cells_of(load(path)))
    return not marks or any(w for i, w in marks.items() if i in wanted)
