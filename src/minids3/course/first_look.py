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
import importlib
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from minids3.kernels.source import locate

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
    return _PROCESS.look(kernel, (tuple(grid), tuple(args), constexprs))


def _tensors(args: Sequence[Any]) -> list[Tensor]:
    return [t for a in args if isinstance(t := getattr(a, "buffer", a), Tensor)]


class _Process:
    """The process that looks; it starts when it is needed, and ends with this one."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None  # kernels of cells, as files

    def look(self, kernel: Any, launch: tuple[Any, ...]) -> Look | None:
        """Have a launch looked at; None if the process cannot, ended over it, or took too long."""
        child = self._started()
        assert child.stdin is not None
        assert child.stdout is not None
        assert self._folder is not None
        try:
            place = locate(kernel, Path(self._folder.name))
        except (OSError, TypeError, ValueError):  # its text is in no cell
            return None
        watchdog = threading.Timer(LIMIT, child.kill)
        watchdog.start()
        try:
            child.stdin.write(pickle.dumps((place, launch)))
            child.stdin.flush()
            return pickle.load(child.stdout)  # type: ignore[no-any-return]
        except (OSError, EOFError, pickle.PickleError):
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
            self._folder = tempfile.TemporaryDirectory(prefix="minids3-kernels-")
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
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


_PROCESS = _Process()
atexit.register(_PROCESS.end)


def serve() -> None:
    """Look at launches from standard input until it ends; what a kernel prints goes nowhere."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            place, (grid, args, constexprs) = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        replies.write(pickle.dumps(_looked(place, grid, args, constexprs)))
        replies.flush()


def _looked(
    place: dict[str, str], grid: Sequence[int], args: Sequence[Any], constexprs: dict[str, Any]
) -> Look | None:
    from minids3.course.launching import launch
    from minids3.kernels.watch import MemoryFault

    if place["path"] not in ("", *sys.path):
        sys.path.insert(0, place["path"])
    importlib.invalidate_caches()  # the file may be younger than the folder's last listing
    look = Look()
    try:
        kernel = getattr(importlib.import_module(place["module"]), place["attribute"])
        look.idle = launch(kernel, grid, args, constexprs)
    except MemoryFault as error:
        look.fault = str(error)
    except NotImplementedError as error:
        if str(error):  # the interpreter's own: something that it does not know
            return None
        look.stub = True
    except Exception:  # the GPU will tell, and its words count; or it uses what no file has
        return None
    look.written = _tensors(args)
    return look
