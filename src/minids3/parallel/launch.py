"""Start processes from a notebook or a test: ``run(work, 4)`` calls ``work`` in four of them.

Each process is a rank of a ``torch.distributed`` group, started by torchrun on a file with the
function's source, so that a function of a notebook's cell works and the kernel may have used
threads before (a fork of it would hang then)::

    def work(x):
        dist.all_reduce(x)
        return x

    run(work, 2, args=(torch.ones(3),)).results    # [tensor([2., 2., 2.]), tensor([2., 2., 2.])]

No process is left behind: not after an error, an interrupt, the time limit, or when the kernel is
killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minids3.parallel.carry import carry_functions
from minids3.parallel.plain import read_plain, write_plain
from minids3.parallel.worker import JOB

__all__ = [
    "LaunchError",
    "LaunchTimeout",
    "LaunchUnavailable",
    "RankFailed",
    "Run",
    "run",
    "unavailable",
]


class LaunchError(RuntimeError):
    """Processes did not do their work."""


class LaunchUnavailable(LaunchError):
    """This machine cannot start processes that talk to each other: go on with recorded results."""


class LaunchTimeout(LaunchError):
    """The time limit was reached; the message says where each rank was."""


class RankFailed(LaunchError):
    """A rank failed; ``rank`` is the first that did, ``kind`` its exception's name or signal."""

    def __init__(self, message: str, rank: int, kind: str) -> None:
        super().__init__(message)
        self.rank, self.kind = rank, kind


@dataclass(frozen=True)
class Run:
    """What processes handed back, in the order of their ranks.

    results: what each rank's function returned.
    outputs: what each rank printed.
    seconds: from the start of the launch to its end.
    """

    results: list[Any]
    outputs: list[str]
    seconds: float


def run(
    work: Callable[..., Any] | Sequence[Callable[..., Any]] | str,
    n: int = 2,
    *,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    timeout: float = 120.0,
    echo: bool = True,
    backend: str = "gloo",
    env: Mapping[str, str] | None = None,
) -> Run:
    """Call ``work`` in ``n`` processes, each a rank of one group, and wait for all.

    Args:
        work: a function, carried by its source with all it uses (functions, classes, modules and
            constants around it); or several, of which the first is called; or the text of a module
            that defines ``work``. Inside, ``dist.get_rank()`` tells the ranks apart.
        n: processes.
        args: its arguments, the same on every rank: numbers, text, lists, dicts, tensors.
        kwargs: its arguments by name.
        timeout: seconds that the launch may take in all.
        echo: print what the ranks printed, in their order.
        backend: ``"gloo"``, or ``"nccl"`` with a GPU for each process.
        env: further variables of the environment.

    Returns:
        Results and outputs by rank.

    Raises:
        LaunchUnavailable: processes or sockets are forbidden here; checked before anything starts.
        RankFailed: a rank raised an exception or was killed; the others were ended. The message
            begins with its own traceback.
        LaunchTimeout: the ranks were not done in time.
        TypeError: something in ``work``, its arguments or its result cannot travel.
        ValueError: a number that makes no sense.
    """
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ValueError(f"n={n!r} must be a whole number of processes, 1 or more")
    if not timeout > 0:
        raise ValueError(f"timeout={timeout!r} must be greater than 0 seconds")
    source, name = _module_of(work)
    reason = unavailable()
    if reason is not None:
        raise LaunchUnavailable(f"{reason}: go on with the recorded results")
    started = time.time()
    with _job_folder() as folder:
        file = folder / "work.py"
        file.write_text(source + _ENTRY.format(name=name), encoding="utf-8")
        write_plain((tuple(args), dict(kwargs or {})), folder / "arguments")
        job = {"deadline": started + timeout, "backend": backend}
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        status = _wait(_start(file, n, folder, env), folder, started + timeout)
        outputs = [_log(folder, rank, "stdout") for rank in range(n)]
        if echo:
            _show(outputs)
        if status is None:
            raise LaunchTimeout(_where_they_were(folder, n, timeout))
        if status != 0:
            raise _failure(folder, n)
        results = [read_plain(folder / f"result_{rank}") for rank in range(n)]
    return Run(results, outputs, time.time() - started)


def unavailable() -> str | None:
    """Why ``run`` cannot work on this machine, or None if it can, as far as can be told."""
    try:
        import torch.distributed as dist

        if not dist.is_available():
            return "this PyTorch was built without torch.distributed"
        with socket.socket() as server, socket.socket() as client:
            server.bind(("127.0.0.1", 0))
            server.listen()
            client.settimeout(5)
            client.connect(server.getsockname())
    except OSError as error:
        return f"this machine forbids sockets ({error})"
    try:
        subprocess.run([sys.executable, "-c", ""], check=False, timeout=60, capture_output=True)
    except (OSError, subprocess.SubprocessError) as error:
        return f"this machine forbids processes of one's own ({error})"
    return None


_ENTRY = """

if __name__ == "__main__":
    from minids3.parallel.worker import work_on

    work_on(lambda: {name})
"""


def _module_of(work: Callable[..., Any] | Sequence[Callable[..., Any]] | str) -> tuple[str, str]:
    """The text of a module, and the name of the function to call."""
    if isinstance(work, str):
        return work, "work"
    functions: list[Any] = list(work) if isinstance(work, Sequence) else [work]
    if not functions or not all(callable(f) for f in functions):
        raise TypeError(f"work must be a function, functions, or a module's text, got {work!r}")
    return carry_functions(functions), functions[0].__name__


@contextlib.contextmanager
def _job_folder() -> Iterator[Path]:
    """A folder for the job, and in it a pipe that stays open as long as this process lives."""
    folder = Path(tempfile.mkdtemp(prefix="minids3-job-"))
    pipe = None
    try:
        if hasattr(os, "mkfifo"):
            os.mkfifo(folder / "alive")
            pipe = os.open(folder / "alive", os.O_RDWR)
        yield folder
    finally:
        if pipe is not None:
            os.close(pipe)  # whoever is left ends itself now
        _end_strays(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _start(
    file: Path, n: int, folder: Path, env: Mapping[str, str] | None
) -> subprocess.Popen[bytes]:
    """Torchrun, with a session of its own, so that it gets no Ctrl-C meant for the kernel."""
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    own = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": loopback, "PYTHONUNBUFFERED": "1"}
    if sys.platform == "win32":
        del own["GLOO_SOCKET_IFNAME"]
    inherited = {k: v for k, v in os.environ.items() if k != "TORCH_LOGS" or v}
    inherited = {k: v for k, v in inherited.items() if k not in _OF_A_LAUNCH}
    own |= {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), JOB: str(folder)}
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes=1"),
        *("--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"),
        *("--max-restarts=0", f"--nproc-per-node={n}", "--redirects=3", f"--log-dir={folder}/logs"),
        str(file),
    ]
    with (folder / "torchrun").open("wb") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**inherited, **own, **(env or {})},
            start_new_session=True,
        )


# What an outer torchrun tells its own workers, and ours must not hear.
_OF_A_LAUNCH = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE"),
)


def _wait(process: subprocess.Popen[bytes], folder: Path, deadline: float) -> int | None:
    """Its exit status, or None after the deadline; whatever happens, it has ended then."""
    try:
        return process.wait(max(deadline - time.time(), 0.1))
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            process.terminate()  # torchrun ends its workers
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(3)
            if process.poll() is None:
                process.kill()
                process.wait()
        _end_strays(folder)


def _end_strays(folder: Path) -> None:
    """Kill every worker that wrote its number down and still runs."""
    for note in folder.glob("pid_*"):
        with contextlib.suppress(OSError, ValueError):
            pid = int(note.read_text())
            note.unlink()
            if _is_ours(pid, folder):
                os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))


def _is_ours(pid: int, folder: Path) -> bool:
    """Whether a number still means the worker that had it, where the system tells."""
    command = Path(f"/proc/{pid}/cmdline")
    if not Path("/proc/self/cmdline").exists():
        return True
    return command.exists() and str(folder).encode() in command.read_bytes()


def _log(folder: Path, rank: int, stream: str) -> str:
    for path in sorted(folder.glob(f"logs/*/attempt_*/{rank}/{stream}.log")):
        return path.read_text(encoding="utf-8", errors="replace")
    return ""


def _show(outputs: list[str]) -> None:
    for rank, text in enumerate(outputs):
        for line in text.splitlines():
            print(f"[rank {rank}] {line}")


def _failure(folder: Path, n: int) -> LaunchError:
    """The rank that failed first, told by its own traceback, then the others in a line each."""
    errors = {}
    for rank in range(n):
        with contextlib.suppress(OSError, ValueError):
            errors[rank] = json.loads((folder / f"error_{rank}.json").read_text(encoding="utf-8"))
    killed = _killed(folder)
    if killed is not None and killed[0] not in errors:
        rank, cause = killed
        last = _log(folder, rank, "stderr").strip().splitlines()[-15:]
        text = "\n".join([f"rank {rank} of {n} ended with {cause}", *last])
        return RankFailed(text + _others(errors, rank), rank, cause)
    if errors:
        rank = min(errors, key=lambda r: errors[r]["time"])
        trace = errors[rank]["traceback"].replace(str(folder / "work.py"), "work.py").rstrip()
        text = f"rank {rank} of {n} failed:\n{trace}"
        return RankFailed(text + _others(errors, rank), rank, errors[rank]["type"])
    told = (folder / "torchrun").read_text(encoding="utf-8", errors="replace")
    return LaunchError("torchrun could not start the processes:\n" + told.strip()[-2000:])


def _others(errors: dict[int, Any], first: int) -> str:
    lines = []
    for rank in sorted(errors.keys() - {first}):
        message = errors[rank]["message"].strip().splitlines() or [""]
        lines.append(f"rank {rank} failed after that: {errors[rank]['type']}: {message[0][:150]}")
    return "".join("\n" + line for line in lines)


def _killed(folder: Path) -> tuple[int, str] | None:
    """Rank and cause of the first process that ended without a word, as torchrun saw it."""
    told = (folder / "torchrun").read_text(encoding="utf-8", errors="replace")
    _, _, cause = told.partition("Root Cause")
    rank = re.search(r"rank\s*:\s*(\d+)", cause)
    code = re.search(r"exitcode\s*:\s*(-?\d+)", cause)
    if rank is None or code is None or int(code[1]) == 1:
        return None
    number = int(code[1])
    if number >= 0:
        return int(rank[1]), f"status {number}"
    with contextlib.suppress(ValueError):
        return int(rank[1]), f"signal {signal.Signals(-number).name}"
    return int(rank[1]), f"signal {-number}"


def _where_they_were(folder: Path, n: int, timeout: float) -> str:
    """Every rank's stack at the time limit, its own file's lines alone."""
    text = [f"not done after {timeout:g} s; all {n} processes were ended"]
    for rank in range(n):
        if (folder / f"result_{rank}.json").exists():
            text.append(f"rank {rank} had finished its work")
            continue
        path = folder / f"stack_{rank}"
        stack = path.read_text(encoding="utf-8") if path.exists() else ""
        own = re.compile(r'File "[^"]*?work\.py", line (\d+) in (\w+)')
        threads = [thread for thread in stack.split("\n\n") if own.search(thread)]
        lines = own.findall(threads[0]) if threads else []
        inner = re.search(r'File "[^"]*", line \d+ in (\w+)', threads[0]) if threads else None
        if lines:
            doing = f" (in {inner[1]})" if inner and inner[1] != lines[0][1] else ""
            text.append(f"rank {rank} was at work.py, line {lines[0][0]}, in {lines[0][1]}{doing}")
            source = (folder / "work.py").read_text(encoding="utf-8").splitlines()
            text.append(f"    {source[int(lines[0][0]) - 1].strip()}")
        else:
            text.append(f"rank {rank} had not begun" if not stack else f"rank {rank}:\n{stack}")
    return "\n".join(text)
