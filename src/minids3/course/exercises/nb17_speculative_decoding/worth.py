"""Expected tokens of a step, and what they cost."""

from __future__ import annotations

import itertools
import math

from minids3.course.registry import Alternative, Mutant, exercise


# fmt: off
def step_worth(acceptance, draft_cost, column_cost):
    """Expected tokens of a step with drafts, and how much faster it is.

    acceptance: k numbers; draft i is accepted with probability
    acceptance[i] IF all before it were; k may be 0
    draft_cost: what making one draft takes; column_cost: what each column
    more makes the checking pass longer; both as shares of a plain step,
    which makes one token. Drafts that are rejected have cost the same.
    returns two floats: tokens of a step, tokens per time (plain decoding: 1)
    """
    tokens = alive = 1.0
    for a in acceptance:
        alive *= a
        tokens += alive
    steps = 1 + len(acceptance) * (draft_cost + column_cost)
    return tokens, tokens / steps
# fmt: on


def _per(tokens, acceptance, draft_cost, column_cost):
    return tokens, tokens / (1 + len(acceptance) * (draft_cost + column_cost))


def _all_counted(acceptance, draft_cost, column_cost):
    return _per(1 + sum(acceptance), acceptance, draft_cost, column_cost)


def _whole_or_none(acceptance, draft_cost, column_cost):
    tokens = 1 + len(acceptance) * math.prod(acceptance)
    return _per(tokens, acceptance, draft_cost, column_cost)


def _no_own(acceptance, draft_cost, column_cost):
    tokens, _ = step_worth(acceptance, draft_cost, column_cost)
    return _per(tokens - 1, acceptance, draft_cost, column_cost)


def _no_bonus(acceptance, draft_cost, column_cost):
    tokens, _ = step_worth(acceptance, draft_cost, column_cost)
    lost = math.prod(acceptance) if acceptance else 0
    return _per(tokens - lost, acceptance, draft_cost, column_cost)


def _first_rate(acceptance, draft_cost, column_cost):
    tokens = sum(acceptance[0] ** i for i in range(len(acceptance) + 1)) if acceptance else 1.0
    return _per(tokens, acceptance, draft_cost, column_cost)


def _mean_rate(acceptance, draft_cost, column_cost):
    k = len(acceptance)
    mean = sum(acceptance) / k if k else 0.0
    return _per(sum(mean**i for i in range(k + 1)), acceptance, draft_cost, column_cost)


def _endless(acceptance, draft_cost, column_cost):
    mean = sum(acceptance) / max(1, len(acceptance))
    return _per(1 / (1 - mean) if mean < 1 else math.inf, acceptance, draft_cost, column_cost)


def _cost_once(acceptance, draft_cost, column_cost):
    tokens, _ = step_worth(acceptance, draft_cost, column_cost)
    return tokens, tokens / (1 + (draft_cost + column_cost) * bool(acceptance))


def _draft_cost_once(acceptance, draft_cost, column_cost):
    tokens, _ = step_worth(acceptance, draft_cost, column_cost)
    k = len(acceptance)
    return tokens, tokens / (1 + draft_cost * bool(k) + k * column_cost)


def _column_cost_once(acceptance, draft_cost, column_cost):
    tokens, _ = step_worth(acceptance, draft_cost, column_cost)
    k = len(acceptance)
    return tokens, tokens / (1 + k * draft_cost + column_cost * bool(k))


def _rejected_free(acceptance, draft_cost, column_cost):
    tokens, _ = step_worth(acceptance, draft_cost, column_cost)
    return tokens, tokens / (1 + (tokens - 1) * (draft_cost + column_cost))


def _drafts_free(acceptance, draft_cost, column_cost):
    tokens, _ = step_worth(acceptance, draft_cost, column_cost)
    return tokens, tokens / (1 + len(acceptance) * column_cost)


def _columns_free(acceptance, draft_cost, column_cost):
    tokens, _ = step_worth(acceptance, draft_cost, column_cost)
    return tokens, tokens / (1 + len(acceptance) * draft_cost)


def _own_column(acceptance, draft_cost, column_cost):
    tokens, _ = step_worth(acceptance, draft_cost, column_cost)
    k = len(acceptance)
    return tokens, tokens / (1 + k * draft_cost + (k + 1) * column_cost)


def _subtracted(acceptance, draft_cost, column_cost):
    tokens, _ = step_worth(acceptance, draft_cost, column_cost)
    return tokens, tokens - len(acceptance) * (draft_cost + column_cost)


def _time_per_token(acceptance, draft_cost, column_cost):
    tokens, speed = step_worth(acceptance, draft_cost, column_cost)
    return tokens, 1 / speed


def _accumulated(acceptance, draft_cost, column_cost):
    alive = list(itertools.accumulate(acceptance, lambda x, y: x * y, initial=1.0))
    tokens = math.fsum(alive)
    return tokens, tokens / (1 + (len(alive) - 1) * draft_cost + (len(alive) - 1) * column_cost)


def _nested(acceptance, draft_cost, column_cost):
    tokens = 1.0
    for a in reversed(acceptance):  # 1 + a1 (1 + a2 (1 + ...))
        tokens = 1 + a * tokens
    time = 1.0
    for _ in acceptance:
        time += draft_cost
        time += column_cost
    return tokens, tokens / time


@exercise(
    "spec-worth",
    solution=step_worth,
    notebook="17_speculative_decoding",
    title="What a step is worth",
    difficulty=2,
    importance=4,
    minutes=8,
    hints=(
        "With what probability are at least 0, at least 1, at least 2 drafts accepted? Add these "
        "up: why is that the expected number? And who pays for a draft that is rejected?",
        "alive = tokens = 1                     # one token is certain\n"
        "for each a: alive = alive * a;  tokens = tokens + alive\n"
        "time = 1 + k * (draft_cost + column_cost)\n"
        "return tokens, tokens / time",
    ),
    mutants=[
        Mutant(
            "all_counted",
            _all_counted,
            "You added up the rates. They hold only if all drafts before were accepted: the second "
            "counts with the product of two.",
        ),
        Mutant(
            "whole_or_none",
            _whole_or_none,
            "You accept all drafts or none. Those before the first rejection stay.",
        ),
        Mutant(
            "no_own",
            _no_own,
            "One token is missing: a step whose first draft is rejected still makes one.",
        ),
        Mutant(
            "no_bonus",
            _no_bonus,
            "If all k drafts are accepted the pass has also computed the place after the last: "
            "k + 1 tokens, not k.",
        ),
        Mutant(
            "first_rate",
            _first_rate,
            "You used the first draft's rate for all. Later drafts are accepted less often, and "
            "each has its own.",
        ),
        Mutant(
            "mean_rate",
            _mean_rate,
            "You took powers of the mean rate. The order counts: a bad first draft spoils the good "
            "ones after it.",
        ),
        Mutant(
            "endless",
            _endless,
            "1 / (1 - a) is for drafts without end. A step has k of them.",
        ),
        Mutant(
            "cost_once",
            _cost_once,
            "You paid for one draft. Every draft has to be made, and each is a column more.",
        ),
        Mutant(
            "draft_cost_once",
            _draft_cost_once,
            "You paid draft_cost once. That is what one draft takes, and k are made one after the "
            "other.",
        ),
        Mutant(
            "column_cost_once",
            _column_cost_once,
            "You paid column_cost once. Each of the k drafts is a column more in the checking "
            "pass.",
        ),
        Mutant(
            "rejected_free",
            _rejected_free,
            "You paid for accepted drafts only. The others were made and checked as well.",
        ),
        Mutant(
            "drafts_free",
            _drafts_free,
            "Making the drafts costs time as well, not only checking them.",
        ),
        Mutant(
            "columns_free",
            _columns_free,
            "Checking costs time as well: each draft makes the pass longer by column_cost.",
        ),
        Mutant(
            "own_column",
            _own_column,
            "A plain step has one column, too, and its cost is in the 1. Only the k columns more "
            "count.",
        ),
        Mutant(
            "subtracted",
            _subtracted,
            "You subtracted time from tokens. A rate is tokens divided by time.",
        ),
        Mutant(
            "time_per_token",
            _time_per_token,
            "That is time per token. Asked is tokens per time, 1 for plain decoding.",
        ),
    ],
    alternatives=[
        Alternative("accumulated", _accumulated),
        Alternative("nested", _nested),
    ],
)
def check_worth(c):
    """By outcomes: how likely each number of accepted drafts is, times its tokens."""
    # The first draft's rate is not the largest.
    rates = [[0.55 + 0.2 * x, 0.8 + 0.15 * y, 0.6 + 0.2 * z] for x, y, z in c.rand(2, 3).tolist()]
    draft, column = 0.05 + 0.1 * c.rand(1).item(), 0.2 + 0.2 * c.rand(1).item()
    for k, first in ((1, "runs on one draft"), (2, None), (3, None)):
        with c.part():
            got = c.call(rates[0][:k], draft, column, label=first, returns=2)
            tokens = _by_outcomes(rates[0][:k])
            words = f"{k} draft{'s' if k > 1 else ''}"
            c.close(got[0], tokens, label=f"{words}: tokens of a step")
            label = f"{words}: tokens per time"
            c.close(got[1], tokens / (1 + k * draft + k * column), label=label)
    with c.part():
        got = c.call(rates[1], 0.0, 0.0, returns=2)
        label = "drafts and columns that cost nothing: the speed is the tokens"
        c.close(list(got), [_by_outcomes(rates[1])] * 2, label=label)
    with c.part():  # the first and the last below a half
        low = [0.3 + 0.1 * c.rand(1).item(), 0.8 + 0.1 * c.rand(1).item(), 0.2]
        got = c.call(low, draft, column, returns=2)
        tokens = _by_outcomes(low)
        c.close(got[0], tokens, label="a poor draft before a good one, and a poorer last")
        c.close(got[1], tokens / (1 + 3 * draft + 3 * column), label="and tokens per time")
    with c.part():
        some = [rates[0][0], 0.0, rates[0][1]]
        got = c.call(some, draft, column, returns=2)
        label = "after a draft that is never accepted, nothing counts"
        c.close(got[0], 1 + rates[0][0], label=label)
        speed = (1 + rates[0][0]) / (1 + 3 * draft + 3 * column)
        c.close(got[1], speed, label="but all three have cost the same")
    with c.part():
        got = c.call([1.0, 1.0, rates[1][0]], draft, column, returns=2)
        c.close(got[0], 3 + rates[1][0], label="two that are always accepted")
        speed = (3 + rates[1][0]) / (1 + 3 * draft + 3 * column)
        c.close(got[1], speed, label="and are paid for")
    with c.part():
        got = c.call([], draft, column, returns=2)
        c.close(list(got), [1.0, 1.0], label="no drafts: plain decoding")


def _by_outcomes(rates):
    expected, alive = 0.0, 1.0
    for n, rate in enumerate([*rates, 0.0]):
        expected += alive * (1 - rate) * (n + 1)
        alive *= rate
    return expected
