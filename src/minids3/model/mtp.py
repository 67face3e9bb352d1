"""Multi-token prediction: a short chain of modules after the last layer (TR section 2.2).

Module k reads the hidden vector of position i from the one before it and the embedding of token
i+k, and predicts token i+k+1. So each module sees everything its prediction may depend on, and no
more: the causal chain stays whole. Embedding and output head are the main model's; the norms, the
projection and the block are the module's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from minids3.config import ModelConfig
from minids3.model.block import Block
from minids3.nn import RMSNorm
from minids3.nn.mla import LatentLayerCache

if TYPE_CHECKING:
    from minids3.model.transformer import Transformer

__all__ = ["MTPModule", "draft_agreement"]


class MTPModule(nn.Module):
    """One module of depth k (1-based); its block is counted as layer ``num_hidden_layers + k - 1``.

    Two choices where the sources disagree, both those under which the released weights work: the
    projection takes ``[embedding | hidden]``, the reverse of TR eq. 21, and the hidden vector comes
    after the final norm [HF-mtp-order] [HF-mtp-norm].
    """

    def __init__(self, cfg: ModelConfig, depth: int) -> None:
        super().__init__()
        self.enorm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.hnorm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.eh_proj = nn.Linear(2 * cfg.hidden_size, cfg.hidden_size, bias=False)
        self.block = Block(cfg, cfg.num_hidden_layers + depth - 1)
        self.norm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)

    def forward(
        self,
        hidden: Tensor,
        embedding: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: LatentLayerCache | None = None,
        visible: Tensor | None = None,
    ) -> Tensor:
        """The module's hidden vectors, after its own norm: ready for the shared head.

        Args:
            hidden: ``[B, T, D]``, normed output of the module before, or of the main model.
            embedding: ``[B, T, D]``, of the token k places further on.
            cos: ``[T, R // 2]``, or ``[B, 1, T, R // 2]`` if rows differ.
            sin: as ``cos``.
            cache: of the module's own attention.
            visible: ``[B, 1, T, S]`` bool, the keys that each query may see; default: all up to it.

        Returns:
            ``[B, T, D]``, which is also what the next module reads.
        """
        joined = torch.cat((self.enorm(embedding), self.hnorm(hidden)), -1)
        return self.norm(self.block(self.eh_proj(joined), cos, sin, cache, visible))


@torch.inference_mode()
def draft_agreement(model: Transformer, ids: Tensor) -> Tensor:
    """Where the MTP module's greedy draft of the second token is the main model's own choice.

    Both read the same text. The module at position i has seen tokens 0 .. i+1 (the last of them
    through its embedding) and names token i+2; the main model names it at position i+1.

    Args:
        model: with at least one MTP module.
        ids: ``[B, T]`` int64, T of 2 or more.

    Returns:
        ``[B, T - 1]`` bool; column i is about token i+2.

    Raises:
        ValueError: the model has no MTP module, or the text is too short.
    """
    if len(model.mtp) == 0:
        raise ValueError(
            "this model has no MTP module, so it drafts nothing: build it with "
            "num_nextn_predict_layers=1"
        )
    if ids.ndim != 2 or ids.shape[1] < 2:
        raise ValueError(f"ids must be [B, T] with T of 2 or more, got shape {list(ids.shape)}")
    draft = model.mtp_logits(ids)[0].argmax(-1)
    return draft == model(ids)[:, 1:].argmax(-1)
