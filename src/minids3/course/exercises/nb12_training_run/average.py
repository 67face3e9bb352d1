"""The moving average of the weights."""

from __future__ import annotations

import torch

from minids3.course.registry import Alternative, Mutant, exercise


# fmt: off
def update_average(average, weights, updates, decay=0.999):
    """Take one more step's weights into their moving average.

    average: list of float32 tensors; weights: list of tensors of the same
      shapes, float32 or bfloat16
    updates: how many steps have been taken in already
    returns a new list of float32: d * average + (1 - d) * weights, where
    d = min(decay, (1 + updates) / (10 + updates))
    """
    d = min(decay, (1 + updates) / (10 + updates))
    return [d * average[i] + (1 - d) * weights[i].float()
            for i in range(len(average))]
# fmt: on


def _mixed(average, weights, d):
    return [d * a + (1 - d) * w.float() for a, w in zip(average, weights, strict=True)]


def _swapped(average, weights, updates, decay=0.999):
    return _mixed(average, weights, 1 - min(decay, (1 + updates) / (10 + updates)))


def _no_warmup(average, weights, updates, decay=0.999):
    return _mixed(average, weights, decay)


def _one_ahead(average, weights, updates, decay=0.999):
    return _mixed(average, weights, min(decay, (2 + updates) / (11 + updates)))


def _larger(average, weights, updates, decay=0.999):
    return _mixed(average, weights, max(decay, (1 + updates) / (10 + updates)))


def _never_decay(average, weights, updates, decay=0.999):
    return _mixed(average, weights, (1 + updates) / (10 + updates))


def _plain_mean(average, weights, updates, decay=0.999):
    return _mixed(average, weights, min(decay, updates / (1 + updates)))


def _decay_built_in(average, weights, updates, decay=0.999):
    return _mixed(average, weights, min(0.999, (1 + updates) / (10 + updates)))


def _half_precision(average, weights, updates, decay=0.999):
    d = min(decay, (1 + updates) / (10 + updates))
    pairs = zip(average, weights, strict=True)
    return [(d * a.to(w.dtype) + (1 - d) * w).float() for a, w in pairs]


def _share_in_half(average, weights, updates, decay=0.999):
    d = min(decay, (1 + updates) / (10 + updates))
    return [d * a + (1 - d) * w for a, w in zip(average, weights, strict=True)]


def _not_normalised(average, weights, updates, decay=0.999):
    d = min(decay, (1 + updates) / (10 + updates))
    return [d * a + w.float() for a, w in zip(average, weights, strict=True)]


def _first_only(average, weights, updates, decay=0.999):
    return [update_average(average[:1], weights[:1], updates, decay)[0], *average[1:]]


def _in_place(average, weights, updates, decay=0.999):
    for a, new in zip(average, update_average(average, weights, updates, decay), strict=True):
        a.copy_(new)
    return average


def _lerp(average, weights, updates, decay=0.999):
    share = max(1 - decay, 9 / (10 + updates))
    pairs = zip(average, weights, strict=True)
    return [torch.lerp(a, w.to(torch.float32), share) for a, w in pairs]


def _foreach(average, weights, updates, decay=0.999):
    share = 1 - min(decay, (1 + updates) / (10 + updates))
    new = [a.clone() for a in average]
    torch._foreach_lerp_(new, [w.float() for w in weights], share)
    return new


@exercise(
    "run-average",
    solution=update_average,
    notebook="12_training_run",
    title="A model without the jitter",
    difficulty=1,
    importance=3,
    minutes=6,
    hints=(
        "With decay 0.999 and after one single update: how much of the random start would still "
        "be in the average if d were 0.999 from the beginning? And where do differences of a "
        "thousandth go in a format that has 8 bits of precision?",
        "d = the smaller of decay and (1 + updates) / (10 + updates)\n"
        "for each pair: d * average + (1 - d) * weight, with the weight in float32\n"
        "return the new tensors in a list",
    ),
    mutants=[
        Mutant(
            "swapped",
            _swapped,
            "You kept 1 - d of the average and took d of the weights. The average is what should "
            "move slowly.",
        ),
        Mutant(
            "no_warmup",
            _no_warmup,
            "You used decay from the first update on. For a thousand steps the average would "
            "consist mostly of the random start.",
        ),
        Mutant(
            "one_ahead",
            _one_ahead,
            "You are one update ahead: `updates` counts those before this one, and d is "
            "(1 + updates) / (10 + updates).",
        ),
        Mutant(
            "larger",
            _larger,
            "You took the larger of the two. Early on d should be small, so that the start is "
            "forgotten: min, not max.",
        ),
        Mutant(
            "never_decay",
            _never_decay,
            "Your d goes on growing past `decay`, and the average would remember more and more. "
            "It ends at decay.",
        ),
        Mutant(
            "plain_mean",
            _plain_mean,
            "That is the plain mean of all steps so far, up to decay. The formula is "
            "(1 + updates) / (10 + updates).",
        ),
        Mutant(
            "decay_built_in",
            _decay_built_in,
            "You built 0.999 in. Use the argument.",
        ),
        Mutant(
            "half_precision",
            _half_precision,
            "You calculated in the weights' bfloat16. It cannot hold a change of a thousandth, "
            "so the average stands still: go to float32 first.",
        ),
        Mutant(
            "share_in_half",
            _share_in_half,
            "(1 - d) * weights is rounded to bfloat16 before it is added. Take the weights to "
            "float32 first.",
        ),
        Mutant(
            "not_normalised",
            _not_normalised,
            "You added the whole weight. The two shares are d and 1 - d, and add up to 1.",
        ),
        Mutant(
            "first_only",
            _first_only,
            "Only the first tensor was averaged. Go through all of them.",
        ),
        Mutant(
            "in_place",
            _in_place,
            "You changed what you were given: the average, its list, or the weights (`w.float()` "
            "of a float32 tensor is `w` itself). Return a new list of new tensors.",
        ),
    ],
    alternatives=[
        Alternative("lerp", _lerp),
        Alternative("foreach", _foreach),
    ],
)
def check_average(c):
    """First update, in the middle, at the decay's limit; BF16 weights; many steps."""
    shapes = [(c.size(2, 4), 3), (c.size(4, 6),)]
    average, weights = [c.randn(*s) for s in shapes], [c.randn(*s) for s in shapes]
    first = c.call(average, weights, 0, label="runs, and leaves the old average alone")
    with c.part():
        c.close(list(first), _by_hand(average, weights, 0.1), label="the first update takes 0.9")
    with c.part():
        updates = c.size(20, 60)
        got = c.call(average, weights, updates)
        wanted = _by_hand(average, weights, (1 + updates) / (10 + updates))
        c.close(list(got), wanted, label=f"after {updates} updates", rtol=1e-5, atol=1e-6)
    with c.part():
        got = c.call(average, [w + 50 for w in weights], 10**6)
        wanted = _by_hand(average, [w + 50 for w in weights], 0.999)
        c.close(list(got), wanted, label="after a million d is decay", rtol=1e-5, atol=1e-6)
    with c.part():
        decay = c.choice([0.9, 0.95, 0.98])
        got = c.call(average, weights, 10**5, decay)
        c.close(list(got), _by_hand(average, weights, decay), label="another decay", rtol=1e-5)
    with c.part():
        half = [(16 * w).to(torch.bfloat16) for w in weights]  # large: a rounded share shows
        got = c.call(average, half, 10**6, 0.999)
        c.dtype(got[0], torch.float32, "the average of bfloat16 weights")
        wanted = _by_hand(average, half, 0.999)
        label = "and it moves by a thousandth of the difference"
        c.close(list(got), wanted, label=label, rtol=1e-6, atol=1e-6)
    with c.part():
        now, wanted = average, average
        for n in range(12):
            step = [w + 0.1 * c.randn(*w.shape) for w in weights]
            now = c.call(now, step, n, 0.4)  # reached after the sixth of them
            wanted = _by_hand(wanted, step, min(0.4, (1 + n) / (10 + n)))
        c.close(list(now), wanted, label="twelve updates in a row", rtol=1e-4)


def _by_hand(average, weights, d):
    pairs = zip(average, weights, strict=True)
    return [(a.double() + (1 - d) * (w.double() - a.double())).float() for a, w in pairs]
