"""Several grading processes side by side; one that dies or hangs is replaced."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

__all__ = ["Pool"]

_COMMAND = (sys.executable, "-m", "minids3.grade.job")


class _Process:
    """A grading process, what it works on and what it has said of it so far."""

    def __init__(self, command: tuple[str, ...]) -> None:
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # the processes are the threads
        self.child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **threads},
            start_new_session=True,
        )
        self.task: dict[str, Any] | None = None
        self.until = 0.0
        self.said = b""

    @property
    def out(self) -> int:
        assert self.child.stdout is not None
        return self.child.stdout.fileno()

    def give(self, task: dict[str, Any], seconds: float) -> None:
        self.task, self.until, self.said = task, time.monotonic() + seconds, b""
        assert self.child.stdin is not None
        with contextlib.suppress(OSError):  # it died; seen when nothing can be read
            self.child.stdin.write(json.dumps(task).encode() + b"\n")
            self.child.stdin.flush()

    def end(self, kill: bool = False) -> None:
        """Let it finish, or kill it with all that it started."""
        assert self.child.stdin is not None
        with contextlib.suppress(OSError):
            self.child.stdin.close()
        if not kill:
            try:
                self.child.wait(10)
            except subprocess.TimeoutExpired:
                kill = True
        if kill:
            with contextlib.suppress(OSError):
                os.killpg(self.child.pid, signal.SIGKILL)
            self.child.wait()
        assert self.child.stdout is not None
        self.child.stdout.close()


class Pool:
    """Grades tasks in ``jobs`` processes."""

    def __init__(self, jobs: int, command: tuple[str, ...] = _COMMAND) -> None:
        """Start nothing yet; ``command`` is one process's, for tests."""
        self.jobs, self.command = jobs, command

    def run(
        self, tasks: list[dict[str, Any]], seconds: float = 900.0
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any] | None, str]]:
        """Yield task, grade and error as they are done; the grade is None where there is an error.

        A task whose process died is tried once more, in a new one. One that took longer than
        ``seconds`` is not.
        """
        waiting = list(reversed(tasks))
        tried: dict[str, int] = {}
        processes: set[_Process] = set()
        watch = selectors.DefaultSelector()

        def start() -> None:
            process = _Process(self.command)
            processes.add(process)
            watch.register(process.out, selectors.EVENT_READ, process)
            process.give(waiting.pop(), seconds)

        def drop(process: _Process, kill: bool) -> None:
            watch.unregister(process.out)
            processes.discard(process)
            process.end(kill)

        try:
            while waiting or processes:
                while waiting and len(processes) < self.jobs:
                    start()
                for key, _ in watch.select(timeout=0.5):
                    process = key.data
                    more = os.read(process.out, 1 << 20)
                    process.said += more
                    task = process.task
                    if more and not process.said.endswith(b"\n"):
                        continue
                    if more:
                        yield task, json.loads(process.said), ""
                        if waiting:
                            process.give(waiting.pop(), seconds)
                        else:
                            drop(process, kill=False)
                        continue
                    drop(process, kill=True)
                    name = json.dumps(task, sort_keys=True)
                    tried[name] = tried.get(name, 0) + 1
                    if tried[name] < 2:
                        waiting.append(task)
                    else:
                        yield task, None, _death(process.child.returncode)
                for process in [p for p in processes if time.monotonic() > p.until]:
                    drop(process, kill=True)
                    yield process.task, None, f"no grade within {seconds:.0f} s"
        finally:
            for process in list(processes):
                drop(process, kill=True)
            watch.close()


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        return f"the grading process was ended by signal {-code}, twice"
    return f"the grading process ended with status {code}, twice"
