"""Notebook 12's entry: the hours of the training run, three ways.

TR table 1 states 2,664K H800-hours. ISCA table 4 has the seconds of a step, from which they follow
again, and the model FLOPs utilisation (MFU): the FLOPs that the model needs, divided by what the
GPUs could do in the same time.
"""

from __future__ import annotations

from minids3.config import get_config
from minids3.sim import flops
from minids3.sim.bill.ledger import Line, entry
from minids3.sim.bill.lines import DOLLARS_PER_HOUR, SEQ_LEN, TOKENS, gpu_hours
from minids3.sim.hardware import H800, MEASURED_V3_TRAINING

__all__ = [
    "FULL_BATCH",
    "GPUS",
    "SECONDS_PER_STEP",
    "TRAINING_HOURS",
    "hours_by_steps",
    "line_12",
    "mfu",
    "published_mfu",
    "tokens_per_second_per_gpu",
]

TRAINING_HOURS = 2.664e6  # TR table 1
GPUS = MEASURED_V3_TRAINING.count
FULL_BATCH = 15_360  # rows, TR section 4.2
SECONDS_PER_STEP = 19.926  # ISCA table 4


def mfu(tokens_per_second: float, flops_per_token: float, peak: float) -> float:
    """Model FLOPs utilisation: the FLOP/s that the model needs, as a share of the ``peak``.

    Raises ``ValueError`` unless all three are positive.
    """
    if min(tokens_per_second, flops_per_token, peak) <= 0:
        raise ValueError(
            f"rate {tokens_per_second}, FLOPs per token {flops_per_token} and peak {peak} "
            "must be greater than 0"
        )
    return tokens_per_second * flops_per_token / peak


def tokens_per_second_per_gpu() -> float:
    """Return what one GPU of the published run got through, over all of pre-training."""
    return TOKENS / (TRAINING_HOURS * 3600)


def published_mfu() -> float:
    """Return the MFU that the published hours imply, causal, MTP left out, of BF16's peak."""
    assert H800.bf16_flops is not None
    needed = flops.training_flops_per_token(get_config("v3_671b"), SEQ_LEN, "causal")
    return mfu(tokens_per_second_per_gpu(), needed, H800.bf16_flops)


def hours_by_steps() -> float:
    """Return the GPU-hours by the seconds of a full step: tokens at that rate, on all GPUs.

    The small batches of the beginning are taken to be as fast per token.
    """
    steps = TOKENS / (FULL_BATCH * SEQ_LEN)
    return steps * SECONDS_PER_STEP * GPUS / 3600


@entry("12")
def line_12() -> Line:
    """State the hours of pre-training, and two calculations that arrive at them."""
    needed = flops.training_flops_per_token(get_config("v3_671b"), SEQ_LEN, "causal")
    by_flops = gpu_hours(needed * TOKENS)
    return Line(
        notebook="12",
        title="Pre-training, as it was run",
        value=TRAINING_HOURS,
        unit="GPU-hours",
        formula=(
            f"published; by a step's {SECONDS_PER_STEP} s {hours_by_steps() / 1e3:,.0f}K, by "
            f"{needed / 1e9:.1f} GFLOP a token at 385 TFLOPS {by_flops / 1e3:,.0f}K; "
            f"{tokens_per_second_per_gpu():,.0f} tokens a second and GPU, an MFU of "
            f"{100 * published_mfu():.1f} %"
        ),
        source=(
            "TR table 1 (hours); ISCA table 4 (seconds of a step, 385 TFLOPS); C, minids3.sim; "
            "BF16 peak of 989.4 TFLOPS: MEM"
        ),
        kind="published",
        gpu_hours=TRAINING_HOURS,
        dollars=TRAINING_HOURS * DOLLARS_PER_HOUR,
        leaves_out=(
            "context extension (notebook 13) and post-training; earlier runs, ablations and "
            "failures; the MTP module, whose FLOPs the published MFU does not count either"
        ),
    )
