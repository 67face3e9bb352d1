"""Who handed a file in: what learning platforms put into the names of folders and files.

A student is known by what is unique: the platform's number where there is one, else the folder or
the file itself. A name is only shown. Two people of one name stay two.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from minids3.grade.tables import clean

__all__ = ["Who", "of_file", "of_folder", "platform_of"]

# What downloads and copies add to a name. Numbers stay: they may be all that tells two students
# apart.
_COPY = re.compile(r"([ _-]*(\(\d+\)|-copy\d*|- copy|- kopie))+$", re.IGNORECASE)
_COPY_OF = re.compile(r"^(copy of|kopie von|copie de|copia de)[ _]+", re.IGNORECASE)
_SUFFIX = re.compile(r"(\.ipynb(\.\w+)?|\.zip|\.json|\.txt)$", re.IGNORECASE)
_TYPES = r"assignsubmission_(?:file|onlinetext)_?"
# Moodle: "Full Name_4711_assignsubmission_file_", with blind marking "Participant_4711_...".
# Canvas: "lastfirst_LATE_4711_88123_name.ipynb". Blackboard: "Task_user_attempt_DATE_name.ipynb".
# Brightspace: "4711-88123 - First Last - Oct 1, 2026 1159 PM".
_PLATFORMS = (
    ("moodle", re.compile(rf"^(?P<name>.+?)_(?P<id>\d+)_{_TYPES}(?P<rest>.*)$", re.DOTALL)),
    ("canvas", re.compile(r"^(?P<name>[^_\d][^_]*)(?:_LATE)?_(?P<id>\d+)_\d{3,}_(?P<rest>.+)$")),
    ("canvas", re.compile(r"^(?P<name>anon_(?P<id>\w{5}))(?:_LATE)?_\d{3,}_(?P<rest>.+)$")),
    ("blackboard", re.compile(
        r"^.+?_(?P<id>(?P<name>[^_]+))_attempt_\d{4}(?:-\d\d){5}(?P<rest>.*)$")),
    ("brightspace", re.compile(r"^(?P<id>\d+)-\d+ - (?P<name>.+?) - (?P<rest>.+)$")),
)  # fmt: skip
_BLIND = ("participant", "teilnehmer", "teilnehmer/in", "anonymous")


@dataclass(frozen=True)
class Who:
    """What tells a student from all others, and the name to show."""

    key: tuple[str, ...]
    name: str
    id: str = ""  # the platform's number
    platform: str = ""


def platform_of(entry: str) -> Who | None:
    """Return whom a platform's name for a folder or a file stands for, or None."""
    for platform, pattern in _PLATFORMS:
        found = pattern.match(entry)
        if found:
            id, name = found["id"], clean(found["name"]).strip() or found["id"]
            if name.casefold() in _BLIND:
                name = f"{name} {id}"
            return Who((platform, id, name), name, id, platform)
    return None


def of_folder(entry: str) -> Who:
    """Return whom a folder of submissions belongs to."""
    return platform_of(entry) or Who(("folder", entry), clean(entry).strip() or "?")


def of_file(entry: str, notebook: str) -> Who:
    """Return whom a file in a flat folder belongs to: its name without the notebook's."""
    known = platform_of(entry)
    if known:
        return known
    stem = clean(_SUFFIX.sub("", entry))
    number, _, words = notebook.partition("_")
    loose = r"[ _-]*".join([number, *words.split("_")])
    plain = _COPY.sub("", _COPY_OF.sub("", stem))
    plain = re.sub(rf"[ _-]*{loose}(-\d\d?$)?[ _-]*", "_", plain, flags=re.IGNORECASE)
    return Who(("file", entry), plain.strip(" _-.") or stem.strip() or "?")
