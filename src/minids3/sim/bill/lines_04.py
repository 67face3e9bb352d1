"""Notebook 04's entry: what one token costs when 8 of 256 experts work for it."""

from __future__ import annotations

from minids3.config import get_config
from minids3.sim import flops, parameters
from minids3.sim.bill.ledger import Line, entry
from minids3.sim.bill.lines import (
    DENSE_BF16_RATE,
    DOLLARS_PER_HOUR,
    SEQ_LEN,
    TOKENS,
    dense_exact_flops,
    gpu_hours,
)

__all__ = ["line_04"]


@entry("04")
def line_04() -> Line:
    """Price V3's own FLOPs: 37B activated parameters, beside a dense model with all 671B."""
    cfg = get_config("v3_671b")
    per_token = flops.training_flops_per_token(cfg, SEQ_LEN, "causal")
    hours = gpu_hours(per_token * TOKENS)
    weights = parameters.matmul_parameters(cfg)
    attention = flops.attention_macs_per_token(cfg, SEQ_LEN, "causal")
    return Line(
        notebook="04",
        title="37B instead of 671B: 8 of 256 experts per token",
        value=per_token / 1e9,
        unit="GFLOP per token",
        formula=(
            f"6 x ({weights / 1e9:.3f}B activated matrix weights + attention "
            f"{attention / 1e9:.3f}B) x 14.8T tokens / 385 TFLOPS / 3600 s"
        ),
        source="C, minids3.sim.flops; ISCA table 4 (385 TFLOPS); published: 2,664K hours [TR]",
        kind="computed",
        gpu_hours=hours,
        dollars=hours * DOLLARS_PER_HOUR,
        without_hours=gpu_hours(dense_exact_flops() * TOKENS, DENSE_BF16_RATE),
        leaves_out=(
            "without it: the dense model of line 02, in BF16; FP8 would lower that. With it: the "
            "MTP module's FLOPs, which the published rate leaves out too. The rate was "
            "measured on this very run, so the hours must come out near the published ones: a "
            "check of the counting, not a prediction"
        ),
    )
