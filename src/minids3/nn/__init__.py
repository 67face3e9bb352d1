"""Layers: modules whose parameters carry the names of Hugging Face checkpoints.

Letters of shapes, here and in ``model``, ``train`` and ``infer``::

    B   sequences                        N   tokens, all sequences in one list
    T   positions, those of queries      E   experts
    S   positions of keys so far         K   experts that a token goes to
    D   width of the model               F   width inside a feed-forward or an expert
    H   heads; Hk of keys and values     V   vocabulary
    d   channels of a head; dn without rotation, R with it, dv of values
    C   latent of keys and values; Cq of queries
    L   layers

In ``linear``, as in matrix products everywhere: M rows, N columns, K is summed.
"""

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
