"""What a model is worth on held-out text: its loss, and its second token."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from minids3.model.mtp import draft_agreement
from minids3.model.transformer import Transformer
from minids3.ref.loss import IGNORE_INDEX

__all__ = ["Batches", "evaluate", "mtp_acceptance"]


class Batches(Protocol):
    """Anything that has a batch for every step, the same one each time it is asked.

    A source that also has ``rows(first, count)`` can feed a batch that grows.
    """

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of ``step``, each ``[B, T]`` int64."""
        ...


@torch.inference_mode()
def evaluate(model: Transformer, batches: Batches, n_batches: int) -> float:
    """Mean loss in nats per target over the first ``n_batches`` batches, in evaluation mode.

    A batch weighs as much as it has targets; ``ValueError`` if none has any.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    for step in range(n_batches):
        inputs, targets = batches.batch(step)
        counted = int((targets != IGNORE_INDEX).sum())
        if counted:
            total += model.loss(inputs.to(device), targets.to(device)).item() * counted
            count += counted
    model.train(was_training)
    if count == 0:
        raise ValueError(f"nothing to evaluate: no target in the first {n_batches} batches")
    return total / count


@torch.inference_mode()
def mtp_acceptance(model: Transformer, batches: Batches, n_batches: int) -> float:
    """How often the first MTP module names the token that the main model would name there."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    agreed = []
    for step in range(n_batches):
        agreed.append(draft_agreement(model, batches.batch(step)[0].to(device)))
    model.train(was_training)
    return torch.cat(agreed).float().mean().item()
