"""Decoding over a paged cache of latents; no gradient, since nobody trains through a cache.

Prefill has no kernel of its own here: with as many queries as keys, attention is bound by the
multipliers, rebuilt keys and values cost little beside it, and PyTorch's fused
``scaled_dot_product_attention`` is already the best kernel for plain heads on every device.
"""

from __future__ import annotations

from torch import Tensor

from minids3.ops.backend import use_triton
from minids3.ref.attention import latent_decode_ref

__all__ = ["latent_decode"]


def latent_decode(
    q: Tensor,
    pages: Tensor,
    table: Tensor,
    lengths: Tensor,
    *,
    rank: int,
    scale: float,
    backend: str = "auto",
) -> Tensor:
    """Absorbed attention of the last T tokens of every sequence over latents in pages.

    Arguments, result and errors are those of ``minids3.ref.attention.latent_decode_ref``.

    ``backend``: ``"triton"``; ``"ref"``; ``"auto"``, Triton for CUDA tensors, else PyTorch.
    """
    if use_triton(q, backend):
        from minids3.kernels.attention import latent_decode as kernel

        return kernel(q, pages, table, lengths, rank=rank, scale=scale)
    return latent_decode_ref(q, pages, table, lengths, rank=rank, scale=scale)
