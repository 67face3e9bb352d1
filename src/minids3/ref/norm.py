"""RMSNorm, the reference."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["rms_norm_ref"]


def rms_norm_ref(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """Divide each vector by its root mean square, then scale each channel.

    y = x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019, arXiv 1910.07467, eq. 4). The
    statistics are taken in fp32 whatever the input, since squares of bf16 numbers lose their tail.

    Args:
        x: ``[..., D]``, any floating dtype.
        weight: ``[D]``.
        eps: added to the mean square, so that a zero vector stays zero.

    Returns:
        ``[..., D]`` in the dtype of ``x``.

    Raises:
        ValueError: ``weight`` does not have the last size of ``x``.
    """
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"weight has shape {list(weight.shape)}, x needs [{x.shape[-1]}]")
    x32 = x.float()
    scale = torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return (x32 * scale * weight.float()).to(x.dtype)
