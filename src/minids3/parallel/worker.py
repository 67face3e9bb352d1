"""What a process does that ``launch.run`` started: join the group, work, hand back the result."""

from __future__ import annotations

import contextlib
import datetime
import faulthandler
import json
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["JOB", "end_with_parent", "work_on"]

JOB = "MINIDS3_JOB"  # names the folder of the job, in the environment


def end_with_parent(folder: Path) -> None:
    """Kill this process as soon as the one that holds the job's ``alive`` pipe has ended.

    However it ended: the system closes its end of the pipe, and reading then returns at once. A
    signal on the parent's death is tied to the thread that started a child, and there is none on
    macOS.
    """
    if not (folder / "alive").exists():  # Windows has no named pipes
        return
    pipe = os.open(folder / "alive", os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(pipe, True)

    def watch() -> None:
        os.read(pipe, 1)  # nobody writes: it returns when the other end is closed
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def work_on(load: Callable[[], Callable[..., Any]]) -> None:
    """Call the function that ``load`` gives on this rank, and write its result or its error.

    The process group is there while it runs: gloo for CPUs, or as the job says.
    """
    folder, rank = Path(os.environ[JOB]), int(os.environ["RANK"])
    end_with_parent(folder)
    (folder / f"pid_{rank}").write_text(str(os.getpid()))
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    with _told(folder, rank), (folder / f"stack_{rank}").open("w") as stack:
        left = job["deadline"] - time.time() - 0.5
        faulthandler.dump_traceback_later(max(left, 0.1), file=stack)
        import torch.distributed as dist

        from minids3.parallel.plain import read_plain, write_plain

        seconds = datetime.timedelta(seconds=max(left, 1) + 60)
        dist.init_process_group(job["backend"], timeout=seconds)
        args, kwargs = read_plain(folder / "arguments")
        result = load()(*args, **kwargs)
        write_plain(result, folder / f"result_{rank}")
        dist.barrier()  # nobody leaves while others still talk to it
        dist.destroy_process_group()
        faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def _told(folder: Path, rank: int) -> Iterator[None]:
    """Write an error of the block down, with the time, and end the process."""
    try:
        yield
    except BaseException as error:
        when = time.time()
        lines = traceback.format_exception(type(error), error, _own_frames(error))
        told = {"type": type(error).__name__, "message": str(error), "time": when}
        partial = folder / f"error_{rank}.partial"
        partial.write_text(json.dumps({**told, "traceback": "".join(lines)}), encoding="utf-8")
        os.replace(partial, folder / f"error_{rank}.json")
        os._exit(1)  # no waiting for threads of a group that will not answer


def _own_frames(error: BaseException) -> Any:
    """The error's traceback from the carried function on, if it came that far."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    if frames is not None and frames.tb_frame.f_code.co_filename.endswith("contextlib.py"):
        frames = frames.tb_next
    return frames if frames is not None else error.__traceback__
