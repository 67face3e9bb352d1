"""Merge a pair into one token."""

from __future__ import annotations

import torch

from minids3.course.checker import Checker
from minids3.course.registry import Alternative, Mutant, exercise
from minids3.data import bpe


def merge_pair(ids, pair, new_id):
    """Replace every occurrence of a pair by one new token, from left to right.

    ids: list of token ids; pair: (left, right); new_id: the token for both
    returns a new list
    """
    out = []
    i = 0
    while i < len(ids):
        if tuple(ids[i : i + 2]) == tuple(pair):
            out.append(new_id)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out


def _overlapping(ids, pair, new_id):
    out = []
    for i in range(len(ids)):
        if tuple(ids[i : i + 2]) == tuple(pair):
            out.append(new_id)
        elif i == 0 or tuple(ids[i - 1 : i + 1]) != tuple(pair):
            out.append(ids[i])
    return out


def _from_the_right(ids, pair, new_id):
    backwards = merge_pair(ids[::-1], (pair[1], pair[0]), new_id)
    return backwards[::-1]


def first_only(ids, pair, new_id):
    """Replace one occurrence only: wrong here, and part of wrong encoders."""
    for i in range(len(ids) - 1):
        if (ids[i], ids[i + 1]) == tuple(pair):
            return [*ids[:i], new_id, *ids[i + 2 :]]
    return list(ids)


def _keeps_right(ids, pair, new_id):
    out = []
    for i in range(len(ids)):
        out.append(new_id if tuple(ids[i : i + 2]) == tuple(pair) else ids[i])
    return out


def _loses_last(ids, pair, new_id):
    out = []
    i = 0
    while i < len(ids) - 1:
        if (ids[i], ids[i + 1]) == tuple(pair):
            out.append(new_id)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out


def _either_order(ids, pair, new_id):
    out = []
    i = 0
    while i < len(ids):
        if sorted(ids[i : i + 2]) == sorted(pair):
            out.append(new_id)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out


def _merge_by_recursion(ids, pair, new_id):
    if len(ids) < 2:
        return list(ids)
    if (ids[0], ids[1]) == tuple(pair):
        return [new_id, *_merge_by_recursion(ids[2:], pair, new_id)]
    return [ids[0], *_merge_by_recursion(ids[1:], pair, new_id)]


def _merge_with_stack(ids, pair, new_id):
    out, fresh = [], False
    for i in ids:
        if out and not fresh and (out[-1], i) == tuple(pair):
            out[-1], fresh = new_id, True
        else:
            out.append(i)
            fresh = False
    return out


def _as_text(ids, pair, new_id):
    text = " ".join(str(i) for i in ids)
    merged = text.replace(f"{pair[0]} {pair[1]}", str(new_id))
    return [int(i) for i in merged.split()]


def _pauses(ids, pair, new_id):
    out, i = [], 0
    while i < len(ids):
        if (*ids[i : i + 2],) == tuple(pair):
            out += [new_id, *ids[i + 2 : i + 3]]
            i += 3
        else:
            out.append(ids[i])
            i += 1
    return out


def _same_list(ids, pair, new_id):
    new = merge_pair(ids, pair, new_id)
    return ids if new == ids else new


def _with_for(ids, pair, new_id):
    out, skip = [], False
    for i, left in enumerate(ids):
        if skip:
            skip = False
        elif i + 1 < len(ids) and left == pair[0] and ids[i + 1] == pair[1]:
            out.append(new_id)
            skip = True
        else:
            out.append(left)
    return out


@exercise(
    "bpe-merge",
    solution=merge_pair,
    notebook="01_data_and_tokens",
    title="Merge a pair",
    difficulty=2,
    importance=4,
    minutes=8,
    library=bpe.merge_pair,
    hints=(
        "After a match at position i, at which position do you look next? And what is in the "
        "list that you return if the last token has no neighbour?",
        """
        out = empty list, i = 0
        while i is inside ids:
            if ids[i] and ids[i + 1] (if there is one) are the pair:
                append new_id; go on 2 further
            else:
                append ids[i]; go on 1 further
        return out
        """,
    ),
    mutants=[
        Mutant(
            "overlapping",
            _overlapping,
            "You used one token in two merges. In [a, a, a] the first two become one token and "
            "the third is left alone: after a match, step over both.",
        ),
        Mutant(
            "from_the_right",
            _from_the_right,
            "You merged from the right. Of [a, a, a] the first two must go together, or training "
            "and encoding cut the same word differently.",
        ),
        Mutant(
            "first_only",
            first_only,
            "You replaced the first occurrence and stopped. Every occurrence is replaced.",
        ),
        Mutant(
            "keeps_right",
            _keeps_right,
            "You wrote the new token and kept the right half too. The new token stands for both.",
        ),
        Mutant(
            "loses_last",
            _loses_last,
            "The last token is lost when it is not part of a match: the loop stops one too early.",
        ),
        Mutant(
            "either_order",
            _either_order,
            "You merged (right, left) as well. Only (left, right), in this order, is the pair.",
        ),
        Mutant(
            "as_text",
            _as_text,
            "You replaced in a text of numbers, where '1 2' also occurs inside of '11 2' and of "
            "'1 20'. Compare whole ids.",
        ),
        Mutant(
            "pauses",
            _pauses,
            "Right after a match you left one token alone. The next pair may begin there: step "
            "over two tokens, not three.",
        ),
        Mutant(
            "same_list",
            _same_list,
            "Where nothing matched you returned the caller's own list. Return a new one, or "
            "a later change to it changes the input too.",
        ),
    ],
    alternatives=[
        Alternative("by_recursion", _merge_by_recursion),
        Alternative("with_stack", _merge_with_stack),
        Alternative("with_for", _with_for),
    ],
)
def check_merge_pair(c: Checker) -> None:
    """Small cases by hand, then random ones."""
    got = c.call([1, 2, 3], (1, 2), 9, label="runs on [1, 2, 3]")
    c.equal(got, [9, 3], label="the pair (1, 2) became 9")
    with c.part():
        got = c.call([1, 2, 3, 1, 2, 1, 2], (1, 2), 9)
        c.equal(got, [9, 3, 9, 9], label="every occurrence is replaced")
    with c.part():
        got = c.call([4, 4, 4], (4, 4), 9)
        c.equal(got, [9, 4], label="[4, 4, 4] becomes [9, 4], left to right")
    with c.part():
        got = c.call([2, 1, 5], (1, 2), 9)
        c.equal(got, [2, 1, 5], label="order matters, and the last token stays")
    with c.part():
        ids = c.randint(0, 3, c.size(20, 30)).tolist()
        got = c.call(ids, (0, 0), 7)
        c.equal(got, merge_pair(ids, (0, 0), 7), label="runs of a repeated token are right")
    with c.part():
        got = c.call([], (1, 2), 9)
        c.equal(got, [], label="an empty list stays empty")
    with c.part():
        got = c.call([11, 2, 1, 20, 1, 2, 12], (1, 2), 1784)
        c.equal(got, [11, 2, 1, 20, 1784, 12], label="ids of several digits are compared whole")
    with c.part():
        kept = [31, 7, 256]
        got = c.call(kept, (7, 31), 300)
        c.equal(got, kept, label="nothing to merge: the same ids")
        c.true(got is not kept, "in a new list", "it is the very list that was passed in")
    with c.part():
        ids = torch.cat((c.randint(254, 259, c.size(30, 40)), torch.tensor([256, 257]))).tolist()
        got = c.call(ids, (256, 257), 999)
        c.equal(got, merge_pair(ids, (256, 257), 999), label="a long list of ids near 256 is right")
