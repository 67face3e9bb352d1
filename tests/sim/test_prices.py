"""The published day of serving, prices and GPU-hours against hand calculations."""

from pathlib import Path

import pytest

from minids3.sim import prices
from minids3.sim.prices import OI_DAY, PRICES, price_of
from minids3.sim.serving import V3_DECODE

PAGE = (Path(__file__).parents[2] / "notebooks/sources.md").read_text(encoding="utf-8")


def test_the_day_closes():
    assert OI_DAY.tokens_in == 608e9
    # Rates and tokens give the nodes back, to the rounding of the published figures.
    assert OI_DAY.prefill_nodes == pytest.approx(95.5, abs=0.05)
    assert OI_DAY.decode_nodes == pytest.approx(131.4, abs=0.05)
    assert OI_DAY.prefill_nodes + OI_DAY.decode_nodes == pytest.approx(226.75, rel=0.001)
    assert OI_DAY.dollars == 87_072  # published


def test_cost_per_million():
    # [C-token-cost]: a node costs $16 an hour, 265.3M tokens in or 53.3M out.
    assert OI_DAY.cost_in == pytest.approx(16 / (73.7e3 * 3600 / 1e6))
    assert [round(c, 3) for c in (OI_DAY.cost_in, OI_DAY.cost_miss, OI_DAY.cost_out)] == [
        0.060, 0.138, 0.300,
    ]  # fmt: skip
    paid = OI_DAY.cost_miss * OI_DAY.tokens_miss + OI_DAY.cost_out * OI_DAY.tokens_out
    assert paid / 1e6 == pytest.approx(OI_DAY.dollars, rel=0.001)
    # [2nd-sglang]: 22.3K tokens a second on 8 H100, "$0.20".
    assert prices.dollars_per_million(22.3e3, 16) == pytest.approx(0.20, abs=0.001)


def test_prices_on_that_day():
    article = price_of("article")
    by_hand = 342e3 * 0.014 + 266e3 * 0.14 + 168e3 * 0.28
    assert article.revenue(OI_DAY) == pytest.approx(by_hand)
    assert round(100 * OI_DAY.over_cost(article), 1) == 2.3
    assert article.output < OI_DAY.cost_out
    assert article.miss == pytest.approx(OI_DAY.cost_miss, abs=0.003)
    rest = {"v3": 280.6, "night": 140.3, "v3.1": 455.1, "v3.2": 154.6}
    assert {n: round(price_of(n).revenue(OI_DAY) / 1e3, 1) for n in rest} == rest
    assert round(100 * OI_DAY.over_cost(price_of("v3"))) == 222
    # [OI-margin]: all at R1's prices, $562,027 and 545 %, from tokens less rounded than ours.
    assert price_of("r1").revenue(OI_DAY) == pytest.approx(562_027, rel=2e-4)
    assert OI_DAY.over_cost(price_of("r1")) == pytest.approx(5.45, abs=0.01)


def test_gpu_hours():
    quoted = {
        q.dollars: round(prices.training_dollars(q.dollars) / 1e6, 2) for q in prices.GPU_HOURS
    }
    assert quoted == {1.70: 4.74, 2.00: 5.58, 2.35: 6.55, 2.95: 8.22, 8.00: 22.30}
    assert OI_DAY.break_even(price_of("article")) == pytest.approx(2.046, abs=5e-4)
    assert OI_DAY.at(2.046).over_cost(price_of("article")) == pytest.approx(0, abs=3e-4)
    assert OI_DAY.at(2.95).cost_out == pytest.approx(0.300 * 2.95 / 2, abs=0.001)


def test_history_is_in_order_and_has_its_sources():
    dates = [p.since for p in PRICES]
    assert dates == sorted(dates)
    assert len({p.name for p in PRICES}) == len(PRICES)
    assert all(0 < p.hit < p.miss < p.output for p in PRICES)
    named = [p.source for p in PRICES] + [q.source for q in prices.GPU_HOURS] + ["V32-costs"]
    for source in [*named, *OI_DAY.source.split(";")[:1]]:
        for entry in source.split(", "):
            assert f'<a id="{entry}"></a>' in PAGE, entry
    # Every row's figures stand in its entry.
    for price in PRICES:
        text = " ".join(
            line for e in price.source.split(", ") for line in PAGE.splitlines() if f'"{e}"' in line
        )
        assert all(f"{n:g}" in text for n in (price.hit, price.miss, price.output)), price.name
        assert price.verified == ("verified" in text), price.name


def test_cost_by_context_rises_and_meets_the_published_curve():
    contexts = [16_384, 32_768, 65_536, 131_072]
    plain = prices.decode_cost_by_context(V3_DECODE, contexts, 2.0)
    drafted = prices.decode_cost_by_context(V3_DECODE, contexts, 2.0, queries=2, accepted=1.85)
    assert plain == sorted(plain)
    # Below about 5,000 tokens the links decide, and context costs nothing.
    assert len(set(prices.decode_cost_by_context(V3_DECODE, [1024, 4096], 2.0))) == 1
    # [V32-costs]: read off as $2.15 at 128K. Without and with drafts we come out on either side.
    assert drafted[-1] < prices.COST_BY_CONTEXT["V3.1-Terminus"][131_072][1] < plain[-1]
    # The cache alone: 131,072 x 70,272 bytes for a token at 3.35 TB/s.
    alone = 131_072 * 70_272 / 3.35e12 * 2 / 3600 * 1e6
    assert alone == pytest.approx(1.53, abs=0.01)
    assert alone < plain[-1]
    assert prices.decode_cost_by_context(V3_DECODE, [16_384], 4.0) == [pytest.approx(2 * plain[0])]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prices.dollars_per_million(0, 2), "tokens_per_second=0 must be"),
        (
            lambda: prices.dollars_per_million(float("inf"), 2),
            "tokens_per_second=inf must be finite",
        ),
        (lambda: prices.dollars_per_million(1, -1), "dollars_per_hour=-1 finite and 0 or more"),
        (lambda: prices.training_dollars(0), "dollars_per_gpu_hour=0 and hours=2788000.0"),
        (lambda: OI_DAY.at(0), "dollars_per_gpu_hour=0 must be greater than 0"),
        (lambda: OI_DAY.at(float("nan")), "dollars_per_gpu_hour=nan must be finite"),
        (
            lambda: prices.decode_cost_by_context(V3_DECODE, [10**6], 2.0),
            "not one sequence of context=1000000 fits",
        ),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_unknown_prices_list_the_known():
    with pytest.raises(KeyError, match="no price 'v9'; known are article, v3, r1"):
        price_of("v9")
