"""Hugging Face's Llama with the weights of our dense decoder: the oracle of the dense path."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def half_split_rows(weight, head_dim):
    """Rows of a query or key projection, from interleaved pairs to half-split ones, per head."""
    heads = weight.unflatten(0, (-1, head_dim))
    return torch.cat([heads[:, 0::2], heads[:, 1::2]], 1).flatten(0, 1)


def llama(cfg):
    """A new Hugging Face Llama of the sizes in ``cfg``."""
    names = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
        "num_key_value_heads head_dim max_position_embeddings rms_norm_eps rope_theta "
        "tie_word_embeddings"
    )
    sizes = {name: getattr(cfg, name) for name in names.split()}
    return LlamaForCausalLM(LlamaConfig(**sizes, attn_implementation="eager"))


def llama_of(model):
    """Hugging Face's Llama with the weights of ``model``."""
    cfg = model.config
    twin = llama(cfg)
    state = {}
    for name, tensor in model.state_dict().items():
        if cfg.rope_interleave and name.endswith(("q_proj.weight", "k_proj.weight")):
            tensor = half_split_rows(tensor, cfg.head_dim)
        state[name if name.startswith("lm_head") else f"model.{name}"] = tensor
    twin.load_state_dict(state)
    return twin
