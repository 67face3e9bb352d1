"""The decoder: embedding, blocks, norm, output head, and the modules that predict further ahead.

The rotary tables are made once per model and handed down, so that a layer holds nothing but
parameters. What a layer is made of is decided in ``block``.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minids3.config import ModelConfig
from minids3.model.block import Block
from minids3.model.mtp import MTPModule
from minids3.model.padding import check_mask, check_unbroken, count_positions, visible_keys
from minids3.nn import RMSNorm
from minids3.nn.buffers import ExactBuffers
from minids3.nn.rope import model_rope_tables
from minids3.ops.loss import cross_entropy
from minids3.ref.loss import IGNORE_INDEX, Reduction

__all__ = ["ModelCache", "Transformer"]


class ModelCache(Protocol):
    """What a model needs from a cache, besides what its attention asks of it."""

    length: int
    real: Tensor | None
    """Which of the cached positions hold a real token, ``[B, length]`` bool; None: all."""

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
    rope_cos: Tensor
    rope_sin: Tensor

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

    def forward(
        self, ids: Tensor, cache: ModelCache | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Logits of the next token at every position.

        Args:
            ids: ``[B, T]`` int64 token ids.
            cache: keys and values of the S - T positions before ``ids``; it is extended in place.
            attention_mask: ``[B, S]`` bool or integer, 1 for a real token and 0 for padding, on
                either side, of the cached positions and the new ones. Each text gives what it gives
                alone; the logits at padding mean nothing. Default: the new tokens are all real, and
                the cache remembers which of the others are.

        Returns:
            ``[B, T, V]`` logits in the dtype of the parameters.

        Raises:
            TypeError: ids or mask are no tensors.
            ValueError: ids out of the vocabulary or not ``[B, T]`` integers, a mask that does not
                fit, or too many positions.
        """
        return self.lm_head(self.hidden_states(ids, cache, attention_mask))

    def hidden_states(
        self, ids: Tensor, cache: ModelCache | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        """The last hidden vectors ``[B, T, D]``, after the final norm; arguments as ``forward``."""
        start = 0 if cache is None else cache.length
        self._validate(ids, start)
        real = self._real_tokens(ids, cache, attention_mask)
        x = self._embed(ids)
        cos, sin, padding = self._places(real, start, ids.shape[1])
        for layer in self.layers:
            x = layer(x, cos, sin, cache, **padding)
        if cache is not None:
            cache.advance(ids.shape[1])
            cache.real = real
        return self.norm(x)

    def _embed(self, ids: Tensor) -> Tensor:
        """Rows of the table; under autocast in its dtype, which the residual stream then keeps."""
        x, kind = self.embed_tokens(ids), ids.device.type
        return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x

    def loss(
        self,
        ids: Tensor,
        targets: Tensor,
        attention_mask: Tensor | None = None,
        *,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """Cross-entropy of the next token in nats, a scalar fp32; arguments as ``losses``."""
        hidden = self.hidden_states(ids, attention_mask=attention_mask)
        return self._cross_entropy(hidden, _counted(targets, attention_mask), reduction)

    def losses(
        self,
        ids: Tensor,
        targets: Tensor,
        attention_mask: Tensor | None = None,
        *,
        reduction: Reduction = "mean",
    ) -> tuple[Tensor, list[Tensor]]:
        """The main loss and the loss of every MTP module, each a scalar fp32 in nats.

        Module k has only T - k targets, yet its sum is divided like the main one (TR eq. 24). A
        training objective adds the mean of the list, times lambda, to the main loss (TR eq. 25).

        Args:
            ids: ``[B, T]`` int64.
            targets: ``[B, T]`` int64, the token after each position; ``IGNORE_INDEX``: not counted.
                If none counts, every loss is 0 and so is its gradient.
            attention_mask: ``[B, T]`` as in ``forward``. Padding has nothing to predict; that the
                last token of a text does not predict padding either, the targets must say.
            reduction: ``"mean"`` over the counted targets, or ``"sum"``, for batches that are
                weighed by their targets afterwards.
        """
        hidden = self.hidden_states(ids, attention_mask=attention_mask)
        targets = _counted(targets, attention_mask)
        main = self._cross_entropy(hidden, targets, reduction)
        divisor = (targets != IGNORE_INDEX).sum().clamp(min=1) if reduction == "mean" else 1
        extra = []
        for k, ahead in enumerate(self._mtp_hidden(hidden, ids, attention_mask), start=1):
            mask = None if attention_mask is None else attention_mask[:, :-k]
            there = _counted(targets[:, k:], mask)
            extra.append(self._cross_entropy(ahead, there, "sum") / divisor)
        return main, extra

    def _cross_entropy(self, hidden: Tensor, targets: Tensor, reduction: Reduction) -> Tensor:
        """Of logits that nobody looks at afterwards, so that a kernel may overwrite them."""
        return cross_entropy(self.lm_head(hidden), targets, reduction=reduction, in_place=True)

    def mtp_logits(self, ids: Tensor, attention_mask: Tensor | None = None) -> list[Tensor]:
        """Logits of every MTP module: the k-th is ``[B, T - k, V]``, position i for token i+k+1."""
        hidden = self.hidden_states(ids, attention_mask=attention_mask)
        return [self.lm_head(h) for h in self._mtp_hidden(hidden, ids, attention_mask)]

    def _mtp_hidden(
        self, hidden: Tensor, ids: Tensor, attention_mask: Tensor | None
    ) -> list[Tensor]:
        """Chain the modules over ``hidden [B, T, D]`` of ``ids [B, T]``; the k-th gives T - k."""
        real = self._real_tokens(ids, None, attention_mask)
        if len(self.mtp) and real is not None:
            check_unbroken(real)
        found = []
        for k, module in enumerate(self.mtp, start=1):
            length = ids.shape[1] - k
            if length < 1:
                raise ValueError(
                    f"{ids.shape[1]} tokens are too few for MTP module {k}: it needs {k + 1}"
                )
            embedding = self._embed(ids[:, k:])
            cos, sin, padding = self._places(None if real is None else real[:, :length], 0, length)
            hidden = module(hidden[:, :length], embedding, cos, sin, **padding)
            found.append(hidden)
        return found

    def _real_tokens(
        self, ids: Tensor, cache: ModelCache | None, attention_mask: Tensor | None
    ) -> Tensor | None:
        """Which cached and new positions hold a real token, ``[B, S]`` bool; None: all."""
        cached = None if cache is None else cache.real
        if attention_mask is not None:
            return check_mask(attention_mask, ids, cached, 0 if cache is None else cache.length)
        return None if cached is None else F.pad(cached, (0, ids.shape[1]), value=True)

    def _places(
        self, real: Tensor | None, start: int, n_tokens: int
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Cosines and sines of ``n_tokens`` new positions, and what they see if some are masked."""
        if real is None:
            stop = start + n_tokens
            return self.rope_cos[start:stop], self.rope_sin[start:stop], {}
        places = count_positions(real)[:, None, -n_tokens:]
        return (
            self.rope_cos[places],
            self.rope_sin[places],
            {"visible": visible_keys(real, n_tokens)},
        )

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
        if not isinstance(ids, Tensor):
            raise TypeError(f"ids must be a tensor [B, T] of int64, got {type(ids).__name__}")
        if ids.ndim != 2:
            raise ValueError(f"ids must be [B, T], got shape {list(ids.shape)}")
        if ids.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"ids must be int64 token ids, got {ids.dtype}")
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


def _counted(targets: Tensor, attention_mask: Tensor | None) -> Tensor:
    """``targets`` without those of masked positions."""
    if attention_mask is None:
        return targets
    if targets.shape != attention_mask.shape:
        raise ValueError(
            f"targets {list(targets.shape)} do not fit attention_mask {list(attention_mask.shape)}"
        )
    return targets.masked_fill(~attention_mask.bool(), IGNORE_INDEX)
