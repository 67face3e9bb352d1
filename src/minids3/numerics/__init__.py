"""Small number formats to the bit: codes, rounding, limited accumulation, and error measures.

Everything here is arithmetic on tensors that says what a format *is*; nothing here is fast. The
formats equal PyTorch's own casts for every code and input (``tests/numerics``).
"""

from minids3.numerics.accumulate import cut, limited_matmul
from minids3.numerics.formats import (
    BF16,
    E4M3,
    E5M2,
    E5M6,
    FP16,
    FP32,
    UE8M0,
    FloatFormat,
    decode,
    encode,
    fields,
    round_to,
)
from minids3.numerics.metrics import (
    max_relative_error,
    relative_error,
    signal_to_noise_db,
    ulp_distance,
)

__all__ = [
    "BF16",
    "E4M3",
    "E5M2",
    "E5M6",
    "FP16",
    "FP32",
    "UE8M0",
    "FloatFormat",
    "cut",
    "decode",
    "encode",
    "fields",
    "limited_matmul",
    "max_relative_error",
    "relative_error",
    "round_to",
    "signal_to_noise_db",
    "ulp_distance",
]
