"""Watch what an interpreted kernel reads and writes.

Triton's interpreter follows every pointer: a load past the end of a tensor gives whatever is there,
and a stray one ends the process. On a GPU neither is noticed, or much later. Here each address is
compared with the kernel's arguments before it is used.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["POISON", "OutOfBounds", "Watch", "watching"]

# Bit patterns of NaNs that no arithmetic makes, by size in bytes.
POISON = {2: 0x7FD5, 4: 0x7FC5A5A5, 8: 0x7FF8A5A5A5A5A5A5}
# What idle lanes hold: whole numbers that no index is; for bytes E4M3's NaN and its largest number.
_IDLE = {1: (0x7F, 0x7E), 2: (0x5A5A,), 4: (0x5A5A5A5A,), 8: (0x5A5A5A5A5A5A5A5A,)}


class OutOfBounds(Exception):
    """A kernel used memory that none of its arguments is. It ran to its end all the same."""


@dataclass
class Watch:
    """What was seen: accesses out of bounds, and whether a load left lanes undefined."""

    faults: list[str] = field(default_factory=list)
    idle: bool = False

    def raise_faults(self) -> None:
        """Raise the first fault, if there is one."""
        if self.faults:
            raise OutOfBounds(self.faults[0])


@dataclass(frozen=True)
class _Range:
    name: str
    itemsize: int
    low: int
    high: int  # what may be read
    storage_low: int
    storage_high: int  # what may be written without harm; who looks at it finds it there

    @classmethod
    def of(cls, t: Tensor, name: str) -> _Range:
        extent = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
        low, size = t.data_ptr(), t.element_size()
        storage = t.untyped_storage()
        begin = storage.data_ptr()
        high = low + (extent if t.numel() else 0) * size
        return cls(name, size, low, high, begin, begin + storage.nbytes())


def _told(ranges: Sequence[_Range], address: int, verb: str) -> str:
    near = next((r for r in ranges if r.storage_low <= address < r.storage_high), None)
    advice = {"reads": "mask the load", "writes": "mask the store"}[verb]
    if near is None:
        return f"it {verb} memory that belongs to none of its arguments: look at the index"
    count, at = (near.high - near.low) // near.itemsize, (address - near.low) // near.itemsize
    side = "before the beginning" if at < 0 else "past the end"
    return f"it {verb} {side} of {near.name}, at {at} of {count} elements: {advice}"


@contextlib.contextmanager
def watching(tensors: Sequence[Any], names: Sequence[str]) -> Iterator[Watch]:
    """Watch loads and stores of kernels that run inside of the block, in the interpreter.

    Args:
        tensors: the arguments. A kernel may read the elements of those that are tensors, and write
            into their storages, whose margins the caller watches.
        names: of the arguments.

    Yields:
        What was seen. A load out of bounds gives, and one that is masked and has no ``other=``
        leaves, infinity (or a large number) in each lane concerned, which shows in a sum, a maximum
        (where a NaN would not) and a product with zero. A store out of bounds does nothing.
    """
    from triton.runtime.interpreter import TensorHandle, _get_np_dtype, interpreter_builder

    named = itertools.zip_longest(tensors, names, fillvalue="an argument")
    ranges = [_Range.of(t, name) for t, name in named if isinstance(t, Tensor)]
    seen = Watch()

    def inside(addresses: Any, mask: Any, verb: str, size: int) -> Any:
        """Return ``mask`` without the lanes that are out of bounds, which are told."""
        at = addresses.astype(np.int64)
        good = np.zeros(at.shape, dtype=bool)
        for r in ranges:
            low, high = (r.low, r.high) if verb == "reads" else (r.storage_low, r.storage_high)
            good |= (at >= low) & (at + size <= high)
        mask = np.broadcast_to(mask, at.shape).astype(bool)
        if bad := (mask & ~good).any():
            seen.faults.append(_told(ranges, int(at[mask & ~good].flat[0]), verb))
        return mask & good if bad else mask

    def load(ptrs: Any, mask: Any, other: Any, *rest: Any, **more: Any) -> Any:
        kind = ptrs.get_element_ty()
        plain = np.dtype(_get_np_dtype(kind))
        wanted = np.broadcast_to(mask.data, ptrs.data.shape).astype(bool)
        # For a single number the interpreter drops other=0 itself, so nothing can be said there.
        if other is None and ptrs.data.size > 1:
            other = TensorHandle(_undefined(ptrs.data.shape, plain), kind)
            seen.idle |= not bool(wanted.all())
        real = inside(ptrs.data, wanted, "reads", plain.itemsize)
        lost = wanted & ~real
        if lost.any():
            filler = 0 if other is None else other.data
            filled = np.where(lost, _undefined(real.shape, plain), filler).astype(plain)
            other = TensorHandle(np.ascontiguousarray(filled), kind)
        return original_load(ptrs, TensorHandle(real, mask.dtype), other, *rest, **more)

    def store(ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        size = np.dtype(_get_np_dtype(ptrs.get_element_ty())).itemsize
        real = inside(ptrs.data, mask.data, "writes", size)
        return original_store(ptrs, value, TensorHandle(real, mask.dtype), *rest)

    def rmw(operation: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        size = np.dtype(_get_np_dtype(ptrs.get_element_ty())).itemsize
        real = inside(ptrs.data, mask.data, "writes", size)
        return original_rmw(operation, ptrs, value, TensorHandle(real, mask.dtype), *rest)

    def cas(ptrs: Any, compared: Any, value: Any, *rest: Any) -> Any:
        size = np.dtype(_get_np_dtype(ptrs.get_element_ty())).itemsize
        real = inside(ptrs.data, np.ones(ptrs.data.shape, dtype=bool), "writes", size)
        if real.all():
            return original_cas(ptrs, compared, value, *rest)
        old = np.zeros(real.shape, compared.data.dtype)  # it knows no mask: the lanes inside alone
        if real.any():
            lanes = [
                TensorHandle(
                    np.ascontiguousarray(np.broadcast_to(h.data, real.shape)[real]), h.dtype
                )
                for h in (ptrs, compared, value)
            ]
            old[real] = original_cas(*lanes, *rest).data
        return TensorHandle(old, compared.dtype.scalar)

    original_load = interpreter_builder.create_masked_load
    original_store = interpreter_builder.create_masked_store
    original_rmw = interpreter_builder.create_atomic_rmw
    original_cas = interpreter_builder.create_atomic_cas
    own = vars(interpreter_builder)
    watched = {
        "create_masked_load": load,
        "create_masked_store": store,
        "create_atomic_rmw": rmw,
        "create_atomic_cas": cas,
    }
    own.update(watched)
    try:
        with np.errstate(invalid="ignore", over="ignore"):  # what idle lanes compute is nobody's
            yield seen
    finally:
        for name in watched:
            own.pop(name, None)


def _undefined(shape: Any, dtype: Any) -> Any:
    """An array of numbers that show wherever they are used."""
    if dtype == np.bool_:
        return np.ones(shape, dtype)
    if dtype.kind == "f":
        return np.full(shape, np.inf, dtype)
    count = int(np.prod(shape))
    bits = np.resize(np.array(_IDLE[dtype.itemsize], f"u{dtype.itemsize}"), max(count, 1))
    return bits[:count].reshape(shape).view(dtype)
