"""Speculative decoding: guess some tokens, check them in one pass, change nothing about the text.

A guess is cheap if a small module makes it (V3's MTP module, TR section 5.4.3), and checking k
guesses costs one pass over k + 1 tokens, which reads the weights once. The rule that keeps the
distribution of the text (Leviathan et al. 2022, arXiv 2211.17192; Chen et al. 2023, arXiv
2302.01318):

accept    a guess x drawn from q with probability min(1, p(x) / q(x));
reject    then draw from the residual, (p - q)+ normalised, and drop all later guesses;
bonus     if every guess was accepted, draw one more token from p.

So x comes out with probability q min(1, p / q) + (1 - sum min(p, q)) (p - q)+ / sum (p - q)+ = p.
It holds for whatever p the request asks for, as long as p is what it would be drawn from without
guesses (temperature and top-p included) and q is what the guess really was drawn from. Greedy
decoding is the case in which p is one token.

``infer.engine`` guesses and checks, for one text or many: ``Engine(model, drafts=1)``. It guesses
with the first MTP module: the first guess as trained, from the main model's hidden vector; each
further one from the module's own output, as others serve V3 with more than one. After a refusal
both caches are wrong from there on, and the next pass writes over them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["acceptance_probability", "residual", "verify", "verify_greedy"]


def acceptance_probability(p: Tensor, q: Tensor) -> Tensor:
    """Probability of accepting each token if it is guessed: min(1, p / q), ``[..., V]``.

    Where q is 0, nothing is ever guessed, and the value is 1 or 0 by whether p has it.
    """
    return torch.where(q > 0, (p / q.masked_fill(q == 0, 1.0)).clamp(max=1.0), (p > 0).to(p.dtype))


def residual(p: Tensor, q: Tensor) -> Tensor:
    """What is drawn from after a refusal: the part of ``p [V]`` that q has too little of, to 1.

    Equal distributions refuse nothing; should rounding do it all the same, the answer is p.
    """
    left = (p - q).clamp(min=0.0)
    total = left.sum()
    return p if not bool(total > 0) else left / total


def verify(
    p: Tensor, guesses: Sequence[int], q: Tensor, generator: torch.Generator | None = None
) -> tuple[int, int]:
    """How many guesses are accepted, and the token after them.

    Args:
        p: ``[k + 1, V]``, the target's distribution at each guess's place and after the last.
        guesses: k tokens, the i-th drawn from ``q[i]``.
        q: ``[k, V]``, one-hot for a guess that was chosen and not drawn.
        generator: of the draws; they must not depend on those of the guesses.

    Raises:
        ValueError: shapes do not fit.
    """
    if p.ndim != 2 or p.shape[0] != len(guesses) + 1 or q.shape != (len(guesses), p.shape[1]):
        raise ValueError(
            f"{len(guesses)} guesses need p [k + 1, V] and q [k, V], got {list(p.shape)} and "
            f"{list(q.shape)}"
        )
    for i, token in enumerate(guesses):
        accept = acceptance_probability(p[i, token], q[i, token])
        if not bool(torch.rand((), generator=generator, device=p.device) < accept):
            return i, int(torch.multinomial(residual(p[i], q[i]), 1, generator=generator))
    return len(guesses), int(torch.multinomial(p[-1], 1, generator=generator))


def verify_greedy(best: Sequence[int], guesses: Sequence[int]) -> tuple[int, int]:
    """The same for greedy decoding; ``best`` are the target's k + 1 most likely tokens."""
    accepted = 0
    while accepted < len(guesses) and guesses[accepted] == best[accepted]:
        accepted += 1
    return accepted, best[accepted]
