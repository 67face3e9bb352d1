"""Running a reader's Triton kernel, with outputs in guarded memory.

A kernel that writes past its output does not raise: it changes whatever lies there. So a check
gives it outputs in the middle of a larger buffer, poisoned all over, and looks at the margins
afterwards. A number that was never written still shows the poison, too, which is a NaN that no
arithmetic makes. Inputs have margins as well, and in the interpreter every address is compared with
the arguments before it is used (``kernels.watch``), so that a stray pointer ends the check and not
the notebook; nor may two programs write one element. Where there is a GPU, the interpreter sees
each launch first (``first_look``).
"""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from minids3.course.first_look import Look, first_look
from minids3.kernels.watch import POISON, MemoryFault, watching

__all__ = ["Guarded", "is_library", "launch", "library_of", "poisoned", "unwritten"]

_MARGIN = 1 << 15  # elements on each side; catches any overrun of less than that
_INPUT_MARGIN = 1 << 12


def poisoned(count: int, dtype: torch.dtype, fill: float | None = None) -> Tensor:
    """Return ``count`` numbers of ``fill``, by default of a NaN of its own (or 85)."""
    if fill is None and dtype.is_floating_point and dtype.itemsize > 1:
        bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
        return torch.full((count,), POISON[dtype.itemsize], dtype=bits).view(dtype)
    fill = (float("nan") if dtype.is_floating_point else 85) if fill is None else fill
    return torch.full((count,), fill, dtype=dtype)


def unwritten(t: Any) -> bool:
    """Whether a tensor holds a poisoned number, which no kernel wrote (8-bit ones are not seen)."""
    if not isinstance(t, Tensor) or t.dtype.itemsize not in POISON or not t.is_floating_point():
        return False
    return bool(_holds(t, poisoned(1, t.dtype)).any())


def _holds(t: Tensor, poison: Tensor) -> Tensor:
    """Which numbers of ``t``, flattened, have the bits of ``poison``."""
    numbers = t.contiguous().flatten()
    bits = numbers.view(torch.uint8).view(numbers.numel(), -1)
    return (bits == poison.view(torch.uint8)).all(1)


class Guarded:
    """A tensor ``view`` of some shape inside a buffer whose margins must not change."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, fill: float | None = None) -> None:
        self.buffer = poisoned(math.prod(shape) + 2 * _MARGIN, dtype, fill)
        self._poison = self.buffer[:1].clone()
        self.shape = tuple(shape)

    def view_of(self, buffer: Tensor) -> Tensor:
        """The part of a buffer of this layout that a kernel may write."""
        return buffer[_MARGIN : buffer.numel() - _MARGIN].view(self.shape)

    @property
    def view(self) -> Tensor:
        """What the kernel has written."""
        return self.view_of(self.buffer)

    def touched(self) -> Tensor:
        """Which elements of both margins, one after the other, hold the poison no more (int64)."""
        margins = torch.cat((self.buffer[:_MARGIN], self.buffer[self.buffer.numel() - _MARGIN :]))
        return (~self._poisoned(margins)).nonzero().flatten()

    def untouched(self) -> bool:
        """Whether both margins still hold the poison, bit for bit."""
        return self.touched().numel() == 0

    def written(self) -> bool:
        """Whether no number of the view holds the poison any more."""
        return not bool(self._poisoned(self.view).any())

    def strange(self) -> bool:
        """Whether the kernel wrote NaN or infinity into the view."""
        numbers = self.view.flatten()
        if not numbers.dtype.is_floating_point:
            return False
        return bool((~numbers.float().isfinite() & ~self._poisoned(numbers)).any())

    def _poisoned(self, t: Tensor) -> Tensor:
        return _holds(t, self._poison)

    def __repr__(self) -> str:
        return f"Guarded(shape={list(self.shape)}, dtype={self.buffer.dtype})"


def launch(
    fn: Callable[..., Any], grid: Sequence[int], args: Sequence[Any], constexprs: dict[str, Any]
) -> bool:
    """Run ``fn[grid](*args, **constexprs)``: on the GPU if there is one, else interpreted.

    Tensors stay on the CPU for the check; for a GPU they are copied there and back. An error of the
    interpreter is replaced by the one it wraps. On a GPU a kernel that used memory of others in the
    interpreter is not run, and one that left lanes undefined is judged by the interpreter's
    numbers: those lanes may hold anything, and the right numbers by luck.

    Returns:
        Whether a masked load left idle lanes undefined.

    Raises:
        MemoryFault: the kernel used memory of none of its arguments, or two of its programs wrote
            the same element; what it wrote is kept.
        NotImplementedError: it is still a stub.
    """
    from minids3.kernels.language import jit
    from minids3.kernels.launch import interpreted

    if getattr(fn, "is_placeholder", False):
        fn()  # says what to do
    kernel: Any = fn if hasattr(fn, "run") and hasattr(fn, "arg_names") else jit(fn)
    if not interpreted():
        look = first_look(kernel, grid, args, constexprs) or Look()
        if look.stub:
            raise NotImplementedError
        if not look.fault:
            _on_gpu(kernel, grid, args, constexprs)
        if look.fault or look.idle:
            look.copy_to([a.buffer if isinstance(a, Guarded) else a for a in args])
        if look.fault:
            raise MemoryFault(look.fault)
        return look.idle
    homes = {id(a): _with_margins(a) for a in args if isinstance(a, Tensor)}
    given = [a.view if isinstance(a, Guarded) else homes.get(id(a), a) for a in args]
    try:
        with watching(given, kernel.arg_names or ()) as seen:
            idle = kernel[tuple(grid)](*given, **constexprs)  # a grader's stand-in tells it
    except Exception as error:
        while type(error).__name__ == "InterpreterError" and error.__cause__ is not None:
            error = error.__cause__  # type: ignore[assignment]
        raise error from None
    finally:
        for a in args:
            if isinstance(a, Tensor):
                a.copy_(homes[id(a)])
    seen.raise_faults()
    return seen.idle or idle is True


def _with_margins(t: Tensor) -> Tensor:
    """Return a copy of ``t`` of the same strides, in the middle of a poisoned buffer."""
    extent = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    buffer = poisoned(max(extent, 1) + 2 * _INPUT_MARGIN, t.dtype)
    return buffer.as_strided(t.shape, t.stride(), _INPUT_MARGIN).copy_(t.detach())


def _on_gpu(
    kernel: Any, grid: Sequence[int], args: Sequence[Any], constexprs: dict[str, Any]
) -> None:
    if not torch.cuda.is_available():
        raise RuntimeError(
            "kernels run on a GPU or in the interpreter, and this process has neither: set "
            "TRITON_INTERPRET=1 before triton is imported (the set-up cell does)"
        )
    homes = [a.buffer if isinstance(a, Guarded) else a for a in args]
    there = [h.cuda() if isinstance(h, Tensor) else h for h in homes]
    given = [
        a.view_of(t) if isinstance(a, Guarded) else t for a, t in zip(args, there, strict=True)
    ]
    kernel[tuple(grid)](*given, **constexprs)
    torch.cuda.synchronize()
    for home, t in zip(homes, there, strict=True):
        if isinstance(home, Tensor):
            home.copy_(t)


def library_of(exercise: Any) -> Callable[..., Any]:
    """What a notebook goes on with when the reader's answer fails; kernels as kernels."""
    if not exercise.kernel:
        return exercise.library
    from minids3.kernels.language import jit

    return jit(exercise.library)


def _layers(fn: Any) -> list[Any]:
    """Return ``fn`` and what it wraps, layer by layer: partials, wrappers, methods, kernels."""
    layers: list[Any] = []
    while fn is not None and not any(fn is layer for layer in layers):
        layers.append(fn)
        if isinstance(fn, functools.partial):
            fn = fn.func
        elif isinstance(fn, types.MethodType):
            fn = fn.__func__
        else:
            space = getattr(fn, "__dict__", {})
            inner = space.get("__wrapped__")  # functools.wraps, functools.cache, torch.compile
            if inner is None and type(fn).__module__.startswith(("triton.", "minids3.kernels.")):
                inner = space.get("fn")  # a kernel: compiled, interpreted, autotuned
            fn = inner
    return layers


def is_library(exercise: Any, fn: Any) -> bool:
    """Whether ``fn`` is the package's function for ``exercise``, or another one of the package.

    It is known as an object, whatever it is called and whatever it is wrapped in. After a failed
    check the reader's name holds it, so that checking the name again would check the workbook.
    """
    known = (exercise.library, exercise.solution, *(a.fn for a in exercise.alternatives))
    codes = {id(c) for f in known for x in _layers(f) if (c := getattr(x, "__code__", None))}
    layers = _layers(fn)
    if any(id(getattr(layer, "__code__", None)) in codes for layer in layers):
        return True
    last = layers[-1] if layers else None
    if isinstance(last, types.FunctionType):
        home = last.__globals__.get("__name__")
    else:
        home = getattr(last if isinstance(last, type) else type(last), "__module__", None)
    package, _, rest = str(home).partition(".")
    return package == "minids3" and rest.partition(".")[0] != "course"
