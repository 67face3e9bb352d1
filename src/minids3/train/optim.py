"""The optimizer: AdamW with weight decay on matrices only."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["build_optimizer"]


def build_optimizer(
    model: nn.Module,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    weight_decay: float = 0.1,
    eps: float = 1e-8,
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), defaults of TR section 4.2.

    Matrices decay towards zero. Norm scales do not: they start at one, and pulling a scale to zero
    switches its channel off.

    Args:
        model: its parameters that require a gradient are optimised.
        lr: learning rate, until a schedule sets another.
        betas: decay rates of the two moments.
        weight_decay: decoupled, multiplied by the learning rate at each step.
        eps: added to the root of the second moment.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = all(p.device.type in ("cuda", "cpu") for p in trained)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=fused)
