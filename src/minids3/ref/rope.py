"""Rotary position embedding, the reference.

Two layouts are in use. *Interleaved* pairs neighbours (2j, 2j+1): DeepSeek-V3's checkpoints.
*Half-split* pairs (j, j + R/2): Llama as Hugging Face stores it. Scores are the same when queries
and keys agree and the weights' rows are permuted to match, which is why the layout is an argument
and not a second function.

YaRN stretches the rotation to texts longer than those of training: fast pairs stay, slow pairs are
slowed down by the factor, and those between are blended (Peng et al. 2023, arXiv 2309.00071).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "apply_rope_ref",
    "check_tables",
    "rope_frequencies",
    "rope_tables",
    "yarn_frequencies",
    "yarn_mscale",
]


def rope_frequencies(dim: int, theta: float = 10000.0) -> Tensor:
    """Angle per position of every pair, theta^(-2j/R): ``[R // 2]`` fp64.

    Raises ``ValueError`` if ``dim`` is odd.
    """
    if dim % 2:
        raise ValueError(f"RoPE rotates pairs of channels, so dim={dim} must be even")
    return theta ** -(torch.arange(0, dim, 2, dtype=torch.float64, device="cpu") / dim)


def yarn_frequencies(
    dim: int,
    theta: float = 10000.0,
    factor: float = 40.0,
    original_positions: int = 4096,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
) -> Tensor:
    """Angle per position of every pair under YaRN (arXiv 2309.00071, section 3.2).

    A pair that turns more than ``beta_fast`` times within the original positions keeps its
    frequency; one that turns less than ``beta_slow`` times is divided by ``factor``; a linear ramp
    over the pair's index joins the two. The released values give ramp ends 10 and 23 for R = 64.

    Args:
        dim: R, the even number of channels that rotate.
        theta: base of the plain frequencies.
        factor: how many times longer the new texts are.
        original_positions: length that the model was trained on.
        beta_fast: turns above which nothing changes.
        beta_slow: turns below which the frequency is divided by the whole factor.
        truncate: round the ramp's ends outwards to whole pairs.

    Returns:
        ``[R // 2]`` fp64.

    Raises:
        ValueError: ``dim`` is odd.
    """
    plain = rope_frequencies(dim, theta)

    def pair_that_turns(times: float) -> float:
        return dim * math.log(original_positions / (times * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_that_turns(beta_fast), pair_that_turns(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    # Equal ends: a step instead of a division by zero. Crossed ends (short texts, a small theta,
    # betas exchanged): the ramp falls, as in Hugging Face's code.
    width = high - low or 0.001
    slowed = ((torch.arange(dim // 2, dtype=torch.float64, device="cpu") - low) / width).clamp(0, 1)
    return plain * (1 - slowed) + plain / factor * slowed


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """Factor 0.1 * mscale * ln(factor) + 1 that keeps attention sharp over longer texts, else 1.

    TR section 4.3; 1.36889 for the released factor of 40.
    """
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def rope_tables(
    positions: Tensor | int,
    dim: int,
    theta: float = 10000.0,
    device: torch.device | str | None = None,
    frequencies: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position's rotation angles.

    Pair j at position t turns by the angle t * theta^(-2j/R) (Su et al. 2021, arXiv 2104.09864, eq.
    15).

    Args:
        positions: ``[T]`` positions, or the number of positions T, meaning 0 .. T-1.
        dim: R, the even number of channels that rotate.
        theta: base of the wavelengths; pair j repeats every 2*pi*theta^(2j/R) positions.
        device: where the tables go if ``positions`` is a number.
        frequencies: ``[R // 2]`` angles per position to use instead of theta's, such as YaRN's.

    Returns:
        ``cos, sin``, each ``[T, R // 2]`` fp32.

    Raises:
        ValueError: ``dim`` is odd.
    """
    if frequencies is None:
        frequencies = rope_frequencies(dim, theta)
    if isinstance(positions, int):
        positions = torch.arange(positions, device=device)
    # fp64 angles: at position 100,000 fp32 angles are already wrong in the third digit.
    angles = positions.double()[:, None] * frequencies.to(positions.device)
    return angles.cos().float(), angles.sin().float()


def apply_rope_ref(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = True) -> Tensor:
    """Rotate every pair of channels of ``x`` by its position's angle.

    Args:
        x: ``[..., T, R]``, any floating dtype.
        cos: ``[T, R // 2]``, or ``[B, 1, T, R // 2]`` for rows with positions of their own.
        sin: as ``cos``.
        interleaved: pairs are (2j, 2j+1) if true, (j, j + R/2) if false. The layout is kept.

    Returns:
        ``[..., T, R]`` in the dtype of ``x``.

    Raises:
        ValueError: the tables do not fit ``x``.
    """
    check_tables(x, cos, sin)
    if interleaved:
        first, second = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    else:
        first, second = x.float().chunk(2, -1)
    rotated = first * cos - second * sin, first * sin + second * cos
    out = torch.stack(rotated, -1).flatten(-2) if interleaved else torch.cat(rotated, -1)
    return out.to(x.dtype)


def check_tables(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Raise ``ValueError`` unless the tables have an angle for every pair of ``x [..., T, R]``."""
    steps, half = x.shape[-2], x.shape[-1] // 2
    rows = cos.shape[:-2]
    fits = cos.ndim <= x.ndim and all(
        n in (1, of) for n, of in zip(reversed(rows), reversed(x.shape[:-2]), strict=False)
    )
    if x.shape[-1] % 2 or cos.shape[-2:] != (steps, half) or sin.shape != cos.shape or not fits:
        raise ValueError(
            f"tables of shape {list(cos.shape)} and {list(sin.shape)} do not fit x "
            f"{list(x.shape)}: both must be [{steps}, {half}], R even"
        )
