"""Reading and writing the folder of a ``deepseek_v3`` checkpoint."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from minids3.config import ConfigError, ModelConfig
from minids3.model.files import ModelFileError, replaced_folder
from minids3.model.hf.config import from_hf_config, to_hf_config
from minids3.model.hf.names import HFTensor, hf_layout
from minids3.model.transformer import Transformer
from minids3.ref.quant import block_dequantize_ref, block_quantize_ref

__all__ = ["load_hf", "save_hf"]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def save_hf(
    model: Transformer,
    folder: str | os.PathLike[str],
    dtype: torch.dtype | None = None,
    fp8: bool = False,
    max_shard_bytes: int = 5 * 10**9,
) -> Path:
    """Write ``model`` as a Hugging Face ``deepseek_v3`` checkpoint, whole or not at all.

    Router biases stay fp32 in every format.

    Args:
        model: with latent attention.
        folder: where to; an older checkpoint there is replaced.
        dtype: of the weights (of those that are not FP8); default: as they are.
        fp8: write the projections as E4M3 with a scale per block of 128 x 128, as released.
        max_shard_bytes: a file is closed before it grows larger.

    Returns:
        The folder.

    Raises:
        ConfigError: ``deepseek_v3`` cannot describe this model.
    """
    cfg, state = model.config, model.state_dict()
    dtype = dtype or model.lm_head.weight.dtype
    fields = to_hf_config(cfg, str(dtype).removeprefix("torch."), fp8)
    layout = hf_layout(cfg)
    with replaced_folder(folder) as partial:
        shards = _write_shards(partial, _contents(layout, state, cfg, dtype, fp8), max_shard_bytes)
        if len(shards) == 1:
            os.replace(partial / shards[0][0], partial / SINGLE)
        else:
            _write_index(partial, shards)
        text = json.dumps(fields, indent=2) + "\n"
        (partial / "config.json").write_text(text, encoding="utf-8")
    return Path(folder)


def _contents(
    layout: list[HFTensor],
    state: dict[str, Tensor],
    cfg: ModelConfig,
    dtype: torch.dtype,
    fp8: bool,
) -> Iterator[tuple[str, Tensor]]:
    for entry in layout:
        tensor = entry.view(state).detach()
        if fp8 and entry.fp8:
            quantized, scale = block_quantize_ref(tensor)
            yield entry.name, quantized
            yield entry.scale_name, scale
        else:
            kept = torch.float32 if entry.name.endswith("e_score_correction_bias") else dtype
            yield entry.name, tensor.to(kept)
    if cfg.is_moe and not cfg.n_shared_experts:
        # transformers builds shared experts of width 0 and asks for their empty matrices.
        gates = [e.name for e in layout if e.name.endswith("mlp.gate.weight")]
        for name in gates:
            prefix = name.replace("mlp.gate.weight", "mlp.shared_experts.")
            for part in ("gate_proj", "up_proj"):
                yield f"{prefix}{part}.weight", torch.zeros(0, cfg.hidden_size, dtype=dtype)
            yield f"{prefix}down_proj.weight", torch.zeros(cfg.hidden_size, 0, dtype=dtype)


def _write_shards(
    folder: Path, contents: Iterator[tuple[str, Tensor]], limit: int
) -> list[tuple[str, dict[str, int]]]:
    """Write files of at most ``limit`` bytes; returns each one's name and its tensors' bytes."""
    shards: list[tuple[str, dict[str, int]]] = []
    waiting: dict[str, Tensor] = {}

    def close() -> None:
        name = f"part-{len(shards):05d}.safetensors"
        # clone: the slices of stacked experts share memory, which safetensors refuses
        save_file(
            {k: t.clone().contiguous() for k, t in waiting.items()},
            folder / name,
            metadata={"format": "pt"},
        )
        shards.append((name, {k: t.nbytes for k, t in waiting.items()}))
        waiting.clear()

    for name, tensor in contents:
        if waiting and sum(t.nbytes for t in waiting.values()) + tensor.nbytes > limit:
            close()
        waiting[name] = tensor
    close()
    return shards


def _write_index(folder: Path, shards: list[tuple[str, dict[str, int]]]) -> None:
    weight_map = {}
    for i, (old, sizes) in enumerate(shards, start=1):
        new = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        os.replace(folder / old, folder / new)
        weight_map.update(dict.fromkeys(sizes, new))
    total = sum(n for _, sizes in shards for n in sizes.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def load_hf(
    folder: str | os.PathLike[str],
    dtype: torch.dtype | None = None,
    mtp: bool | None = None,
    device: torch.device | str = "cpu",
) -> Transformer:
    """Read a ``deepseek_v3`` checkpoint, in evaluation mode.

    Args:
        folder: with ``config.json`` and safetensors files.
        dtype: of the weights; default: that of the files, bfloat16 for those stored in FP8.
        mtp: read the MTP modules; default: if the files hold them (transformers drops them when it
            saves).
        device: where the model goes.

    Raises:
        ModelFileError: a file or tensor is missing, damaged, superfluous or of another shape.
    """
    folder = Path(folder)
    cfg = _read_config(folder)
    with _open_files(folder) as (names, get):
        first_mtp = f"model.layers.{cfg.num_hidden_layers}."
        has_mtp = any(name.startswith(first_mtp) for name in names)
        if not (has_mtp if mtp is None else mtp):
            cfg = cfg.replace(num_nextn_predict_layers=0)
        layout = hf_layout(cfg)
        _compare_names(folder, layout, names, cfg.num_hidden_layers if mtp is not True else None)
        with torch.device("meta"):
            model = Transformer(cfg)
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        state: dict[str, Tensor] = {}
        for entry in tqdm(layout, unit="tensor", disable=len(layout) < 5000):
            if entry.copy and entry.name not in names:
                continue
            tensor = _read(entry, names, get, dtype)
            if entry.copy:
                if not torch.equal(tensor, state[entry.source]):
                    raise ModelFileError(
                        f"{entry.name} differs from {entry.source}: here MTP modules share "
                        "embedding and head with the model; pass mtp=False to leave them out"
                    )
            elif entry.expert is None:
                state[entry.source] = tensor
            else:
                if entry.source not in state:
                    state[entry.source] = tensor.new_empty(shapes[entry.source])
                entry.view(state).copy_(tensor)
    if cfg.tie_word_embeddings:
        state["lm_head.weight"] = state["embed_tokens.weight"]
    model.load_state_dict(state, assign=True)
    if cfg.tie_word_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    return model.requires_grad_(True).to(device).eval()


def _read_config(folder: Path) -> ModelConfig:
    path = folder / "config.json"
    if not path.is_file():
        raise ModelFileError(f"no checkpoint in {folder}: config.json is missing")
    try:
        return from_hf_config(json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, ConfigError) as error:
        raise ModelFileError(f"{path}: {error}") from error


@contextlib.contextmanager
def _open_files(folder: Path) -> Iterator[tuple[dict[str, Any], Callable[[str], Tensor]]]:
    """Yield {tensor name: open file} and a function that reads one tensor."""
    index = folder / INDEX
    with contextlib.ExitStack() as stack:
        try:
            if index.is_file():
                weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
                files = sorted(set(weight_map.values()))
            else:
                files = [SINGLE]
            names: dict[str, Any] = {}
            for file in files:
                if not (folder / file).is_file():
                    raise ModelFileError(f"{folder}: {file} is missing; copy the folder again")
                opened = stack.enter_context(safe_open(folder / file, "pt"))
                names.update(dict.fromkeys(opened.keys(), opened))
        except (SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise ModelFileError(f"{folder} is damaged ({error}); copy it again") from error
        yield names, lambda name: names[name].get_tensor(name)


def _compare_names(
    folder: Path, layout: list[HFTensor], names: dict[str, Any], skip_from: int | None
) -> None:
    """Complain about tensors that are missing or that nothing here would read."""
    wanted = {entry.name for entry in layout}
    missing = [e.name for e in layout if e.name not in names and not e.copy]
    if missing:
        raise ModelFileError(
            f"{folder} does not fit its config.json: tensor {missing[0]!r} is missing"
            + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
        )
    for name in sorted(set(names) - wanted):
        of_layer = name.startswith("model.layers.")
        skipped = of_layer and skip_from is not None and int(name.split(".")[2]) >= skip_from
        scale = name.endswith("_scale_inv") and name.removesuffix("_scale_inv") in wanted
        empty = 0 in names[name].get_slice(name).get_shape()
        tied = name == "lm_head.weight" and "lm_head.weight" not in wanted
        if not (skipped or scale or empty or tied):
            raise ModelFileError(f"{folder} does not fit its config.json: {name!r} is unexpected")


def _read(
    entry: HFTensor,
    names: dict[str, Any],
    get: Callable[[str], Tensor],
    dtype: torch.dtype | None,
) -> Tensor:
    try:
        tensor = get(entry.name)
    except SafetensorError as error:
        raise ModelFileError(f"{entry.name} cannot be read ({error}); copy the folder") from error
    if tuple(tensor.shape) != entry.shape:
        raise ModelFileError(
            f"{entry.name!r} has shape {list(tensor.shape)}, config.json needs {list(entry.shape)}"
        )
    if tensor.dtype == torch.float8_e4m3fn:
        if entry.scale_name not in names:
            raise ModelFileError(f"{entry.name!r} is FP8, but {entry.scale_name!r} is missing")
        tensor = block_dequantize_ref(tensor, get(entry.scale_name)).to(dtype or torch.bfloat16)
    if entry.name.endswith("e_score_correction_bias"):
        return tensor.float()
    return tensor if dtype is None else tensor.to(dtype)
