"""Dispatch, grouped matrix product and combine: the three moves of a mixture of experts.

A token goes to K experts, so N tokens make N*K *rows*. Dispatch puts the rows in the order of their
experts, so that each expert's rows lie together; the grouped product multiplies each stretch by its
own expert's matrix; combine brings the rows back and sums the K of each token.

Both moves are permutations, and the gradient of a permutation is its inverse. Saying so (the two
``Function`` classes) turns scattered additions into plain reads, which are faster and always sum in
the same order. The alternative, ``index_add``, is one line shorter and non-deterministic on GPUs.

``backend`` is ``"ref"``, plain PyTorch; ``"triton"``; or ``"auto"``: Triton for CUDA tensors, but
PyTorch's own grouped kernel for products in BF16 where this version has one.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from minids3.ops.backend import use_triton

__all__ = ["Dispatch", "check_grouped", "combine", "dispatch", "grouped_mm", "plan_dispatch"]


class Dispatch(NamedTuple):
    """Where every row goes.

    order: ``[N*K]``, the row (token * K + slot) that stands at each place after sorting.
    inverse: ``[N*K]``, the place of each row.
    counts: ``[E]``, rows per expert; experts without rows count 0.
    """

    order: Tensor
    inverse: Tensor
    counts: Tensor


def plan_dispatch(indices: Tensor, n_experts: int) -> Dispatch:
    """Sort the rows of ``indices [N, K]`` by expert; rows of one expert keep their order.

    Raises:
        ValueError: an index names no expert. On a GPU that is not looked for: it would wait.
    """
    flat = indices.flatten()
    order = flat.argsort(stable=True)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.numel(), device=order.device)
    if not flat.is_cuda:
        return Dispatch(order, inverse, _count(flat, n_experts))
    # bincount would wait for the GPU, to learn how long its result is.
    starts = torch.searchsorted(flat[order], torch.arange(n_experts + 1, device=flat.device))
    return Dispatch(order, inverse, starts.diff())


def _count(flat: Tensor, n_experts: int) -> Tensor:
    try:
        counts = torch.bincount(flat, minlength=n_experts)
        if len(counts) == n_experts:
            return counts
    except RuntimeError:  # negative, or no whole numbers
        pass
    raise ValueError(
        f"indices must be whole numbers from 0 to {n_experts - 1}, got {flat.dtype} from "
        f"{flat.min().item()} to {flat.max().item()}"
    )


def dispatch(x: Tensor, plan: Dispatch, *, backend: str = "auto") -> Tensor:
    """Copy each token to its K rows, in the order of the experts: ``[N, D] -> [N*K, D]``.

    Raises:
        ValueError: the plan was made for another number of tokens.
    """
    if plan.order.numel() % max(x.shape[0], 1) or (plan.order.numel() and not x.shape[0]):
        raise ValueError(f"{x.shape[0]} tokens do not fit a plan of {plan.order.numel()} rows")
    if use_triton(x, backend):
        return _DispatchTriton.apply(x, plan.inverse)
    return _DispatchFunction.apply(x, plan.order, plan.inverse)


def combine(y: Tensor, weights: Tensor, plan: Dispatch, *, backend: str = "auto") -> Tensor:
    """Bring rows back to their tokens and sum them by weight: ``[N*K, D], [N, K] -> [N, D]``.

    Raises:
        ValueError: rows, weights and plan differ in their number of rows.
    """
    if not y.shape[0] == weights.numel() == plan.order.numel():
        raise ValueError(
            f"y {list(y.shape)} and weights {list(weights.shape)} do not fit a plan of "
            f"{plan.order.numel()} rows"
        )
    if use_triton(y, backend):
        return _CombineTriton.apply(y, weights, plan.inverse)
    return _CombineFunction.apply(y, weights, plan.order, plan.inverse)


class _DispatchFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.top_k = max(order.numel() // max(x.shape[0], 1), 1)
        return x.index_select(0, order // ctx.top_k)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        rows = grad.index_select(0, inverse).unflatten(0, (-1, ctx.top_k))
        return rows.sum(1), None, None


class _CombineFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, weights: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        rows = y.index_select(0, inverse).unflatten(0, weights.shape)
        ctx.save_for_backward(rows, weights, order)
        return torch.bmm(weights.to(y.dtype)[:, None], rows)[:, 0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        rows, weights, order = ctx.saved_tensors
        grad_rows = grad.index_select(0, order // weights.shape[1])
        grad_rows = grad_rows.mul_(weights.to(grad.dtype).flatten()[order][:, None])
        grad_weights = torch.bmm(rows, grad[..., None])[..., 0].to(weights.dtype)
        return grad_rows, grad_weights, None, None


class _DispatchTriton(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, inverse: Tensor) -> Tensor:
        from minids3.kernels.moe import permute

        ctx.save_for_backward(inverse)
        ctx.top_k = max(inverse.numel() // max(x.shape[0], 1), 1)
        return permute(x.contiguous(), inverse=inverse, top_k=ctx.top_k)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        from minids3.kernels.moe import unpermute

        (inverse,) = ctx.saved_tensors
        return unpermute(grad.contiguous(), None, inverse, ctx.top_k), None


class _CombineTriton(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, weights: Tensor, inverse: Tensor) -> Tensor:
        from minids3.kernels.moe import unpermute

        y, weights = y.contiguous(), weights.contiguous()
        ctx.save_for_backward(y, weights, inverse)
        return unpermute(y, weights, inverse)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        from minids3.kernels.moe import combine_bwd

        y, weights, inverse = ctx.saved_tensors
        return *combine_bwd(grad.contiguous(), y, weights, inverse=inverse), None


def check_grouped(x: Tensor, weight: Tensor, counts: Tensor) -> None:
    """Refuse what does not fit in a grouped product of ``x [M, K]`` and ``weight [E, N, K]``.

    Counts on a GPU are not read, which would wait for it; there they are the caller's to get right.

    Raises:
        ValueError: shapes that do not fit, counts that are no whole numbers, are negative, or do
            not sum to M.
    """
    if x.ndim != 2 or weight.ndim != 3 or x.shape[1] != weight.shape[2]:
        raise ValueError(f"x {list(x.shape)} does not fit weight {list(weight.shape)}")
    if counts.shape != weight.shape[:1] or counts.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"counts are {list(counts.shape)} {counts.dtype}, expected [{weight.shape[0]}] int64: "
            "the rows of each expert"
        )
    if counts.device.type == "cpu":
        each = counts.tolist()
        if sum(each) != x.shape[0] or min(each, default=0) < 0:
            raise ValueError(
                f"counts must sum to the {x.shape[0]} rows of x and not be negative: they sum to "
                f"{sum(each)}, the least is {min(each, default=0)}"
            )


def grouped_mm(x: Tensor, weight: Tensor, counts: Tensor, *, backend: str = "auto") -> Tensor:
    """Multiply each expert's rows by its own matrix, transposed as in ``F.linear``.

    On a GPU it is a single launch and the counts never leave the device, by PyTorch's kernel or by
    ours. Elsewhere it is a loop over the experts that have rows.

    Args:
        x: ``[M, in]``, rows sorted by expert.
        weight: ``[E, out, in]``.
        counts: ``[E]`` int64, rows per expert, summing to M.
        backend: ``"auto"``, ``"ref"`` (the loop) or ``"triton"``.

    Returns:
        ``[M, out]`` in the dtype of ``x``.

    Raises:
        ValueError: as ``check_grouped``.
    """
    check_grouped(x, weight, counts)
    if backend == "auto" and x.is_cuda and x.dtype == torch.bfloat16 and hasattr(F, "grouped_mm"):
        offsets = counts.cumsum(0).to(torch.int32)
        return F.grouped_mm(x, weight.transpose(1, 2), offs=offsets)
    if use_triton(x, backend):
        return _GroupedTriton.apply(x, weight, counts)
    return _GroupedMM.apply(x, weight, tuple(counts.tolist()))


class _GroupedTriton(torch.autograd.Function):
    """One launch forward, one for each gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
        from minids3.kernels.grouped import grouped_gemm_nt

        x, weight = x.contiguous(), weight.contiguous()
        ctx.save_for_backward(x, weight, counts)
        return grouped_gemm_nt(x, weight, counts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        from minids3.kernels.grouped import grouped_gemm_nn, grouped_wgrad

        x, weight, counts = ctx.saved_tensors
        grad = grad.contiguous()
        need_x, need_weight = ctx.needs_input_grad[:2]
        return (
            grouped_gemm_nn(grad, weight, counts) if need_x else None,
            grouped_wgrad(grad, x, counts) if need_weight else None,
            None,
        )


class _GroupedMM(torch.autograd.Function):
    """The loop, every product written into its place in one result."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, counts: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.counts = counts
        out = x.new_empty(x.shape[0], weight.shape[1])
        for e, rows in _stretches(counts):
            torch.mm(x[rows], weight[e].T, out=out[rows])
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        if grad_weight is not None:
            grad_weight[[e for e, n in enumerate(ctx.counts) if not n]] = 0
        for e, rows in _stretches(ctx.counts):
            if grad_x is not None:
                torch.mm(grad[rows], weight[e], out=grad_x[rows])
            if grad_weight is not None:
                torch.mm(grad[rows].T, x[rows], out=grad_weight[e])
        return grad_x, grad_weight, None


def _stretches(counts: tuple[int, ...]) -> list[tuple[int, slice]]:
    """Each expert that has rows, and which rows are its own."""
    stops = list(itertools.accumulate(counts))
    return [(e, slice(stops[e] - n, stops[e])) for e, n in enumerate(counts) if n]
