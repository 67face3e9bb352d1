"""DeepSeekMoE: many small routed experts, and shared ones that see every token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minids3.config import ModelConfig
from minids3.nn.gate import Gate
from minids3.nn.mlp import SwiGLU
from minids3.ops.activation import swiglu
from minids3.ops.moe import combine, dispatch, grouped_mm, plan_dispatch
from minids3.ops.recompute import recomputable

__all__ = ["Experts", "MoE"]


class Experts(nn.Module):
    """The routed experts of a layer, their matrices stacked.

    gate_up_proj: ``[E, 2F, D]``, gate rows first; down_proj: ``[E, D, F]``. One tensor per kind and
    not one per expert: a grouped product needs them together, and so does an optimizer that should
    not loop over 256 small ones.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        experts, dim, hidden = cfg.n_routed_experts, cfg.hidden_size, cfg.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * hidden, dim))
        self.down_proj = nn.Parameter(torch.empty(experts, dim, hidden))
        for weight in (self.gate_up_proj, self.down_proj):
            nn.init.normal_(weight, std=cfg.initializer_range)

    def forward(self, x: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        """Sum of the chosen experts' outputs by weight.

        Args:
            x: ``[N, D]``.
            indices: ``[N, K]`` int64.
            weights: ``[N, K]``.

        Returns:
            ``[N, D]``. No token is dropped, however full an expert is.
        """
        plan = plan_dispatch(indices, self.gate_up_proj.shape[0])
        rows = dispatch(x, plan)
        gate_up = self.product(rows, self.gate_up_proj, plan.counts)
        rows = self.product(recomputable(swiglu, gate_up), self.down_proj, plan.counts)
        return combine(rows, weights, plan)

    def product(self, x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
        """Multiply each expert's rows of ``x [M, in]`` by its own matrix of ``[E, out, in]``.

        In the dtype of ``x``, as linear layers under autocast: fp32 weights are masters then.
        """
        return grouped_mm(x, weight.to(x.dtype), counts)

    def extra_repr(self) -> str:
        """Sizes for ``print(model)``."""
        experts, dim, hidden = self.down_proj.shape
        return f"experts={experts}, dim={dim}, hidden={hidden}"


class MoE(nn.Module):
    """Routed experts by the gate's choice, plus the shared experts, which are always on.

    Dai et al. 2024, arXiv 2401.06066; TR section 2.1.2. Shared experts stand side by side, so they
    are one SwiGLU of their joint width.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.gate = Gate(cfg)
        self.experts = Experts(cfg)
        shared = cfg.n_shared_experts * cfg.moe_intermediate_size
        self.shared_experts = SwiGLU(cfg.hidden_size, shared) if shared else None

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x [..., D]`` to ``[..., D]``, each vector on its own."""
        routing = self.gate(x)
        out = self.experts(
            x.reshape(-1, x.shape[-1]),
            routing.indices.flatten(0, -2),
            routing.weights.flatten(0, -2),
        ).view_as(x)
        return out if self.shared_experts is None else out + self.shared_experts(x)
