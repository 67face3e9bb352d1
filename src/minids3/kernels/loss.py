"""Cross-entropy over a large vocabulary, loss and gradient from one launch.

A row of V3's logits has 129,280 numbers, and a plain implementation reads or writes it about five
times. Here a program takes a row, walks over it once for the maximum and the sum of exponentials
together (the online softmax of ``kernels/softmax.py``), and a second time to write softmax -
onehot, the gradient. A row of V3 fits into no multiprocessor, so what the L2 cache has lost by then
is read twice. Written over the logits the gradient needs no memory of its own.

The gradient is that of the mean (or sum), for a gradient 1 of the loss. ``scale_`` multiplies it by
the real one afterwards, and touches nothing if that is 1, which it usually is.
"""

# ruff: noqa: ANN001, ANN202  (kernels' arguments have no Python types)
from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from minids3.kernels.compile import Spec
from minids3.kernels.language import jit, tl
from minids3.kernels.launch import cdiv, check_tensors

__all__ = ["SPECS", "cross_entropy_fwd_bwd", "scale_"]

_LONGEST_BLOCK = 8192


@jit
def _cross_entropy_kernel(
    logits_ptr,
    targets_ptr,
    counted_ptr,
    loss_ptr,
    grad_ptr,
    n_cols,
    ignore_index,
    GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """loss[i] = log sum_j exp(x[i, j]) - x[i, y_i];  dx[i, j] = (softmax(x)[i, j] - [j = y_i]) / n.

    logits x and grad dx [N, V = n_cols], which may be one and the same; targets y [N]; counted n
    [1]; loss [N]. Both are 0 where y_i = ignore_index. One program a row, in blocks of BLOCK.
    """
    row = tl.program_id(0).to(tl.int64)
    base = row * n_cols
    target = tl.load(targets_ptr + row)
    if target == ignore_index:
        tl.store(loss_ptr + row, 0.0)
        if GRADIENT:
            for start in range(0, n_cols, BLOCK):
                col = start + tl.arange(0, BLOCK)
                zero = tl.zeros((BLOCK,), tl.float32)
                tl.store(grad_ptr + base + col, zero, mask=col < n_cols)
    else:
        biggest = -float("inf")
        total = 0.0
        for start in range(0, n_cols, BLOCK):
            col = start + tl.arange(0, BLOCK)
            x = tl.load(
                logits_ptr + base + col,
                mask=col < n_cols,
                other=-float("inf"),
                eviction_policy="evict_last",  # to be read again
            ).to(tl.float32)
            new = tl.maximum(biggest, tl.max(x, 0))
            shift = tl.where(new == -float("inf"), 0.0, new)
            total = total * tl.exp(biggest - shift) + tl.sum(tl.exp(x - shift), 0)
            biggest = new
        # Read before the gradient may overwrite it. A target outside the vocabulary gives NaN.
        valid = (target >= 0) & (target < n_cols)
        chosen = tl.load(logits_ptr + base + target, mask=valid, other=float("nan"))
        log_total = biggest + tl.log(total)
        tl.store(loss_ptr + row, log_total - chosen.to(tl.float32))
        if GRADIENT:
            share = 1.0 / tl.load(counted_ptr).to(tl.float32)
            share = tl.where(valid, share, float("nan"))
            tl.debug_barrier()  # every thread has read its logits
            for start in range(0, n_cols, BLOCK):
                col = start + tl.arange(0, BLOCK)
                x = tl.load(
                    logits_ptr + base + col,
                    mask=col < n_cols,
                    other=-float("inf"),
                    eviction_policy="evict_first",
                ).to(tl.float32)
                probability = tl.exp(x - log_total)
                grad = (probability - tl.where(col == target, 1.0, 0.0)) * share
                tl.store(
                    grad_ptr + base + col, grad, mask=col < n_cols, eviction_policy="evict_first"
                )


@jit
def _scale_kernel(x_ptr, factor_ptr, n, BLOCK: tl.constexpr):
    """x[i] = factor x[i], in place; x [n], factor [1]."""
    factor = tl.load(factor_ptr).to(tl.float32)
    if factor != 1.0:
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + i, mask=i < n, other=0.0).to(tl.float32)
        tl.store(x_ptr + i, x * factor, mask=i < n)


def cross_entropy_fwd_bwd(
    logits: Tensor,
    targets: Tensor,
    ignore_index: int,
    *,
    gradient: bool = True,
    in_place: bool = False,
    mean: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Negative log-probability of the targets, mean or sum, and its gradient.

    Args:
        logits: ``[N, V]``, any floating dtype.
        targets: ``[N]`` int64.
        ignore_index: targets with this value count neither in the sum nor in the mean.
        gradient: whether to compute it.
        in_place: write the gradient over the logits, which are lost.
        mean: divide both by the number of targets that count.

    Returns:
        The loss, a scalar in fp32: 0 if no target counts, NaN if one lies outside the vocabulary,
        since finding out would stall the GPU. The gradient ``[N, V]`` in the dtype of ``logits``,
        or None.

    Raises:
        ValueError: shapes do not fit, targets are not int64, or a tensor is not contiguous.
    """
    if logits.dim() != 2 or targets.shape != logits.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(
            f"logits {list(logits.shape)} must be [N, V] and targets [N] int64, "
            f"not {list(targets.shape)} {targets.dtype}"
        )
    check_tensors(logits=logits, targets=targets)
    n_rows, n_cols = logits.shape
    counted = (targets != ignore_index).sum().clamp(min=1)
    if not mean:
        counted = torch.ones_like(counted)
    loss = torch.empty(n_rows, dtype=torch.float32, device=logits.device)
    grad = (logits if in_place else torch.empty_like(logits)) if gradient else None
    if logits.numel():
        spec = _cross_entropy(min(1 << (n_cols - 1).bit_length(), _LONGEST_BLOCK), gradient)
        written = logits if grad is None else grad
        spec.launch((n_rows,), logits, targets, counted, loss, written, n_cols, ignore_index)
    return loss.sum() / counted, grad


def scale_(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply ``x`` in place by a scalar tensor; costs nothing if it holds 1. Returns ``x``."""
    check_tensors(x=x, factor=factor)
    if x.numel():
        _SCALE.launch((cdiv(x.numel(), _SCALE.constexprs["BLOCK"]),), x, factor, x.numel())
    return x


@cache
def _cross_entropy(block: int, gradient: bool) -> Spec:
    rows = {"logits_ptr": "*bf16", "grad_ptr": "*bf16", "loss_ptr": "*fp32"}
    choice = {"targets_ptr": "*i64", "counted_ptr": "*i64", "ignore_index": "i32"}
    return Spec(
        "cross_entropy",
        _cross_entropy_kernel,
        {**rows, **choice, "n_cols": "i32"},
        {"GRADIENT": gradient, "BLOCK": block},
        num_warps=min(max(block // 512, 1), 16),
        divisible=("n_cols",),
        expects={"sm_90": r"ld\.global\S*\.v4\.b32"},
    )


_SCALE = Spec(
    "scale",
    _scale_kernel,
    {"x_ptr": "*bf16", "factor_ptr": "*fp32", "n": "i32"},
    {"BLOCK": 4096},
    divisible=("n",),
)
SPECS = (_cross_entropy(_LONGEST_BLOCK, True), _SCALE)
