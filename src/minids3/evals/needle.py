"""Needles in a haystack: can a model repeat a number that stood once, far back?

Made after the lessons of RULER (arXiv 2404.06654) and of its forerunners. Keys and values are drawn
anew for every text, so that nothing can be known beforehand; what is reported is the *actual* token
index of a needle, not the depth that was asked for; every needle is a distractor of the others; and
a key that does not occur is asked for as well, where a test that leaks would still find answers.

A text is read once, into the cache, and then every one of its needles is asked for, each question
for itself. An answer counts if the model's likeliest token is right at every digit.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minids3.data.corpora import notes
from minids3.data.tokenizer import Tokenizer
from minids3.infer.cache import KVCache, LatentCache, make_cache
from minids3.model.transformer import Transformer

__all__ = ["Found", "Haystack", "build_haystack", "draw_haystack", "recall", "recall_by_length"]

Build = Callable[
    [list[int], list[list[int]], list[list[int]], list[float], int], tuple[list[int], list[int]]
]


@dataclass(frozen=True)
class Haystack:
    """A text with needles, as token ids, and what each of them binds.

    ids: int64 ``[T]``, up to and without the first question.
    starts: index of the first token of each needle.
    keys, values: what is asked for and what is right.
    absent: keys that do not occur, as many as there are needles.
    """

    ids: Tensor
    starts: tuple[int, ...]
    keys: tuple[str, ...]
    values: tuple[int, ...]
    absent: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """The outcome for one needle.

    length: tokens of the text with question and answer.
    start: index of the needle's first token.
    right: whether every digit was the model's first choice.
    lucky: the same for a key that does not occur, with the needle's number as the "right" one.
    """

    length: int
    start: int
    right: bool
    lucky: bool

    @property
    def distance(self) -> int:
        """Tokens from the needle's first to the text's last."""
        return self.length - 1 - self.start


def build_haystack(
    head: list[int],
    lines: list[list[int]],
    needles: list[list[int]],
    depths: list[float],
    length: int,
) -> tuple[list[int], list[int]]:
    """Token ids of a text with needles, and the index at which each needle begins.

    The text is the head, as many whole lines from the front of ``lines`` as leave room for all
    needles, and the needles between them. If these lines have n tokens, a needle of depth d goes
    to the first boundary with at least d * n of them before it.

    Args:
        head: ids of the beginning.
        lines: ids of each line of hay.
        needles: ids of each needle.
        depths: from 0 (before the first line) to 1 (after the last), ascending, one a needle.
        length: the most tokens the text may have.

    Returns:
        The ids, and the start of each needle in them.

    Raises:
        ValueError: head and needles alone are longer, or the depths are no ascending numbers from 0
            to 1, one for each needle.
    """
    room = length - len(head) - sum(len(needle) for needle in needles)
    if room < 0:
        raise ValueError(
            f"length={length} has no room for head and needles: {length - room} tokens"
        )
    if len(depths) != len(needles) or list(depths) != sorted(depths):
        raise ValueError(f"need one ascending depth for each of {len(needles)} needles: {depths}")
    if any(not 0 <= depth <= 1 for depth in depths):
        raise ValueError(f"depths must be numbers from 0 to 1, got {depths}")
    ends = [0]
    for line in lines:
        if ends[-1] + len(line) > room:
            break
        ends.append(ends[-1] + len(line))
    ids, starts, waiting = list(head), [], list(zip(depths, needles, strict=True))
    for number, end in enumerate(ends):
        while waiting and waiting[0][0] * ends[-1] <= end:
            starts.append(len(ids))
            ids += waiting.pop(0)[1]
        if number + 1 < len(ends):
            ids += lines[number]
    return ids, starts


def draw_haystack(
    tokenizer: Tokenizer,
    length: int,
    rng: random.Random,
    n_needles: int = 4,
    build: Build = build_haystack,
) -> Haystack:
    """A text of at most ``length`` tokens, question and answer included, with fresh needles.

    Args:
        tokenizer: turns lines into ids.
        length: of text, question and answer.
        rng: where keys, values, hay and depths come from; depths are uniform.
        n_needles: how many there are.
        build: puts the text together.

    Raises:
        ValueError: there is no room, or ``build`` says so.
    """
    keys = rng.sample(notes.KEYS, 2 * n_needles)
    values = rng.sample(notes.NUMBERS, n_needles)
    needles = [
        tokenizer.encode(notes.needle(key, value)) for key, value in zip(keys, values, strict=False)
    ]
    things = "thing" if n_needles == 1 else "things"
    head = tokenizer.encode(f"Notes\n{n_needles} {things}\n", bos=True)
    asking = max(len(_question(tokenizer, key)) for key in keys) + len(str(values[0]))
    chosen = rng.choices(notes.LINES, notes.LINE_WEIGHTS, k=length // 4)
    lines = [tokenizer.encode(line) for line in chosen]
    depths = sorted(rng.random() for _ in range(n_needles))
    ids, starts = build(head, lines, needles, depths, length - asking)
    return Haystack(
        torch.tensor(ids),
        tuple(starts),
        tuple(keys[:n_needles]),
        tuple(values),
        tuple(keys[n_needles:]),
    )


def _question(tokenizer: Tokenizer, key: str) -> list[int]:
    return tokenizer.encode(notes.AGAIN + notes.question(key))


@torch.inference_mode()
def recall(model: Transformer, tokenizer: Tokenizer, hay: Haystack) -> list[Found]:
    """Ask for every needle of a text, and for as many keys that are not in it.

    Raises ``ValueError`` if the text with a question exceeds the model's positions.
    """
    model.eval()
    device = next(model.parameters()).device
    keys, n = (*hay.keys, *hay.absent), len(hay.keys)
    asked = [
        _question(tokenizer, key) + tokenizer.encode(str(value))
        for key, value in zip(keys, hay.values * 2, strict=True)
    ]
    digits = len(str(hay.values[0]))
    width = {len(question) for question in asked}
    if len(width) > 1:  # keys of one width keep the questions in one batch
        raise ValueError(f"questions of {sorted(width)} tokens: choose keys of one width")
    suffix = torch.tensor(asked, device=device)
    capacity = len(hay.ids) + suffix.shape[1]
    cache = make_cache(model.config, 1, capacity, device=device)
    model.hidden_states(hay.ids[None].to(device), cache)
    hidden = model.hidden_states(suffix[:, :-1], _copies(cache, model, len(keys)))
    best = model.lm_head(hidden[:, -digits:]).argmax(-1)
    right = (best == suffix[:, -digits:]).all(1).tolist()
    return [Found(capacity, start, right[i], right[n + i]) for i, start in enumerate(hay.starts)]


def _copies(cache: KVCache | LatentCache, model: Transformer, n: int) -> KVCache | LatentCache:
    """A cache for ``n`` rows that all begin with the one row of ``cache``."""
    device = next(model.parameters()).device
    wide = make_cache(model.config, n, cache.capacity, device=device)
    for name in ("latent", "k", "v"):
        if hasattr(cache, name):
            getattr(wide, name).copy_(getattr(cache, name).expand_as(getattr(wide, name)))
    wide.length = cache.length
    return wide


def recall_by_length(
    model: Transformer,
    tokenizer: Tokenizer,
    lengths: Sequence[int],
    texts: int = 8,
    n_needles: int = 4,
    seed: int = 0,
    build: Build = build_haystack,
) -> list[Found]:
    """Ask for all needles of ``texts`` fresh texts of every length.

    The same seed gives the same texts, so that models can be compared text by text.
    """
    found = []
    for length in lengths:
        rng = random.Random(f"needles:{seed}:{length}")
        for _ in range(texts):
            hay = draw_haystack(tokenizer, length, rng, n_needles, build)
            found += recall(model, tokenizer, hay)
    return found
