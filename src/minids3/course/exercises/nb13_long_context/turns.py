"""How often every pair of channels turns within a text."""

from __future__ import annotations

import math

import torch

from minids3.course.registry import Alternative, Mutant, exercise
from minids3.ref.rope import rope_frequencies


def turns(length, dim, theta=10000.0):
    """Full turns that every pair of channels makes over a text.

    length: positions of the text; dim: R, how many channels rotate (even)
    theta: base of the frequencies; pair j turns by theta^(-2j/R) radians
    from one position to the next
    returns a tensor, [R // 2] floats, the fastest pair first
    """
    j = torch.arange(dim // 2, dtype=torch.float64)
    return length * theta ** (-2 * j / dim) / (2 * math.pi)


def _radians(length, dim, theta=10000.0):
    return turns(length, dim, theta) * 2 * math.pi


def _degrees(length, dim, theta=10000.0):
    return turns(length, dim, theta) * 360


def _exponent_halved(length, dim, theta=10000.0):
    j = torch.arange(dim // 2, dtype=torch.float64)
    return length * theta ** (-j / dim) / (2 * math.pi)


def _all_channels(length, dim, theta=10000.0):
    j = torch.arange(dim, dtype=torch.float64)
    return length * theta ** (-2 * j / dim) / (2 * math.pi)


def _wavelength(length, dim, theta=10000.0):
    return 1 / turns(1, dim, theta)


def _upwards(length, dim, theta=10000.0):
    return turns(length, dim, theta).flip(0)


def _sign(length, dim, theta=10000.0):
    j = torch.arange(dim // 2, dtype=torch.float64)
    return length * theta ** (2 * j / dim) / (2 * math.pi)


def _theta_built_in(length, dim, theta=10000.0):
    return turns(length, dim)


def _whole(length, dim, theta=10000.0):
    return turns(length, dim, theta).floor()


def _half_base(length, dim, theta=10000.0):
    j = torch.arange(dim // 2, dtype=torch.float64)
    return length * theta ** (-2 * j / (dim // 2)) / (2 * math.pi)


def _half_turns(length, dim, theta=10000.0):
    return 2 * turns(length, dim, theta)


def _radians_over_degrees(length, dim, theta=10000.0):
    return turns(length, dim, theta) * 2 * math.pi / 360


def _steps_between(length, dim, theta=10000.0):
    return turns(length - 1, dim, theta)


def _turns_loop(length, dim, theta=10000.0):
    found = []
    for j in range(dim // 2):
        wavelength = 2 * math.pi * theta ** (2 * j / dim)
        found.append(length / wavelength)
    return torch.tensor(found, dtype=torch.float64)


def _turns_float32(length, dim, theta=10000.0):
    frequencies = 1.0 / (theta ** (torch.arange(0, dim, 2).float() / dim))
    return frequencies * length / (2 * math.pi)


def _turns_library(length, dim, theta=10000.0):
    return length * rope_frequencies(dim, theta) / (2 * math.pi)


@exercise(
    "rope-turns",
    solution=turns,
    notebook="13_long_context",
    title="Which angles has the model seen?",
    difficulty=1,
    importance=4,
    minutes=5,
    library=_turns_library,
    hints=(
        "By how many radians does pair j turn from one position to the next, and how many "
        "radians is one full turn?",
        "j = 0, 1, ... R/2 - 1\n"
        "per position: theta ** (-2j / R) radians\n"
        "turns = length * that / (2 pi)",
    ),
    mutants=[
        Mutant(
            "radians",
            _radians,
            "These are radians. A full turn is 2 pi of them: divide.",
        ),
        Mutant("degrees", _degrees, "These are degrees. Count full turns."),
        Mutant(
            "exponent_halved",
            _exponent_halved,
            "Your exponent is -j/R. Pair j has -2j/R, so that the last pair comes close to "
            "1/theta.",
        ),
        Mutant(
            "all_channels",
            _all_channels,
            "You counted channels. Two channels make a pair, and pairs turn: there are R/2.",
        ),
        Mutant(
            "wavelength",
            _wavelength,
            "That is how many positions one turn takes. Asked for is the inverse, how many turns a "
            "text of this length makes.",
        ),
        Mutant("upwards", _upwards, "Your order is slowest first. Pair 0 is the fastest."),
        Mutant(
            "sign",
            _sign,
            "The sign of your exponent is wrong: later pairs turn more slowly, not faster.",
        ),
        Mutant(
            "theta_built_in",
            _theta_built_in,
            "You fixed theta at 10,000. It is an argument: other models have other bases.",
        ),
        Mutant(
            "whole",
            _whole,
            "You rounded to whole turns. A fraction of a turn is what matters here: it says that a "
            "pair never comes round.",
        ),
        Mutant(
            "half_base",
            _half_base,
            "You divided 2j by the number of pairs. The exponent is -2j/R, with R the number of "
            "channels.",
        ),
        Mutant(
            "half_turns",
            _half_turns,
            "You counted half turns of pi radians each. A full turn has 2 pi.",
        ),
        Mutant(
            "radians_over_degrees",
            _radians_over_degrees,
            "You divided radians by 360. That is a full turn in degrees; in radians it is 2 pi.",
        ),
        Mutant(
            "steps_between",
            _steps_between,
            "You multiplied by length - 1. Asked for are the turns over length positions.",
        ),
    ],
    alternatives=[
        Alternative("loop", _turns_loop),
        Alternative("float32", _turns_float32),
    ],
)
def check_turns(c):
    """One pair by hand, V3's sizes, other bases, twice the length."""
    got = c.call(4096, 64, label="runs on V3's rotary channels and 4,096 positions")
    c.shape(got, (32,), "one number a pair: it")
    with c.part():
        label = "the fastest pair turns by 1 radian a position: 4096 / 2 pi = 651.9 turns"
        c.close(got[0], torch.tensor(651.8986), label=label, rtol=1e-4)
    with c.part():
        label = "pair 16 turns by 1/100 radian a position: 6.519 turns"
        c.close(got[16], torch.tensor(6.518986), label=label, rtol=1e-4)
    length, dim = c.size(200, 900), 2 * c.size(5, 11)
    theta = c.choice([500.0, 50_000.0, 1e6])
    with c.part():
        step = theta ** (-2 / dim)  # from a pair to the next
        expected, now = [], length / math.tau
        for _ in range(dim // 2):
            expected.append(now)
            now *= step
        label = "another base, length and width"
        c.close(c.call(length, dim, theta), torch.tensor(expected), label=label, rtol=1e-3)
    with c.part():
        one, two = c.call(length, dim, theta), c.call(2 * length, dim, theta)
        c.close(two, 2 * one, label="twice the text, twice the turns", rtol=1e-3)
    with c.part():
        label = "two channels are one pair"
        c.close(c.call(100, 2), torch.tensor([100 / math.tau]), label=label, rtol=1e-3)
