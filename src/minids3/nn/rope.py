"""Rotary position embedding, the version the model runs."""

from __future__ import annotations

import torch
from torch import Tensor

from minids3.ref.rope import apply_rope_ref

__all__ = ["apply_rope"]


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = True) -> Tensor:
    """Rotate every pair of channels of ``x`` by its position's angle.

    Arguments, result and errors are those of ``minids3.ref.rope.apply_rope_ref``. Interleaved fp32
    pairs are complex numbers already lying in memory, so one complex product replaces four real
    ones and a re-stacking; every other case goes through the reference.
    """
    if not interleaved or x.dtype != torch.float32 or x.device.type == "mps":
        return apply_rope_ref(x, cos, sin, interleaved)
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)
