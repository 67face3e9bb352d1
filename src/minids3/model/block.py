"""One layer of the decoder, its parts chosen by the configuration."""

from __future__ import annotations

from torch import Tensor, nn

from minids3.config import ModelConfig
from minids3.nn import GroupedQueryAttention, LatentAttention, MoE, RMSNorm, SwiGLU
from minids3.nn.attention import LayerCache
from minids3.nn.mla import LatentLayerCache

__all__ = ["Block"]


class Block(nn.Module):
    """Attention and feed-forward, each after a norm and beside a residual::

        x = x + attention(norm(x));   x = x + feed_forward(norm(x))

    Attention is grouped-query or latent, the feed-forward dense or a mixture of experts.
    """

    def __init__(self, cfg: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        attention = LatentAttention if cfg.attention == "mla" else GroupedQueryAttention
        self.self_attn = attention(cfg, layer)
        self.post_attention_layernorm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        if cfg.is_moe_layer(layer):
            self.mlp: nn.Module = MoE(cfg)
        else:
            self.mlp = SwiGLU(cfg.hidden_size, cfg.intermediate_size)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: LayerCache | LatentLayerCache | None = None,
        visible: Tensor | None = None,
    ) -> Tensor:
        """Map ``x [B, T, D]`` to ``[B, T, D]``; the rest is what attention takes."""
        # A reader's own attention (notebook 03) need not know of padding.
        padding = {} if visible is None else {"visible": visible}
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache, **padding)
        return x + self.mlp(self.post_attention_layernorm(x))
