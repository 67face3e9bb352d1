"""SwiGLU, silu(gate) * up, forward and backward, each in one pass.

Gate and up are either two tensors or the halves of one joint product ``[M, 2F]``, as the experts
compute it. The kernel sees rows with a stride either way, so the halves need no copy. Backward
computes the sigmoid again from the gate: reading it back would cost more than the exponential.
"""

# ruff: noqa: ANN001, ANN202  (kernels' arguments have no Python types)
from __future__ import annotations

import torch
from torch import Tensor

from minids3.kernels.compile import Spec
from minids3.kernels.language import jit, tl
from minids3.kernels.launch import cdiv, check_tensors

__all__ = ["SPECS", "swiglu_bwd", "swiglu_fwd"]

_BLOCK = 1024


@jit
def _swiglu_fwd_kernel(
    gate_ptr,
    up_ptr,
    out_ptr,
    n_cols,
    row_stride,
    blocks_per_row,
    BLOCK: tl.constexpr,
):
    """out = silu(g) u = g / (1 + exp(-g)) u, element by element.

    gate g, up u [rows, n_cols], rows row_stride apart; out [rows, n_cols] without gaps.
    """
    program = tl.program_id(0).to(tl.int64)
    row = program // blocks_per_row
    col = (program % blocks_per_row) * BLOCK + tl.arange(0, BLOCK)
    inside = col < n_cols
    at = row * row_stride + col
    gate = tl.load(gate_ptr + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + at, mask=inside, other=0.0).to(tl.float32)
    out = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out_ptr + row * n_cols + col, out, mask=inside)


@jit
def _swiglu_bwd_kernel(
    grad_ptr,
    gate_ptr,
    up_ptr,
    dgate_ptr,
    dup_ptr,
    n_cols,
    row_stride,
    blocks_per_row,
    BLOCK: tl.constexpr,
):
    """dg = dy u (s + g s (1 - s)),  du = dy g s,  with s = sigmoid(g).

    grad dy [rows, n_cols] without gaps; gate g, up u, dgate dg, dup du likewise but rows
    row_stride apart.
    """
    program = tl.program_id(0).to(tl.int64)
    row = program // blocks_per_row
    col = (program % blocks_per_row) * BLOCK + tl.arange(0, BLOCK)
    inside = col < n_cols
    at = row * row_stride + col
    grad = tl.load(grad_ptr + row * n_cols + col, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + at, mask=inside, other=0.0).to(tl.float32)
    sigmoid = 1.0 / (1.0 + tl.exp(-gate))
    silu = gate * sigmoid
    dgate = grad * up * (sigmoid + silu * (1.0 - sigmoid))
    tl.store(dgate_ptr + at, dgate, mask=inside)
    tl.store(dup_ptr + at, grad * silu, mask=inside)


def swiglu_fwd(gate: Tensor, up: Tensor | None = None) -> Tensor:
    """silu(gate) * up, computed in fp32.

    Args:
        gate: ``[..., F]``, or without ``up`` the joint ``[..., 2F]``, gate first.
        up: ``[..., F]``, or None.

    Returns:
        ``[..., F]`` in the dtype of ``gate``.

    Raises:
        ValueError: shapes or dtypes differ, the joint width is odd, or a tensor is not contiguous.
    """
    shape, n_cols, stride = _check(gate, up)
    out = torch.empty(shape, dtype=gate.dtype, device=gate.device)
    if out.numel():
        grid, blocks = _grid(out, n_cols)
        gate, up = _halves(gate, up, n_cols)
        _swiglu_fwd_kernel[grid](gate, up, out, n_cols, stride, blocks, BLOCK=_BLOCK)
    return out


def swiglu_bwd(
    grad: Tensor, gate: Tensor, up: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Gradients of ``gate`` and ``up``; of the joint tensor and None if there is no ``up``.

    Raises ``ValueError`` as ``swiglu_fwd`` does, and if ``grad`` has not the shape of the output.
    """
    shape, n_cols, stride = _check(gate, up)
    if grad.shape != shape:
        raise ValueError(f"grad is {list(grad.shape)}, the output {list(shape)}")
    check_tensors(grad=grad, gate=gate)
    dgate = torch.empty_like(gate)
    dup = None if up is None else torch.empty_like(up)
    if grad.numel():
        grid, blocks = _grid(grad, n_cols)
        arguments = *_halves(gate, up, n_cols), *_halves(dgate, dup, n_cols)
        _swiglu_bwd_kernel[grid](grad, *arguments, n_cols, stride, blocks, BLOCK=_BLOCK)
    return dgate, dup


def _check(gate: Tensor, up: Tensor | None) -> tuple[torch.Size, int, int]:
    """Shape of the output; columns and row stride as the kernel is to see them."""
    check_tensors(gate=gate, up=up)
    if up is None:
        if gate.dim() == 0 or gate.shape[-1] % 2:
            raise ValueError(f"gate and up together need an even width, not {list(gate.shape)}")
        n_cols = gate.shape[-1] // 2
        return torch.Size((*gate.shape[:-1], n_cols)), n_cols, 2 * n_cols
    if gate.shape != up.shape or gate.dtype != up.dtype:
        raise ValueError(
            f"gate {list(gate.shape)} {gate.dtype} and up {list(up.shape)} {up.dtype} must agree"
        )
    return gate.shape, gate.numel(), gate.numel()  # contiguous: one long row


def _halves(gate: Tensor, up: Tensor | None, n_cols: int) -> tuple[Tensor, Tensor]:
    return (gate, up) if up is not None else (gate, gate.view(-1)[n_cols:])


def _grid(out: Tensor, n_cols: int) -> tuple[tuple[int], int]:
    blocks = cdiv(n_cols, _BLOCK)
    return (out.numel() // n_cols * blocks,), blocks


_SIZES = {"n_cols": "i32", "row_stride": "i32", "blocks_per_row": "i32"}
_DIVISIBLE = ("n_cols", "row_stride")
SPECS = (
    Spec(
        "swiglu_fwd",
        _swiglu_fwd_kernel,
        {**dict.fromkeys(("gate_ptr", "up_ptr", "out_ptr"), "*bf16"), **_SIZES},
        {"BLOCK": _BLOCK},
        divisible=_DIVISIBLE,
        expects={"sm_90": r"ld\.global\.v4\.b32"},
    ),
    Spec(
        "swiglu_bwd",
        _swiglu_bwd_kernel,
        {
            **dict.fromkeys(("grad_ptr", "gate_ptr", "up_ptr", "dgate_ptr", "dup_ptr"), "*bf16"),
            **_SIZES,
        },
        {"BLOCK": _BLOCK},
        divisible=_DIVISIBLE,
        expects={"sm_90": r"ld\.global\.v4\.b32"},
    ),
)
