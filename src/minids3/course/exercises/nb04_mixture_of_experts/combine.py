"""Combine: bring the experts' rows back to their tokens and sum them by weight."""

from __future__ import annotations

import torch

from minids3.course.registry import Alternative, Mutant, exercise


def combine(rows, weights, inverse):
    """Bring the experts' outputs home and add them up by weight.

    rows [N*K, D]: outputs in the sorted order
    weights [N, K]; inverse [N*K]: the place of each pair n * K + k
    returns [N, D]
    """
    n, k = weights.shape
    home = rows[inverse].view(n, k, -1)  # [N, K, D]
    return (weights[..., None] * home).sum(1)


def _combine_unsorted(rows, weights, inverse):
    return combine(rows, weights, torch.arange(len(inverse)))


def _combine_by_order(rows, weights, inverse):
    return combine(rows, weights, inverse.argsort())


def _combine_misaligned(rows, weights, inverse):
    weighted = rows * weights.flatten()[:, None]  # row p is not pair p
    return weighted[inverse].view(*weights.shape, -1).sum(1)


def _combine_slot_major(rows, weights, inverse):
    n, k = weights.shape
    home = rows[inverse].view(k, n, -1).transpose(0, 1)
    return (weights[..., None] * home).sum(1)


def _combine_unweighted(rows, weights, inverse):
    return rows[inverse].view(*weights.shape, -1).sum(1)


def _combine_averaged(rows, weights, inverse):
    return combine(rows, weights, inverse) / weights.shape[1]


def _combine_normalised(rows, weights, inverse):
    return combine(rows, weights / weights.sum(-1, keepdim=True), inverse)


def _combine_first_only(rows, weights, inverse):
    return combine(rows, weights, inverse).detach() * 0 + (
        weights[:, :1] * rows[inverse].view(*weights.shape, -1)[:, 0]
    )


def _combine_lost(rows, weights, inverse):
    n, k = weights.shape
    y = torch.zeros(n, rows.shape[-1])
    y[torch.arange(n).repeat_interleave(k)] += weights.reshape(-1, 1) * rows[inverse]
    return y


def _combine_detached(rows, weights, inverse):
    return combine(rows, weights.detach(), inverse)


def _combine_index_add(rows, weights, inverse):
    n, k = weights.shape
    order = torch.empty_like(inverse)
    order[inverse] = torch.arange(n * k)
    out = torch.zeros(n, rows.shape[-1], dtype=rows.dtype)
    return out.index_add(0, order // k, rows * weights.flatten()[order, None])


def _combine_einsum(rows, weights, inverse):
    home = rows.index_select(0, inverse).unflatten(0, weights.shape)
    return torch.einsum("nk,nkd->nd", weights, home)


def _combine_token_by_token(rows, weights, inverse):
    n, k = weights.shape
    out = []
    for token in range(n):
        parts = [weights[token, j] * rows[inverse[token * k + j]] for j in range(k)]
        out.append(sum(parts[1:], parts[0]))
    return torch.stack(out)


def _viewed(rows, weights, inverse):
    return combine(rows.view(-1).view(rows.shape), weights, inverse)


def _home_first(rows, weights, inverse):
    n, k = weights.shape
    y = torch.zeros(n, rows.shape[1])
    for pair in range(n * k):
        y[pair // k] += weights[pair // k, pair % k] * rows[inverse[pair]]
    return y


def _to_float(rows, weights, inverse):
    return combine(rows.double(), weights.double(), inverse)


@exercise(
    "moe-combine",
    solution=combine,
    notebook="04_mixture_of_experts",
    title="Bring them home",
    difficulty=2,
    importance=4,
    minutes=5,
    hints=(
        "inverse[i] is the place of pair i. So which rows, in which order, are the K rows of "
        "token 0? In whose order do the weights stand: the pairs' or the sorted one?",
        "home = rows at the places inverse, seen as [N, K, D]\n"
        "return the sum over K of weights times home",
    ),
    mutants=[
        Mutant(
            "unsorted",
            _combine_unsorted,
            "The rows were never brought back: they still stand in the experts' order, so tokens "
            "got each other's results.",
        ),
        Mutant(
            "by_order",
            _combine_by_order,
            "You sorted once more instead of undoing it. Read row inverse[i] for pair i; writing "
            "to out[inverse] goes the wrong way.",
        ),
        Mutant(
            "misaligned",
            _combine_misaligned,
            "Weights and rows do not match: the weights stand in the order of the pairs, the rows "
            "in the order of the experts. Bring the rows back first, then weigh.",
        ),
        Mutant(
            "slot_major",
            _combine_slot_major,
            "The K rows of a token are neighbours: view as [N, K, D], not [K, N, D].",
        ),
        Mutant(
            "unweighted",
            _combine_unweighted,
            "The weights are missing. Without them the gate would get no gradient either.",
        ),
        Mutant(
            "averaged",
            _combine_averaged,
            "You averaged over K. The weights already add up to what they should: just sum.",
        ),
        Mutant(
            "normalised",
            _combine_normalised,
            "You normalised the weights again, and the gate's factor scale is gone.",
        ),
        Mutant(
            "first_only",
            _combine_first_only,
            "Only the first expert of each token arrived. Sum over all K.",
        ),
        Mutant(
            "lost",
            _combine_lost,
            "y[tokens] += ... adds only one row to a token that occurs several times. Use "
            "index_add, or view as [N, K, D] and sum.",
        ),
        Mutant(
            "detached",
            _combine_detached,
            "The weights were detached: the values are right, but the gate would never learn.",
        ),
        Mutant(
            "layout",
            _viewed,
            "Your code needs rows and weights to be contiguous: use reshape.",
        ),
        Mutant(
            "to_double",
            _to_float,
            "You computed in float64, which is fine, and stayed there. The result has the dtype "
            "of the rows.",
        ),
    ],
    alternatives=[
        Alternative("index_add", _combine_index_add),
        Alternative("einsum", _combine_einsum),
        Alternative("token_by_token", _combine_token_by_token),
        Alternative("pair_by_pair", _home_first),
    ],
)
def check_combine(c):
    """Values pair by pair, identity experts, one token, the gradient."""
    tokens, top_k, dim = c.size(5, 7), c.size(3, 4), c.size(8, 10)
    pairs = tokens * top_k
    inverse = c.rand(pairs).argsort()
    rows, weights = c.randn(pairs, dim), 0.2 + c.rand(tokens, top_k)
    y = c.call(rows, weights, inverse, label=f"runs on {pairs} rows and weights {[tokens, top_k]}")
    c.shape(y, (tokens, dim), "the result")
    c.dtype(y, rows.dtype, "the result")
    with c.part():
        c.close(y, _expected(rows, weights, inverse), label="token n gets the rows of its K pairs")
    with c.part():
        x = c.randn(tokens, dim)
        same = torch.empty(pairs, dim)
        same[inverse] = x.repeat_interleave(top_k, 0)
        back = c.call(same, weights, inverse)
        label = "experts that change nothing: x comes back, times its weights' sum"
        c.close(back, x * weights.sum(-1, keepdim=True), label=label)
    with c.part():
        one = c.call(rows[:top_k], weights[:1], torch.arange(top_k).flip(0))
        wanted = sum(weights[0, j] * rows[top_k - 1 - j] for j in range(top_k))
        c.close(one, wanted[None], label="a single token works (N = 1)")
    with c.part():
        places = c.rand(tokens).argsort()
        single = c.call(rows[:tokens], weights[:, :1], places)
        label = "one expert for each token (K = 1): its row, times its weight"
        c.close(single, weights[:, :1] * rows[places], label=label)
    with c.part():
        c.grad(
            args=(rows, weights, inverse),
            wrt=(0, 1),
            expected_fn=_expected,
            label="the gradient reaches the rows and the weights",
            names=("rows", "weights"),
        )
    with c.part():
        again = c.call(c.strided(rows), c.strided(weights), inverse)
        label = "rows and weights that are not contiguous give the same"
        c.close(again, _expected(rows, weights, inverse), label=label)
    with c.part():
        before = y.clone()
        c.call(rows + 1, weights, inverse)
        c.equal(y, before, label="a later call leaves an earlier result as it was")


def _expected(rows, weights, inverse):
    """Rows to tokens by one matrix that holds a weight for each pair."""
    n, k = weights.shape
    places = torch.nn.functional.one_hot(inverse, n * k).to(rows.dtype)
    spread = torch.arange(n).repeat_interleave(k)[None] == torch.arange(n)[:, None]
    return (spread * weights.flatten()) @ (places @ rows)
