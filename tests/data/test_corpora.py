"""What the documents say is true, by readers that know nothing of the generators."""

from __future__ import annotations

import builtins
import functools
import math
import operator
import re

import pytest

from minids3.data import corpora, load_split
from minids3.data.grammar import probabilities

N = 400


def texts(domain):
    return [document.text for document in corpora.generate(domain, N, seed=21)]


def test_same_seed_same_documents():
    assert corpora.generate("code", 20, 3) == corpora.generate("code", 20, 3)
    assert corpora.generate("code", 20, 3) != corpora.generate("code", 20, 4)


def test_no_document_rests_on_how_this_python_adds_up(monkeypatch):
    """Since 3.12 'sum' compensates sums of floats, so that data built with it would differ."""

    def exact(values, start=0):
        values = [start, *values]
        return math.fsum(values) if any(isinstance(v, float) for v in values) else add(*values)

    def add(*values):
        return functools.reduce(operator.add, values)

    before = list(corpora.mixture(200, 5))
    probabilities.cache_clear()
    monkeypatch.setattr(builtins, "sum", exact)
    assert list(corpora.mixture(200, 5)) == before
    monkeypatch.undo()
    probabilities.cache_clear()


def test_code_executes():
    for text in texts("code"):
        assert text.count("assert ") == 2
        exec(compile(text, "<document>", "exec"), {})
        broken = re.sub(r"== (.*)\n$", r"== [\1, 'other']\n", text)
        with pytest.raises(AssertionError):
            exec(compile(broken, "<document>", "exec"), {})


def test_arithmetic_is_right():
    operations = {"Add": "+", "Subtract": "-", "Multiply": "*"}
    for text in texts("arithmetic"):
        first, *lines = text.split("\n")
        a, b = map(int, re.findall(r"\d+", first))
        expected = eval(f"{a} {operations[first.split('.')[0]]} {b}")
        assert lines[-1] == f"A: {expected}"
        assert expected >= 0
        equations = re.findall(r"([\d +*-]+) = (\d+)", text)
        assert len(equations) >= 2
        for left, right in equations:
            assert eval(left) == int(right), text


def test_answers_of_stories_follow():
    """A second tracker, written from the sentences alone."""
    place = r"((?:in|on|under|behind|by|at) the \w+)"
    for text in texts("stories"):
        where = {}
        body, _, question = text.split("\n")
        for sentence in re.findall(r"[^.]+\.", body):
            plain = sentence.split(", because")[0].rstrip(".")
            left = re.search(rf" left a \w+ (\w+) {place}", plain)
            kept = re.search(rf" had a \w+ (\w+) and kept it {place}", plain)
            moved = re.search(rf" (?:carried|hid) the (\w+) (?:away and left it )?{place}", plain)
            beside = re.search(r" put the (\w+) next to the (\w+)", plain)
            swapped = re.search(r" swapped the (\w+) and the (\w+)", plain)
            found = re.search(rf" looked for the (\w+) and found it {place}", plain)
            if left or kept or moved:
                thing, spot = (left or kept or moved).groups()
                where[thing] = spot
            elif beside:
                where[beside[1]] = where[beside[2]]
            elif swapped:
                one, two = swapped.groups()
                where[one], where[two] = where[two], where[one]
            elif found:
                assert where[found[1]] == found[2], text
        asked, again, answer = re.fullmatch(
            rf"Where is the (\w+) now\? The (\w+) is {place}\.", question
        ).groups()
        assert asked == again
        assert where[asked] == answer, text


def test_facts_are_consistent():
    """Each relation maps a town to one value only, and reverse questions agree with it."""
    known = {}
    patterns = {
        "river": [
            r"The (\w+) runs through ([A-Z]\w+)",
            r"([A-Z]\w+) lies on the (\w+)",
            r"([A-Z]\w+) is a town in \w+\. The (\w+) runs",
        ],
        "ruler": [r"(\w+ \w+) (?:rules|governs) ([A-Z]\w+)"],
        "craft": [r"They make (\w+) in (\w+)"],
        "region": [r"([A-Z]\w+) is in (\w+)", r"([A-Z]\w+) is a town in (\w+)"],
    }
    swapped = {r"The (\w+) runs through ([A-Z]\w+)", *patterns["ruler"], *patterns["craft"]}
    count = 0
    for text in texts("facts"):
        for relation, regexes in patterns.items():
            for regex in regexes:
                for one, two in re.findall(regex, text):
                    town, value = (two, one) if regex in swapped else (one, two)
                    assert known.setdefault((relation, town), value) == value
                    count += 1
    assert count > N
    assert len(known) == 72
    rivers = {value for (relation, _), value in known.items() if relation == "river"}
    assert len(rivers) == 18


def test_few_enough_words_and_lengths():
    words, split = set(), load_split("train")
    for document in corpora.mixture(3000, seed=9):
        words |= set(re.findall(r"[A-Za-z]+", document.text))
    assert 300 < len(words) < 900
    assert int(split.lengths().min()) >= 30
    assert int(split.lengths().max()) <= 150
    tokens = [len(split.only(domain).tokens) for domain in corpora.DOMAINS]
    assert max(tokens) < 1.1 * min(tokens)
