"""One softmax out of several over parts of the keys."""

from __future__ import annotations

import math

import torch

from minids3.course.registry import Alternative, Mutant, exercise


# fmt: off
def merge_splits(out, lse):
    """One attention out of several over parts of the rows.

    out [..., S, C]: what each of S parts came to, normalised by itself
    lse [..., S]: natural logarithm of the sum of the exponentials of each
    part's scores; -inf where a part had no rows, and then its `out` may
    hold anything, NaN included
    returns two tensors: [..., C], the attention over all rows together, and
    [...], its own lse, so that it can be merged again; 0 and -inf where no
    part had a row
    """
    peak = lse.amax(-1, keepdim=True)
    peak = peak.masked_fill(peak == -math.inf, 0.0)  # else -inf + inf
    e = torch.exp(lse - peak)
    total = e.sum(-1, keepdim=True)
    weights = e / total.clamp(min=1e-30)
    out = out.masked_fill((lse == -math.inf)[..., None], 0.0)
    merged = (weights[..., None] * out).sum(-2)
    return merged, (peak + total.log())[..., 0]
# fmt: on


def _whole_lse(lse):
    return lse.logsumexp(-1)


def _clean(out, lse):
    return out.masked_fill((lse == -math.inf)[..., None], 0.0)


def _weigh(out, lse, weights, whole=None):
    weights = weights.masked_fill(lse == -math.inf, 0.0)
    merged = (weights[..., None] * _clean(out, lse)).sum(-2)
    return merged, _whole_lse(lse) if whole is None else whole


def _shares(lse):
    peak = lse.amax(-1, keepdim=True).clamp(min=-1e30)
    e = torch.exp(lse - peak)
    return e / e.sum(-1, keepdim=True).clamp(min=1e-30)


def _average(out, lse):
    there = (lse > -math.inf).float()
    return _weigh(out, lse, there / there.sum(-1, keepdim=True).clamp(min=1))


def _base_two(out, lse):
    peak = lse.amax(-1, keepdim=True).clamp(min=-1e30)
    e = torch.exp2(lse - peak)
    total = e.sum(-1, keepdim=True)
    whole = (peak + total.log2())[..., 0]
    return _weigh(out, lse, e / total.clamp(min=1e-30), whole)


def _no_peak(out, lse):
    e = lse.exp()
    total = e.sum(-1, keepdim=True)
    safe = total.masked_fill(total == 0, 1.0)
    return _weigh(out, lse, e / safe, total.log()[..., 0])


def _nan_when_empty(out, lse):
    peak = lse.amax(-1, keepdim=True)
    e = torch.exp(lse - peak)
    merged = (e[..., None] * _clean(out, lse)).sum(-2) / e.sum(-1, keepdim=True)
    return merged, (peak + e.sum(-1, keepdim=True).log())[..., 0]


def _softmax_of_none(out, lse):
    return (lse.softmax(-1)[..., None] * _clean(out, lse)).sum(-2), _whole_lse(lse)


def _empty_read(out, lse):
    return (_shares(lse)[..., None] * out).sum(-2), _whole_lse(lse)


def _one_part_early(out, lse):
    if lse.shape[-1] == 1:
        return out[..., 0, :], lse[..., 0]
    return merge_splits(out, lse)


def _largest_only(out, lse):
    weights = torch.nn.functional.one_hot(lse.argmax(-1), lse.shape[-1]).to(out.dtype)
    return _weigh(out, lse, weights)


def _not_normalised(out, lse):
    peak = lse.amax(-1, keepdim=True).clamp(min=-1e30)
    return _weigh(out, lse, torch.exp(lse - peak))


def _by_logarithm(out, lse):
    weights = lse.masked_fill(lse == -math.inf, 0.0)
    total = weights.sum(-1, keepdim=True)
    return _weigh(out, lse, weights / total.masked_fill(total == 0, 1.0))


def _peak_as_lse(out, lse):
    return merge_splits(out, lse)[0], lse.amax(-1)


def _lse_added(out, lse):
    return merge_splits(out, lse)[0], lse.masked_fill(lse == -math.inf, 0.0).sum(-1)


def _total_as_lse(out, lse):
    peak = lse.amax(-1).clamp(min=-1e30)
    return merge_splits(out, lse)[0], torch.exp(lse - peak[..., None]).sum(-1).log()


def _with_logsumexp(out, lse):
    whole = torch.logsumexp(lse, -1)
    weights = torch.exp(lse - whole[..., None])
    empty = (lse == -math.inf)[..., None]
    return torch.where(empty, 0.0, weights[..., None] * out).sum(-2), whole


def _one_after_another(out, lse):
    """Two at a time, as partial results come in."""
    merged, whole = torch.zeros_like(out[..., 0, :]), torch.full_like(lse[..., 0], -math.inf)
    for part, own in zip(out.unbind(-2), lse.unbind(-1), strict=True):
        new = torch.logaddexp(whole, own)
        finite = new.clamp(min=-1e30)
        old, add = (whole - finite).exp()[..., None], (own - finite).exp()[..., None]
        merged = old * merged + add * torch.where(add > 0, part, torch.zeros_like(part))
        whole = new
    return merged, whole


@exercise(
    "serve-merge",
    solution=merge_splits,
    notebook="16_serving",
    title="Merging parts of a softmax",
    difficulty=3,
    importance=5,
    minutes=15,
    forbids=("minids3.ref.attention.merge_splits_ref",),
    hints=(
        "Part 1 divided by its own sum of exponentials, part 2 by its own. What do you have to "
        "multiply each by to have the sums back, and by what must you divide in the end? Which of "
        "these numbers do you know only as a logarithm?",
        "m = largest lse, or 0 where all are -inf\n"
        "e = exp(lse - m)                       # each part's sum, all shrunk alike\n"
        "out = sum of e * out / sum of e        # parts without rows set to 0 first\n"
        "lse = m + log(sum of e)",
    ),
    mutants=[
        Mutant(
            "average",
            _average,
            "You averaged the parts. A part whose scores are large counts for more: by the sum "
            "of its exponentials, e to the power lse.",
        ),
        Mutant(
            "base_two",
            _base_two,
            "You took powers of 2. These logarithms are natural ones. (Kernels prefer base 2, as "
            "the hardware does; whoever merges has to know which it is.)",
        ),
        Mutant(
            "no_peak",
            _no_peak,
            "You took exp(lse) as it is, and it overflows. Take the largest lse off first.",
        ),
        Mutant(
            "nan_when_empty",
            _nan_when_empty,
            "Where no part has a row, the largest lse is -inf, and -inf minus -inf is NaN. Take 0 "
            "as the peak there.",
        ),
        Mutant(
            "softmax_of_none",
            _softmax_of_none,
            "Your lse is right where no part has a row, but a softmax over nothing but -inf is "
            "NaN: the result there has to be 0.",
        ),
        Mutant(
            "empty_read",
            _empty_read,
            "A part without rows has weight 0, and you multiplied what lies in its place by it: 0 "
            "times NaN is NaN. Set it to 0 first.",
        ),
        Mutant(
            "one_part_early",
            _one_part_early,
            "Where there is one part you return it as it is. That part may be empty, too, and then "
            "anything lies in its place: the result has to be 0.",
        ),
        Mutant(
            "largest_only",
            _largest_only,
            "You kept the part with the largest sum and dropped the others. They count by their "
            "share.",
        ),
        Mutant(
            "not_normalised",
            _not_normalised,
            "You did not divide by the sum of the weights. Each part was normalised by itself; the "
            "merged one has to be, too.",
        ),
        Mutant(
            "by_logarithm",
            _by_logarithm,
            "You used lse itself as the weight. It is the logarithm of the weight.",
        ),
        Mutant(
            "peak_as_lse",
            _peak_as_lse,
            "You returned the largest lse as that of the whole. The sums add up: it is the "
            "logarithm of all of them together.",
        ),
        Mutant(
            "lse_added",
            _lse_added,
            "You added the logarithms up. Adding logarithms multiplies; it is the sums themselves "
            "that add up.",
        ),
        Mutant(
            "total_as_lse",
            _total_as_lse,
            "The peak that you took off before the exponential is missing from the lse that you "
            "return.",
        ),
    ],
    alternatives=[
        Alternative("with_logsumexp", _with_logsumexp),
        Alternative("one_after_another", _one_after_another),
    ],
)
def check_merge_splits(c):
    """Unequal parts, empty ones, one, two; sums far from 1 and apart; more axes; no rows at all."""
    heads, width = c.size(2, 4), c.size(5, 8)
    cuts = [c.size(2, 4), c.size(6, 9), c.size(1, 2), c.size(3, 5)]
    scores, rows = 2 * c.randn(heads, sum(cuts)), c.randn(sum(cuts), width)
    out, lse = _parts(scores, rows, cuts)
    got = c.call(out, lse, returns=2, label=f"runs on 4 parts of {cuts} rows")
    with c.part():
        c.close(got[0], scores.softmax(-1) @ rows, label="one softmax over all rows")
    with c.part():
        c.close(got[1], scores.logsumexp(-1), label="and its lse")
    with c.part():
        order = torch.tensor([4, 1, 0, 2, 3])
        hole = torch.cat((out, torch.full_like(out[:, :1], float("nan"))), 1)[:, order]
        hole[0, 0] = math.inf
        none = torch.cat((lse, torch.full_like(lse[:, :1], -math.inf)), 1)[:, order]
        got = c.call(hole, none, returns=2)
        c.close(
            got[0],
            scores.softmax(-1) @ rows,
            label="a part without rows, its place full of NaN and inf",
        )
        c.close(got[1], scores.logsumexp(-1), label="and the lse")
    with c.part():
        # lse near 400 is known to 1.5e-5, so a weight to so much of itself, and sums may cancel.
        atol = 1e-4 * rows.abs().max().item()
        for shift, name in ((400.0, "large"), (-400.0, "small")):
            got = c.call(hole, none + shift, returns=2)
            c.close(got[0], scores.softmax(-1) @ rows, label=f"very {name} sums", atol=atol)
            c.close(got[1], scores.logsumexp(-1) + shift, label=f"and their lse, very {name}")
        apart = lse - 400.0
        apart[0] += 800.0
        got = c.call(out, apart, returns=2)
        c.close(got[0], scores.softmax(-1) @ rows, label="heads far apart", atol=atol)
        c.close(got[1], apart.logsumexp(-1), label="and their lse, far apart")
        above = lse.clone()
        above[:, 1] += 300.0
        got = c.call(out, above, returns=2)
        c.close(got[0], out[:, 1], label="one part far above the others", atol=atol)
    with c.part():
        first = c.call(out[:, :2], lse[:, :2], returns=2)
        second = c.call(out[:, 2:], lse[:, 2:], returns=2)
        twice = [torch.stack((a, b), 1) for a, b in zip(first, second, strict=True)]
        got = c.call(*twice, returns=2)
        c.close(got[0], scores.softmax(-1) @ rows, label="merged in pairs, then once more")
    with c.part():
        lead = c.randn(2, 1, 3, 4, width), 2 * c.randn(2, 1, 3, 4)
        want = (lead[1].softmax(-1)[..., None] * lead[0]).sum(-2)
        got = c.call(*lead, returns=2)
        c.close(got[0], want, label="axes [2, 1, 3] in front")
        c.close(got[1], lead[1].logsumexp(-1), label="and their lse, [2, 1, 3]")
        got = c.call(*(t[0, 0, 0] for t in lead), returns=2)
        c.close(got[0], want[0, 0, 0], label="no axis in front")
        c.close(got[1], lead[1][0, 0, 0].logsumexp(-1), label="and its lse, a single number")
    with c.part():
        some, waste = lse.clone(), out.clone()
        some[0, 1], waste[0, 1] = -math.inf, float("nan")
        want = (some.softmax(-1)[..., None] * out).sum(-2)
        got = c.call(waste, some, returns=2)
        c.close(got[0], want, label="a part that is empty for one head only")
    with c.part():
        some[0], waste[0] = -math.inf, float("nan")
        got = c.call(waste, some, returns=2)
        want = torch.cat((torch.zeros(1, width), (scores.softmax(-1) @ rows)[1:]))
        c.close(got[0], want, label="a head without any row: 0")
        c.close(got[1], [-math.inf, *scores.logsumexp(-1)[1:].tolist()] if isinstance(got[1], list)
                else torch.cat((torch.tensor([-math.inf]), scores.logsumexp(-1)[1:])),
                label="and its lse: -inf")  # fmt: skip
    with c.part():
        one, own = out[:, 1:2].clone(), lse[:, 1:2].clone()
        one[0], own[0] = float("nan"), -math.inf
        got = c.call(one, own, returns=2)
        want = torch.cat((torch.zeros(1, width), out[1:, 1]))
        c.close(got[0], want, label="a single part, without rows for one head")
        c.close(got[1], own[:, 0], label="and its lse, handed on")
        two, both = out[:, :2].clone(), lse[:, :2].clone()
        two[0, 0], both[0, 0] = float("nan"), -math.inf
        two[1, 1], both[1, 1] = float("nan"), -math.inf
        got = c.call(two, both, returns=2)
        want = (lse[:, :2].softmax(-1)[..., None] * out[:, :2]).sum(-2)
        want[0], want[1] = out[0, 1], out[1, 0]
        c.close(got[0], want, label="two parts, the first or the second empty")
        c.close(got[1], both.logsumexp(-1), label="and their lse, of two parts")
    with c.part():
        # Weights of some 1e-5, and numbers large enough to be seen all the same.
        low, loud = lse.clone(), out.clone()
        low[:, 0], loud[:, 0] = low.amax(-1) - 11.0, 1e4 * (1 + c.rand(heads, width))
        want = (low.double().softmax(-1)[..., None] * loud).sum(-2).float()
        got = c.call(loud, low, returns=2)
        c.close(got[0], want, label="a part of small weight and large numbers", rtol=1e-3)


def _parts(scores, rows, cuts):
    """Attention over each part by itself: [H, parts, C] and [H, parts]."""
    out = [s.softmax(-1) @ r for s, r in zip(scores.split(cuts, 1), rows.split(cuts), strict=True)]
    lse = [s.logsumexp(-1) for s in scores.split(cuts, 1)]
    return torch.stack(out, 1), torch.stack(lse, 1)
