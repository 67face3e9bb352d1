"""Timing two things by turns, so that a busy or throttled machine slows both."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tqdm.auto import tqdm

__all__ = ["Comparison", "alternate", "environment"]


@dataclass(frozen=True)
class Comparison:
    """Seconds of ours and of the peer, one entry per round."""

    name: str
    unit: str
    work: float
    ours: list[float]
    peer: list[float]
    best: bool = False

    @property
    def ratio(self) -> float:
        """How many times faster ours is: the median over rounds of peer / ours.

        With ``best`` the best round of each counts instead, which a busy machine disturbs least.
        """
        if self.best:
            return min(self.peer) / min(self.ours)
        return statistics.median(p / o for o, p in zip(self.ours, self.peer, strict=True))

    @property
    def rates(self) -> tuple[float, float]:
        """Work per second at the median round (with ``best``: the best), ours and the peer's."""
        if self.best:
            return self.work / min(self.ours), self.work / min(self.peer)
        return self.work / statistics.median(self.ours), self.work / statistics.median(self.peer)

    def row(self) -> str:
        """One line of a report."""
        ours, peer = self.rates
        spread = [p / o for o, p in zip(self.ours, self.peer, strict=True)]
        return (
            f"{self.name:34} {ours:12,.0f} {peer:12,.0f} {self.unit:9} "
            f"{self.ratio:6.2f}x  ({min(spread):.2f} to {max(spread):.2f})"
        )

    def to_dict(self) -> dict[str, object]:
        """Plain JSON types."""
        ours, peer = self.rates
        return {
            "name": self.name,
            "unit": self.unit,
            "ours": ours,
            "peer": peer,
            "ratio": self.ratio,
            "rounds": len(self.ours),
        }


def alternate(
    name: str,
    ours: Callable[[], object],
    peer: Callable[[], object],
    *,
    work: float,
    unit: str,
    rounds: int = 7,
    device: torch.device | str = "cpu",
    cpu_time: bool = False,
) -> Comparison:
    """Time ``ours`` and ``peer`` by turns, after one unmeasured round.

    Args:
        name: what is measured.
        ours: does the work once.
        peer: does the same work another way.
        work: units of work one call does, such as tokens.
        unit: of the rate, such as ``"tokens/s"``.
        rounds: how often each is timed.
        device: synchronised before and after each call if it is a GPU.
        cpu_time: count the process's time on the CPU instead of the clock's, and the best round
            instead of the median: what others do on the machine disturbs it least. It adds up the
            threads, so compare with one.
    """
    clock = time.process_time if cpu_time else time.perf_counter
    cuda = torch.device(device).type == "cuda"
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in tqdm(range(rounds + 1), desc=name, leave=False):
        for i, run in enumerate((ours, peer)):
            if cuda:
                torch.cuda.synchronize()
            start = clock()
            run()
            if cuda:
                torch.cuda.synchronize()
            if turn:
                seconds[i].append(clock() - start)
    return Comparison(name, unit, work, *seconds, best=cpu_time)


def environment(device: torch.device | str = "cpu") -> dict[str, object]:
    """Device, threads, versions and date, for the head of a report."""
    device = torch.device(device)
    found: dict[str, object] = {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        found["cuda"] = torch.version.cuda
    return found


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
