"""Latents of decoding in pages: what a line of the cache takes, and what fits together."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["SCALED", "check_pages", "packed_bytes"]

SCALED = 128  # numbers of a latent that share a scale


def packed_bytes(rank: int, rope: int) -> int:
    """Bytes of a cache line in FP8: C codes, an fp32 scale for every 128, R rotary BF16; V3: 656.

    Raises:
        ValueError: C is no multiple of 128, or R is odd.
    """
    if rank < SCALED or rank % SCALED or rope % 2:
        raise ValueError(
            f"a latent of rank {rank} and {rope} rotary channels has no FP8 line: the rank must be "
            f"a multiple of {SCALED}, the rotary channels an even number"
        )
    return rank + 4 * (rank // SCALED) + 2 * rope


def check_pages(q: Tensor, pages: Tensor, table: Tensor, lengths: Tensor, rank: int) -> None:
    """Refuse arguments of ``latent_decode_ref`` that do not fit, by name."""
    if q.ndim != 4 or pages.ndim != 3 or table.ndim != 2 or lengths.ndim != 1:
        raise ValueError(
            "q must be [B, T, H, C + R], pages [pages, page, width], table [B, most] and lengths "
            f"[B]; got {list(q.shape)}, {list(pages.shape)}, {list(table.shape)}, "
            f"{list(lengths.shape)}"
        )
    width = q.shape[-1]
    if not 0 < rank < width:
        raise ValueError(f"rank={rank} must lie between 1 and the width of q, {width}, exclusive")
    want = packed_bytes(rank, width - rank) if pages.dtype == torch.uint8 else width
    if pages.shape[-1] != want:
        raise ValueError(f"pages are {pages.shape[-1]} wide; for q of width {width} it is {want}")
    if not (q.shape[0] == table.shape[0] == lengths.shape[0]):
        raise ValueError(
            f"{q.shape[0]} sequences in q, {table.shape[0]} in table, {lengths.shape[0]} in lengths"
        )
    for name, tensor in (("table", table), ("lengths", lengths)):
        if tensor.is_floating_point() or tensor.dtype == torch.bool:
            raise ValueError(f"{name} holds {tensor.dtype}; it must be int32 or int64")
