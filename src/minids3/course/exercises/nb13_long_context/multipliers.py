"""YaRN's two multipliers: one on the rotary tables, one on the scores."""

from __future__ import annotations

import math

from minids3.course.registry import Alternative, Mutant, exercise
from minids3.ref.rope import yarn_mscale


def multipliers(width, factor, mscale, mscale_all_dim):
    """What YaRN multiplies the rotary tables by, and the scores.

    width: of a whole query, dn + R; factor: s, 1 or more
    mscale, mscale_all_dim: two numbers of the configuration; 0 means that
    one is not given
    returns (attention factor, softmax scale), two numbers
    """

    def m(strength):
        return 0.1 * strength * math.log(factor) + 1

    attention_factor = m(1)
    if mscale and mscale_all_dim:
        attention_factor = m(mscale) / m(mscale_all_dim)
    softmax_scale = width**-0.5
    if mscale_all_dim:
        softmax_scale *= m(mscale_all_dim) ** 2
    return attention_factor, softmax_scale


def _m(factor, strength):
    return 0.1 * strength * math.log(factor) + 1


def _tables(factor, mscale, mscale_all_dim):
    if mscale and mscale_all_dim:
        return _m(factor, mscale) / _m(factor, mscale_all_dim)
    return _m(factor, 1)


def _wrong_field(width, factor, mscale, mscale_all_dim):
    scale = width**-0.5 * (_m(factor, mscale) ** 2 if mscale else 1)
    return _tables(factor, mscale, mscale_all_dim), scale


def _no_square(width, factor, mscale, mscale_all_dim):
    scale = width**-0.5 * (_m(factor, mscale_all_dim) if mscale_all_dim else 1)
    return _tables(factor, mscale, mscale_all_dim), scale


def _tables_only(width, factor, mscale, mscale_all_dim):
    return _tables(factor, mscale, mscale_all_dim), width**-0.5


def _scale_only(width, factor, mscale, mscale_all_dim):
    return 1.0, multipliers(width, factor, mscale, mscale_all_dim)[1]


def _both_on_tables(width, factor, mscale, mscale_all_dim):
    a, b = multipliers(width, factor, mscale, mscale_all_dim)
    return a * b * width**0.5, width**-0.5


def _factor_on_scale(width, factor, mscale, mscale_all_dim):
    a, b = multipliers(width, factor, mscale, mscale_all_dim)
    return a, b * a**2


def _exchanged(width, factor, mscale, mscale_all_dim):
    a, b = multipliers(width, factor, mscale, mscale_all_dim)
    return b, a


def _always_ratio(width, factor, mscale, mscale_all_dim):
    ratio = _m(factor, mscale) / _m(factor, mscale_all_dim)
    return ratio, multipliers(width, factor, mscale, mscale_all_dim)[1]


def _upside_down(width, factor, mscale, mscale_all_dim):
    a, b = multipliers(width, factor, mscale, mscale_all_dim)
    return (1 / a if mscale and mscale_all_dim else a), b


def _scale_always(width, factor, mscale, mscale_all_dim):
    scale = width**-0.5 * _m(factor, mscale_all_dim or 1) ** 2
    return _tables(factor, mscale, mscale_all_dim), scale


def _not_given_is_one(width, factor, mscale, mscale_all_dim):
    a = _m(factor, mscale) if mscale else _m(factor, 1)
    if mscale and mscale_all_dim:
        a = _m(factor, mscale) / _m(factor, mscale_all_dim)
    return a, multipliers(width, factor, mscale, mscale_all_dim)[1]


def _divided(width, factor, mscale, mscale_all_dim):
    scale = width**-0.5 / (_m(factor, mscale_all_dim) ** 2 if mscale_all_dim else 1)
    return _tables(factor, mscale, mscale_all_dim), scale


def _decimal_log(width, factor, mscale, mscale_all_dim):
    def m(strength):
        return 0.1 * strength * math.log10(factor) + 1

    a = m(mscale) / m(mscale_all_dim) if mscale and mscale_all_dim else m(1)
    return a, width**-0.5 * (m(mscale_all_dim) ** 2 if mscale_all_dim else 1)


def _width_forgotten(width, factor, mscale, mscale_all_dim):
    a, b = multipliers(width, factor, mscale, mscale_all_dim)
    return a, b * width**0.5


def _factor_built_in(width, factor, mscale, mscale_all_dim):
    return multipliers(width, 40, mscale, mscale_all_dim)


def _one_if_not_given(width, factor, mscale, mscale_all_dim):
    a, b = multipliers(width, factor, mscale, mscale_all_dim)
    return a if mscale and mscale_all_dim else 1.0, b


def _scale_needs_both(width, factor, mscale, mscale_all_dim):
    a, b = multipliers(width, factor, mscale, mscale_all_dim)
    return a, b if mscale and mscale_all_dim else width**-0.5


def _multipliers_library(width, factor, mscale, mscale_all_dim):
    ratio = yarn_mscale(factor)
    if mscale and mscale_all_dim:
        ratio = yarn_mscale(factor, mscale) / yarn_mscale(factor, mscale_all_dim)
    squared = yarn_mscale(factor, mscale_all_dim) ** 2 if mscale_all_dim else 1.0
    return ratio, squared / math.sqrt(width)


def _multipliers_logs(width, factor, mscale, mscale_all_dim):
    a, b = mscale or 0.0, mscale_all_dim or 0.0
    grown = math.log(factor) / 10
    on_scores = (1 + grown * b) ** 2  # 1 where b is 0, as it should be
    on_tables = (1 + grown * a) / (1 + grown * b) if a * b else 1 + grown
    return on_tables, on_scores / math.sqrt(width)


@exercise(
    "yarn-multipliers",
    solution=multipliers,
    notebook="13_long_context",
    title="The two multipliers",
    difficulty=2,
    importance=5,
    minutes=10,
    library=_multipliers_library,
    hints=(
        "There are three cases for each of the two results: both numbers given, one of them, "
        "none. Which of the two results looks at mscale at all?",
        "m(strength) = 0.1 * strength * ln(factor) + 1\n"
        "attention factor = m(mscale) / m(mscale_all_dim) if both are given, else m(1)\n"
        "softmax scale = width ** -0.5, times m(mscale_all_dim) ** 2 if that one is given",
    ),
    mutants=[
        Mutant(
            "wrong_field",
            _wrong_field,
            "You took mscale for the softmax scale. That one wants mscale_all_dim; in the released "
            "model both are 1, which hides the mistake.",
        ),
        Mutant(
            "no_square",
            _no_square,
            "You multiplied the softmax scale by m, not by its square: queries and keys count once "
            "each.",
        ),
        Mutant(
            "tables_only",
            _tables_only,
            "The softmax scale lacks its factor m(mscale_all_dim)^2. In V3, where the attention "
            "factor is 1, nothing of the correction would be left.",
        ),
        Mutant(
            "scale_only",
            _scale_only,
            "Your attention factor is always 1. It is in V3, where both numbers are equal; "
            "elsewhere it is m(mscale) / m(mscale_all_dim), or m(1) if one is not given.",
        ),
        Mutant(
            "both_on_tables",
            _both_on_tables,
            "You put both factors on the tables. Tables reach the rotary part of a score alone; "
            "the softmax scale reaches all of it.",
        ),
        Mutant(
            "factor_on_scale",
            _factor_on_scale,
            "You multiplied the softmax scale by the attention factor as well. That one goes on "
            "the tables alone; the scale has m(mscale_all_dim) ** 2 and nothing else.",
        ),
        Mutant("exchanged", _exchanged, "The two results are in the wrong order."),
        Mutant(
            "always_ratio",
            _always_ratio,
            "If one of the two is not given, the attention factor is m(1) and no ratio.",
        ),
        Mutant(
            "upside_down",
            _upside_down,
            "Your ratio is upside down: it is m(mscale) / m(mscale_all_dim).",
        ),
        Mutant(
            "scale_always",
            _scale_always,
            "Without mscale_all_dim the softmax scale has no extra factor: it stays width^-0.5.",
        ),
        Mutant(
            "not_given_is_one",
            _not_given_is_one,
            "With mscale given and mscale_all_dim not, the attention factor is m(1), whatever "
            "mscale says.",
        ),
        Mutant(
            "divided",
            _divided,
            "You divided the softmax scale by m^2. Longer texts blur attention; the factor makes "
            "it sharper: multiply.",
        ),
        Mutant("decimal_log", _decimal_log, "The logarithm is the natural one."),
        Mutant(
            "width_forgotten",
            _width_forgotten,
            "The softmax scale still begins with width^-0.5.",
        ),
        Mutant(
            "factor_built_in",
            _factor_built_in,
            "You fixed the factor at V3's 40. It is an argument.",
        ),
        Mutant(
            "one_if_not_given",
            _one_if_not_given,
            "Your attention factor is 1 if one number is not given. It is m(1) then.",
        ),
        Mutant(
            "scale_needs_both",
            _scale_needs_both,
            "You left out the softmax scale's factor if mscale is not given. It depends on "
            "mscale_all_dim alone.",
        ),
    ],
    alternatives=[
        Alternative("library", _multipliers_library),
        Alternative("logs", _multipliers_logs),
    ],
)
def check_multipliers(c):
    """V3, V2, the combinations that were shipped wrong, other factors, a factor of 1."""
    got = c.call(192, 40, 1.0, 1.0, returns=2, label="runs on V3's values, and returns two numbers")
    with c.part():
        c.close(got[0], 1.0, label="V3: attention factor 1", rtol=1e-4)
    with c.part():
        c.close(got[1], 0.135234, label="V3: softmax scale 0.13523", rtol=1e-4)
    # From Hugging Face's code, widths 192, factor 40.
    for name, mscale, all_dim, factor, scale in (
        ("V2's 0.707 and 0.707", 0.707, 0.707, 1.0, 0.114721),
        ("1 and 0.5", 1.0, 0.5, 1.155713, 0.101246),
        ("0.5 and 1", 0.5, 1.0, 0.865266, 0.135234),
        ("neither given", 0, 0, 1.368888, 0.072169),
        ("mscale_all_dim alone", 0, 0.5, 1.368888, 0.101246),
        ("mscale alone", 0.5, 0, 1.368888, 0.072169),
    ):
        with c.part():
            got = c.call(192, 40, mscale, all_dim, returns=2)
            c.close(got[0], factor, label=f"{name}: attention factor {factor}", rtol=1e-4)
            c.close(got[1], scale, label=f"{name}: softmax scale {scale}", rtol=1e-4)
    width, a, b = c.size(40, 90), c.choice([1.3, 1.5]), c.choice([1.8, 2.0])
    with c.part():
        got, want = [], []
        for s in (c.choice([1.5, 1.8]), c.choice([2.5, 6.5]), c.choice([55.0, 64.0])):
            got.append(list(c.call(width, s, a, b, returns=2)))
            # m from e^(10 (m - 1)) = s^strength, by halving.
            want.append([_solve(s, a) / _solve(s, b), _solve(s, b) ** 2 / width**0.5])
        c.close(got, want, label="another width, factor, and two numbers", rtol=1e-4)
    with c.part():
        got = c.call(width, 1, a, b, returns=2)
        label = "factor 1: nothing is stretched, nothing is multiplied"
        c.close(list(got), [1.0, width**-0.5], label=label, rtol=1e-4)


def _solve(factor, strength):
    low, high = 1.0, 9.0
    for _ in range(60):
        middle = (low + high) / 2
        if math.exp(10 * (middle - 1)) < factor**strength:
            low = middle
        else:
            high = middle
    return low
