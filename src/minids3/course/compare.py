"""Compare values and say in words where they first differ."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "describe",
    "difference",
    "dtype_name",
    "put_back",
    "resembles",
    "same",
    "same_form",
    "shape_text",
    "snapshot",
    "tensor_difference",
    "unchanged",
]

_LARGE = 100.0  # from this median on


def shape_text(shape: Sequence[int]) -> str:
    """Return a shape as "[2, 5, 8]"."""
    return str([int(s) for s in shape])


def dtype_name(dtype: torch.dtype) -> str:
    """Return "float32" for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def describe(value: Any) -> str:
    """Name a value in a few words: "a tensor of shape [2, 3]", "a list of 3", "None"."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {shape_text(value.shape)}"
    if value is None:
        return "None"
    if isinstance(value, tuple | list | dict):
        return f"a {type(value).__name__} of {len(value)}"
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _pair(got: float, expected: float) -> tuple[str, str]:
    """Format two numbers with as few digits as tell them apart."""
    for digits in (4, 6, 9):
        a, b = f"{got:.{digits}g}", f"{expected:.{digits}g}"
        if a != b:
            break
    return a, b


def tensor_difference(got: Tensor, expected: Tensor, rtol: float, atol: float) -> str:
    """Return where ``got`` first differs from ``expected``, or an empty string."""
    if tuple(got.shape) != tuple(expected.shape):
        return f"its shape is {shape_text(got.shape)}, expected {shape_text(expected.shape)}"
    if _whole(expected) and not _whole(got) and expected.dtype != torch.bool:
        return f"its dtype is {dtype_name(got.dtype)}, expected whole numbers (int64)"
    exact = not (got.is_floating_point() or expected.is_floating_point())
    if exact and not got.is_complex():
        a, b = got.detach().cpu().to(torch.int64), expected.detach().cpu().to(torch.int64)
        wrong = a != b
    else:
        wide = torch.complex128 if got.is_complex() or expected.is_complex() else torch.float64
        a, b = got.detach().cpu().to(wide), expected.detach().cpu().to(wide)
        wrong = ~torch.isclose(a, b, rtol=rtol, atol=atol, equal_nan=True)
    if not bool(wrong.any()):
        return ""
    index = tuple(int(i) for i in wrong.nonzero()[0])
    x: Any = a[index].item()
    y: Any = b[index].item()
    where = f"at {list(index)} it is" if index else "it is"
    if isinstance(x, float):
        x, y = _pair(x, y)
    tail = ""
    if wrong.numel() > 1:
        tail = f" ({int(wrong.sum())} of {wrong.numel()} numbers differ)"
    return f"{where} {x}, expected {y}{tail}"


def _whole(t: Tensor) -> bool:
    return not (t.is_floating_point() or t.is_complex())


def difference(got: Any, expected: Any, rtol: float, atol: float, where: str = "") -> str:
    """Return in words where two nested values first differ, or an empty string."""
    at = f"at {where} " if where else ""
    if isinstance(got, np.ndarray | np.generic):
        got = torch.as_tensor(got)
    if isinstance(expected, np.ndarray | np.generic):
        expected = torch.as_tensor(expected)
    if isinstance(expected, Tensor):
        if not isinstance(got, Tensor):
            return f"{at}it is {describe(got)}, expected a tensor"
        text = tensor_difference(got, expected, rtol, atol)
        return f"in {where}, {text}" if where and text else text
    if isinstance(got, Tensor) and isinstance(expected, bool | int | float):
        if got.ndim:
            return f"{at}it is {describe(got)}, expected a single value"
        got = got.item()
    if isinstance(expected, bool):
        return "" if got == expected else f"{at}it is {_value(got)}, expected {expected}"
    if isinstance(expected, int | float):
        if not isinstance(got, int | float):
            return f"{at}it is {describe(got)}, expected a number"
        if isinstance(expected, int) and isinstance(got, float):
            return f"{at}it is the float {got:.6g}, expected a whole number (an int)"
        if _near(got, expected, rtol, atol):
            return ""
        if isinstance(got, float) and isinstance(expected, float) and got != got != expected:
            return "" if expected != expected else f"{at}it is nan, expected {expected:.4g}"
        x, y = (
            (str(got), str(expected))
            if isinstance(got, int) and isinstance(expected, int)
            else _pair(got, expected)
        )
        return f"{at}it is {x}, expected {y}"
    if isinstance(expected, str | bytes):
        return "" if got == expected else f"{at}it is {_value(got)}, expected {_value(expected)}"
    if isinstance(expected, Mapping):
        return _mapping_difference(got, expected, rtol, atol, where)
    if isinstance(expected, tuple | list):
        return _sequence_difference(got, expected, rtol, atol, where)
    return "" if got == expected else f"{at}it is {_value(got)}, expected {_value(expected)}"


def _near(got: float, expected: float, rtol: float, atol: float) -> bool:
    """Whether two numbers are equal within the tolerance; an infinity equals only itself."""
    if got == expected:
        return True
    finite = abs(got) != math.inf and abs(expected) != math.inf
    return finite and abs(got - expected) <= atol + rtol * abs(expected)


def _value(value: Any) -> str:
    if isinstance(value, Tensor):
        return describe(value)
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _mapping_difference(got: Any, expected: Any, rtol: float, atol: float, where: str) -> str:
    at = f"at {where} " if where else ""
    if not isinstance(got, Mapping):
        return f"{at}it is {describe(got)}, expected a dict"
    for key in expected:
        if key not in got:
            return f"{at}the key {_value(key)} is missing, expected {_value(expected[key])} there"
    for key in got:
        if key not in expected:
            return f"{at}there is a key {_value(key)} that should not be there"
    for key in expected:
        text = difference(got[key], expected[key], rtol, atol, f"{where}[{_value(key)}]")
        if text:
            return text
    return ""


def _sequence_difference(got: Any, expected: Any, rtol: float, atol: float, where: str) -> str:
    at = f"at {where} " if where else ""
    if isinstance(got, Tensor) and got.ndim == 1:
        got = got.tolist()
    if not isinstance(got, tuple | list):
        return f"{at}it is {describe(got)}, expected {describe(expected)}"
    for i, (g, e) in enumerate(zip(got, expected, strict=False)):
        text = difference(g, e, rtol, atol, f"{where}[{i}]")
        if text:
            return text
    if len(got) != len(expected):
        return f"{at}its length is {len(got)}, expected {len(expected)}"
    return ""


def same_form(got: Any, expected: Any) -> bool:
    """Whether a value is of the kind and the shape expected, so that more can be said about it."""
    if isinstance(expected, Tensor):
        return isinstance(got, Tensor) and got.shape == expected.shape
    if isinstance(expected, tuple | list):
        return isinstance(got, tuple | list | Tensor) and len(got) == len(expected)
    if isinstance(expected, Mapping):
        return isinstance(got, Mapping)
    return isinstance(expected, int | float) <= isinstance(got, int | float | Tensor)


def same(a: Any, b: Any, rtol: float, atol: float) -> bool:
    """Whether two nested values are of the same kind and equal within the tolerance."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return (
            isinstance(a, Tensor)
            and isinstance(b, Tensor)
            and a.dtype == b.dtype
            and not tensor_difference(a, b, rtol, atol)
        )
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return (
            type(a) is type(b)
            and len(a) == len(b)
            and all(same(x, y, rtol, atol) for x, y in zip(a, b, strict=True))
        )
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[k], b[k], rtol, atol) for k in a)
    if type(a) is float and type(b) is float:
        return (a != a and b != b) or _near(a, b, rtol, atol)
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return same(torch.as_tensor(a), torch.as_tensor(b), rtol, atol)
    return type(a) is type(b) and bool(a == b)


_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_REAL = (torch.float32, torch.float64)


def _form(value: Any) -> Any:
    """Return a value in the form in which ``resembles`` compares it."""
    if isinstance(value, np.ndarray | np.generic):
        value = torch.as_tensor(value)
    if isinstance(value, Tensor) and value.dtype in (*_WHOLE, *_REAL):
        value = value.to(torch.int64 if value.dtype in _WHOLE else torch.float64)
        return value if value.ndim else value.item()
    return list(value) if isinstance(value, tuple) else value


def _usual(t: Tensor) -> float:
    """The median magnitude of what is finite."""
    finite = t[t.isfinite()]
    return finite.abs().median().item() if finite.numel() else 0.0


def resembles(a: Any, b: Any, rtol: float, atol: float) -> bool:
    """Whether two nested values hold equal numbers within the tolerance, in whatever form.

    The form is fp32, fp64 or integers; an array, a tensor or a number; a list or a tuple; a dict in
    any order. Whole numbers are compared exactly. Booleans, and dtypes that round more, are only
    like themselves. Where numbers are large, what is left of those that cancel is known less well:
    there the absolute tolerance grows with their median.
    """
    a, b = _form(a), _form(b)
    if isinstance(a, list) and isinstance(b, list):
        pairs = zip(a, b, strict=False)
        return len(a) == len(b) and all(resembles(x, y, rtol, atol) for x, y in pairs)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(resembles(a[k], b[k], rtol, atol) for k in a)
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if {a.dtype, b.dtype} == {torch.int64, torch.float64}:
            a, b = a.double(), b.double()
        if b.dtype in (torch.float32, torch.float64) and (usual := _usual(b)) > _LARGE:
            atol = max(atol, 3e-5 * usual)
    elif {type(a), type(b)} == {int, float} and max(abs(a), abs(b)) < 2**53:
        a, b = float(a), float(b)
    return same(a, b, rtol, atol)


def snapshot(value: Any) -> Any:
    """Copy ``value`` so that nobody can change it afterwards."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) in (tuple, list):
        return type(value)(snapshot(v) for v in value)
    if type(value) is dict:
        return {k: snapshot(v) for k, v in value.items()}
    try:
        return copy.deepcopy(value)
    except Exception:
        return value


def put_back(value: Any, before: Any) -> None:
    """Give what was changed in place its numbers back; what comes next rests on them.

    Tensors, lists and dicts are mended where they are; a tensor of another shape is left.
    """
    if isinstance(value, Tensor) and isinstance(before, Tensor):
        if value.shape == before.shape:  # an expanded one has no place for each number
            with torch.no_grad(), contextlib.suppress(RuntimeError):
                value.copy_(before)
    elif isinstance(value, list | tuple) and isinstance(before, list | tuple):
        for a, b in zip(value, before, strict=False):
            put_back(a, b)
        if isinstance(value, list):
            kept = [a if _mended(a) and _mended(b) else b
                    for a, b in itertools.zip_longest(value, before)]  # fmt: skip
            value[:] = kept[: len(before)]
    elif isinstance(value, dict) and isinstance(before, dict):
        for key, b in before.items():
            if key in value and _mended(value[key]) and _mended(b):
                put_back(value[key], b)
            else:
                value[key] = b
        for key in [k for k in value if k not in before]:
            del value[key]


def _mended(value: Any) -> bool:
    return isinstance(value, Tensor | list | tuple | dict)


def unchanged(before: Any, after: Any) -> bool:
    """Whether a snapshot still equals what it was taken of."""
    try:
        return same(before, after, 0, 0)
    except Exception:
        return True  # objects that cannot be compared are not inputs of the simple kind
