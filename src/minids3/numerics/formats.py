"""Floating-point formats as bit patterns: what a code means, and which code a number gets.

A code has three fields: sign, exponent e, mantissa m of M bits. Its value is

    e > 0   (-1)^s * 2^(e - bias) * (1 + m / 2^M)      normal
    e = 0   (-1)^s * 2^(1 - bias) * (m / 2^M)          subnormal: evenly spaced down to zero

and at the top end the formats differ. IEEE style (E5M2, BF16, FP16, FP32, E5M6) gives away the
largest exponent for infinity and NaN. E4M3 as used for deep learning gives away a single code per
sign for NaN and has no infinity, which is why it reaches 448 and not 240 (Micikevicius et al. 2022,
arXiv 2209.05433). UE8M0, the format of scales, is an exponent and nothing else: 2^(e - 127).

Encoding works on whole tensors and by one idea: between two powers of two the codes are evenly
spaced, so divide by the spacing, round to the nearest integer, ties to even, and the integer *is*
the code's lower part. A carry out of the mantissa runs into the exponent by itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "BF16",
    "E4M3",
    "E5M2",
    "E5M6",
    "FP16",
    "FP32",
    "UE8M0",
    "FloatFormat",
    "decode",
    "encode",
    "fields",
    "round_to",
]


@dataclass(frozen=True)
class FloatFormat:
    """A format: sizes of the fields, bias, and what the top codes mean.

    top: ``"ieee"``, the largest exponent is infinity and NaN; ``"nan"``, only the last code (of
    each sign) is NaN and there is no infinity.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int
    top: Literal["ieee", "nan"] = "ieee"
    signed: bool = True

    @property
    def bits(self) -> int:
        """Width of a code."""
        return int(self.signed) + self.exponent_bits + self.mantissa_bits

    @property
    def n_codes(self) -> int:
        """How many bit patterns there are."""
        return 1 << self.bits

    @property
    def top_code(self) -> int:
        """Largest code of a non-negative finite number."""
        magnitudes = 1 << (self.exponent_bits + self.mantissa_bits)
        return magnitudes - (1 << self.mantissa_bits) - 1 if self.top == "ieee" else magnitudes - 2

    @property
    def max(self) -> float:
        """Largest finite number."""
        return float(decode(torch.tensor(self.top_code), self))

    @property
    def min_normal(self) -> float:
        """Smallest number with a full mantissa (for UE8M0: its smallest number)."""
        return math.ldexp(1.0, (1 if self.signed else 0) - self.bias)

    @property
    def min_positive(self) -> float:
        """Smallest number above zero."""
        return math.ldexp(self.min_normal, -self.mantissa_bits)

    @property
    def epsilon(self) -> float:
        """Spacing of the codes just above 1."""
        return math.ldexp(1.0, -self.mantissa_bits)


E4M3 = FloatFormat("E4M3", 4, 3, bias=7, top="nan")
E5M2 = FloatFormat("E5M2", 5, 2, bias=15)
E5M6 = FloatFormat("E5M6", 5, 6, bias=15)
FP16 = FloatFormat("FP16", 5, 10, bias=15)
BF16 = FloatFormat("BF16", 8, 7, bias=127)
FP32 = FloatFormat("FP32", 8, 23, bias=127)
UE8M0 = FloatFormat("UE8M0", 8, 0, bias=127, top="nan", signed=False)


def fields(codes: Tensor, fmt: FloatFormat) -> tuple[Tensor, Tensor, Tensor]:
    """Sign, exponent and mantissa fields of ``codes`` (int64), each int64 of the same shape."""
    codes = codes.to(torch.int64)
    mantissa = codes & ((1 << fmt.mantissa_bits) - 1)
    exponent = (codes >> fmt.mantissa_bits) & ((1 << fmt.exponent_bits) - 1)
    sign = (codes >> (fmt.mantissa_bits + fmt.exponent_bits)) & 1 if fmt.signed else codes * 0
    return sign, exponent, mantissa


def decode(codes: Tensor, fmt: FloatFormat) -> Tensor:
    """The numbers that ``codes`` stand for.

    Args:
        codes: integers in 0 .. 2^bits - 1, any integer dtype.
        fmt: the format.

    Returns:
        fp64 of the same shape; exact for every format here.

    Raises:
        ValueError: a code is out of range.
    """
    codes = codes.to(torch.int64)
    if codes.numel() and not (int(codes.min()) >= 0 and int(codes.max()) < fmt.n_codes):
        raise ValueError(
            f"{fmt.name} codes lie in 0..{fmt.n_codes - 1}, got {int(codes.min())}.."
            f"{int(codes.max())}: reinterpret the bytes as unsigned"
        )
    sign, exponent, mantissa = fields(codes, fmt)
    subnormal = (exponent == 0) & fmt.signed  # UE8M0 has none: code 0 is 2^-127
    leading = torch.where(subnormal, 0, 1 << fmt.mantissa_bits)
    power = torch.where(subnormal, 1, exponent) - fmt.bias - fmt.mantissa_bits
    value = torch.ldexp((leading + mantissa).double(), power)
    magnitude = codes & ((1 << (fmt.exponent_bits + fmt.mantissa_bits)) - 1)
    value = value.masked_fill(magnitude > fmt.top_code, torch.nan)
    if fmt.top == "ieee":
        value = value.masked_fill(magnitude == fmt.top_code + 1, torch.inf)
    return torch.where(sign == 1, -value, value)


def encode(x: Tensor, fmt: FloatFormat, saturate: bool = False) -> Tensor:
    """The code nearest to each number, ties to the even code.

    What is too large becomes infinity, or NaN where the format has none; with ``saturate`` it
    becomes the largest finite number instead, infinities included. NaN stays NaN. (Casting to
    E4M3, PyTorch 2.13 saturates; arXiv 2209.05433 describes both.) UE8M0 takes the nearest power of
    two, ties upward as in PyTorch, and for zero and negative numbers its smallest code.

    Args:
        x: any floating dtype; computed in fp64, so exact for fp32 and below.
        fmt: the format.
        saturate: clamp instead of overflowing, as a quantiser does.

    Returns:
        int64 codes of the same shape.
    """
    x = x.double()
    if not fmt.signed:
        return _encode_power_of_two(x, fmt, saturate)
    magnitude = x.abs()
    _, power = torch.frexp(magnitude)  # magnitude = [0.5, 1) * 2^power
    exponent = (power.to(torch.int64) - 1).clamp_min(1 - fmt.bias)
    exponent = exponent.masked_fill(magnitude == 0, 1 - fmt.bias)
    finite = torch.isfinite(x)
    spacing_power = fmt.mantissa_bits - exponent
    scaled = torch.ldexp(torch.where(finite, magnitude, 0.0), spacing_power)
    steps = scaled.round().to(torch.int64)  # torch rounds ties to even
    code = ((exponent + fmt.bias) << fmt.mantissa_bits) + steps - (1 << fmt.mantissa_bits)
    above = (code > fmt.top_code) | torch.isinf(x)
    overflow = fmt.top_code if saturate else fmt.top_code + 1  # the code after: infinity or NaN
    code = torch.where(above, overflow, code)
    nan = (1 << (fmt.exponent_bits + fmt.mantissa_bits)) - 1
    if fmt.top == "ieee":  # the quiet NaN that hardware makes
        nan = fmt.top_code + 1 + (1 << (fmt.mantissa_bits - 1))
    code = torch.where(torch.isnan(x), nan, code)
    sign = torch.signbit(x).to(torch.int64) << (fmt.exponent_bits + fmt.mantissa_bits)
    return code + sign


def _encode_power_of_two(x: Tensor, fmt: FloatFormat, saturate: bool) -> Tensor:
    mantissa, power = torch.frexp(x.abs())
    exponent = power.to(torch.int64) - 1 + (mantissa >= 0.75)  # 1.5 * 2^k lies in the middle
    overflow = fmt.top_code if saturate else fmt.top_code + 1
    code = (exponent + fmt.bias).clamp_min(0)
    code = torch.where((code > fmt.top_code) | torch.isinf(x), overflow, code)
    code = torch.where(x > 0, code, 0)
    return torch.where(torch.isnan(x), fmt.top_code + 1, code)


def round_to(x: Tensor, fmt: FloatFormat, saturate: bool = False) -> Tensor:
    """``x`` rounded to numbers that ``fmt`` has, in the dtype of ``x``; else as ``encode``."""
    return decode(encode(x, fmt, saturate), fmt).to(x.dtype)
