"""What a check is given: seeded inputs, calls to the reader's function, and statements.

A check is an ordinary function of one argument, the ``Checker``. It makes inputs from the
checker's seeded generator, calls the reader's function only through ``call``, ``grad`` and
``raises``, and states properties. Each statement is an item with a label; labels must not depend
on what the reader's function returned, so that everybody sees the same list. A call that fails, or
a result of another form than expected, ends the check (or the ``part`` it is in); items after it
are "not reached". Wrong numbers end nothing: what is stated about them next may say why.

Seed 0 is what readers see. Other seeds draw other inputs and, through ``size``, other shapes.
"""

from __future__ import annotations

import contextlib
import random
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from minids3.course.compare import (
    describe,
    difference,
    dtype_name,
    put_back,
    same_form,
    shape_text,
    snapshot,
    tensor_difference,
    unchanged,
)
from minids3.course.launching import Guarded, launch, unwritten
from minids3.kernels.watch import MemoryFault

__all__ = ["Checker", "Item", "Stop", "short"]

_LARGE = r"\bit is (nan|-?inf|-?\d{3,})"  # what a sum of undefined lanes looks like


@dataclass
class Item:
    """One line of a checklist: status is "ok", "no" or "not reached"."""

    label: str
    status: str
    reason: str = ""
    outputs: int = 0  # how many outputs had been recorded when this item was decided
    part: int = 0  # number of the part it is in; 0 is what is in none
    begin: int = 0  # how many outputs had been recorded when its part began
    cost: bool = False  # it is about how a result was come by, which its value does not show


class Stop(Exception):
    """Ends the check, or the part of it, after a failed item."""


class Checker:
    """What a check gets: seeded inputs, calls to the reader's function, and statements."""

    def __init__(
        self,
        id: str,
        fn: Callable[..., Any],
        seed: int = 0,
        labels: list[str] | None = None,
        after: dict[int, Any] | None = None,
    ) -> None:
        """Check ``fn`` for exercise ``id``.

        ``labels`` are those of the solution's run, and ``after`` is where its random numbers were
        after each part: a part that fails early leaves the next one's inputs as they were.
        """
        self.id = id
        self.seed = seed
        self.items: list[Item] = []
        self.outputs: list[Any] = []
        self.stub = False
        self._fn = fn
        self._labels = labels
        self.after: dict[int, Any] = {}
        self._given_after = after or {}
        self._part = self._parts = self._begin = 0
        self._idle = False  # whether a kernel's masked load left lanes undefined
        key = zlib.crc32(f"{id}:{seed}".encode())
        self._generator = torch.Generator().manual_seed(key)
        self._random = random.Random(key)

    # inputs ------------------------------------------------------------------------------------

    def randn(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Normal numbers of ``shape``."""
        return torch.randn(shape, generator=self._generator).to(dtype)

    def rand(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform numbers in [0, 1) of ``shape``."""
        return torch.rand(shape, generator=self._generator).to(dtype)

    def randint(self, low: int, high: int, *shape: int) -> Tensor:
        """int64 numbers in [low, high) of ``shape``."""
        return torch.randint(low, high, shape, generator=self._generator)

    def size(self, low: int, high: int) -> int:
        """Return a size between ``low`` and ``high``, both included."""
        return self._random.randint(low, high)

    def choice(self, options: Sequence[Any]) -> Any:
        """Return one of ``options``."""
        return self._random.choice(options)

    @staticmethod
    def strided(t: Tensor) -> Tensor:
        """The same numbers in memory that is not contiguous: axes reversed, with gaps."""
        turned = t.permute(*range(t.ndim - 1, -1, -1))
        apart = torch.stack((turned, torch.zeros_like(turned)), dim=-1)[..., 0]
        return apart.permute(*range(t.ndim - 1, -1, -1))

    def guarded(
        self, *shape: int, dtype: torch.dtype = torch.float32, fill: float | None = None
    ) -> Guarded:
        """Make an output for a kernel: poisoned (NaN, or 85), inside margins that are watched."""
        return Guarded(shape, dtype, fill)

    # calling the reader's function -------------------------------------------------------------

    def _invoke(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function; a grader that keeps it in another process overrides this."""
        return self._fn(*args, **kwargs)

    def _guarded(self, args: tuple[Any, ...], kwargs: dict[str, Any], inplace: bool) -> Any:
        """Call, turn exceptions into failures, and see that the inputs are left alone."""
        before = snapshot((args, kwargs))
        try:
            out = self._invoke(args, kwargs)
        except NotImplementedError as error:
            self.stub = True
            self.outputs.append(("raised", "NotImplementedError"))
            reason = str(error) or "still a stub. Write its body, then run both cells again"
            raise _Failure(reason) from None
        except (Exception, SystemExit) as error:
            put_back((args, kwargs), before)
            self.outputs.append(_raised(error))
            raise _Failure(_exception_text(error, self._fn)) from error
        if not inplace and not unchanged(before, (args, kwargs)):
            self.outputs.append(("modified", snapshot(out)))
            put_back((args, kwargs), before)
            raise _Failure(
                "it changed its input in place. Whoever called it still needs that input: "
                "make a new tensor or list instead"
            )
        return out

    def call(
        self,
        *args: Any,
        label: str | None = None,
        returns: int | None = None,
        inplace: bool = False,
        allow_none: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Call the reader's function and return what it returned.

        With a ``label`` the call is an item of its own; without, a failure is told at the next
        item. ``returns=2`` says that two values are expected, ``inplace=True`` that it may change
        its arguments.
        """
        try:
            out = self._guarded(args, kwargs, inplace)
            if out is None and not allow_none:
                self.outputs.append(None)
                raise _Failure(
                    "it returned None. Did you forget 'return'? Every way through the "
                    "function needs one"
                )
            self.outputs.append(snapshot(out))
            if returns is not None and not (isinstance(out, tuple | list) and len(out) == returns):
                raise _Failure(f"it returned {describe(out)}, expected {returns} values")
        except _Failure as failure:
            self._fail(label, failure.reason)
        if label is not None:
            self._ok(label)
        return out

    def _launch(
        self, grid: Sequence[int], args: tuple[Any, ...], constexprs: dict[str, Any]
    ) -> bool:
        """Run the function as a kernel; a grader that keeps it elsewhere overrides this."""
        return launch(self._fn, grid, args, constexprs)

    def launch(
        self, grid: Sequence[int], *args: Any, label: str | None = None, **constexprs: Any
    ) -> None:
        """Run the reader's Triton kernel as ``kernel[grid](*args, **constexprs)``.

        It may write into the arguments made by ``guarded`` and into nothing else. With a ``label``
        the launch is an item of its own.
        """
        before = snapshot([a for a in args if isinstance(a, Tensor)])
        outputs = [a for a in args if isinstance(a, Guarded)]
        try:
            try:
                idle = bool(self._launch(grid, args, constexprs))
                self._idle |= idle
            except NotImplementedError as error:
                self.stub = True
                self.outputs.append(("raised", "NotImplementedError"))
                reason = str(error) or "still a stub. Write its body, then run both cells again"
                raise _Failure(reason) from None
            except MemoryFault as error:
                self.outputs.append([*(_written(o) for o in outputs), str(error)])
                if label is None:
                    raise _Failure(short(error)) from None
                return self._note(label, "no", short(error))
            except (Exception, SystemExit) as error:
                self.outputs.append(_raised(error))
                raise _Failure(_exception_text(error, self._fn)) from error
            told = idle and any(o.strange() for o in outputs)
            self.outputs.append([*(_written(o) for o in outputs), told])
            if not unchanged(before, [a for a in args if isinstance(a, Tensor)]):
                raise _Failure("it wrote into an input. Store to the output's pointer only")
        except _Failure as failure:
            self._fail(label, failure.reason)
        if label is not None:
            self._ok(label)

    def raises(self, error: type[Exception], *args: Any, label: str, **kwargs: Any) -> None:
        """State that calling with these arguments raises ``error``."""
        before = snapshot((args, kwargs))
        try:
            try:
                out = self._invoke(args, kwargs)
            finally:
                put_back((args, kwargs), before)
        except NotImplementedError as caught:
            self.stub = True
            self._fail(label, str(caught) or "still a stub")
        except error:
            self.outputs.append(("raised", error.__name__, ""))  # which message is left open
            self._ok(label)
        except Exception as caught:
            self.outputs.append(_raised(caught))
            reason = _exception_text(caught, self._fn)
            self._fail(label, f"{reason}, expected {error.__name__}")
        else:
            self.outputs.append(snapshot(out))
            self._fail(label, f"nothing was raised, expected {error.__name__}")

    def grad(
        self,
        args: Sequence[Any],
        wrt: Sequence[int],
        expected_fn: Callable[..., Any],
        label: str = "the gradient is right",
        rtol: float = 1e-3,
        atol: float = 1e-5,
        names: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """State that gradients with respect to ``args[i] for i in wrt`` equal ``expected_fn``'s.

        Both functions' outputs (a tensor or a tuple of tensors) are summed with the same random
        weights before going backward.
        """
        weights: list[Tensor] = []

        def backward(run: Callable[[tuple[Any, ...]], Any]) -> list[Tensor | None]:
            leaves = tuple(
                a.detach().clone().requires_grad_() if i in wrt else a for i, a in enumerate(args)
            )
            out = run(leaves)
            outs = [o for o in (out if isinstance(out, tuple | list) else (out,)) if o is not None]
            if not weights:
                weights.extend(self.randn(*o.shape) for o in outs)
            total = sum((o.float() * w).sum() for o, w in zip(outs, weights, strict=True))
            if not total.requires_grad:  # type: ignore[union-attr]
                return [None for _ in wrt]
            return list(
                torch.autograd.grad(total, [leaves[i] for i in wrt], allow_unused=True)  # type: ignore[arg-type]
            )

        want = backward(lambda leaves: expected_fn(*leaves, **kwargs))
        try:
            got = backward(lambda leaves: self._guarded(leaves, kwargs, False))
        except _Failure as failure:
            self._fail(label, failure.reason)
        except Exception as error:
            self._fail(label, f"going backward raised {type(error).__name__}: {short(error)}")
        self.outputs.append(snapshot(got))
        for position, (g, w) in enumerate(zip(got, want, strict=True)):
            name = names[position] if names else f"argument {wrt[position] + 1}"
            if w is None:
                continue
            if g is None:
                self._fail(label, f"no gradient arrives at {name}: something detached it")
            reason = tensor_difference(g, w, rtol, atol)
            if reason:
                self._fail(label, f"for {name}, {reason}")
        self._ok(label)

    # statements --------------------------------------------------------------------------------

    def shape(
        self, got: Any, expected: Sequence[int], name: str = "it", label: str | None = None
    ) -> None:
        """State that ``got`` is a tensor of shape ``expected``."""
        label = label or f"{name} has shape {shape_text(expected)}"
        if not isinstance(got, Tensor):
            self._fail(label, f"it is {describe(got)}, expected a tensor")
        if tuple(got.shape) != tuple(expected):
            self._fail(label, f"it is {shape_text(got.shape)}")
        self._ok(label)

    def dtype(
        self, got: Any, expected: torch.dtype, name: str = "it", label: str | None = None
    ) -> None:
        """State that ``got`` is a tensor of dtype ``expected``."""
        label = label or f"{name} has dtype {dtype_name(expected)}"
        if not isinstance(got, Tensor):
            self._fail(label, f"it is {describe(got)}, expected a tensor")
        if got.dtype != expected:
            self._fail(label, f"it is {dtype_name(got.dtype)}")
        self._ok(label)

    def close(
        self,
        got: Any,
        expected: Any,
        name: str = "it",
        label: str | None = None,
        rtol: float = 1e-4,
        atol: float = 1e-5,
    ) -> None:
        """State that numbers equal ``expected`` within ``atol + rtol * abs(expected)``."""
        label = label or f"{name} has the right values"
        reason = difference(got, expected, rtol, atol)
        if not reason:
            return self._ok(label)
        if self._idle and not unwritten(got) and re.search(_LARGE, reason):
            reason += (
                ". The lanes that a mask leaves out are undefined (infinite here) unless the load "
                "says other="
            )
        if not same_form(got, expected):
            self._fail(label, reason)
        self._note(label, "no", reason)

    def equal(self, got: Any, expected: Any, name: str = "it", label: str | None = None) -> None:
        """State that lists, strings, dicts or integer tensors are exactly ``expected``."""
        self.close(got, expected, name, label or f"{name} is right", rtol=0, atol=0)

    def true(self, condition: Any, label: str, why: str = "", *, cost: bool = False) -> None:
        """State a property; ``why`` is said when it does not hold. A callable is called.

        ``cost``: it is about how a result was come by, not about its value.
        """
        try:
            holds = bool(condition() if callable(condition) else condition)
        except Stop:
            raise
        except Exception as error:
            self._fail(label, f"{why} ({type(error).__name__})".strip())
        self._note(label, "ok" if holds else "no", "" if holds else why)
        self.items[-1].cost = cost

    @contextlib.contextmanager
    def part(self) -> Iterator[None]:
        """Group items that are judged on their own: a failure inside does not end the check."""
        if self._part:  # inside of another: a failure ends both no further than here
            with contextlib.suppress(Stop):
                yield
            return
        self._parts += 1
        self._part, self._begin = self._parts, len(self.outputs)
        known = len(self.items)
        try:
            yield
        except Stop:
            pass
        except Exception as error:
            if self._labels is None:  # the solution itself: a fault of ours
                raise
            self.unusable(error, known)
        finally:
            self.after[self._part] = (self._generator.get_state(), self._random.getstate())
            if self._part in self._given_after:
                numbers, python = self._given_after[self._part]
                self._generator.set_state(numbers)
                self._random.setstate(python)
            self._part = self._begin = 0

    def unusable(self, error: Exception, since: int = 0) -> None:
        """Note that what the function returned stopped the check, if nothing has failed yet."""
        if all(i.status == "ok" for i in self.items[since:]):
            reason = (
                "what your function returned cannot be used "
                f"({type(error).__name__}: {short(error)})"
            )
            self._note(self._next_label(), "no", reason)

    # book-keeping ------------------------------------------------------------------------------

    def _ok(self, label: str) -> None:
        self._note(label, "ok", "")

    def _fail(self, label: str | None, reason: str) -> NoReturn:
        self._note(self._next_label() if label is None else label, "no", reason)
        raise Stop

    def _note(self, label: str, status: str, reason: str) -> None:
        self.items.append(Item(label, status, reason, len(self.outputs), self._part, self._begin))

    def _next_label(self) -> str:
        """Return the label of the first item of the solution's list that has no outcome yet."""
        if self._labels is None:
            return "runs"
        last = self._labels.index(self.items[-1].label) if self.items else -1
        return self._labels[min(last + 1, len(self._labels) - 1)]


class _Failure(Exception):
    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def _written(out: Guarded) -> tuple[Tensor, Tensor]:
    """What a kernel wrote, and where beside it: idle lanes that go astray may hold anything."""
    return snapshot(out.view), out.touched()


def short(error: BaseException) -> str:
    """Return an exception's message on one line, 160 characters at most."""
    text = " ".join(str(error).split())
    return text if len(text) <= 160 else text[:157] + "..."


def _raised(error: BaseException) -> tuple[str, str, str]:
    """Return what tells one exception from another of its type: the message, without names."""
    text = re.sub(r" \(line \d+ of your \w+\)$", "", " ".join(str(error).split()))
    return "raised", type(error).__name__, re.sub(r"[\w.<>]+\(\)", "f()", text)[:100]


def _exception_text(error: BaseException, fn: Callable[..., Any]) -> str:
    """Say what was raised and at which line of the reader's function."""
    kernel = getattr(fn, "fn", fn)  # what @triton.jit wraps
    code = getattr(kernel, "__code__", None)
    line = None
    trace = error.__traceback__
    while trace is not None:
        here = trace.tb_frame.f_code
        # Triton's interpreter runs a copy, which has the name and the lines of the original.
        names = (here.co_filename, here.co_name)
        copied = code is not None and names == (code.co_filename, code.co_name)
        if here is code or copied:
            line = trace.tb_lineno - code.co_firstlineno + 1  # type: ignore[union-attr]
        trace = trace.tb_next
    where = f" (line {line} of your function)" if line else ""
    return f"raised {type(error).__name__}: {short(error)}{where}"
