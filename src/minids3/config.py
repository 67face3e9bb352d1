"""The configuration of a model: one flat, frozen dataclass with the field's own names.

The names are those of the released DeepSeek-V3 ``config.json`` (Hugging Face ``deepseek_v3``), so
that a foreign configuration is read by name alone. One class serves the dense baseline and the full
model: ``attention`` chooses between grouped-query attention (``"gqa"``; MHA when the key-value
heads equal the heads) and latent attention (``"mla"``); ``n_routed_experts = 0`` means every layer
is dense.

A nested configuration (attention, experts, rope) was the alternative. Flat won because a reader
greps one name, and because ``cfg.replace(n_routed_experts=16)`` is one line.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

__all__ = ["PRESETS", "ConfigError", "ModelConfig", "get_config", "read_json"]

# No size of a real model comes near; a damaged file should not ask for a petabyte.
LARGEST_INT, LARGEST_TABLE = 2**31 - 1, 2**30


class ConfigError(ValueError):
    """A configuration that no model can be built from; the message names field and remedy."""


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ConfigError: it cannot be read, is no UTF-8 or no JSON, or holds something else; the message
            starts with the file's name.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 ({error}); write it again") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON ({error}); write it again") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}, not a configuration")
    return content


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and options of a model. Validated on construction.

    Raises ``ConfigError`` on an impossible combination.
    """

    # Width, depth, vocabulary.
    vocab_size: int = 2048
    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 4
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02

    # Attention. head_dim is the width of a head in "gqa"; "mla" has its own three widths.
    attention: Literal["gqa", "mla"] = "gqa"
    num_attention_heads: int = 4
    num_key_value_heads: int = 4
    head_dim: int = 32
    q_lora_rank: int | None = None
    kv_lora_rank: int = 0
    qk_nope_head_dim: int = 0
    qk_rope_head_dim: int = 0
    v_head_dim: int = 0

    # Rotary positions. rope_factor > 1 means YaRN. rope_truncate: whole ends for the ramp between
    # kept and slowed frequencies. attention_factor: what the rotary tables are multiplied by; None:
    # the ratio of the two mscales.
    max_position_embeddings: int = 1024
    rope_theta: float = 10000.0
    rope_interleave: bool = True
    rope_factor: float = 1.0
    original_max_position_embeddings: int = 4096
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 1.0
    rope_truncate: bool = True
    attention_factor: float | None = None

    # Experts. n_routed_experts = 0: a dense model.
    n_routed_experts: int = 0
    n_shared_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    first_k_dense_replace: int = 0
    n_group: int = 1
    topk_group: int = 1
    scoring_func: Literal["sigmoid", "softmax"] = "sigmoid"
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0

    # Multi-token prediction: extra modules after the last layer.
    num_nextn_predict_layers: int = 0

    def __post_init__(self) -> None:
        """Reject what cannot work, naming the field, its value and what would be right."""
        for field in dataclasses.fields(self):
            _check_type(field.name, getattr(self, field.name), str(field.type))
        _positive(
            self,
            "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
            "max_position_embeddings rope_theta rms_norm_eps initializer_range",
        )
        _one_of(self, "attention", ("gqa", "mla"))
        _one_of(self, "scoring_func", ("sigmoid", "softmax"))
        if self.attention == "gqa":
            _positive(self, "num_key_value_heads head_dim")
            if self.num_attention_heads % self.num_key_value_heads:
                raise ConfigError(
                    f"num_attention_heads={self.num_attention_heads} is no multiple of "
                    f"num_key_value_heads={self.num_key_value_heads}: every key-value head must "
                    "serve the same number of query heads"
                )
            _even(self, "head_dim")
        else:
            _positive(self, "kv_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim")
            _even(self, "qk_rope_head_dim")
            if self.q_lora_rank is not None:
                _positive(self, "q_lora_rank")
        self._validate_rope()
        if self.is_moe:
            self._validate_experts()
        for name, value in vars(self).items():
            if isinstance(value, int | float) and value < 0:
                raise ConfigError(f"{name} must be 0 or more, not {value}")

    def _validate_rope(self) -> None:
        _positive(self, "original_max_position_embeddings beta_fast beta_slow")
        if self.attention_factor is not None:
            _positive(self, "attention_factor")
        if self.rope_factor < 1.0:
            raise ConfigError(
                f"rope_factor={self.rope_factor} must be 1 (plain RoPE) or more (YaRN)"
            )
        if self.is_yarn and self.rope_theta == 1:
            raise ConfigError(
                "rope_theta=1 turns every pair alike: YaRN cannot tell fast from slow"
            )
        if self.max_position_embeddings * self.rope_dim > LARGEST_TABLE:
            raise ConfigError(
                f"max_position_embeddings={self.max_position_embeddings} is too large: the rotary "
                f"tables would hold more than {LARGEST_TABLE} numbers"
            )

    def _validate_experts(self) -> None:
        _positive(self, "num_experts_per_tok moe_intermediate_size n_group topk_group")
        if not 0 <= self.first_k_dense_replace <= self.num_hidden_layers:
            raise ConfigError(
                f"first_k_dense_replace={self.first_k_dense_replace} must lie between 0 and "
                f"num_hidden_layers={self.num_hidden_layers}"
            )
        if self.n_routed_experts % self.n_group:
            raise ConfigError(
                f"n_routed_experts={self.n_routed_experts} cannot be split into "
                f"n_group={self.n_group} equal groups"
            )
        if self.topk_group > self.n_group:
            raise ConfigError(f"topk_group={self.topk_group} exceeds n_group={self.n_group}")
        reachable = self.n_routed_experts // self.n_group * self.topk_group
        if self.num_experts_per_tok > reachable:
            raise ConfigError(
                f"num_experts_per_tok={self.num_experts_per_tok} exceeds the {reachable} experts "
                f"of topk_group={self.topk_group} groups"
            )

    @property
    def is_moe(self) -> bool:
        """Whether any layer has routed experts."""
        return self.n_routed_experts > 0

    @property
    def qk_head_dim(self) -> int:
        """Width of a query or key head, the one that the softmax scale comes from."""
        if self.attention == "mla":
            return self.qk_nope_head_dim + self.qk_rope_head_dim
        return self.head_dim

    @property
    def rope_dim(self) -> int:
        """How many channels of a head rotate with the position."""
        return self.qk_rope_head_dim if self.attention == "mla" else self.head_dim

    @property
    def is_yarn(self) -> bool:
        """Whether positions are stretched by YaRN, or the rotary tables scaled as YaRN does."""
        return self.rope_factor > 1 or self.attention_factor is not None

    def is_moe_layer(self, layer: int) -> bool:
        """Whether ``layer`` (0-based) has routed experts rather than a dense feed-forward."""
        return self.is_moe and layer >= self.first_k_dense_replace

    def replace(self, **changes: Any) -> ModelConfig:
        """Return a copy with some fields changed; an unknown name raises ``ConfigError``."""
        _known_fields(changes)
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> ModelConfig:
        """Build from ``to_dict``'s output; an unknown name raises ``ConfigError``."""
        _known_fields(fields)
        return cls(**fields)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the configuration as JSON, whole or not at all."""
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        os.replace(partial, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ModelConfig:
        """Read what ``save`` wrote; ``ConfigError`` says what is wrong with the file."""
        fields = read_json(path)
        try:
            return cls.from_dict(fields)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error


def _check_type(name: str, value: object, kind: str) -> None:
    """Whether ``value`` is of the type ``kind`` that a field is declared with."""
    if value is None and kind.endswith("| None"):
        return
    shown = f"{name}={reprlib.repr(value)}" if not isinstance(value, int) else name
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "bool" and not isinstance(value, bool):
        raise ConfigError(f"{shown} must be True or False")
    if kind.startswith("int"):
        if not number or not isinstance(value, int):
            raise ConfigError(f"{shown} must be a number of type int, without a fraction")
        if abs(value) > LARGEST_INT:
            raise ConfigError(f"{name} is larger than {LARGEST_INT}: no model has that")
    if kind.startswith("float"):
        try:
            finite = isinstance(value, int | float) and number and math.isfinite(value)
        except OverflowError:  # an int of more than 308 digits
            finite = False
        if not finite:
            raise ConfigError(f"{shown} must be a number, and finite")


def _positive(cfg: ModelConfig, names: str) -> None:
    for name in names.split():
        value = getattr(cfg, name)
        if value <= 0:
            raise ConfigError(f"{name}={value!r} must be a number greater than 0")


def _even(cfg: ModelConfig, name: str) -> None:
    value = getattr(cfg, name)
    if value % 2:
        raise ConfigError(f"{name}={value} must be even: RoPE rotates pairs of numbers")


def _one_of(cfg: ModelConfig, name: str, allowed: tuple[str, ...]) -> None:
    value = getattr(cfg, name)
    if value not in allowed:
        shown = reprlib.repr(value)
        raise ConfigError(f"{name}={shown} is unknown; choose one of {', '.join(allowed)}")


def _known_fields(fields: dict[str, Any]) -> None:
    if not isinstance(fields, dict):
        raise ConfigError(f"a {type(fields).__name__} is no configuration: give a dict of fields")
    known = [f.name for f in dataclasses.fields(ModelConfig)]
    unknown = sorted(set(fields) - set(known), key=str)
    if unknown:
        raise ConfigError(
            f"unknown field {reprlib.repr(unknown[0])}; the fields are {', '.join(known)}"
        )


PRESETS: dict[str, ModelConfig] = {
    # For unit tests: every size differs from every other, so that a swapped axis cannot hide.
    "tiny": ModelConfig(
        vocab_size=97,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
    ),
    # The dense decoder of notebook 02; a checkpoint from the middle of its training ships in data/.
    "mini_dense": ModelConfig(
        vocab_size=2048,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=512,
    ),
    # The small DeepSeek-V3 that the workbook builds up to: every idea, about 11M parameters.
    "mini": ModelConfig(
        vocab_size=2048,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        max_position_embeddings=1024,
        attention="mla",
        num_attention_heads=8,
        num_key_value_heads=8,
        q_lora_rank=96,
        kv_lora_rank=64,
        qk_nope_head_dim=32,
        qk_rope_head_dim=16,
        v_head_dim=32,
        n_routed_experts=16,
        n_shared_experts=1,
        num_experts_per_tok=4,
        moe_intermediate_size=128,
        first_k_dense_replace=1,
        n_group=4,
        topk_group=2,
        routed_scaling_factor=2.5,
        num_nextn_predict_layers=1,
    ),
    # The trained model that ships in data/: as the mini, with sizes that a CPU trains in hours, and
    # every matrix either one block of FP8 scales wide and high or a whole number of them. Drawn at
    # about 1 / sqrt(256): from 0.02 small models hardly learn to look things up in a text.
    "mini_chat": ModelConfig(
        vocab_size=2048,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=6,
        max_position_embeddings=512,
        initializer_range=0.06,
        attention="mla",
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=96,
        kv_lora_rank=64,
        qk_nope_head_dim=32,
        qk_rope_head_dim=32,
        v_head_dim=32,
        n_routed_experts=16,
        n_shared_experts=1,
        num_experts_per_tok=4,
        moe_intermediate_size=64,
        first_k_dense_replace=1,
        n_group=4,
        topk_group=2,
        routed_scaling_factor=2.5,
        num_nextn_predict_layers=1,
    ),
    # The baseline of mini_chat, trained on the same text: without experts, latents and MTP, its
    # feed-forward as wide as makes a token cost as many FLOPs (those of MTP left out).
    "dense_chat": ModelConfig(
        vocab_size=2048,
        hidden_size=256,
        intermediate_size=368,
        num_hidden_layers=6,
        max_position_embeddings=512,
        initializer_range=0.06,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
    ),
    # The released model (its repository's config_671B.json; initialisation: TR section 4.2;
    # YaRN: the released config.json).
    "v3_671b": ModelConfig(
        vocab_size=129280,
        hidden_size=7168,
        intermediate_size=18432,
        num_hidden_layers=61,
        max_position_embeddings=163840,
        initializer_range=0.006,
        attention="mla",
        num_attention_heads=128,
        num_key_value_heads=128,
        q_lora_rank=1536,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        rope_factor=40.0,
        n_routed_experts=256,
        n_shared_experts=1,
        num_experts_per_tok=8,
        moe_intermediate_size=2048,
        first_k_dense_replace=3,
        n_group=8,
        topk_group=4,
        routed_scaling_factor=2.5,
        num_nextn_predict_layers=1,
    ),
}


def get_config(name: str, **changes: Any) -> ModelConfig:
    """Return the preset ``name``, some fields changed; an unknown name raises ``ConfigError``."""
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(f"no preset {name!r}; the presets are {', '.join(PRESETS)}")
    return PRESETS[name].replace(**changes)
