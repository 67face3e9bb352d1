"""The log of a run: one JSON object a line, easy to follow while it grows and to draw later."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from minids3.train.history import History
from minids3.train.settings import Position

__all__ = ["StepLog", "read_log"]


class StepLog:
    """Writes ``log.jsonl``; each line has a ``kind``: ``"step"`` or ``"evaluation"``.

    What lies beyond the step that a run goes on from is taken out first: those steps come again.
    """

    def __init__(self, path: Path | None, run: str = "", step: int = 0) -> None:
        """Open the log of a run that has done ``step`` steps; without a path nothing is written."""
        self.path, self.run, self._file = path, run, None
        if path is None:
            return
        kept = [e for e in read_log(path) if e["step"] <= step] if path.is_file() else []
        partial = path.with_name(path.name + ".partial")
        partial.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")
        os.replace(partial, path)
        self._done = {e["step"] for e in kept if e["kind"] == "evaluation"}
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def _write(self, entry: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(entry) + "\n")

    def step(self, history: History, tokens_per_second: float) -> None:
        """Write down the newest step of ``history``."""
        if self._file is None:
            return
        loss = history.train_loss[-1]
        entry: dict[str, Any] = {
            "kind": "step",
            "run": self.run,
            "time": round(time.time(), 2),
            "step": history.steps[-1],
            "tokens": history.tokens[-1],
            "loss": None if math.isnan(loss) else round(loss, 5),
            "lr": history.lr[-1],
            "grad_norm": round(history.grad_norm[-1], 5),
            "tokens_per_second": round(tokens_per_second, 1),
            "memory_mib": _memory_mib(),
        }
        if history.mtp_loss and not math.isnan(loss):
            entry["mtp_loss"] = round(history.mtp_loss[-1], 5)
        if history.layer_violation and not math.isnan(loss):
            entry["max_violation"] = [round(x, 4) for x in history.layer_violation[-1]]
        self._write(entry)

    def evaluation(
        self,
        at: Position,
        loss: float,
        ema_loss: float | None,
        acceptance: float | None,
        floor: float | None,
    ) -> None:
        """Write down an evaluation: losses in nats per token."""
        if self._file is None or at.step in self._done:
            return
        entry = {
            "kind": "evaluation",
            "run": self.run,
            "step": at.step,
            "tokens": at.tokens,
            "loss": loss,
            "ema_loss": ema_loss,
            "acceptance": acceptance,
            "floor": floor,
        }
        self._write(entry)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def read_log(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a log; a last line that was cut off, by a kill or a full disk, is left out.

    Raises:
        ValueError: a line before the last is no entry of a log.
    """
    path = Path(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            if not {"kind", "step", "tokens"} <= entry.keys():
                raise ValueError("it lacks kind, step or tokens")
            entries.append(entry)
        except (ValueError, AttributeError) as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number} is no entry of a log: {error}") from error
    return entries


def _memory_mib() -> float:
    """Largest resident size of this process so far, in MiB; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
