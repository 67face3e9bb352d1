"""How wrong is an approximation? Four measures, each with its definition."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["max_relative_error", "relative_error", "signal_to_noise_db", "ulp_distance"]


def relative_error(x: Tensor, truth: Tensor) -> float:
    """Frobenius norm of the difference over that of the truth: ||x - y|| / ||y||, in fp64.

    0 if both are zero, infinity if only the truth is.
    """
    _same_shape(x, truth)
    error, size = (x.double() - truth.double()).norm(), truth.double().norm()
    if size == 0:
        return 0.0 if error == 0 else float("inf")
    return float(error / size)


def max_relative_error(x: Tensor, truth: Tensor) -> float:
    """Largest |x - y| / |y| over the entries with y != 0, in fp64; 0 if there is none.

    Sensitive to cancellation: an entry that is nearly zero can dominate it.
    """
    _same_shape(x, truth)
    x, truth = x.double(), truth.double()
    counted = truth != 0
    if not bool(counted.any()):
        return 0.0
    return float(((x - truth).abs() / truth.abs())[counted].max())


def signal_to_noise_db(x: Tensor, truth: Tensor) -> float:
    """10 log10 of ||y||^2 / ||x - y||^2: every 6.02 dB is one bit; infinity without an error."""
    error = relative_error(x, truth)
    if error == 0:
        return float("inf")
    return float(-20 * torch.log10(torch.tensor(error, dtype=torch.float64)))


def ulp_distance(x: Tensor, y: Tensor) -> Tensor:
    """How many representable fp32 numbers lie between ``x`` and ``y``: int64, 0 if equal.

    Both zeros count as one number. NaN on either side raises ``ValueError``.
    """
    _same_shape(x, y)
    if bool(torch.isnan(x).any()) or bool(torch.isnan(y).any()):
        raise ValueError("a distance to NaN is not defined: mask NaNs first")
    return (_ordered(x) - _ordered(y)).abs()


def _ordered(x: Tensor) -> Tensor:
    """Integers in the order of the fp32 numbers: negative ones mirrored at zero."""
    bits = x.float().contiguous().view(torch.int32).to(torch.int64)
    return torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def _same_shape(x: Tensor, y: Tensor) -> None:
    if x.shape != y.shape:
        raise ValueError(f"shapes differ: {list(x.shape)} and {list(y.shape)}")
