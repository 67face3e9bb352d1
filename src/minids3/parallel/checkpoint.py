"""Checkpoints of many processes: PyTorch's distributed format (DCP), read by any number of them.

Each process writes what it holds. A share of the experts, or a shard of FSDP2, is described as the
part of the whole tensor that it is, so that another layout finds what it needs: saved on four
processes, read on two, or on one without a process group (``load_whole``). Layout of
``OUT/step_00000100``: DCP's files, and ``state.json`` as in ``train.checkpoint``, with the size of
every other file.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, Replicate, Shard

from minids3.config import ModelConfig
from minids3.model import Transformer
from minids3.parallel.data import Layout
from minids3.parallel.expert import ParallelExperts
from minids3.train.checkpoint import (
    PARALLEL_FORMAT,
    CheckpointError,
    checkpoint_run,
    latest_checkpoint,
    prune_checkpoints,
)
from minids3.train.ema import WeightAverage

__all__ = ["load_parallel", "load_whole", "read_state", "save_parallel"]


def save_parallel(
    out_dir: str | os.PathLike[str],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    layout: Layout,
    state: dict[str, Any],
    average: WeightAverage | None = None,
    keep: int = 2,
) -> Path:
    """Write a checkpoint, all processes together, and drop the run's oldest beyond ``keep``.

    Args:
        out_dir: folder of the run, which every process sees.
        model: this process's part.
        optimizer: its optimizer.
        layout: how the processes are arranged.
        state: JSON values, with ``run`` and ``step``.
        average: of this process's weights.
        keep: how many checkpoints of this run stay.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: it cannot be written; on every process alike. Those before are untouched.
    """
    out_dir = Path(out_dir)
    final = out_dir / f"step_{state['step']:08d}"
    partial = out_dir / f".partial-{state['run']}-{state['step']}"
    _first_does(lambda: _fresh(partial), partial)
    try:
        save(_tensors(model, optimizer, average, layout), checkpoint_id=partial)
    except Exception as error:  # DCP raises what it likes, on all processes
        raise CheckpointError(f"cannot write a checkpoint to {partial} ({error})") from error

    def finish() -> None:
        sizes = {p.name: p.stat().st_size for p in partial.iterdir()}
        content = {**state, "format": PARALLEL_FORMAT, "layout": layout.sizes, "files": sizes}
        (partial / "state.json").write_text(json.dumps(content) + "\n", encoding="utf-8")
        if final.exists() and checkpoint_run(final) != state["run"]:
            raise OSError(f"{final.name} is another run's")
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        prune_checkpoints(out_dir, state["run"], final, keep)

    _first_does(finish, partial)
    return final


def _fresh(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _first_does(action: Any, folder: Path) -> None:
    """Let the first process act while the others wait, and all raise if it failed."""
    told: list[str | None] = [None]
    if dist.get_rank() == 0:
        try:
            action()
        except OSError as error:
            told = [str(error)]
    dist.broadcast_object_list(told, src=0)
    if told[0] is not None:
        raise CheckpointError(
            f"cannot write a checkpoint to {folder.parent} ({told[0]}): make room or choose "
            "another folder; what was saved before is still there"
        )


def _tensors(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
    layout: Layout,
) -> dict[str, Tensor]:
    """Everything this process holds by global name, as the parts of wholes that they are."""
    experts = {p for m in model.modules() if isinstance(m, ParallelExperts) for p in m.parameters()}

    def part(tensor: Tensor, parameter: nn.Parameter) -> Tensor:
        if isinstance(tensor, DTensor) or tensor.ndim == 0:
            return tensor
        if isinstance(parameter, DTensor):
            return DTensor.from_local(
                tensor,
                parameter.device_mesh,
                parameter.placements,
                run_check=False,
                shape=parameter.shape,
                stride=parameter.stride(),
            )
        if parameter in experts:
            mesh, places = layout.mesh["dp", "node", "gpu"], [Replicate(), Shard(0), Shard(0)]
            return DTensor.from_local(tensor, mesh, places, run_check=False)
        return tensor

    found = {f"model.{n}": t for n, t in model.state_dict().items() if n not in _names(model)}
    for name, parameter in model.named_parameters():
        found[f"model.{name}"] = part(parameter.detach(), parameter)
        for slot, value in optimizer.state.get(parameter, {}).items():
            found[f"optimizer.{slot}.{name}"] = part(torch.as_tensor(value), parameter)
        if average is not None:
            found[f"ema.{name}"] = part(average.tensors[name], parameter)
    return found


def _names(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters(remove_duplicate=False)}


def read_state(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The ``state`` of a checkpoint whose files are all there, in full length.

    Raises:
        CheckpointError: it is damaged, or of another kind.
    """
    folder = Path(folder)
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        kind, files = state["format"], state.get("files", {})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} holds no checkpoint that can be read ({error})") from error
    if kind != PARALLEL_FORMAT:
        raise CheckpointError(
            f"{folder} was not written by several processes: go on with it as it was begun, "
            "without torchrun"
        )
    for name, size in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise CheckpointError(
                f"{folder}: {name} is missing or damaged; delete this folder and resume from the "
                "checkpoint before it"
            )
    return state


def load_parallel(
    folder: str | os.PathLike[str],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    layout: Layout,
    average: WeightAverage | None = None,
    ema_updates: int = 0,
) -> None:
    """Put a checkpoint, of whatever layout, back into this process's parts.

    Raises:
        CheckpointError: a file is missing or damaged, or the tensors are those of another model.
    """
    known = FileSystemReader(folder).read_metadata().state_dict_metadata
    _allocate(model, optimizer, known)
    tensors = _tensors(model, optimizer, average, layout)
    _compare(folder, tensors, known)
    load(tensors, checkpoint_id=folder)
    for name, parameter in model.named_parameters():
        for slot, value in optimizer.state[parameter].items():
            if value.ndim == 0:
                value.copy_(tensors[f"optimizer.{slot}.{name}"])
    if average is not None:
        average.restore(average.tensors, ema_updates)


def _allocate(model: nn.Module, optimizer: torch.optim.Optimizer, known: dict[str, Any]) -> None:
    """Room for the optimizer's state of every parameter that has some in the checkpoint."""
    optimizer.state.clear()
    slots = sorted({key.split(".", 2)[1] for key in known if key.startswith("optimizer.")})
    for name, parameter in model.named_parameters():
        for slot in slots:
            saved = known.get(f"optimizer.{slot}.{name}")
            if saved is None:
                continue
            dtype = saved.properties.dtype
            value = torch.zeros_like(parameter.detach(), dtype=dtype)
            optimizer.state[parameter][slot] = value if saved.size else torch.zeros((), dtype=dtype)


def _compare(folder: Any, tensors: dict[str, Tensor], known: dict[str, Any]) -> None:
    for name, tensor in tensors.items():
        saved = known.get(name)
        if saved is None or tuple(saved.size) != tuple(tensor.shape):
            there = "nothing" if saved is None else list(saved.size)
            raise CheckpointError(
                f"{folder} is of another model: it has {there} for {name!r}, this model "
                f"{list(tensor.shape)}"
            )


def load_whole(folder: str | os.PathLike[str], averaged: bool = False) -> Transformer:
    """The model of a checkpoint, whole and in this process alone, in evaluation mode.

    Write it with ``model.save_model``, or ``model.hf.save_hf`` for Hugging Face's format.

    Args:
        folder: a checkpoint of any layout.
        averaged: take the averaged weights, where the run kept some.

    Raises:
        CheckpointError: it is damaged, or there are no averaged weights.
    """
    state = read_state(folder)
    model = Transformer(ModelConfig.from_dict(state["model_config"]))
    known = FileSystemReader(folder).read_metadata().state_dict_metadata
    kind = "ema" if averaged else "model"
    if averaged and not any(name.startswith("ema.") for name in known):
        raise CheckpointError(f"{folder} has no averaged weights: the run kept none")
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    buffers = {n: t for n, t in model.state_dict().items() if n not in _names(model)}
    tensors = {f"{kind}.{n}": p for n, p in parameters.items()}
    tensors |= {f"model.{n}": t for n, t in buffers.items()}
    _compare(folder, tensors, known)
    options = {"no_dist": True} if "no_dist" in inspect.signature(load).parameters else {}
    load(tensors, checkpoint_id=folder, **options)
    return model.eval()


def newest(out_dir: str | os.PathLike[str]) -> Path | None:
    """The newest checkpoint below ``out_dir``, as the first process sees it, on all alike."""
    found = [latest_checkpoint(out_dir)]
    dist.broadcast_object_list(found, src=0)
    return found[0]
