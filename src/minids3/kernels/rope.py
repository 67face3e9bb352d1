"""Rotary position embedding: each pair of channels turned by its position's angle.

The pairs of the interleaved layout are neighbours in memory, so a program reads whole vectors and
splits them in registers (``tl.split``); two strided reads would fetch every line twice. The
gradient of a rotation is the rotation back, so the same kernel runs with the sign of the sines
flipped.

Queries come as slices of a wider projection, transposed: ``x`` may therefore have any strides, as
long as a position's channels lie together. The result is contiguous.
"""

# ruff: noqa: ANN001, ANN202  (kernels' arguments have no Python types)
from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from minids3.kernels.compile import Spec
from minids3.kernels.language import jit, tl
from minids3.kernels.launch import cdiv, check_tensors

__all__ = ["SPECS", "rope"]

_NUMBERS = 1024  # per program


@jit
def _rope_kernel(
    x_ptr,
    cos_ptr,
    sin_ptr,
    out_ptr,
    n_rows,
    n_heads,
    n_steps,
    stride_batch,
    stride_head,
    stride_step,
    half,
    INTERLEAVED: tl.constexpr,
    INVERSE: tl.constexpr,
    ROWS: tl.constexpr,
    HALF: tl.constexpr,
):
    """(a, b) -> (a cos - b sin, a sin + b cos) for each pair j of channels at each position t.

    Pairs are channels (2j, 2j + 1) if INTERLEAVED, else (j, half + j). x [B, H, T, R = 2 half] with
    strides, out likewise without; cos and sin [T, half]. INVERSE: by the angle's negative. n_rows =
    B H T, ROWS of them a program; HALF >= half.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    step = row % n_steps
    head = (row // n_steps) % n_heads
    batch = row // n_steps // n_heads
    source = (batch * stride_batch + head * stride_head + step * stride_step)[:, None]
    target = (row * 2 * half)[:, None]

    pair = tl.arange(0, HALF)[None, :]
    inside = (row[:, None] < n_rows) & (pair < half)
    angle = step[:, None] * half + pair
    cos = tl.load(cos_ptr + angle, mask=inside, other=0.0)
    sin = tl.load(sin_ptr + angle, mask=inside, other=0.0)
    if INVERSE:
        sin = -sin

    if INTERLEAVED:
        col = tl.arange(0, 2 * HALF)[None, :]
        both = (row[:, None] < n_rows) & (col < 2 * half)
        x = tl.load(x_ptr + source + col, mask=both, other=0.0).to(tl.float32)
        first, second = tl.split(tl.reshape(x, (ROWS, HALF, 2)))
        turned = tl.join(first * cos - second * sin, first * sin + second * cos)
        tl.store(out_ptr + target + col, tl.reshape(turned, (ROWS, 2 * HALF)), mask=both)
    else:
        first = tl.load(x_ptr + source + pair, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(x_ptr + source + half + pair, mask=inside, other=0.0).to(tl.float32)
        tl.store(out_ptr + target + pair, first * cos - second * sin, mask=inside)
        tl.store(out_ptr + target + half + pair, first * sin + second * cos, mask=inside)


def rope(
    x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = True, inverse: bool = False
) -> Tensor:
    """Rotate every pair of channels; ``inverse`` rotates back, which is also the gradient.

    Args:
        x: ``[..., T, R]``, any strides with the last equal to 1.
        cos: ``[T, R // 2]`` fp32.
        sin: ``[T, R // 2]`` fp32.
        interleaved: pairs are (2j, 2j+1) if true, (j, j + R/2) if false.
        inverse: turn the other way.

    Returns:
        ``[..., T, R]`` in the dtype of ``x``, contiguous.

    Raises:
        ValueError: the tables do not fit ``x``, or its channels do not lie together.
    """
    if x.dim() < 2 or x.shape[-1] % 2 or cos.shape != (x.shape[-2], x.shape[-1] // 2):
        raise ValueError(f"tables {list(cos.shape)} do not fit x {list(x.shape)}")
    if sin.shape != cos.shape or cos.dtype != torch.float32 or sin.dtype != torch.float32:
        raise ValueError("cos and sin must be fp32 and have one shape")
    if x.numel() and x.stride(-1) != 1:
        raise ValueError(
            f"x has strides {x.stride()}: the channels of a position must lie together"
        )
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    check_tensors(out=out, cos=cos, sin=sin)
    if not x.numel():
        return out
    steps, dim = x.shape[-2:]
    view = x[(None,) * (4 - x.dim())] if x.dim() <= 4 else x.reshape(-1, *x.shape[-3:])
    half = 1 << (dim // 2 - 1).bit_length()
    rows = max(1, _NUMBERS // (2 * half))
    n_rows = x.numel() // dim
    sizes = n_rows, view.shape[1], steps, *view.stride()[:3], dim // 2
    spec = _settle(rows, half, interleaved, inverse)
    spec.launch((cdiv(n_rows, rows),), view, cos, sin, out, *sizes)
    return out


@cache
def _settle(rows: int, half: int, interleaved: bool, inverse: bool) -> Spec:
    """The kernel with its constants."""
    tensors = {"x_ptr": "*bf16", "cos_ptr": "*fp32", "sin_ptr": "*fp32", "out_ptr": "*bf16"}
    strides = ("stride_batch", "stride_head", "stride_step")
    sizes = dict.fromkeys(("n_rows", "n_heads", "n_steps", *strides, "half"), "i32")
    return Spec(
        "rope",
        _rope_kernel,
        {**tensors, **sizes},
        {"INTERLEAVED": interleaved, "INVERSE": inverse, "ROWS": rows, "HALF": half},
        divisible=("half", *strides),
        expects={"sm_90": r"ld\.global\.v4\.b32"},
    )


SPECS = (
    replace(_settle(16, 32, True, False), name="rope_interleaved"),
    replace(_settle(16, 32, False, False), name="rope_half_split"),
)
