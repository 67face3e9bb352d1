"""What a day of serving cost, per million tokens."""

from __future__ import annotations

import math

from minids3.course.compare import describe
from minids3.course.registry import Alternative, Mutant, exercise


# fmt: off
def serving_cost(hit, miss, out, rate_in, rate_out, gpus, dollars):
    """Nodes and dollars per million tokens of a service that is never idle.

    hit, miss, out: a day's tokens: input that was read from a cache, other
    input, output
    rate_in, rate_out: tokens a second that a node of prefill takes in (hits
    are counted there, too), and that a node of decoding puts out
    gpus: GPUs of a node; dollars: of an hour of one GPU
    returns five numbers: nodes of prefill, nodes of decoding; dollars per
    million tokens of input, of input that was not in the cache (all of
    prefill's cost shared by these), and of output
    """
    prefill = (hit + miss) / rate_in / 86_400
    decoding = out / rate_out / 86_400
    node_day = gpus * dollars * 24
    return (prefill, decoding,
            prefill * node_day / (hit + miss) * 1e6,
            prefill * node_day / miss * 1e6,
            decoding * node_day / out * 1e6)
# fmt: on


def _one_gpu(hit, miss, out, rate_in, rate_out, gpus, dollars):
    return serving_cost(hit, miss, out, rate_in, rate_out, 1, dollars)


def _hits_are_free(hit, miss, out, rate_in, rate_out, gpus, dollars):
    return serving_cost(0, miss, out, rate_in, rate_out, gpus, dollars)


def _miss_like_input(hit, miss, out, rate_in, rate_out, gpus, dollars):
    found = serving_cost(hit, miss, out, rate_in, rate_out, gpus, dollars)
    return (*found[:3], found[2], found[4])


def _miss_only_its_share(hit, miss, out, rate_in, rate_out, gpus, dollars):
    found = serving_cost(hit, miss, out, rate_in, rate_out, gpus, dollars)
    return (*found[:3], found[2] * miss / (hit + miss), found[4])


def _an_hour(hit, miss, out, rate_in, rate_out, gpus, dollars):
    found = serving_cost(hit, miss, out, rate_in, rate_out, gpus, dollars)
    return (found[0] * 24, found[1] * 24, *found[2:])


def _paid_an_hour(hit, miss, out, rate_in, rate_out, gpus, dollars):
    found = serving_cost(hit, miss, out, rate_in, rate_out, gpus, dollars)
    return (*found[:2], *(x / 24 for x in found[2:]))


def _per_token(hit, miss, out, rate_in, rate_out, gpus, dollars):
    found = serving_cost(hit, miss, out, rate_in, rate_out, gpus, dollars)
    return (*found[:2], *(x / 1e6 for x in found[2:]))


def _per_gpu_rates(hit, miss, out, rate_in, rate_out, gpus, dollars):
    found = serving_cost(hit, miss, out, rate_in * gpus, rate_out * gpus, gpus, dollars)
    return found


def _all_nodes_for_output(hit, miss, out, rate_in, rate_out, gpus, dollars):
    found = serving_cost(hit, miss, out, rate_in, rate_out, gpus, dollars)
    return (*found[:4], found[4] * (found[0] + found[1]) / found[1])


def _whole_nodes(hit, miss, out, rate_in, rate_out, gpus, dollars):
    found = serving_cost(hit, miss, out, rate_in, rate_out, gpus, dollars)
    return (int(found[0]) + 1, int(found[1]) + 1, *found[2:])


def _whole_nodes_paid(hit, miss, out, rate_in, rate_out, gpus, dollars):
    found = serving_cost(hit, miss, out, rate_in, rate_out, gpus, dollars)
    prefill, decoding = (math.ceil(x) for x in found[:2])
    more_in, more_out = prefill / found[0], decoding / found[1]
    return prefill, decoding, found[2] * more_in, found[3] * more_in, found[4] * more_out


def _swapped(hit, miss, out, rate_in, rate_out, gpus, dollars):
    return serving_cost(hit, miss, out, rate_out, rate_in, gpus, dollars)


def _from_rates(hit, miss, out, rate_in, rate_out, gpus, dollars):
    per_second = gpus * dollars / 3600
    million_in, million_out = (1e6 * per_second / r for r in (rate_in, rate_out))
    seconds = 24 * 60 * 60
    total = hit + miss
    nodes = [total / (rate_in * seconds), out / (rate_out * seconds)]
    return [*nodes, million_in, million_in * total / miss, million_out]


def _step_by_step(hit, miss, out, rate_in, rate_out, gpus, dollars):
    node_hours_in = (hit + miss) / (rate_in * 3600)
    node_hours_out = out / (rate_out * 3600)
    paid = [hours * gpus * dollars for hours in (node_hours_in, node_hours_out)]
    found = {
        "prefill": node_hours_in / 24,
        "decoding": node_hours_out / 24,
        "input": 1_000_000 * paid[0] / (hit + miss),
        "miss": 1_000_000 * paid[0] / miss,
        "output": 1_000_000 * paid[1] / out,
    }
    return tuple(found.values())


@exercise(
    "serve-price",
    solution=serving_cost,
    notebook="16_serving",
    title="From tokens a second to dollars a million",
    difficulty=2,
    importance=5,
    minutes=10,
    forbids=("minids3.sim.prices.*",),
    hints=(
        "A node takes in 50,000 tokens a second. How many in a day? A day's input is ten times "
        "that: how many nodes worked, and what did they cost? If two thirds of the tokens were in "
        "a cache, whose cost is it?",
        "nodes = tokens of the day / (tokens a second * seconds of a day)\n"
        "dollars of the day = nodes * gpus * dollars * 24\n"
        "per million = dollars / tokens * 1e6\n"
        "three times: prefill over all input, prefill over misses, decoding over output",
    ),
    mutants=[
        Mutant("one_gpu", _one_gpu, "A node has several GPUs, and each costs `dollars` an hour."),
        Mutant(
            "hits_are_free",
            _hits_are_free,
            "You left out the cached tokens. The rate counts them, too, so the nodes must: a rate "
            "and the tokens that it is applied to have to mean the same.",
        ),
        Mutant(
            "miss_like_input",
            _miss_like_input,
            "You gave a token that was not cached the price of a mean one. If hits cost nothing, "
            "the same dollars are shared by fewer tokens.",
        ),
        Mutant(
            "miss_only_its_share",
            _miss_only_its_share,
            "You made an uncached token cheaper than a mean one. It carries the cost of the cached "
            "ones as well, so it has to be more expensive.",
        ),
        Mutant(
            "an_hour",
            _an_hour,
            "You divided the day's tokens by those of an hour. The nodes had 24 hours for them.",
        ),
        Mutant(
            "paid_an_hour",
            _paid_an_hour,
            "You paid the nodes for one hour. They work all day, so `dollars` is due 24 times.",
        ),
        Mutant("per_token", _per_token, "These are dollars per token; per million is asked for."),
        Mutant(
            "per_gpu_rates",
            _per_gpu_rates,
            "You multiplied the rates by the GPUs of a node. They are a node's already.",
        ),
        Mutant(
            "all_nodes_for_output",
            _all_nodes_for_output,
            "You charged the output with all nodes. Prefill has nodes of its own, and is paid for "
            "by the input.",
        ),
        Mutant(
            "whole_nodes",
            _whole_nodes,
            "You rounded the nodes up. It is a mean over a day: leave the fraction.",
        ),
        Mutant(
            "whole_nodes_paid",
            _whole_nodes_paid,
            "You rounded the nodes up and priced the rounded ones. Fractions stay in both: a node "
            "that is not needed all day is not paid all day.",
        ),
        Mutant("swapped", _swapped, "The two rates are exchanged: input goes with rate_in."),
    ],
    alternatives=[
        Alternative("from_rates", _from_rates),
        Alternative("step_by_step", _step_by_step),
    ],
)
def check_serving_cost(c):
    """A random day, no hits, other prices; five numbers in whatever container."""
    day = _draw(c)
    got = c.call(*day)
    c.true(lambda: len(got) == 5, "five numbers for a day of random size",
           f"it returned {describe(got)}, expected five numbers")  # fmt: skip
    want = _counted(*day)
    names = ("nodes of prefill", "nodes of decoding", "dollars per million of input",
             "of uncached input", "of output")  # fmt: skip
    for g, w, name in zip(got, want, names, strict=True):
        with c.part():
            c.close(float(g), w, label=name, rtol=1e-6, atol=0)
    with c.part():
        day = (0.0, *_draw(c)[1:])
        got = c.call(*day)
        want = _counted(*day)
        c.close([float(x) for x in got], want, label="nothing cached: input costs what a miss does",
                rtol=1e-6, atol=0)  # fmt: skip
    with c.part():
        day = list(_draw(c))
        day[5], day[6] = day[5] - 2, day[6] * 1.25
        got = c.call(*day)
        c.close([float(x) for x in got], _counted(*day),
                label="other GPUs a node, another price of an hour", rtol=1e-6, atol=0)  # fmt: skip


def _draw(c):
    hit, miss, out = (1e9 * (n + c.rand(1).item()) for n in (c.size(150, 400), 200, 130))
    return hit, miss, out, 61e3 + c.size(0, 9999), 11e3 + c.size(0, 4999), c.choice((4, 8)), 2.0


def _counted(hit, miss, out, rate_in, rate_out, gpus, dollars):
    """Seconds of work of one node, then their price."""
    work_in, work_out = (hit + miss) / rate_in, out / rate_out
    second = dollars * gpus / 3600
    return [work_in / 86_400, work_out / 86_400, work_in * second / ((hit + miss) / 1e6),
            work_in * second / (miss / 1e6), work_out * second / (out / 1e6)]  # fmt: skip
