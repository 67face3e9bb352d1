"""The gated feed-forward network."""

from __future__ import annotations

from torch import Tensor, nn

from minids3.ops.activation import swiglu
from minids3.ops.recompute import recomputable

__all__ = ["SwiGLU"]


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x [..., D]`` to ``[..., D]``, each position on its own."""
        return self.down_proj(recomputable(swiglu, self.gate_proj(x), self.up_proj(x)))
