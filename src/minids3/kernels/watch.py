"""Watch what an interpreted kernel reads and writes.

Triton's interpreter follows every pointer: a load past the end of a tensor gives whatever is there,
and a stray one ends the process. On a GPU neither is noticed, or much later. Here each address is
compared with the kernel's arguments before it is used.

The interpreter also runs programs one by one, in order, so that a later program repairs what an
earlier one wrote over. A GPU promises no order. So it is noted which program wrote an element, and
a second one that does is a fault, too.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["POISON", "MemoryFault", "Watch", "watching"]

# Bit patterns of NaNs that no arithmetic makes, by size in bytes.
POISON = {2: 0x7FD5, 4: 0x7FC5A5A5, 8: 0x7FF8A5A5A5A5A5A5}
# What idle lanes hold, in turn: numbers that no index is, of either sign; for bytes E4M3's NaN and
# its largest number.
_IDLE = {
    1: (0x7F, 0x7E),
    2: (0x5A5A, 0xA5A5),
    4: (0x5A5A5A5A, 0xA5A5A5A5),
    8: (0x5A5A5A5A5A5A5A5A, 0xA5A5A5A5A5A5A5A5),
}


class MemoryFault(Exception):
    """A kernel used memory that none of its arguments is, or that another program had written.

    It ran to its end all the same.
    """


@dataclass
class Watch:
    """What was seen: faults, and whether a load left lanes undefined."""

    faults: list[str] = field(default_factory=list)
    idle: bool = False

    def raise_faults(self) -> None:
        """Raise the first fault, if there is one."""
        if self.faults:
            raise MemoryFault(self.faults[0])


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


def _told(ranges: Sequence[_Range], addresses: Any, verb: str) -> str:
    """Say of what the addresses are out of bounds, and where, from the first to the last."""
    first = int(addresses[0])
    near = next((r for r in ranges if r.storage_low <= first < r.storage_high), None)
    if near is None:
        return f"it {verb} memory that belongs to none of its arguments: look at the index"
    here = addresses[(addresses >= near.storage_low) & (addresses < near.storage_high)]
    here = here[(here < near.low) == (first < near.low)]
    low, high = ((int(a) - near.low) // near.itemsize for a in (here.min(), here.max()))
    count, at = (near.high - near.low) // near.itemsize, f"{low} to {high}"
    side = "before the beginning" if low < 0 else "past the end"
    advice = {"reads": "mask the load, or", "writes": "mask the store, or"}[verb]
    advice = "look at the index" if low < 0 else f"{advice} look at the index"
    where = f"at {low if low == high else at} of {count} elements"
    return f"it {verb} {side} of {near.name}, {where}: {advice}"


class _Writers:
    """Which program wrote each element of a storage, and what happens if two did."""

    def __init__(self, ranges: Sequence[_Range]) -> None:
        self._ranges = {(r.storage_low, r.storage_high): r for r in reversed(ranges)}
        self._of: dict[tuple[int, int, int], Any] = {}  # storage and size: programs, from 1 on

    def note(self, addresses: Any, size: int, program: int) -> tuple[int, int, str] | None:
        """Note the addresses as written by ``program``; return a program before it, and where."""
        found = None
        for (low, high), r in self._ranges.items():
            here = addresses[(addresses >= low) & (addresses < high)]
            if not len(here):
                continue
            key = (low, high, size)
            if key not in self._of:
                self._of[key] = np.zeros((high - low) // size + 1, np.int32)
            writers, at = self._of[key], (here - low) // size
            before = writers[at]
            if found is None and (other := (before != 0) & (before != program + 1)).any():
                place = int(other.argmax())
                element = (int(here[place]) - r.low) // r.itemsize
                found = int(before[place]) - 1, element, r.name
            writers[at] = program + 1
        return found


@contextlib.contextmanager
def watching(tensors: Sequence[Any], names: Sequence[str]) -> Iterator[Watch]:
    """Watch loads and stores of kernels that run inside of the block, in the interpreter.

    Args:
        tensors: the arguments. A kernel may read the elements of those that are tensors, and write
            into their storages, whose margins the caller watches.
        names: of the arguments.

    Yields:
        What was seen. Of two programs that store into the same element the second is told (atomic
        operations may share one). A load out of bounds gives, and one that is masked and has no
        ``other=`` leaves, infinity (or a large number of either sign) in each lane concerned, which
        shows in a sum, a maximum (where a NaN would not) and a product with zero. A store out of
        bounds does nothing.
    """
    from triton.runtime.interpreter import TensorHandle, _get_np_dtype, interpreter_builder

    named = itertools.zip_longest(tensors, names, fillvalue="an argument")
    ranges = [_Range.of(t, name) for t, name in named if isinstance(t, Tensor)]
    seen, writers = Watch(), _Writers(ranges)

    def inside(addresses: Any, mask: Any, verb: str, size: int) -> Any:
        """Return ``mask`` without the lanes that are out of bounds, which are told."""
        at = addresses.astype(np.int64)
        good = np.zeros(at.shape, dtype=bool)
        for r in ranges:
            low, high = (r.low, r.high) if verb == "reads" else (r.storage_low, r.storage_high)
            good |= (at >= low) & (at + size <= high)
        mask = np.broadcast_to(mask, at.shape).astype(bool)
        if bad := (mask & ~good).any():
            seen.faults.append(_told(ranges, at[mask & ~good], verb))
        return mask & good if bad else mask

    def written(addresses: Any, mask: Any, size: int) -> None:
        """Note the program that writes there; a second one is told."""
        (x, y, z), (nx, ny, _) = interpreter_builder.grid_idx, interpreter_builder.grid_dim
        found = writers.note(addresses.astype(np.int64)[mask], size, x + nx * (y + ny * z))
        if found is not None:
            other, at, name = found
            here = _place(x + nx * (y + ny * z), nx, ny)
            seen.faults.append(
                f"programs {_place(other, nx, ny)} and {here} both write element {at} of "
                f"{name}: which comes last, nobody promises"
            )

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
        written(ptrs.data, real, size)
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
        # What idle lanes compute is nobody's business.
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            yield seen
    finally:
        for name in watched:
            own.pop(name, None)


def _place(program: int, nx: int, ny: int) -> str:
    """The number of a program, or its numbers if the grid has several axes."""
    x, y, z = program % nx, program // nx % ny, program // (nx * ny)
    return str(x) if ny == 1 and z == 0 else str((x, y) if z == 0 else (x, y, z))


def _undefined(shape: Any, dtype: Any) -> Any:
    """An array of numbers that show wherever they are used."""
    if dtype == np.bool_:
        return np.ones(shape, dtype)
    if dtype.kind == "f":
        return np.full(shape, np.inf, dtype)
    count = int(np.prod(shape))
    bits = np.resize(np.array(_IDLE[dtype.itemsize], f"u{dtype.itemsize}"), max(count, 1))
    return bits[:count].reshape(shape).view(dtype)
