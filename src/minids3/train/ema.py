"""An exponential moving average of the weights, kept beside the model (TR section 3.2.3).

V3 holds it in the CPU's memory and updates it while the next step runs, so that it costs the GPU
nothing; its evaluation tells early what the model will be once the learning rate has decayed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

__all__ = ["WeightAverage"]


class WeightAverage:
    """Averaged parameters in fp32 on the CPU; buffers such as the experts' biases are the model's.

    After each step ``average = d * average + (1 - d) * weight`` with ``d = min(decay, (1 + n) / (10
    + n))`` after n updates: an average of few steps should not remember the random start.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay={decay!r} must lie between 0 and 1")
        self.decay, self.updates = decay, 0
        self.tensors: dict[str, Tensor] = {
            name: p.detach().to("cpu", torch.float32, copy=True)
            for name, p in model.named_parameters()
        }

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights of one more step."""
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        fresh = [p.detach().to("cpu", torch.float32) for p in model.parameters()]
        torch._foreach_lerp_(list(self.tensors.values()), fresh, 1 - keep)
        self.updates += 1

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Let ``model`` have the averaged weights while the block runs."""
        own = {name: p.detach().clone() for name, p in model.named_parameters()}
        self._put(model, self.tensors)
        try:
            yield
        finally:
            self._put(model, own)

    @staticmethod
    @torch.no_grad()
    def _put(model: nn.Module, tensors: dict[str, Tensor]) -> None:
        for name, p in model.named_parameters():
            p.copy_(tensors[name])
