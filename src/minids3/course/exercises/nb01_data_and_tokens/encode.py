"""Apply learned merges to a new word."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

from minids3.course.checker import Checker
from minids3.course.exercises.nb01_data_and_tokens.count_pairs import count_pairs
from minids3.course.exercises.nb01_data_and_tokens.merge import first_only, merge_pair
from minids3.course.registry import Alternative, Mutant, exercise


def encode_word(ids, ranks, first_id):
    """Apply the learned merges to a new word.

    ids: list of byte tokens; ranks: dict {(left, right): r} in the order learned
    merge number r makes token first_id + r
    returns the list of tokens when no more merge applies
    """
    ids = list(ids)
    while len(ids) > 1:
        pairs = [(ids[i], ids[i + 1]) for i in range(len(ids) - 1)]
        best = min(pairs, key=lambda pair: ranks.get(pair, math.inf))
        if best not in ranks:
            break
        ids = merge_pair(ids, best, first_id + ranks[best])
    return ids


def _leftmost(ids, ranks, first_id):
    ids = list(ids)
    while True:
        for pair in pairwise(ids):
            if pair in ranks:
                ids = first_only(ids, pair, first_id + ranks[pair])
                break
        else:
            return ids


def _latest_first(ids, ranks, first_id):
    ids = list(ids)
    while True:
        known = [pair for pair in pairwise(ids) if pair in ranks]
        if not known:
            return ids
        best = max(known, key=ranks.get)
        ids = merge_pair(ids, best, first_id + ranks[best])


def _only_once(ids, ranks, first_id):
    known = [pair for pair in pairwise(ids) if pair in ranks]
    if not known:
        return list(ids)
    best = min(known, key=ranks.get)
    return merge_pair(ids, best, first_id + ranks[best])


def _rank_as_id(ids, ranks, first_id):
    ids = list(ids)
    while True:
        known = [pair for pair in pairwise(ids) if pair in ranks]
        if not known:
            return ids
        best = min(known, key=ranks.get)
        ids = merge_pair(ids, best, ranks[best])


def _next_id(ids, ranks, first_id):
    new = encode_word(ids, ranks, first_id)
    return [i + 1 if i >= first_id else i for i in new]


def _short_word_crashes(ids, ranks, first_id):
    ids = list(ids)
    while True:
        best = min(pairwise(ids), key=lambda pair: ranks.get(pair, math.inf))
        if best not in ranks:
            return ids
        ids = merge_pair(ids, best, first_id + ranks[best])
        if len(ids) == 1:
            return ids


def _in_order(ids, ranks, first_id):
    for pair, rank in sorted(ranks.items(), key=lambda item: item[1]):
        ids = merge_pair(ids, pair, first_id + rank)
    return list(ids)


def _leftmost_best(ids, ranks, first_id):
    ids = list(ids)
    while True:
        places = [(ranks[p], i) for i, p in enumerate(pairwise(ids)) if p in ranks]
        if not places:
            return ids
        rank, i = min(places)
        ids[i : i + 2] = [first_id + rank]


def _learn(words: list[list[int]], times: list[int], n: int, first_id: int) -> dict:
    """A list of merges, learned honestly, for the check."""
    ranks = {}
    for r in range(n):
        counts = count_pairs(words, times)
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        ranks[best] = r
        words = [merge_pair(word, best, first_id + r) for word in words]
    return ranks


def _rightmost(ids, ranks, first_id):
    ids = list(ids)
    while True:
        places = [(ranks[p], -i) for i, p in enumerate(pairwise(ids)) if p in ranks]
        if not places:
            return ids
        rank, i = min(places)
        ids[-i : -i + 2] = [first_id + rank]


def _rank_zero_falsy(ids, ranks, first_id):
    ids = list(ids)
    while len(ids) > 1:
        best = min(pairwise(ids), key=lambda pair: ranks.get(pair) or math.inf)
        if best not in ranks:
            break
        ids = merge_pair(ids, best, first_id + ranks[best])
    return ids


def _most_frequent(ids, ranks, first_id):
    ids = list(ids)
    while True:
        known = Counter(pair for pair in pairwise(ids) if pair in ranks)
        if not known:
            return ids
        best = min(known, key=lambda pair: (-known[pair], ranks[pair]))
        ids = merge_pair(ids, best, first_id + ranks[best])


@exercise(
    "bpe-encode",
    solution=encode_word,
    notebook="01_data_and_tokens",
    title="Encode a new word",
    difficulty=3,
    importance=4,
    minutes=10,
    hints=(
        "Three merges were learned, in this order: (e, r), (h, e), (t, h). Cut 'ther' by them. "
        "Which one goes first, and is the answer the same if you start at the left?",
        """
        repeat:
            among the neighbouring pairs of ids that are in ranks,
                take the one with the smallest rank; stop if there is none
            ids = merge_pair(ids, that pair, first_id + its rank)
        return ids
        """,
    ),
    mutants=[
        Mutant(
            "leftmost",
            _leftmost,
            "You took the leftmost pair that has a merge. Take the one that was learned first, "
            "wherever it is: encoding must replay training.",
        ),
        Mutant(
            "latest_first",
            _latest_first,
            "You took the pair that was learned last. The smallest rank goes first.",
        ),
        Mutant(
            "most_frequent",
            _most_frequent,
            "You took the pair that is most frequent in the word. Counting was for training; now "
            "the pair that was learned first goes first.",
        ),
        Mutant(
            "only_once",
            _only_once,
            "You applied one merge and stopped. New tokens make new pairs: go on until none of "
            "the neighbours has a merge.",
        ),
        Mutant(
            "rank_as_id",
            _rank_as_id,
            "You wrote the rank itself as the token. Merge number r makes token first_id + r; "
            "the smaller ids are bytes.",
        ),
        Mutant(
            "next_id",
            _next_id,
            "Your new ids are one too high: merge number 0 makes token first_id.",
        ),
        Mutant(
            "short_word_crashes",
            _short_word_crashes,
            "A word of one token has no pairs, and min() of nothing raises. Stop before that.",
        ),
        Mutant(
            "rightmost",
            _rightmost,
            "Of equal pairs you took the one at the right. In [4, 4, 4] the first two go "
            "together, as in training.",
        ),
        Mutant(
            "rank_zero_falsy",
            _rank_zero_falsy,
            "Rank 0 counts as false in Python, so 'ranks.get(pair) or ...' takes the very first "
            "merge for an unknown pair. Compare with None, or give get() a default.",
        ),
    ],
    alternatives=[
        Alternative("all_merges_in_order", _in_order),
        Alternative("leftmost_of_the_best", _leftmost_best),
    ],
)
def check_encode_word(c: Checker) -> None:
    """By hand: order, chains and edges. Then merges learned from random words."""
    t, h, e, r = 1, 2, 3, 4
    ranks = {(e, r): 0, (h, e): 1, (t, h): 2, (7, 5): 3, (r, t): 4}  # 5 'er', 7 'th', 8 'ther'
    got = c.call([h, e], ranks, 5, label="runs on the word 'he'")
    c.equal(got, [6], label="one merge: 'he' is token 6")
    with c.part():
        got = c.call([h, e, r], ranks, 5)
        c.equal(got, [h, 5], label="the merge learned first goes first")
    with c.part():
        got = c.call([e, r, t], ranks, 5)
        c.equal(got, [5, t], label="whether it is at the right or at the left")
        got = c.call([5, 6, 5, 6, 7], {(6, 7): 0, (5, 6): 1}, 256)
        c.equal(got, [257, 5, 256], label="and whether or not another pair is more frequent")
    with c.part():
        got = c.call([t, h, e, r], ranks, 5)
        c.equal(got, [8], label="merges of merged tokens apply too")
    with c.part():
        got = c.call([t, r, r], ranks, 5)
        c.equal(got, [t, r, r], label="a word without known pairs stays as it is")
    with c.part():
        got = c.call([h], ranks, 5)
        c.equal(got, [h], label="a word of one token stays as it is")
    with c.part():
        got = c.call([34, 34, 34, 35, 34], {(34, 35): 0, (34, 34): 1}, 256)
        c.equal(got, [257, 256, 34], label="rank 0 is the lowest")
        got = c.call([34, 34, 34], {(34, 34): 0}, 256)
        c.equal(got, [256, 34], label="of equal pairs the left one goes first")
    with c.part():
        got = c.call([34, 35], {(34, 35): 1500}, 256)
        c.equal(got, [1756], label="merge number 1500 is one, too")
    with c.part():
        got = c.call([34, 35, 36], {(35, 36): 0}, 256)
        c.equal(got, [34, 256], label="one merge of 34 35 36, by the ranks given")
        got = c.call([34, 35, 36], {(34, 35): 0}, 256)
        c.equal(got, [256, 36], label="the same word by other ranks")
    with c.part():
        words = [c.randint(0, 4, 9).tolist() for _ in range(12)]
        learned = _learn(words, [1] * 12, 14, 100)
        word = c.randint(0, 4, c.size(18, 24)).tolist()
        got = c.call(word, learned, 100)
        c.equal(got, encode_word(word, learned, 100), label="a long word by 14 learned merges")
