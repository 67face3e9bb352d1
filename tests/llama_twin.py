"""Hugging Face's Llama with the weights of our dense decoder: the oracle of the dense path."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def half_split_rows(weight, head_dim):
    """Rows of a query or key projection, from interleaved pairs to half-split ones, per head."""
    heads = weight.unflatten(0, (-1, head_dim))
    return torch.cat([heads[:, 0::2], heads[:, 1::2]], 1).flatten(0, 1)


def llama_of(model):
    """Hugging Face's Llama with the weights of ``model``."""
    cfg = model.config
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=cfg.vocab_size,
            hidden_size=cfg.hidden_size,
            intermediate_size=cfg.intermediate_size,
            num_hidden_layers=cfg.num_hidden_layers,
            num_attention_heads=cfg.num_attention_heads,
            num_key_value_heads=cfg.num_key_value_heads,
            head_dim=cfg.head_dim,
            max_position_embeddings=cfg.max_position_embeddings,
            rms_norm_eps=cfg.rms_norm_eps,
            rope_theta=cfg.rope_theta,
            tie_word_embeddings=cfg.tie_word_embeddings,
            attn_implementation="eager",
        )
    )
    state = {}
    for name, tensor in model.state_dict().items():
        if cfg.rope_interleave and name.endswith(("q_proj.weight", "k_proj.weight")):
            tensor = half_split_rows(tensor, cfg.head_dim)
        state[name if name.startswith("lm_head") else f"model.{name}"] = tensor
    llama.load_state_dict(state)
    return llama
