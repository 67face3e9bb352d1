"""Who handed a file in: what learning platforms put into the names of folders and files.

A student is known by what is unique: the platform's number where there is one, else the folder or
the file itself. A name is only shown. Two people of one name stay two. Some platforms' names can be
told only from all of a class (``Names``): where a name ends and the assignment's begins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from minids3.grade.tables import clean

__all__ = ["Names", "Who", "blackboard_user", "is_late", "person", "plain_name", "platform_of",
           "sent", "without_copy"]  # fmt: skip

# What downloads and copies add to a name. Numbers stay: they may be all that tells two students
# apart.
_COPY = re.compile(r"([ _-]*(\(\d+\)|-checkpoint|-copy\d*|- copy|- kopie))+$", re.IGNORECASE)
_COPY_OF = re.compile(
    r"(^|(?<=- ))((copy of|kopie von|copie de|copia de|copia di|cópia de|のコピー)[ _]+)+",
    re.IGNORECASE,
)
_SUFFIX = re.compile(r"(\.ipynb(\.\w+)?|\.zip|\.json|\.txt)$", re.IGNORECASE)
_VERSION = re.compile(r"[ _.-]*(?<![a-z])v(er|ersion)?[ _.-]*\d{1,2}$", re.IGNORECASE)
_AGAIN = re.compile(r"-\d{1,2}$")  # what Canvas adds to the name of a second try
_TYPES = r"assignsubmission_(?:file|onlinetext)_?"
# Moodle: "Full Name_4711_assignsubmission_file_", with blind marking "Participant_4711_...".
# Canvas: "lastfirst_LATE_4711_88123_name.ipynb", the second number each file's own.
# Blackboard: "Task_user_attempt_DATE_name.ipynb", with underscores in task and user, too.
# Brightspace: "4711-88123 - First Last - Oct 1, 2026 1159 PM". Sakai: "Last, First(user)".
_PLATFORMS = (
    ("moodle", re.compile(rf"^(?P<name>.+?)_(?P<id>\d+)_{_TYPES}(?P<rest>.*)$", re.DOTALL)),
    ("canvas", re.compile(
        r"^(?P<name>\d*[^_\d][^_]*)(?P<late>_LATE)?_(?P<id>\d{3,})_(?P<file>\d{3,})_(?P<rest>.+)$")),
    ("canvas", re.compile(
        r"^(?P<name>anon_(?P<id>\w{5}))(?P<late>_LATE)?_(?P<file>\d{3,})_(?P<rest>.+)$")),
    ("blackboard", re.compile(
        r"^(?P<head>[^_]*_(?P<id>(?P<name>.+?)))_attempt_(?P<when>\d{4}(?:-\d\d){5})(?P<rest>.*)$")),
    ("brightspace", re.compile(
        r"^(?P<id>\d+)-\d+ - (?P<name>.+?) - "
        r"(?P<when>.*?\b20\d\d\b(?: \d{3,4} [AP]M)?)(?P<rest>.*)$")),
    ("sakai", re.compile(r"^(?P<name>[^,]+, [^(]*[^ (])\((?P<id>[^()]+)\)(?P<rest>)$")),
)  # fmt: skip
_GRADESCOPE = re.compile(r"^submission_\d{5,}$")  # a number of each submission, not of people
_BLIND = ("participant", "teilnehmer", "teilnehmer/in", "anonymous")


@dataclass(frozen=True)
class Who:
    """What tells a student from all others, and the name to show."""

    key: tuple[str, ...]
    name: str
    id: str = ""  # the platform's number
    platform: str = ""
    doubt: str = ""  # the name as it came, where it is not sure which part of it is the student's


def _match(entry: str) -> tuple[str, re.Match[str]] | None:
    found = ((platform, pattern.match(entry)) for platform, pattern in _PLATFORMS)
    return next(((platform, m) for platform, m in found if m), None)


def platform_of(entry: str) -> Who | None:
    """Return whom a platform's name for a folder or a file stands for, or None."""
    known = _match(entry)
    if known is None:
        return None
    platform, found = known
    id, name = found["id"], clean(found["name"]).strip() or found["id"]
    if name.casefold() in _BLIND:
        name = f"{name} {id}"
    return Who((platform, id, name), name, id, platform)


def person(entry: str) -> str:
    """Return what tells the people of a platform's archive apart, or "" for any other name."""
    who = platform_of(entry)
    return repr(who.key) if who else entry if _GRADESCOPE.match(entry) else ""


def _by_folder(entry: str) -> Who:
    return Who(("folder", entry), clean(entry).strip() or "?")


def _by_file(entry: str, notebook: str) -> Who:
    """Return whom a file is named after: its name without the notebook's."""
    stem = clean(_SUFFIX.sub("", entry))
    return Who(("file", entry), _without(stem, notebook) or stem.strip() or "?")


def _without(stem: str, notebook: str) -> str:
    """Return a name without the notebook's and without what copies add; "" if nothing is left."""
    number, _, words = notebook.partition("_")
    loose = r"[ _-]*".join([number, *words.split("_")])
    plain = _COPY.sub("", _COPY_OF.sub("", stem))
    plain = re.sub(rf"[ _-]*{loose}(-\d\d?$)?[ _-]*", "_", plain, flags=re.IGNORECASE)
    return plain.strip(" _-.")


def plain_name(entry: str, notebook: str) -> str:
    """Return what a file's name says beside who, which notebook, which copy and which version."""
    known = _match(entry)
    stem = clean(_SUFFIX.sub("", known[1]["rest"] if known else entry))
    stem = _AGAIN.sub("", without_copy(stem)) if known else stem
    return _VERSION.sub("", _without(stem.strip(" _-."), notebook)).casefold()


def without_copy(name: str) -> str:
    """Return the name of a file or a folder without what copies of it add."""
    return _COPY.sub("", _COPY_OF.sub("", _SUFFIX.sub("", name)))


def sent(entry: str) -> float | None:
    """Return when something was handed in, if the platform's name for it says so."""
    known = _match(entry)
    said = known[1].groupdict().get("when") if known else None
    if not said:
        return None
    # Brightspace leaves the colon of the time out: "Oct 1, 2026 1159 PM".
    said = re.sub(r"(\d{1,2})(\d\d) ([AP]M)$", r"\1:\2 \3", said)
    for pattern in ("%Y-%m-%d-%H-%M-%S", "%b %d, %Y %I:%M %p", "%B %d, %Y %I:%M %p"):
        try:
            return datetime.strptime(said, pattern).timestamp()
        except (ValueError, OverflowError, OSError):
            pass
    return None


def blackboard_user(path: Path) -> str:
    """Return the user whom a text of Blackboard's names ("Name: Ada Lovelace (user)"), or ""."""
    known = _match(path.name)
    if not known or known[0] != "blackboard" or path.suffix != ".txt" or not path.is_file():
        return ""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as text:
            found = re.match(r"Name:.*\(([^()]+)\)\s*$", text.readline(1000))
    except OSError:
        return ""
    return found[1] if found else ""


def _shared(heads: Iterable[str]) -> int:
    """Return how many pieces all of "Task_user" begin with, if pieces end at an underscore.

    They are the task's: what follows is a user, underscores and all. One name alone does not tell;
    few tasks have an underscore in their names.
    """
    pieces = [head.split("_") for head in heads]
    if len(pieces) < 2:
        return 1
    most = min(len(p) for p in pieces) - 1
    return next((k for k in range(most) if len({p[k] for p in pieces}) > 1), most) or 1


def is_late(entry: str) -> bool:
    """Whether a platform's name for a file says that it came late."""
    known = _match(entry)
    return known is not None and bool(known[1].groupdict().get("late"))


class Names:
    """Whom the names in one folder of a class stand for, each read in the light of the others."""

    def __init__(
        self,
        entries: Iterable[str],
        notebook: str,
        users: Mapping[str, str] | None = None,
        submitters: Mapping[str, list[Who]] | None = None,
    ) -> None:
        """Read all names.

        Args:
            entries: the names in the folder.
            notebook: ``"NN_name"``.
            users: those that Blackboard's own files tell, by the files' names.
            submitters: those that Gradescope's own file tells, by the folders' names.
        """
        self.notebook = notebook
        self._submitters = submitters or {}
        self._told: set[str] = set()
        self._users: dict[str, str] = {}  # Blackboard's, by "Task_user"
        self._chance: set[tuple[str, ...]] = set()  # what looks like Canvas's, but is not
        files: dict[tuple[str, ...], set[str]] = {}
        for entry in entries:
            known = _match(entry)
            if known and known[0] == "blackboard":
                self._users.setdefault(known[1]["head"], "")
                told = (users or {}).get(entry, "")
                if told and known[1]["head"].endswith(f"_{told}"):
                    self._users[known[1]["head"]] = told
                    self._told.add(known[1]["head"])
            elif known and known[0] == "canvas":
                who = platform_of(entry)
                assert who is not None
                copies = files.setdefault((*who.key, known[1]["file"]), set())
                copies.add(without_copy(known[1]["rest"]))
        # Each file has a number of its own there: "ex_2026_100_ada", "ex_2026_100_eve" are two.
        self._chance = {key[:-1] for key, names in files.items() if len(names) > 1}
        shared = _shared(self._users)
        if len(self._users) > 1 and shared == 1:
            self._told |= set(self._users)  # the task's name can end nowhere else
        for head, told in self._users.items():
            self._users[head] = told or "_".join(head.split("_")[shared:])

    def of(self, entry: str, folder: bool) -> list[Who]:
        """Return whom a folder or a file belongs to: one, or all who handed it in together."""
        known, who = _match(entry), platform_of(entry)
        if entry in self._submitters:
            return self._submitters[entry]
        if known and known[0] == "blackboard":
            head = known[1]["head"]
            user = self._users[head]
            doubt = "" if head in self._told else head
            name = clean(user).strip() or user
            return [Who(("blackboard", user), name, user, "blackboard", doubt)]
        if who is not None and who.key not in self._chance:
            return [who]
        return [_by_folder(entry) if folder else _by_file(entry, self.notebook)]
