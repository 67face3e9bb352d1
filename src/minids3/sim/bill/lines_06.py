"""Notebook 06: what multi-token prediction buys in decoding, and what it costs in training.

Acceptance of the second token 85 to 90 % and 1.8 times the tokens per second: TR section 5.4.3.
"""

from __future__ import annotations

from minids3.config import get_config
from minids3.sim import flops
from minids3.sim.bill.ledger import Line, entry
from minids3.sim.bill.lines import SEQ_LEN

__all__ = ["ACCEPTANCE", "line_06"]

ACCEPTANCE = (0.85, 0.90)
"""Published range of the second token's acceptance (TR section 5.4.3)."""


@entry("06")
def line_06() -> Line:
    """Count the tokens of a decoding step with one draft, and the training FLOPs of its module."""
    low, high = (1 + p for p in ACCEPTANCE)
    cfg = get_config("v3_671b")
    plain = flops.training_flops_per_token(cfg, SEQ_LEN, "causal") / 1e9
    whole = flops.training_flops_per_token(cfg, SEQ_LEN, "causal", mtp=True) / 1e9
    return Line(
        notebook="06",
        title="Tokens per decoding step with one MTP module",
        value=low,
        unit="tokens per step",
        formula=(
            f"1 + p, from {low:.2f} at p = {ACCEPTANCE[0]:.0%} to {high:.2f} at "
            f"{ACCEPTANCE[1]:.0%}; in training {whole:.1f} instead of {plain:.1f} GFLOP per token, "
            f"{100 * (whole / plain - 1):+.1f} %"
        ),
        source="TR (85-90 % accepted, 1.8 times the tokens per second); C, minids3.sim.flops",
        kind="computed",
        leaves_out=(
            "the time of the module and of checking two tokens at once, so a step is not 1.85 "
            "times as fast. No GPU-hours: the rate of ISCA table 4 leaves MTP's FLOPs out and its "
            "time in, so the hours of a run at that rate already contain it"
        ),
    )
