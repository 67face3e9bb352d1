"""Vector addition: the smallest kernel there is, and the mould of all the others.

Program ``p`` owns elements ``p * BLOCK .. p * BLOCK + BLOCK - 1``. The last program owns some that
do not exist, and the mask keeps it from touching them.
"""

# ruff: noqa: ANN001, ANN202  (kernels' arguments have no Python types)
from __future__ import annotations

import torch
from torch import Tensor

from minids3.kernels.compile import Spec
from minids3.kernels.language import jit, tl
from minids3.kernels.launch import cdiv, check_tensors

__all__ = ["SPECS", "add"]

_BLOCK = 1024


@jit
def _add_kernel(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """out[i] = x[i] + y[i]; all [n]."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    i = start + tl.arange(0, BLOCK)
    inside = i < n
    x = tl.load(x_ptr + i, mask=inside)
    y = tl.load(y_ptr + i, mask=inside)
    tl.store(out_ptr + i, x + y, mask=inside)


def add(x: Tensor, y: Tensor) -> Tensor:
    """Sum of two tensors of one shape and dtype, element by element.

    Raises ``ValueError`` if they differ, are not contiguous or lie on different devices.
    """
    if x.shape != y.shape or x.dtype != y.dtype:
        raise ValueError(
            f"x is {list(x.shape)} {x.dtype} and y {list(y.shape)} {y.dtype}: both must agree"
        )
    check_tensors(x=x, y=y)
    out = torch.empty_like(x)
    if x.numel():
        _add_kernel[(cdiv(x.numel(), _BLOCK),)](x, y, out, x.numel(), BLOCK=_BLOCK)
    return out


SPECS = (
    Spec(
        "add",
        _add_kernel,
        signature={"x_ptr": "*fp32", "y_ptr": "*fp32", "out_ptr": "*fp32", "n": "i32"},
        constexprs={"BLOCK": _BLOCK},
        divisible=("n",),  # else the mask could end inside a vector of four
        expects=dict.fromkeys(("sm_75", "sm_80", "sm_89", "sm_90"), r"ld\.global\.v4\.b32"),
    ),
)
