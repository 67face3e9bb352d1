"""Landlock through ctypes: a process gives up the file system and TCP for good, without root.

Everything is denied except what is granted, and a grant holds for a whole tree. ``trees`` turns
"this tree, but not that part of it" into grants, since Landlock itself knows no exceptions.
Numbers are those of the kernel's ``landlock.h``; the rights a kernel does not know are left out.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["abi", "restrict", "trees"]

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the same on all architectures
_EXECUTE, _WRITE, _READ, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL = 1 << 14, 1 << 15
_LOOK = _READ | _READ_DIR | _EXECUTE
_OF_FILES = _EXECUTE | _WRITE | _READ | _TRUNCATE | _IOCTL
_NO_NEW_PRIVS = 38
# How many file-system rights each version knows: 13, then refer, truncate, device ioctl.
_KNOWN = {1: 13, 2: 14, 3: 15, 4: 15}


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def abi() -> int:
    """Return the kernel's Landlock version, 0 where there is none."""
    if not sys.platform.startswith("linux"):
        return 0
    try:
        return max(0, _libc().syscall(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1)))
    except (OSError, AttributeError):
        return 0


def trees(roots: Iterable[Path], hidden: Iterable[Path]) -> Iterator[Path]:
    """Yield paths that together cover ``roots`` without ``hidden`` and what is below it."""
    kept_out = [Path(os.path.realpath(h)) for h in hidden]

    def walk(path: Path) -> Iterator[Path]:
        if any(path == h or h in path.parents for h in kept_out):
            return
        if not any(path in h.parents for h in kept_out):
            yield path
            return
        for child in sorted(path.iterdir()):
            yield from walk(Path(os.path.realpath(child)) if child.is_symlink() else child)

    seen: set[Path] = set()
    for root in roots:
        real = Path(os.path.realpath(root))
        if real.exists() and real not in seen:
            seen.add(real)
            yield from walk(real)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _grant(ruleset: int, path: Path, rights: int) -> None:
    handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(handle).st_mode):
            rights &= _OF_FILES
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, handle), 12)
        done = _libc().syscall(_ADD, ruleset, 1, rule, ctypes.c_uint32(0))
        _check(done, f"landlock rule for {path}")
    finally:
        os.close(handle)


def restrict(
    read: Iterable[Path],
    write: Iterable[Path] = (),
    devices: Iterable[Path] = (),
    listed: Iterable[Path] = (),
    signals: bool = True,
    tcp: bool = True,
) -> int:
    """Restrict this process and its descendants; returns the version used.

    Args:
        read: trees that can be read and executed.
        write: trees in which everything is allowed.
        devices: files that can be read and written, such as /dev/null.
        listed: directories whose names can be listed.
        signals: keep signals and abstract sockets inside (from version 6).
        tcp: allow no TCP port (from version 4).

    Raises:
        OSError: the kernel has no Landlock or refuses.
    """
    version = abi()
    if version < 1:
        raise OSError("this kernel has no Landlock")
    every = (1 << _KNOWN.get(version, 16)) - 1
    ports = 0b11 if version >= 4 and tcp else 0
    scope = 0b11 if version >= 6 and signals else 0
    # The structure grew with the versions: pass as much of it as this kernel has.
    fields = (every,) if version < 4 else (every, ports) if version < 6 else (every, ports, scope)
    attributes = ctypes.create_string_buffer(struct.pack(f"={len(fields)}Q", *fields))
    size = ctypes.c_size_t(8 * len(fields))
    made = _libc().syscall(_CREATE, attributes, size, ctypes.c_uint32(0))
    ruleset = _check(made, "landlock ruleset")
    try:
        for paths, rights in (
            (read, _LOOK),
            (write, every & ~_EXECUTE),
            (devices, (_READ | _WRITE | _TRUNCATE | _IOCTL) & every),
            (listed, _READ_DIR),
        ):
            for path in paths:
                with contextlib.suppress(FileNotFoundError, PermissionError):
                    _grant(ruleset, path, rights)
        _check(_libc().prctl(_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
        _check(_libc().syscall(_RESTRICT, ruleset, ctypes.c_uint32(0)), "landlock")
    finally:
        os.close(ruleset)
    return version
