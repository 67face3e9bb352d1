"""What a generating model remembers: keys and values, or latents."""

from __future__ import annotations

import torch
from torch import Tensor

from minids3.config import ModelConfig

__all__ = ["KVCache", "LatentCache", "make_cache"]


class _Cache:
    """Memory reserved once for a number of positions; growing would copy it at every token."""

    def __init__(self, cfg: ModelConfig, capacity: int | None, batch_size: int) -> None:
        self.capacity = capacity or cfg.max_position_embeddings
        self.batch_size = batch_size
        self.length = 0
        self.real: Tensor | None = None  # [B, length] bool where padding is cached, too

    def advance(self, n_tokens: int) -> None:
        """Count ``n_tokens`` more positions, once every layer has stored them."""
        self.length += n_tokens

    def _stop(self, batch_size: int, n_tokens: int) -> int:
        """Position after the new ones; ``ValueError`` if they do not fit."""
        stop = self.length + n_tokens
        if stop > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} positions, {stop} are needed")
        if batch_size != self.batch_size:
            raise ValueError(f"the cache is for a batch of {self.batch_size}, got {batch_size}")
        return stop


class KVCache(_Cache):
    """Keys and values of the positions seen so far, for grouped-query attention.

    Layout: ``k, v [L, B, Hk, capacity, d]``. The model calls ``update`` in each layer and
    ``advance`` after the last.
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
        super().__init__(cfg, capacity, batch_size)
        shape = (
            cfg.num_hidden_layers,
            batch_size,
            cfg.num_key_value_heads,
            self.capacity,
            cfg.head_dim,
        )
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros(shape, dtype=dtype, device=device)

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store ``k, v [B, Hk, T, d]`` after the cached ones; return all S, ``[B, Hk, S, d]``.

        Raises ``ValueError`` if they exceed the capacity or have another batch size.
        """
        stop = self._stop(k.shape[0], k.shape[2])
        self.k[layer, :, :, self.length : stop] = k
        self.v[layer, :, :, self.length : stop] = v
        return self.k[layer, :, :, :stop], self.v[layer, :, :, :stop]

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one position of one sequence takes, over all layers."""
        return 2 * self.k[:, 0, :, 0].numel() * self.k.element_size()


class LatentCache(_Cache):
    """Latents of the positions seen so far, for latent attention.

    Layout: ``latent [L, B, capacity, C + R]``, the normalised c_kv and the rotated key in one row,
    because the absorbed path multiplies by both at once. No head appears in it.
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
        if cfg.attention != "mla":
            raise ValueError(f"LatentCache holds latents; attention={cfg.attention!r} has none")
        super().__init__(cfg, capacity, batch_size)
        width = cfg.kv_lora_rank + cfg.qk_rope_head_dim
        shape = (cfg.num_hidden_layers, batch_size, self.capacity, width)
        self.latent = torch.zeros(shape, dtype=dtype, device=device)

    def update(self, layer: int, latent: Tensor) -> Tensor:
        """Store ``latent [B, T, C + R]`` after the cached ones; return all S, ``[B, S, C + R]``.

        Raises ``ValueError`` if they exceed the capacity or have another batch size.
        """
        stop = self._stop(*latent.shape[:2])
        self.latent[layer, :, self.length : stop] = latent
        return self.latent[layer, :, :stop]

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one position of one sequence takes, over all layers."""
        return self.latent[:, 0, 0].numel() * self.latent.element_size()


def make_cache(
    cfg: ModelConfig,
    batch_size: int = 1,
    capacity: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> KVCache | LatentCache:
    """The cache that a model of this configuration needs; arguments as there."""
    kind = LatentCache if cfg.attention == "mla" else KVCache
    return kind(cfg, batch_size, capacity, dtype, device)
