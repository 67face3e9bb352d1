"""A tiny probabilistic grammar: one program, three readings of it.

A document generator is an ordinary function `program(d)`. It writes fixed text with `d.emit` and
makes random choices with `d.pick` and `d.branch`; both write the text of what was chosen *at
once*. Running the same function against three different `d` gives

- `sample(program, rng)`: a document, with the surprisal of each choice and where it was made;
- `score(program, text)`: the surprisal of that very text, found by reading the choices back out
  of it;
- `entropy(program)`: the expected surprisal of a document.

What is exact. At every choice the texts of the options are *prefix-free* (no option begins
another), so whoever reads from left to right can tell which option was taken. By induction the
map from choices to text is one-to-one, hence the probability of a text is the product of the
probabilities of its choices: `score` is exact, and so is `entropy`, which adds up all structural
branches. There is no sampling and no bound in either, up to floating point. What is a bound: a
*model's* expected loss on the documents. It is at least the entropy (Shannon's source coding
theorem) and reaches it only for the true distribution.

`pick` or `branch`? `pick` promises symmetry: whatever is picked, the entropy of the rest of the
document is the same, so `entropy` follows one representative. `branch` promises nothing, and
`entropy` walks every option. A wrong promise is found by the tests: `entropy(program, rng)`
follows random representatives and must give the same number each time.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Protocol

__all__ = [
    "Choice",
    "Director",
    "EntropyWalker",
    "GrammarError",
    "Program",
    "Sampler",
    "Scorer",
    "entropy",
    "entropy_bits",
    "probabilities",
    "sample",
    "score",
    "trace",
    "zipf",
]


class GrammarError(RuntimeError):
    """The grammar itself is wrong: a choice whose options cannot be told apart."""


@dataclass(frozen=True)
class Choice:
    """One random choice: the character offset of its text, and its surprisal in bits."""

    offset: int
    bits: float


class Director(Protocol):
    """What a program is run against."""

    def emit(self, text: str) -> None:
        """Write fixed text."""

    def pick(
        self,
        options: Sequence[Any],
        weights: Sequence[float] | None = None,
        show: Callable[[Any], str] = str,
    ) -> Any:
        """Choose an option, write `show(option)`; the rest is equally uncertain whatever it is."""

    def branch(
        self,
        options: Sequence[Any],
        weights: Sequence[float] | None = None,
        show: Callable[[Any], str] = str,
    ) -> Any:
        """Choose an option and write `show(option)`; what follows may depend on it in any way."""


Options = Sequence[Any]
Weights = Sequence[float] | None
Show = Callable[[Any], str]
Program = Callable[[Any], None]


@lru_cache(maxsize=4096)
def zipf(n: int, exponent: float = 1.0) -> tuple[float, ...]:
    """Weights 1, 1/2, 1/3, ... raised to `exponent`: a few options are common and most are rare."""
    return tuple(1.0 / (rank + 1) ** exponent for rank in range(n))


@lru_cache(maxsize=65536)
def probabilities(weights: tuple[float, ...]) -> tuple[float, ...]:
    """Weights scaled to sum to one; ValueError if one is not positive."""
    if min(weights) <= 0:
        raise ValueError("every weight must be positive: leave impossible options out")
    total = math.fsum(weights)
    return tuple(w / total for w in weights)


@lru_cache(maxsize=65536)
def entropy_bits(weights: tuple[float, ...]) -> float:
    """Entropy -sum p log2 p of one choice, in bits."""
    return -math.fsum(p * math.log2(p) for p in probabilities(weights))


def _weights(options: Sequence[Any], weights: Sequence[float] | None) -> tuple[float, ...]:
    if not options:
        raise GrammarError("a choice needs at least one option")
    if weights is None:
        return (1.0,) * len(options)
    if len(weights) != len(options):
        raise GrammarError(f"{len(options)} options but {len(weights)} weights")
    return tuple(weights)


@lru_cache(maxsize=65536)
def _require_prefix_free(texts: tuple[str, ...]) -> None:
    ordered = sorted(texts)
    for first, second in pairwise(ordered):
        if second.startswith(first):
            raise GrammarError(f"options {first!r} and {second!r} cannot be told apart")


class _Base:
    pick: Callable[..., Any]

    def branch(self, options: Options, weights: Weights = None, show: Show = str) -> Any:
        """The same as `pick` unless an interpreter says otherwise."""
        return self.pick(options, weights, show)


class Sampler(_Base):
    """Writes a document; uses only `rng.random()`, which is stable across Pythons."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.pieces: list[str] = []
        self.length = 0
        self.choices: list[Choice] = []

    def emit(self, text: str) -> None:
        """Write fixed text."""
        self.pieces.append(text)
        self.length += len(text)

    def pick(self, options: Options, weights: Weights = None, show: Show = str) -> Any:
        """Draw an option and write its text."""
        probs = probabilities(_weights(options, weights))
        threshold = self.rng.random()
        index, reached = 0, probs[0]
        while threshold >= reached and index + 1 < len(probs):
            index += 1
            reached += probs[index]
        self.choices.append(Choice(self.length, -math.log2(probs[index])))
        self.emit(show(options[index]))
        return options[index]


class Scorer(_Base):
    """Follows the program along a text and recognises each choice by what comes next."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.choices: list[Choice] = []

    def _fail(self, wanted: str) -> None:
        got = self.text[self.position : self.position + 20]
        raise ValueError(
            f"not a document of this grammar: at character {self.position} expected {wanted}, "
            f"got {got!r}"
        )

    def emit(self, text: str) -> None:
        """Step over fixed text."""
        if not self.text.startswith(text, self.position):
            self._fail(repr(text))
        self.position += len(text)

    def pick(self, options: Options, weights: Weights = None, show: Show = str) -> Any:
        """Recognise an option by the text that follows."""
        probs = probabilities(_weights(options, weights))
        texts = [show(option) for option in options]
        found = [i for i, t in enumerate(texts) if self.text.startswith(t, self.position)]
        if len(found) > 1:
            raise GrammarError(f"options {[texts[i] for i in found]} cannot be told apart")
        if not found:
            shown = ", ".join(repr(t) for t in texts[:4]) + (", ..." if len(texts) > 4 else "")
            self._fail(f"one of {shown}")
        index = found[0]
        self.choices.append(Choice(self.position, -math.log2(probs[index])))
        self.position += len(texts[index])
        return options[index]


class EntropyWalker:
    """Follows one path of branches (first options where `path` ends) and adds up its worth."""

    def __init__(self, path: tuple[int, ...], rng: random.Random | None = None) -> None:
        self.path = path
        self.rng = rng
        self.taken: list[int] = []
        self.widths: list[int] = []
        self.log2_probability = 0.0
        self.pick_bits = 0.0

    def emit(self, text: str) -> None:
        """Fixed text has no entropy."""

    def pick(self, options: Options, weights: Weights = None, show: Show = str) -> Any:
        """Add the entropy of the choice and follow a representative."""
        weights = _weights(options, weights)
        _require_prefix_free(tuple(show(option) for option in options))
        self.pick_bits += entropy_bits(weights)
        if self.rng is None:
            return options[0]
        return options[int(self.rng.random() * len(options))]

    def branch(self, options: Options, weights: Weights = None, show: Show = str) -> Any:
        """Take the option that the path says, and its probability."""
        probs = probabilities(_weights(options, weights))
        _require_prefix_free(tuple(show(option) for option in options))
        depth = len(self.taken)
        index = self.path[depth] if depth < len(self.path) else 0
        self.taken.append(index)
        self.widths.append(len(options))
        self.log2_probability += math.log2(probs[index])
        return options[index]


def sample(program: Program, rng: random.Random) -> tuple[str, float, tuple[Choice, ...]]:
    """Draw a document: its text, its surprisal in bits, and the choices it came from."""
    sampler = Sampler(rng)
    program(sampler)
    bits = math.fsum(choice.bits for choice in sampler.choices)
    return "".join(sampler.pieces), bits, tuple(sampler.choices)


def trace(program: Program, text: str) -> tuple[Choice, ...]:
    """The choices behind a text, in order; ValueError with the position if there are none."""
    scorer = Scorer(text)
    program(scorer)
    if scorer.position != len(text):
        scorer._fail("the end of the document")
    return tuple(scorer.choices)


def score(program: Program, text: str) -> float:
    """Exact surprisal -log2 P(text) in bits; ValueError with the position if P(text) = 0."""
    return math.fsum(choice.bits for choice in trace(program, text))


def entropy(program: Program, rng: random.Random | None = None) -> float:
    """Exact entropy of a document in bits: sum over branch paths of P (-log2 P + bits of picks).

    With `rng` random representatives of the picks are followed; the result must not depend on it.
    """
    terms: list[float] = []
    path: tuple[int, ...] | None = ()
    while path is not None:
        walker = EntropyWalker(path, rng)
        program(walker)
        probability = 2.0**walker.log2_probability
        terms.append(probability * (walker.pick_bits - walker.log2_probability))
        path = _next_path(walker.taken, walker.widths)
    return math.fsum(terms)


def _next_path(taken: list[int], widths: list[int]) -> tuple[int, ...] | None:
    """The next path in lexicographic order, as an odometer counts; None after the last."""
    depth = len(taken) - 1
    while depth >= 0 and taken[depth] + 1 == widths[depth]:
        depth -= 1
    if depth < 0:
        return None
    return (*taken[:depth], taken[depth] + 1)
