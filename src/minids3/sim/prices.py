"""What a million tokens cost to serve, and what DeepSeek asked for them, when.

The one service whose machines, tokens and rates were all published is a day of February 2025
[OI-day]: its figures close (``ServingDay``), and set the article's $0.14 and $0.28 beside a cost.
GPU-hours are priced at an assumed $2, as in the report's own table; ``GPU_HOURS`` has other quotes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from minids3.sim.serving import Deployment, decode_step, largest_batch

__all__ = [
    "COST_BY_CONTEXT",
    "GPU_HOURS",
    "OI_DAY",
    "PRICES",
    "TRAINING_HOURS",
    "GpuHour",
    "Price",
    "ServingDay",
    "decode_cost_by_context",
    "dollars_per_million",
    "price_of",
    "training_dollars",
]

TRAINING_HOURS = 2.788e6  # H800-hours, TR table 1


def dollars_per_million(tokens_per_second: float, dollars_per_hour: float) -> float:
    """Return the cost of a million tokens on what makes so many a second and costs so much an hour.

    Both for the same machines: a GPU, a node, or a service. ``ValueError`` unless the rate is
    greater than 0 and the price not negative.
    """
    if not 0 < tokens_per_second < math.inf or not 0 <= dollars_per_hour < math.inf:
        raise ValueError(
            f"tokens_per_second={tokens_per_second} must be finite and greater than 0, "
            f"and dollars_per_hour={dollars_per_hour} finite and 0 or more"
        )
    return dollars_per_hour / (tokens_per_second * 3600) * 1e6


@dataclass(frozen=True)
class Price:
    """Dollars per million tokens: read from a cache (``hit``), other input (``miss``), output.

    ``since`` is the day, and where known the hour, from which it held (UTC); "" is unknown.
    ``source`` names entries of notebooks/sources.md; ``verified`` is false for second-hand ones.
    """

    name: str
    model: str
    since: str
    hit: float
    miss: float
    output: float
    source: str
    verified: bool
    note: str = ""

    def revenue(self, day: ServingDay) -> float:
        """Return what the tokens of a day bring in at this price, if every one is paid for."""
        tokens = (day.tokens_hit, day.tokens_miss, day.tokens_out)
        return sum(
            n / 1e6 * p for n, p in zip(tokens, (self.hit, self.miss, self.output), strict=True)
        )


PRICES: tuple[Price, ...] = (
    Price(
        "article", "V2.5; V3 until 8 February 2025, 16:00", "", 0.014, 0.14, 0.28,
        "API-v25, 2nd-promotion", True, "the article's price: V2.5's, kept for V3 as a promotion",
    ),
    Price("v3", "V3", "2025-02-08 16:00", 0.07, 0.27, 1.10, "API-2025-02", True),
    Price("r1", "R1", "2025-02-08 16:00", 0.14, 0.55, 2.19, "API-2025-02", True),
    Price(
        "night", "V3 and R1, 16:30 to 00:30", "2025-02-26", 0.035, 0.135, 0.55,
        "API-2025-night", True, "half of V3's price, and R1's the same",
    ),
    Price(
        "v3.1", "V3.1", "2025-09-05 16:00", 0.07, 0.56, 1.68,
        "API-2025-09", True, "the night's discount ended",
    ),
    Price("v3.2", "V3.2-Exp, V3.2", "2025-09-29", 0.028, 0.28, 0.42, "2nd-2025-09", False),
    Price(
        "v4-flash", "V4-Flash (284B, 13B activated)", "2026-04-26", 0.0028, 0.14, 0.28,
        "API-2026, API-2026-08", True, "at its launch two days before, hits were 0.028 (2nd)",
    ),
    Price(
        "v4-flash-off-peak", "V4-Flash, off-peak", "2026-08-16 16:00", 0.007, 0.22, 0.66,
        "API-2026-08", True, "twice that at peak hours",
    ),
    Price(
        "v4.1-flash", "V4.1-Flash, off-peak", "2026-09-10", 0.003, 0.15, 0.60,
        "API-2026", True, "twice that at peak hours; date second-hand",
    ),
    Price(
        "v4-pro", "V4-Pro, off-peak", "2026-09-10", 0.022, 0.66, 1.98,
        "API-2026-08", True, "twice that at peak hours; date second-hand",
    ),
)  # fmt: skip


def price_of(name: str) -> Price:
    """Return the row of ``PRICES`` called ``name``; ``KeyError`` lists the known ones."""
    for price in PRICES:
        if price.name == name:
            return price
    raise KeyError(f"no price {name!r}; known are {', '.join(p.name for p in PRICES)}")


@dataclass(frozen=True)
class ServingDay:
    """Tokens, machines and rates of 24 hours of a service. Rates are tokens a second and node.

    Raises ``ValueError`` for a figure that is not finite and greater than 0; hits may be none.
    """

    tokens_hit: float
    tokens_miss: float
    tokens_out: float
    nodes: float
    rate_in: float
    rate_out: float
    cached_tokens_per_output: float
    gpus_per_node: int
    dollars_per_gpu_hour: float
    source: str

    def __post_init__(self) -> None:
        """Check the figures."""
        for name, value in vars(self).items():
            if name != "source" and not 0 <= value < math.inf:
                raise ValueError(f"{name}={value} must be finite and 0 or more")
            if value == 0 and name != "tokens_hit":
                raise ValueError(f"{name}={value} must be greater than 0")

    @property
    def tokens_in(self) -> float:
        """All input, read from a cache or not."""
        return self.tokens_hit + self.tokens_miss

    @property
    def prefill_nodes(self) -> float:
        """Nodes that the day's input needs at ``rate_in``, cached tokens included in both."""
        return self.tokens_in / self.rate_in / 86_400

    @property
    def decode_nodes(self) -> float:
        """Nodes that the day's output needs at ``rate_out``."""
        return self.tokens_out / self.rate_out / 86_400

    @property
    def dollars(self) -> float:
        """What the nodes cost in 24 hours."""
        return self.nodes * self.gpus_per_node * 24 * self.dollars_per_gpu_hour

    @property
    def cost_in(self) -> float:
        """Dollars per million input tokens, cached ones included."""
        return dollars_per_million(self.rate_in, self._node_hour)

    @property
    def cost_miss(self) -> float:
        """Dollars per million input tokens that were not cached, if a cached one costs nothing."""
        return self.cost_in * self.tokens_in / self.tokens_miss

    @property
    def cost_out(self) -> float:
        """Dollars per million output tokens."""
        return dollars_per_million(self.rate_out, self._node_hour)

    @property
    def _node_hour(self) -> float:
        return self.gpus_per_node * self.dollars_per_gpu_hour

    def over_cost(self, price: Price) -> float:
        """Return the revenue at a price over the cost, less 1: 0 is break-even, 5.45 is 545 %."""
        return price.revenue(self) / self.dollars - 1

    def break_even(self, price: Price) -> float:
        """Return the dollars per GPU-hour at which a price just pays for the machines."""
        return price.revenue(self) / (self.nodes * self.gpus_per_node * 24)

    def at(self, dollars_per_gpu_hour: float) -> ServingDay:
        """Return the same day at another price of a GPU-hour; ``ValueError`` if it is not > 0."""
        return replace(self, dollars_per_gpu_hour=dollars_per_gpu_hour)


OI_DAY = ServingDay(
    tokens_hit=342e9,
    tokens_miss=266e9,
    tokens_out=168e9,
    nodes=226.75,
    rate_in=73.7e3,
    rate_out=14.8e3,
    cached_tokens_per_output=4989,
    gpus_per_node=8,
    dollars_per_gpu_hour=2.0,
    source="OI-day, OI-speed; V3 and R1 together, on H800s",
)


@dataclass(frozen=True)
class GpuHour:
    """Dollars of a GPU-hour: whose, when, and where it is from (all but the first second-hand)."""

    dollars: float
    what: str
    when: str
    source: str


GPU_HOURS: tuple[GpuHour, ...] = (
    GpuHour(2.00, "H800, the report's assumption", "December 2024", "TR-t1-dollars"),
    GpuHour(1.70, "H100, contract for a year, the lowest", "October 2025", "2nd-gpu-hour"),
    GpuHour(2.35, "H100, contract for a year", "March 2026", "2nd-gpu-hours"),
    GpuHour(2.95, "H100, median of clouds", "May 2026", "2nd-gpu-hour"),
    GpuHour(8.00, "H100, in the scarcity", "2023", "2nd-gpu-hours"),
)


def training_dollars(dollars_per_gpu_hour: float, hours: float = TRAINING_HOURS) -> float:
    """Return the published training's price at another rate; ``ValueError`` if one is not > 0."""
    if not 0 < dollars_per_gpu_hour < math.inf or not 0 < hours < math.inf:
        raise ValueError(
            f"dollars_per_gpu_hour={dollars_per_gpu_hour} and hours={hours} must be finite and "
            "greater than 0"
        )
    return dollars_per_gpu_hour * hours


COST_BY_CONTEXT: dict[str, dict[int, tuple[float, float]]] = {
    "V3.1-Terminus": {0: (0.05, 0.07), 131_072: (0.66, 2.15)},
    "V3.2-Exp": {131_072: (0.18, 0.25)},
}
"""Dollars per million tokens (prefill, decoding) by the token's position, at $2 a GPU-hour: read
off the curves of V3.2's paper by eye, good to a few cents [V32-costs]."""


def decode_cost_by_context(
    where: Deployment,
    contexts: Sequence[int],
    dollars_per_gpu_hour: float,
    queries: int = 1,
    accepted: float | None = None,
) -> list[float]:
    """Return the least dollars per million tokens at each context: the price needs to name one.

    By the roofline, with as many sequences as fit in memory, in one piece or two micro-batches,
    whichever is faster; ``queries`` and ``accepted`` as for ``decode_step``. A longer context costs
    in two ways: it takes longer to read, and fewer sequences share a read of the weights.
    Raises ``ValueError`` for a context of which not one fits.
    """
    costs = []
    for context in contexts:
        batch = largest_batch(where, context)
        if not batch:
            raise ValueError(f"not one sequence of context={context} fits; use more GPUs")
        rate = max(
            decode_step(
                replace(where, micro_batches=pieces), batch, context, queries, accepted
            ).tokens_per_second
            for pieces in (1, 2)
        )
        costs.append(dollars_per_million(rate, dollars_per_gpu_hour))
    return costs
