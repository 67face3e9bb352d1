"""Layers: modules whose parameters carry the names of Hugging Face checkpoints."""

from minids3.nn.attention import GroupedQueryAttention
from minids3.nn.mlp import SwiGLU
from minids3.nn.norm import RMSNorm
from minids3.nn.rope import apply_rope

__all__ = ["GroupedQueryAttention", "RMSNorm", "SwiGLU", "apply_rope"]
