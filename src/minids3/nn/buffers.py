"""Buffers that no cast may round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["ExactBuffers"]

_Module = TypeVar("_Module", bound="ExactBuffers")


class ExactBuffers(nn.Module):
    """A module some of whose buffers go where it goes, but stay fp32 whatever it is cast to.

    ``nn.Module`` casts buffers along with parameters, and ``model.bfloat16().float()`` brings the
    parameters' 8 bits back, but not what a bf16 table of cosines has lost: at position 3,000 that
    changes the logits by half. Nor could a bf16 bias of 0.5 grow by 0.001. What a layer computes in
    bf16 may still be cast where it is used.

    A subclass names the buffers in ``exact_buffers`` and registers them in ``reset_exact_buffers``,
    which is called again where there are no values to keep: after ``to_empty`` of a module that was
    built on the meta device.
    """

    exact_buffers: ClassVar[tuple[str, ...]] = ()

    def reset_exact_buffers(self) -> None:
        """Register every exact buffer with its first values, fp32."""
        raise NotImplementedError

    def _apply(self: _Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Module:
        """What every cast and move calls: see to it that ``fn`` only moves the exact buffers."""
        kept = {name: self.get_buffer(name) for name in self.exact_buffers}
        super()._apply(fn, recurse)
        devices = {name: self.get_buffer(name).device for name in kept}
        if any(kept[name].is_meta and device.type != "meta" for name, device in devices.items()):
            self.reset_exact_buffers()
            kept = {name: self.get_buffer(name) for name in self.exact_buffers}
        for name, buffer in kept.items():
            self._buffers[name] = buffer.to(devices[name])
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        """Load as ever; a state that is assigned instead of copied brings its own dtype."""
        super()._load_from_state_dict(*args)
        for name in self.exact_buffers:
            self._buffers[name] = self.get_buffer(name).to(torch.float32)
