"""Tokens, FLOPs and GPU-hours of a context extension."""

from __future__ import annotations

from minids3.course.registry import Alternative, Mutant, exercise


def extension_cost(stages, weights, pair, rate):
    """What training on longer texts costs.

    stages: list of (steps, rows of a batch, positions of a row)
    weights: multiply-adds of a token in all matrices, forward
    pair: multiply-adds of a query with one key, over all layers and heads
    rate: FLOPs per second of one GPU
    returns tokens, FLOPs per token on average, GPU-hours
    """
    tokens, flops = 0, 0
    for steps, rows, length in stages:
        n = steps * rows * length
        tokens += n
        flops += n * 6 * (weights + pair * length / 2)
    return tokens, flops / tokens, flops / rate / 3600


def _cost(stages, weights, pair, rate, seen=0.5, per=6, hour=3600.0):
    tokens = sum(a * b * t for a, b, t in stages)
    flops = sum(a * b * t * per * (weights + pair * t * seen) for a, b, t in stages)
    return tokens, flops / tokens, flops / rate / hour


def _full(stages, weights, pair, rate):
    return _cost(stages, weights, pair, rate, seen=1.0)


def _forward(stages, weights, pair, rate):
    return _cost(stages, weights, pair, rate, per=2)


def _multiply_adds(stages, weights, pair, rate):
    return _cost(stages, weights, pair, rate, per=3)


def _seconds(stages, weights, pair, rate):
    return _cost(stages, weights, pair, rate, hour=1.0)


def _minutes(stages, weights, pair, rate):
    return _cost(stages, weights, pair, rate, hour=60.0)


def _no_attention(stages, weights, pair, rate):
    return _cost(stages, weights, pair, rate, seen=0.0)


def _mean_of_stages(stages, weights, pair, rate):
    tokens, _, hours = _cost(stages, weights, pair, rate)
    each = [6 * (weights + pair * t / 2) for _, _, t in stages]
    return tokens, sum(each) / len(each), hours


def _longest(stages, weights, pair, rate):
    top = max(t for _, _, t in stages)
    tokens = sum(a * b * t for a, b, t in stages)
    per_token = 6 * (weights + pair * top / 2)
    return tokens, per_token, tokens * per_token / rate / 3600


def _last_length(stages, weights, pair, rate):
    tokens = sum(a * b * t for a, b, t in stages)
    per_token = 6 * (weights + pair * stages[-1][2] / 2)
    return tokens, per_token, tokens * per_token / rate / 3600


def _last_stage(stages, weights, pair, rate):
    return _cost(stages[-1:], weights, pair, rate)


def _rows_for_tokens(stages, weights, pair, rate):
    rows = sum(a * b for a, b, _ in stages)
    flops = sum(a * b * 6 * (weights + pair * t / 2) for a, b, t in stages)
    return rows, flops / rows, flops / rate / 3600


def _total_flops(stages, weights, pair, rate):
    tokens, mean, hours = _cost(stages, weights, pair, rate)
    return tokens, mean * tokens, hours


def _own_key(stages, weights, pair, rate):
    return _cost(stages, weights + pair / 2, pair, rate)


def _six_on_weights(stages, weights, pair, rate):
    return _cost(stages, weights, pair / 6, rate)


def _weighted(stages, weights, pair, rate, shares):
    tokens = sum(a * b * t for a, b, t in stages)
    each = [
        share * 6 * (weights + pair * s[2] / 2) for s, share in zip(stages, shares, strict=True)
    ]
    mean = sum(each) / sum(shares)
    return tokens, mean, tokens * mean / rate / 3600


def _weighted_by_rows(stages, weights, pair, rate):
    return _weighted(stages, weights, pair, rate, [a * b for a, b, _ in stages])


def _weighted_by_steps(stages, weights, pair, rate):
    return _weighted(stages, weights, pair, rate, [a for a, _, _ in stages])


def _cost_lists(stages, weights, pair, rate):
    tokens = [steps * rows * length for steps, rows, length in stages]
    each = [6 * weights + 3 * pair * length for _, _, length in stages]
    total = sum(n * f for n, f in zip(tokens, each, strict=True))
    return sum(tokens), total / sum(tokens), total / (3600 * rate)


def _cost_by_rows(stages, weights, pair, rate):
    n, flops = 0, 0.0
    for steps, rows, length in stages:
        one_row = 6 * weights * length + 6 * pair * length * length / 2
        n += steps * rows * length
        flops += steps * rows * one_row
    return n, flops / n, flops / rate / 60 / 60


@exercise(
    "extension-cost",
    solution=extension_cost,
    notebook="13_long_context",
    title="What long texts cost",
    difficulty=2,
    importance=3,
    minutes=8,
    hints=(
        "How many keys does a token of a causal text see on average? And how often is every "
        "multiply-add done in training, forward and backward, in FLOPs?",
        "for each stage:  n = steps * rows * positions           # tokens\n"
        "                 f = 6 * (weights + pair * positions / 2)  # per token\n"
        "tokens = sum of n;  flops = sum of n * f\n"
        "return tokens, flops / tokens, flops / rate / 3600",
    ),
    mutants=[
        Mutant(
            "full",
            _full,
            "You counted every pair of tokens. A causal token sees half of its text on average.",
        ),
        Mutant(
            "forward",
            _forward,
            "That is the forward pass alone. Training takes three times as much: 6 FLOPs for every "
            "multiply-add.",
        ),
        Mutant(
            "multiply_adds",
            _multiply_adds,
            "A multiply-add is two FLOPs, forward; backward takes twice that again: 6 in all.",
        ),
        Mutant("seconds", _seconds, "Those are GPU-seconds. An hour has 3,600."),
        Mutant("minutes", _minutes, "Those are GPU-minutes. An hour has 3,600 seconds."),
        Mutant(
            "no_attention",
            _no_attention,
            "You left attention out. At 131,072 positions it is most of the work.",
        ),
        Mutant(
            "mean_of_stages",
            _mean_of_stages,
            "You averaged over stages. Average over tokens: a stage with more tokens counts more.",
        ),
        Mutant(
            "longest",
            _longest,
            "You priced every token like one of the longest stage. Each stage has its own length.",
        ),
        Mutant(
            "last_length",
            _last_length,
            "You priced every token like one of the last stage. After a loop its variables still "
            "hold what they held last: price each stage inside of it.",
        ),
        Mutant("last_stage", _last_stage, "You counted one stage. Add all of them up."),
        Mutant(
            "rows_for_tokens",
            _rows_for_tokens,
            "You counted rows. A row has as many tokens as positions.",
        ),
        Mutant(
            "total_flops",
            _total_flops,
            "The second result is FLOPs per token: divide by the tokens.",
        ),
        Mutant(
            "own_key",
            _own_key,
            "You counted a token's own key exactly, (positions + 1) / 2 keys in all. The exercise "
            "asks for half of the positions.",
        ),
        Mutant(
            "six_on_weights",
            _six_on_weights,
            "You took the six FLOPs for the matrices alone. A query with a key costs six for every "
            "multiply-add, too.",
        ),
        Mutant(
            "weighted_by_rows",
            _weighted_by_rows,
            "Your average counts a row of every stage alike. A longer row has more tokens and "
            "counts more.",
        ),
        Mutant(
            "weighted_by_steps",
            _weighted_by_steps,
            "Your average counts a step of every stage alike. Weigh by tokens.",
        ),
    ],
    alternatives=[
        Alternative("lists", _cost_lists),
        Alternative("by_rows", _cost_by_rows),
    ],
)
def check_cost(c):
    """V3's two stages, stages of unequal size, one row, fractions and two stages alike."""
    v3 = [(1000, 1920, 32_768), (1000, 480, 131_072)]
    weights, pair, rate = 36.6246e9, 61 * 128 * 320, 385e12
    got = c.call(v3, weights, pair, rate, returns=3, label="runs on V3's two stages")
    with c.part():
        c.close(got[0], 125_829_120_000.0, label="125.8 billion tokens", rtol=1e-6)
    with c.part():
        c.close(got[1], 833.4e9, label="833 GFLOP per token on average", rtol=2e-3)
    with c.part():
        c.close(got[2], 75_666.0, label="about 76,000 hours at 385 TFLOPS", rtol=2e-3)
    stages = [(c.size(2, 4), 1, c.size(300, 500)), (c.size(3, 9), c.size(2, 5), c.size(50, 90))]
    weights, pair, rate = float(c.size(1000, 3000)), c.size(20, 60), float(c.size(100, 200))
    tokens, flops = 0.0, 0.0
    for steps, rows, length in stages:
        for _ in range(steps * rows):
            tokens += length
            # The mean token sees length / 2 keys: a triangle of pairs, six FLOPs each.
            flops += 6 * weights * length + 6 * pair * (length * length / 2)
    with c.part():
        got = c.call(stages, weights, pair, rate, returns=3)
        c.close(got[0], tokens, label="unequal stages: tokens", rtol=1e-6)
        c.close(got[1], flops / tokens, label="unequal stages: FLOPs per token", rtol=1e-4)
        c.close(got[2], flops / rate / 3600, label="unequal stages: hours", rtol=1e-4)
    with c.part():
        got = c.call([(1, 1, 2)], 5.0, 7.0, 0.1, returns=3)
        c.close(list(got), [2.0, 72.0, 0.4], label="one row of two tokens, by hand", rtol=1e-4)
    with c.part():
        stages = [(2, 1, 2), (3, 2, 3), (3, 2, 3), (1, 2, 2)]
        got = c.call(stages, 5.1, 7.5, 0.1, returns=3)
        flops = 8 * 6 * (5.1 + 7.5) + 36 * 6 * (5.1 + 11.25)
        label = "four stages, two of them alike, by hand"
        c.close(list(got), [44.0, flops / 44, flops / 0.1 / 3600], label=label, rtol=1e-5)
