"""The key-value cache of grouped-query attention."""

from __future__ import annotations

import torch
from torch import Tensor

from minids3.config import ModelConfig

__all__ = ["KVCache"]


class KVCache:
    """Keys and values of the positions seen so far, in memory reserved once.

    Layout: ``k, v [L, B, Hk, capacity, d]``. The model calls ``update`` in each layer and
    ``advance`` after the last; growing by concatenation would copy the whole cache at every token.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        batch_size: int = 1,
        capacity: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Reserve room for ``capacity`` positions (default: the model's maximum) in ``dtype``."""
        if cfg.attention != "gqa":
            raise ValueError(
                f"KVCache holds keys and values; attention={cfg.attention!r} keeps others"
            )
        self.capacity = capacity or cfg.max_position_embeddings
        shape = (
            cfg.num_hidden_layers,
            batch_size,
            cfg.num_key_value_heads,
            self.capacity,
            cfg.head_dim,
        )
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store ``k, v [B, Hk, T, d]`` after the cached ones; return all S, ``[B, Hk, S, d]``.

        Raises ``ValueError`` if they exceed the capacity or have another batch size.
        """
        stop = self.length + k.shape[2]
        if stop > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} positions, {stop} are needed")
        if k.shape[0] != self.k.shape[1]:
            raise ValueError(f"the cache is for a batch of {self.k.shape[1]}, got {k.shape[0]}")
        self.k[layer, :, :, self.length : stop] = k
        self.v[layer, :, :, self.length : stop] = v
        return self.k[layer, :, :, :stop], self.v[layer, :, :, :stop]

    def advance(self, n_tokens: int) -> None:
        """Count ``n_tokens`` more positions, once every layer has stored them."""
        self.length += n_tokens

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one position of one sequence takes, over all layers."""
        return 2 * self.k[:, 0, :, 0].numel() * self.k.element_size()
