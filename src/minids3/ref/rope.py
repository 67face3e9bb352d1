"""Rotary position embedding, the reference.

Two layouts are in use. *Interleaved* pairs neighbours (2j, 2j+1): DeepSeek-V3's checkpoints.
*Half-split* pairs (j, j + R/2): Llama as Hugging Face stores it. Scores are the same when queries
and keys agree and the weights' rows are permuted to match, which is why the layout is an argument
and not a second function.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["apply_rope_ref", "rope_tables"]


def rope_tables(
    positions: Tensor | int,
    dim: int,
    theta: float = 10000.0,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position's rotation angles.

    Pair j at position t turns by the angle t * theta^(-2j/R) (Su et al. 2021, arXiv 2104.09864, eq.
    15).

    Args:
        positions: ``[T]`` positions, or the number of positions T, meaning 0 .. T-1.
        dim: R, the even number of channels that rotate.
        theta: base of the wavelengths; pair j repeats every 2*pi*theta^(2j/R) positions.
        device: where the tables go if ``positions`` is a number.

    Returns:
        ``cos, sin``, each ``[T, R // 2]`` fp32.

    Raises:
        ValueError: ``dim`` is odd.
    """
    if dim % 2:
        raise ValueError(f"RoPE rotates pairs of channels, so dim={dim} must be even")
    if isinstance(positions, int):
        positions = torch.arange(positions, device=device)
    # fp64 angles: at position 100,000 fp32 angles are already wrong in the third digit.
    exponents = torch.arange(0, dim, 2, dtype=torch.float64, device=positions.device) / dim
    angles = positions.double()[:, None] * theta**-exponents
    return angles.cos().float(), angles.sin().float()


def apply_rope_ref(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = True) -> Tensor:
    """Rotate every pair of channels of ``x`` by its position's angle.

    Args:
        x: ``[..., T, R]``, any floating dtype.
        cos: ``[T, R // 2]``.
        sin: ``[T, R // 2]``.
        interleaved: pairs are (2j, 2j+1) if true, (j, j + R/2) if false. The layout is kept.

    Returns:
        ``[..., T, R]`` in the dtype of ``x``.

    Raises:
        ValueError: the tables do not fit ``x``.
    """
    steps, dim = x.shape[-2:]
    if cos.shape != (steps, dim // 2) or sin.shape != cos.shape:
        raise ValueError(
            f"tables of shape {list(cos.shape)} and {list(sin.shape)} do not fit x "
            f"{list(x.shape)}: both must be [{steps}, {dim // 2}]"
        )
    if interleaved:
        first, second = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    else:
        first, second = x.float().chunk(2, -1)
    rotated = first * cos - second * sin, first * sin + second * cos
    out = torch.stack(rotated, -1).flatten(-2) if interleaved else torch.cat(rotated, -1)
    return out.to(x.dtype)
