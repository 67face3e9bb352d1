"""Inside the sandbox: execute cells, call the student's function, answer in plain data."""

from __future__ import annotations
import __future__

import ast
import asyncio
import contextlib
import inspect
import io
import linecache
import random
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minids3.grade.lines import lines_of
from minids3.grade.process import replay, tripwire, wire

__all__ = ["execute", "serve", "warm_up"]

_PRINTED = 4000
_FUTURE = 0
for _name in __future__.all_feature_names:
    _FUTURE |= getattr(__future__, _name).compiler_flag
_BUILTIN = {
    name: value for name, value in vars(__import__("builtins")).items()
    if isinstance(value, type) and issubclass(value, BaseException)
}  # fmt: skip


class _Printed(io.TextIOBase):
    """Keeps the first characters that a student's code prints and forgets the rest."""

    def __init__(self) -> None:
        self.text = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if len(self.text) < _PRINTED:
            self.text += str(text)[: _PRINTED - len(self.text)]
        return len(text)


class _Shell:
    """What ``%`` and ``!`` lines meet instead of IPython: nothing happens."""

    def __init__(self, namespace: dict[str, Any]) -> None:
        self.user_ns = namespace

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


def execute(code: str, name: str, namespace: dict[str, Any], future: int = 0) -> int:
    """Execute one cell; its source can be shown in a traceback, and be read by Triton.

    As in a notebook, ``await`` may stand at the top level, and ``from __future__ import`` holds for
    later cells: ``future`` are the compiler's flags that earlier ones have set.

    Returns:
        The flags for the next cell.
    """
    linecache.cache[name] = (len(code), None, [f"{line}\n" for line in lines_of(code)], name)
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | future
    compiled = compile(code, name, "exec", flags=flags, dont_inherit=True)
    if compiled.co_flags & inspect.CO_COROUTINE:
        asyncio.run(eval(compiled, namespace))
    else:
        exec(compiled, namespace)
    return future | (compiled.co_flags & _FUTURE)


def _kernel_types() -> tuple[type, ...]:
    """Return what Triton makes of a function under its decorators."""
    try:
        from triton.runtime.autotuner import Autotuner, Heuristics
        from triton.runtime.interpreter import InterpretedFunction
        from triton.runtime.jit import JITFunction
    except ImportError:
        return ()
    return (InterpretedFunction, JITFunction, Autotuner, Heuristics)


def _line(error: BaseException, name: str) -> int | None:
    """Return the last line of the traceback that lies in the cell ``name``, or None."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == name:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _told(error: BaseException) -> dict[str, Any]:
    """Return an exception as plain data."""
    try:
        text = " ".join(str(error).split())[:160]
    except BaseException:
        text = "(its message raises, too)"
    kinds = [k.__name__ for k in type(error).__mro__ if _BUILTIN.get(k.__name__) is k]
    return {"raised": type(error).__name__[:60], "kinds": kinds, "text": text}


class _Server:
    """One namespace and the calls into it."""

    def __init__(self) -> None:
        self.namespace: dict[str, Any] = {}
        self.printed = _Printed()
        self.fn: Any = None
        self.cell = ""
        self.kept: dict[int, tuple[list[Tensor], list[Tensor]]] = {}

    # op: load --------------------------------------------------------------------------------

    def load(self, m: dict[str, Any]) -> dict[str, Any]:
        """Execute the pieces; a piece that fails is told and the next one runs."""
        tripwire.install(m["forbid"])
        module = types.ModuleType("__main__")
        sys.modules["__main__"] = module
        self.namespace = vars(module)
        shell = _Shell(self.namespace)
        self.namespace.update(get_ipython=lambda: shell, display=lambda *a, **k: None)
        sys.argv = ["notebook"]
        failed, future = [], 0
        self._seed(m["seed"])
        for i, piece in enumerate(m["pieces"]):
            name = f"<{piece['kind']} {i + 1}>"
            if piece["kind"] == "answer":
                self.cell = name
            try:
                future = execute(piece["code"], name, self.namespace, future)
            except BaseException as error:
                failed.append({"piece": i, "line": _line(error, name), **_told(error)})
            if piece["kind"] in ("setup", "library", "given"):
                tripwire.taken()  # the notebook's own doing
        self.fn = self.namespace.get(m["name"])
        kind = "missing" if m["name"] not in self.namespace else type(self.fn).__name__
        usable = callable(self.fn) or hasattr(self.fn, "run")
        return {"failed": failed, "callable": usable, "kind": kind}

    @staticmethod
    def _seed(seed: int) -> None:
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % (1 << 32))  # noqa: NPY002 - students' code may use it

    def seed(self, m: dict[str, Any]) -> dict[str, Any]:
        self._seed(m["value"])
        return {}

    # op: call --------------------------------------------------------------------------------

    def call(self, m: dict[str, Any]) -> dict[str, Any]:
        """Call the function; tell its value, what it changed, and whether gradients can follow."""
        leaves: list[Tensor] = []
        tensors: list[Tensor] = []

        def make(form: dict[str, Any]) -> Tensor:
            t = wire.tensor_of(form)
            tensors.append(t)
            if form.get("grad"):
                leaves.append(t.requires_grad_())
            return t

        args, kwargs = list(wire.decode(m["args"], make)), wire.decode(m["kwargs"], make)
        for later, first in m.get("same", ()):  # one object, passed twice
            args[later] = args[first]
        if m.get("record"):
            reply = self._recorded(args, kwargs, tensors)
            out = None
        else:
            out = self.fn(*args, **kwargs)
            reply = {"value": wire.encode(out)}
            reply["argument"] = next((i for i, a in enumerate(args) if a is out), None)
        after = wire.encode(tuple(args)), wire.encode(kwargs)
        if after != (m["args"], m["kwargs"]):
            reply["after"] = list(after)
        if m.get("grad"):
            outs = [o for o in replay.flat(out) if isinstance(o, Tensor) and o.requires_grad]
            self.kept[m["grad"]] = (leaves, outs)
        return reply

    def _recorded(self, args: list[Any], kwargs: Any, tensors: list[Tensor]) -> dict[str, Any]:
        """Call the function and tell which operations it made, for somebody else to repeat."""
        with replay.Recorder(tensors) as recorder:
            out = self.fn(*args, **kwargs)
        result = recorder.result(out)
        return {"steps": recorder.steps, "result": result}

    def repeat(self, m: dict[str, Any]) -> dict[str, Any]:
        """Repeat what was recorded elsewhere."""
        return replay.repeat(m["arguments"], m["steps"], m["result"])

    def backward(self, m: dict[str, Any]) -> dict[str, Any]:
        """Go backward from the kept call's outputs with the given weights."""
        leaves, outs = self.kept[m["grad"]]
        weights = [wire.decode(w) for w in m["weights"]]
        pairs = [(o, w) for o, w in zip(outs, weights, strict=True) if w is not None]
        got = torch.autograd.grad([o for o, _ in pairs], leaves, [w.to(o.dtype) for o, w in pairs],
                                  allow_unused=True, retain_graph=True)  # fmt: skip
        return {"value": wire.encode(tuple(got))}

    # op: launch ------------------------------------------------------------------------------

    def launch(self, m: dict[str, Any]) -> dict[str, Any]:
        """Run the kernel on buffers of its own; tell the buffers' bytes afterwards."""
        from minids3.kernels.language import jit
        from minids3.kernels.watch import watching

        if getattr(self.fn, "is_placeholder", False):
            self.fn()
        if isinstance(self.fn, types.FunctionType):
            kernel = jit(self.fn)
        elif type(self.fn) in _kernel_types():
            kernel = self.fn
        else:
            kind = type(self.fn).__name__[:40]
            raise TypeError(f"not a Triton kernel, a function under @triton.jit, but a {kind}")
        given, buffers = [], []
        for a in m["args"]:
            if isinstance(a, dict) and "storage" in a:
                buffer = wire.decode(a["storage"])
                buffers.append(buffer)
                given.append(buffer.as_strided(a["shape"], a["strides"], a["offset"]))
            else:
                given.append(wire.decode(a))
        try:
            with watching(given, getattr(kernel, "arg_names", None) or ()) as seen:
                kernel[tuple(m["grid"])](*given, **wire.decode(m["constexprs"]))
        except Exception as error:
            while type(error).__name__ == "InterpreterError" and error.__cause__ is not None:
                error = error.__cause__  # type: ignore[assignment]
            raise error from None
        return {"buffers": [wire.encode(b) for b in buffers], "faults": seen.faults[:1],
                "idle": seen.idle}  # fmt: skip

    def answer(self, m: dict[str, Any]) -> dict[str, Any]:
        """Serve one request."""
        operations = {"load": self.load, "call": self.call, "seed": self.seed,
                      "backward": self.backward, "launch": self.launch,
                      "repeat": self.repeat}  # fmt: skip
        try:
            reply = operations[m["op"]](m)
        except BaseException as error:
            reply = {**_told(error), "line": _line(error, self.cell)}
            code = getattr(getattr(self.fn, "fn", self.fn), "__code__", None)
            if reply["line"] and code is not None and code.co_filename == self.cell:
                lines = [n for *_, n in code.co_lines() if n is not None]
                if code.co_firstlineno <= reply["line"] <= max(lines):  # not of a helper's
                    reply["first"] = code.co_firstlineno
        return reply


def warm_up() -> None:
    """Do once, before forking, what is slow the first time: importing parts of torch."""
    import torch._decomp.decompositions
    import torch._refs.nn.functional  # looked through by tripwire

    x = torch.ones(2, 2, requires_grad=True)
    y = torch.softmax(x @ x, -1).masked_fill(x > 0, 0.0)
    with replay.Recorder([x]) as recorder:
        z = x @ x
    replay.repeat([wire.encode(x)], recorder.steps, recorder.result(z))
    torch.autograd.grad([y], [x], [torch.ones_like(y)], allow_unused=True)
    wire.decode(wire.encode((x, np.ones(2))))
    with contextlib.suppress(Exception):
        torch.einsum("ab,bc->ac", x, x).topk(1, -1)


def serve(channel: Any, limit: int) -> None:
    """Answer the grader's requests until it closes the channel."""
    server = _Server()
    sys.stdout = sys.stderr = server.printed  # type: ignore[assignment]
    sys.stdin = io.StringIO()
    warnings.simplefilter("ignore")
    while True:
        try:
            message = wire.receive(channel, limit)
        except wire.Broken:
            return
        reply = server.answer(message)
        reply["tripped"] = tripwire.taken()
        reply["printed"], server.printed.text = server.printed.text, ""
        wire.send(channel, reply)
