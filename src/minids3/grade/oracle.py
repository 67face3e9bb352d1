"""The grader's side: checks run here, and only the student's function runs elsewhere.

``Remote`` looks like a function. Called, it sends its arguments as plain data to a child process in
the sandbox and returns what comes back, so that ``run_check`` and the exercises' checks need not
know: every comparison, every expected value and every hidden input stays in this process. An
exception there is raised here under its name; a change of an argument there is made here, too;
where an argument wants a gradient, going backward is another request. The child cannot claim a
result: it can only give values, and giving the right values for fresh inputs is what the exercise
asks for.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _python_dispatch as dispatch

from minids3.grade import wire
from minids3.grade.rebuild import copy_into, counters_in, leaves_of, plain, rebuilt, swap
from minids3.grade.replay import other_numbers
from minids3.grade.zygote import Zygote
from minids3.sim.counted import MultiplyAdds

__all__ = ["ProcessEnded", "Remote", "TimeLimit"]


class TimeLimit(Exception):
    """The student's code took too long."""


class ProcessEnded(Exception):
    """The student's process is gone."""


class Remote:
    """The student's function, in its own process; restarted where a call has killed it."""

    def __init__(self, zygote: Zygote, load: dict[str, Any]) -> None:
        """``load`` says which pieces to run and which name to call (see ``runner.load``)."""
        self._zygote = zygote
        self._load = load
        self._limits = zygote.limits
        self._pid: int | None = None
        self._starts = 0
        self._ids = itertools.count(1)
        self._deadline = time.monotonic() + self._limits.exercise_seconds
        self.tripped: list[str] = []
        self.printed = ""
        self.failed: list[dict[str, Any]] = []
        self.ended: list[str] = []
        self.run = self.arg_names = None  # what says "a Triton kernel" to the checker

    @property
    def pieces(self) -> list[dict[str, Any]]:
        """What runs in the child, in order."""
        return self._load["pieces"]

    # the process -------------------------------------------------------------------------------

    def start(self) -> None:
        """Fork a child and run the pieces there."""
        if self._starts > self._limits.restarts:
            raise ProcessEnded(f"not called again: {self.ended[-1]}")
        self._starts += 1
        self._pid, self._channel, self._scratch = self._zygote.fork()
        reply = self._ask({"op": "load", **self._load}, self._limits.load_seconds)
        self.failed = [f for f in reply.get("failed", []) if isinstance(f, dict)]
        self._usable = reply.get("callable") is True
        self._kind = str(reply.get("kind"))[:60]

    def close(self) -> dict[str, Any] | None:
        """End the child, if there is one; return how it ended."""
        if self._pid is None:
            return None
        pid, self._pid = self._pid, None
        self._channel.close()
        ended = self._zygote.end(pid)
        shutil.rmtree(self._scratch, ignore_errors=True)
        return ended

    def _cpu(self) -> float:
        """Return the processor time that the child has used, in seconds; -1 if nobody knows."""
        try:
            with open(f"/proc/{self._pid}/stat", encoding="utf-8", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, IndexError):
            return -1.0

    def _waiter(self, seconds: float) -> Callable[[], None]:
        """Return what waits for an answer: ``seconds`` of the child's own time, on a busy machine.

        By the clock it may be six times as long: a class is graded while other things run.
        """
        begin, used = time.monotonic(), self._cpu()
        end = min(begin + seconds * (1 if used < 0 else 6), self._deadline)
        looked = begin

        def wait() -> None:
            nonlocal looked
            while not select.select([self._channel], [], [], 0.1)[0]:
                now = time.monotonic()
                if now > end or (now > begin + seconds and self._cpu() > used + seconds):
                    raise TimeLimit(
                        f"no answer after {min(now - begin, seconds):.0f} s. Is there a loop that "
                        "never ends?"
                    )
                if now > looked + 0.3:
                    looked = now
                    self._look()

        return wait

    def _look(self) -> None:
        """Stop a child that fills the disk or multiplies its threads."""
        size = count = 0
        for folder, _, files in os.walk(self._scratch):
            for name in files:
                with contextlib.suppress(OSError):
                    size += os.lstat(os.path.join(folder, name)).st_blocks * 512
                count += 1
                if count > 2000 or size > self._limits.scratch_mib << 20:
                    raise ProcessEnded("it wrote too many files")
        with contextlib.suppress(OSError):
            if len(os.listdir(f"/proc/{self._pid}/task")) > self._limits.threads:
                raise ProcessEnded("it started too many threads")

    def _ask(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        try:
            wait = self._waiter(seconds)
            self._channel.settimeout(6 * seconds)
            wire.send(self._channel, message)
            self._channel.settimeout(None)
            reply = wire.receive(self._channel, self._limits.reply_mib << 20, wait)
        except (TimeLimit, ProcessEnded) as stopped:
            self.close()
            self.ended.append(str(stopped))
            raise
        except (wire.Broken, OSError) as broken:
            ended = self.close() or {}
            reason = self._why(ended.get("status", 0), ended.get("cpu", 0), str(broken))
            self.ended.append(reason)
            raise ProcessEnded(reason) from None
        for name in reply.get("tripped") or []:
            if isinstance(name, str) and name[:100] not in self.tripped:
                self.tripped.append(name[:100])
        self.printed = (self.printed + str(reply.get("printed", "")))[:4000]
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

    # requests ----------------------------------------------------------------------------------

    def seed(self, value: int) -> None:
        """Seed the child's random numbers; starts it where needed, and never raises."""
        with contextlib.suppress(TimeLimit, ProcessEnded):
            self._ready()
            self._ask({"op": "seed", "value": value}, self._limits.call_seconds)

    def _ready(self) -> None:
        if self._pid is None:
            self.start()

    def _request(self, message: dict[str, Any]) -> dict[str, Any]:
        self._ready()
        if not self._usable:
            last = len(self._load["pieces"]) - 1
            for told in self.failed:
                if told.get("piece") == last:
                    raise rebuilt(told, "of your cell")
            name = self._load["name"]
            if self._kind == "missing":
                raise NameError(f"your cell does not define {name}")
            raise TypeError(f"{name} is a {self._kind}, not a function")
        reply = self._ask(message, self._limits.call_seconds)
        if "raised" in reply:
            raise rebuilt(reply, "of your function" if reply.get("first") else "of your cell")
        return reply

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the student's function with these arguments."""
        leaves = leaves_of([args, kwargs])
        counters = counters_in(dispatch._get_current_dispatch_mode_stack())
        with dispatch._disable_current_modes():
            message = {"op": "call", "args": plain(args), "kwargs": plain(kwargs)}
            twins = {
                j: next(i for i, b in enumerate(args) if b is a)
                for j, a in enumerate(args)
                if isinstance(a, Tensor | list | dict)
            }
            message["same"] = [[j, i] for j, i in twins.items() if i != j]
            if counters:
                return self._counted(message, counters)
            if leaves and torch.is_grad_enabled():
                message["grad"] = next(self._ids)
            reply = self._request(message)
            try:
                value = self._value(reply, message.get("grad"), leaves)
                if "after" in reply:
                    after = wire.decode(reply["after"][0]), wire.decode(reply["after"][1])
                    copy_into([list(args), kwargs], [list(after[0]), after[1]])
            except (wire.Broken, TypeError, ValueError, IndexError, AttributeError) as error:
                raise ProcessEnded(f"its process gave {error}") from None
        return value

    def _counted(self, message: dict[str, Any], counters: list[MultiplyAdds]) -> Any:
        """Return what the function computes, as repeated and counted in another process.

        The function sees other numbers than the check's, and no gradient follows (see ``replay``).
        """
        forms = [message["args"], message["kwargs"]]
        args, kwargs = other_numbers({"list": forms}, next(self._ids))["list"]
        told = self._request({**message, "args": args, "kwargs": kwargs, "record": True})
        if "after" in told:
            raise ProcessEnded("it changed its input in place while its operations were counted")
        other = Remote(self._zygote, {"pieces": [], "name": "", "forbid": [], "seed": 0})
        try:
            other.start()
            again = {"op": "repeat", "arguments": forms}
            again |= {"steps": told.get("steps"), "result": told.get("result")}
            reply = other._ask(again, self._limits.call_seconds)
        finally:
            other.close()
        if "raised" in reply:
            why = f"{reply['raised']}: {reply.get('text', '')}"
            raise ProcessEnded(f"its operations cannot be repeated on other numbers ({why})")
        for counter in counters:
            counter.total += int(reply["multiply_adds"])
        return wire.decode(reply["value"])

    def _value(self, reply: dict[str, Any], ident: int | None, leaves: list[Tensor]) -> Any:
        made: list[Tensor] = []

        def note(form: dict[str, Any]) -> Tensor:
            t = wire.tensor_of(form)
            if ident is not None and form.get("grad") and t.is_floating_point():
                made.append(t)
            return t

        value = wire.decode(reply.get("value"), note)
        if not made:
            return value
        joined = iter(_Bridge.apply(self, ident, made, *leaves))
        wants = {id(t) for t in made}
        return swap(value, wants, joined)

    def backward(self, ident: int, weights: Sequence[Tensor]) -> list[Tensor | None]:
        """Go backward in the child."""
        reply = self._request(
            {"op": "backward", "grad": ident, "weights": [wire.encode(w) for w in weights]}
        )
        return list(wire.decode(reply["value"]))

    def __getitem__(self, grid: Sequence[int]) -> Any:
        """Return what launches the student's kernel, as ``kernel[grid]``."""

        def launch(*args: Any, **constexprs: Any) -> None:
            sent, homes = [], []
            for a in args:
                if isinstance(a, Tensor):  # with all the memory around it, to see overruns
                    home = torch.empty(0, dtype=a.dtype).set_(a.untyped_storage())
                    homes.append(home)
                    place = {"shape": list(a.shape), "strides": list(a.stride())}
                    place |= {"offset": a.storage_offset(), "storage": wire.encode(home)}
                    sent.append(place)
                else:
                    sent.append(plain(a))
            message = {"op": "launch", "grid": list(grid), "args": sent}
            reply = self._request({**message, "constexprs": plain(constexprs)})
            try:
                for home, form in zip(homes, reply["buffers"], strict=True):
                    home.copy_(wire.decode(form).view(home.shape))
            except (wire.Broken, KeyError, ValueError, RuntimeError, AttributeError) as error:
                raise ProcessEnded(f"its process gave {error}") from None

        return launch


class _Bridge(torch.autograd.Function):
    """Joins the graph here with the one in the child."""

    @staticmethod
    def forward(ctx: Any, remote: Remote, ident: int, made: list[Tensor], *leaves: Tensor) -> Any:
        """Return the values that the child computed."""
        ctx.remote, ctx.ident = remote, ident
        return tuple(made)

    @staticmethod
    def backward(ctx: Any, *weights: Tensor) -> Any:
        """Ask the child for the gradients of the leaves."""
        return (None, None, None, *ctx.remote.backward(ctx.ident, weights))
