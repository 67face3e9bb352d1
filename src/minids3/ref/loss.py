"""The language-model loss, the reference."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["IGNORE_INDEX", "cross_entropy_ref"]

IGNORE_INDEX = -100


def cross_entropy_ref(logits: Tensor, targets: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Mean negative log-probability of the targets, in nats per counted target.

    Args:
        logits: ``[..., V]``, any floating dtype; the log-sum-exp is taken in fp32.
        targets: ``[...]`` int64 in 0 .. V-1, or ``ignore_index`` where nothing is to be learned.
        ignore_index: targets with this value count neither in the sum nor in the mean.

    Returns:
        A scalar fp32.

    Raises:
        ValueError: the shapes do not fit, or no target counts.
    """
    if logits.shape[:-1] != targets.shape:
        raise ValueError(f"targets {list(targets.shape)} do not fit logits {list(logits.shape)}")
    counted = targets != ignore_index
    if not counted.any():
        raise ValueError("every target is ignored: there is nothing to average")
    logits = logits.float()
    log_total = torch.logsumexp(logits, -1)
    chosen = logits.gather(-1, targets.masked_fill(~counted, 0)[..., None])[..., 0]
    return (log_total - chosen)[counted].mean()
