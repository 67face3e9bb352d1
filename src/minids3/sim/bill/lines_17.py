"""Notebook 17's entry: what one draft does to the price of decoding.

The roofline of ``sim.serving`` for the layout of February 2025: 144 GPUs, 4,989 cached tokens a
sequence [OI-serving] [OI-speed], at the report's $2 an hour.
"""

from __future__ import annotations

from minids3.sim.bill.ledger import DOLLARS_PER_HOUR, Line, entry
from minids3.sim.bill.lines_06 import ACCEPTANCE
from minids3.sim.prices import dollars_per_million
from minids3.sim.serving import V3_DECODE, decode_step

__all__ = ["CONTEXT", "decode_price", "line_17"]

CONTEXT = 4989
"""Cached tokens a sequence on that day, the mean over output tokens [OI-speed]."""


def decode_price(batch: float, acceptance: float | None = None) -> float:
    """Return dollars per million output tokens at ``batch`` sequences on each GPU, at best.

    With an ``acceptance``, one draft a step; what making it takes is left out.
    """
    queries, made = (1, 1.0) if acceptance is None else (2, 1 + acceptance)
    step = decode_step(V3_DECODE, batch, CONTEXT, queries, made)
    return dollars_per_million(step.tokens_per_second, DOLLARS_PER_HOUR)


@entry("17")
def line_17() -> Line:
    """Compare the price of a million tokens with one draft and without, few users and many."""
    low, p = 32, ACCEPTANCE[0]
    few, many = (decode_price(b) / decode_price(b, p) for b in (low, 128))
    return Line(
        notebook="17",
        title=f"Decoding with one draft, {low} sequences on each GPU",
        value=decode_price(low, p),
        unit="$ per million tokens",
        formula=(
            f"roofline of 144 H800s, {CONTEXT:,} cached tokens a sequence, p = {p:.0%}: "
            f"{decode_price(low):.3f} without, {few:.2f} times as much. With 128 sequences "
            f"{decode_price(128):.3f} without and {decode_price(128, p):.3f} with a draft: the "
            f"links are full, and rejected drafts travel, too ({many:.2f} times)"
        ),
        source="C, minids3.sim.serving; TR section 5.4.3 (85-90 %); OI (layout); MEM (peaks)",
        kind="computed",
        leaves_out=(
            "making the draft, which multiplies about 4 % of what the main model does; everything "
            "that keeps a service from its roofline; and whether that day's service used drafts, "
            "which is not published"
        ),
    )
