"""Writing the grader's files: whole or not at all, and whatever a student's text holds."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["write"]


def write(path: Path, content: str | bytes) -> None:
    """Write ``content`` under a temporary name, then rename: readers see all of it or the old.

    Half a character (a lone surrogate, as half an emoji is) becomes a question mark.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:100]}.{os.getpid()}.tmp")
    raw = content.encode("utf-8", "replace") if isinstance(content, str) else content
    temporary.write_bytes(raw)
    os.replace(temporary, path)
