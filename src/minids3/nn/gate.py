"""The gate: which experts a token goes to, and with what weight."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minids3.config import ModelConfig
from minids3.nn.buffers import ExactBuffers

__all__ = ["Gate", "Routing", "record_routing"]


class Routing(NamedTuple):
    """What a gate decided.

    weights: ``[..., K]`` fp32, factors on the chosen experts' outputs.
    indices: ``[..., K]`` int64, the chosen experts.
    scores: ``[..., E]`` fp32, every expert's score before the bias, with its graph.
    """

    weights: Tensor
    indices: Tensor
    scores: Tensor


class Gate(ExactBuffers):
    """Score all experts, choose with the bias, weigh without it (TR eq. 12-16).

    The bias is a buffer and stays fp32 whatever the model is cast to: no gradient trains it, the
    load does (``train.balance``), in steps of 0.001 that bf16 could not add to 0.5. Scores are
    computed in fp32 for the same reason: choosing is a comparison of close numbers.
    """

    exact_buffers: ClassVar[tuple[str, ...]] = ("expert_bias",)
    expert_bias: Tensor

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.top_k = cfg.num_experts_per_tok
        self.n_group, self.topk_group = cfg.n_group, cfg.topk_group
        self.scoring_func = cfg.scoring_func
        self.normalize, self.route_scale = cfg.norm_topk_prob, cfg.routed_scaling_factor
        self.weight = nn.Parameter(torch.empty(cfg.n_routed_experts, cfg.hidden_size))
        self.reset_exact_buffers()
        nn.init.normal_(self.weight, std=cfg.initializer_range)

    def reset_exact_buffers(self) -> None:
        """Start with no preference among the experts."""
        zeros = torch.zeros(self.weight.shape[0], dtype=torch.float32)
        self.register_buffer("expert_bias", zeros)

    def forward(self, x: Tensor) -> Routing:
        """Route ``x [..., D]``: K experts and weights for each vector."""
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.float(), self.weight.float())
        return self.decide(logits)

    def decide(self, logits: Tensor) -> Routing:
        """Route vectors by their ``logits [..., E]``, which are to be fp32."""
        scores = logits.sigmoid() if self.scoring_func == "sigmoid" else logits.softmax(-1)
        indices = self.choose(scores)
        weights = scores.gather(-1, indices)
        if self.normalize:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return Routing(weights * self.route_scale, indices, scores)

    @torch.no_grad()
    def choose(self, scores: Tensor) -> Tensor:
        """Indices ``[..., K]`` of the best biased scores within the best groups."""
        choice = scores + self.expert_bias
        if self.topk_group < self.n_group:
            groups = choice.unflatten(-1, (self.n_group, -1))
            best = groups.topk(min(2, groups.shape[-1]), -1).values.sum(-1)
            kept = torch.zeros_like(best, dtype=torch.bool)
            kept.scatter_(-1, best.topk(self.topk_group, -1).indices, True)
            choice = groups.masked_fill(~kept[..., None], -torch.inf).flatten(-2)
        return choice.topk(self.top_k, -1).indices

    def extra_repr(self) -> str:
        """Sizes for ``print(model)``."""
        experts, dim = self.weight.shape
        groups = f", groups={self.topk_group} of {self.n_group}" if self.n_group > 1 else ""
        return f"dim={dim}, experts={self.top_k} of {experts}{groups}, {self.scoring_func}"


@contextlib.contextmanager
def record_routing(model: nn.Module) -> Iterator[dict[str, Routing]]:
    """Collect what every gate below ``model`` decides while the block runs.

    Yields a dictionary from the gate's name (``"layers.1.mlp.gate"``) to its latest ``Routing``, in
    the order the gates ran. The scores keep their graph, so a loss can be made of them.
    """
    log: dict[str, Routing] = {}
    handles = []

    def hook(name: str) -> Callable[..., None]:
        def remember(_module: nn.Module, _inputs: Any, routing: Routing) -> None:
            log[name] = routing

        return remember

    for name, module in model.named_modules():
        if isinstance(module, Gate):
            handles.append(module.register_forward_hook(hook(name)))
    try:
        yield log
    finally:
        for handle in handles:
            handle.remove()
