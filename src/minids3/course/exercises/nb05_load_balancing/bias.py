"""The update of the experts' biases."""

from __future__ import annotations

import torch

from minids3.course.registry import Alternative, Mutant, exercise
from minids3.train.balance import update_expert_bias


def update_bias(bias, load, speed):
    """Move every expert's bias one step against its load.

    bias [E] float; load [E] int64, how many choices each expert got in the
    whole batch; speed: a number
    returns the new bias [E]; the old one stays as it was
    """
    load = load.to(bias.dtype)
    return bias + speed * torch.sign(load.mean() - load)


def _bias_wrong_sign(bias, load, speed):
    return update_bias(bias, load, -speed)


def _bias_proportional(bias, load, speed):
    load = load.to(bias.dtype)
    return bias + speed * (load.mean() - load) / load.mean()


def _bias_raw_difference(bias, load, speed):
    load = load.to(bias.dtype)
    return bias + speed * (load.mean() - load)


def _bias_used_only(bias, load, speed):
    load = load.to(bias.dtype)
    return bias + speed * torch.sign(load[load > 0].mean() - load)


def _bias_median(bias, load, speed):
    load = load.to(bias.dtype)
    return bias + speed * torch.sign(load.median() - load)


def _bias_ties_up(bias, load, speed):
    load = load.to(bias.dtype)
    return bias + torch.where(load > load.mean(), -speed, speed)


def _bias_share(bias, load, speed):
    load = load.to(bias.dtype)
    return bias + speed * torch.sign(1 / len(load) - load)


def _bias_multiplied(bias, load, speed):
    load = load.to(bias.dtype)
    return bias * (1 + speed * torch.sign(load.mean() - load))


def _bias_zero_sum(bias, load, speed):
    load = load.to(bias.dtype)
    step = torch.sign(load.mean() - load)
    return bias + speed * (step - step.mean())


def _bias_only_hot(bias, load, speed):
    load = load.to(bias.dtype)
    return bias - speed * (load > load.mean()).to(bias.dtype)


def _bias_forgetful(bias, load, speed):
    load = load.to(bias.dtype)
    return speed * torch.sign(load.mean() - load)


def _bias_in_place(bias, load, speed):
    return bias.copy_(update_bias(bias, load, speed))


def _bias_compared(bias, load, speed):
    mean = load.double().mean()
    step = (load < mean).to(bias.dtype) - (load > mean).to(bias.dtype)
    return torch.add(bias, step, alpha=speed)


def _bias_loop(bias, load, speed):
    total, new = load.sum().item(), bias.clone()
    for e, n in enumerate(load.tolist()):
        excess = n * len(load) - total  # compares whole numbers, no rounding
        new[e] += speed if excess < 0 else -speed if excess > 0 else 0
    return new


def _bias_library(bias, load, speed):
    return update_expert_bias(bias.clone(), load, speed)


def _integer_mean(bias, load, speed):
    return bias + speed * torch.sign(load.sum() // len(load) - load)


def _half_counts(bias, load, speed):
    load = load.half()
    return bias + speed * torch.sign(load.mean() - load).float()


def _clamped(bias, load, speed):
    return update_bias(bias, load, speed).clamp(-1, 1)


def _viewed_float64(bias, load, speed):
    return bias.double() + speed * torch.sign(load.double().mean() - load.double())


def _where(bias, load, speed):
    total, count = int(load.sum()), load.numel()
    new = bias.clone()
    new[load * count > total] -= speed
    new[load * count < total] += speed
    return new


@exercise(
    "balance-bias",
    solution=update_bias,
    notebook="05_load_balancing",
    title="Make the queue shorter",
    difficulty=2,
    importance=5,
    minutes=8,
    library=_bias_library,
    hints=(
        "An expert has too many tokens. Should its bias go up or down for fewer tokens to choose "
        "it? And does the size of the step depend on how many too many there are?",
        "mean = mean of load over all experts (load holds integers: convert first)\n"
        "step = sign(mean - load)      # +1 too empty, -1 too full, 0 exactly at the mean\n"
        "return bias + speed * step    # a new tensor",
    ),
    mutants=[
        Mutant(
            "wrong_sign",
            _bias_wrong_sign,
            "The sign is wrong: full experts become more attractive, and a collapse is the end of "
            "it. Subtract the load from the mean.",
        ),
        Mutant(
            "proportional",
            _bias_proportional,
            "Your step grows with the violation. The published rule takes only its sign, so that "
            "one wild batch cannot throw the bias far.",
        ),
        Mutant(
            "raw_difference",
            _bias_raw_difference,
            "You added speed times a count of tokens. Counts grow with the batch, and scores lie "
            "between 0 and 1: take the sign of the difference.",
        ),
        Mutant(
            "used_only",
            _bias_used_only,
            "Your mean leaves out idle experts. Then an expert just above the true mean is pushed "
            "up. The mean is over all E.",
        ),
        Mutant(
            "median",
            _bias_median,
            "You compared with the median. One hot expert hardly moves it; an even load is one in "
            "which everybody has the mean.",
        ),
        Mutant(
            "ties_up",
            _bias_ties_up,
            "An expert exactly at the mean must stay where it is: sign(0) is 0, and your step "
            "there is not.",
        ),
        Mutant(
            "share_against_count",
            _bias_share,
            "You compared a count with the share 1/E, so that every used expert counts as too "
            "full. Compare counts with their mean.",
        ),
        Mutant(
            "multiplied",
            _bias_multiplied,
            "You multiplied the bias. It starts at zero and would stay there for ever: add.",
        ),
        Mutant(
            "zero_sum",
            _bias_zero_sum,
            "You subtracted the mean of the steps. torchtitan does that, and it changes no choice; "
            "the rule asked for here moves each bias by exactly the speed.",
        ),
        Mutant(
            "only_hot",
            _bias_only_hot,
            "Full experts go down, but empty ones do not go up. Both halves of the sign count.",
        ),
        Mutant(
            "forgetful",
            _bias_forgetful,
            "You returned the step alone. The bias is the sum of all steps so far: add it to the "
            "old one.",
        ),
        Mutant(
            "in_place",
            _bias_in_place,
            "You wrote into the bias or the load. Return a new tensor: the forward pass of this "
            "step still belongs to the old bias.",
        ),
        Mutant(
            "integer_mean",
            _integer_mean,
            "You rounded the mean down to a whole number. An expert between it and the true mean "
            "then moves the wrong way.",
        ),
        Mutant(
            "half_counts",
            _half_counts,
            "float16 ends at 65,504, and a step of V3 makes two million choices per expert. Use "
            "float32 or wider.",
        ),
        Mutant(
            "clamped",
            _clamped,
            "You kept the bias within bounds. The rule has none: it moves by the speed wherever "
            "it is.",
        ),
        Mutant(
            "stays_float64",
            _viewed_float64,
            "You computed in float64 and stayed there. The new bias has the dtype of the old one.",
        ),
    ],
    alternatives=[
        Alternative("compared", _bias_compared),
        Alternative("loop", _bias_loop),
        Alternative("where", _where),
    ],
)
def check_bias(c):
    """One step by hand, the tie, idle experts, several steps from zero, speed zero."""
    experts, speed = c.size(6, 9), c.choice([0.001, 0.01, 0.02])
    load = _load(c, experts)
    bias = 0.1 * c.randn(experts)
    new = c.call(bias, load, speed, label="runs, and leaves the old bias alone")
    c.shape(new, (experts,), "the new bias")
    with c.part():
        c.dtype(new, torch.float32, "the new bias")
        c.close(new, _step(bias, load, speed), label="full experts go down, empty ones up")
    with c.part():
        tied = load.double() == load.double().mean()
        label = "an expert exactly at the mean keeps its bias"
        c.close(new[tied], bias[tied], label=label, rtol=0, atol=1e-7)
    with c.part():
        size = (new - bias)[~tied].abs()
        label = "everybody else moves by exactly the speed"
        c.close(size, torch.full_like(size, speed), label=label, rtol=1e-3, atol=0)
    with c.part():
        moved, wanted = torch.zeros(experts), torch.zeros(experts)
        for _ in range(3):
            fresh = _load(c, experts)
            moved, wanted = c.call(moved, fresh, speed), _step(wanted, fresh, speed)
        c.close(moved, wanted, label="three steps from zero add up")
    with c.part():
        even = torch.full((experts,), 17)
        c.close(c.call(bias, even, speed), bias, label="an even load changes nothing")
    with c.part():
        same = c.call(bias, load, 0.0)
        c.close(same, bias, label="speed 0 changes nothing")
        why = "it is the old bias itself"
        c.true(same is not bias, "and still gives a new tensor", why, cost=True)
    with c.part():
        uneven = load.clone()
        full = int(uneven.argmax())
        uneven[full] += c.size(1, experts - 1)  # no whole mean, and one that was at it is below
        label = "a mean that is not a whole number"
        c.close(
            c.call(bias, uneven, speed), _step(bias, uneven, speed), label=label, rtol=0, atol=1e-6
        )
    with c.part():
        near, old = torch.tensor([1000, 1001, 1001]), bias[:3]
        label = "loads that differ by a thousandth"
        c.close(c.call(old, near, speed), _step(old, near, speed), label=label, rtol=0, atol=1e-6)
    with c.part():
        wide = bias.clone()
        wide[load.argmax()], wide[load.argmin()] = 3.0, -3.0
        label = "a bias of 3 and one of -3 move like the others"
        c.close(c.call(wide, load, speed), _step(wide, load, speed), label=label, rtol=0, atol=1e-6)
    with c.part():
        many = load * 4096  # too many for FP16, and every sum exact in FP32
        label = "loads of tens of thousands"
        c.close(c.call(bias, many, speed), _step(bias, many, speed), label=label, rtol=0, atol=1e-6)


def _load(c, experts):
    """One idle, one exactly at the mean, one just above it, one very full, the rest below it."""
    mean = c.size(20, 30)
    low = [mean - c.size(2, 6) for _ in range(experts - 4)]
    load = [0, mean, mean + 1, *low]
    load.append(mean * experts - sum(load))
    order = torch.argsort(c.rand(experts))
    return torch.tensor(load)[order]


def _step(bias, load, speed):
    mean = sum(load.tolist()) / len(load)
    steps = [0.0 if n == mean else speed if n < mean else -speed for n in load.tolist()]
    return bias + torch.tensor(steps)
