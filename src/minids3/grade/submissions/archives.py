"""Zip files, read as what they hold: a platform's archive of a class, or one student's work.

Nothing of an archive is trusted: not its names (they are made anew), its sizes (bytes are counted
while they come) or its depth.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import zipfile
from datetime import datetime
from pathlib import Path

__all__ = ["MAX_DEPTH", "unpack"]

MAX_DEPTH = 3  # archives in archives
_DEEP = 24  # folders in folders
_MAX_FILES = 20_000
_MAX_FILE, _MAX_ALL = 200_000_000, 4_000_000_000  # bytes, unpacked
_UTF8 = 0x800


def _name(entry: zipfile.ZipInfo) -> str:
    """Return an entry's name; one that is UTF-8 without saying so is read as that."""
    if entry.flag_bits & _UTF8:
        return entry.filename
    try:
        return entry.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return entry.filename


def _parts(name: str) -> list[str]:
    """Return the folders and the name of an entry, safe to make here; [] if there is none.

    Raises:
        ValueError: it is none; the message says why.
    """
    parts = [p for p in name.replace("\\", "/").split("/") if p not in ("", ".")]
    if ".." in parts or any(":" in p[:2] for p in parts[:1]):
        raise ValueError("its name leads out of the archive")
    if len(parts) > _DEEP:
        raise ValueError(f"is nested in more than {_DEEP} folders")
    kept = []
    for part in parts:
        raw = part.replace("\0", "").encode("utf-8", "replace")
        kept.append(raw[:200].decode("utf-8", "ignore") or "_")
    return kept


def unpack(archive: Path, home: Path) -> tuple[Path, list[tuple[str, str]]]:
    """Unpack ``archive`` below ``home``; return the folder, and what was left out with the reason.

    The same archive is unpacked once: its folder is named by its content.

    Raises:
        ValueError: it is no zip file, or too large; the message says in what way.
    """
    with archive.open("rb") as file:
        total = hashlib.sha256()
        while piece := file.read(1 << 20):
            total.update(piece)
    name = total.hexdigest()
    target = home / name[:16]
    left: list[tuple[str, str]] = []
    fresh = home / f".{name[:16]}.{os.getpid()}.tmp"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        with zipfile.ZipFile(archive) as pack:
            entries = [e for e in pack.infolist() if not e.is_dir()]
            folders = [e for e in pack.infolist() if e.is_dir()]
            if len(entries) + len(folders) > _MAX_FILES:
                raise ValueError(f"holds {len(entries) + len(folders)} files: unpack it yourself")
            for e in folders:
                with contextlib.suppress(ValueError):  # an empty folder is nothing to tell of
                    fresh.joinpath(*_parts(_name(e))).mkdir(parents=True, exist_ok=True)
            spent = 0
            for e in entries:
                spent += _entry(pack, e, fresh, left)
                if spent > _MAX_ALL:
                    raise ValueError("is larger than 4 GB when unpacked")
    except ValueError:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    except Exception as error:  # zipfile raises many kinds on what somebody has damaged
        shutil.rmtree(fresh, ignore_errors=True)
        raise ValueError(f"is a broken zip file ({error})") from None
    if target.exists():
        shutil.rmtree(fresh)
    else:
        os.replace(fresh, target)
    return target, left


def _entry(
    pack: zipfile.ZipFile, e: zipfile.ZipInfo, home: Path, left: list[tuple[str, str]]
) -> int:
    """Write one entry and return its size; what cannot be written is noted in ``left``."""
    name = _name(e)
    try:
        parts = _parts(name)
    except ValueError as error:
        left.append((name, str(error)))
        return 0
    if not parts:
        left.append((name, "it has no name"))
        return 0
    if stat.S_ISLNK(e.external_attr >> 16):
        left.append((name, "is a link, not a file"))
        return 0
    place = home.joinpath(*parts)
    size = 0
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with pack.open(e) as source, place.open("wb") as sink:
            while piece := source.read(1 << 20):
                size += len(piece)
                if size > _MAX_FILE:
                    raise ValueError("has more than 200 MB")
                sink.write(piece)
        stamp = _time(e)
        if stamp:
            os.utime(place, (stamp, stamp))
    except (RuntimeError, NotImplementedError):
        left.append((name, "is encrypted, or packed in a way that Python does not know"))
    except Exception as error:  # as above, and of each way to pack its own
        left.append((name, f"cannot be unpacked: {error}"))
    else:
        return size
    place.unlink(missing_ok=True)
    return size


def _time(e: zipfile.ZipInfo) -> float:
    try:
        return datetime(*e.date_time).timestamp()
    except (ValueError, OverflowError, OSError):
        return 0.0
