"""Multiply-adds of both paths."""

from __future__ import annotations

import torch

from minids3.course.exercises.nb03_latent_attention.absorb import attend_absorbed
from minids3.course.exercises.nb03_latent_attention.naive import attend_naive
from minids3.course.registry import Alternative, Mutant, exercise


def count_macs(queries, cached, heads, nope, rotary, value, latent):
    """Multiply-adds of one layer for T queries on S cached tokens.

    queries, cached: T and S; heads: H; nope, rotary, value: dn, R, dv
    latent: C; every query meets every cached token
    returns (naive, absorbed), two ints
    """
    pairs = queries * cached
    matrix = latent * (nope + value)
    naive = heads * (pairs * (nope + rotary + value) + cached * matrix)
    absorbed = heads * (pairs * (2 * latent + rotary) + queries * matrix)
    return naive, absorbed


def _count(queries, cached, heads, naive, absorbed, expand, fold):
    pairs = queries * cached
    return heads * (pairs * naive + expand), heads * (pairs * absorbed + fold)


def _pairs_only(queries, cached, heads, nope, rotary, value, latent):
    return _count(queries, cached, heads, nope + rotary + value, 2 * latent + rotary, 0, 0)


def _fold_forgotten(queries, cached, heads, nope, rotary, value, latent):
    naive, _ = count_macs(queries, cached, heads, nope, rotary, value, latent)
    return naive, heads * queries * cached * (2 * latent + rotary)


def _one_head(queries, cached, heads, nope, rotary, value, latent):
    return count_macs(queries, cached, 1, nope, rotary, value, latent)


def _scores_only(queries, cached, heads, nope, rotary, value, latent):
    matrix = latent * (nope + value)
    widths = nope + rotary, latent + rotary
    return _count(queries, cached, heads, *widths, cached * matrix, queries * matrix)


def _fold_per_pair(queries, cached, heads, nope, rotary, value, latent):
    naive, _ = count_macs(queries, cached, heads, nope, rotary, value, latent)
    matrix = latent * (nope + value)
    return naive, heads * queries * cached * (2 * latent + rotary + matrix)


def _expand_per_query(queries, cached, heads, nope, rotary, value, latent):
    matrix = latent * (nope + value)
    widths = nope + rotary + value, 2 * latent + rotary
    expand = queries * cached * matrix
    return _count(queries, cached, heads, *widths, expand, queries * matrix)


def _rotary_averaged(queries, cached, heads, nope, rotary, value, latent):
    matrix = latent * (nope + value)
    widths = nope + rotary + value, 2 * (latent + rotary)
    return _count(queries, cached, heads, *widths, cached * matrix, queries * matrix)


def _swapped(queries, cached, heads, nope, rotary, value, latent):
    return count_macs(queries, cached, heads, nope, rotary, value, latent)[::-1]


def _values_like_keys(queries, cached, heads, nope, rotary, value, latent):
    return count_macs(queries, cached, heads, nope, rotary, nope, latent)


def _rotary_once(queries, cached, heads, nope, rotary, value, latent):
    naive, absorbed = count_macs(queries, cached, heads, nope, rotary, value, latent)
    others = (heads - 1) * queries * cached * rotary
    return naive - others, absorbed - others


def _macs_step_by_step(queries, cached, heads, nope, rotary, value, latent):
    naive = cached * latent * heads * nope + cached * latent * heads * value
    naive += heads * queries * cached * (nope + rotary) + heads * queries * cached * value
    absorbed = heads * queries * nope * latent + heads * queries * latent * value
    absorbed += heads * queries * cached * (latent + rotary) + heads * queries * cached * latent
    return naive, absorbed


def _macs_counted(queries, cached, heads, nope, rotary, value, latent):
    """Let PyTorch count: run both paths on tensors that have a shape and no numbers."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        args = (
            torch.empty(1, heads, queries, nope),
            torch.empty(1, heads, queries, rotary),
            torch.empty(1, cached, latent),
            torch.empty(1, cached, rotary),
            torch.empty(heads * (nope + value), latent),
        )
        found = []
        for attend in (attend_naive, attend_absorbed):
            with FlopCounterMode(display=False) as counter:
                attend(*args)
            found.append(counter.get_total_flops() // 2)
    return tuple(found)


def _flops(queries, cached, heads, nope, rotary, value, latent):
    naive, absorbed = count_macs(queries, cached, heads, nope, rotary, value, latent)
    return 2 * naive, 2 * absorbed


def _floats(queries, cached, heads, nope, rotary, value, latent):
    naive, absorbed = count_macs(queries, cached, heads, nope, rotary, value, latent)
    return naive / 1, absorbed / 1


def _causal_half(queries, cached, heads, nope, rotary, value, latent):
    pairs = queries * (queries + 1) // 2 + queries * (cached - queries)
    matrix = latent * (nope + value)
    naive = heads * (pairs * (nope + rotary + value) + cached * matrix)
    return naive, heads * (pairs * (2 * latent + rotary) + queries * matrix)


@exercise(
    "mla-choose",
    solution=count_macs,
    notebook="03_latent_attention",
    title="Which path is cheaper",
    difficulty=3,
    importance=3,
    minutes=8,
    library=_macs_step_by_step,
    hints=(
        "A product of [a, b] with [b, c] takes a * b * c multiply-adds. Write down every product "
        "of your two functions with its three sizes. Which of them grow with T and S together, "
        "which with S alone, which with T alone?",
        "both: scores and weighted sum, once per head, query and cached token\n"
        "    naive: dn + R + dv numbers a pair;  absorbed: C + R + C\n"
        "naive also expands each of the S tokens, per head: C * (dn + dv)\n"
        "absorbed also folds each of the T queries and unfolds each result: C * (dn + dv)\n"
        "return naive, absorbed",
    ),
    mutants=[
        Mutant(
            "pairs_only",
            _pairs_only,
            "You counted the pairs alone. The naive path also expands every cached token, and the "
            "absorbed one folds every query.",
        ),
        Mutant(
            "fold_forgotten",
            _fold_forgotten,
            "The absorbed path is not free of w_kv_b: each query is folded with W_UK and each "
            "result unfolded with W_UV.",
        ),
        Mutant(
            "one_head", _one_head, "That is one head. Every head does all of it, with own matrices."
        ),
        Mutant(
            "scores_only",
            _scores_only,
            "The scores are counted, the weighted sum is not: another dv (naive) or C (absorbed) a "
            "pair.",
        ),
        Mutant(
            "fold_per_pair",
            _fold_per_pair,
            "You folded the query anew for every cached token. Once per query is the whole point.",
        ),
        Mutant(
            "expand_per_query",
            _expand_per_query,
            "You expanded the cached tokens anew for every query. Within one step, all T queries "
            "use the same keys.",
        ),
        Mutant(
            "rotary_averaged",
            _rotary_averaged,
            "The weighted sum runs over the latents, C wide. The rotary key has no share in it.",
        ),
        Mutant(
            "values_like_keys",
            _values_like_keys,
            "You took dn as the width of the values as well. It is dv, and the two need not be "
            "equal.",
        ),
        Mutant(
            "rotary_once",
            _rotary_once,
            "You counted the rotary part of the scores for one head. The key is shared, but each "
            "head multiplies its own query with it.",
        ),
        Mutant(
            "swapped", _swapped, "The order is (naive, absorbed). Yours is the other way round."
        ),
        Mutant(
            "flops",
            _flops,
            "You counted floating-point operations. A multiply-add is one here, not two.",
        ),
        Mutant(
            "floats",
            _floats,
            "You returned floats. Operations are counted: use whole numbers, // instead of /.",
        ),
        Mutant(
            "causal_half",
            _causal_half,
            "You left out the pairs that the mask hides. Here every query meets every cached "
            "token.",
        ),
    ],
    alternatives=[
        Alternative("step_by_step", _macs_step_by_step),
        Alternative("counted", _macs_counted),
    ],
)
def check_count_macs(c):
    """V3's published-size counts, random sizes against PyTorch's own counter, one token."""
    v3 = (128, 128, 64, 128, 512)
    got = c.call(1, 1000, *v3, label="runs on V3's sizes and returns two numbers", returns=2)
    with c.part():
        label = "naive, T = 1 on S = 1,000 at V3's sizes"
        c.equal(got[0], 1000 * (40_960 + 16_777_216), label=label)
    with c.part():
        label = "absorbed, T = 1 on S = 1,000 at V3's sizes"
        c.equal(got[1], 1000 * 139_264 + 16_777_216, label=label)
    sizes = (c.size(3, 5), c.size(6, 9), 2 * c.size(3, 5), c.size(10, 13), c.size(17, 30))
    some, square = (c.size(20, 40), c.size(41, 80)), c.size(10, 19)
    for queries, cached in ((1, 1), (1, c.size(50, 90)), some, (square, square)):
        with c.part():
            got = c.call(queries, cached, *sizes, returns=2)
            wanted = _macs_counted(queries, cached, *sizes)
            label = f"T = {queries}, S = {cached}: as PyTorch counts the products"
            c.equal(tuple(got), wanted, label=label)
