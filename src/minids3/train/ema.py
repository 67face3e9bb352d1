"""An exponential moving average of the weights, kept beside the model (TR section 3.2.3).

V3 holds it in the CPU's memory and updates it while the next step runs, so that it costs the GPU
nothing; its evaluation tells early what the model will be once the learning rate has decayed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

__all__ = ["WeightAverage", "local_part"]


def local_part(tensor: Tensor) -> Tensor:
    """What this process has of a tensor: its shard, or all of it."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


class WeightAverage:
    """Averaged parameters in fp32 on the CPU; buffers such as the experts' biases are the model's.

    After each step ``average = d * average + (1 - d) * weight`` with ``d = min(decay, (1 + n) / (10
    + n))`` after n updates: an average of few steps should not remember the random start.

    A GPU is not waited for: ``update`` only starts copying the weights, and they are averaged when
    the next update comes, or when somebody asks.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay={decay!r} must lie between 0 and 1")
        self.decay, self.updates = decay, 0
        self._average = {
            name: local_part(p.detach()).to("cpu", torch.float32, copy=True)
            for name, p in model.named_parameters()
        }
        self._fresh = [
            torch.empty_like(local_part(p), device="cpu", pin_memory=p.is_cuda)
            for p in model.parameters()
        ]
        self._copied: torch.cuda.Event | None = None
        self._waiting = False

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights of one more step."""
        self._take_in()
        for fresh, p in zip(self._fresh, model.parameters(), strict=True):
            fresh.copy_(local_part(p), non_blocking=True)
        if any(p.is_cuda for p in model.parameters()):
            self._copied = torch.cuda.Event()
            self._copied.record()
        self._waiting = True

    @torch.no_grad()
    def _take_in(self) -> None:
        """Average the weights that were copied last, if they still wait."""
        if not self._waiting:
            return
        if self._copied is not None:
            self._copied.synchronize()
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        fresh = [t.float() for t in self._fresh]
        torch._foreach_lerp_(list(self._average.values()), fresh, 1 - keep)
        self.updates += 1
        self._waiting = False

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The average by parameter name, all steps so far taken in."""
        self._take_in()
        return self._average

    def restore(self, tensors: dict[str, Tensor], updates: int) -> None:
        """Go on from an average of ``updates`` steps."""
        self._average = {name: tensors[name].clone() for name in self._average}
        self.updates, self._waiting = updates, False

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Let ``model`` have the averaged weights while the block runs."""
        own = {name: local_part(p).detach().clone() for name, p in model.named_parameters()}
        self._put(model, self.tensors)
        try:
            yield
        finally:
            self._put(model, own)

    @staticmethod
    @torch.no_grad()
    def _put(model: nn.Module, tensors: dict[str, Tensor]) -> None:
        for name, p in model.named_parameters():
            local_part(p).copy_(tensors[name])
