"""Four domains that look different, and the mixture of them: documents with their exact surprisal.

`stories` (two things moved between places, then a question), `arithmetic` (worked column by
column), `code` (functions with a docstring and asserts that execute) and `facts` (questions about
an invented world). A fifth, `notes` (numbers to look up in the text itself), belongs to the endless
stream alone. Everything is seeded: the same call gives the same documents on every machine.

The first words differ between the domains, so a text belongs to at most one of them, and the
surprisal of a document drawn from the mixture is exactly -log2 P(domain) + bits within the
domain.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from minids3.data import grammar
from minids3.data.corpora import arithmetic, code, facts, notes, stories
from minids3.data.grammar import Choice

__all__ = [
    "ALL_DOMAINS",
    "DOMAINS",
    "PROBABILITIES",
    "PROGRAMS",
    "STREAM_PROBABILITIES",
    "VERSION",
    "Document",
    "arithmetic",
    "code",
    "draw",
    "entropy",
    "facts",
    "generate",
    "mixture",
    "mixture_entropy",
    "notes",
    "score",
    "stories",
    "trace",
]

DOMAINS = ("stories", "arithmetic", "code", "facts")
ALL_DOMAINS = (*DOMAINS, "notes")
PROGRAMS: dict[str, grammar.Program] = {
    "stories": stories.program,
    "arithmetic": arithmetic.program,
    "code": code.program,
    "facts": facts.program,
    "notes": notes.program,
}
# Inversely proportional to the mean tokens of a document, so that domains get about equal tokens.
PROBABILITIES: dict[str, float] = {"stories": 0.19, "arithmetic": 0.26, "code": 0.27, "facts": 0.28}
# The endless stream's. About a third of the tokens are notes: looking something up in the text is
# the skill that takes the longest to learn.
STREAM_PROBABILITIES: dict[str, float] = {
    "stories": 0.16, "arithmetic": 0.21, "code": 0.21, "facts": 0.21, "notes": 0.21,
}  # fmt: skip
VERSION = "1"  # of the generators: raise it when any document changes


@dataclass(frozen=True)
class Document:
    """A generated text, its exact surprisal in bits, and the random choices it came from."""

    text: str
    domain: str
    bits: float
    choices: tuple[Choice, ...] = ()


def _program(domain: str) -> grammar.Program:
    if domain not in PROGRAMS:
        raise ValueError(f"unknown domain {domain!r}: choose one of {', '.join(DOMAINS)}")
    return PROGRAMS[domain]


def _require_count(n: int) -> None:
    if n < 0:
        raise ValueError(f"n must not be negative, got {n}")


def generate(domain: str, n: int, seed: int = 0) -> list[Document]:
    """Draw `n` documents of a domain; `bits` is the surprisal within the domain."""
    program = _program(domain)
    _require_count(n)
    rng = random.Random(f"{domain}:{seed}")
    drawn = (grammar.sample(program, rng) for _ in range(n))
    return [Document(text, domain, bits, choices) for text, bits, choices in drawn]


def entropy(domain: str) -> float:
    """Exact entropy of a document of the domain in bits, the domain being known."""
    return grammar.entropy(_program(domain))


def score(domain: str, text: str) -> float:
    """Exact surprisal of a text within its domain, in bits; ValueError if it is impossible."""
    return grammar.score(_program(domain), text)


def trace(domain: str, text: str) -> tuple[Choice, ...]:
    """The choices a text came from; ValueError if the grammar cannot write it."""
    return grammar.trace(_program(domain), text)


def draw(rng: random.Random, probabilities: Mapping[str, float] | None = None) -> Document:
    """Draw one document of a mixture; `bits` includes the domain's choice.

    Args:
        rng: only its `random()` is used, which is stable across Pythons.
        probabilities: domain -> probability, summing to one; `PROBABILITIES` by default.
    """
    probabilities = PROBABILITIES if probabilities is None else probabilities
    threshold, reached = rng.random(), 0.0
    for domain, probability in probabilities.items():  # noqa: B007  the last one is kept
        reached += probability
        if threshold < reached:
            break
    text, bits, choices = grammar.sample(_program(domain), rng)
    return Document(text, domain, bits - math.log2(probability), choices)


def mixture(n: int, seed: int = 0) -> Iterator[Document]:
    """Draw `n` documents, domains by `PROBABILITIES`; `bits` includes the domain's choice."""
    _require_count(n)
    rng = random.Random(f"mixture:{seed}")
    for _ in range(n):
        yield draw(rng)


def mixture_entropy() -> float:
    """Exact entropy of a document of the mixture in bits: H(domain) + sum P(domain) H(document)."""
    return math.fsum(p * (entropy(d) - math.log2(p)) for d, p in PROBABILITIES.items())
