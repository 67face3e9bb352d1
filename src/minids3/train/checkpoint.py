"""Checkpoints: a folder per step, written whole or not at all, checked when read.

Layout of ``OUT/step_00000100``: ``model.safetensors``, ``optimizer.safetensors`` (moments by
parameter name, and the random state) and ``state.json`` (step, configurations, history, SHA-256 of
the two others). No pickles: a checkpoint from a stranger can be wrong, but it cannot run code.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from minids3.model.files import unique_tensors

__all__ = ["CheckpointError", "latest_checkpoint", "load_checkpoint", "save_checkpoint"]

_RANDOM_STATE = "random_state"


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, damaged or of another run; the message says what to do."""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _optimizer_tensors(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    names = {p: name for name, p in model.named_parameters()}
    return {
        f"{key}.{names[p]}": torch.as_tensor(value).contiguous()
        for p, slots in optimizer.state.items()
        for key, value in slots.items()
    }


def save_checkpoint(
    out_dir: str | os.PathLike[str],
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    keep: int = 2,
) -> Path:
    """Write a checkpoint of ``step`` below ``out_dir`` and drop all but the newest ``keep``.

    Args:
        out_dir: folder of the run, created if needed.
        step: how many steps are done.
        model: whose parameters are saved.
        optimizer: whose moments are saved, by parameter name.
        state: JSON values to get back from ``load_checkpoint``.
        keep: how many checkpoints stay.

    Returns:
        The checkpoint's folder.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    final = out_dir / f"step_{step:08d}"
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=out_dir))
    try:
        save_file(unique_tensors(model), partial / "model.safetensors")
        tensors = _optimizer_tensors(model, optimizer)
        tensors[_RANDOM_STATE] = torch.get_rng_state()
        save_file(tensors, partial / "optimizer.safetensors")
        sums = {p.name: _sha256(p) for p in sorted(partial.glob("*.safetensors"))}
        content = {**state, "step": step, "sha256": sums}
        (partial / "state.json").write_text(json.dumps(content) + "\n", encoding="utf-8")
        partial.chmod(0o755)
        for path in partial.iterdir():  # temporary files are private; a model is not
            path.chmod(0o644)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for old in _checkpoints(out_dir)[:-keep]:
        shutil.rmtree(old)
    return final


def _checkpoints(out_dir: Path) -> list[Path]:
    return sorted(p for p in out_dir.glob("step_*") if (p / "state.json").is_file())


def latest_checkpoint(out_dir: str | os.PathLike[str]) -> Path | None:
    """The newest complete checkpoint below ``out_dir``, or ``None``."""
    found = _checkpoints(Path(out_dir))
    return found[-1] if found else None


def load_checkpoint(
    folder: str | os.PathLike[str], model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Put a checkpoint back into ``model``, ``optimizer`` and torch's random state.

    Returns:
        The ``state`` given to ``save_checkpoint``, with ``step``.

    Raises:
        CheckpointError: a file is missing or damaged, or the tensors are those of another model.
    """
    folder = Path(folder)
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        sums = state["sha256"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder} is no complete checkpoint ({error})") from error
    for name, expected in sums.items():
        path = folder / name
        if not path.is_file() or _sha256(path) != expected:
            raise CheckpointError(
                f"{path} is missing or damaged: delete {folder} and resume from the one before"
            )
    weights = load_file(folder / "model.safetensors")
    slots = load_file(folder / "optimizer.safetensors")
    own = unique_tensors(model)
    wrong = [n for n in own.keys() | weights.keys() if _shape(own, n) != _shape(weights, n)]
    if wrong:
        name = min(wrong)
        raise CheckpointError(
            f"{folder} is of another model: {name!r} has shape {_shape(weights, name)} there and "
            f"{_shape(own, name)} here"
        )
    model.load_state_dict(weights, strict=False)
    torch.set_rng_state(slots.pop(_RANDOM_STATE))
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for key, value in slots.items():
        slot, name = key.split(".", 1)
        parameter = parameters[name]
        optimizer.state[parameter][slot] = value.to(parameter.device) if value.ndim else value
    return state


def _shape(tensors: dict[str, torch.Tensor], name: str) -> list[int] | None:
    return list(tensors[name].shape) if name in tensors else None
