"""Losses on a scale: bits per byte, of any tokenizer; nats above the floor, of whole documents."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch

from minids3.data.corpora import ALL_DOMAINS
from minids3.data.loading import Split
from minids3.model import Transformer

__all__ = ["bits_per_byte", "loss_above_floor"]


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


@torch.no_grad()
def loss_above_floor(
    model: Transformer, split: Split, n: int = 60, domains: Sequence[str] = ALL_DOMAINS
) -> dict[str, float]:
    """How far a model's loss is from the grammar's own surprisal, in nats per token, by domain.

    Documents are read one by one and whole, so that nothing of them is hidden; over fresh documents
    the mean is 0 for a perfect model and above it for every other.

    Args:
        model: with or without MTP modules, which are not asked.
        split: documents with their exact surprisals.
        n: at most so many of each domain, the first ones that are not too long for the model.
        domains: those to measure; one without documents is left out.

    Raises:
        ValueError: n below 1, or an unknown domain.
    """
    if n < 1:
        raise ValueError(f"n={n} must be 1 or more")
    device, found = next(model.parameters()).device, {}
    for domain in domains:
        part = split.only(domain)
        nats, tokens = 0.0, 0
        short = part.lengths() <= model.config.max_position_embeddings
        for index in short.nonzero().flatten()[:n].tolist():
            document = part.document(index).long().to(device)
            inputs, targets = document[None, :-1], document[None, 1:]
            nats += model.loss(inputs, targets, reduction="sum").item()
            nats -= float(part.bits[index]) * math.log(2)
            tokens += len(document) - 1
        if tokens:
            found[domain] = nats / tokens
    return found
