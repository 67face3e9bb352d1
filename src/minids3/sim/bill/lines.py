"""The entries themselves, each computed from the released model's configuration.

Published constants: 14.8T tokens [TR-tokens], 2,664K H800-hours of pre-training and
2,788K in all [TR table 1], an assumed $2 an hour [TR table 1], 385 TFLOPS achieved per GPU,
causal, 38.94 % of the BF16 peak [ISCA table 4]. The dense baseline runs at the rate of another
published run, Llama-3.1-405B's in BF16 [2nd-llama-rate].
"""

from __future__ import annotations

from minids3.config import get_config
from minids3.sim import flops, parameters
from minids3.sim.bill.ledger import DOLLARS_PER_HOUR, Line, entry
from minids3.sim.hardware import MEASURED_V3_TRAINING

__all__ = [
    "DENSE_BF16_RATE",
    "DOLLARS_PER_HOUR",
    "PRETRAINING_HOURS",
    "PUBLISHED",
    "SEQ_LEN",
    "TOKENS",
    "dense_exact_flops",
    "gpu_hours",
    "line_00",
    "line_01",
    "line_02",
]

TOKENS = 14.8e12
SEQ_LEN = 4096
PRETRAINING_HOURS = 2.664e6  # TR table 1
DENSE_BF16_RATE = 400e12
"""FLOP/s per GPU of a dense model in BF16: Llama-3.1-405B on 16,384 H100s [2nd-llama-rate]."""

PUBLISHED = Line(
    notebook="--",
    title="What the report says its training took",
    value=2.788e6,
    unit="GPU-hours",
    formula="2,664K pre-training + 119K context extension + 5K post-training, at $2 an hour",
    source="TR table 1; the $2 are the report's assumption",
    kind="published",
    gpu_hours=2.788e6,
    dollars=5.576e6,
    leaves_out="earlier research, ablations, people, data, and the machines' purchase",
)


def gpu_hours(total_flops: float, rate: float = MEASURED_V3_TRAINING.achieved_causal) -> float:
    """Return GPU-hours for ``total_flops``, by default at V3's own rate (ISCA table 4)."""
    return total_flops / rate / 3600


def dense_exact_flops() -> float:
    """Return training FLOPs per token of V3's dense twin at S = 4096, causal attention counted."""
    twin = parameters.dense_twin(get_config("v3_671b"))
    return flops.training_flops_per_token(twin, SEQ_LEN, "causal")


@entry("00")
def line_00() -> Line:
    """Price a dense model of V3's size by the rule of thumb: the bill to be lowered."""
    n = parameters.total_parameters(get_config("v3_671b"))
    hours = gpu_hours(flops.six_nd(n, TOKENS), DENSE_BF16_RATE)
    return Line(
        notebook="00",
        title="A dense 671B model in BF16",
        value=hours,
        unit="GPU-hours",
        formula=f"6 x {n / 1e9:.3f}B parameters x 14.8T tokens / 400 TFLOPS / 3600 s",
        source=(
            "TR (tokens, $2 an hour); 400 TFLOPS, an MFU of 41 %, reached by Llama-3.1-405B in "
            "BF16 on 16,384 H100 (2nd)"
        ),
        kind="computed",
        gpu_hours=hours,
        dollars=hours * DOLLARS_PER_HOUR,
        leaves_out=(
            "that an H800's slower NVLink and a model of 671B would lower that rate: an assumption "
            "in this line's favour. Nobody has trained such a model"
        ),
    )


@entry("01")
def line_01() -> Line:
    """State what 14.8 trillion tokens are: ids, bytes on a disk, tokens per parameter."""
    cfg = get_config("v3_671b")
    bits = (cfg.vocab_size - 1).bit_length()
    packed = TOKENS * bits / 8 / 1e12
    per_parameter = TOKENS / parameters.total_parameters(cfg)
    return Line(
        notebook="01",
        title="Tokens the model was trained on",
        value=TOKENS,
        unit="tokens",
        formula=(
            f"{bits} bits name one of {cfg.vocab_size:,} tokens: {packed:.2f} TB of packed ids, "
            f"{TOKENS * 4 / 1e12:.1f} TB as 32-bit integers; "
            f"{per_parameter:.1f} tokens per parameter"
        ),
        source="TR (14.8T tokens); vocabulary from V3's configuration",
        kind="published",
        leaves_out="how many bytes of text that was: the report does not say",
    )


@entry("02")
def line_02() -> Line:
    """Count the dense model's FLOPs instead of estimating them, attention included."""
    n = parameters.total_parameters(get_config("v3_671b"))
    exact = dense_exact_flops()
    hours = gpu_hours(exact * TOKENS, DENSE_BF16_RATE)
    return Line(
        notebook="02",
        title="The same dense model, counted instead of 6ND",
        value=exact / 1e12,
        unit="TFLOP per token",
        formula=(
            f"6 x (matrix weights + attention 61 x 128 heads x 320 x 4096/2); "
            f"6N says {6 * n / 1e12:.3f}: it counts the embedding lookup and misses attention, "
            f"together {100 * (exact / (6 * n) - 1):+.2f} %"
        ),
        source="C, minids3.sim.flops; V3's attention with one dense feed-forward per layer",
        kind="computed",
        gpu_hours=hours,
        dollars=hours * DOLLARS_PER_HOUR,
        leaves_out="norms, softmax, the optimizer, recomputation, communication, restarts",
    )
