"""Several drafts in one step."""

from __future__ import annotations

import torch

from minids3.course.exercises.nb17_speculative_decoding.accept import accept_and_residual
from minids3.course.registry import Alternative, Mutant, exercise


# fmt: off
def check_drafts(p, drafts, q, u):
    """How many drafts are accepted, and the distribution of the token after them.

    p [k + 1, V]: the main model's distributions at the k drafts' places and
    one place further; drafts: k ids, draft i was drawn from q[i], q [k, V]
    u [k]: numbers drawn evenly from [0, 1). Draft i is accepted if u[i] is
    less than its chance; the first rejection ends the step, and the token
    after the accepted ones comes from the residual of that place. If all
    are accepted, one more comes from p's last row. k may be 0.
    returns n (an int) and the distribution [V]
    """
    accept, residual = accept_and_residual(p[:-1], q)
    for i, token in enumerate(drafts):
        if u[i] >= accept[i, token]:
            return i, residual[i]
    return len(drafts), p[-1]
# fmt: on


def _chances(p, drafts, q):
    accept, residual = accept_and_residual(p[:-1], q)
    return [accept[i, t] for i, t in enumerate(drafts)], residual


def _goes_on(p, drafts, q, u):
    chances, residual = _chances(p, drafts, q)
    yes = [bool(x < a) for x, a in zip(u, chances, strict=True)]
    return sum(yes), p[-1] if all(yes) else residual[yes.index(False)]


def _whole_or_none(p, drafts, q, u):
    chances, residual = _chances(p, drafts, q)
    if all(bool(x < a) for x, a in zip(u, chances, strict=True)):
        return len(drafts), p[-1]
    return 0, residual[0]


def _drawn_again(p, drafts, q, u):
    n, _ = check_drafts(p, drafts, q, u)
    return n, p[n]


def _next_place(p, drafts, q, u):
    n, probs = check_drafts(p, drafts, q, u)
    return n, p[n + 1] if n < len(drafts) else probs


def _one_number(p, drafts, q, u):
    return check_drafts(p, drafts, q, u[:1].expand(len(drafts)))


def _other_side(p, drafts, q, u):
    chances, residual = _chances(p, drafts, q)
    for i, a in enumerate(chances):
        if u[i] < a:
            return i, residual[i]
    return len(drafts), p[-1]


def _counts_rejected(p, drafts, q, u):
    n, probs = check_drafts(p, drafts, q, u)
    return min(n + 1, len(drafts)), probs


def _bonus_place(p, drafts, q, u):
    n, probs = check_drafts(p, drafts, q, u)
    return n, probs if n < len(drafts) or n == 0 else p[-2]


def _bonus_residual(p, drafts, q, u):
    n, probs = check_drafts(p, drafts, q, u)
    return n, probs if n < len(drafts) or n == 0 else accept_and_residual(p[-2], q[-1])[1]


def _at_most(p, drafts, q, u):
    chances, residual = _chances(p, drafts, q)
    for i, a in enumerate(chances):
        if u[i] > a:
            return i, residual[i]
    return len(drafts), p[-1]


def _by_p(p, drafts, q, u):
    _, residual = _chances(p, drafts, q)
    for i, token in enumerate(drafts):
        if u[i] >= p[i, token]:
            return i, residual[i]
    return len(drafts), p[-1]


def _likeliest(p, drafts, q, u):
    _, residual = _chances(p, drafts, q)
    for i, token in enumerate(drafts):
        if int(p[i].argmax()) != token:
            return i, residual[i]
    return len(drafts), p[-1]


def _product(p, drafts, q, u):
    chances, residual = _chances(p, drafts, q)
    so_far = 1.0
    for i, a in enumerate(chances):
        so_far = so_far * a
        if u[i] >= so_far:
            return i, residual[i]
    return len(drafts), p[-1]


def _all(p, drafts, q, u):
    return len(drafts), p[-1]


def _first_law(p, drafts, q, u):
    n, probs = check_drafts(p, drafts, q, u)
    return n, probs if n == len(drafts) else accept_and_residual(p[0], q[0])[1]


def _last_law(p, drafts, q, u):
    n, probs = check_drafts(p, drafts, q, u)
    chances, residual = _chances(p, drafts, q)
    fell = [i for i, a in enumerate(chances) if u[i] >= a]
    return n, residual[fell[-1]] if fell else probs


def _cumulated(p, drafts, q, u):
    k = len(drafts)
    if k == 0:
        return 0, p[0]
    ids = torch.tensor(drafts)[:, None]
    ratio = (p[:k].gather(1, ids) / q.gather(1, ids)).squeeze(1)
    n = int((u < ratio).long().cumprod(0).sum())
    if n == k:
        return n, p[k]
    gap = torch.relu(p[n] - q[n])
    return n, gap / gap.sum()


def _recursive(p, drafts, q, u):
    if not drafts:
        return 0, p[0]
    chance, residual = accept_and_residual(p[0], q[0])
    if not u[0] < chance[drafts[0]]:
        return 0, residual
    n, probs = _recursive(p[1:], drafts[1:], q[1:], u[1:])
    return 1 + n, probs


@exercise(
    "spec-verify",
    solution=check_drafts,
    notebook="17_speculative_decoding",
    title="Several drafts at once",
    difficulty=2,
    importance=5,
    minutes=10,
    hints=(
        "Draft 2 was made for a text that ends in draft 1. What is it worth if draft 1 was "
        "rejected? And if all are accepted: which row of p has not been used yet?",
        "accept, residual = accept_and_residual(p without its last row, q)\n"
        "for i, token in the drafts:\n"
        "    unless u[i] < accept[i, token]: return i, residual[i]\n"
        "return k, last row of p",
    ),
    mutants=[
        Mutant(
            "goes_on",
            _goes_on,
            "You counted drafts after a rejected one. They continue a text that no longer exists: "
            "stop at the first rejection.",
        ),
        Mutant(
            "whole_or_none",
            _whole_or_none,
            "You threw away accepted drafts because a later one was rejected. Those before it stay "
            "in the text.",
        ),
        Mutant(
            "drawn_again",
            _drawn_again,
            "After a rejection you gave p itself. The token comes from the residual of that place.",
        ),
        Mutant(
            "next_place",
            _next_place,
            "After a rejection you went on to the place after it. The place of the rejected draft "
            "has no token yet.",
        ),
        Mutant(
            "one_number",
            _one_number,
            "You compared all drafts with the first random number. Each has a number of its own; "
            "sharing one ties their fates together.",
        ),
        Mutant(
            "other_side",
            _other_side,
            "You rejected where u is less than the chance. A chance of 0.9 means accepted for 90 % "
            "of the numbers between 0 and 1: those below 0.9.",
        ),
        Mutant(
            "counts_rejected",
            _counts_rejected,
            "You counted the rejected draft as accepted.",
        ),
        Mutant(
            "bonus_place",
            _bonus_place,
            "All drafts were accepted, and you used the last one's place again. p has one more "
            "row, for the place after it.",
        ),
        Mutant(
            "bonus_residual",
            _bonus_residual,
            "All drafts were accepted, and you drew from a residual. That is for a rejection; "
            "after the last draft there was no q, so it is p's last row.",
        ),
        Mutant(
            "at_most",
            _at_most,
            "With u = 0 you accepted a draft whose chance is 0. Accept where u is less than the "
            "chance, not equal to it.",
        ),
        Mutant(
            "by_p",
            _by_p,
            "You compared u with p. The chance of a draft is p / q, at most 1.",
        ),
        Mutant(
            "likeliest",
            _likeliest,
            "You accepted what the main model finds likeliest, and ignored u. That is greedy "
            "decoding; here the chance is p / q.",
        ),
        Mutant(
            "product",
            _product,
            "You compared u with the product of the chances so far. The drafts before have been "
            "judged by their own numbers: each u is compared with one chance.",
        ),
        Mutant(
            "all",
            _all,
            "You accepted every draft. One falls if its u is not less than its chance.",
        ),
        Mutant(
            "first_law",
            _first_law,
            "You returned the residual of the first place. It belongs to the place of the rejected "
            "draft.",
        ),
        Mutant(
            "last_law",
            _last_law,
            "Where several drafts fall you returned the residual of the last one. The first that "
            "falls ends the step: what comes after it was made for a text that no longer exists.",
        ),
    ],
    alternatives=[
        Alternative("cumulated", _cumulated),
        Alternative("recursive", _recursive),
    ],
)
def check_verify(c):
    """None, one, two, all accepted; two that fall; chances of 0, of 1; certain; one draft, none."""
    k, vocab = 4, c.size(6, 9)
    p = torch.softmax(1.5 * c.randn(k + 1, vocab), -1)
    q = torch.softmax(1.5 * c.randn(k, vocab), -1)
    # The second draft's chance is the largest and the third's the smallest: neither the first
    # number for all drafts nor products of chances end where they should.
    order = (q / p[:k]).amax(-1).argsort(descending=True)[[2, 3, 0, 1]]
    p, q = torch.cat((p[order], p[-1:])), q[order]
    drafts = [
        int((b / a).argmax()) for a, b in zip(p, q, strict=False)
    ]  # made too often: chances below 1
    chances = [float(p[i, t]) / float(q[i, t]) for i, t in enumerate(drafts)]

    def numbers(stops):
        u = [chance * 0.9 for chance in chances]  # accepted
        if stops < k:
            u[stops] = chances[stops] + (1 - chances[stops]) * 0.1
        return torch.tensor(u)

    def want(n):
        if n == k:
            return [n, p[-1]]
        gap = [max(a - b, 0.0) for a, b in zip(p[n].tolist(), q[n].tolist(), strict=True)]
        return [n, torch.tensor([g / sum(gap) for g in gap])]

    got = c.call(p, drafts, q, numbers(1), returns=2, label=f"runs on {k} drafts of {vocab} tokens")
    c.close(list(got), want(1), label="the first is accepted, the second not: 1 and its residual")
    for n, label in (
        (0, "the first falls: none, whatever the others' numbers"),
        (2, "two are accepted, the third is not"),
        (k, "all are accepted: the last row of p"),
    ):
        with c.part():
            got = c.call(p, drafts, q, numbers(n), returns=2)
            c.close(list(got), want(n), label=label)
    with c.part():
        less, more = p.clone(), q.clone()
        less[1, drafts[1]] = 0.0
        less[1] /= less[1].sum()
        more[0] = p[0]
        u = torch.tensor([0.999] + [0.0] * (k - 1))
        ids = [int(p[0].argmax()), *drafts[1:]]
        got = c.call(less, ids, more, u, returns=2)
        gap = (less[1] - more[1]).clamp(min=0)
        label = "a chance of 1 holds for u = 0.999, a chance of 0 not even for u = 0"
        c.close(list(got), [1, gap / gap.sum()], label=label)
    with c.part():
        got = c.call(p[-2:], drafts[-1:], q[-1:], numbers(k)[-1:], returns=2)
        c.close(list(got), [1, p[-1]], label="one draft, and it is accepted")
    with c.part():
        best = int(p[0].argmax())
        often = p[0] / 2
        often[best] += 0.5
        chance = float(p[0, best]) / float(often[best])
        got = c.call(p[:2], [best], often[None], torch.tensor([(1 + chance) / 2]), returns=2)
        gap = (p[0] - often).clamp(min=0)
        label = "one draft, p's likeliest token: it falls, too"
        c.close(list(got), [0, gap / gap.sum()], label=label)
    with c.part():
        near, other = (t.double() / t.double().sum(-1, keepdim=True) for t in (p, q))
        near[1] = 1 + c.rand(vocab)  # even enough that p has more than q at two tokens or more
        near[1] /= near[1].sum()
        other[1] = near[1] * (1 + 1e-3 * torch.linspace(-1, 1, vocab).double())
        other[1] /= other[1].sum()
        ids = [drafts[0], vocab - 1, *drafts[2:]]
        u = numbers(k).double()
        u[1] = (1 + near[1, -1] / other[1, -1]) / 2
        got = c.call(near, ids, other, u, returns=2)
        gap = (near[1] - other[1]).clamp(min=0)
        label = "in float64, where p and q hardly differ: it falls, and the residual"
        c.close(list(got), [1, gap / gap.sum()], label=label, rtol=1e-9, atol=1e-9)
    with c.part():
        got = c.call(p[:1], [], q[:0], torch.zeros(0), returns=2)
        c.close(list(got), [0, p[0]], label="no drafts: the plain distribution")
    # Sharing the first number is wrong in both. Sorting u does no harm in the first, nor does
    # taking it from the back in the second: mistakes of their own, not to be told that cause.
    for wanted, shares, u, label in (
        (1, (0.9, 0.4, 0.9, 0.4), (0.1, 0.5, 0.6, 0.8), "the second falls, and the fourth would"),
        (4, (0.9, 0.4, 0.4, 0.9), (0.6, 0.3, 0.3, 0.6), "all hold, each by its own number"),
    ):
        with c.part():
            law, ids, made = _with_chances(c, shares, vocab)
            got = c.call(law, ids, made, torch.tensor(u), returns=2)
            after = law[wanted].clone()
            if wanted < 4:  # what p has more: everything but the draft
                after[ids[wanted]] = 0.0
            c.close(list(got), [wanted, after / after.sum()], label=label)
    with c.part():
        best = c.randint(0, vocab, 4)
        sure = torch.eye(vocab)[best]
        same, other = best[:3], (best[:3] + c.size(1, vocab - 1)) % vocab
        u = torch.tensor([0.99, 0.5, 0.0])
        got = c.call(sure, same.tolist(), torch.eye(vocab)[same], u, returns=2)
        label = "p and q certain of the same tokens, as at temperature 0: all hold"
        c.close(list(got), [3, sure[3]], label=label)
        got = c.call(sure, other.tolist(), torch.eye(vocab)[other], 0 * u, returns=2)
        label = "p and q certain of other tokens: the first falls, and p's comes"
        c.close(list(got), [0, sure[0]], label=label)


def _with_chances(c, shares, vocab):
    """p, drafts and q with these chances; no draft is p's likeliest token, and all are likely."""
    p = torch.softmax(c.randn(len(shares) + 1, vocab), -1)
    ids, q = [], []
    for i, share in enumerate(shares):
        best, token = c.rand(vocab).argsort()[:2].tolist()
        p[i, best] = p[i, token] = 0.0
        p[i] *= 0.3 / p[i].sum()
        p[i, best], p[i, token] = 0.42, 0.28
        row = p[i] * (1 - 0.28 / share) / 0.72
        row[token] = 0.28 / share
        ids.append(token)
        q.append(row)
    return p, ids, torch.stack(q)
