"""Notebook 10's entry: how much of the training is done in FP8, and what that can save at most.

FP8 products run at twice the rate of BF16 ones. The products that stay (embedding has none; head,
gate, attention core) set Amdahl's limit, before anything else that a step does.
"""

from __future__ import annotations

from minids3.config import get_config
from minids3.sim.bill import lines_08
from minids3.sim.bill.ledger import Line, entry
from minids3.sim.bill.lines import DOLLARS_PER_HOUR, PRETRAINING_HOURS

__all__ = ["PRETRAINING_HOURS", "fp8_share", "line_10", "most_saved_hours", "speedup"]


def fp8_share() -> float:
    """Return the share of V3's training FLOPs that are products of FP8 operands (S = 4096)."""
    return lines_08.fp8_share(get_config("v3_671b"))


def speedup(share: float, rate: float = 2.0) -> float:
    """Return Amdahl's limit; arguments and errors as ``lines_08.speed_limit``."""
    return lines_08.speed_limit(share, rate)


def most_saved_hours() -> float:
    """Return the hours that a BF16 run would take longer if every FLOP took its time."""
    return PRETRAINING_HOURS * (speedup(fp8_share()) - 1)


@entry("10")
def line_10() -> Line:
    """Bound what FP8 can have saved in GPU time, by the peaks of a data sheet."""
    share, hours = fp8_share(), most_saved_hours()
    return Line(
        notebook="10",
        title="FP8 instead of BF16 in all linear layers, by the data sheet",
        value=hours,
        unit="GPU-hours",
        formula=(
            f"{100 * share:.1f} % of the FLOPs at twice the rate: at most {speedup(share):.2f} "
            f"times as fast; 2,664K hours x ({speedup(share):.2f} - 1)"
        ),
        source="TR table 1 (hours), section 3.3 (what is FP8); C, minids3.sim.flops",
        kind="computed",
        gpu_hours=PRETRAINING_HOURS,
        dollars=PRETRAINING_HOURS * DOLLARS_PER_HOUR,
        without_hours=PRETRAINING_HOURS + hours,
        leaves_out=(
            "everything that makes it less: kernels below the data sheet's factor of two "
            "(notebook 10 puts measured rates in), waiting for messages and pipeline bubbles, the "
            "time to quantise, layers too small to reach the peak. The run achieved 19.5 % of the "
            "FP8 peak, so products were not all of its time. Also left out is what makes FP8 worth "
            "more: activations of half the bytes, and dispatch with half the traffic"
        ),
    )
