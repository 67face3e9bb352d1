"""A folder that somebody else's code has filled: how much is in it, and how it is removed.

Folders may be nested so deeply there that a path to them is longer than the system takes, and that
a function which calls itself for each of them (``shutil.rmtree``, ``os.walk``) ends in a
``RecursionError``.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from pathlib import Path

__all__ = ["remove", "size"]

_DEEP = 60


def size(folder: Path, *, most: int) -> float:
    """Return the bytes of all files in ``folder``; infinity if there are too many to count.

    Args:
        folder: where to look; what cannot be read counts nothing.
        most: how many files and folders may be there, none of them more than 60 folders deep.
    """
    total, count = 0, 0
    left = [(os.fspath(folder), 0)]
    while left:
        place, depth = left.pop()
        with contextlib.suppress(OSError), os.scandir(place) as entries:
            for entry in entries:
                count += 1
                if count > most or depth > _DEEP:
                    return float("inf")
                with contextlib.suppress(OSError):
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        left.append((entry.path, depth + 1))
    return total


def remove(folder: Path) -> None:
    """Remove a folder and what is in it, as far as that can be done; never raises."""
    with contextlib.suppress(OSError):
        _flatten(folder)
    with contextlib.suppress(OSError, RecursionError):
        shutil.rmtree(folder, ignore_errors=True)


def _flatten(folder: Path) -> None:
    """Move folders that lie deep up to the top, so that none does; make all of them writable."""
    names = itertools.count()
    left = [(os.fspath(folder), 0)]
    while left:
        place, depth = left.pop()
        with contextlib.suppress(OSError):
            os.chmod(place, 0o700)
        with contextlib.suppress(OSError), os.scandir(place) as entries:
            inner = [e.path for e in entries if e.is_dir(follow_symlinks=False)]
            for path in inner:
                if depth < _DEEP:
                    left.append((path, depth + 1))
                    continue
                with contextlib.suppress(OSError):
                    os.chmod(path, 0o700)
                home = os.path.join(folder, f".deep-{os.getpid()}-{next(names)}")
                with contextlib.suppress(OSError):
                    os.rename(path, home)
                    left.append((home, 1))
