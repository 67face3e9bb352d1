"""Count the pairs of neighbours in a list of words."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from minids3.course.checker import Checker
from minids3.course.registry import Alternative, Mutant, exercise


def count_pairs(words, times):
    """How often each pair of neighbours occurs.

    words: list of words, each a list of token ids
    times: times[i] says how often words[i] occurs in the text
    returns a dict {(left, right): count}
    """
    counts = {}
    for word, n in zip(words, times, strict=True):
        for i in range(len(word) - 1):
            pair = (word[i], word[i + 1])
            counts[pair] = counts.get(pair, 0) + n
    return counts


def _no_times(words, times):
    return dict(Counter(pair for word in words for pair in pairwise(word)))


def _across_words(words, times):
    stream = [i for word, n in zip(words, times, strict=True) for _ in range(n) for i in word]
    return dict(Counter(pairwise(stream)))


def _once_per_word(words, times):
    counts = {}
    for word, n in zip(words, times, strict=True):
        for pair in set(pairwise(word)):
            counts[pair] = counts.get(pair, 0) + n
    return counts


def _unordered(words, times):
    counts = {}
    for word, n in zip(words, times, strict=True):
        for pair in pairwise(word):
            pair = tuple(sorted(pair))
            counts[pair] = counts.get(pair, 0) + n
    return counts


def _steps_of_two(words, times):
    counts = {}
    for word, n in zip(words, times, strict=True):
        for pair in zip(word[::2], word[1::2], strict=False):
            counts[pair] = counts.get(pair, 0) + n
    return counts


def _overwrites(words, times):
    counts = {}
    for word, n in zip(words, times, strict=True):
        for pair in pairwise(word):
            counts[pair] = n
    return counts


def _count_with_counter(words, times):
    counts = Counter()
    for i, word in enumerate(words):
        for pair in pairwise(word):
            counts[pair] += times[i]
    return counts


def _count_by_repeating(words, times):
    pairs = []
    for word, n in zip(words, times, strict=True):
        pairs += [*pairwise(word)] * n
    return {pair: pairs.count(pair) for pair in set(pairs)}


def _random_words(c: Checker, low: int = 0, high: int = 4) -> tuple[list[list[int]], list[int]]:
    words = [c.randint(low, high, c.size(3, 7)).tolist() for _ in range(c.size(4, 6))]
    return words, c.randint(2, 9, len(words)).tolist()


def _one_short(words, times):
    return count_pairs([word[:-1] for word in words], times)


def _no_overlap(words, times):
    counts = {}
    for word, n in zip(words, times, strict=True):
        last = -1
        for i, pair in enumerate(pairwise(word)):
            if pair[0] != pair[1] or last != i - 1 or word[i - 1] != word[i]:
                counts[pair] = counts.get(pair, 0) + n
                last = i
    return counts


def _listed_once(words, times):
    table = {tuple(word): n for word, n in zip(words, times, strict=True)}
    return count_pairs([list(word) for word in table], list(table.values()))


@exercise(
    "bpe-count-pairs",
    solution=count_pairs,
    notebook="01_data_and_tokens",
    title="Count the neighbours",
    difficulty=1,
    importance=4,
    minutes=5,
    hints=(
        "A word of n tokens has how many pairs of neighbours? And if that word occurs in the text "
        "300 times, how much does one of its pairs add to the count?",
        """
        counts = empty dict
        for each word and its number of times n:
            for each token and the token after it:
                add n to counts[(token, next)], which starts at 0
        return counts
        """,
    ),
    mutants=[
        Mutant(
            "no_times",
            _no_times,
            "You counted every word once. A word that occurs 300 times in the text brings its "
            "pairs 300 times: add times[i], not 1.",
        ),
        Mutant(
            "across_words",
            _across_words,
            "You counted pairs across the border between two words. Merges never cross a word, "
            "or ' the' and ' fox' would grow together.",
        ),
        Mutant(
            "once_per_word",
            _once_per_word,
            "A pair that occurs twice inside one word counts twice; a set forgets the second.",
        ),
        Mutant(
            "unordered",
            _unordered,
            "You sorted the pair. Order matters: 'th' and 'ht' are different tokens.",
        ),
        Mutant(
            "steps_of_two",
            _steps_of_two,
            "You walked in steps of two. In [a, b, c] both (a, b) and (b, c) are neighbours.",
        ),
        Mutant(
            "overwrites",
            _overwrites,
            "You set the count instead of adding to it, so only the last word's count is left.",
        ),
        Mutant(
            "one_short",
            _one_short,
            "The last pair of each word is missing: a word of n tokens has n - 1 pairs, so the "
            "loop runs to the last token but one.",
        ),
        Mutant(
            "no_overlap",
            _no_overlap,
            "You counted [4, 4, 4] once. Pairs overlap when they are counted: a token is the "
            "right half of one pair and the left half of the next.",
        ),
        Mutant(
            "listed_once",
            _listed_once,
            "A word that is listed twice was counted once. Add to the count for every entry of "
            "the list; do not collect the words in a dict first.",
        ),
    ],
    alternatives=[
        Alternative("with_counter", _count_with_counter),
        Alternative("by_repeating", _count_by_repeating),
    ],
)
def check_count_pairs(c: Checker) -> None:
    """A small case by hand, random words, and the edges."""
    got = c.call([[1, 2, 3]], [1], label="runs on one word [1, 2, 3]")
    c.equal(got, {(1, 2): 1, (2, 3): 1}, label="three tokens have two pairs of neighbours")
    with c.part():
        got = c.call([[5, 6], [6, 7]], [1, 1])
        c.equal(got, {(5, 6): 1, (6, 7): 1}, label="no pair crosses from word to word")
    with c.part():
        got = c.call([[5, 6], [4, 5, 6]], [300, 2])
        c.equal(got, {(5, 6): 302, (4, 5): 2}, label="a word counts as often as it occurs")
    with c.part():
        got = c.call([[9, 4, 9, 4]], [1])
        c.equal(got, {(9, 4): 2, (4, 9): 1}, label="repeats count, and order matters")
    with c.part():
        words, times = _random_words(c)
        got = c.call(words, times)
        c.equal(got, count_pairs(words, times), label="random words are counted right")
    with c.part():
        got = c.call([[3], []], [7, 1])
        c.equal(got, {}, label="words of one token and of none have no pairs")
    with c.part():
        got = c.call([[44, 44, 44, 44], [44, 1012]], [1, 10])
        c.equal(
            got, {(44, 44): 3, (44, 1012): 10}, label="pairs overlap: [44, 44, 44, 44] has three"
        )
    with c.part():
        got = c.call([[5, 6], [5, 6], [6, 7]], [3, 4, 1])
        c.equal(got, {(5, 6): 7, (6, 7): 1}, label="a word that is listed twice counts twice")
