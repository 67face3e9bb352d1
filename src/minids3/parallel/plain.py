"""Plain data between processes: JSON for the structure, safetensors for the tensors in it.

No pickles: what comes back from a process can be wrong, but it cannot run code here.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["read_plain", "write_plain"]


def write_plain(value: Any, path: Path) -> None:
    """Write ``value`` to ``path``.json and its tensors to ``path``.safetensors.

    None, bool, int, float, str, lists, tuples, dicts, NumPy's numbers and arrays, and tensors on
    any device come back as they were (tensors on the CPU, without their graph).

    Raises:
        TypeError: there is something else in it; the message says where.
    """
    tensors: dict[str, Tensor] = {}
    tree = _pack(value, tensors, "the value")
    if tensors:
        save_file(tensors, path.with_suffix(".safetensors"))
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(tree), encoding="utf-8")
    os.replace(partial, path.with_suffix(".json"))


def read_plain(path: Path) -> Any:
    """Read what ``write_plain`` wrote."""
    tree = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    file = path.with_suffix(".safetensors")
    return _unpack(tree, load_file(file) if file.exists() else {})


def _pack(value: Any, tensors: dict[str, Tensor], where: str) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_pack(v, tensors, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, tuple):
        return {"tuple": [_pack(v, tensors, f"{where}[{i}]") for i, v in enumerate(value)]}
    if isinstance(value, dict):
        pairs = [
            [_pack(k, tensors, where), _pack(v, tensors, f"{where}[{k!r}]")]
            for k, v in value.items()
        ]
        return {"dict": pairs}
    if isinstance(value, Tensor | np.ndarray):
        kind = "tensor" if isinstance(value, Tensor) else "array"
        name = str(len(tensors))
        tensors[name] = torch.as_tensor(value).detach().cpu().contiguous().clone()
        return {kind: name}
    raise TypeError(
        f"{where} is a {type(value).__name__}; only numbers, text, lists, tuples, dicts, arrays "
        "and tensors travel between processes: return those, or pass what it is made of"
    )


def _unpack(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_unpack(v, tensors) for v in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tuple":
        return tuple(_unpack(v, tensors) for v in content)
    if kind == "dict":
        return {_hashable(_unpack(k, tensors)): _unpack(v, tensors) for k, v in content}
    return tensors[content] if kind == "tensor" else tensors[content].numpy()


def _hashable(key: Any) -> Any:
    return tuple(_hashable(k) for k in key) if isinstance(key, list | tuple) else key
