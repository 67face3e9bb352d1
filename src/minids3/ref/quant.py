"""Scaled E4M3, the reference: numbers of eight bits that share a scale.

E4M3 reaches from 2^-9 to 448. A scale moves a tensor's own range there, and what shares it decides
how far one outlier reaches (TR section 3.3.2):

per tensor    one scale: the outlier costs everybody
1 x 128       activations: one scale per token and 128 channels
128 x 128     weights: one scale per square block

Scales **multiply** when reading (number = fp8 * scale), although checkpoints say ``_scale_inv``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "TILE",
    "WEIGHT_BLOCK",
    "block_dequantize_ref",
    "block_quantize_ref",
    "cache_quantize_ref",
    "dequantize_ref",
    "quantize_ref",
]

E4M3_MAX, E5M6_MAX = 448.0, 65024.0
TILE = (1, 128)
WEIGHT_BLOCK = (128, 128)


def quantize_ref(
    x: Tensor, block: tuple[int, int] | None = TILE, power_of_two: bool = False
) -> tuple[Tensor, Tensor]:
    """E4M3 numbers and the fp32 scale of each block of rows and columns.

    The scale maps a block's largest finite magnitude to 448 and is computed online, from the very
    block (TR section 3.3.2). Edges may be ragged. A block without a finite number other than zero
    has scale 1; infinities become plus or minus 448, NaN stays NaN, and neither touches the scale.

    Args:
        x: ``[M, K]``, any floating dtype.
        block: rows and columns that share a scale; None: all of ``x``.
        power_of_two: round the scale up to a power of two, so that it only moves exponents.

    Returns:
        ``[M, K]`` float8_e4m3fn and ``[ceil(M / rows), ceil(K / columns)]`` fp32.

    Raises:
        ValueError: ``x`` is no matrix, or the block is empty.
    """
    block = _check(x, block)
    tiled = _tiled(x.float(), block)
    largest = tiled.abs().amax(3).amax(1)
    if not bool(torch.isfinite(largest).all()):
        largest = torch.where(torch.isfinite(tiled), tiled, 0.0).abs().amax(3).amax(1)
    # A tensor, since a GPU divides by a number as a product with its rounded reciprocal.
    scale = largest / torch.full_like(largest, E4M3_MAX)
    if power_of_two:
        scale = _power_of_two_from(scale)
    # The smallest fp32 numbers divided by 448 are zero: those, too, are written with scale 1.
    scale = torch.where((largest > 0) & (scale > 0), scale, 1.0)
    scaled = (tiled / scale[:, None, :, None]).clamp_(-E4M3_MAX, E4M3_MAX)
    return _untiled(scaled.to(torch.float8_e4m3fn), x.shape), scale


def cache_quantize_ref(x: Tensor) -> tuple[Tensor, Tensor]:
    """An activation as V3 keeps the input of the layer after attention: E5M6 (TR section 3.3.3).

    Tiles of 1 x 128 share a power of two that brings the largest finite magnitude to at most
    65,024, E5M6's largest number. Zeros, infinities and NaN as in ``quantize_ref``.

    Args:
        x: ``[M, K]``, any floating dtype.

    Returns:
        ``[M, K]`` E5M6 numbers and ``[M, ceil(K / 128)]`` fp32. The numbers lie in float16, which
        has every one of them; a GPU that packs them needs 12 bits each. ``dequantize_ref`` reads
        them.

    Raises:
        ValueError: ``x`` is no matrix.
    """
    tiled = _tiled(x.float(), _check(x, TILE))
    largest = torch.where(torch.isfinite(tiled), tiled, 0.0).abs().amax(3).amax(1)
    scale = _power_of_two_from(largest / torch.full_like(largest, E5M6_MAX))
    scale = torch.where((largest > 0) & (scale > 0), scale, 1.0)
    scaled = (tiled / scale[:, None, :, None]).clamp_(-E5M6_MAX, E5M6_MAX)
    return _untiled(_round_e5m6(scaled).half(), x.shape), scale


def dequantize_ref(
    quantized: Tensor, scale: Tensor, block: tuple[int, int] | None = TILE
) -> Tensor:
    """Undo ``quantize_ref``: ``[M, K]`` fp32; the rounding remains.

    Scales are floating numbers, float8_e8m0fnu among them, or bytes, which are UE8M0.

    Raises ``ValueError`` if there is not one scale for every block, or scales of another dtype.
    """
    block = _check(quantized, block)
    expected = [-(-size // side) for size, side in zip(quantized.shape, block, strict=True)]
    if list(scale.shape) != expected:
        raise ValueError(
            f"scales of shape {list(scale.shape)} do not fit a tensor {list(quantized.shape)} in "
            f"blocks of {block[0]} x {block[1]}: expected {expected}"
        )
    tiled = _tiled(_decode(quantized), block)
    return _untiled(tiled * _decode_scale(scale)[:, None, :, None], quantized.shape)


def block_quantize_ref(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``quantize_ref`` in blocks of 128 x 128, as the released checkpoints hold weights.

    Raises ``ValueError`` if ``weight`` is no matrix or not finite: a checkpoint should not hide it.
    """
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("weight holds an infinity or NaN: E4M3 cannot scale it")
    return quantize_ref(weight, WEIGHT_BLOCK)


def block_dequantize_ref(quantized: Tensor, scale: Tensor) -> Tensor:
    """Undo ``block_quantize_ref``; errors as ``dequantize_ref``."""
    return dequantize_ref(quantized, scale, WEIGHT_BLOCK)


def _check(x: Tensor, block: tuple[int, int] | None) -> tuple[int, int]:
    if x.ndim != 2:
        raise ValueError(f"only matrices [M, K] are quantised, got shape {list(x.shape)}")
    if block is None:
        return max(x.shape[0], 1), max(x.shape[1], 1)
    if min(block) < 1:
        raise ValueError(f"block={block} must have at least one row and one column")
    return block


def _power_of_two_from(scale: Tensor) -> Tensor:
    """The smallest power of two that is no smaller than each positive number."""
    mantissa, power = torch.frexp(scale)  # scale = [0.5, 1) * 2^power, exact if 0.5
    return torch.ldexp(torch.ones_like(scale), power - (mantissa == 0.5).int())


def _round_e5m6(x: Tensor) -> Tensor:
    """Fp32 numbers of at most 65,024, or NaN, to the nearest of E5M6, ties to even."""
    bits = x.view(torch.int32)
    normal = ((bits + 0xFFFF + ((bits >> 17) & 1)) & ~0x1FFFF).view(torch.float32)
    small = (x * 2.0**20).round() * 2.0**-20  # below 2^-14 steps are 2^-20
    return torch.where(x.abs() < 2.0**-14, small, torch.where(x.isnan(), x, normal))


def _tiled(x: Tensor, block: tuple[int, int]) -> Tensor:
    """``x`` by blocks, ``[R, rows, C, columns]``, ragged edges filled with zeros.

    A block that is larger than ``x`` is cut to its size.
    """
    rows, columns = (min(side, max(size, 1)) for side, size in zip(block, x.shape, strict=True))
    missing = -x.shape[0] % rows, -x.shape[1] % columns
    if any(missing):
        x = F.pad(x, (0, missing[1], 0, missing[0]))
    return x.reshape(x.shape[0] // rows, rows, x.shape[1] // columns, columns)


def _untiled(tiled: Tensor, shape: torch.Size) -> Tensor:
    """Undo ``_tiled`` and drop what it filled in."""
    whole = tiled.flatten(2).flatten(0, 1)
    return whole if whole.shape == shape else whole[: shape[0], : shape[1]].contiguous()


def _decode(quantized: Tensor) -> Tensor:
    """E4M3 to fp32 by moving its bits to where FP16 has them: 5 times a cast's speed on a CPU.

    FP16's exponent is one bit wider and its bias 8 higher, so the number read is 2^8 too small.
    """
    if quantized.dtype != torch.float8_e4m3fn:
        return quantized.float()
    wide = quantized.view(torch.int8).to(torch.int16) << 7  # the sign fills the upper byte
    value = (wide & ~0x4000).view(torch.float16).float().mul_(256.0)
    if value.numel() and max(map(abs, map(float, torch.aminmax(value)))) > E4M3_MAX:
        value.masked_fill_(value.abs() > E4M3_MAX, torch.nan)  # 480 is what the NaN code gives
    return value


def _decode_scale(scale: Tensor) -> Tensor:
    """Scales to fp32. A byte is the exponent of UE8M0: 2^(byte - 127), 255 is NaN."""
    if scale.dtype == torch.uint8:
        power = torch.ldexp(torch.ones(scale.shape, device=scale.device), scale.int() - 127)
        return power.masked_fill(scale == 255, torch.nan)
    if not scale.is_floating_point():
        raise ValueError(f"scales of dtype {scale.dtype} are neither numbers nor UE8M0 bytes")
    return scale.float()
