"""From logits to the distribution that the next token is drawn from."""

from __future__ import annotations

import torch

from minids3.course.registry import Alternative, Mutant, exercise
from minids3.infer.sample import next_token_probs as _library


def next_token_probs(logits, temperature=1.0, top_p=1.0):
    """Distribution that the next token is drawn from.

    logits [..., V]; temperature divides them, and 0 puts all probability
    on the likeliest token
    top_p, above 0 and up to 1: the smallest set of likeliest tokens stays
    whose probabilities together reach top_p
    returns [..., V], which sums to 1 over V
    """
    if temperature == 0:
        best = logits.argmax(-1, keepdim=True)
        return torch.zeros_like(logits).scatter(-1, best, 1.0)
    probs = torch.softmax(logits / temperature, -1)
    ordered, order = probs.sort(dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    ordered = ordered.masked_fill(before >= top_p, 0.0)
    kept = torch.zeros_like(probs).scatter(-1, order, ordered)
    return kept / kept.sum(-1, keepdim=True)


def _greedy(logits):
    return next_token_probs(logits, 0)


def _cut(probs, top_p):
    """The tokens that stay, in order of probability, the order, and which positions stay."""
    ordered, order = probs.sort(dim=-1, descending=True)
    return ordered, order, ordered.cumsum(-1) - ordered < top_p


def _scaled(kept):
    return kept / kept.sum(-1, keepdim=True)


def _not_scaled(logits, temperature=1.0, top_p=1.0):
    if temperature == 0:
        return _greedy(logits)
    probs = (logits / temperature).softmax(-1)
    ordered, order, stays = _cut(probs, top_p)
    return torch.zeros_like(probs).scatter(-1, order, ordered * stays)


def _last_dropped(logits, temperature=1.0, top_p=1.0):
    if temperature == 0:
        return _greedy(logits)
    probs = (logits / temperature).softmax(-1)
    ordered, order = probs.sort(dim=-1, descending=True)
    ordered = ordered * (ordered.cumsum(-1) <= top_p + 1e-6)
    return _scaled(torch.zeros_like(probs).scatter(-1, order, ordered))


def _one_more(logits, temperature=1.0, top_p=1.0):
    if temperature == 0:
        return _greedy(logits)
    probs = (logits / temperature).softmax(-1)
    ordered, order, stays = _cut(probs, top_p)
    stays = torch.cat((torch.ones_like(stays[..., :1]), stays[..., :-1]), -1)
    return _scaled(torch.zeros_like(probs).scatter(-1, order, ordered * stays))


def _hotter(logits, temperature=1.0, top_p=1.0):
    if temperature == 0:
        return _greedy(logits)
    return next_token_probs(logits * temperature, 1.0, top_p)


def _probs_divided(logits, temperature=1.0, top_p=1.0):
    if temperature == 0:
        return _greedy(logits)
    probs = logits.softmax(-1) / temperature
    return next_token_probs(_scaled(probs).log(), 1.0, top_p)


def _cut_first(logits, temperature=1.0, top_p=1.0):
    if temperature == 0:
        return _greedy(logits)
    kept = next_token_probs(logits, 1.0, top_p)
    return (logits.masked_fill(kept == 0, -torch.inf) / temperature).softmax(-1)


def _left_sorted(logits, temperature=1.0, top_p=1.0):
    if temperature == 0:
        return _greedy(logits)
    ordered, _, stays = _cut((logits / temperature).softmax(-1), top_p)
    return _scaled(ordered * stays)


def _gathered(logits, temperature=1.0, top_p=1.0):
    if temperature == 0:
        return _greedy(logits)
    ordered, order, stays = _cut((logits / temperature).softmax(-1), top_p)
    return _scaled((ordered * stays).gather(-1, order))


def _rare_first(logits, temperature=1.0, top_p=1.0):
    if temperature == 0:
        return _greedy(logits)
    probs = (logits / temperature).softmax(-1)
    ordered, order = probs.sort(dim=-1)
    ordered = ordered * (ordered.cumsum(-1) - ordered < top_p)
    return _scaled(torch.zeros_like(probs).scatter(-1, order, ordered))


def _share_of_vocabulary(logits, temperature=1.0, top_p=1.0):
    if temperature == 0:
        return _greedy(logits)
    probs = (logits / temperature).softmax(-1)
    n = max(1, round(top_p * probs.shape[-1]))
    values, order = probs.topk(n, -1)
    return _scaled(torch.zeros_like(probs).scatter(-1, order, values))


def _each_above(logits, temperature=1.0, top_p=1.0):
    if temperature == 0:
        return _greedy(logits)
    probs = (logits / temperature).softmax(-1)
    least = (1 - top_p) * probs.amax(-1, keepdim=True)
    return _scaled(probs * (probs >= least))


def _dropped_to_zero_logits(logits, temperature=1.0, top_p=1.0):
    if temperature == 0:
        return _greedy(logits)
    kept = next_token_probs(logits, temperature, top_p)
    return (logits / temperature).masked_fill(kept == 0, 0.0).softmax(-1)


def _all_rows_alike(logits, temperature=1.0, top_p=1.0):
    if temperature == 0:
        return _greedy(logits)
    probs = (logits / temperature).softmax(-1)
    n = int(_cut(probs, top_p)[2].flatten(0, -2)[0].sum()) if probs.ndim > 1 else 0
    if n == 0:
        return next_token_probs(logits, temperature, top_p)
    values, order = probs.topk(n, -1)
    return _scaled(torch.zeros_like(probs).scatter(-1, order, values))


def _overflows(logits, temperature=1.0, top_p=1.0):
    if temperature == 0:
        return _greedy(logits)
    probs = _scaled((logits / temperature).exp())
    ordered, order, stays = _cut(probs, top_p)
    return _scaled(torch.zeros_like(probs).scatter(-1, order, ordered * stays))


def _ties_stay(logits, temperature=1.0, top_p=1.0):
    if temperature == 0:
        return _greedy(logits)
    probs = (logits / temperature).softmax(-1)
    ordered, _, stays = _cut(probs, top_p)
    least = ordered.masked_fill(~stays, torch.inf).amin(-1, keepdim=True)
    return _scaled(probs * (probs >= least))


def _by_zero(logits, temperature=1.0, top_p=1.0):
    probs = (logits / temperature).softmax(-1)
    ordered, order, stays = _cut(probs, top_p)
    return _scaled(torch.zeros_like(probs).scatter(-1, order, ordered * stays))


def _zero_is_one(logits, temperature=1.0, top_p=1.0):
    return next_token_probs(logits, temperature or 1.0, top_p)


def _forbidden_logits(logits, temperature=1.0, top_p=1.0):
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
    logits = logits / temperature
    ordered, order = logits.sort(-1, descending=True)
    drop = ordered.softmax(-1).cumsum(-1) >= top_p
    drop = torch.cat((torch.zeros_like(drop[..., :1]), drop[..., :-1]), -1)
    drop = torch.zeros_like(drop).scatter(-1, order, drop)
    return logits.masked_fill(drop, -torch.inf).softmax(-1)


def _by_ranks(logits, temperature=1.0, top_p=1.0):
    if temperature == 0:
        return (torch.arange(logits.shape[-1]) == logits.argmax(-1)[..., None]).float()
    probs = torch.exp(torch.log_softmax(logits.double() / temperature, -1))
    order = torch.argsort(-probs, dim=-1, stable=True)
    total = probs.gather(-1, order).cumsum(-1)
    needed = (total < top_p).sum(-1, keepdim=True) + 1
    kept = torch.where(order.argsort(-1) < needed, probs, 0.0)
    return (kept / kept.sum(-1, keepdim=True)).float()


def _row_by_row(logits, temperature=1.0, top_p=1.0):
    out = torch.zeros(logits.shape).reshape(-1, logits.shape[-1])
    for row, scores in zip(out, logits.reshape(out.shape), strict=True):
        if temperature == 0:
            row[scores.argmax()] = 1
            continue
        probs, reached = torch.softmax(scores / temperature, 0), 0.0
        for i in probs.argsort(descending=True).tolist():
            row[i] = probs[i]
            reached += float(probs[i])
            if reached >= top_p:
                break
        row /= row.sum()
    return out.view(logits.shape)


@exercise(
    "next-token",
    solution=next_token_probs,
    notebook="02_transformer_baseline",
    title="From logits to a choice",
    difficulty=2,
    importance=3,
    minutes=8,
    library=_library,
    hints=(
        "Four tokens have 0.5, 0.3, 0.15 and 0.05, and top_p is 0.7. Which stay? Look at what the "
        "tokens *before* each one add up to: when is a token still needed? And how do those that "
        "stay find back to their places in the vocabulary?",
        "temperature 0: 1 for the argmax, 0 for all others\n"
        "probs = softmax of logits / temperature                # [..., V]\n"
        "ordered, order = probs sorted, the likeliest first\n"
        "before = cumulative sum of ordered, without the token itself\n"
        "a token whose `before` has reached top_p gets 0\n"
        "put ordered back in place (scatter with order), divide by the sum over V",
    ),
    mutants=[
        Mutant(
            "not_scaled",
            _not_scaled,
            "What is left does not sum to 1. Divide by its sum after the cut.",
        ),
        Mutant(
            "last_dropped",
            _last_dropped,
            "You dropped the token with which the sum reaches top_p. It belongs to the set, or a "
            "token likelier than top_p would leave none at all.",
        ),
        Mutant(
            "one_more",
            _one_more,
            "You kept one token too many: the set ends with the token whose probability makes it "
            "reach top_p.",
        ),
        Mutant(
            "hotter",
            _hotter,
            "You multiplied by the temperature. Divide: a low temperature makes the likely "
            "likelier.",
        ),
        Mutant(
            "probs_divided",
            _probs_divided,
            "You divided the probabilities. Once they are scaled to 1 again the temperature has "
            "gone: divide the logits, before the softmax.",
        ),
        Mutant(
            "cut_first",
            _cut_first,
            "You cut the tail first and applied the temperature afterwards. top_p is a share of "
            "the distribution at this temperature.",
        ),
        Mutant(
            "left_sorted",
            _left_sorted,
            "Your probabilities are still sorted. Number i must belong to token i: scatter them "
            "back.",
        ),
        Mutant(
            "gathered",
            _gathered,
            "You sorted twice instead of back: gather with `order` is not the inverse of the sort. "
            "scatter with `order` is.",
        ),
        Mutant(
            "rare_first",
            _rare_first,
            "You sorted upwards and kept the rare tokens. The likeliest come first.",
        ),
        Mutant(
            "share_of_vocabulary",
            _share_of_vocabulary,
            "You kept that share of the tokens. top_p is a share of the probability, so a sure "
            "model keeps few and an unsure one many.",
        ),
        Mutant(
            "each_above",
            _each_above,
            "You judged every token for itself, by its ratio to the likeliest. That is another "
            "rule (min-p): here the sum of those before it decides.",
        ),
        Mutant(
            "dropped_to_zero_logits",
            _dropped_to_zero_logits,
            "You set the logits of dropped tokens to 0, and exp(0) is 1. The logit of the "
            "impossible is minus infinity.",
        ),
        Mutant(
            "all_rows_alike",
            _all_rows_alike,
            "You kept as many tokens in every row as in the first. Each position has a set of its "
            "own.",
        ),
        Mutant(
            "overflows",
            _overflows,
            "Your exp overflows: logits of a hundred, or a low temperature, give nan. softmax "
            "subtracts the largest first.",
        ),
        Mutant(
            "ties_stay",
            _ties_stay,
            "You compared with the smallest probability that stays, so all its equals stay, too. "
            "The set is the smallest that reaches top_p.",
        ),
        Mutant(
            "by_zero",
            _by_zero,
            "At temperature 0 you divided by zero. There the likeliest token has probability 1.",
        ),
        Mutant(
            "zero_is_one",
            _zero_is_one,
            "You took temperature 0 for 'no temperature'. It is the limit of low ones: the "
            "likeliest token has probability 1.",
        ),
    ],
    alternatives=[
        Alternative("library", _library),
        Alternative("forbidden_logits", _forbidden_logits),
        Alternative("by_ranks", _by_ranks),
        Alternative("row_by_row", _row_by_row),
    ],
)
def check_next_token_probs(c):
    """Temperature and top-p alone and together, one sure token, ties, large logits, greedy."""
    rows, steps, vocab = c.size(2, 3), c.size(2, 4), c.size(8, 12)
    logits = 1.5 * c.randn(rows, steps, vocab)
    out = c.call(logits, label=f"runs on logits {list(logits.shape)}")
    c.close(out, _by_hand(logits, 1.0, 1.0), label="temperature 1 and top-p 1: the softmax")
    with c.part():
        for temperature in (0.2, 2.0):
            label = f"temperature {temperature}"
            wanted = _by_hand(logits, temperature, 1.0)
            c.close(c.call(logits, temperature), wanted, label=label)
    with c.part():
        top_p = _clear(logits, 1.0)
        label = "top-p: each position keeps the smallest set that reaches it"
        c.close(c.call(logits, 1.0, top_p), _by_hand(logits, 1.0, top_p), label=label)
    with c.part():
        top_p = _clear(logits, 1.7)
        label = "both: the temperature comes first"
        wanted = _by_hand(logits, 1.7, top_p)
        c.close(c.call(logits, temperature=1.7, top_p=top_p), wanted, label=label)
    with c.part():
        sure = c.randn(vocab)
        sure[c.size(0, vocab - 1)] = 9.0
        label = "a token that is likelier than top-p stays, alone"
        c.close(c.call(sure, 1.0, 0.4), _by_hand(sure, 1.0, 0.4), label=label)
    with c.part():
        level = c.randn(1).expand(5).clone()
        got = c.call(level, 1.0, 0.5)
        label = "of five equal tokens, top-p 0.5 keeps three"
        kept = torch.tensor([1 / 3, 1 / 3, 1 / 3, 0, 0])
        c.shape(got, (5,), "the result")
        c.close(got.sort(descending=True).values, kept, label=label)
    with c.part():
        got = c.call(torch.zeros(4), 1.0, 0.5)
        label = "of four equal tokens, top-p 0.5 keeps two"
        c.shape(got, (4,), "the result for four tokens")
        kept = torch.tensor([0.5, 0.5, 0, 0])
        c.close(got.sort(descending=True).values, kept, label=label)
    with c.part():
        large = c.randn(vocab) + 300
        large[c.size(0, vocab - 1)] = -torch.inf
        label = "logits of 300, and a forbidden token with -inf"
        c.close(c.call(large, 1.5), _by_hand(large, 1.5, 1.0), label=label)
    with c.part():
        label = "temperature 0: the likeliest token has probability 1"
        wanted = torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)
        c.close(c.call(logits, 0, 0.9), wanted, label=label)
    with c.part():
        close = torch.tensor([[1.0, 3.0, 3.0], [0.0, 0.001, -1.0], [0.0, 1e-6, -1.0]])
        got = c.call(close, 0)
        c.shape(got, close.shape, "the result at temperature 0")
        c.true(
            got.is_floating_point(),
            "temperature 0 gives probabilities, not whole numbers",
            f"the dtype is {got.dtype}",
        )
        label = "temperature 0: of two equal tokens one is taken"
        c.close(got[0].sort().values, torch.tensor([0.0, 0.0, 1.0]), label=label)
        label = "temperature 0: a lead of a millionth is enough"
        c.close(got[1:], torch.tensor([[0.0, 1.0, 0.0]] * 2), label=label)


def _by_hand(logits, temperature, top_p):
    out = torch.zeros(logits.shape)
    flat = out.view(-1, logits.shape[-1])
    for row, scores in zip(flat, logits.double().reshape(flat.shape), strict=True):
        weights = ((scores - scores.max()) / temperature).exp()
        probs = (weights / weights.sum()).tolist()
        kept, reached = [], 0.0
        for i in sorted(range(len(probs)), key=lambda i, p=probs: -p[i]):
            if reached < top_p:
                kept.append(i)
                reached += probs[i]
        for i in kept:
            row[i] = probs[i] / reached
    return out


def _clear(logits, temperature):
    """A top-p, 0.4 to 0.9, that is far from every sum of likeliest tokens."""
    sums = (logits.double() / temperature).softmax(-1).sort(-1, descending=True)[0].cumsum(-1)
    options = torch.arange(40, 91).double() / 100
    gaps = (sums.flatten()[:, None] - options).abs().amin(0)
    return options[gaps.argmax()].item()
