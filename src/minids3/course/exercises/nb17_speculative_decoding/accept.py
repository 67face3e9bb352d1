"""Accept or reject a draft, and what is drawn after a rejection."""

from __future__ import annotations

import torch

from minids3.course.compare import dtype_name
from minids3.course.registry import Alternative, Mutant, exercise


# fmt: off
def accept_and_residual(p, q):
    """Chance of each token to be accepted as a draft, and what is drawn after a no.

    p [..., V]: the main model's distribution at the draft's place
    q [..., V]: what the draft was drawn from, in the same dtype as p; both
    sum to 1 over V
    returns, in that dtype, accept [..., V], 1 where q is 0: nobody drafts
    that token; and residual [..., V], what is drawn from if the draft is
    rejected: what p has more than q, scaled to sum to 1. Where p equals q
    everywhere, nothing is ever rejected, and the residual is p.
    """
    accept = torch.where(q > 0, (p / q).clamp(max=1), torch.ones_like(p))
    more = (p - q).clamp(min=0)
    total = more.sum(-1, keepdim=True)
    return accept, torch.where(total > 0, more / total, p)
# fmt: on


def _with(p, q, accept=None, residual=None):
    right = accept_and_residual(p, q)
    return right[0] if accept is None else accept, right[1] if residual is None else residual


def _inverted(p, q):
    return _with(p, q, accept=torch.where(p > 0, (q / p).clamp(max=1), torch.ones_like(p)))


def _not_limited(p, q):
    return _with(p, q, accept=torch.where(q > 0, p / q, torch.ones_like(p)))


def _all_or_nothing(p, q):
    return _with(p, q, accept=((p >= q) | (q == 0)).to(p.dtype))


def _by_p(p, q):
    return _with(p, q, accept=torch.where(q > 0, p, torch.ones_like(p)))


def _drawn_again(p, q):
    return _with(p, q, residual=p.clone())


def _not_scaled(p, q):
    more = (p - q).clamp(min=0)
    return _with(p, q, residual=torch.where(more.sum(-1, keepdim=True) > 0, more, p))


def _other_way(p, q):
    more = (q - p).clamp(min=0)
    total = more.sum(-1, keepdim=True)
    return _with(p, q, residual=torch.where(total > 0, more / total, p))


def _absolute(p, q):
    more = (p - q).abs()
    total = more.sum(-1, keepdim=True)
    return _with(p, q, residual=torch.where(total > 0, more / total, p))


def _p_where_more(p, q):
    more = torch.where(p > q, p, torch.zeros_like(p))
    total = more.sum(-1, keepdim=True)
    return _with(p, q, residual=torch.where(total > 0, more / total, p))


def _scaled_over_all(p, q):
    more = (p - q).clamp(min=0)
    empty = more.sum(-1, keepdim=True) == 0
    return _with(p, q, residual=torch.where(empty, p, more / more.sum().clamp(min=1e-9)))


def _zero_by_zero(p, q):
    return _with(p, q, accept=(p / q).clamp(max=1))


def _equal_is_nan(p, q):
    more = (p - q).clamp(min=0)
    return _with(p, q, residual=more / more.sum(-1, keepdim=True))


def _equal_is_zero(p, q):
    more = (p - q).clamp(min=0)
    total = more.sum(-1, keepdim=True)
    return _with(p, q, residual=torch.where(total > 0, more / total, more))


def _never_drafted(p, q):
    return _with(p, q, accept=torch.where(q > 0, (p / q).clamp(max=1), torch.zeros_like(p)))


def _in_float32(p, q):
    return tuple(t.float() for t in accept_and_residual(p, q))


def _by_overlap(p, q):
    shared = torch.minimum(p, q)
    accept = torch.ones_like(p)
    accept[q > 0] = shared[q > 0] / q[q > 0]
    residual = p - shared
    same = (residual == 0).all(-1)
    residual = residual / residual.sum(-1, keepdim=True)
    residual[same] = p[same]
    return accept, residual


def _row_by_row(p, q):
    vocab = p.shape[-1]
    accept, residual = torch.ones_like(p).view(-1, vocab), p.clone().view(-1, vocab)
    rows = zip(p.view(-1, vocab).tolist(), q.view(-1, vocab).tolist(), strict=True)
    for i, (a, b) in enumerate(rows):
        more = [max(x - y, 0.0) for x, y in zip(a, b, strict=True)]
        for v, (x, y) in enumerate(zip(a, b, strict=True)):
            if y > x:
                accept[i, v] = x / y
            if sum(more) > 0:
                residual[i, v] = more[v] / sum(more)
    return accept.view(p.shape), residual.view(p.shape)


@exercise(
    "spec-accept",
    solution=accept_and_residual,
    notebook="17_speculative_decoding",
    title="Accept or reject",
    difficulty=2,
    importance=5,
    minutes=10,
    hints=(
        "The drafter says 'the' in 50 of 100 cases, the main model in 30. How many of the 50 may "
        "stay? The 20 that go have to become other tokens: which of them were drafted too rarely, "
        "and by how much each?",
        "accept = p / q, at most 1;  1 where q is 0\n"
        "more = p - q, at least 0                     # what was drafted too rarely\n"
        "total = sum of more over V\n"
        "residual = more / total;  p where total is 0",
    ),
    mutants=[
        Mutant(
            "inverted",
            _inverted,
            "Your ratio is upside down. A draft that q makes too often must be thinned out: its "
            "chance is p / q.",
        ),
        Mutant(
            "not_limited",
            _not_limited,
            "Your chances exceed 1. Where p is larger than q the draft is always accepted, and "
            "what is missing comes from the residual: take the minimum with 1.",
        ),
        Mutant(
            "all_or_nothing",
            _all_or_nothing,
            "You accept a draft only if p is at least q. A token that is drafted twice as often as "
            "it should be is right in half of the cases.",
        ),
        Mutant(
            "by_p",
            _by_p,
            "You accept with probability p. That is the chance for a draft that was chosen for "
            "certain; one that was drawn from q has p / q.",
        ),
        Mutant(
            "drawn_again",
            _drawn_again,
            "After a rejection you draw from p anew. Accepted drafts have given their tokens part "
            "of their probability already, so these would come too often: take away q first.",
        ),
        Mutant(
            "not_scaled",
            _not_scaled,
            "Your residual does not sum to 1. Divide by its sum.",
        ),
        Mutant(
            "other_way",
            _other_way,
            "Your residual is q - p: it gives more to the tokens that were drafted too often.",
        ),
        Mutant(
            "absolute",
            _absolute,
            "You took the absolute difference. Where q is larger than p there is nothing left to "
            "give: 0.",
        ),
        Mutant(
            "p_where_more",
            _p_where_more,
            "Your residual is p where p is larger than q. Those tokens have been drafted as often "
            "as q says: only the difference is missing.",
        ),
        Mutant(
            "scaled_over_all",
            _scaled_over_all,
            "You divided by the sum of the whole tensor. Each place has its own distribution: sum "
            "over the last axis.",
        ),
        Mutant(
            "zero_by_zero",
            _zero_by_zero,
            "A token that both leave out gives 0 / 0. The chance is 1 wherever q is 0; a NaN "
            "would spread from there.",
        ),
        Mutant(
            "equal_is_nan",
            _equal_is_nan,
            "Where both are equal your residual is 0 / 0. Return p there.",
        ),
        Mutant(
            "equal_is_zero",
            _equal_is_zero,
            "Where both are equal your residual is 0 for every token, which is no distribution. "
            "It is p there.",
        ),
        Mutant(
            "never_drafted",
            _never_drafted,
            "Where q is 0 your chance is 0. Such a draft is never made, and the docstring asks "
            "for 1, the limit of p / q at most 1.",
        ),
        Mutant(
            "in_float32",
            _in_float32,
            "Your results are float32 whatever comes in. Tensors made from lists of numbers are, "
            "too: both have p's and q's dtype.",
        ),
    ],
    alternatives=[
        Alternative("by_overlap", _by_overlap),
        Alternative("row_by_row", _row_by_row),
    ],
)
def check_accept(c):
    """By numbers of each row; what comes out; zeros; certain drafts; equal and nearly equal."""
    rows, vocab = c.size(3, 5), c.size(6, 9)
    p, q = _distributions(c, rows, vocab), _distributions(c, rows, vocab)
    accept, residual = c.call(p, q, returns=2, label=f"runs on shape {list(p.shape)}")
    with c.part():
        c.close(accept, _by_hand(p, q)[0], label="the chance of every token")
    with c.part():
        c.close(residual, _by_hand(p, q)[1], label="the residual of every place")
    with c.part():
        label = "what comes out, accepted or drawn afterwards, is p"
        c.close(_comes_out(q, accept, residual), p, label=label)
        label = "both in the dtype of p and q, float32"
        c.true(*_dtypes((accept, residual), torch.float32, label))
    with c.part():
        p0, q0 = p.clone(), q.clone()
        q0[:, 1] = q0[:, 3] = p0[:, 3] = p0[:, 4] = 0
        p0, q0 = p0 / p0.sum(-1, keepdim=True), q0 / q0.sum(-1, keepdim=True)
        got = c.call(p0, q0, returns=2)
        want = _by_hand(p0, q0)
        c.close(got[0], want[0], label="tokens that one or both leave out: the chances")
        c.close(got[1], want[1], label="and the residual")
    with c.part():
        best = _one_hot(q.argmax(-1), vocab)
        got = c.call(p, best, returns=2)
        want = _by_hand(p, best)
        c.close(got[0], want[0], label="a draft that was chosen for certain: the chances")
        c.close(got[1], want[1], label="and p without it, scaled")
    with c.part():
        mixed = q.clone()
        mixed[0] = p[0]
        got = c.call(p, mixed, returns=2)
        want = _by_hand(p, mixed)
        c.close(got[0], want[0], label="equal distributions in one row of several: the chances")
        c.close(got[1], want[1], label="and the residual there is p")
    with c.part():
        got = c.call(p[1], q[1], returns=2)
        c.close(list(got), [t[1] for t in _by_hand(p, q)], label="a single place, [V]")
    with c.part():
        got = c.call(torch.stack((p, q)), torch.stack((q, p)), returns=2)
        both = zip(_by_hand(p, q), _by_hand(q, p), strict=True)
        c.close(list(got), [torch.stack(t) for t in both], label="several texts, [2, T, V]")
    with c.part():
        near = torch.softmax(1.5 * c.randn(rows, vocab).double(), -1)
        near[:, 0] *= 1e-9
        other = near * (1 + 1e-7 * c.rand(rows, vocab).double())
        other[:, 0] = 10 * near[:, 0]
        near, other = (t / t.sum(-1, keepdim=True) for t in (near, other))
        got = c.call(near, other, returns=2)
        want = _by_hand(near, other)
        label = "nearly equal, in float64, and a token of 1e-9: the chances"
        c.close(got[0], want[0], label=label)
        c.close(got[1], want[1], label="and the residual, seldom as it is needed")
        label = "both in the dtype of p and q, float64"
        c.true(*_dtypes(got, torch.float64, label))


def _dtypes(got, expected, label):
    found = [t.dtype for t in got]
    names = " and ".join(dtype_name(d) for d in found)
    return found == [expected] * 2, label, f"they are {names}"


def _distributions(c, rows, vocab):
    return torch.softmax(1.5 * c.randn(rows, vocab), -1)


def _one_hot(index, vocab):
    """One-hot rows in fp32."""
    return torch.zeros(len(index), vocab).scatter(1, index[:, None], 1.0)


def _by_hand(p, q):
    accept, residual = [], []
    for a, b in zip(p.tolist(), q.tolist(), strict=True):
        accept.append([1.0 if y <= x else x / y for x, y in zip(a, b, strict=True)])
        gaps = [x - y if x > y else 0.0 for x, y in zip(a, b, strict=True)]
        residual.append([g / sum(gaps) for g in gaps] if sum(gaps) else a)
    return torch.tensor(accept, dtype=p.dtype), torch.tensor(residual, dtype=p.dtype)


def _comes_out(q, accept, residual):
    kept = q * accept
    return kept + (1 - kept.sum(-1, keepdim=True)) * residual
