"""Hugging Face's DeepseekV3ForCausalLM with our weights: the oracle of the whole architecture."""

import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from minids3.config import ModelConfig
from minids3.model import Transformer
from minids3.model.hf import hf_layout, to_hf_config

# Every size differs from every other, so that a swapped axis cannot hide.
BASE = ModelConfig(
    vocab_size=101,
    hidden_size=40,
    intermediate_size=56,
    num_hidden_layers=3,
    max_position_embeddings=64,
    initializer_range=0.15,
    attention="mla",
    num_attention_heads=3,
    num_key_value_heads=3,
    q_lora_rank=28,
    kv_lora_rank=20,
    qk_nope_head_dim=12,
    qk_rope_head_dim=8,
    v_head_dim=10,
    n_routed_experts=12,
    n_shared_experts=1,
    num_experts_per_tok=3,
    moe_intermediate_size=18,
    first_k_dense_replace=1,
    n_group=4,
    topk_group=2,
    routed_scaling_factor=2.5,
)

YARN = {
    "rope_factor": 8.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 4.0,
    "max_position_embeddings": 128,
}


def heads(n):
    return {"num_attention_heads": n, "num_key_value_heads": n}


CONFIGS = {
    "base": {},
    "plain queries": {"q_lora_rank": None},
    "one group": {"n_group": 1, "topk_group": 1},
    "all groups": {"topk_group": 4},
    "no shared expert": {"n_shared_experts": 0},
    "two shared experts": {"n_shared_experts": 2},
    "no dense layer": {"first_k_dense_replace": 0},
    "dense only": {"n_routed_experts": 0, "first_k_dense_replace": 0},
    "half-split rope": {"rope_interleave": False},
    "yarn": YARN,
    "yarn, two mscales": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3},
    "yarn, no mscale_all_dim": {**YARN, "mscale_all_dim": 0.0},
    "yarn, half-split, plain queries": {**YARN, "rope_interleave": False, "q_lora_rank": None},
    "odd head widths": {**heads(5), "qk_nope_head_dim": 7, "v_head_dim": 9},
    "raw weights, tied": {"norm_topk_prob": False, "tie_word_embeddings": True},
    "top 1 of many": {  # not renormalised: one weight over itself is 1 and has no gradient
        "n_routed_experts": 30,
        "n_group": 5,
        "num_experts_per_tok": 1,
        "norm_topk_prob": False,
    },
    "one head, eps, theta": {**heads(1), "rms_norm_eps": 1e-3, "rope_theta": 77.0},
}


def build(seed=0, **changes):
    """Our model in double use: random weights, random router biases."""
    torch.manual_seed(seed)
    model = Transformer(BASE.replace(**changes))
    with torch.no_grad():
        for name, tensor in model.named_buffers():
            if name.endswith("expert_bias"):
                tensor.normal_(std=0.1)
        for name, tensor in model.named_parameters():
            if name.endswith("norm.weight"):  # ones would hide a forgotten scale
                tensor.uniform_(0.5, 1.5)
    return model


def twin(model):
    """A Hugging Face model with the weights of ``model``, its experts stacked as it wants them."""
    hf = DeepseekV3ForCausalLM(
        DeepseekV3Config(
            **to_hf_config(model.config),
            attn_implementation="eager",
            experts_implementation="eager",  # the grouped one wants sizes in multiples of 16 bytes
        )
    )
    hf.load_state_dict(as_module_state(model.state_dict(), model.config), strict=False)
    return hf


def as_module_state(tensors, cfg):
    """Tensors under our names, renamed for the Hugging Face **module** (not for its files)."""
    found = {}
    for entry in hf_layout(cfg):
        if entry.copy or entry.source not in tensors:
            continue
        name = entry.name
        if entry.expert is not None:
            prefix = name.split(".experts.")[0]
            name = f"{prefix}.experts.{entry.source.rsplit('.', 1)[1]}"
        found[name] = tensors[entry.source]
    return found
