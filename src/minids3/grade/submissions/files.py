"""The files below a folder of submissions: those in zip files too, and what only looks like litter.

Around a class there may be folders and zip files that are no student; they are taken off. What
editors and systems leave behind is nobody's work, unless it may be all that there is of somebody's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from minids3.grade.submissions.archives import MAX_DEPTH, unpack
from minids3.grade.submissions.gradescope import METADATA
from minids3.grade.submissions.identity import person, platform_of
from minids3.grade.tables import clean

__all__ = ["File", "Left", "class_in", "harmless", "is_notebook", "walk", "why_not"]

_CHECKPOINTS = ".ipynb_checkpoints"
_NOBODYS = {"__pycache__", "__MACOSX"}
_CLOSED = {".git", ".venv", "node_modules"}  # may hold work, but not where it can be graded
_DROPPING = re.compile(
    r"^(\._.*|~\$.*|\.DS_Store|Thumbs\.db|desktop\.ini|\.gitkeep|\.directory|.*\.(swp|tmp|pyc)|"
    r"submission_metadata\.yml)$",
    re.IGNORECASE,
)
# What the names of droppings add to that of the file that they are of.
_ADDED = re.compile(
    r"^(\._|~\$|\.(?=.*\.swp$))|\.(swp|tmp)$|-checkpoint(?=\.ipynb$)", re.IGNORECASE
)
_ARCHIVE = re.compile(r"\.(tar|tgz|gz|bz2|xz|rar|7z|zst)$", re.IGNORECASE)
_BESIDE = re.compile(r"\.(txt|md|csv|ya?ml|log|html?|json|cfg|toml)$", re.IGNORECASE)
_DEEP = 24  # folders in folders
_AROUND = 3  # folders around a class


@dataclass(frozen=True)
class Left:
    """A file that was not taken, and why; ``grave`` if it may be somebody's work."""

    place: str
    reason: str
    grave: bool = True


@dataclass(frozen=True)
class File:
    """One file or folder of a submission."""

    parts: tuple[str, ...]  # below the folder of the class; a zip file counts as a folder
    path: Path
    around: tuple[str, ...] = ()  # folders and zip files around the class
    spare: bool = False  # a checkpoint and the like: counts where there is nothing else

    @property
    def place(self) -> str:
        """Where it lies, to be shown."""
        return clean("/".join((*self.around, *self.parts)))


def walk(
    folder: Path,
    parts: tuple[str, ...],
    home: Path | None,
    left: list[Left],
    depth: int = 0,
    around: tuple[str, ...] = (),
) -> Iterator[File]:
    """Yield the files below ``folder``, those in zip files too; folders are yielded as well.

    Args:
        folder: where to look.
        parts: its names below the class's folder; () if it is the class's.
        home: a folder for what is unpacked; without it zip files are only listed.
        left: gets what is not taken.
        depth: of zip files in zip files.
        around: names of folders and zip files around the class.
    """
    for entry in sorted(folder.iterdir()):
        file = File((*parts, entry.name), entry, around)
        if _is_dropping(entry):
            try:
                if file.parts == (METADATA,) and entry.is_file() and not entry.is_symlink():
                    yield file
                yield from _dropping(file, left)
            except OSError as error:
                left.append(Left(file.place, f"cannot be read ({error.strerror})"))
        elif entry.is_symlink():
            if not parts or not entry.name.lower().endswith(".ipynb"):
                left.append(Left(file.place, "is a link, not a file"))
            else:
                yield file
        elif entry.is_dir():
            yield from _folder(file, home, left, depth)
        elif entry.name.lower().endswith(".zip"):
            yield from _in_zip(file, home, left, depth)
        else:
            yield file


def _folder(file: File, home: Path | None, left: list[Left], depth: int) -> Iterator[File]:
    if len(file.around) + len(file.parts) > _DEEP:
        left.append(Left(file.place, f"is nested in more than {_DEEP} folders"))
        return
    try:
        if len(file.parts) == 1 and _is_around(file.path):
            yield from walk(file.path, (), home, left, depth, (*file.around, *file.parts))
        else:
            yield file
            yield from walk(file.path, file.parts, home, left, depth, file.around)
    except OSError as error:
        left.append(Left(file.place, f"cannot be read ({error.strerror})"))


def _in_zip(file: File, home: Path | None, left: list[Left], depth: int) -> Iterator[File]:
    if home is None or depth >= MAX_DEPTH:
        reason = "zip files are not unpacked here" if home is None else "is nested too deep"
        left.append(Left(file.place, reason))
        return
    try:
        folder, out = unpack(file.path, home)
    except (ValueError, OSError) as error:
        left.append(Left(file.place, str(error)))
        return
    left += [Left(f"{file.place}/{clean(name)}", reason) for name, reason in out]
    # A platform's archive of a class holds students; any other one is a student's.
    klass = any(platform_of(e.name) for e in folder.iterdir()) or _is_around(folder)
    if len(file.parts) == 1 and klass and not platform_of(file.parts[0]):
        around = (*file.around, *file.parts)
        yield from walk(folder, (), home, left, depth + 1, around)
    else:
        yield File(file.parts, folder, file.around)
        yield from walk(folder, file.parts, home, left, depth + 1, file.around)


# classes ------------------------------------------------------------------------------------------


def _entries(folder: Path) -> list[Path]:
    """Return the folders, notebooks and zip files in a folder."""
    inside = [e for e in folder.iterdir() if not _is_dropping(e)]
    return [e for e in inside if e.is_dir() or re.search(r"\.(ipynb|zip)", e.name, re.IGNORECASE)]


def _is_class(entries: Sequence[Path]) -> bool:
    """Whether most of these have names that a platform gives, of two people or of one alone."""
    people = [person(e.name) for e in entries]
    if len(entries) == 1 and not entries[0].is_dir():
        return False  # one file may well be kept in a student's own folder
    told = [p for p in people if p]
    return 2 * len(told) > len(people) and (len(set(told)) > 1 or len(people) == 1)


def _is_around(folder: Path, deep: int = _AROUND) -> bool:
    """Whether a folder is no student, but stands around a class, as unpacking an archive does."""
    if deep == 0 or person(folder.name):
        return False
    try:
        inside = _entries(folder)
    except OSError:
        return False
    if _is_class(inside) or (folder / METADATA).is_file():
        return True
    return bool(inside) and all(
        e.is_dir() and not e.is_symlink() and _is_around(e, deep - 1) for e in inside
    )


def class_in(archive: Path, home: Path, left: list[Left]) -> list[File]:
    """Return the files of a class's zip file; one folder around everything is taken off.

    Raises:
        FileNotFoundError: it cannot be unpacked.
    """
    try:
        folder, out = unpack(archive, home)
    except ValueError as error:
        raise FileNotFoundError(f"{archive} {error}") from None
    left += [Left(clean(name), reason) for name, reason in out]
    inside = [e for e in folder.iterdir() if not _is_dropping(e)]
    if len(inside) == 1 and inside[0].is_dir() and not person(inside[0].name):
        within = [e for e in inside[0].iterdir() if not _is_dropping(e)]
        if len(within) != 1 or within[0].is_dir():
            folder = inside[0]
    return list(walk(folder, (), home, left, 1))


# litter -------------------------------------------------------------------------------------------


def _is_dropping(entry: Path) -> bool:
    if entry.name in _NOBODYS | _CLOSED | {_CHECKPOINTS}:
        return True
    return bool(_DROPPING.match(entry.name)) and (entry.is_symlink() or not entry.is_dir())


def _dropping(file: File, left: list[Left]) -> Iterator[File]:
    """Yield what may be work all the same, of a student; list it where it is nobody's folder."""
    if file.path.is_symlink() or file.parts[-1] in _NOBODYS:
        return
    inside = [file]
    if file.parts[-1] == _CHECKPOINTS and file.path.is_dir():
        inside = [
            File((*file.parts, e.name), e, file.around)
            for e in sorted(file.path.iterdir())
            if not e.is_symlink()
        ]
    for f in inside:
        name = f.parts[-1]
        if len(file.parts) > 1:
            closed = name in _CLOSED and f.path.is_dir() and any(f.path.iterdir())
            named = f.path.is_file() and ".ipynb" in name.lower()
            if closed or named or _holds_cells(f.path):
                yield File(f.parts, f.path, f.around, spare=True)
        elif _holds_cells(f.path):
            of = _ADDED.sub("", name)
            if not file.path.with_name(of).exists():
                left.append(Left(f.place, f"is an editor's copy of {clean(of)}, which is not here"))


def _holds_cells(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with path.open("rb") as text:
            head = text.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
            return head.startswith(b"{") and b'"cells"' in head + text.read(1 << 20)
    except OSError:
        return False


# notebooks ----------------------------------------------------------------------------------------


def is_notebook(file: File) -> bool:
    """Whether a file is meant to be a notebook: browsers add .txt and .json to its name."""
    name = file.parts[-1].lower()
    if ".ipynb" in name:
        return True
    named = name.endswith((".json", ".txt")) and not file.path.is_symlink()
    return named and _holds_cells(file.path)


def why_not(file: File) -> str:
    """Say why a file is not taken for a notebook."""
    name = file.parts[-1]
    if _ARCHIVE.search(name):
        return "is an archive that is not read: unpack it, or ask for a notebook"
    return f"is no notebook ({file.path.suffix.lower() or 'no file type'})"


def harmless(file: File) -> bool:
    """Whether a file of this type comes with submissions, and is none."""
    return bool(_BESIDE.search(file.parts[-1]))
