"""Notebook 05's entry: what waiting for the fullest expert would cost.

With expert parallelism the GPUs of a layer wait for the one whose experts got most tokens. If that
GPU's load is (1 + v) times the mean, the expert part of the time stretches by that factor. A GPU
that holds several experts is never fuller, relative to the mean, than its fullest expert, so MaxVio
of single experts bounds v from above.
"""

from __future__ import annotations

from minids3.config import get_config
from minids3.sim import flops, parameters
from minids3.sim.bill.ledger import Line, entry
from minids3.sim.bill.lines import (
    DOLLARS_PER_HOUR,
    PRETRAINING_HOURS,
    SEQ_LEN,
    TOKENS,
    gpu_hours,
)

__all__ = ["MAXVIO_LFB", "expert_gpu_hours", "imbalance_gpu_hours", "line_05"]

# MaxVio over a whole validation set, (auxiliary loss, bias) [LFB, main results].
MAXVIO_LFB: dict[str, tuple[float, float]] = {"1B": (0.72, 0.04), "3B": (0.52, 0.04)}


def expert_gpu_hours() -> tuple[float, float]:
    """Return (H800-hours, share of all) that go into the routed experts, by their FLOPs."""
    cfg = get_config("v3_671b")
    routed = next(p for p in parameters.components(cfg) if p.name == "routed expert")
    per_token = flops.training_flops_per_token(cfg, SEQ_LEN, "causal")
    share = 6 * routed.activated_total / per_token
    return share * gpu_hours(per_token * TOKENS), share


def imbalance_gpu_hours(violation: float) -> float:
    """Return the H800-hours that waiting for the fullest expert costs at MaxVio ``violation``.

    Raises:
        ValueError: a violation below 0, which no load has.
    """
    if violation < 0:
        raise ValueError(f"violation={violation} must be 0 or more: the largest is never below")
    return expert_gpu_hours()[0] * violation


@entry("05")
def line_05() -> Line:
    """Price the difference between the two ways of balancing, if the fullest expert sets the pace.

    The published run is the one with the bias; without it the difference comes on top.
    """
    hours, share = expert_gpu_hours()
    loss, bias = MAXVIO_LFB["1B"]
    saved = imbalance_gpu_hours(loss) - imbalance_gpu_hours(bias)
    return Line(
        notebook="05",
        title="Not waiting for the fullest expert: bias instead of auxiliary loss",
        value=saved,
        unit="GPU-hours",
        formula=(
            f"routed experts' {100 * share:.1f} % of the FLOPs = {hours / 1e6:.3f}M hours, "
            f"x (MaxVio {loss} - {bias})"
        ),
        source="LFB (MaxVio of 1B models, whole validation set); C, minids3.sim.flops",
        kind="computed",
        gpu_hours=PRETRAINING_HOURS,
        dollars=PRETRAINING_HOURS * DOLLARS_PER_HOUR,
        without_hours=PRETRAINING_HOURS + saved,
        leaves_out=(
            "that V3's own violation is not published and is in the achieved rate already; that a "
            "GPU with 4 experts is evener than its fullest expert; that single batches are less "
            "even than a whole validation set; waiting for messages; and the time of experts is "
            "taken to be in proportion to their FLOPs"
        ),
    )
