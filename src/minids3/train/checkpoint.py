"""Checkpoints: a folder per step, written whole or not at all, checked when read.

Layout of ``OUT/step_00000100``: ``model.safetensors``, ``optimizer.safetensors`` (moments by
parameter name, and the random states), ``ema.safetensors`` where there is an average, and
``state.json`` (step, tokens, rows, settings, configuration, history, the run's name, SHA-256 of the
others). No pickles: a checkpoint from a stranger can be wrong, but it cannot run code.

A folder is one run's. Its checkpoints carry the run's name, and only those are ever removed: what
another run left there stays.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minids3.model.files import unique_tensors

__all__ = [
    "PARALLEL_FORMAT",
    "CheckpointError",
    "checkpoint_run",
    "latest_checkpoint",
    "load_checkpoint",
    "prepare_folder",
    "prune_checkpoints",
    "save_checkpoint",
]

FORMAT = 2
PARALLEL_FORMAT = "parallel 1"  # of ``parallel.checkpoint``
_RANDOM = ("random_state", "cuda_random_state")


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, damaged or of another run; the message says what to do."""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    return {
        f"{key}.{names[p]}": torch.as_tensor(value).contiguous()
        for p, slots in optimizer.state.items()
        for key, value in slots.items()
    }


def prepare_folder(out_dir: str | os.PathLike[str], run: str, size: int) -> None:
    """Make sure, before a long run, that checkpoints can be written, and sweep up after dead runs.

    Args:
        out_dir: folder of the run, created if needed.
        run: the run's name; a folder with checkpoints of another one is refused.
        size: bytes of a checkpoint.

    Raises:
        CheckpointError: the folder cannot be written, is full, or is another run's.
    """
    out_dir = Path(out_dir)
    with _clear_errors(out_dir):
        out_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out_dir) as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(out_dir).free
    if free < size:
        raise CheckpointError(
            f"{out_dir} has {free / 2**20:.0f} MiB left and a checkpoint takes "
            f"{size / 2**20:.0f} MiB: make room, or choose another folder"
        )
    for path in out_dir.glob(".partial-*"):
        if not _writer_lives(path):
            shutil.rmtree(path, ignore_errors=True)
    newest = latest_checkpoint(out_dir)
    if newest is not None and checkpoint_run(newest) != run:
        raise CheckpointError(
            f"{out_dir} holds another run (its newest checkpoint: {newest.name}): resume that one, "
            "or give this run a folder of its own"
        )


def _writer_lives(partial: Path) -> bool:
    """Whether the process that writes ``.partial-PID-HOST-...`` may still be at it."""
    _, pid, host, *_ = (*partial.name.split("-"), "", "")
    if not pid.isdigit() or host != _host():
        return time.time() - partial.stat().st_mtime < 86_400  # another machine's: a day will do
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _host() -> str:
    return socket.gethostname().replace("-", "_")


def save_checkpoint(
    out_dir: str | os.PathLike[str],
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    keep: int = 2,
    ema: dict[str, Tensor] | None = None,
) -> Path:
    """Write a checkpoint of ``step`` below ``out_dir`` and drop the run's oldest beyond ``keep``.

    Args:
        out_dir: folder of the run, created if needed.
        step: how many steps are done.
        model: whose parameters are saved.
        optimizer: whose moments are saved, by parameter name.
        state: JSON values to get back from ``load_checkpoint``; ``state["run"]`` names the run.
        keep: how many checkpoints of this run stay.
        ema: averaged weights by parameter name.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: it cannot be written; the checkpoints before it are untouched.
    """
    out_dir, run = Path(out_dir), state.get("run", "")
    partial = None
    try:
        with _clear_errors(out_dir):
            out_dir.mkdir(parents=True, exist_ok=True)
            partial = Path(
                tempfile.mkdtemp(prefix=f".partial-{os.getpid()}-{_host()}-", dir=out_dir)
            )
            save_file(unique_tensors(model), partial / "model.safetensors")
            tensors = _optimizer_tensors(model, optimizer)
            tensors["random_state"] = torch.get_rng_state()
            if torch.cuda.is_available():
                tensors["cuda_random_state"] = torch.cuda.get_rng_state()
            save_file(tensors, partial / "optimizer.safetensors")
            if ema is not None:
                save_file(ema, partial / "ema.safetensors")
            sums = {p.name: _sha256(p) for p in sorted(partial.glob("*.safetensors"))}
            content = {**state, "format": FORMAT, "step": step, "sha256": sums}
            (partial / "state.json").write_text(json.dumps(content) + "\n", encoding="utf-8")
            partial.chmod(0o755)
            for path in partial.iterdir():  # temporary files are private; a model is not
                path.chmod(0o644)
            final = _move_into_place(partial, out_dir / f"step_{step:08d}", run)
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
    prune_checkpoints(out_dir, run, final, keep)
    return final


def prune_checkpoints(out_dir: Path, run: str, final: Path, keep: int) -> None:
    """Drop the run's oldest checkpoints beyond ``keep``, but never ``final``."""
    own = [p for p in _checkpoints(out_dir) if checkpoint_run(p) == run]
    for old in [p for p in own if p != final][: max(len(own) - keep, 0)]:
        shutil.rmtree(old, ignore_errors=True)


def _move_into_place(partial: Path, final: Path, run: str) -> Path:
    """Rename to ``final``; what stands there already is replaced if it is this run's own."""
    if final.exists() and checkpoint_run(final) != run:
        final = final.with_name(f"{final.name}-{run}")
    if final.exists():
        old = partial.with_name(partial.name + "old")
        os.replace(final, old)
        os.replace(partial, final)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(partial, final)
    return final


@contextlib.contextmanager
def _clear_errors(folder: Path) -> Iterator[None]:
    """Turn what a full or closed disk says into one clear line."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot write a checkpoint to {folder} ({error}): make room or choose another folder; "
            "what was saved before is still there"
        ) from error


def _checkpoints(out_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [p for p in out_dir.glob("step_*") if (p / "state.json").is_file()]
    return sorted(found, key=lambda p: (p.name[:13], (p / "state.json").stat().st_mtime))


def checkpoint_run(folder: Path) -> str | None:
    """The name of the run that wrote a checkpoint; None if it cannot be read."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return state.get("run") if isinstance(state, dict) else None
    except (OSError, ValueError, RecursionError):
        return None


def latest_checkpoint(out_dir: str | os.PathLike[str]) -> Path | None:
    """The newest complete checkpoint below ``out_dir``, or ``None``."""
    found = _checkpoints(Path(out_dir))
    return found[-1] if found else None


class Checkpoint:
    """A checkpoint that was read and found whole; nothing is changed before ``restore``."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Read and check ``folder``; ``CheckpointError`` says what is wrong with it."""
        self.folder = Path(folder)
        self.state = self._read_state()
        for name, expected in self.state["sha256"].items():
            path = self.folder / name
            if not path.is_file() or _sha256(path) != expected:
                raise self._error(f"{name} is missing or damaged")
        self.weights = self._tensors("model.safetensors")
        self.slots = self._tensors("optimizer.safetensors")
        self.ema = (
            self._tensors("ema.safetensors") if "ema.safetensors" in self.state["sha256"] else None
        )

    def _error(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.folder}: {what}; delete this folder and resume from the checkpoint before it"
        )

    def _read_state(self) -> dict[str, Any]:
        path = self.folder / "state.json"
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"{self.folder} holds no checkpoint: no state.json") from None
        except (OSError, ValueError, RecursionError) as error:
            raise self._error(f"state.json cannot be read ({error})") from error
        if not isinstance(state, dict):
            raise self._error(
                f"state.json holds a {type(state).__name__}, not a checkpoint's state"
            )
        if state.get("format") == PARALLEL_FORMAT:
            raise CheckpointError(
                f"{self.folder} was written by several processes: go on with "
                "'torchrun --nproc-per-node N -m minids3.train ...', in any layout"
            )
        if state.get("format") != FORMAT:
            raise CheckpointError(
                f"{self.folder} has format {state.get('format', 1)!r}, and this version reads "
                f"{FORMAT}: go on with the version that wrote it, or start a new run"
            )
        kinds = {"step": int, "tokens": int, "rows": int, "sha256": dict, "settings": dict}
        kinds |= {"model_config": dict, "history": dict, "data": str, "run": str}
        for name, kind in kinds.items():
            if not isinstance(state.get(name), kind):
                raise self._error(f"state.json has no {name}, or not a {kind.__name__}")
        if not {"model.safetensors", "optimizer.safetensors"} <= state["sha256"].keys():
            raise self._error("state.json does not list the weights and the optimizer")
        return state

    def _tensors(self, name: str) -> dict[str, Tensor]:
        try:
            return load_file(self.folder / name)
        except (OSError, SafetensorError, ValueError) as error:
            raise self._error(f"{name} cannot be read ({error})") from error

    def check(self, model: nn.Module) -> None:
        """Raise ``CheckpointError`` unless every tensor fits ``model``."""
        own = unique_tensors(model)
        _compare(self.folder, "model", own, self.weights)
        parameters = dict(model.named_parameters())
        for key, value in self.slots.items():
            slot, _, name = key.partition(".")
            if key in _RANDOM:
                continue
            if name not in parameters or (value.ndim and value.shape != parameters[name].shape):
                raise self._error(f"the optimizer's {slot} of {name!r} fits no parameter")
        if "random_state" not in self.slots:
            raise self._error("the random state is missing")
        if self.ema is not None:
            _compare(self.folder, "averaged", parameters, self.ema)

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put everything back into ``model``, ``optimizer`` and torch's random states."""
        self.check(model)
        slots = dict(self.slots)
        torch.set_rng_state(slots.pop("random_state"))
        cuda = slots.pop("cuda_random_state", None)
        if cuda is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(cuda)
        model.load_state_dict(self.weights, strict=False)
        parameters = dict(model.named_parameters())
        optimizer.state.clear()
        for key, value in slots.items():
            slot, name = key.split(".", 1)
            parameter = parameters[name]
            optimizer.state[parameter][slot] = value.to(parameter.device) if value.ndim else value


def load_checkpoint(
    folder: str | os.PathLike[str], model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Put a checkpoint back into ``model``, ``optimizer`` and torch's random state.

    Returns:
        The ``state`` given to ``save_checkpoint``, with ``step``.

    Raises:
        CheckpointError: a file is missing or damaged, or the tensors are those of another model;
            nothing was changed.
    """
    checkpoint = Checkpoint(folder)
    checkpoint.restore(model, optimizer)
    return checkpoint.state


def _compare(
    folder: Path, what: str, own: Mapping[str, Tensor], saved: Mapping[str, Tensor]
) -> None:
    for name in sorted(own.keys() | saved.keys()):
        here = (list(own[name].shape), own[name].dtype) if name in own else None
        there = (list(saved[name].shape), saved[name].dtype) if name in saved else None
        if here != there:
            raise CheckpointError(
                f"{folder} is of another model: the {what} weights have {name!r} as {there}, "
                f"this model has {here}"
            )
