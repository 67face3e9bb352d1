"""The grader's handle on the process that forks students' code."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minids3.grade.process import wire
from minids3.isolation import folders, sandbox
from minids3.isolation.sandbox import Limits

__all__ = ["GraderFault", "Zygote"]

_SLOTS = itertools.count(os.getpid() * 40)


class GraderFault(BaseException):
    """Something of ours failed. Not an Exception: no check may take it for a student's."""


def data_folders() -> list[Path]:
    """Return the folders of the workbook's data, which an answer may read."""
    with contextlib.suppress(Exception):
        from minids3.data import data_dir

        return [Path(data_dir())]
    return []


class Zygote:
    """The process that imported everything and forks the sandboxed ones."""

    def __init__(
        self,
        limits: Limits,
        *,
        isolate: bool = True,
        hidden: Sequence[Path] = (),
        kernels: bool = False,
    ) -> None:
        """Start it, and do not wait; ``hidden`` are folders nobody in the sandbox may read.

        Raises:
            sandbox.Unavailable: isolation is asked for, and this machine has none.
        """
        if isolate:
            sandbox.demand()
        import minids3

        self.limits = limits
        self.home = Path(tempfile.mkdtemp(prefix="minids3-grade-"))
        self.home.chmod(0o711)  # a worker's own user must reach its folder below
        settings = {
            "grants": sandbox.granted(hidden, data_folders()),
            "limits": limits.to_dict(),
            "home": str(self.home),
            "isolate": isolate,
            "kernels": kernels,
            "slot": next(_SLOTS),
        }
        ours, theirs = socket.socketpair()
        self._control = ours
        place = str(Path(minids3.__file__).resolve().parent.parent)
        self._process = subprocess.Popen(
            [sys.executable, "-s", "-c", "from minids3.grade.process.worker import main; main()",
             str(theirs.fileno()), json.dumps(settings)],
            env={**sandbox.environment(self.home), "PYTHONPATH": place},
            pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, cwd=self.home, start_new_session=True,
        )  # fmt: skip
        theirs.close()
        self._ready = False

    def _wait(self) -> None:
        """Wait until it has imported everything.

        Raises:
            GraderFault: it did not get that far.
        """
        self._control.settimeout(600)  # importing takes seconds, on a busy machine minutes
        try:
            wire.receive(self._control)
        except (wire.Broken, OSError) as error:
            self._process.kill()
            told = (self._process.stderr.read() or b"").decode(errors="replace")[-600:]
            raise GraderFault(f"the grading process did not start: {error}. {told}") from None
        self._ready = True

    def fork(self) -> tuple[int, socket.socket, Path]:
        """Return process id, channel and scratch folder of a fresh child in the sandbox.

        Raises:
            GraderFault: there is none.
        """
        if not self._ready:
            self._wait()
        scratch = Path(tempfile.mkdtemp(dir=self.home))
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                request = json.dumps({"op": "fork", "scratch": str(scratch)}).encode()
                socket.send_fds(self._control, [request], [theirs.fileno()])
                pid = wire.receive(self._control)["pid"]
            ours.settimeout(120)
            hello = wire.receive(ours)
        except (wire.Broken, OSError) as error:
            folders.remove(scratch)
            raise GraderFault(f"no process for a student's code: {error}") from None
        if "inside" not in hello:
            folders.remove(scratch)
            raise GraderFault(str(hello.get("fault", "the sandbox failed")))
        ours.settimeout(None)
        return pid, ours, scratch

    def end(self, pid: int) -> dict[str, Any]:
        """Kill and reap a child; return its exit status and processor time."""
        try:
            self._control.sendall(json.dumps({"op": "end", "pid": pid}).encode())
            return wire.receive(self._control)
        except (wire.Broken, OSError) as error:
            raise GraderFault(f"the grading process is gone: {error}") from None

    def close(self) -> None:
        """End everything and remove the scratch folders."""
        self._control.close()
        if not self._ready:  # busy importing: it would not notice for seconds
            self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._process.kill()
        self._process.wait()
        self._process.stderr.close()
        folders.remove(self.home)
