"""Plain data between the grader and the process that runs a student's code: JSON, never pickles.

A value is ``null``, a boolean, an integer, a float, a string, or an object with one key that says
what it is: ``{"list": [...]}``, ``{"tensor": {...}}``. Tensors travel as raw little-endian bytes in
base64 with dtype, shape and strides. What has no plain form becomes ``{"opaque": "its type"}``: it
can be named in a sentence, and nothing else can be done with it.

A message is its length (8 bytes, big-endian) and that many bytes of JSON.
"""

from __future__ import annotations

import base64
import json
import math
import socket
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Broken", "Opaque", "decode", "encode", "receive", "send", "tensor_of"]

_MALFORMED = (TypeError, LookupError, ValueError, ArithmeticError, MemoryError, RuntimeError)
_SMALL = 1 << 200  # integers beyond this are nobody's answer
_DEPTH = 60
_LONG_RANGE = 1_000_000
_SMALL_TENSOR = 1 << 16  # bytes
_ALIKE = 64  # as many members of a set may have one hash: looking them up is quadratic in it
_PLAIN_DTYPES = {
    str(d).removeprefix("torch."): d
    for d in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
        torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128,
        *(getattr(torch, n) for n in (
            "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "uint16", "uint32", "uint64",
        ) if hasattr(torch, n)),
    )
}  # fmt: skip
_ARRAY_KINDS = (
    "?",
    *(f"f{n}" for n in (2, 4, 8)),
    *(f"{k}{n}" for k in "iu" for n in (1, 2, 4, 8)),
)
_ARRAYS = {np.dtype(n).str for n in _ARRAY_KINDS}


class Broken(Exception):
    """The other side closed, or sent what is not a message."""


class Opaque:
    """Stands for a value of another process that has no plain form."""


def _opaque(kind: str) -> Opaque:
    name = kind if kind.isidentifier() and len(kind) <= 60 else "object"
    return type(name, (Opaque,), {})()


def _bytes_of(t: Tensor) -> str:
    flat = t.contiguous().reshape(-1)
    if flat.numel() == 0:
        return ""
    return base64.b64encode(flat.view(torch.uint8).numpy().tobytes()).decode("ascii")


def _encode_tensor(value: Tensor) -> dict[str, Any]:
    with torch._C.DisableTorchFunctionSubclass(), torch.no_grad():
        t = torch.Tensor.detach(value).as_subclass(Tensor)
        if t.layout != torch.strided or t.is_quantized:
            return {"opaque": "Tensor"}
        t = t.cpu().resolve_conj().resolve_neg()
        out = {
            "dtype": str(t.dtype).removeprefix("torch."),
            "shape": list(t.shape),
            "bytes": _bytes_of(t),
        }
        if not t.is_contiguous():
            out["strides"] = list(t.stride())
        if value.requires_grad:
            out["grad"] = True
    return {"tensor": out}


def encode(value: Any, depth: int = 0, deepest: int = _DEPTH) -> Any:
    """Return the plain form of ``value``; what lies deeper than ``deepest`` is opaque."""
    if depth > deepest:
        return {"opaque": "object"}
    if value is None or type(value) in (bool, str):
        return value
    if type(value) is int:
        return value if abs(value) < _SMALL else {"opaque": "int"}
    if type(value) is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if type(value) is complex:
        return {"complex": [repr(value.real), repr(value.imag)]}
    if isinstance(value, Tensor):
        return _encode_tensor(value)
    if type(value) in (list, tuple):
        return {type(value).__name__: [encode(v, depth + 1, deepest) for v in value]}
    if type(value) in (set, frozenset):
        return {"set": [encode(v, depth + 1, deepest) for v in value]}
    if isinstance(value, dict):  # an OrderedDict or a Counter is judged as the dict it is
        pairs = [[encode(v, depth + 1, deepest) for v in pair] for pair in value.items()]
        return {"dict": pairs}
    if isinstance(value, np.ndarray | np.generic) and value.dtype.str in _ARRAYS:
        data = np.ascontiguousarray(value)
        kind = {"dtype": data.dtype.str, "shape": list(np.shape(value))}
        kind["bytes"] = base64.b64encode(data.tobytes()).decode("ascii")
        return {"scalar" if isinstance(value, np.generic) else "array": kind}
    if isinstance(value, tuple):  # a named tuple
        return {"tuple": [encode(v, depth + 1, deepest) for v in tuple(value)]}
    if isinstance(value, list):
        return {"list": [encode(v, depth + 1, deepest) for v in list(value)]}
    if isinstance(value, torch.dtype):
        return {"torch": str(value).removeprefix("torch.")}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    if isinstance(value, int | float | str):
        for plain in (int, float, str):
            if isinstance(value, plain):
                return encode(plain(value), depth + 1, deepest)
    return {"opaque": type(value).__name__}


def _shape(values: Any) -> list[int]:
    if not isinstance(values, list) or len(values) > 16:
        raise Broken("a shape that is none")
    if not all(type(v) is int and 0 <= v < 1 << 40 for v in values):
        raise Broken("a shape that is none")
    return values


def tensor_of(form: dict[str, Any]) -> Tensor:
    """Make the tensor of a plain form; a new one, whatever the other side meant."""
    dtype, shape = _PLAIN_DTYPES.get(form.get("dtype", "")), _shape(form.get("shape"))
    if dtype is None:
        raise Broken("a tensor of unknown dtype")
    raw = base64.b64decode(form["bytes"], validate=True)
    if len(raw) != math.prod(shape) * dtype.itemsize:
        raise Broken("a tensor whose bytes do not fit its shape")
    if not raw:
        t = torch.empty(shape, dtype=dtype)
    else:
        t = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(dtype).reshape(shape)
    strides = form.get("strides")
    if strides is not None:
        t = _restride(t, shape, _shape(strides))
    return t


def _restride(t: Tensor, shape: list[int], strides: list[int]) -> Tensor:
    if len(strides) != len(shape):
        raise Broken("strides that do not fit a shape")
    narrow = [1 if s == 0 else n for n, s in zip(shape, strides, strict=True)]
    span = 1 + sum((n - 1) * s for n, s in zip(narrow, strides, strict=True) if n)
    ratio = 64 if t.numel() * t.element_size() < _SMALL_TENSOR else 4
    if span > ratio * max(t.numel(), 1) + 256:  # a slice of something far larger
        return t
    try:
        spare = torch.empty_strided(narrow, strides, dtype=t.dtype)
        index = tuple(slice(0, n) for n in narrow)
        return spare.copy_(t[index]).expand(shape)
    except RuntimeError:  # elements overlap in a way nobody needs
        return t


def decode(form: Any, make: Callable[[dict[str, Any]], Tensor] = tensor_of, depth: int = 0) -> Any:
    """Return the value of a plain form; ``make`` turns the form of a tensor into one.

    Raises:
        Broken: it is not one.
    """
    if depth > 2 * _DEPTH:
        raise Broken("nested too deep")
    if type(form) is int and abs(form) >= _SMALL:
        return _opaque("int")
    if form is None or type(form) in (bool, int, float, str):
        return form
    if not isinstance(form, dict) or len(form) != 1:
        raise Broken("not a plain value")
    ((kind, body),) = form.items()
    try:
        if kind in ("list", "tuple", "set"):
            values = [decode(v, make, depth + 1) for v in body]
            if kind == "set":
                return set(_spread(values))
            return values if kind == "list" else tuple(values)
        if kind == "dict":
            keys = _spread([decode(k, make, depth + 1) for k, _ in body])
            return dict(zip(keys, [decode(v, make, depth + 1) for _, v in body], strict=True))
        if kind == "tensor":
            return make(body)
        if kind == "float":
            return float(body)
        if kind == "complex":
            return complex(float(body[0]), float(body[1]))
        if kind in ("array", "scalar"):
            return _decode_array(kind, body)
        if kind == "torch":
            return _PLAIN_DTYPES[body]
        if kind == "range":
            values = range(*(int(v) for v in body))
            if len(values) > _LONG_RANGE:
                raise Broken("a range of more than a million numbers")
            return values
        if kind == "opaque":
            return _opaque(str(body))
    except Broken:
        raise
    except _MALFORMED as error:
        raise Broken(f"a malformed {kind}") from error
    raise Broken("not a plain value")


def _spread(values: list[Any]) -> list[Any]:
    """Return ``values``, whose hashes must differ: built to collide, they cost hours to look up."""
    hashes = sorted(map(hash, values))
    if any(a == b for a, b in zip(hashes, hashes[_ALIKE:], strict=False)) and len(set(
        map(str, values))) > _ALIKE:  # fmt: skip
        raise Broken("a set built to be slow")
    return values


def _decode_array(kind: str, body: dict[str, Any]) -> Any:
    if body["dtype"] not in _ARRAYS:
        raise Broken("an array of unknown dtype")
    raw = base64.b64decode(body["bytes"], validate=True)
    array = np.frombuffer(bytearray(raw), dtype=body["dtype"]).reshape(_shape(body["shape"]))
    return array[()] if kind == "scalar" else array


# messages -----------------------------------------------------------------------------------------


def send(channel: socket.socket, message: Any) -> None:
    """Send one message; the socket's own timeout holds."""
    data = json.dumps(message, allow_nan=False).encode("utf-8", "surrogatepass")
    channel.sendall(struct.pack(">Q", len(data)) + data)


def _exactly(channel: socket.socket, size: int, wait: Callable[[], None] | None) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        if wait is not None:
            wait()
        try:
            piece = channel.recv(min(1 << 20, size - len(parts)))
        except ConnectionError:
            piece = b""
        if not piece:
            raise Broken("closed")
        parts += piece
    return bytes(parts)


def receive(
    channel: socket.socket, limit: int = 1 << 26, wait: Callable[[], None] | None = None
) -> dict[str, Any]:
    """Receive one message of at most ``limit`` bytes.

    ``wait`` is called before each piece; it returns when there is one, or raises.

    Raises:
        Broken: closed, too long, or not JSON.
    """
    (size,) = struct.unpack(">Q", _exactly(channel, 8, wait))
    if size > limit:
        raise Broken(f"an answer of {size} bytes, more than {limit}")
    try:
        message = json.loads(_exactly(channel, size, wait))
    except (ValueError, RecursionError) as error:
        raise Broken("an answer that is not JSON") from error
    if not isinstance(message, dict):
        raise Broken("an answer that is not a message")
    return message
