"""A process that runs a student's code: started, asked, watched while it works, and ended."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minids3.grade.process import wire
from minids3.grade.process.zygote import Zygote
from minids3.isolation import folders

__all__ = ["Child", "ProcessEnded", "TimeLimit"]


_BUSY = 12  # so many times longer may an answer take by the clock
_FILES = 2000  # and folders, that it may have at a time
_NO_ANSWER = "no answer after {:.0f} s. Is there a loop that never ends?"


class TimeLimit(Exception):
    """The student's code took too long."""


class ProcessEnded(Exception):
    """The student's process is gone."""


class Child:
    """A process in the sandbox; started again, a few times, where a request has ended it."""

    def __init__(self, zygote: Zygote, load: dict[str, Any] | None = None) -> None:
        """``load`` says which pieces to run and which name to call (see ``runner``), or nothing."""
        self._zygote = zygote
        self._load = load or {"pieces": [], "name": "", "forbid": [], "seed": 0}
        self._forbidden = frozenset(self._load["forbid"])
        self._limits = zygote.limits
        self._pid: int | None = None
        self._starts = 0
        self._late = False
        self._left = self._limits.exercise_seconds
        self.tripped: list[str] = []
        self.printed = ""
        self.failed: list[dict[str, Any]] = []
        self.ended: list[str] = []

    @property
    def pieces(self) -> list[dict[str, Any]]:
        """What runs in the process, in order."""
        return self._load["pieces"]

    def start(self) -> None:
        """Fork it and run the pieces there.

        Raises:
            ProcessEnded: it has ended too often.
        """
        if self._late or self._starts > self._limits.restarts:
            raise ProcessEnded(f"not called again: {self.ended[-1]}")
        self._starts += 1
        self._pid, self._channel, self._scratch = self._zygote.fork()
        reply = self.ask({"op": "load", **self._load}, self._limits.load_seconds)
        failed = reply.get("failed")
        failed = failed[:1000] if isinstance(failed, list) else []
        self.failed = [f for f in failed if isinstance(f, dict)]
        self._usable = reply.get("callable") is True
        self._kind = str(reply.get("kind"))[:60]

    def close(self) -> dict[str, Any] | None:
        """End the process, if there is one; return how it ended."""
        if self._pid is None:
            return None
        pid, self._pid = self._pid, None
        self._channel.close()
        try:
            return self._zygote.end(pid)
        finally:
            folders.remove(self._scratch)

    def _cpu(self) -> float:
        """Return the processor time that the child has used, in seconds; -1 if nobody knows."""
        try:
            with open(f"/proc/{self._pid}/stat", encoding="utf-8", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, IndexError):
            return -1.0

    def _queued(self) -> float:
        """Return how long the child has waited for a processor, in seconds; -1 if nobody knows."""
        waits = []
        with contextlib.suppress(OSError, ValueError, IndexError):
            for task in os.listdir(f"/proc/{self._pid}/task"):
                with open(f"/proc/{self._pid}/task/{task}/schedstat", encoding="ascii") as file:
                    waits.append(int(file.read().split()[1]) / 1e9)
        return max(waits, default=-1.0)

    def _clock(self) -> Callable[[], float]:
        """Return what tells the child's own seconds from now on.

        What it spends waiting for a processor is not its own: a class is graded while other things
        run, and a busy machine must cost nobody a point.
        """
        begin, queued = time.monotonic(), self._queued()

        def own() -> float:
            waited = self._queued() - queued if queued >= 0 else 0.0
            return time.monotonic() - begin - max(waited, 0.0)

        return own

    def _waiter(self, seconds: float, own: Callable[[], float]) -> Callable[[], None]:
        """Return what waits for an answer: ``seconds`` of the child's ``own`` time.

        By the clock it may be twelve times as long. A child that neither computes nor waits for a
        processor sleeps, and is given half the time.
        """
        begin, used = time.monotonic(), self._cpu()
        end = begin + seconds * (1 if used < 0 else _BUSY)
        looked = begin

        def wait() -> None:
            nonlocal looked
            while not select.select([self._channel], [], [], 0.1)[0]:
                now = time.monotonic()
                if now > looked + 0.1:
                    looked = now
                    self._look()
                if now > end:
                    raise TimeLimit(_NO_ANSWER.format(min(now - begin, seconds)))
                if now < begin + min(seconds / 2, self._left):
                    continue
                mine, spent = own(), self._cpu() - used
                if max(mine, spent) > min(seconds, self._left):
                    raise TimeLimit(_NO_ANSWER.format(min(seconds, self._limits.exercise_seconds)))
                if used >= 0 and mine - spent > seconds / 2:
                    raise TimeLimit(
                        f"no answer after {seconds / 2:.0f} s in which it only waited. Does it "
                        "sleep, or ask for input?"
                    )

        return wait

    def _look(self) -> None:
        """Stop a child that fills the disk or multiplies its threads."""
        size = self._unlinked() + folders.size(self._scratch, most=_FILES)
        if size > self._limits.scratch_mib << 20:
            raise ProcessEnded("it wrote too many files")
        with contextlib.suppress(OSError):
            if len(os.listdir(f"/proc/{self._pid}/task")) > self._limits.threads:
                raise ProcessEnded("it started too many threads")

    def _unlinked(self) -> int:
        """Return the bytes in files that the child holds though their names are gone."""
        sizes: dict[int, int] = {}
        with contextlib.suppress(OSError, ValueError):  # mapped into memory
            maps = Path(f"/proc/{self._pid}/maps").read_text(encoding="utf-8", errors="replace")
            for line in maps.splitlines():
                if line.endswith("(deleted)") and str(self._scratch) in line:
                    place, _, _, _, inode, *_ = line.split()
                    low, _, high = place.partition("-")
                    sizes[int(inode)] = int(high, 16) - int(low, 16)
        with contextlib.suppress(OSError):
            for number in os.listdir(f"/proc/{self._pid}/fd"):
                with contextlib.suppress(OSError):
                    info = os.stat(f"/proc/{self._pid}/fd/{number}")
                    if stat.S_ISREG(info.st_mode) and info.st_nlink == 0:
                        held = sizes.get(info.st_ino, 0)
                        sizes[info.st_ino] = max(info.st_blocks * 512, held)
        return sum(sizes.values())

    def ask(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Send a request and return the answer; starts the process where needed.

        Raises:
            TimeLimit: none came in time; the process is ended.
            ProcessEnded: it has ended, or has been for what it did.
        """
        if self._pid is None:
            self.start()
        try:
            own = self._clock()
            wait = self._waiter(seconds, own)
            self._channel.settimeout(_BUSY * seconds)
            wire.send(self._channel, message)
            self._channel.settimeout(None)
            reply = wire.receive(self._channel, self._limits.reply_mib << 20, wait)
            self._left -= own()
            self._look()
        except (TimeLimit, ProcessEnded) as stopped:
            self._late |= isinstance(stopped, TimeLimit)  # it would be late again, and again
            self.close()
            self.ended.append(str(stopped))
            raise
        except (wire.Broken, OSError) as broken:
            ended = self.close() or {}
            reason = self._why(ended.get("status", 0), ended.get("cpu", 0), str(broken))
            self.ended.append(reason)
            raise ProcessEnded(reason) from None
        tripped, printed = reply.get("tripped"), reply.get("printed")
        told = tripped[: len(self._forbidden)] if isinstance(tripped, list) else []
        for name in told:  # what it may tell, and nothing else
            if isinstance(name, str) and name in self._forbidden and name not in self.tripped:
                self.tripped.append(name)
        if isinstance(printed, str):
            self.printed = (self.printed + printed[:4000])[:4000]
        return reply

    def _why(self, status: int, cpu: float, broken: str) -> str:
        if cpu >= self._limits.cpu_seconds - 1:
            return f"it used more than {self._limits.cpu_seconds} s of processor time"
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            if number != signal.SIGKILL:
                return f"the process was ended by {signal.Signals(number).name}"
        if broken != "closed":
            return f"its process gave {broken}"
        return "its process ended, as by exit() or for lack of memory"
