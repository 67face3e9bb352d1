"""RMSNorm as a layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["RMSNorm"]


class RMSNorm(nn.Module):
    """Root-mean-square normalisation of the last axis with a learned scale.

    Same numbers as ``minids3.ref.norm.rms_norm_ref``, through PyTorch's fused function.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x [..., D]``; dtype and shape are kept."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
