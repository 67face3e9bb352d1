"""Recorded benchmarks: ``data/bench/TOPIC.json``, each with device, date and versions.

Notebooks show them where the reader's machine cannot measure; nothing is shown that no command
produced.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from minids3.data.files import data_dir, write_atomic

__all__ = ["record", "record_path", "recorded"]


def record_path(topic: str) -> Path:
    """Where the record of a topic lies."""
    return data_dir() / "bench" / f"{topic}.json"


def recorded(topic: str) -> dict[str, Any] | None:
    """The record of ``topic`` as its command wrote it, or None if nobody has recorded one."""
    path = record_path(topic)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def record(report: dict[str, Any], path: Path) -> None:
    """Write a report as JSON, at once or not at all."""
    write_atomic(path, (json.dumps(report, indent=2) + "\n").encode())
