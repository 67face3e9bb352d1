"""RMSNorm as a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minids3.ops.norm import rms_norm
from minids3.ops.recompute import recomputable

__all__ = ["RMSNorm"]


class RMSNorm(nn.Module):
    """Root-mean-square normalisation of the last axis with a learned scale."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x [..., D]``; dtype and shape are kept."""
        return recomputable(rms_norm, x, self.weight, self.eps)
