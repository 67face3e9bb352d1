"""Recorded benchmarks: ``data/bench/TOPIC.json``, each with device, date and versions.

Notebooks show them where the reader's machine cannot measure; nothing is shown that no command
produced.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from minids3.data.files import DataError, data_dir, own_data_dir, read_json, write_atomic

__all__ = ["record", "record_path", "recorded"]


def record_path(topic: str) -> Path:
    """Where the record of a topic is written; ``DataError`` inside an installed package."""
    return own_data_dir("--json FILE, or work in a clone") / "bench" / f"{topic}.json"


def recorded(topic: str) -> dict[str, Any] | None:
    """The record of ``topic`` as its command wrote it, or None if nobody has recorded one.

    Raises:
        DataError: if the file is damaged.
    """
    path = data_dir() / "bench" / f"{topic}.json"
    if not path.is_file():
        return None
    found = read_json(path)
    if not isinstance(found, dict):
        raise DataError(f"{path.name} is no record of a benchmark: delete it and measure again")
    return found


def record(report: dict[str, Any], path: Path) -> None:
    """Write a report as JSON, at once or not at all."""
    write_atomic(path, (json.dumps(report, indent=2) + "\n").encode())
