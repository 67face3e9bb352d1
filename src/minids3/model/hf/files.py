"""Reading and writing the folder of a ``deepseek_v3`` checkpoint."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm.auto import tqdm

from minids3.config import ConfigError, ModelConfig, read_json
from minids3.model.files import (
    FLOATS,
    STALE_WEIGHTS,
    ModelFileError,
    finish_replacing,
    meta_model,
    read_fields,
    refuse_meta,
    replace_files,
    write_tensors,
)
from minids3.model.hf.config import fp8_block, from_hf_config, to_hf_config
from minids3.model.hf.names import HFTensor, empty_tensors, hf_layout
from minids3.model.transformer import Transformer
from minids3.ref.quant import block_quantize_ref, dequantize_ref

__all__ = ["load_hf", "save_hf"]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# Tables that old versions of transformers stored; they follow from the configuration.
DERIVED = r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"
BIAS, GATE = "mlp.gate.e_score_correction_bias", "mlp.gate.weight"
SCALES = ("F32", "F16", "BF16", "F64", "F8_E8M0", "U8")


def save_hf(
    model: Transformer,
    folder: str | os.PathLike[str],
    dtype: torch.dtype | None = None,
    fp8: bool = False,
    max_shard_bytes: int = 5 * 10**9,
    about: dict[str, Any] | None = None,
) -> Path:
    """Write ``model`` as a Hugging Face ``deepseek_v3`` checkpoint, whole or not at all.

    An older checkpoint in the folder is replaced, other files there stay. Router biases stay fp32
    in every format; MTP modules are written, too.

    Args:
        model: with latent attention.
        folder: where to; it is created, and a link to a folder is followed.
        dtype: of the weights (of those that are not FP8); default: as they are.
        fp8: write the projections as E4M3 with a scale per block of 128 x 128, as released.
        max_shard_bytes: a file is closed before it grows larger.
        about: JSON notes to write beside it as ``about.json``.

    Returns:
        The folder.

    Raises:
        ConfigError: ``deepseek_v3`` cannot describe this model, or ``dtype`` cannot hold weights.
        ModelFileError: something is in the way, or a weight cannot be written in FP8.
        OSError: the folder may not be written, or the disk is full.
    """
    cfg, state = model.config, model.state_dict()
    _check_dtype(dtype)
    for tensor in state.values():
        _check_dtype(tensor.dtype)
    refuse_meta(state)
    main_dtype = dtype or model.lm_head.weight.dtype
    fields = to_hf_config(cfg, str(main_dtype).removeprefix("torch."), fp8)
    layout = hf_layout(cfg)
    with replace_files(folder, STALE_WEIGHTS) as stage:
        shards = _write_shards(stage, _contents(layout, state, cfg, dtype, fp8), max_shard_bytes)
        if len(shards) == 1:
            os.replace(stage / shards[0][0], stage / SINGLE)
        else:
            _write_index(stage, shards)
        for name, content in (("config.json", fields), ("about.json", about)):
            if content is not None:
                text = json.dumps(content, indent=2) + "\n"
                (stage / name).write_text(text, encoding="utf-8")
    return Path(folder)


def _check_dtype(dtype: torch.dtype | None) -> None:
    if dtype is not None and dtype not in FLOATS:
        raise ConfigError(
            f"dtype={dtype!r} cannot hold weights: choose one of {', '.join(map(str, FLOATS))} "
            "(for FP8 there is fp8=True)"
        )


def _contents(
    layout: list[HFTensor],
    state: dict[str, Tensor],
    cfg: ModelConfig,
    dtype: torch.dtype | None,
    fp8: bool,
) -> Iterator[tuple[str, Tensor]]:
    for entry in layout:
        tensor = entry.view(state).detach()
        if fp8 and entry.fp8:
            try:
                quantized, scale = block_quantize_ref(tensor)
            except ValueError as error:
                raise ModelFileError(f"{entry.name} cannot be written in FP8: {error}") from error
            yield entry.name, quantized
            yield entry.scale_name, scale
        else:
            kept = torch.float32 if entry.name.endswith(BIAS) else dtype or tensor.dtype
            yield entry.name, tensor.to(kept)
    for name, shape in empty_tensors(layout, cfg).items():
        yield name, torch.zeros(shape, dtype=dtype or state["norm.weight"].dtype)


def _write_shards(
    folder: Path, contents: Iterator[tuple[str, Tensor]], limit: int
) -> list[tuple[str, dict[str, int]]]:
    """Write files of at most ``limit`` bytes; returns each one's name and its tensors' bytes."""
    shards: list[tuple[str, dict[str, int]]] = []
    waiting: dict[str, Tensor] = {}

    def close() -> None:
        name = f"part-{len(shards):05d}.safetensors"
        # clone: the slices of stacked experts share memory, which safetensors refuses
        write_tensors(
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

    Nothing in it is dropped in silence: a field or tensor that is not used here is an error, apart
    from what is known to change nothing (``hf.config``) and the ``rotary_emb.inv_freq`` of old
    files.

    Args:
        folder: with ``config.json`` and safetensors files.
        dtype: of the weights; default: the widest of those in the files that are not FP8, bfloat16
            if all are. Router biases are fp32, and router weights stay as wide as they are stored.
        mtp: read the MTP modules; default: if the files hold them, whatever ``config.json`` says
            (transformers drops them when it saves).
        device: where the model goes.

    Raises:
        ModelFileError: a file or tensor is missing, damaged, superfluous or of another shape, or
            ``config.json`` describes something that is not built here.
        ConfigError: ``dtype`` cannot hold weights.
    """
    _check_dtype(dtype)
    folder = Path(folder)
    finish_replacing(folder)
    cfg, block = _read_config(folder)
    with _open_files(folder) as stored:
        cfg = cfg.replace(num_nextn_predict_layers=_count_mtp(cfg, stored, mtp))
        _compare_sizes(cfg, stored)
        model = meta_model(cfg, len(stored.files), folder)
        layout = hf_layout(cfg)
        if cfg.tie_word_embeddings:
            table = (cfg.vocab_size, cfg.hidden_size)
            layout.append(HFTensor("lm_head.weight", "embed_tokens.weight", table, copy=True))
        _compare_names(layout, stored, cfg, mtp)
        common = dtype or _widest(layout, stored)
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        state: dict[str, Tensor] = {}
        for entry in tqdm(layout, unit="tensor", disable=len(layout) < 5000):
            if entry.copy and entry.name not in stored.files:
                continue
            tensor = _read(entry, stored, block, common, exact_gate=dtype is None)
            if entry.copy:
                if not torch.equal(tensor, state[entry.source]):
                    raise ModelFileError(f"{stored.where(entry.name)} {_DIFFERS[entry.name[:5]]}")
            elif entry.expert is None:
                state[entry.source] = tensor.clone()  # what safetensors gives is a view of the file
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


_DIFFERS = {
    "model": "differs from the model's own: here MTP modules share embedding and head with the "
    "model; pass mtp=False to leave them out",
    "lm_he": "differs from the embedding, though config.json says tie_word_embeddings: set that "
    "to false if the head is meant, or remove the tensor",
}


class _Stored:
    """The tensors in a checkpoint's files, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, tuple[str, Any]] = {}

    def add(self, file: str, opened: Any) -> None:
        for name in opened.keys():  # noqa: SIM118
            if name in self.files:
                raise ModelFileError(
                    f"{self.folder}: {name!r} is in {self.files[name][0]} and in {file}: which one "
                    "is meant? Copy the folder again"
                )
            self.files[name] = file, opened

    def where(self, name: str) -> str:
        """How an error calls a tensor."""
        return f"{self.folder / self.files[name][0]}: {name!r}"

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.files[name][1].get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """As safetensors spells it, such as ``"BF16"``."""
        return self.files[name][1].get_slice(name).get_dtype()

    def tensor(self, name: str) -> Tensor:
        try:
            return self.files[name][1].get_tensor(name)
        except (SafetensorError, OSError, RuntimeError, ValueError, TypeError) as error:
            raise ModelFileError(f"{self.where(name)} cannot be read ({error})") from error


_DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
}


def _read_config(folder: Path) -> tuple[ModelConfig, tuple[int, int]]:
    """The model in ``config.json`` and its blocks of FP8 weights."""
    path = folder / "config.json"
    if not path.is_file():
        raise ModelFileError(f"no checkpoint in {folder}: config.json is missing")
    fields = read_fields(folder)
    try:
        return from_hf_config(fields), fp8_block(fields)
    except ConfigError as error:
        raise ModelFileError(f"{path}: {error}") from error


@contextlib.contextmanager
def _open_files(folder: Path) -> Iterator[_Stored]:
    """Open every file that the index names, or the only one."""
    weight_map = _weight_map(folder)
    stored = _Stored(folder)
    with contextlib.ExitStack() as stack:
        for file in sorted(set(weight_map.values())) or [SINGLE]:
            if not (folder / file).is_file():
                raise ModelFileError(f"{folder}: {file} is missing; copy the folder again")
            try:
                stored.add(file, stack.enter_context(safe_open(folder / file, "pt")))
            except (SafetensorError, OSError) as error:
                raise ModelFileError(
                    f"{folder / file} is damaged ({error}); copy it again"
                ) from error
        for name, file in weight_map.items():
            if name not in stored.files or stored.files[name][0] != file:
                raise ModelFileError(
                    f"{folder / INDEX} says that {file} holds {name!r}, but it does not; copy the "
                    "folder again"
                )
        yield stored


def _weight_map(folder: Path) -> dict[str, str]:
    """{tensor: file} of the index; empty if there is none."""
    index = folder / INDEX
    if not index.exists():
        return {}
    try:
        weight_map = read_json(index).get("weight_map")
    except ConfigError as error:
        raise ModelFileError(str(error)) from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileError(f"{index} has no weight_map {{tensor: file}}; copy it again")
    for file in weight_map.values():
        if not isinstance(file, str) or not re.fullmatch(r"[\w.-]{1,200}\.safetensors", file):
            raise ModelFileError(f"{index} names {file!r}, which is no safetensors file beside it")
    if (folder / SINGLE).is_file() and SINGLE not in weight_map.values():
        raise ModelFileError(
            f"{folder} has {SINGLE} and an index of other files: delete those that are older"
        )
    return weight_map


def _layer(name: str) -> int:
    """The layer that a tensor belongs to, or -1."""
    match = re.match(r"model\.layers\.(\d{1,9})\.", name)
    return int(match[1]) if match else -1


def _count_mtp(cfg: ModelConfig, stored: _Stored, wanted: bool | None) -> int:
    """How many MTP modules to read: those in the files, unless they are refused or demanded."""
    found = len({n for n in map(_layer, stored.files) if n >= cfg.num_hidden_layers})
    if wanted is None:
        wanted = found > 0
    return max(found, cfg.num_nextn_predict_layers, 1) if wanted else 0


def _compare_sizes(cfg: ModelConfig, stored: _Stored) -> None:
    """Complain before a layout of many more tensors than there are is made up."""
    layers = cfg.num_hidden_layers + cfg.num_nextn_predict_layers
    experts = 3 * cfg.n_routed_experts * (layers - cfg.first_k_dense_replace)
    if layers + experts > len(stored.files):
        raise ModelFileError(
            f"{stored.folder} does not fit its config.json: {layers} layers with "
            f"{cfg.n_routed_experts} experts are more than {len(stored.files)} tensors; "
            "something is missing"
        )


def _compare_names(
    layout: list[HFTensor], stored: _Stored, cfg: ModelConfig, mtp: bool | None
) -> None:
    """Complain about tensors that are missing or that nothing here would read."""
    names = stored.files
    missing = [e.name for e in layout if e.name not in names and not e.copy]
    if missing:
        raise ModelFileError(
            f"{stored.folder} does not fit its config.json: tensor {missing[0]!r} is missing"
            + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
        )
    fp8 = [e for e in layout if e.name in names and stored.dtype(e.name) == "F8_E4M3"]
    wanted = {e.name for e in layout} | {e.scale_name for e in fp8}
    empty = empty_tensors(layout, cfg)
    for name in sorted(names.keys() - wanted):
        skipped = mtp is False and _layer(name) >= cfg.num_hidden_layers
        hollow = name in empty and stored.shape(name) == empty[name]
        if not (skipped or hollow or re.fullmatch(DERIVED, name)):
            raise ModelFileError(
                f"{stored.where(name)} is unexpected: it does not fit config.json, or is not built "
                "here"
            )


def _widest(layout: list[HFTensor], stored: _Stored) -> torch.dtype:
    """The dtype that holds every weight in the files exactly, FP8 and the routers aside."""
    found = {
        _DTYPES.get(stored.dtype(entry.name), torch.float32)
        for entry in layout
        if not entry.copy and not entry.name.endswith((BIAS, GATE))
    }
    found.discard(torch.float8_e4m3fn)
    return functools.reduce(torch.promote_types, found) if found else torch.bfloat16


def _read(
    entry: HFTensor,
    stored: _Stored,
    block: tuple[int, int],
    common: torch.dtype,
    exact_gate: bool,
) -> Tensor:
    where, shape = stored.where(entry.name), stored.shape(entry.name)
    if shape != entry.shape:
        raise ModelFileError(
            f"{where} has shape {list(shape)}, config.json needs {list(entry.shape)}"
        )
    stored_dtype = _DTYPES.get(stored.dtype(entry.name))
    if stored_dtype is None:
        raise ModelFileError(
            f"{where} has dtype {stored.dtype(entry.name)}; only {', '.join(_DTYPES)} can be read"
        )
    tensor = stored.tensor(entry.name)
    if stored_dtype == torch.float8_e4m3fn:
        tensor = _dequantize(entry, tensor, stored, block)
    if entry.name.endswith(BIAS):
        return tensor.float()
    if entry.name.endswith(GATE) and exact_gate:
        return tensor.to(torch.promote_types(tensor.dtype, common))
    return tensor.to(common)


def _dequantize(entry: HFTensor, tensor: Tensor, stored: _Stored, block: tuple[int, int]) -> Tensor:
    where = stored.where(entry.name)
    if entry.scale_name not in stored.files:
        raise ModelFileError(f"{where} is FP8, but {entry.scale_name!r} is missing")
    kind = stored.dtype(entry.scale_name)
    if kind not in SCALES:
        raise ModelFileError(
            f"{stored.where(entry.scale_name)} has dtype {kind}; only {', '.join(SCALES)} can be "
            "read"
        )
    try:
        return dequantize_ref(tensor, stored.tensor(entry.scale_name), block)
    except ValueError as error:
        raise ModelFileError(f"{where}: {error}") from error
