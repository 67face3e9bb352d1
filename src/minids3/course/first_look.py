"""A look at a reader's kernel in Triton's interpreter, before a GPU runs it.

A stray pointer on a GPU ends the process's CUDA context: whatever the notebook does there
afterwards fails, until its kernel is restarted. A load out of bounds, or a lane left undefined,
may on the other hand give the right numbers there by luck. So where checks use a GPU, a process of
its own interprets each launch first, on the CPU, where every address is compared with the arguments
(``kernels.watch``); a kernel that uses memory of others never reaches the GPU. What the interpreter
cannot do is left to the GPU.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import io
import linecache
import os
import pickle
import subprocess
import sys
import threading
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["LIMIT", "Look", "first_look", "serve"]

LIMIT = 60.0  # seconds for one launch; the first one starts the process, too


@dataclass
class Look:
    """What a launch in the interpreter came to.

    fault: which memory it used that none of its arguments is; empty if none. idle: whether a masked
    load left lanes undefined. stub: nobody has written its body yet. written: the arguments that
    are tensors, or hold one in a ``buffer``, as it left them.
    """

    fault: str = ""
    idle: bool = False
    stub: bool = False
    written: Sequence[Tensor] = ()

    def copy_to(self, args: Sequence[Any]) -> None:
        """Put the numbers that were written into ``args``, those of the launch."""
        for home, t in zip(_tensors(args), self.written, strict=True):
            home.copy_(t)


def first_look(
    kernel: Any, grid: Sequence[int], args: Sequence[Any], constexprs: dict[str, Any]
) -> Look | None:
    """Interpret ``kernel[grid](*args, **constexprs)`` in another process; ``args`` stay the same.

    Returns:
        What was seen, or None where the interpreter cannot tell: it does not know an operation, it
        took more than ``LIMIT``, or the kernel uses something that no other process can have.
    """
    try:
        message = _packed((kernel, tuple(grid), tuple(args), constexprs))
    except Exception:  # a thread's lock, an open file: whatever a notebook may hold
        return None
    return _PROCESS.ask(message)


def _tensors(args: Sequence[Any]) -> list[Tensor]:
    return [t for a in args if isinstance(t := getattr(a, "buffer", a), Tensor)]


def _packed(launch: Any) -> bytes:
    """Pickle a launch, with the text of cells, which Triton reads and no file holds."""
    import cloudpickle

    texts: dict[str, list[str]] = {}

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, types.FunctionType):
                name = obj.__code__.co_filename
                if name in linecache.cache and not os.path.exists(name):
                    texts[name] = linecache.getlines(name)
            elif type(obj).__module__.startswith("triton.runtime.") and hasattr(obj, "fn"):
                path = (obj.fn.__module__, obj.fn.__qualname__)
                if _found(*path) is obj:
                    return _found, path
                return _kernel, (obj.fn,)
            return super().reducer_override(obj)

    body = io.BytesIO()
    Pickler(body).dump(launch)
    return pickle.dumps((texts, body.getvalue()))


def _found(module: str, name: str) -> Any:
    """Return a module's own object of that name, or None."""
    if module == "__main__":
        return None
    with contextlib.suppress(ImportError):
        return getattr(importlib.import_module(module), name, None)
    return None


def _kernel(fn: Any) -> Any:
    from minids3.kernels.language import jit, tl

    if not isinstance(fn, types.FunctionType):
        return fn
    fn.__globals__.setdefault("tl", tl)  # a function takes along the names that it uses alone,
    return jit(fn)  # and the interpreter looks for this one in all of them


class _Process:
    """The process that looks; it starts when it is needed, and ends with this one."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def ask(self, message: bytes) -> Look | None:
        """Have a launch looked at; None if the process ended over it, or took too long."""
        child = self._started()
        assert child.stdin is not None
        assert child.stdout is not None
        watchdog = threading.Timer(LIMIT, child.kill)
        watchdog.start()
        try:
            child.stdin.write(message)
            child.stdin.flush()
            return pickle.load(child.stdout)  # type: ignore[no-any-return]
        except (OSError, EOFError, pickle.UnpicklingError):
            self.end()
            return None
        except BaseException:  # Ctrl-C: its answer would be taken for that of the next launch
            self.end()
            raise
        finally:
            watchdog.cancel()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            self.end()
            self._child = subprocess.Popen(
                [sys.executable, "-c", "from minids3.course.first_look import serve; serve()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
            )
        return self._child

    def end(self) -> None:
        """End the process, if there is one."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None


_PROCESS = _Process()
atexit.register(_PROCESS.end)


def serve() -> None:
    """Look at launches from standard input until it ends; what a kernel prints goes nowhere."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            texts, body = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        replies.write(pickle.dumps(_looked(texts, body)))
        replies.flush()


def _looked(texts: dict[str, list[str]], body: bytes) -> Look | None:
    from minids3.course.launching import launch
    from minids3.kernels.watch import OutOfBounds

    for name, lines in texts.items():
        linecache.cache[name] = (sum(map(len, lines)), None, lines, name)
    try:
        kernel, grid, args, constexprs = pickle.loads(body)
    except Exception:  # it needs what only the notebook has
        return None
    look = Look()
    try:
        look.idle = launch(kernel, grid, args, constexprs)
    except OutOfBounds as error:
        look.fault = str(error)
    except NotImplementedError as error:
        if str(error):  # the interpreter's own: something that it does not know
            return None
        look.stub = True
    except Exception:  # the GPU will tell, and its words count
        return None
    look.written = _tensors(args)
    return look
