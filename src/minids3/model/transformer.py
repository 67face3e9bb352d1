"""The decoder: embedding, blocks, norm, output head, and the modules that predict further ahead.

The rotary tables are made once per model and handed down, so that a layer holds nothing but
parameters. What a layer is made of is decided in ``block``.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from minids3.config import ModelConfig
from minids3.model.block import Block
from minids3.model.mtp import MTPModule
from minids3.nn import RMSNorm
from minids3.nn.buffers import ExactBuffers
from minids3.nn.rope import model_rope_tables
from minids3.ops.loss import cross_entropy
from minids3.ref.loss import IGNORE_INDEX, Reduction

__all__ = ["ModelCache", "Transformer"]


class ModelCache(Protocol):
    """What a model needs from a cache, besides what its attention asks of it."""

    length: int

    def advance(self, n_tokens: int) -> None:
        """Count ``n_tokens`` more cached positions, once every layer has stored them."""
        ...


class Transformer(ExactBuffers):
    """A causal language model built from a ``ModelConfig``.

    Parameters are drawn from N(0, initializer_range) as in TR section 4.2; norms start at one.
    Seed with ``torch.manual_seed`` before building to get the same model twice.

    The rotary tables keep their fp32 through every cast of the model.
    """

    exact_buffers: ClassVar[tuple[str, ...]] = ("rope_cos", "rope_sin")

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if not isinstance(config, ModelConfig):
            raise TypeError(
                f"config must be a ModelConfig, got {config!r}: get_config('mini') gives one"
            )
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        self.mtp = nn.ModuleList(
            MTPModule(config, k + 1) for k in range(config.num_nextn_predict_layers)
        )
        self.reset_exact_buffers()
        self.reset_parameters()

    def reset_exact_buffers(self) -> None:
        """Make the rotary tables of all positions."""
        cos, sin = model_rope_tables(self.config)
        self.register_buffer("rope_cos", cos, persistent=False)
        self.register_buffer("rope_sin", sin, persistent=False)

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

    def loss(self, ids: Tensor, targets: Tensor, *, reduction: Reduction = "mean") -> Tensor:
        """Cross-entropy of the next token in nats, a scalar fp32; arguments as ``losses``."""
        return self._cross_entropy(self.hidden_states(ids), targets, reduction)

    def losses(
        self, ids: Tensor, targets: Tensor, *, reduction: Reduction = "mean"
    ) -> tuple[Tensor, list[Tensor]]:
        """The main loss and the loss of every MTP module, each a scalar fp32 in nats.

        Module k has only T - k targets, yet its sum is divided like the main one (TR eq. 24). A
        training objective adds the mean of the list, times lambda, to the main loss (TR eq. 25).

        Args:
            ids: ``[B, T]`` int64.
            targets: ``[B, T]`` int64, the token after each position; ``IGNORE_INDEX``: not counted.
                If none counts, every loss is 0 and so is its gradient.
            reduction: ``"mean"`` over the counted targets, or ``"sum"``, for batches that are
                weighed by their targets afterwards.
        """
        hidden = self.hidden_states(ids)
        main = self._cross_entropy(hidden, targets, reduction)
        divisor = (targets != IGNORE_INDEX).sum().clamp(min=1) if reduction == "mean" else 1
        extra = [
            self._cross_entropy(ahead, targets[:, k:], "sum") / divisor
            for k, ahead in enumerate(self._mtp_hidden(hidden, ids), start=1)
        ]
        return main, extra

    def _cross_entropy(self, hidden: Tensor, targets: Tensor, reduction: Reduction) -> Tensor:
        """Of logits that nobody looks at afterwards, so that a kernel may overwrite them."""
        return cross_entropy(self.lm_head(hidden), targets, reduction=reduction, in_place=True)

    def mtp_logits(self, ids: Tensor) -> list[Tensor]:
        """Logits of every MTP module: the k-th is ``[B, T - k, V]``, position i for token i+k+1."""
        return [self.lm_head(h) for h in self._mtp_hidden(self.hidden_states(ids), ids)]

    def _mtp_hidden(self, hidden: Tensor, ids: Tensor) -> list[Tensor]:
        """Chain the modules over ``hidden [B, T, D]`` of ``ids [B, T]``; the k-th gives T - k."""
        found = []
        for k, module in enumerate(self.mtp, start=1):
            length = ids.shape[1] - k
            if length < 1:
                raise ValueError(
                    f"{ids.shape[1]} tokens are too few for MTP module {k}: it needs {k + 1}"
                )
            embedding = self.embed_tokens(ids[:, k:])
            cos, sin = self.rope_cos[:length], self.rope_sin[:length]
            hidden = module(hidden[:, :length], embedding, cos, sin)
            found.append(hidden)
        return found

    def num_parameters(self, embeddings: bool = True, mtp: bool = True) -> int:
        """How many parameters there are, each shared one counted once.

        Args:
            embeddings: count the embedding table (and a head tied to it) too.
            mtp: count the MTP modules too. Published totals do not: V3's 671B is without.
        """
        total = sum(p.numel() for p in self.parameters())
        if not mtp:
            total -= sum(p.numel() for p in self.mtp.parameters())
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
