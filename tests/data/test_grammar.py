"""The three readings of a grammar agree with brute force and with each other."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from minids3.data import corpora, grammar


def tiny(d):
    """A grammar small enough to list: unequal weights, a symmetric pick, and an optional tail."""
    first = d.branch(("red", "blue"), (3, 1))
    d.emit(" ")
    d.pick(("cat", "dog", "hen"), (2, 1, 1))
    if first == "red":
        d.emit(" and ")
        d.pick(range(4))


def test_tiny_grammar_equals_brute_force():
    chances = {}
    animals = {"cat": 0.5, "dog": 0.25, "hen": 0.25}
    for (animal, p), n in itertools.product(animals.items(), range(4)):
        chances[f"red {animal} and {n}"] = 0.75 * p / 4
        chances[f"blue {animal}"] = 0.25 * p
    assert math.isclose(sum(chances.values()), 1.0)
    for text, p in chances.items():
        assert math.isclose(grammar.score(tiny, text), -math.log2(p))
    exact = -sum(p * math.log2(p) for p in chances.values())
    assert math.isclose(grammar.entropy(tiny), exact)
    rng = random.Random(0)
    drawn = [grammar.sample(tiny, rng)[0] for _ in range(4000)]
    assert set(drawn) == set(chances)
    for text, p in chances.items():
        error = math.sqrt(p * (1 - p) / 4000)
        assert abs(drawn.count(text) / 4000 - p) < 5 * error


@pytest.mark.parametrize("domain", corpora.DOMAINS)
def test_exact_entropy_equals_monte_carlo(domain):
    bits = [document.bits for document in corpora.generate(domain, 4000, seed=11)]
    mean = sum(bits) / len(bits)
    variance = sum((b - mean) ** 2 for b in bits) / (len(bits) - 1)
    error = math.sqrt(variance / len(bits))
    assert 0 < error < 0.5
    assert abs(mean - corpora.entropy(domain)) < 4 * error


@pytest.mark.parametrize("domain", corpora.DOMAINS)
def test_picks_are_symmetric(domain):
    exact = corpora.entropy(domain)
    for seed in range(3):
        other = grammar.entropy(corpora.PROGRAMS[domain], random.Random(seed))
        assert math.isclose(other, exact, rel_tol=1e-12)


def test_a_wrong_promise_of_symmetry_is_found():
    def lying(d):
        n = d.pick((1, 2))
        d.pick(range(4**n), show=lambda i: f":{i};")

    values = {grammar.entropy(lying, random.Random(seed)) for seed in range(8)}
    assert len(values) == 2


@pytest.mark.parametrize("domain", corpora.DOMAINS)
def test_score_reads_the_choices_back(domain):
    for document in corpora.generate(domain, 300, seed=5):
        assert math.isclose(corpora.score(domain, document.text), document.bits)
        assert corpora.trace(domain, document.text) == document.choices


@pytest.mark.parametrize("domain", corpora.DOMAINS)
def test_score_refuses_what_cannot_be_written(domain):
    document = corpora.generate(domain, 1, seed=7)[0]
    with pytest.raises(ValueError, match="the end of the document"):
        corpora.score(domain, document.text + " More.")
    with pytest.raises(ValueError, match="at character"):
        corpora.score(domain, document.text[: len(document.text) // 2])
    with pytest.raises(ValueError, match="at character 0 expected"):
        corpora.score(domain, "")
    for other in corpora.DOMAINS:
        if other != domain:
            with pytest.raises(ValueError, match="at character"):
                corpora.score(other, document.text)


def test_ambiguous_choices_are_a_fault_of_the_grammar():
    def ambiguous(d):
        d.pick(("an", "ant"))

    with pytest.raises(grammar.GrammarError, match="cannot be told apart"):
        grammar.entropy(ambiguous)
    with pytest.raises(grammar.GrammarError, match="cannot be told apart"):
        grammar.score(ambiguous, "ant")
    with pytest.raises(grammar.GrammarError, match="2 options but 1 weights"):
        grammar.entropy(lambda d: d.pick(("a", "b"), (1,)))
    with pytest.raises(ValueError, match="positive"):
        grammar.entropy(lambda d: d.pick(("a", "b"), (1, 0)))


def test_mixture_adds_the_choice_of_the_domain():
    documents = list(corpora.mixture(3000, seed=4))
    assert documents == list(corpora.mixture(3000, seed=4))
    assert math.isclose(sum(corpora.PROBABILITIES.values()), 1.0)
    for document in documents[:200]:
        inside = corpora.score(document.domain, document.text)
        p = corpora.PROBABILITIES[document.domain]
        assert math.isclose(document.bits, inside - math.log2(p))
    for domain, p in corpora.PROBABILITIES.items():
        share = sum(document.domain == domain for document in documents) / 3000
        assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / 3000)
    bits = [document.bits for document in documents]
    mean = sum(bits) / 3000
    error = math.sqrt(sum((b - mean) ** 2 for b in bits) / 2999 / 3000)
    assert abs(mean - corpora.mixture_entropy()) < 4 * error


def test_bad_arguments():
    with pytest.raises(ValueError, match="unknown domain 'poems': choose one of stories"):
        corpora.generate("poems", 1)
    with pytest.raises(ValueError, match="negative"):
        corpora.generate("stories", -1)
