"""The decoder: embedding, blocks, norm, output head.

Pre-norm residual blocks, as in Llama and DeepSeek-V3::

    x = x + attention(norm(x));   x = x + feed_forward(norm(x))

The rotary tables are made once per model and handed down, so that a layer holds nothing but
parameters. Each block asks ``_attention`` and ``_feed_forward`` for its parts: that is where latent
attention and experts plug in.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minids3.config import ConfigError, ModelConfig
from minids3.nn import GroupedQueryAttention, RMSNorm, SwiGLU
from minids3.nn.attention import LayerCache
from minids3.ref.loss import IGNORE_INDEX
from minids3.ref.rope import rope_tables

__all__ = ["Block", "ModelCache", "Transformer"]


class ModelCache(LayerCache, Protocol):
    """What a model needs from a cache: its length, and a word when all layers are done."""

    length: int

    def advance(self, n_tokens: int) -> None:
        """Count ``n_tokens`` more cached positions."""
        ...


def _attention(cfg: ModelConfig, layer: int) -> nn.Module:
    if cfg.attention == "gqa":
        return GroupedQueryAttention(cfg, layer)
    raise ConfigError(f"attention={cfg.attention!r} is not built by this version; use 'gqa'")


def _feed_forward(cfg: ModelConfig, layer: int) -> nn.Module:
    if not cfg.is_moe_layer(layer):
        return SwiGLU(cfg.hidden_size, cfg.intermediate_size)
    raise ConfigError("routed experts are not built by this version; set n_routed_experts=0")


class Block(nn.Module):
    """One layer: attention and feed-forward, each behind a norm and beside a residual."""

    def __init__(self, cfg: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.self_attn = _attention(cfg, layer)
        self.post_attention_layernorm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.mlp = _feed_forward(cfg, layer)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: LayerCache | None = None
    ) -> Tensor:
        """Map ``x [B, T, D]`` to ``[B, T, D]``."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Transformer(nn.Module):
    """A causal language model built from a ``ModelConfig``.

    Parameters are drawn from N(0, initializer_range) as in TR section 4.2; norms start at one.
    Seed with ``torch.manual_seed`` before building to get the same model twice.

    Raises:
        ConfigError: the configuration asks for a part that this version does not build.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        cos, sin = rope_tables(
            config.max_position_embeddings, config.head_dim, config.rope_theta, device="cpu"
        )
        self.register_buffer("rope_cos", cos, persistent=False)
        self.register_buffer("rope_sin", sin, persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw every matrix anew from N(0, initializer_range) and set every norm to one."""
        for parameter in self.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=self.config.initializer_range)
            else:
                parameter.fill_(1.0)

    def forward(self, ids: Tensor, cache: ModelCache | None = None) -> Tensor:
        """Logits of the next token at every position.

        Args:
            ids: ``[B, T]`` int64 token ids.
            cache: keys and values of the positions before ``ids``; it is extended in place.

        Returns:
            ``[B, T, V]`` logits in the dtype of the parameters.

        Raises:
            ValueError: ids out of the vocabulary or not ``[B, T]``, or too many positions.
        """
        x = self.hidden_states(ids, cache)
        return self.lm_head(x)

    def hidden_states(self, ids: Tensor, cache: ModelCache | None = None) -> Tensor:
        """The last hidden vectors ``[B, T, D]``, after the final norm; arguments as ``forward``."""
        start = 0 if cache is None else cache.length
        self._validate(ids, start)
        stop = start + ids.shape[1]
        cos, sin = self.rope_cos[start:stop], self.rope_sin[start:stop]
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, cos, sin, cache)
        if cache is not None:
            cache.advance(ids.shape[1])
        return self.norm(x)

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats per target (a scalar fp32).

        Args:
            ids: ``[B, T]`` int64.
            targets: ``[B, T]`` int64, the token after each position; ``IGNORE_INDEX``: not counted.
        """
        logits = self(ids)
        return F.cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE_INDEX
        )

    def num_parameters(self, embeddings: bool = True) -> int:
        """How many parameters there are, each shared one counted once.

        Args:
            embeddings: count the embedding table (and a head tied to it) too.
        """
        total = sum(p.numel() for p in self.parameters())
        return total if embeddings else total - self.embed_tokens.weight.numel()

    def _validate(self, ids: Tensor, start: int) -> None:
        if ids.ndim != 2:
            raise ValueError(f"ids must be [B, T], got shape {list(ids.shape)}")
        limit = self.config.max_position_embeddings
        if start + ids.shape[1] > limit:
            raise ValueError(
                f"{start} cached + {ids.shape[1]} new positions exceed "
                f"max_position_embeddings={limit}: shorten the text or raise it in the config"
            )
        # A wrong vocabulary shows here, where the message can say so, and not as an index error. On
        # a GPU the check would wait for the device at every step: there the embedding raises.
        if (
            ids.device.type == "cpu"
            and ids.numel()
            and not (int(ids.min()) >= 0 and int(ids.max()) < self.config.vocab_size)
        ):
            raise ValueError(
                f"token ids span {int(ids.min())}..{int(ids.max())}, but the model's vocabulary is "
                f"0..{self.config.vocab_size - 1}: was the text encoded with another tokenizer?"
            )
