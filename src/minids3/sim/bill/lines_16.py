"""Notebook 16's entry: what a million tokens cost to serve, beside the article's price for them.

From the one day whose tokens, machines and rates were published [OI-day], at $2 a GPU-hour as in
the report's own table. It is about serving; the hours of the other lines are training's.
"""

from __future__ import annotations

from minids3.sim.bill.ledger import Line, entry
from minids3.sim.prices import OI_DAY, price_of

__all__ = ["line_16"]


@entry("16")
def line_16() -> Line:
    """State the cost of a million output tokens, and what the article's price makes of that day."""
    day, article = OI_DAY, price_of("article")
    nodes = day.prefill_nodes + day.decode_nodes
    return Line(
        notebook="16",
        title="Serving a million output tokens",
        value=day.cost_out,
        unit="dollars",
        formula=(
            f"{day.gpus_per_node} GPUs x ${day.dollars_per_gpu_hour:g} an hour / "
            f"{day.rate_out / 1e3:g}K tokens a second; a million of input costs "
            f"${day.cost_in:.3f}, ${day.cost_miss:.3f} if cached ones cost nothing. "
            f"The day's tokens need {nodes:.1f} nodes at the published rates, {day.nodes} are "
            f"published. At the article's ${article.miss:g} and ${article.output:g} they bring in "
            f"${article.revenue(day) / 1e3:.1f}K for ${day.dollars / 1e3:.1f}K, "
            f"{100 * day.over_cost(article):+.1f} %"
        ),
        source="OI-day, OI-speed; API-v25; C, minids3.sim.prices",
        kind="computed",
        leaves_out=(
            "that the day is two months younger than the article, and V3's and R1's together; "
            "tokens that nobody paid for; people, and GPUs that stand idle"
        ),
    )
