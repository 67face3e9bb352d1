"""A value that changes over tokens."""

from __future__ import annotations

import bisect
import itertools
import math

from minids3.course.registry import Alternative, Mutant, exercise
from minids3.train.schedule import Schedule


# fmt: off
def value_at(tokens, phases, start=0.0):
    """The value of a schedule once `tokens` tokens have been seen.

    phases: list of (end, value, shape), ends in tokens, growing. A phase
      begins where the one before it ends (the first: at 0), and its own end
      belongs to the next. "constant": `value` all along. "linear" and
      "cosine": from the value before it (the first: `start`) to `value`,
      straight or along half a cosine wave.
    returns a number; after the last end it stays at the last value
    """
    begin, before = 0.0, start
    for end, value, shape in phases:
        if tokens < end:
            if shape == "constant":
                return value
            part = (tokens - begin) / (end - begin)
            if shape == "cosine":
                part = (1 - math.cos(math.pi * part)) / 2
            return before + (value - before) * part
        begin, before = end, value
    return before
# fmt: on


def _walk(tokens, phases, start, ramp, inside=lambda tokens, end: tokens < end):
    """The solution with another ramp(tokens, begin, end, before, value, shape)."""
    begin, before = 0.0, start
    for end, value, shape in phases:
        if inside(tokens, end):
            return ramp(tokens, begin, end, before, value, shape)
        begin, before = end, value
    return before


def _bend(part, shape):
    return (1 - math.cos(math.pi * part)) / 2 if shape == "cosine" else part


def _right(tokens, begin, end, before, value, shape):
    if shape == "constant":
        return value
    return before + (value - before) * _bend((tokens - begin) / (end - begin), shape)


def _ends_are_lengths(tokens, phases, start=0.0):
    total, longer = 0.0, []
    for end, value, shape in phases:
        total += end
        longer.append((total, value, shape))
    return value_at(tokens, longer, start)


def _from_zero_tokens(tokens, phases, start=0.0):
    def ramp(tokens, begin, end, before, value, shape):
        if shape == "constant":
            return value
        return before + (value - before) * _bend(tokens / end, shape)

    return _walk(tokens, phases, start, ramp)


def _always_from_start(tokens, phases, start=0.0):
    def ramp(tokens, begin, end, before, value, shape):
        return _right(tokens, begin, end, start, value, shape)

    return _walk(tokens, phases, start, ramp)


def _cosine_reversed(tokens, phases, start=0.0):
    def ramp(tokens, begin, end, before, value, shape):
        if shape == "cosine":
            part = (1 + math.cos(math.pi * (tokens - begin) / (end - begin))) / 2
            return before + (value - before) * part
        return _right(tokens, begin, end, before, value, shape)

    return _walk(tokens, phases, start, ramp)


def _quarter_wave(tokens, phases, start=0.0):
    def ramp(tokens, begin, end, before, value, shape):
        if shape == "cosine":
            part = 1 - math.cos(math.pi / 2 * (tokens - begin) / (end - begin))
            return before + (value - before) * part
        return _right(tokens, begin, end, before, value, shape)

    return _walk(tokens, phases, start, ramp)


def _straight_cosine(tokens, phases, start=0.0):
    straight = [(e, v, "linear" if s == "cosine" else s) for e, v, s in phases]
    return value_at(tokens, straight, start)


def _end_included(tokens, phases, start=0.0):
    return _walk(tokens, phases, start, _right, lambda tokens, end: tokens <= end)


def _constant_late(tokens, phases, start=0.0):
    def ramp(tokens, begin, end, before, value, shape):
        return before if shape == "constant" else _right(tokens, begin, end, before, value, shape)

    return _walk(tokens, phases, start, ramp)


def _ignores_start(tokens, phases, start=0.0):
    return value_at(tokens, phases, 0.0)


def _zero_after_the_end(tokens, phases, start=0.0):
    return value_at(tokens, phases, start) if tokens < phases[-1][0] else 0.0


def _bisected(tokens, phases, start=0.0):
    ends = [0.0] + [p[0] for p in phases]
    values = [start] + [p[1] for p in phases]
    i = bisect.bisect_right(ends, tokens) - 1
    if i == len(phases):
        return values[-1]
    shape = phases[i][2]
    if shape == "constant":
        return values[i + 1]
    part = (tokens - ends[i]) / (ends[i + 1] - ends[i])
    weight = math.sin(math.pi * part / 2) ** 2 if shape == "cosine" else part
    return (1 - weight) * values[i] + weight * values[i + 1]


def _backwards(tokens, phases, start=0.0):
    for i in reversed(range(len(phases))):
        begin, before = phases[i - 1][:2] if i else (0.0, start)
        end, value, shape = phases[i]
        if tokens >= end:
            return value
        if tokens >= begin:
            return _right(tokens, begin, end, before, value, shape)
    return start


def _library(tokens, phases, start=0.0):
    return Schedule(tuple(phases), start)(tokens)


V3_RATE = (  # TR section 4.2; the ramp of 2,000 steps is shortened to a round number of tokens
    (25e9, 2.2e-4, "linear"),
    (10e12, 2.2e-4, "constant"),
    (14.3e12, 2.2e-5, "cosine"),
    (14.633e12, 2.2e-5, "constant"),
    (14.8e12, 7.3e-6, "constant"),
)


@exercise(
    "run-schedule",
    solution=value_at,
    notebook="12_training_run",
    title="Four schedules, one function",
    difficulty=2,
    importance=4,
    minutes=12,
    library=_library,
    hints=(
        "Which phase do you stand in, how far through it are you (0 at its beginning, 1 at its "
        "end), and what was the value when it began? The first two phases of a schedule answer "
        "the last question differently.",
        "begin, before = 0, start\n"
        "for each phase (end, value, shape):\n"
        "    if tokens lies before end:\n"
        "        constant: return value\n"
        "        part = share of the way from begin to end, between 0 and 1\n"
        "        cosine: bend part so that it starts and ends flat (a cosine from 1 to -1)\n"
        "        return the mixture of before and value at part\n"
        "    otherwise this phase is over: it is the new begin and before\n"
        "after the last phase: its value",
    ),
    mutants=[
        Mutant(
            "ends_are_lengths",
            _ends_are_lengths,
            "You took `end` for the length of a phase. It is a place: tokens since the beginning "
            "of the run.",
        ),
        Mutant(
            "from_zero_tokens",
            _from_zero_tokens,
            "You measured a phase's progress from token 0. It begins where the phase before it "
            "ended.",
        ),
        Mutant(
            "always_from_start",
            _always_from_start,
            "Every ramp of yours sets out from `start`. A later phase sets out from the value "
            "that the phase before it reached.",
        ),
        Mutant(
            "cosine_reversed",
            _cosine_reversed,
            "Your cosine runs the wrong way: it begins at the new value and ends at the old one.",
        ),
        Mutant(
            "quarter_wave",
            _quarter_wave,
            "You used a quarter of the wave, which ends at its steepest. Half a wave, from cos 0 "
            "to cos pi, is flat at both ends.",
        ),
        Mutant(
            "straight_cosine",
            _straight_cosine,
            "Your cosine phase is a straight line. Half way it agrees, elsewhere it does not.",
        ),
        Mutant(
            "end_included",
            _end_included,
            "At exactly `end` tokens the phase is over and the next one has begun: compare with "
            "<, not <=.",
        ),
        Mutant(
            "constant_late",
            _constant_late,
            "A constant phase has its value from its beginning. Yours keeps the old value and "
            "changes at the end.",
        ),
        Mutant(
            "ignores_start",
            _ignores_start,
            "You let the first ramp begin at 0. A batch that grows begins at `start`.",
        ),
        Mutant(
            "zero_after_the_end",
            _zero_after_the_end,
            "After the last phase your value drops to zero. A run that goes on longer keeps the "
            "last value.",
        ),
    ],
    alternatives=[
        Alternative("bisected", _bisected),
        Alternative("backwards", _backwards),
    ],
)
def check_schedule(c):
    """V3's learning rate and batch, then phases of random lengths and values."""
    rate = list(V3_RATE)
    with c.part():
        value = c.call(12.5e9, rate, label="runs on the published learning rate")
        c.close(value, 1.1e-4, label="half way up the ramp it is half of 2.2e-4", atol=0)
        c.close(c.call(5e12, rate), 2.2e-4, label="at 5T tokens it is 2.2e-4", atol=0)
    with c.part():
        got = [c.call(t, rate) for t in (11e12, 12.15e12, 13.5e12)]
        wanted = [_cosine_by_hand(t) for t in (11e12, 12.15e12, 13.5e12)]
        c.close(got, wanted, label="the cosine at 11T, 12.15T and 13.5T tokens", atol=0)
    with c.part():
        got = [c.call(t, rate) for t in (14.4e12, 14.7e12)]
        c.close(got, [2.2e-5, 7.3e-6], label="the two constants at the end", atol=0)
    with c.part():
        got = [c.call(t, rate) for t in (10e12, 14.3e12, 14.633e12)]
        label = "where one phase ends the next one has begun"
        c.close(got, [2.2e-4, 2.2e-5, 7.3e-6], label=label, atol=0)
    with c.part():
        rows = [(469e9, 15360, "linear")]
        got = [c.call(t, rows, 3072) for t in (0, 234.5e9)]
        label = "a batch that grows from 3,072 to 15,360 rows in 469B tokens"
        c.close(got, [3072.0, 9216.0], label=label, atol=0)
        got = [c.call(t, rows, 3072) for t in (469e9, 1e12)]
        label = "after the last end it stays at the last value"
        c.close(got, [15360.0, 15360.0], label=label, atol=0)
    with c.part():
        value = c.call(117.25e9, [(469e9, 15360, "cosine")], 3072)  # a quarter of the way
        wanted = 3072 + 12288 * (1 - math.cos(math.pi / 4)) / 2
        c.close(value, wanted, label="a cosine that rises", atol=0)
    with c.part():
        value = c.call(0, [(10e12, 0.3, "constant"), (14.8e12, 0.1, "constant")])
        label = "a constant first phase holds from the first token on"
        c.close(value, 0.3, label=label, atol=0)
    with c.part():
        phases, start = _phases(c), 0.5 + float(c.rand(1))
        begins = [0, *(end for end, _, _ in phases)]
        pairs = [*itertools.pairwise(begins)]
        points = [a + (b - a) * x for a, b in pairs for x in (0.13, 0.41, 0.77)]
        points += [1.02 * begins[-1], 1.2 * begins[-1]]
        got = [c.call(t, phases, start) for t in points]
        wanted = [_slowly(t, phases, start) for t in points]
        c.close(got, wanted, label="five phases of other lengths and values", atol=0)


def _cosine_by_hand(tokens):
    angle = math.pi * (tokens - 10e12) / 4.3e12
    return 2.2e-5 + (2.2e-4 - 2.2e-5) * (1 + math.cos(angle)) / 2


def _phases(c):
    # Both kinds of ramp come later, too: there they do not set out from `start`.
    first, second = c.choice([("linear", "cosine"), ("cosine", "linear")])
    shapes = (first, second, "constant", first, second)
    end, found, level = 0, [], 1.0
    for shape in shapes:
        end += c.size(40, 160)
        level += c.size(2, 5) * c.choice([-0.11, 0.13])
        found.append((end, round(level, 3), shape))
    return found


def _slowly(tokens, phases, start):
    values, ends = [start, *(p[1] for p in phases)], [0, *(p[0] for p in phases)]
    for i, (_, value, shape) in enumerate(phases):
        if ends[i] <= tokens < ends[i + 1]:
            share = (tokens - ends[i]) / (ends[i + 1] - ends[i])
            old = values[i]
            if shape == "linear":
                return old * (1 - share) + value * share
            if shape == "cosine":
                return (old + value) / 2 + (old - value) / 2 * math.cos(math.pi * share)
            return value
    return values[-1]
