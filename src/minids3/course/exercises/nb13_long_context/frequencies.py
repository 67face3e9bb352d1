"""YaRN's frequencies: fast pairs stay, slow pairs are interpolated, a ramp between them."""

from __future__ import annotations

import math

import torch

from minids3.course.registry import Alternative, Mutant, exercise
from minids3.ref.rope import yarn_frequencies as library_frequencies


def yarn_frequencies(dim, theta, factor, original, beta_fast=32, beta_slow=1):
    """Radians per position of every pair under YaRN.

    dim: R, channels that rotate; theta: base of the plain frequencies
    factor: s, how many times longer texts become
    original: L, positions the model was trained on
    beta_fast, beta_slow: turns within L from which a pair is left alone,
    and at or below which it is slowed down s times
    returns a tensor, [R // 2] floats
    """

    def pair_with(n_turns):  # the pair, a fraction, that turns so often in L
        per_turn = original / (2 * math.pi * n_turns)
        return dim * math.log(per_turn) / (2 * math.log(theta))

    low = max(math.floor(pair_with(beta_fast)), 0)
    high = min(math.ceil(pair_with(beta_slow)), dim - 1)
    if low == high:
        high += 0.001  # a step
    j = torch.arange(dim // 2, dtype=torch.float64)
    ramp = ((j - low) / (high - low)).clamp(0, 1)
    plain = theta ** (-2 * j / dim)
    return plain * (1 - ramp) + plain / factor * ramp


def _ramp(dim, theta, original, beta_fast, beta_slow, floor=math.floor, ceil=math.ceil, top=None):
    def pair_with(n_turns):
        return dim * math.log(original / (2 * math.pi * n_turns)) / (2 * math.log(theta))

    low = max(floor(pair_with(beta_fast)), 0)
    high = min(ceil(pair_with(beta_slow)), dim - 1 if top is None else top)
    width = high - low or 0.001
    j = torch.arange(dim // 2, dtype=torch.float64)
    return ((j - low) / width).clamp(0, 1), theta ** (-2 * j / dim)


def _mix(ramp, plain, factor):
    return plain * (1 - ramp) + plain / factor * ramp


def _reversed(dim, theta, factor, original, beta_fast=32, beta_slow=1):
    ramp, plain = _ramp(dim, theta, original, beta_fast, beta_slow)
    return _mix(1 - ramp, plain, factor)


def _linear(dim, theta, factor, original, beta_fast=32, beta_slow=1):
    j = torch.arange(dim // 2, dtype=torch.float64)
    return theta ** (-2 * j / dim) / factor


def _wavelengths(dim, theta, factor, original, beta_fast=32, beta_slow=1):
    ramp, plain = _ramp(dim, theta, original, beta_fast, beta_slow)
    return plain / (1 - ramp + factor * ramp)


def _multiplied(dim, theta, factor, original, beta_fast=32, beta_slow=1):
    ramp, plain = _ramp(dim, theta, original, beta_fast, beta_slow)
    return _mix(ramp, plain, 1 / factor)


def _unrounded(dim, theta, factor, original, beta_fast=32, beta_slow=1):
    ramp, plain = _ramp(dim, theta, original, beta_fast, beta_slow, lambda x: x, lambda x: x)
    return _mix(ramp, plain, factor)


def _inwards(dim, theta, factor, original, beta_fast=32, beta_slow=1):
    ramp, plain = _ramp(dim, theta, original, beta_fast, beta_slow, math.ceil, math.floor)
    return _mix(ramp, plain, factor)


def _clamped_to_pairs(dim, theta, factor, original, beta_fast=32, beta_slow=1):
    ramp, plain = _ramp(dim, theta, original, beta_fast, beta_slow, top=dim // 2 - 1)
    return _mix(ramp, plain, factor)


def _new_length(dim, theta, factor, original, beta_fast=32, beta_slow=1):
    ramp, plain = _ramp(dim, theta, original * factor, beta_fast, beta_slow)
    return _mix(ramp, plain, factor)


def _radians_for_turns(dim, theta, factor, original, beta_fast=32, beta_slow=1):
    ramp, plain = _ramp(dim, theta, original * 2 * math.pi, beta_fast, beta_slow)
    return _mix(ramp, plain, factor)


def _channels_for_pairs(dim, theta, factor, original, beta_fast=32, beta_slow=1):
    def channel_with(n_turns):
        return dim * math.log(original / (2 * math.pi * n_turns)) / math.log(theta)

    low = max(math.floor(channel_with(beta_fast)), 0)
    high = min(math.ceil(channel_with(beta_slow)), dim - 1)
    j = torch.arange(dim // 2, dtype=torch.float64)
    ramp = ((j - low) / (high - low or 0.001)).clamp(0, 1)
    return _mix(ramp, theta ** (-2 * j / dim), factor)


def _betas_built_in(dim, theta, factor, original, beta_fast=32, beta_slow=1):
    return yarn_frequencies(dim, theta, factor, original)


def _betas_exchanged(dim, theta, factor, original, beta_fast=32, beta_slow=1):
    return yarn_frequencies(dim, theta, factor, original, beta_slow, beta_fast)


def _ntk(dim, theta, factor, original, beta_fast=32, beta_slow=1):
    j = torch.arange(dim // 2, dtype=torch.float64)
    return (theta * factor ** (dim / (dim - 2))) ** (-2 * j / dim)


def _no_lower_clamp(dim, theta, factor, original, beta_fast=32, beta_slow=1):
    def pair_with(n_turns):
        return dim * math.log(original / (2 * math.pi * n_turns)) / (2 * math.log(theta))

    low, high = math.floor(pair_with(beta_fast)), math.ceil(pair_with(beta_slow))
    high = min(high, dim - 1)
    j = torch.arange(dim // 2, dtype=torch.float64)
    ramp = ((j - low) / (high - low or 0.001)).clamp(0, 1)
    return _mix(ramp, theta ** (-2 * j / dim), factor)


def _no_upper_clamp(dim, theta, factor, original, beta_fast=32, beta_slow=1):
    ramp, plain = _ramp(dim, theta, original, beta_fast, beta_slow, top=math.inf)
    return _mix(ramp, plain, factor)


def _unclamped_ramp(dim, theta, factor, original, beta_fast=32, beta_slow=1):
    def pair_with(n_turns):
        return dim * math.log(original / (2 * math.pi * n_turns)) / (2 * math.log(theta))

    low = max(math.floor(pair_with(beta_fast)), 0)
    high = min(math.ceil(pair_with(beta_slow)), dim - 1)
    j = torch.arange(dim // 2, dtype=torch.float64)
    return _mix((j - low) / (high - low or 0.001), theta ** (-2 * j / dim), factor)


def _linear_in_turns(dim, theta, factor, original, beta_fast=32, beta_slow=1):
    plain = theta ** (-2 * torch.arange(dim // 2, dtype=torch.float64) / dim)
    n_turns = original * plain / (2 * math.pi)
    ramp = ((beta_fast - n_turns) / (beta_fast - beta_slow)).clamp(0, 1)
    return _mix(ramp, plain, factor)


def _both_floored(dim, theta, factor, original, beta_fast=32, beta_slow=1):
    ramp, plain = _ramp(dim, theta, original, beta_fast, beta_slow, ceil=math.floor)
    return _mix(ramp, plain, factor)


def _both_ceiled(dim, theta, factor, original, beta_fast=32, beta_slow=1):
    ramp, plain = _ramp(dim, theta, original, beta_fast, beta_slow, floor=math.ceil)
    return _mix(ramp, plain, factor)


def _theta_built_in(dim, theta, factor, original, beta_fast=32, beta_slow=1):
    return yarn_frequencies(dim, 10000.0, factor, original, beta_fast, beta_slow)


def _factor_built_in(dim, theta, factor, original, beta_fast=32, beta_slow=1):
    return yarn_frequencies(dim, theta, 40, original, beta_fast, beta_slow)


def _yarn_library(dim, theta, factor, original, beta_fast=32, beta_slow=1):
    return library_frequencies(dim, theta, factor, original, beta_fast, beta_slow)


def _yarn_loop(dim, theta, factor, original, beta_fast=32, beta_slow=1):
    found = []
    low = dim / 2 * math.log(original / math.tau / beta_fast, theta)
    high = dim / 2 * math.log(original / math.tau / beta_slow, theta)
    low, high = max(math.floor(low), 0), min(math.ceil(high), dim - 1)
    for j in range(dim // 2):
        frequency = 1 / theta ** (2 * j / dim)
        if j <= low:
            kept = 1.0
        elif j >= high:
            kept = 0.0
        else:
            kept = (high - j) / (high - low)
        found.append(kept * frequency + (1 - kept) * frequency / factor)
    return torch.tensor(found)


def _yarn_masked(dim, theta, factor, original, beta_fast=32, beta_slow=1):
    """As V3's own code: a mask that keeps, in float32."""
    frequencies = 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
    ends = []
    for beta, rounded in ((beta_fast, math.floor), (beta_slow, math.ceil)):
        where = dim * math.log(original / (beta * 2 * math.pi)) / (2 * math.log(theta))
        ends.append(rounded(where))
    low, high = max(ends[0], 0), min(ends[1], dim - 1)
    if low == high:
        high += 0.001
    linear = (torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)
    smooth = 1 - torch.clamp(linear, 0, 1)
    return frequencies / factor * (1 - smooth) + frequencies * smooth


@exercise(
    "yarn-frequencies",
    solution=yarn_frequencies,
    notebook="13_long_context",
    title="Slow down what never came round",
    difficulty=3,
    importance=5,
    minutes=15,
    library=_yarn_library,
    hints=(
        "Your `turns` decreases with j. At which j, a fraction, does a pair make exactly beta "
        "turns within L positions? Solve L * theta^(-2j/R) / (2 pi) = beta for j.",
        "j(beta) = R * ln(L / (2 pi beta)) / (2 ln theta)\n"
        "low  = floor(j(beta_fast)), not below 0\n"
        "high = ceil(j(beta_slow)), not above R - 1\n"
        "equal? then high += 0.001\n"
        "ramp = (j - low) / (high - low), cut to 0 .. 1    # 0: leave alone, 1: slow down\n"
        "f = theta ** (-2j / R)\n"
        "return f * (1 - ramp) + f / factor * ramp",
    ),
    mutants=[
        Mutant(
            "reversed",
            _reversed,
            "Your ramp runs the wrong way: you slowed the fast pairs down and left the slow ones. "
            "Fast pairs tell neighbours apart and have seen every angle: they stay.",
        ),
        Mutant(
            "linear",
            _linear,
            "You divided every pair by the factor. That is linear interpolation: it blurs the fast "
            "pairs too, which tell neighbours apart.",
        ),
        Mutant(
            "wavelengths",
            _wavelengths,
            "You blended wavelengths. YaRN blends frequencies: f * (1 - ramp) + f / s * ramp.",
        ),
        Mutant(
            "multiplied",
            _multiplied,
            "You multiplied by the factor. Longer texts need slower pairs: divide.",
        ),
        Mutant(
            "unrounded",
            _unrounded,
            "Your ramp has fractional ends. The published code rounds them outwards to whole "
            "pairs: floor for the fast end, ceil for the slow one.",
        ),
        Mutant(
            "inwards",
            _inwards,
            "You rounded the ends of the ramp inwards. Floor the fast end and ceil the slow one.",
        ),
        Mutant(
            "clamped_to_pairs",
            _clamped_to_pairs,
            "You stopped the ramp at the last pair, R/2 - 1. The published code lets it end at "
            "R - 1, beyond the last pair, so that a ramp may be cut off half-way.",
        ),
        Mutant(
            "new_length",
            _new_length,
            "You counted turns within the new length. What matters is what the model has seen: "
            "turns within the original length.",
        ),
        Mutant(
            "radians_for_turns",
            _radians_for_turns,
            "You took the betas for radians. They are full turns, 2 pi radians each.",
        ),
        Mutant(
            "channels_for_pairs",
            _channels_for_pairs,
            "The 2 in the denominator is missing, so your ramp counts channels. The exponent of "
            "pair j is 2j/R: solve for j.",
        ),
        Mutant(
            "betas_built_in",
            _betas_built_in,
            "You fixed the betas at 32 and 1. They are arguments, and a small model needs others.",
        ),
        Mutant(
            "betas_exchanged",
            _betas_exchanged,
            "You exchanged the betas. beta_fast is the larger number of turns and gives the low "
            "end of the ramp.",
        ),
        Mutant(
            "ntk",
            _ntk,
            "You raised theta. That is NTK scaling, another method: YaRN keeps theta and blends "
            "two sets of frequencies.",
        ),
        Mutant(
            "no_lower_clamp",
            _no_lower_clamp,
            "Your ramp may begin below pair 0, so that even the fastest pair is slowed down. Its "
            "low end is at least 0.",
        ),
        Mutant(
            "no_upper_clamp",
            _no_upper_clamp,
            "Your ramp may end beyond R - 1. The published code stops it there.",
        ),
        Mutant(
            "unclamped_ramp",
            _unclamped_ramp,
            "Your ramp goes on below 0 and above 1. Cut it, or fast pairs get faster and slow ones "
            "turn backwards.",
        ),
        Mutant(
            "linear_in_turns",
            _linear_in_turns,
            "Your ramp is linear in the number of turns, as in the paper. The released code's is "
            "linear in the pair's number.",
        ),
        Mutant(
            "both_floored",
            _both_floored,
            "You rounded both ends of the ramp down. Ceil the slow one.",
        ),
        Mutant(
            "both_ceiled",
            _both_ceiled,
            "You rounded both ends of the ramp up. Floor the fast one.",
        ),
        Mutant(
            "theta_built_in",
            _theta_built_in,
            "You fixed theta at 10,000. It is an argument: other models have other bases.",
        ),
        Mutant(
            "factor_built_in",
            _factor_built_in,
            "You fixed the factor at V3's 40. It is an argument, and our model has 10.",
        ),
    ],
    alternatives=[
        Alternative("loop", _yarn_loop),
        Alternative("masked", _yarn_masked),
    ],
)
def check_frequencies(c):
    """V3's ramp, a model of the reader's size, both clamps, equal ends, what must stay."""
    got = c.call(64, 10000.0, 40, 4096, label="runs on V3's values")
    c.shape(got, (32,), "one number a pair: it")
    plain = [10000.0 ** (-j / 32) for j in range(32)]
    with c.part():
        c.close(got[:11], torch.tensor(plain[:11]), label="V3: pairs 0 to 10 keep their frequency")
    with c.part():
        slow = torch.tensor(plain[23:]) / 40
        label = "V3: pairs 23 to 31 are 40 times slower"
        c.close(got[23:], slow, label=label, atol=0, rtol=1e-4)
    with c.part():
        label = "V3: on the ramp, pair 16 keeps 7/13 and gives 6/13 to the slow one"
        want = plain[16] * (7 / 13 + 6 / 13 / 40)
        c.close(got[16], torch.tensor(want), label=label, atol=0, rtol=1e-4)
    cases = {
        "another base, factor, length and other betas": (
            4 * c.size(7, 12), c.choice([500.0, 2000.0, 50_000.0]), c.choice([2.5, 6.5]),
            c.size(300, 900), c.choice([6, 8, 11]), c.choice([2, 3]),
        ),
        "a short text: the ramp begins no lower than pair 0": (
            32, 10000.0, c.choice([4, 8]), c.size(40, 90), 32, 1,
        ),
        "a long text: the ramp may end between the last pair and R - 1": (
            64, 10000.0, c.choice([4, 8]), c.size(65_000, 90_000), 32, 1,
        ),
        "a longer one: the ramp ends at R - 1 at the latest": (
            32, 100.0, c.choice([4, 8]), c.size(65_000, 90_000), 400, 1,
        ),
        "both ends at one pair: a step": (32, 10000.0, c.choice([3, 5]), 6, 2, 1),
    }  # fmt: skip
    for label, arguments in cases.items():
        with c.part():
            want = torch.tensor(_by_counting(*arguments), dtype=torch.float64)
            c.close(c.call(*arguments), want, label=label, rtol=1e-4, atol=1e-10)


def _by_counting(dim, theta, factor, original, beta_fast, beta_slow):
    """The same by counting turns at whole pairs instead of solving for a fraction."""

    def count(j):
        return original / (math.tau * theta ** (2 * j / dim))

    low = max((j for j in range(dim) if count(j) >= beta_fast), default=0)
    high = min((j for j in range(dim) if count(j) <= beta_slow), default=dim - 1)
    found = []
    for j in range(dim // 2):
        share = 0.0 if j <= low else 1.0 if j >= high else (j - low) / (high - low)
        found.append(theta ** (-2 * j / dim) * (1 - share + share / factor))
    return found
