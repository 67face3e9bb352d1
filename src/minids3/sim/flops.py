"""Training FLOPs per token: the 6N rule, and the same with attention counted.

One multiply-accumulate is 2 FLOPs; a backward pass costs two forward passes; hence 6 per weight.
A weight here is one that a token is multiplied by: activated experts only, the output head, but
neither the embedding lookup nor norms. Attention's score and value products have no weights, so
6N misses them. At S = 4096 V3 has 250.4 GF causal, 281.2 full, 219.7 plain [C-flops].
"""

from __future__ import annotations

from typing import Literal

from minids3.config import ModelConfig
from minids3.sim.parameters import matmul_parameters, mtp_matmul_parameters

__all__ = ["attention_macs_per_token", "six_nd", "training_flops_per_token"]

Attention = Literal["causal", "full", "none"]


def attention_macs_per_token(
    cfg: ModelConfig, seq_len: int, attention: Attention = "causal"
) -> float:
    """Return the multiply-accumulates of scores and value sums, per token, over all main layers.

    Averaged over a sequence of ``seq_len``: a causal token sees half of it (S/2, as the published
    counts do; the exact mean is (S + 1) / 2), ``"full"`` counts the masked half too.
    """
    if attention not in ("causal", "full", "none"):
        raise ValueError(f"attention={attention!r}; choose 'causal', 'full' or 'none'")
    if seq_len < 1:
        raise ValueError(f"seq_len={seq_len} must be 1 or more")
    seen = {"causal": seq_len / 2, "full": seq_len, "none": 0}[attention]
    value = cfg.v_head_dim if cfg.attention == "mla" else cfg.head_dim
    return cfg.num_hidden_layers * cfg.num_attention_heads * (cfg.qk_head_dim + value) * seen


def training_flops_per_token(
    cfg: ModelConfig, seq_len: int, attention: Attention = "causal", mtp: bool = False
) -> float:
    """Return the FLOPs of forward and backward for one token; ``mtp`` adds the MTP modules."""
    weights = matmul_parameters(cfg)
    macs = attention_macs_per_token(cfg, seq_len, attention)
    if mtp:
        weights += mtp_matmul_parameters(cfg)
        macs += macs / cfg.num_hidden_layers * cfg.num_nextn_predict_layers
    return 6 * (weights + macs)


def six_nd(parameters: float, tokens: float) -> float:
    """Return 6ND, the rule of thumb for a training run's FLOPs."""
    if parameters <= 0 or tokens <= 0:
        raise ValueError(f"parameters={parameters} and tokens={tokens} must be greater than 0")
    return 6.0 * parameters * tokens
