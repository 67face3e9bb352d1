"""How often a model would accept the second token that its MTP module drafts.

A decoding step with a draft takes the next token from the main model and the one after it from the
MTP module. The next step of the main model shows what it would have said there itself. Under greedy
decoding the draft is accepted when both name the same token, and the step has made two.

This only measures. Decoding with drafts so that nothing changes in the output is another matter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minids3.data import DOMAINS, Split
from minids3.model.mtp import draft_agreement
from minids3.model.transformer import Transformer

__all__ = [
    "acceptance_by_domain",
    "draft_agreement",
    "second_token_acceptance",
    "token_fates",
    "tokens_per_step",
]


def second_token_acceptance(model: Transformer, ids: Tensor, start: int = 0) -> float:
    """Share of positions whose drafted second token is accepted, greedily and on a given text.

    Every position counts once, as if a draft were made at each. A decoder that uses drafts makes
    none at the position after an accepted one, since it has passed it already, so its own rate may
    differ in either direction, on its own greedy text too: count accepted per proposed drafts while
    it runs. The two agree where acceptance does not depend on whether the draft before was
    accepted.

    Args:
        model: with at least one MTP module.
        ids: ``[B, T]`` int64.
        start: first position that counts, such as the last of a prompt.

    Raises:
        ValueError: as ``draft_agreement``, or no position is left after ``start``.
    """
    agreed = draft_agreement(model, ids)[:, start:]
    if agreed.numel() == 0:
        raise ValueError(f"start={start} leaves no position of a text of {ids.shape[1]} tokens")
    return agreed.float().mean().item()


def acceptance_by_domain(
    model: Transformer, split: Split, documents: int = 24, domains: Sequence[str] = DOMAINS
) -> dict[str, float]:
    """Acceptance of the second token in the first ``documents`` documents of every domain.

    Every document is read on its own, cut at the model's number of positions; each of its tokens
    weighs the same. Raises ``ValueError`` if a domain has no document.
    """
    device = next(model.parameters()).device
    limit = model.config.max_position_embeddings
    found = {}
    for domain in domains:
        docs = split.only(domain)
        count = min(documents, docs.n_documents)
        if count < 1:
            raise ValueError(f"no document to measure on in domain {domain!r}: {documents=}")
        agreed = [
            draft_agreement(model, docs.document(i)[None, :limit].long().to(device)).flatten()
            for i in range(count)
        ]
        found[domain] = torch.cat(agreed).float().mean().item()
    return found


def token_fates(agreed: Sequence[bool]) -> list[str]:
    """How each token of a greedy text came, if drafts are used.

    A step makes one token with the main model and drafts the next. An accepted draft is a second
    token of the same step, and no draft is made along with it; after a rejected one the next step
    makes that token itself.

    Args:
        agreed: n - 1 entries for a text of n tokens; entry j says whether a draft for token j + 1,
            made along with token j, is what the main model chooses there.

    Returns:
        For each of the n tokens "accepted" (an accepted draft), "rejected" (the main model's, after
        its draft was rejected) or "own" (the main model's, with no draft for it). The steps are
        those that are not accepted.
    """
    fates = ["own"]
    for hit in agreed:
        drafted = fates[-1] != "accepted"
        fates.append(("accepted" if hit else "rejected") if drafted else "own")
    return fates


def tokens_per_step(acceptance: float, depth: int = 1) -> float:
    """Expected tokens of one decoding step: 1 + p with one draft (TR section 5.4.3).

    p is the rate at the positions where the decoder makes a draft; that of all positions
    (``second_token_acceptance``) stands in for it only where the two agree. With ``depth`` drafts,
    each accepted with probability p if those before it were, it is 1 + p + ... + p^depth: the first
    refusal ends the step.

    Raises:
        ValueError: the acceptance is no probability, or the depth is negative.
    """
    if not 0 <= acceptance <= 1 or depth < 0:
        raise ValueError(f"{acceptance=} must lie in [0, 1] and {depth=} must be 0 or more")
    return sum(acceptance**k for k in range(depth + 1))
