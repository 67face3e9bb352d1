"""Models of a few thousand numbers, for tests of serving: every part, hardly any arithmetic."""

import torch

from minids3.config import get_config
from minids3.model import Transformer

SIZES = {
    "vocab_size": 41,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "max_position_embeddings": 48,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "initializer_range": 0.6,
    "q_lora_rank": 6,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 5,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "n_group": 2,
    "topk_group": 1,
}


def latent_model(dtype=torch.float64, seed=0, **changes):
    """MLA, experts and an MTP module."""
    torch.manual_seed(seed)
    return Transformer(get_config("mini", **{**SIZES, **changes})).to(dtype).eval()


def grouped_model(dtype=torch.float64, seed=0):
    """Grouped-query attention, dense."""
    torch.manual_seed(seed)
    changes = {"vocab_size": 41, "initializer_range": 0.6, "max_position_embeddings": 48}
    return Transformer(get_config("tiny", **changes)).to(dtype).eval()
