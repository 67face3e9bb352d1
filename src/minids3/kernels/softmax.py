"""Softmax over the rows of a matrix, in two versions that read memory differently.

*whole*   a program holds one row in registers: read once, written once.
*online*  the row is longer than a block, so the program walks over it twice. On the first walk it
          keeps the largest number so far and the sum of exponentials relative to it, and rescales
          the sum whenever the maximum grows (Milakov and Gimelshein 2018, arXiv 1805.02867,
          algorithm 3). Without that trick there would be three walks: maximum, sum, division.

Both subtract the row's maximum, so that no exponential overflows.
"""

# ruff: noqa: ANN001, ANN202  (kernels' arguments have no Python types)
from __future__ import annotations

import torch
from torch import Tensor

from minids3.kernels.compile import Spec
from minids3.kernels.language import jit, tl
from minids3.kernels.launch import cdiv, check_tensors

__all__ = ["LONGEST_WHOLE_ROW", "SPECS", "softmax"]

LONGEST_WHOLE_ROW = 16384
_ONLINE_BLOCK = 8192


@jit
def _softmax_kernel(x_ptr, out_ptr, n_cols, BLOCK: tl.constexpr):
    """out[i, j] = exp(x[i, j] - max_j x[i, j]) / sum_j exp(x[i, j] - max_j x[i, j]).

    x and out [rows, n_cols], one program a row; BLOCK >= n_cols.
    """
    row = tl.program_id(0).to(tl.int64) * n_cols
    col = tl.arange(0, BLOCK)
    inside = col < n_cols
    x = tl.load(x_ptr + row + col, mask=inside, other=-float("inf")).to(tl.float32)
    e = tl.exp(x - tl.max(x, 0))
    tl.store(out_ptr + row + col, e / tl.sum(e, 0), mask=inside)


@jit
def _softmax_online_kernel(x_ptr, out_ptr, n_cols, BLOCK: tl.constexpr):
    """The same in blocks, with m = max and l = sum exp(x - m) of what has been read so far.

    m' = max(m, max_j x[j]);  l' = l exp(m - m') + sum_j exp(x[j] - m');  out = exp(x - m) / l.
    x and out [rows, n_cols], one program a row.
    """
    row = tl.program_id(0).to(tl.int64) * n_cols
    biggest = -float("inf")
    total = 0.0
    for start in range(0, n_cols, BLOCK):
        col = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row + col, mask=col < n_cols, other=-float("inf")).to(tl.float32)
        new = tl.maximum(biggest, tl.max(x, 0))
        # Until a finite number has come, -inf - (-inf) must not become NaN.
        shift = tl.where(new == -float("inf"), 0.0, new)
        total = total * tl.exp(biggest - shift) + tl.sum(tl.exp(x - shift), 0)
        biggest = new
    for start in range(0, n_cols, BLOCK):
        col = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row + col, mask=col < n_cols, other=-float("inf")).to(tl.float32)
        tl.store(out_ptr + row + col, tl.exp(x - biggest) / total, mask=col < n_cols)


def softmax(x: Tensor, block: int | None = None) -> Tensor:
    """Softmax of each row, computed in fp32.

    Args:
        x: ``[..., N]``, any floating dtype, contiguous.
        block: walk over the rows in blocks of this power of two; None: a whole row at a time up to
            ``LONGEST_WHOLE_ROW`` numbers, in blocks of 8,192 beyond.

    Returns:
        ``[..., N]`` in the dtype of ``x``.

    Raises:
        ValueError: ``x`` is not contiguous, or ``block`` is no power of two.
    """
    if block is not None and (block < 1 or block & (block - 1)):
        raise ValueError(f"block={block} must be a power of two")
    check_tensors(x=x)
    out = torch.empty_like(x)
    if not x.numel():
        return out
    n_cols = x.shape[-1]
    rows = x.numel() // n_cols
    if block is None and n_cols <= LONGEST_WHOLE_ROW:
        whole = 1 << (n_cols - 1).bit_length()
        warps = min(max(whole // 512, 1), 16)
        _softmax_kernel[(rows,)](x, out, n_cols, BLOCK=whole, num_warps=warps)
    else:
        block = block or _ONLINE_BLOCK
        warps = min(max(cdiv(block, 512), 1), 16)
        _softmax_online_kernel[(rows,)](x, out, n_cols, BLOCK=block, num_warps=warps)
    return out


_SIGNATURE = {"x_ptr": "*bf16", "out_ptr": "*bf16", "n_cols": "i32"}
SPECS = (
    Spec(
        "softmax",
        _softmax_kernel,
        _SIGNATURE,
        {"BLOCK": 4096},
        num_warps=8,
        divisible=("n_cols",),
        expects={"sm_90": r"shfl\.sync\.bfly"},
    ),
    Spec(
        "softmax_online",
        _softmax_online_kernel,
        _SIGNATURE,
        {"BLOCK": _ONLINE_BLOCK},
        num_warps=16,
        divisible=("n_cols",),
        expects={"sm_90": r"ex2\.approx"},
    ),
)
