"""``config.json`` of a ``deepseek_v3`` checkpoint, from and to ``ModelConfig``."""

from __future__ import annotations

from typing import Any

from minids3.config import ConfigError, ModelConfig

__all__ = ["from_hf_config", "to_hf_config"]

# Fields of the same name and meaning on both sides.
_SAME = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "rms_norm_eps",
    "tie_word_embeddings",
    "initializer_range",
    "num_attention_heads",
    "q_lora_rank",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "max_position_embeddings",
    "rope_theta",
    "rope_interleave",
    "n_routed_experts",
    "n_shared_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "first_k_dense_replace",
    "n_group",
    "topk_group",
    "scoring_func",
    "norm_topk_prob",
    "routed_scaling_factor",
    "num_nextn_predict_layers",
)
_YARN = {
    "factor": "rope_factor",
    "original_max_position_embeddings": "original_max_position_embeddings",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "mscale": "mscale",
    "mscale_all_dim": "mscale_all_dim",
}
# What the files may say but the model here does not do.
_FIXED = {"hidden_act": "silu", "attention_bias": False, "attention_dropout": 0.0}
_FP8 = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
}


def to_hf_config(cfg: ModelConfig, dtype: str = "float32", fp8: bool = False) -> dict[str, Any]:
    """The fields of ``config.json`` for ``cfg``.

    Args:
        cfg: with latent attention and sigmoid gates.
        dtype: of the weights that are not FP8, ``"float32"`` or ``"bfloat16"``.
        fp8: describe FP8 weights in blocks of 128 x 128.

    Raises:
        ConfigError: ``deepseek_v3`` has no word for something in ``cfg``.
    """
    if cfg.attention != "mla":
        raise ConfigError(f"deepseek_v3 has latent attention only, not {cfg.attention!r}")
    if cfg.is_moe and cfg.scoring_func != "sigmoid":
        raise ConfigError(f"deepseek_v3's gate is a sigmoid, not scoring_func={cfg.scoring_func!r}")
    fields: dict[str, Any] = {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        **{name: getattr(cfg, name) for name in _SAME},
        **_FIXED,
        "num_key_value_heads": cfg.num_attention_heads,
        "topk_method": "noaux_tc",
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": dtype,
    }
    if not cfg.is_moe:  # a layer is dense by its number there
        fields["first_k_dense_replace"] = cfg.num_hidden_layers + cfg.num_nextn_predict_layers
    if cfg.rope_factor > 1:
        fields["rope_scaling"] = {
            "type": "yarn",
            **{theirs: getattr(cfg, ours) for theirs, ours in _YARN.items()},
        }
    if fp8:
        fields["quantization_config"] = _FP8
    return fields


def from_hf_config(fields: dict[str, Any]) -> ModelConfig:
    """The configuration in a ``config.json``, of the release's style or of transformers 5.

    Raises:
        ConfigError: another model type, a missing field, or an option that is not built here.
    """
    kind = fields.get("model_type")
    if kind != "deepseek_v3":
        raise ConfigError(f"model_type={kind!r}: only 'deepseek_v3' checkpoints can be read")
    for name, only in _FIXED.items():
        if fields.get(name, only) not in (only, None):
            raise ConfigError(f"{name}={fields[name]!r} is not built here, only {only!r}")
    rope = dict(fields.get("rope_parameters") or fields.get("rope_scaling") or {})
    found = {name: fields[name] for name in _SAME if fields.get(name) is not None}
    if "rope_theta" in rope:
        found["rope_theta"] = rope["rope_theta"]
    if "num_mtp_layers" in fields:  # transformers' own name for it
        found.setdefault("num_nextn_predict_layers", fields["num_mtp_layers"])
    style = rope.get("rope_type", rope.get("type", "default"))
    if style == "yarn":
        found.update({ours: rope[theirs] for theirs, ours in _YARN.items() if theirs in rope})
        found.setdefault("mscale", 0.0)
        found.update({} if "mscale_all_dim" in rope else {"mscale_all_dim": 0.0})
        if "original_max_position_embeddings" not in rope:
            raise ConfigError("rope_scaling of type yarn needs original_max_position_embeddings")
    elif style != "default":
        raise ConfigError(f"rope scaling of type {style!r} is not built here, only yarn")
    needed = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "kv_lora_rank",
    )
    missing = [name for name in needed if name not in found]
    if missing:
        raise ConfigError(f"config.json does not say {missing[0]}")
    first_dense = found.get("first_k_dense_replace", 0)
    if not found.get("n_routed_experts") or first_dense > found["num_hidden_layers"]:
        found.update(n_routed_experts=0, first_k_dense_replace=0)
    heads = found["num_attention_heads"]
    return ModelConfig(attention="mla", num_key_value_heads=heads, **found)
