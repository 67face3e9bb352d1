"""Scales that are powers of two."""

from __future__ import annotations

import math

import torch

from minids3.course.registry import Alternative, Mutant, exercise


def power_of_two_scale(scale):
    """The smallest power of two that is not below each scale.

    scale: float32 of any shape, greater than 0 and not subnormal
    returns float32 of the same shape; a power of two stays what it is
    """
    mantissa, power = torch.frexp(scale)  # scale = [0.5, 1) * 2^power
    power = torch.where(mantissa == 0.5, power - 1, power)
    return torch.ldexp(torch.ones_like(scale), power)


def _power_nearest(scale):
    return torch.exp2(torch.log2(scale.double()).round()).float()


def _power_down(scale):
    _, power = torch.frexp(scale)
    return torch.ldexp(torch.ones_like(scale), power - 1)


def _power_always_up(scale):
    _, power = torch.frexp(scale)
    return torch.ldexp(torch.ones_like(scale), power)


def _power_log_rounded(scale):
    wide = torch.log2(scale.double())
    near = (wide * 2**16).round() / 2**16  # what a short logarithm leaves
    return torch.exp2(near.ceil()).float()


def _power_exponent(scale):
    mantissa, power = torch.frexp(scale)
    return torch.where(mantissa == 0.5, power - 1, power).float()


def _power_inverse(scale):
    return 1 / power_of_two_scale(scale)


def _power_byte(scale):
    mantissa, power = torch.frexp(scale)
    return (torch.where(mantissa == 0.5, power - 1, power) + 127).float()


def _power_of_largest(scale):
    return power_of_two_scale(scale.max()).expand(scale.shape).clone()


def _power_at_least_one(scale):
    return power_of_two_scale(scale).clamp(min=1.0)


def _power_bits(scale):
    bits = scale.contiguous().view(torch.int32)
    return ((bits + 0x7FFFFF) & ~0x7FFFFF).view(torch.float32)


def _power_log(scale):
    return torch.exp2(torch.log2(scale.double()).ceil()).float()


def _power_table(scale):
    table = torch.tensor([2.0**p for p in range(-126, 128)])
    return table[torch.searchsorted(table, scale.contiguous())]


def _float32_logarithm(scale):
    return torch.exp2(torch.ceil(torch.log2(scale)))


def _viewed(scale):
    return power_of_two_scale(scale.view(-1)).view(scale.shape)


def _power_loop(scale):
    out = torch.empty(scale.shape)
    for i, s in enumerate(scale.flatten().tolist()):
        p = 2.0 ** math.floor(math.log2(s))
        while p < s:
            p *= 2
        while p / 2 >= s:
            p /= 2
        out.view(-1)[i] = p
    return out


@exercise(
    "fp8-power-of-two",
    solution=power_of_two_scale,
    notebook="08_fp8_numbers",
    title="Scales without a mantissa",
    difficulty=2,
    importance=3,
    minutes=8,
    hints=(
        "If the scale got smaller, what would happen to a tile's largest number? So in which "
        "direction do you round, and what must not happen to a scale that is a power of two?",
        "mantissa, power = torch.frexp(scale)  # mantissa * 2^power, 0.5 <= mantissa < 1\n"
        "power - 1 where the mantissa is exactly 0.5   (a power of two already)\n"
        "return 2^power                           # torch.ldexp(ones, power): exact",
    ),
    mutants=[
        Mutant(
            "nearest",
            _power_nearest,
            "You rounded to the nearest power. Where that goes down, the tile's largest number "
            "lands above 448 and saturates: round up.",
        ),
        Mutant(
            "down",
            _power_down,
            "You rounded down (or 1 / scale up, which is the same), and the tile's largest number "
            "lands above 448. Round up.",
        ),
        Mutant(
            "always_up",
            _power_always_up,
            "A scale that is a power of two was doubled. It stays, or a bit is wasted.",
        ),
        Mutant(
            "short_logarithm",
            _power_log_rounded,
            "A scale just above a power of two was rounded down to it: a logarithm in few bits, or "
            "one that was lessened, does not tell them apart. Take the exponent from the bits "
            "(torch.frexp) instead.",
        ),
        Mutant(
            "exponent",
            _power_exponent,
            "You returned the exponent. Return 2 to the power of it.",
        ),
        Mutant(
            "inverse",
            _power_inverse,
            "You returned one over the scale.",
        ),
        Mutant(
            "byte",
            _power_byte,
            "That is the UE8M0 code, exponent plus 127. Asked for is the number it stands for.",
        ),
        Mutant(
            "of_the_largest",
            _power_of_largest,
            "Every scale is rounded for itself; you gave all of them the largest one's power.",
        ),
        Mutant(
            "at_least_one",
            _power_at_least_one,
            "Small scales became 1. Gradients need scales far below that: powers may be negative.",
        ),
        Mutant(
            "float32_logarithm",
            _float32_logarithm,
            "In float32 the logarithm of a number right above a power of two is a whole number, "
            "and ceil leaves it there. frexp takes the exponent from the bits, exactly.",
        ),
        Mutant(
            "layout",
            _viewed,
            "Your code needs scale to be contiguous: work element by element, or use reshape.",
        ),
    ],
    alternatives=[
        Alternative("bits", _power_bits),
        Alternative("long_logarithm", _power_log),
        Alternative("table", _power_table),
        Alternative("loop", _power_loop),
    ],
)
def check_power(c):
    """Scales of all sizes, powers of two themselves, their neighbours, shapes."""
    shape = (c.size(3, 5), c.size(2, 4))
    mantissa = 1.05 + 0.3 * c.rand(*shape)
    high = c.rand(*shape) < 0.5
    scale = torch.where(high, mantissa + 0.5, mantissa)
    scale[0, 0], scale[1, 0] = 1.2, 1.8
    scale = scale * torch.exp2(c.randint(-20, 12, *shape).float())
    out = c.call(scale, label=f"runs on scales {list(shape)}")
    c.shape(out, shape, "the result")
    with c.part():
        c.dtype(out, torch.float32, "the result")
        expected = torch.tensor([[_by_hand(s) for s in row] for row in scale.tolist()])
        c.equal(out, expected, label="the next power of two, upward")
    with c.part():
        powers = torch.tensor([2.0**p for p in range(-30, 31, 3)])
        c.equal(c.call(powers), powers, label="a power of two stays what it is")
    with c.part():
        start = torch.tensor([2.0**p for p in (-20, -10, 0, 10, 20)])
        above = torch.nextafter(start, torch.tensor(torch.inf))
        c.equal(c.call(above), 2 * start, label="the number right above one goes to the next")
        below = torch.nextafter(start, torch.tensor(0.0))
        c.equal(c.call(below), start, label="the number right below one goes to it")
    with c.part():
        one = torch.tensor([[3e-7]])
        c.equal(c.call(one), torch.tensor([[_by_hand(3e-7)]]), label="a gradient's scale, 3e-7")
    with c.part():
        label = "scales that are not contiguous give the same"
        c.equal(c.call(c.strided(scale)), expected, label=label)
        label = "the smallest and the largest powers of two, 2^-126 and 2^127, stay"
        ends = torch.tensor([2.0**-126, 2.0**127])
        c.equal(c.call(ends), ends, label=label)


def _by_hand(scale):
    power = 1.0
    while power < scale:
        power *= 2
    while power / 2 >= scale:
        power /= 2
    return power
