"""What an E4M3 byte means."""

from __future__ import annotations

import math

import torch

from minids3.course.registry import Alternative, Mutant, exercise
from minids3.numerics import E4M3, decode


def decode_e4m3(codes):
    """The numbers that E4M3 bytes stand for.

    codes: uint8 of any shape, bits s eeee mmm
    returns float32 of the same shape; 0x7F and 0xFF are NaN
    """
    codes = codes.int()
    sign = 1.0 - 2.0 * (codes >> 7)
    e, m = (codes >> 3) & 15, codes & 7
    normal = torch.ldexp(1 + m / 8, e - 7)
    subnormal = torch.ldexp(m / 8, torch.tensor(-6))
    value = sign * torch.where(e > 0, normal, subnormal)
    return value.masked_fill((codes & 127) == 127, torch.nan)


def _fields(codes):
    codes = codes.int()
    return 1.0 - 2.0 * (codes >> 7), (codes >> 3) & 15, codes & 7


def _value(codes, bias=7, smallest=-6, hidden=1.0):
    sign, e, m = _fields(codes)
    normal = (hidden + m / 8) * torch.exp2((e - bias).float())
    value = sign * torch.where(e > 0, normal, m / 8 * 2.0**smallest)
    return value.masked_fill((codes.int() & 127) == 127, torch.nan)


def _decode_bias_8(codes):
    return _value(codes, bias=8, smallest=-7)


def _decode_no_subnormal(codes):
    sign, e, m = _fields(codes)
    value = sign * (1 + m / 8) * torch.exp2((e - 7).float())
    return value.masked_fill((codes.int() & 127) == 127, torch.nan)


def _decode_subnormal_low(codes):
    return _value(codes, smallest=-7)


def _decode_flushed(codes):
    sign, e, _ = _fields(codes)
    return torch.where(e > 0, _value(codes), 0.0 * sign)


def _decode_no_leading_one(codes):
    return _value(codes, hidden=0.0)


def _decode_ieee(codes):
    sign, e, m = _fields(codes)
    value = torch.where(e == 15, sign * torch.inf, _value(codes))
    return value.masked_fill((e == 15) & (m > 0), torch.nan)


def _decode_480(codes):
    sign, e, m = _fields(codes)
    return torch.where((e == 15) & (m == 7), sign * 480.0, _value(codes))


def _decode_unsigned(codes):
    return _value(codes).abs()


def _decode_twos_complement(codes):
    signed = codes.int() - 256 * (codes.int() >> 7)
    return torch.sign(signed.float()) * _value(signed.abs().to(torch.uint8) & 127)


def _decode_e5m2(codes):
    return codes.view(torch.float8_e5m2).float()


def _decode_no_minus_zero(codes):
    return _value(codes) + 0.0


def _decode_table(codes):
    table = []
    for code in range(256):
        s, e, m = code // 128, code // 8 % 16, code % 8
        size = m * 2.0**-9 if e == 0 else (8 + m) * 2.0 ** (e - 10)
        table.append(float("nan") if code % 128 == 127 else -size if s else size)
    return torch.tensor(table)[codes.long()]


def _decode_moved_bits(codes):
    wide = (codes.int() & 128) << 8 | (codes.int() & 127) << 7  # where FP16 has its fields
    value = wide.to(torch.int32).to(torch.int16).view(torch.float16).float() * 256
    return torch.where(value.abs() > 448, torch.nan, value)


def _decode_library(codes):
    return decode(codes, E4M3).float()


def _in_eight_bits(codes):
    e, m = (codes >> 3) & 15, codes & 7
    power = (e - 7).float()
    value = torch.where(e > 0, (1 + m / 8) * torch.exp2(power), m / 8 * 2.0**-6)
    value = torch.where(codes >> 7 == 1, -value, value)
    return value.masked_fill((codes & 127) == 127, torch.nan)


def _viewed(codes):
    return decode_e4m3(codes.view(-1)).view(codes.shape)


def _wide(codes):
    return decode_e4m3(codes).double()


def _preallocated(codes):
    out = torch.zeros(codes.shape, dtype=torch.float64)
    for code in range(256):
        low = code & 127
        size = math.ldexp(low, -9) if low < 8 else math.ldexp(8 + low % 8, low // 8 - 10)
        size = math.nan if low == 127 else size
        out[codes == code] = -size if code > 127 else size
    return out.float()


@exercise(
    "fp8-decode",
    solution=decode_e4m3,
    notebook="08_fp8_numbers",
    forbids=("torch.float8_e4m3fn", "torch.float8_e4m3fnuz"),
    title="Read a byte",
    difficulty=2,
    importance=5,
    minutes=12,
    library=_decode_library,
    hints=(
        "How do you get bits 3 to 6 of an integer alone, without 0 to 2 below and 7 above? And "
        "for e = 0: which power of two makes the step from the largest subnormal to the smallest "
        "normal number, 2^-6, as wide as the steps on either side of it?",
        "codes as int32, or the shifts wrap\n"
        "s = codes >> 7;  e = (codes >> 3) & 15;  m = codes & 7\n"
        "e > 0:   size = (1 + m / 8) * 2^(e - 7)\n"
        "e == 0:  size = (m / 8) * 2^-6\n"
        "value = size, or -size where s is 1 (multiply by 1 - 2 s, which makes -0, too)\n"
        "NaN where the lower seven bits are all ones",
    ),
    mutants=[
        Mutant(
            "bias_8",
            _decode_bias_8,
            "Your numbers are half as large as they should be: the bias is 7, so exponent 7 "
            "means 2^0.",
        ),
        Mutant(
            "no_subnormal",
            _decode_no_subnormal,
            "Code 0 must be zero. At e = 0 there is no leading one: the number is m/8 times 2^-6.",
        ),
        Mutant(
            "subnormal_low",
            _decode_subnormal_low,
            "Your subnormals use 2^(0 - 7). They use the exponent of e = 1, 2^-6, so that they go "
            "on evenly below the smallest normal number.",
        ),
        Mutant(
            "flushed",
            _decode_flushed,
            "You turned subnormals into zeros. Seven numbers below 2^-6 are there to be used.",
        ),
        Mutant(
            "no_leading_one",
            _decode_no_leading_one,
            "The leading one is missing: a normal number is 1 + m/8 times a power of two. The one "
            "is not stored, because it is always there.",
        ),
        Mutant(
            "ieee",
            _decode_ieee,
            "You gave exponent 15 away for infinity and NaN, as IEEE formats do. E4M3 gives away "
            "the very last code only, or it would end at 240.",
        ),
        Mutant(
            "four_eighty",
            _decode_480,
            "The code 0x7F is not 480 but NaN, and so is 0xFF.",
        ),
        Mutant(
            "unsigned",
            _decode_unsigned,
            "The top bit is the sign, and you dropped it.",
        ),
        Mutant(
            "twos_complement",
            _decode_twos_complement,
            "You read the byte as a signed integer. In a float the sign is a bit of its own and "
            "the other seven mean the same on both sides.",
        ),
        Mutant(
            "e5m2",
            _decode_e5m2,
            "Those are the fields of E5M2: five bits of exponent. E4M3 has four, and three of "
            "mantissa.",
        ),
        Mutant(
            "no_minus_zero",
            _decode_no_minus_zero,
            "Code 0x80 is minus zero. Multiply by the sign instead of adding or choosing, and it "
            "comes out by itself.",
        ),
        Mutant(
            "in_eight_bits",
            _in_eight_bits,
            "You computed e - 7 in uint8, where 3 - 7 is 252. Convert the codes to int first.",
        ),
        Mutant(
            "layout",
            _viewed,
            "Your code needs codes to be contiguous: work element by element, or use reshape.",
        ),
        Mutant(
            "float64",
            _wide,
            "You returned float64. float32 is asked for.",
        ),
    ],
    alternatives=[
        Alternative("table", _decode_table),
        Alternative("moved_bits", _decode_moved_bits),
        Alternative("preallocated", _preallocated),
    ],
)
def check_decode(c):
    """Single codes by name, then all 256 against an integer calculation."""
    shape = (c.size(2, 4), c.size(3, 6))
    drawn = c.randint(0, 127, *shape).to(torch.uint8)
    out = c.call(drawn, label=f"runs on bytes {list(shape)}")
    c.shape(out, shape, "the result")
    c.dtype(out, torch.float32, "the result")
    with c.part():
        c.equal(_of(c, [0x38, 0x3C, 0x40]), torch.tensor([1.0, 1.5, 2.0]), label="1, 1.5 and 2")
        normal = list(range(8, 120))
        c.equal(_of(c, normal), _exact(normal), label="normal numbers")
    with c.part():
        c.equal(_of(c, [0]), torch.zeros(1), label="code 0 is zero")
        low = list(range(1, 8))
        c.equal(_of(c, low), _exact(low), label="the seven subnormals, 2^-9 to 7 x 2^-9")
    with c.part():
        top = list(range(120, 127))
        c.equal(_of(c, top), _exact(top), label="the last binade, 256 to 448")
    with c.part():
        ends = _of(c, [0x7F, 0xFF])
        c.true(ends.isnan().all(), "0x7F and 0xFF are NaN", f"they are {ends.tolist()}")
    with c.part():
        codes = [128 + k for k in range(1, 127)]
        c.equal(_of(c, codes), _exact(codes), label="the upper half is the lower one, negative")
        c.true(torch.signbit(_of(c, [0x80])).all(), "0x80 is minus zero", "its sign is lost")
    with c.part():
        flat = drawn.flatten().tolist()
        c.equal(out.flatten(), _exact(flat), label="a matrix keeps its order")
        c.shape(c.call(drawn[:0]), (0, shape[1]), label="no bytes give no numbers")
    with c.part():
        label = "bytes that are not contiguous give the same"
        c.equal(c.call(c.strided(drawn)).flatten(), _exact(flat), label=label)
        c.equal(
            c.call(drawn[0, 0]), _exact(flat[:1])[0], label="a single byte gives a single number"
        )


def _of(c, codes):
    return c.call(torch.tensor(codes, dtype=torch.uint8))


def _exact(codes):
    """Integers over 512 (2^9, the inverse of the smallest step)."""
    found = []
    for code in codes:
        e, m = code % 128 // 8, code % 8
        steps = m if e == 0 else (8 + m) << (e - 1)
        found.append((-steps if code >= 128 else steps) / 512)
    return torch.tensor(found, dtype=torch.float32)
