"""The speed of the bias over a training run."""

from __future__ import annotations

import torch

from minids3.course.registry import Alternative, Mutant, exercise


# fmt: off
def bias_speed(tokens, total=14.8e12, last=0.5e12, speed=0.001):
    """Speed of the bias once `tokens` of `total` tokens have been seen.

    The speed is constant, and zero for the last `last` tokens.
    returns a number
    """
    return speed if tokens < total - last else 0.0
# fmt: on


def _speed_never_stops(tokens, total=14.8e12, last=0.5e12, speed=0.001):
    return speed


def _speed_reversed(tokens, total=14.8e12, last=0.5e12, speed=0.001):
    return 0.0 if tokens < total - last else speed


def _speed_first(tokens, total=14.8e12, last=0.5e12, speed=0.001):
    return speed if tokens < last else 0.0


def _speed_late(tokens, total=14.8e12, last=0.5e12, speed=0.001):
    return speed if tokens <= total - last else 0.0


def _speed_fades(tokens, total=14.8e12, last=0.5e12, speed=0.001):
    return speed * min(1.0, max(0.0, (total - tokens) / last))


def _speed_published_only(tokens, total=14.8e12, last=0.5e12, speed=0.001):
    return speed if tokens < 14.3e12 else 0.0


def _speed_fixed(tokens, total=14.8e12, last=0.5e12, speed=0.001):
    return 0.001 if tokens < total - last else 0.0


def _speed_product(tokens, total=14.8e12, last=0.5e12, speed=0.001):
    return speed * (total - tokens > last)


def _speed_branches(tokens, total=14.8e12, last=0.5e12, speed=0.001):
    left = total - tokens
    if left <= last:
        return 0.0
    return speed


@exercise(
    "balance-schedule",
    solution=bias_speed,
    notebook="05_load_balancing",
    title="Let go at the end",
    difficulty=1,
    importance=2,
    minutes=4,
    hints=(
        "How many tokens have been seen when the last part begins? Is that very moment still "
        "before it?",
        "stop = total - last\nif tokens is below stop: return speed\notherwise: return 0",
    ),
    mutants=[
        Mutant(
            "never_stops",
            _speed_never_stops,
            "The speed never drops to zero. In the last part the choice of experts should "
            "stand still.",
        ),
        Mutant(
            "reversed",
            _speed_reversed,
            "It is the wrong way round: zero first, then moving. The load is worst at the "
            "beginning.",
        ),
        Mutant(
            "first_stretch",
            _speed_first,
            "You stop after the first `last` tokens. The part without updates is at the end.",
        ),
        Mutant(
            "one_step_late",
            _speed_late,
            "At exactly total - last tokens the last part has begun: the speed is zero there "
            "already.",
        ),
        Mutant(
            "fades",
            _speed_fades,
            "You let the speed fade. The report switches it off at once: a constant, then 0.",
        ),
        Mutant(
            "published_only",
            _speed_published_only,
            "You wrote DeepSeek-V3's 14.3T into the function. Use total and last: this notebook's "
            "runs are a little shorter.",
        ),
        Mutant(
            "fixed_speed",
            _speed_fixed,
            "You returned 0.001 whatever speed was asked for. Use the argument.",
        ),
    ],
    alternatives=[
        Alternative("product", _speed_product),
        Alternative("branches", _speed_branches),
    ],
)
def check_schedule(c):
    """The published run, and a short one, at and around the switch."""
    start = c.call(0.0, label="runs with the published defaults")
    c.close(start, 0.001, label="at the start the speed is 0.001", rtol=1e-6, atol=0)
    with c.part():
        c.close(c.call(14.2e12), 0.001, label="at 14.2T tokens still", rtol=1e-6, atol=0)
        c.close(c.call(14.4e12), 0.0, label="at 14.4T tokens it is 0", rtol=0, atol=0)
    total, last = 64 * c.size(90, 110), 64 * c.size(5, 9)
    with c.part():
        speeds = [c.call(n, total, last, 0.02) for n in range(0, total, 64)]
        wanted = torch.tensor([0.02] * ((total - last) // 64) + [0.0] * (last // 64))
        c.close(torch.tensor(speeds), wanted, label="a short run with another speed, step by step")
    with c.part():
        label = "with no last part it never stops"
        c.close(c.call(total - 1, total, 0, 0.02), 0.02, label=label, rtol=1e-6, atol=0)
    with c.part():
        label = "7 of 10 tokens with a last part of 2.5: not yet"
        c.close(c.call(7, 10, 2.5, 0.02), 0.02, label=label, rtol=1e-6, atol=0)
    with c.part():
        label = "2 of 3 tokens with a last part of 1: the switch"
        c.close(c.call(2, 3, 1, 0.02), 0.0, label=label, rtol=0, atol=0)
    with c.part():
        label = "with all tokens seen it is 0"
        c.close(c.call(total, total, last, 0.02), 0.0, label=label, rtol=0, atol=0)
    with c.part():
        label = "with a last part as long as the run it never starts"
        c.close(c.call(0, total, total, 0.02), 0.0, label=label, rtol=0, atol=0)
