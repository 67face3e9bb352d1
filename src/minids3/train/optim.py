"""The optimizer: AdamW with weight decay on matrices only, its moments in fp32 or BF16."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

__all__ = ["Bf16AdamW", "build_optimizer"]


def build_optimizer(
    model: nn.Module,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    weight_decay: float = 0.1,
    eps: float = 1e-8,
    moments: Literal["fp32", "bf16"] = "fp32",
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), defaults of TR section 4.2.

    Matrices decay towards zero. Norm scales do not: they start at one, and pulling a scale to zero
    switches its channel off.

    Args:
        model: its parameters that require a gradient are optimised.
        lr: learning rate, until a schedule sets another.
        betas: decay rates of the two moments.
        weight_decay: decoupled, multiplied by the learning rate at each step.
        eps: added to the root of the second moment.
        moments: ``"bf16"`` stores them in half the bytes, as DeepSeek-V3 does (``Bf16AdamW``).

    Raises:
        ValueError: ``moments`` is neither.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    # What FSDP2 shards and what it leaves whole cannot be updated by one call.
    for group in list(groups):
        sharded = [p for p in group["params"] if hasattr(p, "to_local")]
        if sharded:
            group["params"] = [p for p in group["params"] if not hasattr(p, "to_local")]
            groups.append({**group, "params": sharded})
    if moments == "bf16":
        return Bf16AdamW(groups, lr=lr, betas=betas, eps=eps)
    if moments != "fp32":
        raise ValueError(f"moments={moments!r} is unknown; choose fp32 or bf16")
    fused = all(p.device.type in ("cuda", "cpu") for p in trained)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=fused)


class Bf16AdamW(torch.optim.Optimizer):
    """AdamW whose two moments are stored in BF16; weights and all arithmetic stay as they are.

    TR section 3.3.3 stores both moments so, and keeps master weights and gradients in fp32. Each
    step reads the moments into fp32, updates them, uses those for the weight, and rounds them to
    the nearest BF16 to store. With ``beta2 = 0.95`` a moment moves by a twentieth of what is new,
    far above BF16's step of 1/256; with 0.999 rounding would swallow most updates of the second.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        """Hold ``params`` (tensors or groups of them) and the settings of ``torch.optim.AdamW``.

        Raises ``ValueError`` for a setting that AdamW cannot have.
        """
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"{name}={value} must be 0 or more")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas={betas} must lie in [0, 1)")
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every parameter that has a gradient; returns what ``closure`` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group)
        return loss

    def _update(self, p: torch.Tensor, grad: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(p, dtype=torch.bfloat16)
            state["exp_avg_sq"] = torch.zeros_like(p, dtype=torch.bfloat16)
        state["step"] += 1
        step, (beta1, beta2) = float(state["step"]), group["betas"]
        grad = grad.float()
        mean = state["exp_avg"].float().lerp_(grad, 1 - beta1)
        square = state["exp_avg_sq"].float().mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        state["exp_avg"].copy_(mean)
        state["exp_avg_sq"].copy_(square)
        root = (square / (1 - beta2**step)).sqrt_().add_(group["eps"])
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.addcdiv_(mean, root, value=-group["lr"] / (1 - beta1**step))
