"""The exact entropy of a small grammar."""

from __future__ import annotations

import math

import torch

from minids3.course.checker import Checker
from minids3.course.registry import Alternative, Mutant, exercise


def grammar_entropy(node):
    """Exact entropy, in bits, of the text that a grammar writes.

    node: list of (probability, rest) pairs, one per option of the next choice;
    rest is the node of what follows, or None where the text ends
    returns a float
    """
    total = 0.0
    for p, rest in node:
        if p > 0:
            below = 0.0 if rest is None else grammar_entropy(rest)
            total += p * (-math.log2(p) + below)
    return total


def _own(node, log=math.log2):
    return -sum(p * log(p) for p, _ in node if p > 0)


def _first_choice_only(node):
    return _own(node)


def _unweighted(node):
    return _own(node) + sum(_unweighted(rest) for p, rest in node if rest is not None and p > 0)


def _in_nats(node):
    return grammar_entropy(node) * math.log(2)


def _leaves(node):
    return sum(1 if rest is None else _leaves(rest) for p, rest in node if p > 0)


def _count_texts(node):
    return math.log2(_leaves(node))


def _even_average(node):
    below = [0.0 if rest is None else _even_average(rest) for p, rest in node if p > 0]
    return _own(node) + sum(below) / len(below)


def _most_likely(node):
    p, rest = max(node, key=lambda option: option[0])
    return -math.log2(p) + (0.0 if rest is None else _most_likely(rest))


def _zero_crashes(node):
    total = 0.0
    for p, rest in node:
        below = 0.0 if rest is None else _zero_crashes(rest)
        total += p * (-math.log2(p) + below)
    return total


def _first_branch(node):
    rest = node[0][1]
    return _own(node) + (0.0 if rest is None else _first_branch(rest))


def _zero_divides(node):
    total = 0.0
    for p, rest in node:
        below = 0.0 if rest is None else _zero_divides(rest)
        total += p * (math.log2(1 / p) + below)
    return total


def _entropy_of_texts(node):
    chances, todo = [], [(1.0, node)]
    while todo:
        chance, here = todo.pop()
        for p, rest in here:
            if rest is None:
                chances.append(chance * p)
            else:
                todo.append((chance * p, rest))
    return -sum(p * math.log2(p) for p in chances if p > 0)


def _entropy_by_levels(node):
    total, level = 0.0, [(1.0, node)]
    while level:
        for reach, here in level:
            p = torch.tensor([option[0] for option in here], dtype=torch.float64)
            total += reach * float(torch.special.entr(p).sum()) / math.log(2)
        level = [(reach * p, rest) for reach, here in level for p, rest in here if rest is not None]
    return total


def _random_tree(c: Checker, depth: int) -> list:
    """Uneven probabilities, uneven depth."""
    weights = (c.rand(c.size(2, 3)) + 0.1).double()
    chances = (weights / weights.sum()).tolist()
    return [
        (p, _random_tree(c, depth - 1) if depth > 0 and i % 2 == depth % 2 else None)
        for i, p in enumerate(chances)
    ]


def _largest_branch(node):
    below = [0.0 if rest is None else _largest_branch(rest) for p, rest in node if p > 0]
    return _own(node) + max(below)


def _float_loop(node):
    total = 0
    stack = [(1, node)]
    while stack:
        reach, options = stack.pop()
        for p, rest in options:
            if p == 0:
                continue
            total -= reach * p * math.log(p, 2)
            if rest:
                stack.append((reach * p, rest))
    return float(total)


@exercise(
    "grammar-entropy",
    solution=grammar_entropy,
    notebook="01_data_and_tokens",
    title="The entropy of a grammar",
    difficulty=3,
    importance=5,
    minutes=10,
    hints=(
        "A coin is thrown; on heads a die is thrown too. You pay 1 bit for the coin every time. "
        "How often do you pay for the die?",
        """
        total = 0
        for each option with probability p (skip p = 0):
            below = entropy of what follows, 0 if the text ends     (call yourself)
            total += p * (bits of this option + below)              (bits = -log2 p)
        return total
        """,
    ),
    mutants=[
        Mutant(
            "first_choice_only",
            _first_choice_only,
            "You counted the first choice and not the ones below it. Add the entropy of the rest.",
        ),
        Mutant(
            "unweighted",
            _unweighted,
            "You added the entropy of every branch in full. A branch is only entered with "
            "probability p, so its entropy counts p times.",
        ),
        Mutant(
            "in_nats",
            _in_nats,
            "That is in nats. Bits need the logarithm to base 2: math.log2.",
        ),
        Mutant(
            "count_texts",
            _count_texts,
            "You took the logarithm of the number of texts. That is the entropy only if all are "
            "equally likely, and an upper bound otherwise.",
        ),
        Mutant(
            "even_average",
            _even_average,
            "You averaged the branches as if they were equally likely. Weigh each by its p.",
        ),
        Mutant(
            "most_likely",
            _most_likely,
            "You followed the likeliest branch and gave its surprisal. Entropy is the average "
            "surprisal over all branches.",
        ),
        Mutant(
            "zero_crashes",
            _zero_crashes,
            "An option with probability 0 never happens and costs nothing, but log2(0) raises. "
            "Skip it.",
        ),
        Mutant(
            "zero_divides",
            _zero_divides,
            "1 / p is a division by zero for an option that never happens. Leave out options with "
            "p = 0.",
        ),
        Mutant(
            "first_branch",
            _first_branch,
            "You took what follows the first option for what follows every one. Each option has a "
            "rest of its own.",
        ),
        Mutant(
            "largest_branch",
            _largest_branch,
            "You followed the branch of the largest entropy. Every branch counts, p times.",
        ),
    ],
    alternatives=[
        Alternative("entropy_of_texts", _entropy_of_texts),
        Alternative("by_levels", _entropy_by_levels),
        Alternative("with_stack", _float_loop),
    ],
)
def check_grammar_entropy(c: Checker) -> None:
    """Coins and dice by hand, then an uneven random tree."""
    coin = [(0.5, None), (0.5, None)]
    got = c.call(coin, label="runs on a fair coin")
    c.close(got, 1.0, label="a fair coin is 1 bit")
    with c.part():
        got = c.call([(0.5, coin), (0.5, None)])
        c.close(got, 1.5, label="a coin, and on heads another: 1.5 bits")
    with c.part():
        got = c.call([(0.75, None), (0.25, None)])
        c.close(got, 0.811278, label="a coin with p = 3/4 is 0.811 bits")
    with c.part():
        die = [(1 / 8, None)] * 8
        got = c.call([(0.25, die), (0.75, None)])
        c.close(got, 0.811278 + 0.75, label="a branch counts as often as it is entered")
    with c.part():
        got = c.call([(1.0, coin)])
        c.close(got, 1.0, label="a certain choice is free, what follows is not")
    with c.part():
        got = c.call([(0.0, coin), (1.0, None)])
        c.close(got, 0.0, label="what never happens costs nothing")
    with c.part():
        tree = _random_tree(c, 3)
        got = c.call(tree)
        c.close(got, grammar_entropy(tree), label="an uneven tree of four levels is right")
    with c.part():
        rare = 2.0**-40
        got = c.call([(rare, [(1 / 1024, None)] * 1024), (1 - rare, None)])
        expected = 50 * rare - (1 - rare) * math.log1p(-rare) / math.log(2)
        c.close(got, expected, label="a branch of probability 2^-40 is right", rtol=1e-3, atol=0)
    with c.part():
        die = [(1 / 6, None)] * 6
        got = c.call([(0.5, die), (0.25, die), (0.25, None)])
        c.close(got, 1.5 + 0.75 * math.log2(6), label="two branches of the same kind count each")
