"""The language-model loss, the reference."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["IGNORE_INDEX", "Reduction", "cross_entropy_ref"]

Reduction = Literal["mean", "sum"]

IGNORE_INDEX = -100


def cross_entropy_ref(
    logits: Tensor,
    targets: Tensor,
    ignore_index: int = IGNORE_INDEX,
    reduction: Reduction = "mean",
) -> Tensor:
    """Negative log-probability of the targets, in nats: their mean or their sum.

    Args:
        logits: ``[..., V]``, any floating dtype; the log-sum-exp is taken in fp32.
        targets: ``[...]`` int64 in 0 .. V-1, or ``ignore_index`` where nothing is to be learned.
        ignore_index: targets with this value count neither in the sum nor in the mean.
        reduction: ``"mean"`` over the counted targets, or their ``"sum"``.

    Returns:
        A scalar fp32. If no target counts it is 0, and so is its gradient.

    Raises:
        ValueError: the shapes do not fit, or the reduction has another name.
    """
    if logits.shape[:-1] != targets.shape:
        raise ValueError(f"targets {list(targets.shape)} do not fit logits {list(logits.shape)}")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction={reduction!r} must be 'mean' or 'sum'")
    counted = targets != ignore_index
    logits = logits.float()
    log_total = torch.logsumexp(logits, -1)
    chosen = logits.gather(-1, targets.masked_fill(~counted, 0)[..., None])[..., 0]
    total = (log_total - chosen)[counted].sum()
    return total / counted.sum().clamp(min=1) if reduction == "mean" else total
