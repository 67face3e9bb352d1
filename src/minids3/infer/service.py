"""An engine in a thread of its own, fed through a mailbox: the bridge to a server's event loop.

Between two steps the thread looks into its mailbox for new requests and cancellations, so the
engine is touched by one thread only and needs no lock. What happens to a request is put into a
queue of the loop that asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from minids3.infer.engine import Engine, Event, Sampling

__all__ = ["Busy", "Service"]


class Busy(RuntimeError):
    """Too many requests are waiting already."""


@dataclass(eq=False)
class _Order:
    """A request on its way to the engine, and where its events go; ``gone``: nobody listens."""

    prompt: Sequence[int]
    sampling: Sampling
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[Event | Exception]
    gone: bool = False

    def tell(self, news: Event | Exception) -> None:
        """Hand an event over to the loop that waits for it; it may be gone by now."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.events.put_nowait, news)


class Service:
    """Runs an engine until ``close``; use it as a context."""

    def __init__(self, engine: Engine, max_waiting: int = 64) -> None:
        """Start the thread.

        Args:
            engine: nobody else may use it from now on.
            max_waiting: requests that may be in the house; ``Busy`` for one more.
        """
        self.engine, self.max_waiting = engine, max_waiting
        self._mail: queue.SimpleQueue[_Order | None] = queue.SimpleQueue()
        self._orders: dict[int, _Order] = {}  # by the engine's number
        self._inside = 0
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop after the step that is being done; requests in the house end with an error."""
        self._mail.put(None)
        self._thread.join()

    async def stream(
        self, prompt: Sequence[int], sampling: Sampling, seconds: float
    ) -> AsyncGenerator[Event, None]:
        """Serve one request; leaving the loop early cancels it.

        Raises:
            RequestError: the engine refuses it.
            Busy: too many are waiting.
            TimeoutError: it is not done after so many seconds.
        """
        if self._inside >= self.max_waiting:
            raise Busy(f"{self._inside} requests are being served or wait; try again later")
        events: asyncio.Queue[Event | Exception] = asyncio.Queue()
        order = _Order(prompt, sampling, asyncio.get_running_loop(), events)
        deadline = time.monotonic() + seconds
        self._inside += 1
        self._mail.put(order)
        try:
            while True:
                left = deadline - time.monotonic()
                try:
                    news = await asyncio.wait_for(events.get(), max(left, 0.001))
                except asyncio.TimeoutError:  # not the built-in one before Python 3.11
                    raise TimeoutError(f"the request took more than {seconds:g} seconds") from None
                if isinstance(news, Exception):
                    raise news
                yield news
                if news.finished:
                    return
        finally:
            self._inside -= 1
            order.gone = True
            self._mail.put(order)  # of no effect if it has ended

    def _work(self) -> None:
        while True:
            try:
                order = self._mail.get(block=self.engine.idle)
            except queue.Empty:
                self._step()
                continue
            if order is None:
                for left in self._orders.values():
                    left.tell(RuntimeError("the server was stopped"))
                return
            if order.gone:
                for number in [n for n, o in self._orders.items() if o is order]:
                    self.engine.cancel(number)
                    del self._orders[number]
                continue
            try:
                self._orders[self.engine.submit(order.prompt, order.sampling)] = order
            except ValueError as error:
                order.tell(error)

    def _step(self) -> None:
        try:
            events = self.engine.step()
        except Exception as error:  # whatever it was, those who wait must hear of it
            for number, order in self._orders.items():
                self.engine.cancel(number)
                order.tell(RuntimeError(f"the engine failed: {error}"))
            self._orders.clear()
            return
        for event in events:
            self._orders[event.request].tell(event)
            if event.finished:
                del self._orders[event.request]
