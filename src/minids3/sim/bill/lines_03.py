"""Notebook 03's entry: what one token of context costs while serving."""

from __future__ import annotations

from minids3.config import get_config
from minids3.sim.bill.ledger import Line, entry
from minids3.sim.memory import kv_cache_bytes, kv_cache_bytes_per_token

__all__ = ["line_03"]

_BUDGET = 40e9
_CONTEXT = 4096


@entry("03")
def line_03() -> Line:
    """State V3's cache per token, beside multi-head attention with the same heads."""
    cfg = get_config("v3_671b")
    latent = kv_cache_bytes_per_token(cfg)
    plain = kv_cache_bytes(
        "mha",
        cfg.num_hidden_layers,
        1,
        n_heads=cfg.num_attention_heads,
        head_dim=cfg.qk_head_dim,
        v_head_dim=cfg.v_head_dim,
    )
    users = [int(_BUDGET // (per_token * _CONTEXT)) for per_token in (latent, plain)]
    return Line(
        notebook="03",
        title="Cache of one token of context, serving",
        value=latent,
        unit="bytes",
        formula=(
            f"{cfg.num_hidden_layers} layers x ({cfg.kv_lora_rank} + {cfg.qk_rope_head_dim}) x 2 "
            f"bytes; keys and values of the same {cfg.num_attention_heads} heads would take "
            f"{plain:,} ({plain / latent:.1f}x). "
            f"40 GB of cache hold {users[0]} contexts of {_CONTEXT:,} tokens instead of {users[1]}"
        ),
        source="C, minids3.sim.memory; ISCA prints 70.272 KB",
        kind="computed",
        leaves_out=(
            "the weights and everything else in the same memory, the arithmetic of the absorbed "
            "path, and any price: this line is about serving, the hours above about training"
        ),
    )
