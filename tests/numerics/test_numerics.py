"""Formats against PyTorch's dtypes: every code, every 16-bit input, a million fp32 numbers."""

import math

import pytest
import torch

from minids3.numerics import (
    BF16,
    E4M3,
    E5M2,
    E5M6,
    FP16,
    FP32,
    UE8M0,
    FloatFormat,
    cut,
    decode,
    encode,
    fields,
    limited_matmul,
    max_relative_error,
    relative_error,
    round_to,
    signal_to_noise_db,
    ulp_distance,
)

TORCH = {
    "E4M3": (E4M3, torch.float8_e4m3fn, torch.uint8),
    "E5M2": (E5M2, torch.float8_e5m2, torch.uint8),
    "FP16": (FP16, torch.float16, torch.int16),
    "BF16": (BF16, torch.bfloat16, torch.int16),
    "UE8M0": (UE8M0, torch.float8_e8m0fnu, torch.uint8),
}
# Versions of PyTorch differ in what an E4M3 cast does beyond 448: clamp, or NaN.
TORCH_SATURATES = math.isfinite(float(torch.tensor(1e9).to(torch.float8_e4m3fn).float()))


def codes_of(tensor, view):
    return tensor.view(view).to(torch.int64) & (0xFF if view == torch.uint8 else 0xFFFF)


def all_values(dtype):
    codes = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    return codes.view(dtype).float()


def random_fp32():
    """A million bit patterns: all exponents alike, infinities and NaNs among them."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (1_000_000,), generator=generator)
    return bits.to(torch.int32).view(torch.float32)


def ordinary_fp32():
    generator = torch.Generator().manual_seed(1)
    scale = torch.exp2(torch.randint(-20, 20, (1_000_000,), generator=generator).float())
    return torch.randn(1_000_000, generator=generator) * scale


@pytest.mark.parametrize("name", TORCH)
def test_every_code_means_what_pytorch_says(name):
    fmt, dtype, view = TORCH[name]
    codes = torch.arange(fmt.n_codes)
    unsigned = codes.to(torch.uint8) if view == torch.uint8 else codes.to(torch.int32).to(view)
    theirs = unsigned.view(dtype).float()
    ours = decode(codes, fmt)
    assert torch.equal(torch.isnan(ours), torch.isnan(theirs))
    known = ~torch.isnan(ours)
    assert torch.equal(ours[known], theirs[known].double())
    assert torch.equal(torch.signbit(ours[known]), torch.signbit(theirs[known]))  # -0 is -0


@pytest.mark.parametrize("inputs", ["bf16", "fp16", "random", "ordinary"])
@pytest.mark.parametrize("name", TORCH)
def test_casts_equal_pytorchs_bit_for_bit(name, inputs):
    fmt, dtype, view = TORCH[name]
    x = {
        "bf16": lambda: all_values(torch.bfloat16),
        "fp16": lambda: all_values(torch.float16),
        "random": random_fp32,
        "ordinary": ordinary_fp32,
    }[inputs]()
    if not fmt.signed:
        # PyTorch rounds fp32 subnormals above 2^-127 upward, whatever is nearest: leave them out.
        x = x.abs()
        x = x[~((x > 2.0**-127) & (x < 1.5 * 2.0**-127))]
    ours = encode(x, fmt, saturate=fmt is E4M3 and TORCH_SATURATES)
    theirs = codes_of(x.to(dtype), view)
    nan = torch.isnan(x.to(dtype).float())
    assert torch.equal(torch.isnan(decode(ours, fmt)), nan)
    wrong = (ours != theirs) & ~nan  # a NaN's payload is nobody's business
    assert int(wrong.sum()) == 0, (x[wrong][:3], ours[wrong][:3], theirs[wrong][:3])


@pytest.mark.parametrize("name", [n for n in TORCH if n != "UE8M0"])
def test_ties_go_to_the_even_code_and_overflow_at_the_right_place(name):
    fmt, dtype, view = TORCH[name]
    finite = decode(torch.arange(fmt.top_code + 1), fmt)
    middles = (finite[1:] + finite[:-1]) / 2
    codes = encode(middles, fmt)
    assert bool((codes % 2 == 0).all())
    assert torch.equal(codes, codes_of(middles.float().to(dtype), view))
    top = finite[-1] + (finite[-1] - finite[-2]) / 2  # halfway to a number that is not there
    below = torch.nextafter(top.float(), torch.tensor(0.0))
    assert int(encode(below, fmt)) == fmt.top_code
    assert not math.isfinite(float(round_to(top[None].float() * (1 + 2**-20), fmt)))


def test_fp32_is_itself():
    x = random_fp32()
    x = x[~torch.isnan(x)]
    assert torch.equal(encode(x, FP32), x.view(torch.int32).to(torch.int64) & 0xFFFFFFFF)
    assert torch.equal(decode(encode(x, FP32), FP32).float(), x)


def test_e5m6_by_its_definition():
    """No PyTorch dtype has it: a BF16-like cast of a number scaled into FP16's exponents."""
    assert (E5M6.bits, E5M6.bias) == (12, 15)
    assert E5M6.max == 2.0**15 * (2 - 2**-6)
    assert E5M6.min_positive == 2.0**-20
    x = ordinary_fp32()[:200_000]
    x = x[(x.abs() >= E5M6.min_normal) & (x.abs() < 2.0**15)]
    bits = x.view(torch.int32).to(torch.int64)
    kept = bits + 0xFFFF + ((bits >> 17) & 1)  # round the lowest 17 of 23 bits, ties to even
    expected = (kept & ~0x1FFFF).to(torch.int32).view(torch.float32)
    assert torch.equal(round_to(x, E5M6), expected)


def test_saturation_clamps_and_keeps_nan():
    x = torch.tensor([1e9, -1e9, math.inf, -math.inf, 449.0, math.nan, 448.0])
    out = round_to(x, E4M3, saturate=True)
    assert out[:5].tolist() == [448, -448, 448, -448, 448]
    assert math.isnan(out[5])
    assert out[6] == 448
    assert torch.isnan(round_to(x[:4], E4M3)).all()
    assert round_to(x[:2], E5M2).tolist() == [math.inf, -math.inf]


def test_published_limits():
    """arXiv 2209.05433, table 1."""
    assert (E4M3.max, E4M3.min_normal, E4M3.min_positive) == (448, 2.0**-6, 2.0**-9)
    assert (E5M2.max, E5M2.min_normal, E5M2.min_positive) == (57344, 2.0**-14, 2.0**-16)
    assert BF16.max == torch.finfo(torch.bfloat16).max
    assert FP16.epsilon == torch.finfo(torch.float16).eps
    assert (UE8M0.max, UE8M0.min_positive) == (2.0**127, 2.0**-127)


def test_fields_of_a_byte():
    sign, exponent, mantissa = fields(torch.tensor([0b1_0111_100]), E4M3)
    assert (int(sign), int(exponent), int(mantissa)) == (1, 7, 4)
    assert float(decode(torch.tensor([0b1_0111_100]), E4M3)) == -1.5
    with pytest.raises(ValueError, match=r"E4M3 codes lie in 0\.\.255"):
        decode(torch.tensor([-1]), E4M3)


def test_a_format_nobody_ships():
    fmt = FloatFormat("E3M4", 3, 4, bias=3)
    finite = decode(torch.arange(fmt.top_code + 1), fmt)
    assert bool((finite.diff() > 0).all())
    assert torch.equal(encode(finite, fmt), torch.arange(fmt.top_code + 1))


def fp8_pair(k, seed=0, m=16, n=8):
    generator = torch.Generator().manual_seed(seed)
    a = round_to(torch.randn(m, k, generator=generator), E4M3)
    b = round_to(torch.randn(k, n, generator=generator), E4M3)
    return a, b


def by_hand(a_row, b_column, bits, step):
    """The rule with Python's integers, one term at a time."""
    register = 0.0
    for start in range(0, len(a_row), step):
        pairs = zip(a_row[start : start + step], b_column[start : start + step], strict=True)
        terms = [x * y for x, y in pairs] + [register]
        largest = max(abs(t) for t in terms)
        if largest == 0:
            continue
        grid = 2.0 ** (math.frexp(largest)[1] - 1 - bits)
        total = sum(int(t / grid) for t in terms) * grid
        if total:
            grid = 2.0 ** (math.frexp(abs(total))[1] - 1 - bits)
            total = int(total / grid) * grid
        register = total
    return register


@pytest.mark.parametrize("bits", [5, 13])
@pytest.mark.parametrize("k", [1, 31, 96, 200])
def test_accumulation_follows_the_rule(bits, k):
    a, b = fp8_pair(k)
    ours = limited_matmul(a, b, fraction_bits=bits)
    for i in range(3):
        for j in range(3):
            expected = by_hand(a[i].tolist(), b[:, j].tolist(), bits, 32)
            assert float(ours[i, j]) == expected


def test_many_bits_are_exact_and_promotion_helps():
    a, b = fp8_pair(4096, m=8)
    truth = a.double() @ b.double()
    assert relative_error(limited_matmul(a, b, fraction_bits=45), truth) < 1e-7
    without = relative_error(limited_matmul(a, b), truth)
    promoted = relative_error(limited_matmul(a, b, promote_every=128), truth)
    assert promoted < without / 3
    ordinary = relative_error(limited_matmul(*fp8_pair(128)), fp8_pair(128)[0] @ fp8_pair(128)[1])
    assert without > 2 * ordinary  # the error grows with K


def test_accumulation_refuses_what_makes_no_sense():
    with pytest.raises(ValueError, match="multiple of step=32"):
        limited_matmul(torch.ones(2, 64), torch.ones(64, 2), promote_every=48)
    with pytest.raises(ValueError, match=r"cannot multiply \[2, 3\] by \[2, 3\]"):
        limited_matmul(torch.ones(2, 3), torch.ones(2, 3))


def test_error_measures():
    truth, x = torch.tensor([3.0, 4.0, 0.0]), torch.tensor([3.0, 4.5, 0.1])
    assert relative_error(x, truth) == pytest.approx(math.sqrt(0.26) / 5)
    assert max_relative_error(x, truth) == pytest.approx(0.125)
    assert signal_to_noise_db(x, truth) == pytest.approx(10 * math.log10(25 / 0.26))
    assert relative_error(truth, truth) == 0
    assert signal_to_noise_db(truth, truth) == math.inf
    assert relative_error(x, torch.zeros(3)) == math.inf
    assert max_relative_error(x, torch.zeros(3)) == 0
    with pytest.raises(ValueError, match="shapes differ"):
        relative_error(x, truth[:2])


def test_ulps_are_steps_of_nextafter():
    x = torch.tensor([1.0, -1.0, 0.0, -0.0, 1e-45])
    up = x
    for _ in range(3):
        up = torch.nextafter(up, torch.full_like(x, math.inf))
    assert ulp_distance(x, up).tolist() == [3] * 5
    assert ulp_distance(torch.tensor([0.0]), torch.tensor([-0.0])).tolist() == [0]
    with pytest.raises(ValueError, match="NaN"):
        ulp_distance(torch.tensor([math.nan]), torch.tensor([1.0]))


def test_cut_drops_what_lies_below_the_largest_numbers_last_bit():
    x = torch.tensor([1.0, 2.0**-13, 2.0**-14, 1.9999, -1.9999, 0.0], dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    grid = 2.0**-13
    assert cut(x, one).tolist() == [math.trunc(v / grid) * grid for v in x.tolist()]
    assert torch.equal(cut(x, -one), cut(x, one))
    assert cut(x, 1024 * one)[1:3].tolist() == [0.0, 0.0]
    own = cut(x, x, fraction_bits=3)
    assert own.tolist() == [1.0, 2.0**-13, 2.0**-14, 1.875, -1.875, 0.0]
