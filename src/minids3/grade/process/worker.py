"""The process that runs students' code, and the one it is forked from.

Importing torch takes seconds, so one process (``main``) imports everything once and then forks a
fresh child for every exercise of every submission. The child goes into the sandbox before it reads
a line of a student's code, executes the cells in one namespace as a notebook would, and answers
calls: plain data in, plain data out. It holds no secrets: the package with the exercises'
solutions and checks is never imported here, ``minids3.course`` is a stand-in whose ``check``
returns its function, and what an exercise forbids to call has lost its code.

A kernel (ipykernel) would do the same with more moving parts: seconds to start, sockets, a
heartbeat and messages that its own code can forge. What is given here is only what cells need:
top-level ``exec``, ``%`` and ``!`` lines that do nothing, a display that shows nothing.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import signal
import socket
import sys
import types
from pathlib import Path
from typing import Any

__all__ = ["main"]

_SKIP = {"course", "grade", "isolation", "bench", "kernels", "ops"}


def _stand_in() -> None:
    """Put a harmless ``minids3.course`` into place before anybody imports the real one."""
    course = types.ModuleType("minids3.course", "Stands in while grading: checks run elsewhere.")

    def check(id: str, fn: Any = None, **_: Any) -> Any:
        return fn

    def nothing(*_: Any, **__: Any) -> None:
        return None

    course.check = check  # type: ignore[attr-defined]
    for name in ("hint", "progress", "setup", "solution"):
        setattr(course, name, nothing)
    course.CheckFailed = type("CheckFailed", (Exception,), {})  # type: ignore[attr-defined]
    course.__all__ = ["CheckFailed", "check", "hint", "progress", "setup", "solution"]  # type: ignore[attr-defined]
    sys.modules["minids3.course"] = course


class _Nothing:
    """What a function of Colab's is here: it may be called, and does nothing."""

    def __call__(self, *_: Any, **__: Any) -> None:
        return None

    def __getattr__(self, name: str) -> _Nothing:
        if name.startswith("__"):
            raise AttributeError(name)
        return self


class _Colab(types.ModuleType):
    """A module of Colab's, such as ``google.colab.drive``."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing()


_COLAB = "auth data_table drive files output patches runtime snippets userdata widgets"


def _stand_in_for_colab() -> None:
    """Let cells import ``google.colab``, as they let ``%`` lines stand: it does nothing here."""
    if "google" not in sys.modules:
        with contextlib.suppress(ImportError):
            import google  # noqa: F401  # a namespace that other packages may share
    google_ = sys.modules.setdefault("google", types.ModuleType("google"))
    colab = _Colab("google.colab")
    colab.__path__ = []
    google_.colab = colab  # type: ignore[attr-defined]
    sys.modules["google.colab"] = colab
    for name in _COLAB.split():
        sys.modules[f"google.colab.{name}"] = module = _Colab(f"google.colab.{name}")
        setattr(colab, name, module)


def import_package(kernels: bool) -> None:
    """Import the library's modules that cells may import; one that is broken is left out."""
    import minids3

    skip = _SKIP - {"kernels", "ops"} if kernels else _SKIP

    def walk(package: Any, name: str) -> None:
        for found in pkgutil.iter_modules(package.__path__):
            if found.name in skip or found.name.startswith("_"):
                continue
            full = f"{name}.{found.name}"
            with contextlib.suppress(Exception):
                module = importlib.import_module(full)
                if found.ispkg:
                    walk(module, full)

    walk(minids3, "minids3")


def _import_everything(kernels: bool) -> None:
    """Import what cells may import; afterwards the package's files need not be readable."""
    _stand_in()
    _stand_in_for_colab()
    with contextlib.suppress(ImportError):
        import matplotlib.pyplot  # noqa: F401
    with contextlib.suppress(ImportError):
        import IPython.core.getipython
        import IPython.display  # noqa: F401
    import_package(kernels)
    sys.modules["minids3"].course = sys.modules["minids3.course"]  # type: ignore[attr-defined]


def main() -> None:
    """Import, then fork a child for each request; ends when the grader closes the channel."""
    control = socket.socket(fileno=int(sys.argv[1]))
    sys.path[:] = [p for p in sys.path if p]
    settings = json.loads(sys.argv[2])
    with contextlib.suppress(ImportError, ValueError, OSError):  # the grader's limit is not ours
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    import torch

    from minids3.grade.process import runner, wire
    from minids3.isolation import folders, sandbox

    torch.set_num_threads(1)
    _import_everything(settings["kernels"])
    runner.warm_up()
    grants = settings["grants"]
    limits = sandbox.Limits(**settings["limits"])
    import gc

    gc.collect()
    gc.freeze()
    alive: set[int] = set()
    try:
        wire.send(control, {"ready": True})
        _serve(control, settings, limits, grants, runner, alive)
    except OSError:
        pass  # the grader is gone
    finally:
        for pid in alive:
            _end(pid)
        folders.remove(Path(settings["home"]))  # whoever made it may be dead


def _serve(
    control: socket.socket,
    settings: dict[str, Any],
    limits: Any,
    grants: dict[str, list[str]],
    runner: Any,
    alive: set[int],
) -> None:
    """Fork and end children as the grader asks, until it is gone; ``alive`` are their numbers."""
    from minids3.grade.process import wire

    slot = 0
    while True:
        data, files, *_ = socket.recv_fds(control, 1 << 16, 4)
        if not data:
            return
        request = json.loads(data)
        if request["op"] == "fork":
            slot += 1
            channel = files[0]
            pid = os.fork()
            if pid == 0:
                control.close()
                _child(channel, Path(request["scratch"]), limits, grants,
                       settings["slot"] + slot, settings["isolate"], runner)  # fmt: skip
            alive.add(pid)
            os.close(channel)
            wire.send(control, {"pid": pid})
        elif request["op"] == "end":
            alive.discard(request["pid"])
            status, cpu = _end(request["pid"])
            wire.send(control, {"status": status, "cpu": cpu})


def _end(pid: int) -> tuple[int, float]:
    """Kill and reap a child; return its status and processor time."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    _, status, used = os.wait4(pid, 0)
    return status, used.ru_utime + used.ru_stime


def _child(
    number: int,
    scratch: Path,
    limits: Any,
    grants: dict[str, list[str]],
    slot: int,
    isolate: bool,
    runner: Any,
) -> None:
    """Enter the sandbox and serve; never returns."""
    try:
        from minids3.grade.process import wire
        from minids3.isolation import sandbox

        sandbox.close_files([number])
        channel = socket.socket(fileno=number)
        try:
            sandbox.enter(scratch, limits, grants, slot, isolate)
        except BaseException as error:
            wire.send(channel, {"fault": f"the sandbox failed: {type(error).__name__}: {error}"})
            os._exit(70)
        wire.send(channel, {"inside": True})
        runner.serve(channel, limits.reply_mib << 20)
    except BaseException:
        os._exit(71)
    os._exit(0)
