"""Quantisation of weights in square blocks, the reference: what the released checkpoints hold."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["block_dequantize_ref", "block_quantize_ref"]

E4M3_MAX = 448.0


def block_quantize_ref(weight: Tensor, block: int = 128) -> tuple[Tensor, Tensor]:
    """E4M3 numbers and one fp32 scale for each block of ``block x block`` (TR section 3.3).

    The scale maps a block's largest magnitude to 448, E4M3's largest number. It **multiplies** when
    reading: weight = fp8 * scale, although checkpoints call it ``weight_scale_inv``. Blocks at the
    edges may be ragged; a block of zeros has scale 1.

    Args:
        weight: ``[out, in]``, finite.
        block: side of a block.

    Returns:
        ``[out, in]`` float8_e4m3fn and ``[ceil(out / block), ceil(in / block)]`` fp32.

    Raises:
        ValueError: ``weight`` is no matrix or holds a number that is not finite.
    """
    if weight.ndim != 2:
        raise ValueError(f"weight must be a matrix [out, in], got shape {list(weight.shape)}")
    weight = weight.float()
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("weight holds an infinity or NaN: E4M3 cannot scale it")
    rows, columns = (-(-size // block) for size in weight.shape)
    padded = weight.new_zeros(rows * block, columns * block)
    padded[: weight.shape[0], : weight.shape[1]] = weight
    largest = padded.view(rows, block, columns, block).abs().amax((1, 3))
    scale = torch.where(largest > 0, largest / E4M3_MAX, 1.0)
    scaled = weight / _spread(scale, block, weight.shape)
    return scaled.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn), scale


def block_dequantize_ref(quantized: Tensor, scale: Tensor, block: int = 128) -> Tensor:
    """Undo ``block_quantize_ref``: ``[out, in]`` fp32, the rounding remains.

    Raises ``ValueError`` if there is not one scale for every block.
    """
    expected = [-(-size // block) for size in quantized.shape]
    if list(scale.shape) != expected:
        raise ValueError(
            f"scales of shape {list(scale.shape)} do not fit a weight {list(quantized.shape)} in "
            f"blocks of {block}: expected {expected}"
        )
    return quantized.float() * _spread(scale.float(), block, quantized.shape)


def _spread(scale: Tensor, block: int, shape: torch.Size) -> Tensor:
    """Each block's scale at every place of the block."""
    wide = scale.repeat_interleave(block, 0)[: shape[0]]
    return wide.repeat_interleave(block, 1)[:, : shape[1]]
