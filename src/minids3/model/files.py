"""A model as a folder: ``config.json``, ``model.safetensors`` and notes in ``about.json``.

Saving replaces the files that it writes and the weights of an earlier save; whatever else is in
the folder stays. ``replace_files`` sees to it that a kill at any moment leaves the old model or
the new one.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from minids3.config import ConfigError, ModelConfig, read_json
from minids3.model.transformer import Transformer

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "FLOATS",
    "STALE_WEIGHTS",
    "ModelFileError",
    "find_model",
    "finish_replacing",
    "load_model",
    "load_shipped",
    "load_state",
    "meta_model",
    "read_fields",
    "refuse_meta",
    "replace_files",
    "save_model",
    "unique_tensors",
    "write_tensors",
]

# What weights may be stored in, FP8 with its scales aside.
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# What an earlier save of a model, ours or Hugging Face's, may have left: one file, or shards.
STALE_WEIGHTS = r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"
_STAGE, _JOURNAL = ".minids3-saving", "journal.json"


class ModelFileError(RuntimeError):
    """A model folder that is missing, damaged or of another shape; the message says what to do."""


def unique_tensors(model: torch.nn.Module) -> dict[str, Tensor]:
    """The state of ``model`` with each shared tensor once (safetensors refuses aliases)."""
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            state[name] = tensor.detach().contiguous()
    return state


def write_tensors(
    tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file; a full disk is an ``OSError`` that names the file."""
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written ({error})") from error


@contextlib.contextmanager
def replace_files(folder: str | os.PathLike[str], stale: str = "") -> Iterator[Path]:
    """Yield an empty folder whose files move into ``folder`` once the block has ended well.

    Files of the same names are replaced, those whose whole name matches the regular expression
    ``stale`` are removed, and everything else stays. If the block raises, nothing has changed.

    How a kill is survived: the new files are complete in a hidden folder inside ``folder`` before
    a journal beside them says which names to remove and which to move; from then on the save
    counts, and ``finish_replacing`` does what is left. The old files go before the new ones come,
    so that no reader takes a mixture for a model. The next save removes what a kill has left.
    Other processes that save to the same folder wait meanwhile (not on Windows). An empty block
    and no ``stale`` changes nothing and tells whether the folder may be written.

    Args:
        folder: created if needed; a link to a folder is followed.
        stale: what an earlier save may have left, such as ``STALE_WEIGHTS``.

    Raises:
        ModelFileError: a file has the folder's name, or a folder has that of a file to be written.
        OSError: it may not be written, or the disk is full.
    """
    folder, created = _make_folder(Path(folder))
    stage = folder / _STAGE
    with _locked(folder):
        _finish(folder)
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir()
        try:
            yield stage
            _write_journal(folder, stage, stale)
        except BaseException:
            shutil.rmtree(stage, ignore_errors=True)
            if created:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise
        _finish(folder)


def finish_replacing(folder: str | os.PathLike[str]) -> None:
    """Finish a save into ``folder`` that was killed after its files were complete, if any was.

    Raises:
        ModelFileError: it cannot be finished; the message says what to do.
    """
    folder = Path(folder)
    if not (folder / _STAGE / _JOURNAL).is_file():
        return
    try:
        with _locked(folder):
            _finish(folder)
    except OSError as error:
        raise ModelFileError(
            f"{folder}: a save was interrupted and cannot be finished ({error}); load it once "
            "where it may be written"
        ) from error


def _make_folder(folder: Path) -> tuple[Path, bool]:
    """The folder behind every link, and whether it had to be created."""
    try:
        folder = folder.resolve()
    except RuntimeError as error:  # Python 3.12 and older, for a link to itself
        raise ModelFileError(f"{folder} cannot be followed ({error}); choose another") from error
    if folder.exists() and not folder.is_dir():
        raise ModelFileError(f"{folder} is a file and no folder: move it or choose another name")
    created = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    return folder, created


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait until no other process saves into ``folder`` and keep others out, where that exists."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # file systems without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _write_journal(folder: Path, stage: Path, stale: str) -> None:
    """Say, by a name that appears at once, which files of ``folder`` go and which come."""
    new = sorted(path.name for path in stage.iterdir())
    old = [
        path.name
        for path in folder.iterdir()
        if path.name in new or (re.fullmatch(stale, path.name) and not _is_folder(path))
    ]
    for name in old:
        if _is_folder(folder / name):
            raise ModelFileError(f"{folder / name} is a folder where a file must be: move it")
    partial = stage / (_JOURNAL + ".partial")
    partial.write_text(json.dumps({"remove": old, "move": new}) + "\n", encoding="utf-8")
    for name in new:  # safetensors' files are private; these are as open as any new file
        (stage / name).chmod(partial.stat().st_mode & 0o777)
    os.replace(partial, stage / _JOURNAL)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _finish(folder: Path) -> None:
    """Do what the journal says, if there is one; every step may have been done already."""
    stage = folder / _STAGE
    if not (stage / _JOURNAL).is_file():
        return
    try:
        journal = read_json(stage / _JOURNAL)
        remove, move = ([_plain_name(n) for n in journal[key]] for key in ("remove", "move"))
    except (ConfigError, KeyError, TypeError) as error:
        raise ModelFileError(f"{stage} is damaged ({error}): delete it") from error
    for name in remove:
        if name not in move or (stage / name).exists():  # else the new one is there already
            (folder / name).unlink(missing_ok=True)
    for name in move:
        if (stage / name).exists():
            os.replace(stage / name, folder / name)
    shutil.rmtree(stage)


def _plain_name(name: str) -> str:
    if not isinstance(name, str) or name in ("", ".", "..") or re.search(r"[/\\:\0]", name):
        raise TypeError(f"{name!r} is no file name")
    return name


def save_model(
    model: Transformer, folder: str | os.PathLike[str], about: dict[str, Any] | None = None
) -> Path:
    """Write ``model`` to ``folder``, whole or not at all; an older model there is replaced.

    Other files in the folder stay.

    Args:
        model: what to save; tensors keep their dtype.
        folder: where to; it is created, and a link to a folder is followed.
        about: JSON notes to keep beside it: data, steps, losses, the command that made it.

    Returns:
        The folder.

    Raises:
        ModelFileError: something is in the way, or the model is on the meta device.
        OSError: the folder may not be written, or the disk is full.
    """
    state = unique_tensors(model)
    refuse_meta(state)
    with replace_files(folder, STALE_WEIGHTS) as stage:
        write_tensors(state, stage / "model.safetensors")
        model.config.save(stage / "config.json")
        (stage / "about.json").write_text(json.dumps(about or {}, indent=2) + "\n", "utf-8")
    return Path(folder)


def refuse_meta(state: dict[str, Tensor]) -> None:
    """``ModelFileError`` for a tensor that holds no numbers."""
    empty = [name for name, tensor in state.items() if tensor.is_meta]
    if empty:
        raise ModelFileError(f"{empty[0]!r} is on the meta device: there are no numbers to save")


def load_model(folder: str | os.PathLike[str], device: torch.device | str = "cpu") -> Transformer:
    """Read a model written by ``save_model``, in evaluation mode; tensors keep their dtype.

    Raises:
        ModelFileError: a file is missing or damaged, or the weights do not fit the configuration.
    """
    folder = Path(folder)
    finish_replacing(folder)
    weights = folder / "model.safetensors"
    for path in (folder / "config.json", weights):
        if not path.is_file():
            raise ModelFileError(f"no model in {folder}: {path.name} is missing")
    if read_fields(folder).get("model_type") is not None:
        raise ModelFileError(f"{folder} is of Hugging Face: minids3.model.hf.load_hf reads it")
    try:
        config = ModelConfig.load(folder / "config.json")
        state = load_file(weights)
    except ConfigError as error:
        raise ModelFileError(str(error)) from error
    except (SafetensorError, OSError) as error:
        raise ModelFileError(
            f"{weights} is damaged ({error}): restore it, or train the model again"
        ) from error
    model = meta_model(config, len(state), folder)
    load_state(model, state, weights)
    return model.to(device).eval()


def read_fields(folder: Path) -> dict[str, Any]:
    """What ``config.json`` in ``folder`` says; ``ModelFileError`` if it is missing or damaged."""
    try:
        return read_json(folder / "config.json")
    except ConfigError as error:
        raise ModelFileError(str(error)) from error


def meta_model(config: ModelConfig, n_tensors: int, source: Path) -> Transformer:
    """A model without numbers, to compare with ``n_tensors`` tensors of ``source`` and to fill.

    ``ModelFileError`` if there are fewer tensors than layers, or no memory has the sizes: a damaged
    configuration should not build a million layers before anybody looks at the weights.
    """
    layers = config.num_hidden_layers + config.num_nextn_predict_layers
    if layers > n_tensors:
        raise ModelFileError(
            f"{source} does not fit its config.json: {layers} layers, but {n_tensors} tensors"
        )
    try:
        with torch.device("meta"):
            return Transformer(config)
    except (RuntimeError, TypeError, OverflowError, MemoryError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelFileError(f"{source}: its config.json cannot be built ({reason})") from error


def load_state(model: Transformer, state: dict[str, Tensor], source: Path) -> None:
    """Make copies of ``state`` the numbers of ``model``, which may be on the meta device.

    ``ModelFileError`` names the first tensor that does not fit.
    """
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
        if tensor.dtype not in FLOATS:
            raise ModelFileError(f"{source}: {name!r} holds {tensor.dtype}, not floating numbers")
    # Copies, since what safetensors gives is a view of the file.
    state = {name: tensor.clone() for name, tensor in state.items()}
    if model.config.tie_word_embeddings:
        state["lm_head.weight"] = state["embed_tokens.weight"]
    model.load_state_dict(state, assign=True)
    if model.config.tie_word_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    model.requires_grad_(True)


def load_shipped(name: str = "mini_chat", device: torch.device | str = "cpu") -> Transformer:
    """Load a trained model that comes with the workbook, in fp32, from ``data/checkpoints``.

    It is stored as by ``save_model``, or as a Hugging Face checkpoint.

    Raises:
        ModelFileError: there is none of that name; the message lists those that are there.
    """
    from minids3.data import data_dir

    checkpoints = data_dir() / "checkpoints"
    if not (checkpoints / name).is_dir():
        found = sorted(p.name for p in checkpoints.glob("*") if p.is_dir())
        raise ModelFileError(
            f"no shipped model {name!r}; there is {', '.join(found) or 'none'}. "
            f"Train it with 'python -m minids3.train {name} --out {checkpoints / name}'"
        )
    return _load_folder(checkpoints / name, device).float()


def find_model(name: str, device: torch.device | str = "cpu") -> tuple[Transformer, Path]:
    """Load what a command was given, a folder or a shipped model's name; also returns the folder.

    A folder may be a training run's, ``save_model``'s or a Hugging Face checkpoint. The numbers are
    in fp32 on a CPU, and elsewhere as they were stored.

    Raises:
        ModelFileError: there is no such model, or it is damaged.
    """
    from minids3.data import data_dir

    folder = Path(name)
    if folder.is_dir():
        model = _load_folder(folder, device)
    else:
        model, folder = load_shipped(name, device), data_dir() / "checkpoints" / name
    return (model.float() if torch.device(device).type == "cpu" else model), folder


def _load_folder(folder: Path, device: torch.device | str) -> Transformer:
    from minids3.model.hf import load_hf

    if read_fields(folder).get("model_type") == "deepseek_v3":
        return load_hf(folder, dtype=torch.float32, device=device)
    return load_model(folder, device)
