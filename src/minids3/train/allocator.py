"""How the process keeps its memory between training steps on a CPU."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3)
NEVER = 2**31 - 1  # bytes


def keep_freed_memory() -> bool:
    """Let the C library keep what one step frees for the next one; True where that can be said.

    By default glibc gives large freed blocks back to the system, and the next step's tensors fault
    them in again page by page, each page cleared first: 10,000 to 40,000 faults a step of ``mini``,
    and hardly one after this call. The process stays as large as its largest step. Call it once,
    before training; what other C libraries do is left alone.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(TRIM_THRESHOLD, NEVER)) and bool(mallopt(MMAP_THRESHOLD, NEVER))
