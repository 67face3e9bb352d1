"""Layers: modules whose parameters carry the names of Hugging Face checkpoints."""

from minids3.nn.attention import GroupedQueryAttention
from minids3.nn.gate import Gate, Routing, record_routing
from minids3.nn.linear import Conversion, Float8Experts, Float8Linear, to_float8
from minids3.nn.mla import LatentAttention
from minids3.nn.mlp import SwiGLU
from minids3.nn.moe import Experts, MoE
from minids3.nn.norm import RMSNorm
from minids3.nn.rope import apply_rope

__all__ = [
    "Conversion",
    "Experts",
    "Float8Experts",
    "Float8Linear",
    "Gate",
    "GroupedQueryAttention",
    "LatentAttention",
    "MoE",
    "RMSNorm",
    "Routing",
    "SwiGLU",
    "apply_rope",
    "record_routing",
    "to_float8",
]
