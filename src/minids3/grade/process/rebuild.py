"""What comes back from a student's process, put into the objects that a check knows."""

from __future__ import annotations

import builtins
import itertools
from typing import Any

import torch
from torch import Tensor

from minids3.grade.process import wire
from minids3.grade.process.zygote import GraderFault
from minids3.sim.counted import MultiplyAdds

__all__ = ["copy_into", "counters_in", "leaves_of", "plain", "rebuilt", "swap"]


def leaves_of(value: Any) -> list[Tensor]:
    """Return the tensors that want a gradient, in the order in which they are sent."""
    if isinstance(value, Tensor):
        return [value] if value.requires_grad else []
    if isinstance(value, dict):
        value = list(value.values())
    return [t for v in value for t in leaves_of(v)] if isinstance(value, list | tuple) else []


def counters_in(stack: list[Any]) -> list[MultiplyAdds]:
    """Return the modes of a check that calls; what no other process can follow is our fault."""
    for mode in stack:
        if not isinstance(mode, MultiplyAdds):
            raise GraderFault(f"a check counts with {type(mode).__name__}: use sim.counted")
    return stack


def plain(value: Any) -> Any:
    """Encode an argument that a check passes; what has no plain form is our fault.

    Unless it came from the student's own process: then it is not what the exercise asks for.

    Raises:
        TypeError: the student's function returned it.
        GraderFault: the check made it.
    """
    form = wire.encode(value, deepest=300)
    if _has_opaque(form):
        theirs = _opaque_in(value)
        if theirs is not None:
            raise TypeError(f"what your function returned holds a {type(theirs).__name__}")
        raise GraderFault(f"a check passes an argument that has no plain form: {value!r:.80}")
    return form


def _opaque_in(value: Any) -> wire.Opaque | None:
    if isinstance(value, wire.Opaque):
        return value
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    found = map(_opaque_in, value) if isinstance(value, list | tuple | set | frozenset) else ()
    return next((v for v in found if v is not None), None)


def _has_opaque(form: Any) -> bool:
    if isinstance(form, list):
        return any(_has_opaque(f) for f in form)
    if isinstance(form, dict):
        return "opaque" in form or ("tensor" not in form and any(map(_has_opaque, form.values())))
    return False


def rebuilt(told: dict[str, Any], where: str) -> Exception:
    """Make the exception that the child told of: its name, its nearest built-in kind, its text."""
    kinds = told.get("kinds")
    kinds = [k for k in kinds if isinstance(k, str)] if isinstance(kinds, list) else []
    base = next(
        (b for k in kinds if isinstance(b := vars(builtins).get(k), type)
         and issubclass(b, Exception)), Exception,
    )  # fmt: skip
    name = str(told.get("raised", "Exception"))[:60]
    text, line = str(told.get("text", ""))[:120], told.get("line")
    if isinstance(line, int):
        line -= told["first"] - 1 if isinstance(told.get("first"), int) else 0
        text += f" (line {line} {where})"
    if base is NotImplementedError and not told.get("text"):
        text = ""
    if base in (UnicodeDecodeError, UnicodeEncodeError, UnicodeTranslateError):
        base = ValueError
    if name == base.__name__:
        return base(text)
    return type(name if name.isidentifier() else "Error", (base,), {})(text)


def copy_into(here: Any, there: Any) -> None:
    """Make the child's changes of arguments here, in the objects that the check passed."""
    if isinstance(here, Tensor):
        same = isinstance(there, Tensor) and there.dtype == here.dtype
        with torch.no_grad():
            if same and there.shape == here.shape:
                if not torch.equal(_raw(there), _raw(here)):
                    here.copy_(there)
            elif here.numel():  # resized or replaced: any change says so
                here.zero_()
    elif isinstance(here, list) and isinstance(there, list):
        for a, b in zip(here, there, strict=False):
            if isinstance(a, Tensor | list | dict):
                copy_into(a, b)
        tail = [b if not isinstance(a, Tensor | list | dict | tuple) else a
                for a, b in itertools.zip_longest(here, there)][: len(there)]  # fmt: skip
        here[:] = tail
    elif isinstance(here, tuple) and isinstance(there, tuple):
        for a, b in zip(here, there, strict=False):
            copy_into(a, b)
    elif isinstance(here, dict) and isinstance(there, dict):
        for key, value in there.items():
            if key in here and isinstance(here[key], Tensor | list | dict | tuple):
                copy_into(here[key], value)
        kept = {k: here[k] if k in here and isinstance(here[k], Tensor | list | dict | tuple) else v
                for k, v in there.items()}  # fmt: skip
        here.clear()
        here.update(kept)


def _raw(t: Tensor) -> Tensor:
    return t.detach().contiguous().view(-1).view(torch.uint8)


def swap(value: Any, wants: set[int], joined: Any) -> Any:
    """Return ``value`` with the tensors in ``wants`` (by identity) replaced, one after another."""
    if isinstance(value, Tensor):
        return next(joined) if id(value) in wants else value
    if isinstance(value, tuple | list):
        return type(value)(swap(v, wants, joined) for v in value)
    if isinstance(value, dict):
        return {k: swap(v, wants, joined) for k, v in value.items()}
    return value
