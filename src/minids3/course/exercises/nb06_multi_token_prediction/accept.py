"""Acceptance of the second token."""

from __future__ import annotations

import torch

from minids3.course.registry import Alternative, Mutant, exercise


def draft_acceptance(logits, draft, targets):
    """How often the drafted second token would stand, and what that buys.

    logits [B, T, V]: the main model; position i names token i + 1
    draft [B, T - 1, V]: the MTP module; position i names token i + 2
    targets [B, T]: token i + 1 of the text; -100: do not count that token
    returns two scalar tensors: acceptance p, tokens per decoding step
    """
    said = logits[:, 1:].argmax(-1)
    agreed = draft.argmax(-1) == said
    counted = targets[:, 1:] != -100
    p = agreed[counted].float().mean()
    return p, 1 + p


def _share(agreed, counted):
    p = (agreed & counted).sum() / counted.sum()
    return p, 1 + p


def _unshifted(logits, draft, targets):
    said = logits[:, : draft.shape[1]].argmax(-1)
    return _share(draft.argmax(-1) == said, targets[:, 1:] != -100)


def _against_text(logits, draft, targets):
    return _share(draft.argmax(-1) == targets[:, 1:], targets[:, 1:] != -100)


def _both_right(logits, draft, targets):
    right = (draft.argmax(-1) == targets[:, 1:]) & (logits[:, 1:].argmax(-1) == targets[:, 1:])
    return _share(right, targets[:, 1:] != -100)


def _ignored_counted(logits, draft, targets):
    p = (draft.argmax(-1) == logits[:, 1:].argmax(-1)).float().mean()
    return p, 1 + p


def _mask_unshifted(logits, draft, targets):
    agreed = draft.argmax(-1) == logits[:, 1:].argmax(-1)
    return _share(agreed, targets[:, :-1] != -100)


def _overlap(logits, draft, targets):
    shared = torch.minimum(torch.softmax(draft, -1), torch.softmax(logits[:, 1:], -1)).sum(-1)
    p = shared[targets[:, 1:] != -100].mean()
    return p, 1 + p


def _twice(logits, draft, targets):
    p, _ = draft_acceptance(logits, draft, targets)
    return p, 2 * p


def _endless(logits, draft, targets):
    p, _ = draft_acceptance(logits, draft, targets)
    return p, 1 / (1 - p)


def _counted(logits, draft, targets):
    return _share(draft.argmax(-1) == logits[:, 1:].argmax(-1), targets[:, 1:] != -100)


def _by_top(logits, draft, targets):
    said, named = logits.topk(1).indices[:, 1:, 0], draft.topk(1).indices[..., 0]
    weight = (targets[:, 1:] != -100).float()
    p = ((said == named) * weight).sum() / weight.sum()
    return p, p + 1


def _floats(logits, draft, targets):
    p, tokens = draft_acceptance(logits, draft, targets)
    return float(p), float(tokens)


def _viewed(logits, draft, targets):
    return draft_acceptance(logits.view(-1).view(logits.shape), draft, targets)


def _walk(logits, draft, targets):
    stands, count = torch.zeros(()), 0
    for b in range(draft.shape[0]):
        for i in range(draft.shape[1]):
            if targets[b, i + 1] != -100:
                stands += draft[b, i].argmax() == logits[b, i + 1].argmax()
                count += 1
    return stands / count, 1 + stands / count


@exercise(
    "mtp-accept",
    solution=draft_acceptance,
    notebook="06_multi_token_prediction",
    title="Does the second token stand?",
    difficulty=2,
    importance=4,
    minutes=8,
    hints=(
        "The draft at position i is about token i + 2. At which position does the main model name "
        "that token? And who decides whether a draft is accepted: the text, or the main model?",
        "said = argmax over V of logits from position 1 on        # the main model, token i + 2\n"
        "agreed = argmax of draft equals said                     # [B, T - 1]\n"
        "counted = targets from column 1 on are not -100\n"
        "p = share of agreed among the counted;  tokens per step = 1 + p",
    ),
    mutants=[
        Mutant(
            "unshifted",
            _unshifted,
            "You compared both at the same position, where the main model names token i + 1 and "
            "the module token i + 2. The main model's turn comes one position later.",
        ),
        Mutant(
            "against_text",
            _against_text,
            "You compared the draft with the text. That is accuracy; a draft is accepted when the "
            "main model would have said the same, right or wrong.",
        ),
        Mutant(
            "both_right",
            _both_right,
            "You counted only drafts that are also true. When both make the same mistake, the "
            "draft is accepted too.",
        ),
        Mutant(
            "ignored_counted",
            _ignored_counted,
            "Ignored tokens were counted. Leave them out of the sum and out of the number you "
            "divide by.",
        ),
        Mutant(
            "mask_unshifted",
            _mask_unshifted,
            "The mask is one column off: the drafted token i + 2 is targets[i + 1].",
        ),
        Mutant(
            "overlap",
            _overlap,
            "That is the overlap of the two distributions, the rate for sampled text. Asked is "
            "greedy decoding: do the two likeliest tokens agree?",
        ),
        Mutant(
            "twice",
            _twice,
            "2 p would mean that a refused draft costs the first token as well. The first one "
            "is always there: 1 + p.",
        ),
        Mutant(
            "endless",
            _endless,
            "1 / (1 - p) is the limit of an endless chain of drafts. With one draft a step makes "
            "one token or two: 1 + p.",
        ),
        Mutant(
            "floats",
            _floats,
            "You returned Python numbers. Two tensors of one number each are asked for: leave "
            "item() and float() out.",
        ),
        Mutant(
            "layout",
            _viewed,
            "Your code needs contiguous logits: use reshape.",
        ),
    ],
    alternatives=[
        Alternative("counted", _counted),
        Alternative("by_top", _by_top),
        Alternative("walk", _walk),
    ],
)
def check_draft_acceptance(c):
    """Against a walk over positions; total agreement and none; ignored tokens."""
    rows, steps, vocab = c.size(2, 4), c.size(9, 12), c.size(11, 15)
    logits = c.randn(rows, steps, vocab)
    said = logits.argmax(-1)
    draft = c.randn(rows, steps - 1, vocab)
    pushed = c.rand(rows, steps - 1) < 0.5
    pushed[0, :2] = torch.tensor([True, False])  # neither nothing nor everything agrees
    wish = torch.where(pushed, said[:, 1:], (said[:, 1:] + 1) % vocab)
    draft.scatter_(2, wish[..., None], 6.0)
    targets = torch.where(c.rand(rows, steps) < 0.6, said, (said + 1) % vocab)
    targets[0, 2] = (said[0, 2] + 1) % vocab  # a draft that is true and not what the model says
    masked = targets.clone()
    masked[0, : steps // 2] = -100
    masked[-1, 2] = -100

    label = f"runs on logits {list(logits.shape)}, draft {list(draft.shape)}"
    p, tokens = c.call(logits, draft, targets, label=label, returns=2)
    want = sum(bool(draft[b, i].argmax() == said[b, i + 1]) for b, i in _places(draft))
    share = torch.tensor(want / (rows * (steps - 1)))
    with c.part():
        c.close(p, share, label="p is the share of positions where both name the same token")
        c.close(tokens, 1 + share, label="a step makes 1 + p tokens")
    with c.part():
        same = torch.zeros_like(draft).scatter_(2, said[:, 1:, None], 9.0)
        elsewhere = (said + 3) % vocab
        p, _ = c.call(logits, same, elsewhere, returns=2)
        c.close(
            p, torch.tensor(1.0), label="a draft the main model agrees with is accepted, even wrong"
        )
        true = torch.zeros_like(draft).scatter_(2, elsewhere[:, 1:, None], 9.0)
        p, _ = c.call(logits, true, elsewhere, returns=2)
        c.close(p, torch.tensor(0.0), label="one it would not have said is rejected, even right")
    with c.part():
        # Drafts agree just where the token counts, but for one: any other mask gives another p.
        wish = torch.where(masked[:, 1:] != -100, said[:, 1:], (said[:, 1:] + 1) % vocab)
        wish[-1, -1] = (said[-1, -1] + 2) % vocab
        apart = c.randn(rows, steps - 1, vocab).scatter_(2, wish[..., None], 6.0)
        p, _ = c.call(logits, apart, masked, returns=2)
        kept = int((masked[:, 1:] != -100).sum())
        c.close(p, torch.tensor((kept - 1) / kept), label="ignored tokens do not count")
    with c.part():
        p, _ = c.call(c.strided(logits), c.strided(draft), targets, returns=2)
        c.close(p, share, label="logits that are not contiguous give the same")
    with c.part():
        loud = [10_000.0 + t.argsort(-1).argsort(-1) for t in (logits, draft)]  # the same order
        p, _ = c.call(*loud, targets, returns=2)
        c.close(p, share, label="logits above 10,000 in the same order give the same")
    with c.part():
        agreeing = torch.zeros_like(draft[:1]).scatter_(2, said[:1, 1:, None], 9.0)
        p, _ = c.call(logits[:1], agreeing, targets[:1], returns=2)
        c.close(p, torch.tensor(1.0), label="a single row works: its draft agrees everywhere")


def _places(draft):
    return [(b, i) for b in range(draft.shape[0]) for i in range(draft.shape[1])]
