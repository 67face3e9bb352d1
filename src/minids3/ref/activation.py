"""SwiGLU, the reference."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["swiglu_ref"]


def swiglu_ref(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up: one projection gates another (Shazeer 2020, arXiv 2002.05202).

    Args:
        gate: ``[..., F]``.
        up: ``[..., F]``.

    Returns:
        ``[..., F]`` in the dtype of ``gate``, computed in fp32.

    Raises:
        ValueError: the shapes differ.
    """
    if gate.shape != up.shape:
        raise ValueError(f"gate {list(gate.shape)} and up {list(up.shape)} must have one shape")
    gate32 = gate.float()
    return (gate32 * torch.sigmoid(gate32) * up.float()).to(gate.dtype)
