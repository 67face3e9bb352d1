"""Notebook 09's entry: seconds of one training step that the FP8 products need at the least.

A step is 15,360 sequences of 4,096 tokens on 2,048 GPUs (TR section 4.2), and took 19.926 s (ISCA
table 4). At the peak of the tensor cores, which no kernel reaches, the products of linear layers
(TR section 3.3.1) would take this much of it; in BF16 twice as much.
"""

from __future__ import annotations

from typing import Literal

from minids3.config import get_config
from minids3.sim import flops
from minids3.sim.bill.ledger import Line, entry
from minids3.sim.bill.lines import SEQ_LEN
from minids3.sim.bill.lines_08 import fp8_share
from minids3.sim.hardware import H800, MEASURED_V3_TRAINING

__all__ = ["STEP_SECONDS", "gemm_seconds", "line_09"]

STEP_SECONDS = 19.926  # ISCA table 4
STEP_SEQUENCES = 15360  # TR section 4.2


def gemm_seconds(precision: Literal["fp8", "bf16"], efficiency: float = 1.0) -> float:
    """Return a GPU's seconds per step for the products of linear layers, forward and backward.

    Args:
        precision: of the operands.
        efficiency: share of the tensor cores' peak that the kernels reach, above 0, at most 1.

    Raises:
        ValueError: an unknown precision, or an efficiency outside its range.
    """
    if not 0 < efficiency <= 1:
        raise ValueError(f"efficiency={efficiency} must be above 0 and at most 1")
    peaks = {"fp8": H800.fp8_flops, "bf16": H800.bf16_flops}
    if precision not in peaks:
        raise ValueError(f"precision={precision!r}; choose 'fp8' or 'bf16'")
    cfg = get_config("v3_671b")
    per_token = flops.training_flops_per_token(cfg, SEQ_LEN, "causal") * fp8_share(cfg)
    tokens = STEP_SEQUENCES * SEQ_LEN / MEASURED_V3_TRAINING.count
    peak = peaks[precision]
    assert peak is not None
    return per_token * tokens / (peak * efficiency)


@entry("09")
def line_09() -> Line:
    """State the least seconds of a step for the FP8 products; prices no run."""
    fp8, bf16 = gemm_seconds("fp8"), gemm_seconds("bf16")
    assert H800.fp8_flops is not None
    return Line(
        notebook="09",
        title="The FP8 products of one step, if the tensor cores were never idle",
        value=fp8,
        unit="s per step",
        formula=(
            f"FLOPs in FP8 of 30,720 tokens per GPU / {H800.fp8_flops / 1e12:,.0f} TFLOPS; in BF16 "
            f"{bf16:.2f} s; the whole step took {STEP_SECONDS} s"
        ),
        source="C, minids3.sim.flops; TR (batch); ISCA table 4 (step); peaks: datasheet, MEM",
        kind="computed",
        leaves_out=(
            "that kernels reach a part of the peak; quantising and transposing; attention, gate "
            "and head; waiting for messages and for the pipeline. A bound for one part of a step, "
            "so no GPU-hours"
        ),
    )
