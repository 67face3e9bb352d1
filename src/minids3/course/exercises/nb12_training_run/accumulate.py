"""One optimizer step out of several passes."""

from __future__ import annotations

import torch

from minids3.course.registry import Alternative, Mutant, exercise


def one_step(passes, bias, speed):
    """Gradient and bias update of one optimizer step made of several passes.

    passes: list of (grad, n, load), one per micro-batch:
      grad [D]: gradient of the pass's MEAN loss over its n targets
      n: how many targets it has; 0 if it is padding, and then grad is NaN
      load [E] int64: how many choices each expert got
    bias [E] float; speed: a number
    returns the gradient [D] of the mean loss over all targets, and the new
    bias [E]; a pass without targets counts for nothing
    """
    passes = [each for each in passes if each[1] > 0]
    total = sum(n for _, n, _ in passes)
    grad = sum(grad * (n / total) for grad, n, _ in passes)
    load = sum(load for _, _, load in passes).to(bias.dtype)
    return grad, bias + speed * torch.sign(load.mean() - load)


def _full(passes):
    return [each for each in passes if each[1] > 0]


def _grad(passes):
    passes = _full(passes)
    return sum(g * (n / sum(n for _, n, _ in passes)) for g, n, _ in passes)


def _moved(bias, load, speed):
    load = load.to(bias.dtype)
    return bias + speed * torch.sign(load.mean() - load)


def _load(passes):
    return sum(load for _, _, load in _full(passes))


def _mean_of_means(passes, bias, speed):
    grads = [g for g, _, _ in _full(passes)]
    return sum(grads) / len(grads), _moved(bias, _load(passes), speed)


def _mean_of_all_passes(passes, bias, speed):
    grads = [torch.nan_to_num(g) for g, _, _ in passes]
    return sum(grads) / len(grads), _moved(bias, _load(passes), speed)


def _sum_of_means(passes, bias, speed):
    return sum(g for g, _, _ in _full(passes)), _moved(bias, _load(passes), speed)


def _not_divided(passes, bias, speed):
    return sum(g * n for g, n, _ in _full(passes)), _moved(bias, _load(passes), speed)


def _nan_times_zero(passes, bias, speed):
    total = sum(n for _, n, _ in passes)
    return sum(g * (n / total) for g, n, _ in passes), _moved(bias, _load(passes), speed)


def _bias_per_pass(passes, bias, speed):
    for _, _, load in _full(passes):
        bias = _moved(bias, load, speed)
    return _grad(passes), bias


def _bias_last_pass(passes, bias, speed):
    return _grad(passes), _moved(bias, _full(passes)[-1][2], speed)


def _bias_mean_of_signs(passes, bias, speed):
    signs = [torch.sign(x.double().mean() - x).to(bias.dtype) for _, _, x in _full(passes)]
    return _grad(passes), bias + speed * sum(signs) / len(signs)


def _bias_shares(passes, bias, speed):
    shares = sum(load / load.sum() for _, _, load in _full(passes))
    return _grad(passes), _moved(bias, shares, speed)


def _bias_padding(passes, bias, speed):
    return _grad(passes), _moved(bias, sum(load for _, _, load in passes), speed)


def _first_as_it_is(passes, bias, speed):
    total = sum(n for _, n, _ in passes)
    first, *rest = passes
    rest = _full(rest)
    grad = sum((g * (n / total) for g, n, _ in rest), first[0] * (first[1] / total))
    return grad, _moved(bias, sum((x for _, _, x in rest), first[2]), speed)


def _busy_only(passes, bias, speed):
    load = _load(passes).to(bias.dtype)
    return _grad(passes), bias + speed * torch.sign(load[load > 0].mean() - load)


def _bias_away(passes, bias, speed):
    return _grad(passes), _moved(bias, _load(passes), -speed)


def _by_distance(passes, bias, speed):
    load = _load(passes).to(bias.dtype)
    return _grad(passes), bias + speed * (load.mean() - load)


def _floor_mean(passes, bias, speed):
    load = _load(passes)
    return _grad(passes), bias + speed * torch.sign(load.sum() // len(load) - load)


def _no_sign_of_zero(passes, bias, speed):
    load = _load(passes).to(bias.dtype)
    return _grad(passes), torch.where(load <= load.mean(), bias + speed, bias - speed)


def _in_place(passes, bias, speed):
    grad, new = one_step(passes, bias, speed)
    return grad, bias.copy_(new)


def _running(passes, bias, speed):
    grad, load, seen = torch.zeros_like(passes[0][0]), torch.zeros(len(bias)).double(), 0
    for g, n, x in passes:
        if n == 0:
            continue
        seen += n
        grad = grad + (g - grad) * (n / seen)  # a running mean, weighted by targets
        load += x
    step = (load < load.mean()).to(bias.dtype) - (load > load.mean()).to(bias.dtype)
    return grad, torch.add(bias, step, alpha=speed)


def _stacked(passes, bias, speed):
    counts = torch.tensor([n for _, n, _ in passes], dtype=torch.float64)
    grads = torch.stack([g.double() for g, _, _ in passes])
    loads = torch.stack([x for _, _, x in passes])[counts > 0].sum(0)
    grad = (grads[counts > 0] * counts[counts > 0, None]).sum(0) / counts.sum()
    sign = torch.sign(loads.sum() - loads * len(loads)).to(bias.dtype)
    return grad.float(), bias + speed * sign


@exercise(
    "run-accumulate",
    solution=one_step,
    notebook="12_training_run",
    title="A large batch on a small machine",
    difficulty=3,
    importance=5,
    minutes=12,
    hints=(
        "A pass of 1,000 targets and one of 10 each give you the gradient of a mean. How much "
        "should each weigh, if every target is to weigh the same? What is 0 times NaN? And how "
        "often may the bias move in one optimizer step?",
        "drop the passes with n = 0\n"
        "total = sum of the n\n"
        "grad = sum over passes of grad * n / total\n"
        "load = sum over passes of load                 # the whole batch's load\n"
        "bias + speed * sign(mean of load - load)       # once",
    ),
    mutants=[
        Mutant(
            "mean_of_means",
            _mean_of_means,
            "You gave every pass the same weight. A pass with few targets then counts as much as "
            "a full one: weigh by n.",
        ),
        Mutant(
            "mean_of_all_passes",
            _mean_of_all_passes,
            "You averaged over all passes, padding included. That makes the step smaller for "
            "every pass that had nothing to say.",
        ),
        Mutant(
            "sum_of_means",
            _sum_of_means,
            "You added the means up. With more passes the gradient grows, as if the learning "
            "rate had been raised.",
        ),
        Mutant(
            "not_divided",
            _not_divided,
            "You weighed by n and did not divide by all targets together. That is the gradient "
            "of the sum.",
        ),
        Mutant(
            "nan_times_zero",
            _nan_times_zero,
            "A weight of 0 does not silence a NaN: 0 times NaN is NaN. Leave a pass without "
            "targets out.",
        ),
        Mutant(
            "bias_per_pass",
            _bias_per_pass,
            "You moved the bias once per pass. Split the batch finer, and it would race: one "
            "step per optimizer step, from the load of all passes.",
        ),
        Mutant(
            "bias_last_pass",
            _bias_last_pass,
            "You looked at the last pass's load alone. The load is that of the whole batch.",
        ),
        Mutant(
            "bias_mean_of_signs",
            _bias_mean_of_signs,
            "You averaged the signs of the passes. Add the loads first, then take one sign: an "
            "expert moves by exactly the speed, or not at all.",
        ),
        Mutant(
            "bias_shares",
            _bias_shares,
            "You turned each pass's load into shares before adding. A small pass then weighs as "
            "much as a large one: add the counts.",
        ),
        Mutant(
            "bias_padding",
            _bias_padding,
            "You counted the load of a pass that is all padding. Nobody's text went to those "
            "experts.",
        ),
        Mutant(
            "first_as_it_is",
            _first_as_it_is,
            "You begin with the first pass, whatever it is. It may be padding like any other: "
            "look at its n, too.",
        ),
        Mutant(
            "busy_only",
            _busy_only,
            "You took the mean over the experts that got something. One that got nothing counts "
            "in the mean, too.",
        ),
        Mutant(
            "bias_away",
            _bias_away,
            "Your bias moves the wrong way: a full expert has to become less attractive.",
        ),
        Mutant(
            "by_distance",
            _by_distance,
            "You moved by the distance itself. Only its sign counts: a bias moves by exactly the "
            "speed, or not at all.",
        ),
        Mutant(
            "floor_mean",
            _floor_mean,
            "You rounded the mean of the load down. Keep its fraction: an expert that is just "
            "below it moves, too.",
        ),
        Mutant(
            "no_sign_of_zero",
            _no_sign_of_zero,
            "You raised the bias of an expert whose load is exactly the mean. The sign of 0 is 0: "
            "it stays where it is.",
        ),
        Mutant(
            "in_place",
            _in_place,
            "You wrote into what you were given: the bias, a pass's gradient or its load. "
            "`a += b` changes a tensor in place.",
        ),
    ],
    alternatives=[
        Alternative("running", _running),
        Alternative("stacked", _stacked),
    ],
)
def check_accumulate(c):
    """Unequal passes, padding anywhere, one alone, one of a target; loads around the mean."""
    width, experts, speed = c.size(4, 7), c.choice([6, 7, 9]), c.choice([0.003, 0.01, 0.02])
    bias = 0.1 * c.randn(experts)
    passes = _passes(c, width, experts, (c.size(700, 1000), c.size(20, 60), c.size(200, 400)))
    grad, new = c.call(passes, bias, speed, returns=2, label="runs, and leaves the old bias alone")
    with c.part():
        label = "the gradient is that of the mean over all targets"
        c.close(grad, _mean(passes), label=label)
    with c.part():
        c.close(new, _once(passes, bias, speed), label="the bias moves once, by the whole load")
        label = "and by exactly the speed"
        c.close((new - bias).abs(), torch.full((experts,), speed), label=label, rtol=1e-3, atol=0)
    with c.part():
        one = passes[1:2]
        grad, new = c.call(one, bias, speed, returns=2)
        c.close(grad, one[0][0], label="a single pass is its own gradient")
    padding = (torch.full((width,), float("nan")), 0, torch.tensor([900, *[0] * (experts - 1)]))
    with c.part():
        mixed = [passes[0], padding, passes[2]]
        grad, new = c.call(mixed, bias, speed, returns=2)
        c.close(grad, _mean(passes[::2]), label="a pass of padding leaves the gradient alone")
        wanted = _once(passes[::2], bias, speed)
        c.close(new, wanted, label="and does not count in the load")
    with c.part():
        around = [padding, passes[0], passes[2], padding]
        grad, new = c.call(around, bias, speed, returns=2)
        wanted = [_mean(passes[::2]), _once(passes[::2], bias, speed)]
        c.close([grad, new], wanted, label="nor does padding at the beginning or the end")
    with c.part():
        equal = [(g, 64, x) for g, _, x in passes]
        grad, _ = c.call(equal, bias, 0.0, returns=2)
        c.close(grad, _mean(equal), label="passes of equal size: the plain mean")
    with c.part():
        loads = [torch.tensor([2] + [0] * 7), torch.tensor([4, 2] + [4] * 6)]  # their mean: 4
        uneven = [(c.randn(width), n, x) for n, x in zip((1, 15), loads, strict=True)]
        grad, new = c.call(uneven, torch.zeros(8), 0.01, returns=2)
        c.close(grad, _mean(uneven), label="a pass of one target counts, too")
        wanted = torch.tensor([-0.01, 0.01] + [0.0] * 6)
        c.close(new, wanted, label="an expert exactly at the mean stays where it is")
    with c.part():
        near = [(c.randn(width), 17, torch.tensor([6] + [4] * 7))]  # the mean is 4.25
        _, new = c.call(near, torch.zeros(8), 0.01, returns=2)
        wanted = torch.tensor([-0.01] + [0.01] * 7)
        c.close(new, wanted, label="one just below it moves")
    with c.part():
        loads = [torch.tensor([3, 0] + [2] * 6), torch.tensor([4, 0] + [3] * 6)]  # mean: 4.625
        idle = [(c.randn(width), 11, x) for x in loads]
        _, new = c.call(idle, torch.zeros(8), 0.01, returns=2)
        wanted = torch.tensor([-0.01, 0.01] + [-0.01] * 6)
        c.close(new, wanted, label="an expert without load counts in the mean")


def _passes(c, width, experts, sizes):
    """The first pass is the largest and decides; the two others lean the other way."""
    found, lean = [], torch.linspace(-0.5, 0.5, experts)
    for n, slope in zip(sizes, (1.0, -1.6, -0.8), strict=True):
        share = torch.softmax(slope * lean + 0.05 * c.randn(experts), 0)
        load = (share * 2 * n).round().to(torch.int64)
        found.append((c.randn(width) + slope, n, load))
    # The one near the mean must not be there exactly: then the sign would be a matter of rounding.
    total = sum(x for _, _, x in found)
    found[0][2][total * experts == total.sum()] += 1
    return found


def _mean(passes):
    total = sum(n for _, n, _ in passes)
    columns = zip(*((g.double() * n / total).tolist() for g, n, _ in passes), strict=True)
    return torch.tensor([sum(column) for column in columns])


def _once(passes, bias, speed):
    loads = [sum(column) for column in zip(*(x.tolist() for _, _, x in passes), strict=True)]
    mean = sum(loads) / len(loads)
    steps = [speed if n < mean else -speed if n > mean else 0.0 for n in loads]
    return bias + torch.tensor(steps)
