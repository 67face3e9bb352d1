"""``config.json`` of a ``deepseek_v3`` checkpoint, from and to ``ModelConfig``.

Every field of a file is read, or known to change no number here, or refused by name; one that is
absent has the value that transformers' ``DeepseekV3Config`` gives it.
"""

from __future__ import annotations

import reprlib
from typing import Any

from minids3.config import ConfigError, ModelConfig

__all__ = ["fp8_block", "from_hf_config", "to_hf_config"]

# Fields of the same name and meaning on both sides, with Hugging Face's defaults.
_SAME: dict[str, Any] = {
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "num_hidden_layers": 61,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "rope_interleave": True,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 2048,
    "first_k_dense_replace": 3,
    "n_group": 8,
    "topk_group": 4,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "num_nextn_predict_layers": 1,
}
# What a null means; elsewhere it is refused.
_NULL = {"q_lora_rank": None, "n_routed_experts": 0, "n_shared_experts": 0}
# transformers' own names.
_ALIASES = {"num_local_experts": "n_routed_experts", "num_mtp_layers": "num_nextn_predict_layers"}
# What a file may say with one value only, since nothing else is built.
_FIXED: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "moe_layer_freq": 1,
    "partial_rotary_factor": 1.0,
    "is_encoder_decoder": False,
    "is_decoder": False,
    "add_cross_attention": False,
}
# What changes no logit: names, tokens, generation, training losses, output formats, parallelism.
_NO_EFFECT = """
    architectures auto_map model_type dtype torch_dtype transformers_version name_or_path
    bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id tokenizer_class
    use_cache return_dict output_attentions output_hidden_states output_router_logits torchscript
    attn_implementation experts_implementation chunk_size_feed_forward pretraining_tp ep_size
    aux_loss_alpha router_aux_loss_coef seq_aux id2label label2id num_labels problem_type
    finetuning_task task_specific_params tie_encoder_decoder tie_last_hidden_states pruned_heads
    prefix use_bfloat16 tf_legacy_loss
    max_length max_new_tokens min_length do_sample early_stopping num_beams num_beam_groups
    diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty
    no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences
    forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty
    suppress_tokens begin_suppress_tokens output_scores return_dict_in_generate
    """
_YARN = {
    "factor": "rope_factor",
    "original_max_position_embeddings": "original_max_position_embeddings",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "mscale": "mscale",
    "mscale_all_dim": "mscale_all_dim",
    "attention_factor": "attention_factor",
    "truncate": "rope_truncate",
}
_STRUCTURED = ("rope_scaling", "rope_parameters", "quantization_config")
_ROPE = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
# Where Hugging Face takes a null for an absent value.
_NULLABLE = {"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "type"}
_FP8 = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
}
# Every stored tensor shows whether it is FP8 and how its scales are stored.
_FP8_NO_EFFECT = {
    "modules_to_not_convert",
    "modules_to_convert",
    "ignored_layers",
    "dequantize",
    "scale_fmt",
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
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "num_key_value_heads": cfg.num_attention_heads,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": dtype,
    }
    if not cfg.is_moe:  # a layer is dense by its number there
        fields["first_k_dense_replace"] = cfg.num_hidden_layers + cfg.num_nextn_predict_layers
    if cfg.is_yarn:
        yarn = {theirs: getattr(cfg, ours) for theirs, ours in _YARN.items()}
        if yarn["attention_factor"] is None:  # both as Hugging Face takes them to be
            del yarn["attention_factor"]
        if yarn["truncate"]:
            del yarn["truncate"]
        fields["rope_scaling"] = {"type": "yarn", **yarn}
    if fp8:
        fields["quantization_config"] = _FP8
    return fields


def from_hf_config(fields: dict[str, Any]) -> ModelConfig:
    """The configuration in a ``config.json``, of the release's style or of transformers 5.

    Raises:
        ConfigError: another model type, an impossible value, or a field or value that is not built
            here and could change the result.
    """
    if not isinstance(fields, dict):
        raise ConfigError(f"config.json holds a {type(fields).__name__}, not an object")
    kind = fields.get("model_type")
    if kind != "deepseek_v3":
        raise ConfigError(f"model_type={_shown(kind)}: only 'deepseek_v3' checkpoints can be read")
    fp8_block(fields)
    fields = _without_aliases(fields)
    found = {**_SAME, **{name: fields[name] for name in _SAME if name in fields}}
    for name, value in found.items():
        if value is None and name not in _NULL:
            raise ConfigError(f"{name} is null: give its value, or leave it out for {_SAME[name]}")
    found.update({name: value for name, value in _NULL.items() if found[name] is None})
    found.update(_rope(fields, found))
    dense_layers, layers = found["first_k_dense_replace"], found["num_hidden_layers"]
    whole = isinstance(dense_layers, int) and isinstance(layers, int)
    if found["n_routed_experts"] == 0 or (whole and dense_layers > layers):
        found.update(n_routed_experts=0, first_k_dense_replace=0)
    heads = found["num_attention_heads"]
    cfg = ModelConfig(attention="mla", num_key_value_heads=heads, **found)
    only = {
        **_FIXED,
        "num_key_value_heads": cfg.num_attention_heads,
        "head_dim": cfg.qk_rope_head_dim,
        "qk_head_dim": cfg.qk_head_dim,
        "original_max_position_embeddings": (
            cfg.original_max_position_embeddings
            if cfg.is_yarn
            else fields.get("original_max_position_embeddings")
        ),
    }
    read = {*_SAME, *_NO_EFFECT.split(), *_STRUCTURED}
    for name, value in fields.items():
        if value is None or name.startswith("_") or name in read:
            continue
        if name not in only:
            raise ConfigError(f"{name}={_shown(value)} is unknown here and may change the model")
        if value != only[name]:
            raise ConfigError(f"{name}={_shown(value)} is not built here, only {only[name]!r}")
    return cfg


def _without_aliases(fields: dict[str, Any]) -> dict[str, Any]:
    """``fields`` under the release's names; two names that disagree are a ``ConfigError``."""
    fields = dict(fields)
    for theirs, name in _ALIASES.items():
        if theirs in fields:
            value = fields.pop(theirs)
            if fields.setdefault(name, value) != value:
                raise ConfigError(
                    f"{theirs}={_shown(value)} and {name}={_shown(fields[name])} are one field: "
                    "give one value"
                )
    return fields


def _rope(fields: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Our rotary fields from ``rope_scaling`` or ``rope_parameters`` beside ``found``."""
    given = [fields[n] for n in ("rope_scaling", "rope_parameters") if fields.get(n) is not None]
    if len(given) == 2 and given[0] != given[1]:
        raise ConfigError("rope_scaling and rope_parameters disagree: leave one out")
    rope = given[0] if given else {}
    if not isinstance(rope, dict):
        raise ConfigError(f"rope_scaling={_shown(rope)} must be an object")
    rope = {
        name: value for name, value in rope.items() if value is not None or name not in _NULLABLE
    }
    style = rope.get("rope_type", rope.get("type", "default"))
    if rope.get("type", style) != style:
        raise ConfigError(f"rope_type={_shown(style)} and type={_shown(rope['type'])} disagree")
    if style not in ("default", "yarn"):
        raise ConfigError(f"rope scaling of type {_shown(style)} is not built here, only yarn")
    for name in sorted(rope.keys() - _ROPE - (_YARN.keys() if style == "yarn" else set())):
        raise ConfigError(f"rope_scaling of type {style} has {name}, which is not built here")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ConfigError("rope_scaling: partial_rotary_factor is not built here, only 1.0")
    theta = {"rope_theta": rope.get("rope_theta", found["rope_theta"])}
    if style == "default":
        return theta
    if "factor" not in rope:
        raise ConfigError("rope_scaling of type yarn needs factor")
    positions = found["max_position_embeddings"]
    yarn = {
        "original_max_position_embeddings": positions,
        "mscale": 0.0,
        "mscale_all_dim": 0.0,
        **{ours: rope[theirs] for theirs, ours in _YARN.items() if theirs in rope},
    }
    for name, default in (("beta_fast", 32.0), ("beta_slow", 1.0)):
        yarn[name] = yarn.get(name, default) or default  # transformers reads a 0 as absent
    if yarn["rope_factor"] is None:
        cfg = ModelConfig(
            max_position_embeddings=positions,
            original_max_position_embeddings=yarn["original_max_position_embeddings"],
        )
        yarn["rope_factor"] = positions / cfg.original_max_position_embeddings
    return {**theta, **yarn}


def fp8_block(fields: dict[str, Any]) -> tuple[int, int]:
    """Rows and columns of an FP8 weight that share a scale, of a ``config.json``.

    Raises:
        ConfigError: ``quantization_config`` has a field or value that is not built here.
    """
    quant = fields.get("quantization_config")
    if quant is None:
        return 128, 128
    if not isinstance(quant, dict):
        raise ConfigError(f"quantization_config={_shown(quant)} must be an object")
    only = {**_FP8, "expert_dtype": "fp8"}
    if quant.get("quant_method") is None:
        raise ConfigError("quantization_config does not say quant_method")
    for name, value in quant.items():
        if name == "weight_block_size" or name in _FP8_NO_EFFECT:
            continue
        if name not in only and value is not None:
            raise ConfigError(f"quantization_config: {name}={_shown(value)} is not built here")
        if value not in (only.get(name), None):
            raise ConfigError(
                f"quantization_config: {name}={_shown(value)} is not built here, "
                f"only {only[name]!r}"
            )
    block = quant.get("weight_block_size", [128, 128])
    whole = isinstance(block, list | tuple) and all(type(n) is int and n > 0 for n in block)
    if not whole or len(block) != 2:
        raise ConfigError(
            f"quantization_config: weight_block_size={_shown(block)} is not built here, only two "
            "whole numbers, such as [128, 128]"
        )
    return block[0], block[1]


def _shown(value: object) -> str:
    return reprlib.repr(value)
