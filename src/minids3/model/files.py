"""A model as a folder: ``config.json``, ``model.safetensors`` and notes in ``about.json``."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from minids3.config import ConfigError, ModelConfig
from minids3.model.transformer import Transformer

__all__ = ["ModelFileError", "load_model", "load_shipped", "save_model"]


class ModelFileError(RuntimeError):
    """A model folder that is missing, damaged or of another shape; the message says what to do."""


def unique_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state of ``model`` with each shared tensor once (safetensors refuses aliases)."""
    seen: set[int] = set()
    state = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen or tensor.numel() == 0:
            seen.add(tensor.data_ptr())
            state[name] = tensor.detach().contiguous()
    return state


def save_model(
    model: Transformer, folder: str | os.PathLike[str], about: dict[str, Any] | None = None
) -> Path:
    """Write ``model`` to ``folder``, whole or not at all; an older model there is replaced.

    Args:
        model: what to save; tensors keep their dtype.
        folder: where to; its parent is created.
        about: JSON notes to keep beside it: data, steps, losses, the command that made it.

    Returns:
        The folder.
    """
    with replaced_folder(folder) as partial:
        save_file(unique_tensors(model), partial / "model.safetensors")
        model.config.save(partial / "config.json")
        (partial / "about.json").write_text(json.dumps(about or {}, indent=2) + "\n", "utf-8")
    return Path(folder)


@contextlib.contextmanager
def replaced_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a new folder that takes the place of ``folder`` if the block ends without an error."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield partial
        partial.chmod(0o755)
        for path in partial.iterdir():  # temporary files are private; a model is not
            path.chmod(0o644)
        if folder.exists():
            old = partial.with_name(partial.name + "-old")
            os.replace(folder, old)
            os.replace(partial, folder)
            shutil.rmtree(old)
        else:
            os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load_model(folder: str | os.PathLike[str], device: torch.device | str = "cpu") -> Transformer:
    """Read a model written by ``save_model``, in evaluation mode.

    Raises:
        ModelFileError: a file is missing or damaged, or the weights do not fit the configuration.
    """
    folder = Path(folder)
    weights = folder / "model.safetensors"
    for path in (folder / "config.json", weights):
        if not path.is_file():
            raise ModelFileError(f"no model in {folder}: {path.name} is missing")
    try:
        model = Transformer(ModelConfig.load(folder / "config.json"))
        state = load_file(weights)
    except ConfigError as error:
        raise ModelFileError(f"{folder / 'config.json'}: {error}") from error
    except SafetensorError as error:
        raise ModelFileError(
            f"{weights} is damaged ({error}): restore it, or train the model again"
        ) from error
    load_state(model, state, weights)
    return model.to(device).eval()


def load_state(model: Transformer, state: dict[str, torch.Tensor], source: Path) -> None:
    """Put ``state`` into ``model``; ``ModelFileError`` names the first tensor that does not fit."""
    own = unique_tensors(model)
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unexpected:
        what = f"{missing[0]!r} is missing" if missing else f"{unexpected[0]!r} is not expected"
        raise ModelFileError(f"{source} does not fit its config.json: tensor {what}")
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise ModelFileError(
                f"{source} does not fit its config.json: {name!r} has shape {list(tensor.shape)}, "
                f"the configuration needs {list(own[name].shape)}"
            )
    model.load_state_dict(state, strict=False)


def load_shipped(name: str = "dense_chat", device: torch.device | str = "cpu") -> Transformer:
    """Load a trained model that comes with the workbook, in fp32, from ``data/checkpoints``.

    Raises:
        ModelFileError: there is none of that name; the message lists those that are there.
    """
    from minids3.data import data_dir

    checkpoints = data_dir() / "checkpoints"
    if not (checkpoints / name).is_dir():
        found = sorted(p.name for p in checkpoints.glob("*") if p.is_dir())
        raise ModelFileError(
            f"no shipped model {name!r}; there is {', '.join(found) or 'none'}. "
            f"Train it with 'python -m minids3.train {name}'"
        )
    return load_model(checkpoints / name, device).float()
