"""Which face of an operation runs."""

from __future__ import annotations

import importlib.util
from functools import cache

import torch
from torch import Tensor

__all__ = ["use_triton"]

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def use_triton(x: Tensor, backend: str) -> bool:
    """Whether ``backend`` means the Triton kernel for ``x``.

    ``"auto"``: for CUDA tensors of fp32, fp16 or bf16, where Triton is installed. ``"triton"``:
    always, so that it fails rather than quietly taking another way. ``"ref"``: never.

    Raises ``ValueError`` for any other name.
    """
    if backend == "auto":
        return x.is_cuda and x.dtype in _DTYPES and _installed()
    if backend not in ("ref", "triton"):
        raise ValueError(f"backend={backend!r} must be 'auto', 'ref' or 'triton'")
    return backend == "triton"


@cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None
