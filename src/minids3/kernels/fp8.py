"""E4M3 by integer arithmetic inside a kernel, for GPUs (and the interpreter) without the format.

Decoding uses a lucky fit: E4M3's bits, moved seven places up, are an FP16 number that is 2^8 too
small (biases 15 and 7), subnormals included. Encoding rounds the FP32 bits themselves, to nearest,
ties to even. Both agree with ``minids3.numerics`` for every code and input.
"""

from __future__ import annotations

from minids3.kernels.language import jit, tl

__all__ = ["decode_e4m3", "encode_e4m3"]


@jit
def decode_e4m3(code):  # noqa: ANN001, ANN201
    """x = (-1)^s 2^(e - 7) (1 + m / 8) of each E4M3 ``code`` seeeemmm (uint8), as FP16: exact.

    e = 0: (-1)^s 2^-6 m / 8. e = 15 and m = 7: NaN.
    """
    wide = code.to(tl.int16)
    # The sign moves as a bit: a minus before a zero would be lost on a GPU.
    bits = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
    value = bits.to(tl.float16, bitcast=True) * 256.0
    return tl.where((wide & 0x7F) == 0x7F, float("nan"), value).to(tl.float16)


@jit
def encode_e4m3(x):  # noqa: ANN001, ANN201
    """code = argmin |x - decode_e4m3(code)| of each FP32 number, ties to even; beyond 448: 448."""
    bits = x.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    sign = (bits >> 24) & 0x80
    is_nan = magnitude > 0x7F800000
    magnitude = tl.minimum(magnitude, 0x43E00000)  # 448.0
    # From 2^-6 on: drop 20 of the 23 mantissa bits, and move the bias from 127 to 7.
    rounded = magnitude + 0x7FFFF + ((magnitude >> 20) & 1)
    normal = (rounded >> 20) - (120 << 3)
    # Below: steps of 2^-9. Adding 1.5 * 2^23 leaves the rounded count in the lowest bits.
    steps = magnitude.to(tl.float32, bitcast=True) * 512.0 + 12582912.0
    subnormal = steps.to(tl.int32, bitcast=True) - 0x4B400000
    code = tl.where(magnitude < 0x3C800000, subnormal, normal)
    code = tl.where(is_nan, 0x7F, code)
    return (code | sign).to(tl.uint8)
