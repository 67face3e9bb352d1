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
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _python_dispatch as dispatch

from minids3.grade.process import wire
from minids3.grade.process.child import Child, ProcessEnded, TimeLimit
from minids3.grade.process.rebuild import copy_into, counters_in, leaves_of, plain, rebuilt, swap
from minids3.grade.process.replay import other_numbers
from minids3.grade.process.zygote import Zygote
from minids3.kernels.watch import MemoryFault
from minids3.sim.counted import MultiplyAdds

__all__ = ["ProcessEnded", "Remote", "TimeLimit"]


class Remote(Child):
    """The student's function, in its own process."""

    def __init__(self, zygote: Zygote, load: dict[str, Any]) -> None:
        """``load`` says which pieces to run and which name to call (see ``runner``)."""
        super().__init__(zygote, load)
        self._ids = itertools.count(1)
        self.run = self.arg_names = None  # what says "a Triton kernel" to the checker
        self.raised: set[str] = set()  # names of the exceptions

    def seed(self, value: int) -> None:
        """Seed the child's random numbers; starts it where needed, and never raises."""
        with contextlib.suppress(TimeLimit, ProcessEnded):
            self.ask({"op": "seed", "value": value}, self._limits.call_seconds)

    def _request(self, message: dict[str, Any]) -> dict[str, Any]:
        if self._pid is None:
            self.start()
        if not self._usable:
            last = len(self._load["pieces"]) - 1
            for told in self.failed:
                if told.get("piece") == last:
                    raise rebuilt(told, "of your cell")
            name = self._load["name"]
            if self._kind == "missing":
                raise NameError(f"your cell does not define {name}")
            raise TypeError(f"{name} is a {self._kind}, not a function")
        reply = self.ask(message, self._limits.call_seconds)
        if "raised" in reply:
            self.raised.add(str(reply["raised"])[:60])
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
        number = reply.get("argument")
        if type(number) is int and 0 <= number < len(args) and isinstance(args[number], list):
            return args[number]  # the very list that was passed in
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
        other = Child(self._zygote)
        try:
            again = {"op": "repeat", "arguments": forms}
            again |= {"steps": told.get("steps"), "result": told.get("result")}
            reply = other.ask(again, self._limits.call_seconds)
        finally:
            other.close()
        if "raised" in reply:
            why = f"{reply['raised']}: {reply.get('text', '')}"
            raise ProcessEnded(f"its operations cannot be repeated on other numbers ({why})")
        for counter in counters:
            counter.total += int(reply["multiply_adds"])
            counter.sums += int(reply["sums"])
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

        def launch(*args: Any, **constexprs: Any) -> bool:
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
            if faults := reply.get("faults"):
                raise MemoryFault(str(faults[0] if isinstance(faults, list) else faults)[:200])
            return reply.get("idle") is True

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
