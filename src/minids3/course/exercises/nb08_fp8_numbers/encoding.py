"""Which byte a number gets."""

from __future__ import annotations

import torch

from minids3.course.registry import Alternative, Mutant, exercise
from minids3.numerics import E4M3, decode, encode


def encode_e4m3(x):
    """The E4M3 byte nearest to each number, ties to the even byte.

    x: float32 of any shape
    returns uint8 of the same shape; what is too large becomes plus or
    minus 448, infinities too; NaN becomes 0x7F or 0xFF; the sign is kept,
    also of a zero and of what is rounded to zero
    """
    size = x.abs().clamp(max=448)
    power = torch.frexp(size).exponent - 1  # size = [1, 2) * 2^power
    power = torch.where(size < 2.0**-6, -6, power)
    steps = torch.round(torch.ldexp(size, 3 - power))  # ties to even
    code = 8 * (power + 7) + steps - 8
    code = torch.where(x.isnan(), 127, code) + 128 * torch.signbit(x)
    return code.to(torch.uint8)


def _code(x, rounding=torch.round, smallest=2.0**-6, most=448.0):
    size = x.double().abs().clamp(max=most)
    power = torch.frexp(size).exponent - 1
    power = torch.where(size < smallest, -6, power)
    steps = rounding(torch.ldexp(size, 3 - power))
    code = 8 * (power + 7) + steps - 8
    code = torch.where(x.isnan(), 127, code) + 128 * torch.signbit(x)
    return code.to(torch.uint8)


def _encode_cut(x):
    return _code(x, torch.trunc)


def _encode_half_up(x):
    return _code(x, lambda v: torch.floor(v + 0.5))


def _encode_up(x):
    return _code(x, torch.ceil)


def _encode_overflow_nan(x):
    return torch.where(x.abs() > 464, 127 + 128 * torch.signbit(x), _code(x)).to(torch.uint8)


def _encode_wraps(x):
    size = x.double().abs().clamp(max=1e5)
    power = torch.where(size < 2.0**-6, -6, torch.frexp(size).exponent - 1)
    code = 8 * (power + 7) + torch.round(torch.ldexp(size, 3 - power)) - 8
    code = torch.where(x.isnan(), 127, code.long() & 127) + 128 * torch.signbit(x)
    return code.to(torch.uint8)


def _encode_240(x):
    return _code(x, most=240.0)


def _encode_nan_lost(x):
    return _code(torch.nan_to_num(x, nan=448.0))


def _encode_infinity_nan(x):
    return _code(torch.where(x.isinf(), torch.nan * torch.sign(x), x))


def _encode_flushed(x):
    return _code(torch.where(x.abs() < 2.0**-6, 0.0 * x, x))


def _encode_no_carry(x):
    size = x.double().abs().clamp(max=448)
    power = torch.where(size < 2.0**-6, -6, torch.frexp(size).exponent - 1)
    steps = torch.round(torch.ldexp(size, 3 - power)).long()
    e = torch.where(size < 2.0**-6, 0, power + 7)
    code = 8 * e + (steps & 7)
    code = torch.where(x.isnan(), 127, code) + 128 * torch.signbit(x)
    return code.to(torch.uint8)


def _encode_sign_lost(x):
    return _code(x) & 127


def _encode_minus_zero(x):
    return torch.where(x == 0, 0, _code(x)).to(torch.uint8)


def _finite():
    return decode(torch.arange(127), E4M3)


def _encode_nearest(x):
    size, finite = x.double().abs(), _finite()
    code = torch.bucketize(size, (finite[1:] + finite[:-1]) / 2)  # how many middles lie below
    above = code.clamp(max=125) + 1
    tie = (code < 126) & (size == (finite[above - 1] + finite[above]) / 2)
    code = code + (tie & (code % 2 == 1))
    code = torch.where(x.isnan(), 127, code) + 128 * torch.signbit(x)
    return code.to(torch.uint8)


def _encode_magic(x):
    x = x.float()
    size = x.abs().clamp(max=448.0)
    bits = size.view(torch.int32)
    normal = (bits + 0x7FFFF + ((bits >> 20) & 1) - ((127 - 7) << 23)) >> 20
    subnormal = torch.round(size * 512).int()
    code = torch.where(size < 2.0**-6, subnormal, normal)
    code = torch.where(x.isnan(), 127, code)
    return (code + 128 * torch.signbit(x)).to(torch.uint8)


def _encode_library(x):
    return encode(x, E4M3, saturate=True).to(torch.uint8)


def _encode_through_fp16(x):
    return encode_e4m3(x.clamp(-60000, 60000).half().float())


def _encode_viewed(x):
    return encode_e4m3(x.view(-1)).view(x.shape)


def _encode_search(x):
    flat = x.reshape(-1).double()
    table = torch.tensor([_size(k) for k in range(127)], dtype=torch.float64)
    size = flat.abs().clamp(max=448.0)
    low = torch.searchsorted(table, size.nan_to_num(0.0), right=True).clamp(1, 126) - 1
    below, above = size - table[low], table[low + 1] - size
    up = (above < below) | ((above == below) & (low % 2 == 1))
    code = torch.where(flat.isnan(), 127, low + up.long())
    return (code + 128 * torch.signbit(flat).long()).to(torch.uint8).reshape(x.shape)


@exercise(
    "fp8-encode",
    solution=encode_e4m3,
    notebook="08_fp8_numbers",
    forbids=("torch.float8_e4m3fn", "torch.float8_e4m3fnuz"),
    title="Write a byte",
    difficulty=4,
    importance=4,
    minutes=18,
    library=_encode_library,
    hints=(
        "Between 2^p and 2^(p+1) the codes are evenly spaced, 2^(p-3) apart. What is left to do "
        "once you have divided by the spacing? And what does the integer code do by itself when "
        "the mantissa is rounded up to 8?",
        "size = |x|, at most 448\n"
        "p = the power of size's leading bit (torch.frexp gives it plus one)\n"
        "p = -6 where size < 2^-6, zero included       # subnormals: the same spacing\n"
        "steps = size / 2^(p - 3), rounded by torch.round (which takes ties to even)\n"
        "code = 8 * (p + 7) + (steps - 8)              # 8 steps are the leading one\n"
        "127 where x is NaN; plus 128 where the sign bit is set; to uint8",
    ),
    mutants=[
        Mutant(
            "cut",
            _encode_cut,
            "You cut towards zero. Take the nearest code: cutting is twice as wrong at worst, and "
            "always in the same direction.",
        ),
        Mutant(
            "half_up",
            _encode_half_up,
            "You rounded every tie away from zero. A number exactly in the middle goes to the "
            "even code, or ties push all sums outward.",
        ),
        Mutant(
            "up",
            _encode_up,
            "You rounded everything away from zero. Take the nearest code.",
        ),
        Mutant(
            "overflow_nan",
            _encode_overflow_nan,
            "A number beyond the range became NaN. A quantiser saturates: 448 or -448.",
        ),
        Mutant(
            "wraps",
            _encode_wraps,
            "A number beyond the range wrapped around to a small one. Clamp at 448 first.",
        ),
        Mutant(
            "two_forty",
            _encode_240,
            "You saturate at 240, where an IEEE-like format would end. E4M3 goes up to 448.",
        ),
        Mutant(
            "nan_lost",
            _encode_nan_lost,
            "A NaN became a number, and nobody will ever see that something went wrong. Keep it.",
        ),
        Mutant(
            "infinity_nan",
            _encode_infinity_nan,
            "Infinities saturate too: plus or minus 448, not NaN.",
        ),
        Mutant(
            "flushed",
            _encode_flushed,
            "Below 2^-6 you wrote zeros. Subnormals go on down to 2^-9, evenly spaced.",
        ),
        Mutant(
            "no_carry",
            _encode_no_carry,
            "Where the mantissa rounds up to 8 the exponent must rise by one. Yours wraps to 0 "
            "with the old exponent, half of what it should be: add the steps, do not mask them.",
        ),
        Mutant(
            "sign_lost",
            _encode_sign_lost,
            "The sign is lost: add 128 for negative numbers.",
        ),
        Mutant(
            "minus_zero",
            _encode_minus_zero,
            "Minus zero and negative numbers that round to zero keep their sign bit, code 0x80 "
            "(torch.signbit, not x < 0).",
        ),
        Mutant(
            "through_fp16",
            _encode_through_fp16,
            "You rounded to float16 on the way. A number just beside a middle becomes the middle "
            "there, and then goes to the wrong side: round once.",
        ),
        Mutant(
            "layout",
            _encode_viewed,
            "Your code needs x to be contiguous: work element by element, or use reshape.",
        ),
    ],
    alternatives=[
        Alternative("nearest_of_all", _encode_nearest),
        Alternative("bits_of_fp32", _encode_magic),
        Alternative("search", _encode_search),
    ],
)
def check_encode(c):
    """Every code comes back, middles, carries, small numbers, too large ones, NaN, signs."""
    shape = (c.size(2, 4), c.size(5, 9))
    x = c.randn(*shape)
    out = c.call(x, label=f"runs on numbers {list(shape)}")
    c.shape(out, shape, "the result")
    c.dtype(out, torch.uint8, "the result")
    values = [_size(k) for k in range(127)]
    with c.part():
        exact = torch.tensor(values[8:])
        c.equal(c.call(exact).long(), torch.arange(8, 127), label="a number E4M3 has is kept")
        label = "others go to the nearest code"
        c.equal(out.flatten().long(), _nearest(x.flatten().tolist()), label=label)
    with c.part():
        ks = range(8, 126)
        middles = torch.tensor([(values[k] + values[k + 1]) / 2 for k in ks])
        even = torch.tensor([k + k % 2 for k in ks])
        c.equal(c.call(middles).long(), even, label="a tie goes to the even code")
        odd = torch.where(even == torch.tensor(ks), even + 1, even - 1)
        beside = torch.nextafter(middles, torch.where(odd > even, torch.inf, 0.0))
        label = "the float32 number right beside a tie goes to the nearer code"
        c.equal(c.call(beside).long(), odd, label=label)
    with c.part():
        high = torch.tensor([2.0**p * 1.97 for p in range(-6, 8)])
        label = "rounding up to a power of two carries into the exponent"
        c.equal(c.call(high).long(), _nearest(high.tolist()), label=label)
    with c.part():
        small = torch.cat((2.0**-6 * c.rand(c.size(20, 30)), torch.tensor([1.5 * 2.0**-10])))
        label = "below 2^-6 the spacing stays 2^-9, down to zero"
        c.equal(c.call(small).long(), _nearest(small.tolist()), label=label)
        c.equal(c.call(torch.zeros(2)).long(), torch.zeros(2).long(), label="zero is code 0")
    with c.part():
        large = torch.tensor([449.0, 463.0, 465.0, 1e4, 1e30])
        label = "what is larger becomes 448"
        c.equal(c.call(large).long(), torch.full((5,), 126), label=label)
        ends = torch.tensor([torch.inf, -torch.inf])
        c.equal(c.call(ends).long(), torch.tensor([126, 254]), label="infinities as well")
    with c.part():
        nan = c.call(torch.tensor([1.0, torch.nan])).long() & 127
        c.equal(nan, torch.tensor([0x38, 0x7F]), label="NaN stays NaN")
    with c.part():
        negative = -x.abs() - 0.01
        label = "negative numbers get the same byte plus 128"
        c.equal(c.call(negative).long(), c.call(-negative).long() + 128, label=label)
        zero = torch.tensor([-0.0, -1e-7])
        c.equal(c.call(zero).long(), torch.tensor([128, 128]), label="-0 and -1e-7 are code 0x80")
    with c.part():
        again = c.call(c.strided(x))
        wanted = torch.where(x < 0, 128, 0) + _nearest(x.abs().flatten().tolist()).view(shape)
        c.equal(again.long(), wanted, label="numbers that are not contiguous give the same")


def _size(code):
    e, m = code // 8, code % 8
    return (m if e == 0 else (8 + m) << (e - 1)) / 512


def _nearest(numbers):
    """By comparing with all 127 sizes; no drawn number is a tie."""
    found = []
    for x in numbers:
        best = min(range(127), key=lambda k, x=x: (abs(abs(x) - _size(k)), k % 2))
        found.append(best + 128 * (x < 0))
    return torch.tensor(found)
