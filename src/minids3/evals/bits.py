"""Bits per byte: the loss of any model with any tokenizer, on one scale."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

__all__ = ["bits_per_byte"]


def bits_per_byte(losses: Iterable[float], n_tokens: Iterable[int], texts: Sequence[str]) -> float:
    """Loss on texts in bits per byte of their UTF-8, whatever the tokens (The Pile, section 3.1).

    Args:
        losses: one a batch, the mean over its tokens in nats.
        n_tokens: one a batch, how many tokens that was, control tokens included.
        texts: what all batches together say, without control tokens, in as many strings as it has.

    Raises:
        TypeError: ``texts`` is one string.
        ValueError: not as many losses as counts, a count below zero, or no text.
    """
    if isinstance(texts, str):
        raise TypeError("texts must be a list of strings, got one string: write [text]")
    losses, n_tokens = list(losses), list(n_tokens)
    if len(losses) != len(n_tokens):
        raise ValueError(
            f"{len(losses)} losses and {len(n_tokens)} numbers of tokens: give one of each a batch"
        )
    if any(n < 0 for n in n_tokens):
        raise ValueError(f"n_tokens has {min(n_tokens)}: a batch has 0 tokens or more")
    n_bytes = sum(len(text.encode()) for text in texts)
    if n_bytes == 0:
        raise ValueError("the texts have no bytes: give what the tokens say")
    nats = math.fsum(loss * n for loss, n in zip(losses, n_tokens, strict=True) if n)
    return nats / math.log(2) / n_bytes
