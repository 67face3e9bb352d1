"""Texts of unequal length in one batch: from an attention mask to positions and visible keys.

A masked token is as good as absent: nobody sees it, and the positions of the others are counted
without it. So each text gives what it gives alone, whichever side it is padded on. What the model
says *at* a masked token means nothing (such a token sees itself and the real ones before it, so
that it is at least finite).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_mask", "check_unbroken", "count_positions", "visible_keys"]


def check_mask(mask: Tensor, ids: Tensor, cached: Tensor | None, start: int) -> Tensor | None:
    """``mask`` as bool, or None if nothing is masked.

    Args:
        mask: ``[B, S]`` bool or integer, 1 for a real token, over ``start`` cached positions and
            those of ``ids``.
        ids: ``[B, T]``, on the device of ``mask``.
        cached: ``[B, start]`` bool, what was masked when the cache was filled, or None.
        start: how many positions are cached.

    Raises:
        TypeError: the mask is no tensor.
        ValueError: it has another shape, dtype, device or other values, or contradicts ``cached``.
    """
    want = [ids.shape[0], start + ids.shape[1]]
    if not isinstance(mask, Tensor):
        raise TypeError(f"attention_mask must be a tensor {want}, got {type(mask).__name__}")
    if list(mask.shape) != want:
        raise ValueError(
            f"attention_mask must be [B, S] = {want} ({start} cached and {ids.shape[1]} new "
            f"positions), got {list(mask.shape)}"
        )
    if mask.is_floating_point() or mask.is_complex():
        raise ValueError(
            f"attention_mask must be bool or integer, 1 for a real token, not {mask.dtype}"
        )
    if mask.device != ids.device:
        raise ValueError(f"attention_mask is on {mask.device}, ids are on {ids.device}")
    real = mask.bool()
    if mask.device.type == "cpu":  # on a GPU looking at the values would wait for the device
        if mask.dtype != torch.bool and not bool((mask == real).all()):
            raise ValueError("attention_mask must hold nothing but 0 (masked) and 1 (real token)")
        before = real[:, :start]
        if not bool(before.all() if cached is None else (before == cached).all()):
            raise ValueError(
                "attention_mask says otherwise of the cached positions than it said when they were "
                "cached: pass the same columns again, followed by those of the new tokens"
            )
        if bool(real.all()):
            return None
    return real


def check_unbroken(real: Tensor) -> None:
    """Raise ``ValueError`` if padding interrupts a text: MTP needs the token that follows."""
    if real.device.type != "cpu":
        return
    starts = real[:, 0].int() + (real.int().diff(dim=-1) > 0).sum(-1)
    if bool((starts > 1).any()):
        raise ValueError(
            "attention_mask interrupts a text, and an MTP module would take the token after the "
            "gap for the one that follows: pad on the sides only"
        )


def count_positions(real: Tensor) -> Tensor:
    """Each token's position among the real ones of its row, from 0: ``[B, S]`` int64."""
    return (real.cumsum(-1) - 1).clamp(min=0)


def visible_keys(real: Tensor, n_queries: int) -> Tensor:
    """Which of S keys each of the last T positions sees: ``[B, 1, T, S]`` bool.

    The real ones up to itself, and itself in any case: so no softmax is taken of nothing.
    """
    n_keys = real.shape[1]
    ones = torch.ones(n_queries, n_keys, dtype=torch.bool, device=real.device)
    causal, itself = ones.tril(n_keys - n_queries), ones.triu(n_keys - n_queries)
    return (real[:, None, None, :] & causal) | (causal & itself)
