"""Notebook 13's entry: what it cost to go from 4,096 positions to 131,072.

Two stages of 1,000 steps each, 32,768 positions in batches of 1,920 and 131,072 in batches of 480
(TR section 4.3); 119K H800-hours (TR table 1).
"""

from __future__ import annotations

from minids3.config import get_config
from minids3.sim import flops
from minids3.sim.bill.ledger import Line, entry
from minids3.sim.bill.lines import DOLLARS_PER_HOUR, SEQ_LEN, gpu_hours

__all__ = [
    "EXTENSION_HOURS",
    "HOURS_PER_TRILLION",
    "STAGES",
    "extension_flops",
    "extension_tokens",
    "line_13",
]

STAGES: tuple[tuple[int, int, int], ...] = ((1000, 1920, 32_768), (1000, 480, 131_072))
"""Steps, rows of a batch, positions of a row (TR section 4.3)."""
EXTENSION_HOURS = 119e3  # TR table 1
HOURS_PER_TRILLION = 180e3  # of pre-training, TR section 1


def extension_tokens() -> int:
    """Return the tokens of both stages together."""
    return sum(steps * rows * length for steps, rows, length in STAGES)


def extension_flops() -> float:
    """Return the training FLOPs of both stages, causal attention counted, without MTP."""
    cfg = get_config("v3_671b")
    return sum(
        steps * rows * length * flops.training_flops_per_token(cfg, length, "causal")
        for steps, rows, length in STAGES
    )


@entry("13")
def line_13() -> Line:
    """State the hours of the extension, beside what its FLOPs would take at pre-training's rate.

    The line prices a part of the run, so ``gpu_hours`` stays empty.
    """
    tokens, total = extension_tokens(), extension_flops()
    plain = flops.training_flops_per_token(get_config("v3_671b"), SEQ_LEN, "causal")
    per_trillion = EXTENSION_HOURS / (tokens / 1e12)
    return Line(
        notebook="13",
        title="Context from 4,096 to 131,072 positions",
        value=EXTENSION_HOURS,
        unit="GPU-hours",
        formula=(
            f"two stages of 1,000 steps, {tokens / 1e9:.1f}B tokens: {per_trillion / 1e3:.0f}K "
            f"hours per trillion tokens, {per_trillion / HOURS_PER_TRILLION:.1f} times "
            f"pre-training's 180K. Longer attention makes a token {total / tokens / plain:.1f} "
            f"times as expensive: {gpu_hours(total) / 1e3:.0f}K hours at pre-training's 385 TFLOPS"
        ),
        source="TR table 1 (hours), section 4.3 (stages); C, minids3.sim.flops",
        kind="published",
        dollars=EXTENSION_HOURS * DOLLARS_PER_HOUR,
        leaves_out=(
            "why the rate was lower than in pre-training, which is not published; the MTP module; "
            "and whatever was tried before these two stages"
        ),
    )
