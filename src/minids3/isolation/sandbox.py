"""What a process that runs a student's code gives up, and how much it may use.

Layers, each of which holds on its own: a user of its own without capabilities (where the grader is
root), Landlock (files), a system-call filter (network, processes, signals, owners), resource limits
(processor time, memory, file size, open files), no inherited files, an empty environment. The
grader's side adds a wall clock, a limit on what it reads, and a look at the scratch folder's size.

Neither the results, nor the submissions, nor the exercises with their solutions and checks, nor the
hidden tests are among the granted files: nothing of the repository is but the data.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minids3.isolation import landlock, seccomp

__all__ = [
    "Limits",
    "Unavailable",
    "demand",
    "describe",
    "enter",
    "environment",
    "granted",
    "limit_processes",
    "missing",
]

try:
    import resource
except ImportError:  # no such limits on Windows; ``missing`` says so
    resource = None  # type: ignore[assignment]

_MIB = 1 << 20
_FIRST_UID, _UIDS = 61184, 4000  # a range that systems keep for passing users


class Unavailable(RuntimeError):
    """This machine cannot isolate a student's code; says what is missing."""


@dataclass(frozen=True)
class Limits:
    """How much a student's code may use, per exercise and process unless it says otherwise."""

    call_seconds: float = 10.0  # one call, of the processor's time
    load_seconds: float = 20.0  # the cells before and with the answer
    exercise_seconds: float = 180.0  # all calls of one exercise together, of its own time
    cpu_seconds: int = 40
    memory_mib: int = 2048  # beyond what torch itself takes
    file_mib: int = 32
    scratch_mib: int = 128
    open_files: int = 128
    threads: int = 64
    reply_mib: int = 64
    restarts: int = 3  # of a process that died, for the checks that are left

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def missing() -> list[str]:
    """Say what this machine lacks for isolation; an empty list means that it can isolate."""
    lacks = []
    if not sys.platform.startswith("linux"):
        return [f"{sys.platform} has neither Landlock nor seccomp (Linux has)"]
    if landlock.abi() < 1:
        lacks.append("this kernel has no Landlock (it came with Linux 5.13)")
    if not seccomp.available():
        lacks.append("system calls cannot be filtered on this kernel or processor")
    return lacks


def demand() -> None:
    """Refuse to go on where nothing can be isolated.

    Raises:
        Unavailable: says what is missing, and what to do.
    """
    lacks = missing()
    if lacks:
        raise Unavailable(
            f"students' code cannot be isolated here: {'; '.join(lacks)}. Grade on Linux with a "
            "kernel that has Landlock, or add --no-sandbox if you trust every line you grade"
        )


def describe(isolated: bool = True) -> str:
    """Say in words what isolates a student's code here."""
    if not isolated:
        return "none: resource limits only (--no-sandbox)"
    user = "a user of its own" if os.geteuid() == 0 else "the grader's user without privileges"
    return f"Landlock {landlock.abi()}, system-call filter, resource limits, {user}"


def environment(scratch: Path) -> dict[str, str]:
    """Return the environment of the processes that run students' code: nothing is inherited."""
    home = str(scratch)
    kept = {k: os.environ[k] for k in ("LANG", "LC_ALL", "MINIDS3_DATA") if k in os.environ}
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return kept | dict.fromkeys(threads, "1") | {
        "PATH": os.defpath, "HOME": home, "TMPDIR": home, "MPLCONFIGDIR": home, "USER": "student",
        "MINIDS3_HOME": home, "MPLBACKEND": "Agg", "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1", "PYTHONNOUSERSITE": "1", "TORCHDYNAMO_DISABLE": "1",
        "TRITON_INTERPRET": "1", "TRITON_CACHE_DIR": home, "TQDM_DISABLE": "1",
    }  # fmt: skip


def granted(hidden: Iterable[Path] = (), data: Iterable[Path] = ()) -> dict[str, list[str]]:
    """Return what a process may read: Python's library, the installed packages, and ``data``.

    ``hidden`` is left out even where it lies inside, and so is all of this package's own code.
    """
    import minids3

    package = Path(minids3.__file__).resolve().parent
    out = [package, *hidden]
    where = sysconfig.get_paths()
    packages = {Path(where[k]) for k in ("stdlib", "platstdlib", "purelib", "platlib")}
    packages |= {Path(p) for p in sys.path if p.endswith(("site-packages", "dist-packages"))}
    packages.add(Path(sys.base_prefix) / "lib")
    system = [Path(p) for p in (
        "/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/local/lib", "/usr/share/fonts",
        "/usr/share/zoneinfo", "/etc/ld.so.cache", "/etc/localtime", "/proc/cpuinfo",
        "/proc/meminfo", "/sys/devices/system/cpu", "/dev/urandom", "/dev/random",
    )]  # fmt: skip
    data = list(data)
    roots = [*sorted(packages), *system, *data]
    read = list(dict.fromkeys(str(p) for p in landlock.trees(roots, out)))
    if data:  # inside the package where it is installed
        read += [str(p) for p in landlock.trees(data, list(hidden)) if str(p) not in read]
    # Python looks for modules by listing folders; names are no secret.
    listed = [str(p) for p in sorted(packages) if p.is_dir() and str(p.resolve()) not in read]
    return {"read": read, "listed": listed, "devices": ["/dev/null", "/dev/zero"]}


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(kind, (value, value))


def _virtual_size() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGESIZE")


def limit_processes(limits: Limits, memory_mib: int | None = None) -> None:
    """Set resource limits; ``memory_mib`` in the place of this process's size and an allowance."""
    if resource is None:
        return
    if sys.platform.startswith("linux"):  # elsewhere an address-space limit stops torch itself
        own = limits.memory_mib * _MIB + _virtual_size()
        _limit(resource.RLIMIT_AS, own if memory_mib is None else memory_mib * _MIB)
        _limit(resource.RLIMIT_MSGQUEUE, 0)
        if os.geteuid() >= _FIRST_UID:  # a user of its own: the count is its own, too
            _limit(resource.RLIMIT_NPROC, limits.threads)
    cpu = limits.cpu_seconds
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 5))
    _limit(resource.RLIMIT_FSIZE, limits.file_mib * _MIB)
    _limit(resource.RLIMIT_NOFILE, limits.open_files)
    _limit(resource.RLIMIT_CORE, 0)
    with contextlib.suppress(AttributeError):
        _limit(resource.RLIMIT_MEMLOCK, 0)


def _leave_root(scratch: Path, slot: int) -> None:
    """Become a user that owns nothing, or, if that one could not read Python, lose all powers."""
    uid = _FIRST_UID + slot % _UIDS
    above = {*Path(os.__file__).resolve().parents, *Path(torch_file()).parents}
    if all(os.stat(p).st_mode & 0o005 == 0o005 for p in above):
        os.chown(scratch, uid, uid)
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in range(64):
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    if libc.syscall(126 if os.uname().machine == "x86_64" else 91, header, (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "capset")


def torch_file() -> str:
    """Where torch is: the largest of the packages that a student's process still reads."""
    import torch

    return os.path.realpath(torch.__file__)


def close_files(keep: Iterable[int]) -> None:
    """Close everything but ``keep`` and the three standard files, which become /dev/null."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    stay = sorted({0, 1, 2, *keep})
    for low, high in zip(stay, [*stay[1:], 65536], strict=True):
        os.closerange(low + 1, high)


def enter(
    scratch: Path, limits: Limits, grants: dict[str, list[str]], slot: int, isolate: bool = True
) -> None:
    """Put this process into the sandbox, for good.

    Raises:
        OSError: a layer could not be put on; the caller must not run anything then.
    """
    os.setsid()
    os.umask(0o077)
    os.chdir(scratch)
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # dies with its parent
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "wb") as file:
            file.write(b"1000")  # short of memory, the kernel takes this process first
    if isolate and os.geteuid() == 0:
        _leave_root(scratch, slot)
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # changing the user forgot it
    limit_processes(limits)
    if isolate:
        landlock.restrict(
            read=map(Path, grants["read"]),
            write=[scratch],
            devices=map(Path, grants["devices"]),
            listed=map(Path, grants["listed"]),
        )
        seccomp.deny()
