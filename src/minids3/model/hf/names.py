"""What every tensor of a ``deepseek_v3`` checkpoint is called, and where it lives in our model.

The layout is read off the model itself, built on the meta device, so there is no second list of
shapes to keep in step. Predicted for the released configuration it gives the released files: 46,183
weights and 45,808 scales [C-files].
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from minids3.config import ModelConfig
from minids3.model.transformer import Transformer

__all__ = ["HFTensor", "empty_tensors", "hf_layout"]

FP8_BLOCK = 128


@dataclass(frozen=True)
class HFTensor:
    """One tensor of a checkpoint.

    name: in the file. source: the key of our state dict. expert, start: which expert's matrix, and
    from which row, where ours are stacked. fp8: whether the FP8 format quantises it, with a scale
    tensor ``<name>_scale_inv`` beside it. copy: it repeats a tensor that is also elsewhere.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    fp8: bool = False
    expert: int | None = None
    start: int = 0
    copy: bool = False

    @property
    def scale_name(self) -> str:
        """Name of the scales of an FP8 tensor."""
        return self.name + "_scale_inv"

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """One scale per block of 128 x 128."""
        return tuple(-(-size // FP8_BLOCK) for size in self.shape)

    def view(self, state: dict[str, Tensor]) -> Tensor:
        """The part of ``state``, a state dict of ours, that this tensor is."""
        tensor = state[self.source]
        if self.expert is None:
            return tensor
        return tensor[self.expert, self.start : self.start + self.shape[0]]


def hf_layout(cfg: ModelConfig) -> list[HFTensor]:
    """All tensors of a checkpoint of ``cfg``, in the order of our state dict."""
    return list(_layout(cfg))


@functools.lru_cache(maxsize=4)
def _layout(cfg: ModelConfig) -> tuple[HFTensor, ...]:
    with torch.device("meta"):
        model = Transformer(cfg)
    found: list[HFTensor] = []
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and cfg.tie_word_embeddings:
            continue  # the files hold a tied matrix once
        found.extend(_tensors(key, tuple(tensor.shape), cfg))
    return tuple(found)


def empty_tensors(layout: list[HFTensor], cfg: ModelConfig) -> dict[str, tuple[int, int]]:
    """Names and shapes of what transformers asks for besides: shared experts of width 0."""
    if cfg.n_shared_experts:
        return {}
    found = {}
    for entry in layout:
        if entry.name.endswith("mlp.gate.weight"):
            prefix = entry.name.replace("gate.weight", "shared_experts.")
            found[prefix + "gate_proj.weight"] = (0, cfg.hidden_size)
            found[prefix + "up_proj.weight"] = (0, cfg.hidden_size)
            found[prefix + "down_proj.weight"] = (cfg.hidden_size, 0)
    return found


def _tensors(key: str, shape: tuple[int, ...], cfg: ModelConfig) -> Iterator[HFTensor]:
    if key == "lm_head.weight":
        yield HFTensor(key, key, shape)
        return
    name = f"model.{key}"
    if match := re.fullmatch(r"mtp\.(\d+)\.(block\.)?(.*)", key):
        layer = f"model.layers.{cfg.num_hidden_layers + int(match[1])}."
        name = (
            layer + ("shared_head." if key.endswith(f"{match[1]}.norm.weight") else "") + match[3]
        )
        if match[3] == "enorm.weight":  # the release repeats the shared tensors in every module
            table = (cfg.vocab_size, cfg.hidden_size)
            head = "embed_tokens.weight" if cfg.tie_word_embeddings else "lm_head.weight"
            yield HFTensor(layer + "embed_tokens.weight", "embed_tokens.weight", table, copy=True)
            yield HFTensor(layer + "shared_head.head.weight", head, table, copy=True)
    name = name.replace("mlp.gate.expert_bias", "mlp.gate.e_score_correction_bias")
    if ".mlp.experts." not in name:
        fp8 = len(shape) == 2 and "_proj" in name and "eh_proj" not in name
        yield HFTensor(name, key, shape, fp8=fp8)
        return
    prefix, stacked = name.rsplit(".", 1)
    parts = ("gate_proj", "up_proj") if stacked == "gate_up_proj" else ("down_proj",)
    rows = shape[1] // len(parts)
    for expert in range(shape[0]):
        for i, part in enumerate(parts):
            yield HFTensor(
                f"{prefix}.{expert}.{part}.weight",
                key,
                (rows, shape[2]),
                fp8=True,
                expert=expert,
                start=i * rows,
            )
