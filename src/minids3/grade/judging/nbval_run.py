"""The public story of a submission, told by plain nbval: evidence, not the source of points.

``pytest --nbval-lax --nbval-current-env`` runs set-up, answers and check cells in a real kernel.
That kernel must start processes, talk over sockets and read the workbook's checks, so it cannot
live in the sandbox that answers are graded in; what it says could be forged from inside, and
nothing that counts depends on it. It is isolated all the same: namespaces of its own for users,
network and processes, Landlock without the results, the submissions and the private checks, a
system-call filter, and limits. Where a kernel may not make namespaces it is not run, and the result
says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from minids3.grade.process.zygote import data_folders
from minids3.grade.records import PublicCell
from minids3.isolation import landlock, sandbox, seccomp

__all__ = ["run_public"]

_USER, _IPC, _PID, _NET = 0x10000000, 0x08000000, 0x20000000, 0x40000000
_MIB = 1 << 20


def run_public(
    notebook: dict[str, Any],
    *,
    isolate: bool = True,
    hidden: Iterable[Path] = (),
    seconds: float = 120,
) -> list[PublicCell]:
    """Run nbval over ``notebook`` (see ``public.public_notebook``); tell each check cell's outcome.

    Args:
        notebook: plain nbformat JSON.
        isolate: run it apart; see the module.
        hidden: folders that it may not read.
        seconds: the wall clock's limit.
    """
    code = [c for c in notebook["cells"] if c.get("cell_type") == "code"]
    ids = [str(c.get("id", "")) for c in code]
    home = Path(tempfile.mkdtemp(prefix="minids3-nbval-"))
    try:
        (home / "pytest.ini").write_text("[pytest]\n")  # and none of a folder further up
        (home / "notebook.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
        settings = {"isolate": isolate, "hidden": [str(Path(h).resolve()) for h in hidden]}
        import minids3

        place = str(Path(minids3.__file__).resolve().parent.parent)
        process = subprocess.Popen(
            [sys.executable, "-s", "-m", "minids3.grade.judging.nbval_run", json.dumps(settings)],
            cwd=home, env={**sandbox.environment(home), "PYTHONPATH": place, "HOME": str(home)},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        why = ""
        try:
            _, said = process.communicate(timeout=seconds)
            why = said.decode(errors="replace").strip()[-300:]
        except subprocess.TimeoutExpired:
            why = f"not finished after {seconds:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        told = _read(home / "report.xml", ids)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    return [
        told.get(id, PublicCell(id, "not run", why[:300])) for id in ids if id.startswith("check-")
    ]


def _read(path: Path, ids: list[str]) -> dict[str, PublicCell]:
    """Read pytest's report; it comes from the student's side, so anything may be in it."""
    try:
        if path.is_symlink() or path.stat().st_size > 8 * _MIB:
            return {}
        text = path.read_text(encoding="utf-8", errors="replace")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            return {}
        root = ET.fromstring(text)
    except (OSError, ET.ParseError):
        return {}
    found = {}
    for case in root.iter("testcase"):
        match = re.search(r"Cell (\d+)", case.get("name", ""))
        if match is None or int(match[1]) >= len(ids):
            continue
        bad = case.find("failure")
        bad = case.find("error") if bad is None else bad
        message = ""
        if bad is not None:
            lines = [*(bad.text or "").splitlines(), bad.get("message") or ""]
            lines = [re.sub(r"\x1b\[[0-9;]*m|#x1B\[[0-9;]*m", "", t).strip() for t in lines]
            errors = [t for t in lines if re.match(r"\w*(Error|CheckFailed|Exception): ", t)]
            message = (errors or [t for t in lines if t] or [""])[-1][:300]
        id = ids[int(match[1])]
        found[id] = PublicCell(id, "passed" if bad is None else "failed", message)
    return found


# in the child -------------------------------------------------------------------------------------


def _apart() -> None:
    """Move into namespaces of one's own: no network but loopback, no processes but one's own."""
    uid, gid = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_USER | _NET | _PID | _IPC):
        raise OSError(ctypes.get_errno(), "no namespaces for an unprivileged user here")
    Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1", encoding="ascii")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1", encoding="ascii")
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:  # bring loopback up
        fcntl.ioctl(s, 0x8914, struct.pack("16sH14x", b"lo", 0x1 | 0x40))


def _fork_and_wait() -> None:
    """Go on in a child; the parent ends as the child does."""
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0x7F)


def _main() -> None:
    settings = json.loads(sys.argv[1])
    home = Path.cwd()
    if settings["isolate"]:
        read = sandbox.granted(settings["hidden"], data_folders())
        import minids3

        package = Path(minids3.__file__).resolve().parent
        read["read"] += [str(p) for p in landlock.trees([package], settings["hidden"])]
        read["listed"].append(str(package.parent))
        tools = [Path(sys.prefix), Path(sys.base_prefix), Path("/usr/bin"), Path("/bin")]
        read["read"] += [str(p) for p in landlock.trees(tools, [package, *settings["hidden"]])]
        read["read"] += ["/proc", "/etc/passwd", "/etc/nsswitch.conf", "/etc/hosts"]
        _apart()
    _fork_and_wait()  # its child is the first process of the new namespace: all end with that one
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
    _fork_and_wait()  # a kernel whose parent is process 1 takes itself for an orphan
    limits = sandbox.Limits(open_files=4096, file_mib=256, cpu_seconds=240)
    sandbox.limit_processes(limits, memory_mib=16384)  # pytest and a kernel, from nothing
    if settings["isolate"]:
        landlock.restrict(
            read=map(Path, read["read"]),
            write=[home, Path("/dev/shm")] if Path("/dev/shm").exists() else [home],
            devices=map(Path, read["devices"]),
            listed=map(Path, read["listed"]),
            tcp=False,  # its network is loopback, and nobody else is there
        )
        seccomp.deny(kernel=True)
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
        os.environ[name] = str(home / name.lower())
    os.environ["JUPYTER_PLATFORM_DIRS"] = "1"
    arguments = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout", "60", "-q",
                 "-p", "no:cacheprovider", "-c", "pytest.ini", "--rootdir", str(home),
                 "--junitxml", "report.xml", "notebook.ipynb"]  # fmt: skip
    os.execv(sys.executable, [sys.executable, "-s", "-m", "pytest", *arguments])


if __name__ == "__main__":
    _main()
