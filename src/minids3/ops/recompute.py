"""Activation recomputation: do not keep for the backward pass what is cheap to compute again.

TR section 3.2.3 recomputes RMSNorm, MLA's up-projections and SwiGLU's output. Checkpointing such a
part alone would save nothing: its *output* is the input of a matrix product, which keeps it. So an
output of a recomputed part is recognised wherever somebody wants to keep it or a view of it, and a
note how to make it again is kept instead. In the backward pass the first who asks has it made, and
the part's own gradient then uses the same copy: every part is computed twice, not three times.

Numbers do not change: the same operations run on the same inputs.
"""

from __future__ import annotations

import contextlib
import contextvars
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.multiprocessing.reductions import StorageWeakRef

__all__ = ["recomputable", "recomputation"]


class _Part:
    """A function and its inputs; ``graph`` runs it again, once, with a graph of its own."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn
        self.node: Callable[[], Any] = lambda: None
        self.again: tuple[list[Any], list[Tensor]] | None = None
        self.autocast = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")

    def graph(self) -> tuple[list[Any], list[Tensor]]:
        """Inputs, cut off from the graph they came from, and outputs computed from them."""
        if self.again is None:
            node = self.node()
            kept = iter(node.saved_tensors)
            inputs = [_leaf(next(kept)) if v is _KEPT else v for v in node.plain]
            enabled, dtype = self.autocast
            with torch.enable_grad(), torch.autocast("cuda", dtype, enabled=enabled):
                self.again = inputs, list(_as_tuple(self.fn(*inputs)))
        return self.again


class _Note(NamedTuple):
    """Instead of a kept tensor: whose output it is, and which view of it."""

    part: _Part
    index: int
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class _Recomputed(torch.autograd.Function):
    """Runs a part without a graph; keeps its inputs alone."""

    @staticmethod
    def forward(ctx: Any, part: _Part, *inputs: Any) -> Any:
        """The part's outputs."""
        ctx.part, part.node = part, weakref.ref(ctx)
        ctx.plain = [_KEPT if isinstance(value, Tensor) else value for value in inputs]
        ctx.save_for_backward(*(value for value in inputs if isinstance(value, Tensor)))
        return part.fn(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        """Gradients of the inputs; those of parameters inside the part are added to them."""
        inputs, outputs = ctx.part.graph()
        ctx.part.again = None
        pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None]
        pairs = [(o, g) for o, g in pairs if o.requires_grad]
        torch.autograd.backward([o for o, _ in pairs], [g for _, g in pairs])
        return None, *(v.grad if isinstance(v, Tensor) else None for v in inputs)


_KEPT = object()  # stands where an input is a tensor, which the node keeps
_OUTPUTS: contextvars.ContextVar[dict[int, tuple[StorageWeakRef, _Part, int]] | None] = (
    contextvars.ContextVar("outputs", default=None)
)


def recomputable(fn: Callable[..., Any], *inputs: Any) -> Any:
    """``fn(*inputs)``, whose inner values and outputs need not be kept inside ``recomputation``.

    Args:
        fn: deterministic, without randomness or side effects; returns a tensor or a tuple of them,
            each with memory of its own. Parameters it uses get their gradients as usual.
        inputs: tensors that may need a gradient, and anything else.
    """
    outputs = _OUTPUTS.get()
    if outputs is None or not torch.is_grad_enabled():
        return fn(*inputs)
    part = _Part(fn)
    found = _Recomputed.apply(part, *inputs)
    for index, tensor in enumerate(_as_tuple(found)):
        storage = tensor.untyped_storage()
        outputs[storage._cdata] = (StorageWeakRef(storage), part, index)
    return found


@contextlib.contextmanager
def recomputation() -> Iterator[None]:
    """Forget, for graphs built in the block, what ``recomputable`` can make again."""
    outputs: dict[int, tuple[StorageWeakRef, _Part, int]] = {}

    def pack(tensor: Tensor) -> Tensor | _Note:
        entry = outputs.get(tensor.untyped_storage()._cdata)
        if entry is None or entry[0].expired():
            return tensor
        _, part, index = entry
        return _Note(part, index, tensor.shape, tensor.stride(), tensor.storage_offset())

    def unpack(kept: Tensor | _Note) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        again = kept.part.graph()[1][kept.index].detach()
        return again.as_strided(kept.size, kept.stride, kept.offset)

    token = _OUTPUTS.set(outputs)
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield
    finally:
        _OUTPUTS.reset(token)


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.requires_grad)


def _as_tuple(found: Any) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)
