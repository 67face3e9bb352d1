"""RMSNorm, forward and backward, one read of each input.

Forward: a program holds a few rows in registers, divides them by their root mean square, and keeps
the reciprocal ``rstd [M]`` in fp32 for the way back.

Backward, with x^ = x * rstd:  dx = rstd * (g*w - x^ * mean(g*w * x^)), dw = sum of rows (g * x^).
The sum runs over rows that different programs own. Each program therefore sums its own stretch of
rows in registers and writes one partial row ``[D]``; a second, small kernel adds the partials. The
alternative, atomic additions into dw, takes one kernel less and gives other bits in every run.
"""

# ruff: noqa: ANN001, ANN202  (kernels' arguments have no Python types)
from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from minids3.kernels.compile import Spec
from minids3.kernels.language import jit, tl
from minids3.kernels.launch import cdiv, check_tensors

__all__ = ["SPECS", "WIDEST_ROW", "rms_norm_bwd", "rms_norm_fwd"]

WIDEST_ROW = 16384


@jit
def _rms_norm_fwd_kernel(
    x_ptr,
    weight_ptr,
    y_ptr,
    rstd_ptr,
    n_rows,
    n_cols,
    eps,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """y = x r w,  r = 1 / sqrt(mean_d(x^2) + eps).

    x and y [M = n_rows, D = n_cols], weight w [D], rstd r [M]; ROWS rows a program, BLOCK >= D.
    """
    start = tl.program_id(0).to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)
    col = tl.arange(0, BLOCK)
    at = start * n_cols + row[:, None] * n_cols + col[None, :]
    inside = (row[:, None] < n_rows - start) & (col[None, :] < n_cols)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + col, mask=col < n_cols, other=0.0).to(tl.float32)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, 1) / n_cols + eps)
    tl.store(rstd_ptr + start + row, rstd, mask=row < n_rows - start)
    tl.store(y_ptr + at, x * rstd[:, None] * weight[None, :], mask=inside)


@jit
def _rms_norm_bwd_kernel(
    grad_ptr,
    x_ptr,
    weight_ptr,
    rstd_ptr,
    dx_ptr,
    partial_ptr,
    n_rows,
    n_cols,
    rows_per_program,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dx = r (g w - x^ mean_d(g w x^)),  dw = sum_m g x^,  with x^ = x r.

    grad g, x, dx [M = n_rows, D = n_cols], weight w [D], rstd r [M]. Row p of partial [P, D] is the
    sum over the rows of program p; ROWS of them are in registers at once.
    """
    program = tl.program_id(0).to(tl.int64)
    first = program * rows_per_program
    last = tl.minimum(first + rows_per_program, n_rows)
    row = tl.arange(0, ROWS)
    col = tl.arange(0, BLOCK)
    at = row[:, None] * n_cols + col[None, :]
    dweight = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(first, last, ROWS):
        base = start * n_cols
        inside = (row[:, None] < last - start) & (col[None, :] < n_cols)
        grad = tl.load(grad_ptr + base + at, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + base + at, mask=inside, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + start + row, mask=row < last - start, other=0.0)
        x_hat = x * rstd[:, None]
        dweight += grad * x_hat
        # Read again for each row: it comes from the cache, and registers are scarcer here.
        weight = tl.load(weight_ptr + col[None, :], mask=col[None, :] < n_cols, other=0.0)
        grad = grad * weight.to(tl.float32)
        along = tl.sum(grad * x_hat, 1) / n_cols
        dx = (grad - x_hat * along[:, None]) * rstd[:, None]
        tl.store(dx_ptr + base + at, dx, mask=inside)
    tl.store(partial_ptr + program * n_cols + col, tl.sum(dweight, 0), mask=col < n_cols)


@jit
def _sum_rows_kernel(
    x_ptr,
    out_ptr,
    n_rows,
    n_cols,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """out[j] = sum_i x[i, j], in one fixed order; x [n_rows, n_cols], out [n_cols]."""
    col = tl.program_id(0) * COLS + tl.arange(0, COLS)
    total = tl.zeros((ROWS, COLS), tl.float32)
    for start in range(0, n_rows, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row[:, None] < n_rows) & (col[None, :] < n_cols)
        total += tl.load(x_ptr + row[:, None] * n_cols + col[None, :], mask=inside, other=0.0)
    tl.store(out_ptr + col, tl.sum(total, 0), mask=col < n_cols)


def rms_norm_fwd(x: Tensor, weight: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """RMSNorm of the last axis: ``y`` in the dtype of ``x``, and 1 / rms of each row.

    Args:
        x: ``[..., D]``, contiguous, D up to ``WIDEST_ROW``.
        weight: ``[D]``.
        eps: added to the mean square.

    Returns:
        ``y [..., D]``, ``rstd [...]`` fp32.

    Raises:
        ValueError: shapes do not fit, D is too wide, or a tensor is not contiguous.
    """
    n_cols = _check(x, weight)
    check_tensors(x=x, weight=weight)
    y = torch.empty_like(x)
    rstd = x.new_empty(x.shape[:-1], dtype=torch.float32)
    if x.numel():
        spec = _forward(*_tile(n_cols))
        grid = (cdiv(rstd.numel(), spec.constexprs["ROWS"]),)
        spec.launch(grid, x, weight, y, rstd, rstd.numel(), n_cols, eps)
    return y, rstd


def rms_norm_bwd(grad: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of ``x`` and ``weight``, the same bits in every run.

    Args:
        grad: ``[..., D]``, gradient of the output.
        x: ``[..., D]``, the input of the forward.
        weight: ``[D]``.
        rstd: ``[...]`` fp32, from the forward.

    Returns:
        ``dx [..., D]`` in the dtype of ``x``, ``dweight [D]`` in that of ``weight``.

    Raises:
        ValueError: shapes do not fit, D is too wide, or a tensor is not contiguous.
    """
    n_cols = _check(x, weight)
    if grad.shape != x.shape or rstd.shape != x.shape[:-1]:
        raise ValueError(
            f"grad {list(grad.shape)} must be like x {list(x.shape)}, "
            f"rstd {list(rstd.shape)} without its last axis"
        )
    check_tensors(grad=grad, x=x, weight=weight, rstd=rstd)
    if not x.numel():
        return torch.empty_like(x), torch.zeros_like(weight)
    dx = torch.empty_like(x)
    dweight = torch.empty_like(weight)
    n_rows = rstd.numel()
    spec = _backward(*_tile(n_cols, backward=True))
    rows = spec.constexprs["ROWS"]
    per_program = cdiv(cdiv(n_rows, _programs(x.device)), rows) * rows
    programs = cdiv(n_rows, per_program)
    partial = x.new_empty((programs, n_cols), dtype=torch.float32)
    spec.launch((programs,), grad, x, weight, rstd, dx, partial, n_rows, n_cols, per_program)
    columns = _SUM_ROWS.constexprs["COLS"]
    _SUM_ROWS.launch((cdiv(n_cols, columns),), partial, dweight, programs, n_cols)
    return dx, dweight


def _check(x: Tensor, weight: Tensor) -> int:
    if x.dim() == 0 or weight.shape != x.shape[-1:]:
        raise ValueError(f"weight {list(weight.shape)} must be the last axis of x {list(x.shape)}")
    if x.shape[-1] > WIDEST_ROW:
        raise ValueError(f"rows of {x.shape[-1]} numbers are too wide: at most {WIDEST_ROW}")
    return x.shape[-1]


def _tile(n_cols: int, backward: bool = False) -> tuple[int, int, int]:
    """Rows and columns that a program holds at once, and its warps: up to 32 numbers a thread.

    Not 16, for fewer warps wait for each other at the end of every row, and several programs still
    fit on a multiprocessor: on an H200 the backward was 1.3 times as fast.
    """
    block = 1 << (n_cols - 1).bit_length()
    rows = max(1, (1024 if backward else 2048) // block)
    return rows, block, min(max(rows * block // 1024, 4), 16)


def _programs(device: torch.device) -> int:
    """Programs of the backward: as many as run at once, so that few partial sums are written."""
    if device.type != "cuda":
        return 4
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count


@cache
def _forward(rows: int, block: int, warps: int) -> Spec:
    matrices = dict.fromkeys(("x_ptr", "weight_ptr", "y_ptr"), "*bf16")
    sizes = {"n_rows": "i32", "n_cols": "i32", "eps": "fp32"}
    return _spec(
        _rms_norm_fwd_kernel, {**matrices, "rstd_ptr": "*fp32", **sizes}, rows, block, warps
    )


@cache
def _backward(rows: int, block: int, warps: int) -> Spec:
    matrices = dict.fromkeys(("grad_ptr", "x_ptr", "weight_ptr", "dx_ptr"), "*bf16")
    sums = {"rstd_ptr": "*fp32", "partial_ptr": "*fp32"}
    sizes = dict.fromkeys(("n_rows", "n_cols", "rows_per_program"), "i32")
    return _spec(_rms_norm_bwd_kernel, {**matrices, **sums, **sizes}, rows, block, warps)


def _spec(kernel: Any, signature: dict[str, str], rows: int, block: int, warps: int) -> Spec:
    return Spec(
        "rms_norm",
        kernel,
        signature,
        {"ROWS": rows, "BLOCK": block},
        num_warps=warps,
        divisible=("n_cols",),
        expects={"sm_90": r"ld\.global\.v4\.b32"},
    )


_SUM_ROWS = Spec(
    "sum_rows",
    _sum_rows_kernel,
    {"x_ptr": "*fp32", "out_ptr": "*bf16", "n_rows": "i32", "n_cols": "i32"},
    {"ROWS": 32, "COLS": 64},
    divisible=("n_cols",),
)
SPECS = (
    *(replace(_forward(*_tile(d)), name=f"rms_norm_fwd_{d}") for d in (7168, 512)),
    *(replace(_backward(*_tile(d, True)), name=f"rms_norm_bwd_{d}") for d in (7168, 16384, 512)),
    _SUM_ROWS,
)
