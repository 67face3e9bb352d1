"""Ctrl-C and SIGTERM, which have to wait until a step is done: half a step cannot be resumed."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

__all__ = ["Interrupts"]


class Interrupts:
    """Holds Ctrl-C and SIGTERM back until somebody asks; a second one comes through at once."""

    def __init__(self) -> None:
        self.caught: int | None = None

    def _remember(self, signum: int, frame: Any) -> None:
        if self.caught is not None:
            raise KeyboardInterrupt
        self.caught = signum

    @contextlib.contextmanager
    def held_back(self) -> Iterator[None]:
        """Remember signals while the block runs; only the main thread ever gets any."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.signal(s, self._remember) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, signal.SIG_DFL if handler is None else handler)

    def check(self) -> None:
        """Raise ``KeyboardInterrupt`` if a signal came."""
        if self.caught is not None:
            raise KeyboardInterrupt
