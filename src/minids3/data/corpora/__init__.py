"""Four domains that look different, and the mixture of them: documents with their exact surprisal.

`stories` (two things moved between places, then a question), `arithmetic` (worked column by
column), `code` (functions with a docstring and asserts that execute) and `facts` (questions about
an invented world). Everything is seeded: the same call gives the same documents on every machine.

The first words differ between the domains, so a text belongs to at most one of them, and the
surprisal of a document drawn from the mixture is exactly -log2 P(domain) + bits within the
domain.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from minids3.data import grammar
from minids3.data.corpora import arithmetic, code, facts, stories
from minids3.data.grammar import Choice

DOMAINS = ("stories", "arithmetic", "code", "facts")
PROGRAMS: dict[str, grammar.Program] = {
    "stories": stories.program,
    "arithmetic": arithmetic.program,
    "code": code.program,
    "facts": facts.program,
}
# Inversely proportional to the mean tokens of a document, so that domains get about equal tokens.
PROBABILITIES: dict[str, float] = {"stories": 0.19, "arithmetic": 0.26, "code": 0.27, "facts": 0.28}
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


def mixture(n: int, seed: int = 0) -> Iterator[Document]:
    """Draw `n` documents, domains by `PROBABILITIES`; `bits` includes the domain's choice."""
    _require_count(n)
    rng = random.Random(f"mixture:{seed}")
    for _ in range(n):
        threshold, reached = rng.random(), 0.0
        for domain in DOMAINS:
            reached += PROBABILITIES[domain]
            if threshold < reached:
                break
        text, bits, choices = grammar.sample(PROGRAMS[domain], rng)
        yield Document(text, domain, bits - math.log2(PROBABILITIES[domain]), choices)


def mixture_entropy() -> float:
    """Exact entropy of a document of the mixture in bits: H(domain) + sum P(domain) H(document)."""
    return math.fsum(p * (entropy(d) - math.log2(p)) for d, p in PROBABILITIES.items())
