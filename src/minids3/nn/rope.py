"""Rotary position embedding as a model's configuration wants it; ``ops.rope`` turns the pairs."""

from __future__ import annotations

from torch import Tensor

from minids3.config import ModelConfig
from minids3.ops.rope import apply_rope
from minids3.ref.rope import rope_tables, yarn_frequencies, yarn_mscale

__all__ = ["apply_rope", "attention_scale", "model_rope_tables"]


def model_rope_tables(cfg: ModelConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines of all positions of a model: ``[max_position_embeddings, R // 2]`` each.

    YaRN also multiplies them by ``attention_factor``: by default the ratio of its two mscales. That
    is 1 in the released model, where the whole correction is in ``attention_scale``.
    """
    dim, positions = cfg.rope_dim, cfg.max_position_embeddings
    if not cfg.is_yarn:
        return rope_tables(positions, dim, cfg.rope_theta, device="cpu")
    frequencies = yarn_frequencies(
        dim,
        cfg.rope_theta,
        cfg.rope_factor,
        cfg.original_max_position_embeddings,
        cfg.beta_fast,
        cfg.beta_slow,
        cfg.rope_truncate,
    )
    cos, sin = rope_tables(positions, dim, device="cpu", frequencies=frequencies)
    if cfg.attention_factor is not None:
        scale = cfg.attention_factor
    elif cfg.mscale and cfg.mscale_all_dim:
        scale = yarn_mscale(cfg.rope_factor, cfg.mscale)
        scale /= yarn_mscale(cfg.rope_factor, cfg.mscale_all_dim)
    else:
        scale = yarn_mscale(cfg.rope_factor)
    return cos * scale, sin * scale


def attention_scale(cfg: ModelConfig) -> float:
    """Factor on the scores: head width to the -1/2, under YaRN times mscale squared.

    0.07217 for V3, 0.13523 with its YaRN [C-scale]. As in Hugging Face's code the factor
    belongs to the configuration; the released code adds it only beyond 4,096 positions.
    """
    scale = cfg.qk_head_dim**-0.5
    if cfg.attention == "mla" and cfg.rope_factor > 1 and cfg.mscale_all_dim:
        scale *= yarn_mscale(cfg.rope_factor, cfg.mscale_all_dim) ** 2
    return scale
