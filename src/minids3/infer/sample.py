"""From logits to the next token: temperature, top-p, greedy."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["check_settings", "next_token_probs", "sample"]


def check_settings(temperature: float, top_p: float) -> None:
    """Raise ``ValueError`` if a setting is out of range."""
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature={temperature} must be 0 (greedy) or more, and finite")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} must lie in (0, 1]")


def next_token_probs(logits: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """The distribution that ``sample`` draws from.

    Nucleus sampling (Holtzman et al. 2020, arXiv 1904.09751): keep the smallest set of most likely
    tokens whose probability reaches ``top_p``, and renormalise. Temperature divides the logits
    first; 0 puts all probability on the most likely token (the first of equals).

    Args:
        logits: ``[..., V]``.
        temperature: 0 or more.
        top_p: in (0, 1].

    Returns:
        ``[..., V]`` fp32 probabilities.

    Raises:
        ValueError: a setting is out of range.
    """
    check_settings(temperature, top_p)
    logits = logits.float()
    if temperature == 0:
        best = logits.argmax(-1, keepdim=True)
        return torch.zeros_like(logits).scatter(-1, best, 1.0)
    probs = torch.softmax(logits / temperature, -1)
    if top_p == 1:
        return probs
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    # A token stays if the ones before it have not reached top_p: the first always stays.
    ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0.0)
    kept = torch.zeros_like(probs).scatter(-1, order, ordered)
    return kept / kept.sum(-1, keepdim=True)


def sample(
    logits: Tensor,
    temperature: float = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw one token id per row of ``logits [B, V]``; returns ``[B]`` int64.

    Arguments and errors as ``next_token_probs``; ``generator`` makes the draw reproducible.
    """
    check_settings(temperature, top_p)
    if temperature == 0:
        return logits.argmax(-1)
    probs = next_token_probs(logits, temperature, top_p)
    return torch.multinomial(probs, 1, generator=generator)[..., 0]
