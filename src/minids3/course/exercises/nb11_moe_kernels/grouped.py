"""The grouped product: one launch, every tile with its own expert's matrix."""

from __future__ import annotations

import math

import torch

from minids3.course.registry import Alternative, Mutant, exercise
from minids3.kernels.language import tl


# fmt: off
def grouped_gemm_kernel(x_ptr, w_ptr, map_ptr, y_ptr, N, K,
                        BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
                        BLOCK_K: tl.constexpr):
    """One tile of y = x @ w[expert].T; programs (tile, block of columns).

    x [M, K], rows sorted by expert; w [E, N, K]; y [M, N]
    map [tiles, 3] int32: expert (-1: nothing to do), first row, end of
    the expert's rows
    """
    tile = tl.program_id(0)
    expert = tl.load(map_ptr + 3 * tile)
    if expert < 0:
        return
    first = tl.load(map_ptr + 3 * tile + 1)
    end = tl.load(map_ptr + 3 * tile + 2)
    rows = first + tl.arange(0, BLOCK_M)
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + rows[:, None] * K + k[None, :], other=0.0,
                    mask=(rows < end)[:, None] & (k < K)[None, :])
        w = tl.load(w_ptr + (expert * N + cols[None, :]) * K + k[:, None],
                    mask=(cols < N)[None, :] & (k < K)[:, None], other=0.0)
        total = tl.dot(x, w, total, input_precision="ieee")
    inside = (rows < end)[:, None] & (cols < N)[None, :]
    tl.store(y_ptr + rows[:, None] * N + cols[None, :], total, mask=inside)
# fmt: on


def _gemm_first_expert(
    x_ptr, w_ptr, map_ptr, y_ptr, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    expert = tl.load(map_ptr + 3 * tile)
    if expert < 0:
        return
    first, end = tl.load(map_ptr + 3 * tile + 1), tl.load(map_ptr + 3 * tile + 2)
    rows = first + tl.arange(0, BLOCK_M)
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x_in = (rows < end)[:, None] & (k < K)[None, :]
        w_in = (cols < N)[None, :] & (k < K)[:, None]
        x = tl.load(x_ptr + rows[:, None] * K + k[None, :], mask=x_in, other=0.0)
        w = tl.load(w_ptr + cols[None, :] * K + k[:, None], mask=w_in, other=0.0)
        total = tl.dot(x, w, total, input_precision="ieee")
    inside = (rows < end)[:, None] & (cols < N)[None, :]
    tl.store(y_ptr + rows[:, None] * N + cols[None, :], total, mask=inside)


def _gemm_tile_as_rows(
    x_ptr, w_ptr, map_ptr, y_ptr, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    expert = tl.load(map_ptr + 3 * tile)
    if expert < 0:
        return
    end = tl.load(map_ptr + 3 * tile + 2)
    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x_in = (rows < end)[:, None] & (k < K)[None, :]
        w_in = (cols < N)[None, :] & (k < K)[:, None]
        x = tl.load(x_ptr + rows[:, None] * K + k[None, :], mask=x_in, other=0.0)
        w_at = w_ptr + (expert * N + cols[None, :]) * K + k[:, None]
        w = tl.load(w_at, mask=w_in, other=0.0)
        total = tl.dot(x, w, total, input_precision="ieee")
    inside = (rows < end)[:, None] & (cols < N)[None, :]
    tl.store(y_ptr + rows[:, None] * N + cols[None, :], total, mask=inside)


def _gemm_full_rows(
    x_ptr, w_ptr, map_ptr, y_ptr, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    expert = tl.load(map_ptr + 3 * tile)
    if expert < 0:
        return
    first, end = tl.load(map_ptr + 3 * tile + 1), tl.load(map_ptr + 3 * tile + 2)
    rows = first + tl.arange(0, BLOCK_M)
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x_in = (rows < end)[:, None] & (k < K)[None, :]
        w_in = (cols < N)[None, :] & (k < K)[:, None]
        x = tl.load(x_ptr + rows[:, None] * K + k[None, :], mask=x_in, other=0.0)
        w_at = w_ptr + (expert * N + cols[None, :]) * K + k[:, None]
        w = tl.load(w_at, mask=w_in, other=0.0)
        total = tl.dot(x, w, total, input_precision="ieee")
    inside = (rows < first + BLOCK_M)[:, None] & (cols < N)[None, :]
    tl.store(y_ptr + rows[:, None] * N + cols[None, :], total, mask=inside)


def _gemm_no_k_mask(
    x_ptr, w_ptr, map_ptr, y_ptr, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    expert = tl.load(map_ptr + 3 * tile)
    if expert < 0:
        return
    first, end = tl.load(map_ptr + 3 * tile + 1), tl.load(map_ptr + 3 * tile + 2)
    rows = first + tl.arange(0, BLOCK_M)
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x_in = (rows < end)[:, None] & (k < start + BLOCK_K)[None, :]
        w_in = (cols < N)[None, :] & (k < start + BLOCK_K)[:, None]
        x = tl.load(x_ptr + rows[:, None] * K + k[None, :], mask=x_in, other=0.0)
        w_at = w_ptr + (expert * N + cols[None, :]) * K + k[:, None]
        w = tl.load(w_at, mask=w_in, other=0.0)
        total = tl.dot(x, w, total, input_precision="ieee")
    inside = (rows < end)[:, None] & (cols < N)[None, :]
    tl.store(y_ptr + rows[:, None] * N + cols[None, :], total, mask=inside)


def _gemm_last_block(
    x_ptr, w_ptr, map_ptr, y_ptr, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    expert = tl.load(map_ptr + 3 * tile)
    if expert < 0:
        return
    first, end = tl.load(map_ptr + 3 * tile + 1), tl.load(map_ptr + 3 * tile + 2)
    rows = first + tl.arange(0, BLOCK_M)
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x_in = (rows < end)[:, None] & (k < K)[None, :]
        w_in = (cols < N)[None, :] & (k < K)[:, None]
        x = tl.load(x_ptr + rows[:, None] * K + k[None, :], mask=x_in, other=0.0)
        w_at = w_ptr + (expert * N + cols[None, :]) * K + k[:, None]
        w = tl.load(w_at, mask=w_in, other=0.0)
        total = tl.dot(x, w, input_precision="ieee")
    inside = (rows < end)[:, None] & (cols < N)[None, :]
    tl.store(y_ptr + rows[:, None] * N + cols[None, :], total, mask=inside)


def _gemm_no_column_mask(
    x_ptr, w_ptr, map_ptr, y_ptr, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    expert = tl.load(map_ptr + 3 * tile)
    if expert < 0:
        return
    first, end = tl.load(map_ptr + 3 * tile + 1), tl.load(map_ptr + 3 * tile + 2)
    rows = first + tl.arange(0, BLOCK_M)
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x_in = (rows < end)[:, None] & (k < K)[None, :]
        w_in = (cols < N)[None, :] & (k < K)[:, None]
        x = tl.load(x_ptr + rows[:, None] * K + k[None, :], mask=x_in, other=0.0)
        w_at = w_ptr + (expert * N + cols[None, :]) * K + k[:, None]
        w = tl.load(w_at, mask=w_in, other=0.0)
        total = tl.dot(x, w, total, input_precision="ieee")
    inside = (rows < end)[:, None] & (cols >= 0)[None, :]
    tl.store(y_ptr + rows[:, None] * N + cols[None, :], total, mask=inside)


def _gemm_untransposed(
    x_ptr, w_ptr, map_ptr, y_ptr, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    expert = tl.load(map_ptr + 3 * tile)
    if expert < 0:
        return
    first, end = tl.load(map_ptr + 3 * tile + 1), tl.load(map_ptr + 3 * tile + 2)
    rows = first + tl.arange(0, BLOCK_M)
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x_in = (rows < end)[:, None] & (k < K)[None, :]
        w_in = (cols < N)[None, :] & (k < K)[:, None]
        x = tl.load(x_ptr + rows[:, None] * K + k[None, :], mask=x_in, other=0.0)
        w_at = w_ptr + expert * N * K + k[:, None] * N + cols[None, :]
        w = tl.load(w_at, mask=w_in, other=0.0)
        total = tl.dot(x, w, total, input_precision="ieee")
    inside = (rows < end)[:, None] & (cols < N)[None, :]
    tl.store(y_ptr + rows[:, None] * N + cols[None, :], total, mask=inside)


def _gemm_no_return(
    x_ptr, w_ptr, map_ptr, y_ptr, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    expert = tl.load(map_ptr + 3 * tile)
    first, end = tl.load(map_ptr + 3 * tile + 1), tl.load(map_ptr + 3 * tile + 2)
    rows = first + tl.arange(0, BLOCK_M)
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x_in = (rows < end)[:, None] & (k < K)[None, :]
        w_in = (cols < N)[None, :] & (k < K)[:, None]
        x = tl.load(x_ptr + rows[:, None] * K + k[None, :], mask=x_in, other=0.0)
        w_at = w_ptr + (expert * N + cols[None, :]) * K + k[:, None]
        w = tl.load(w_at, mask=w_in, other=0.0)
        total = tl.dot(x, w, total, input_precision="ieee")
    inside = (rows < end)[:, None] & (cols < N)[None, :]
    tl.store(y_ptr + rows[:, None] * N + cols[None, :], total, mask=inside)


def _gemm_row_of_nobody(
    x_ptr, w_ptr, map_ptr, y_ptr, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    expert = tl.maximum(tl.load(map_ptr + 3 * tile), 0)
    first, end = tl.load(map_ptr + 3 * tile + 1), tl.load(map_ptr + 3 * tile + 2)
    end = tl.maximum(end, first + 1)
    rows = first + tl.arange(0, BLOCK_M)
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x_in = (rows < end)[:, None] & (k < K)[None, :]
        w_in = (cols < N)[None, :] & (k < K)[:, None]
        x = tl.load(x_ptr + rows[:, None] * K + k[None, :], mask=x_in, other=0.0)
        w_at = w_ptr + (expert * N + cols[None, :]) * K + k[:, None]
        w = tl.load(w_at, mask=w_in, other=0.0)
        total = tl.dot(x, w, total, input_precision="ieee")
    inside = (rows < end)[:, None] & (cols < N)[None, :]
    tl.store(y_ptr + rows[:, None] * N + cols[None, :], total, mask=inside)


def _gemm_sizes_mixed(
    x_ptr, w_ptr, map_ptr, y_ptr, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    expert = tl.load(map_ptr + 3 * tile)
    if expert < 0:
        return
    first, end = tl.load(map_ptr + 3 * tile + 1), tl.load(map_ptr + 3 * tile + 2)
    rows = first + tl.arange(0, BLOCK_M)
    cols = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x_in = (rows < end)[:, None] & (k < K)[None, :]
        w_in = (cols < N)[None, :] & (k < K)[:, None]
        x = tl.load(x_ptr + rows[:, None] * K + k[None, :], mask=x_in, other=0.0)
        w_at = w_ptr + (expert * N + cols[None, :]) * K + k[:, None]
        w = tl.load(w_at, mask=w_in, other=0.0)
        total = tl.dot(x, w, total, input_precision="ieee")
    inside = (rows < end)[:, None] & (cols < N)[None, :]
    tl.store(y_ptr + rows[:, None] * N + cols[None, :], total, mask=inside)


def _gemm_clamped(
    x_ptr, w_ptr, map_ptr, y_ptr, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    map_ptr += 3 * tl.program_id(0)
    expert = tl.load(map_ptr)
    if expert >= 0:
        first, end = tl.load(map_ptr + 1), tl.load(map_ptr + 2)
        row = first + tl.arange(0, BLOCK_M)
        col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        k = tl.arange(0, BLOCK_K)
        x_at = x_ptr + tl.minimum(row, end - 1)[:, None] * K + k[None, :]
        w_at = w_ptr + expert * N * K + tl.minimum(col, N - 1)[None, :] * K + k[:, None]
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for start in range(0, K, BLOCK_K):
            x = tl.load(x_at, mask=k[None, :] < K - start, other=0.0)
            w = tl.load(w_at, mask=k[:, None] < K - start, other=0.0)
            total += tl.dot(x, w, input_precision="ieee")
            x_at += BLOCK_K
            w_at += BLOCK_K
        valid = (row[:, None] < end) & (col[None, :] < N)
        tl.store(y_ptr + row[:, None] * N + col[None, :], total, mask=valid)


def _gemm_outer(
    x_ptr, w_ptr, map_ptr, y_ptr, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    expert, first = tl.load(map_ptr + 3 * tile), tl.load(map_ptr + 3 * tile + 1)
    end = tl.load(map_ptr + 3 * tile + 2)  # 0 where there is no tile: nothing is stored
    rows = first + tl.arange(0, BLOCK_M)
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_in, col_in = rows < end, cols < tl.where(expert < 0, 0, N)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, 8):  # eight columns at a time, without tl.dot
        k = start + tl.arange(0, 8)[None, :]
        x = tl.load(x_ptr + rows[:, None] * K + k, mask=row_in[:, None] & (k < K), other=0.0)
        w_at = w_ptr + (expert * N + cols[:, None]) * K + k
        w = tl.load(w_at, mask=col_in[:, None] & (k < K), other=0.0).to(tl.float32)
        total += tl.sum(x.to(tl.float32)[:, None, :] * w[None, :, :], 2)
    at = y_ptr + rows[:, None] * N + cols[None, :]
    tl.store(at, total, mask=row_in[:, None] & col_in[None, :])


@exercise(
    "moe-grouped-gemm",
    solution=grouped_gemm_kernel,
    notebook="11_moe_kernels",
    title="A product with many right-hand sides",
    difficulty=4,
    importance=5,
    minutes=20,
    kernel=True,
    hints=(
        "Compared with a plain product only three things are new. Which one changes where rows "
        "start, which one where w starts, and which one where a tile has to stop storing?",
        "expert, first, end = three loads from map_ptr + 3 * tile\n"
        "if expert < 0: return\n"
        "rows = first + 0..BLOCK_M;  cols = program_id(1) * BLOCK_N + 0..BLOCK_N\n"
        "total = zeros, fp32\n"
        "for each block of k:\n"
        "    x [BLOCK_M, BLOCK_K], masked by rows < end and k < K\n"
        "    w [BLOCK_K, BLOCK_N] of this expert: row cols of w[expert], column k\n"
        '    total = tl.dot(x, w, total, input_precision="ieee")\n'
        "store total where rows < end and cols < N",
    ),
    mutants=[
        Mutant(
            "first_expert",
            _gemm_first_expert,
            "Every tile is multiplied by expert 0's matrix. Expert e's begins e * N * K numbers "
            "after w_ptr.",
        ),
        Mutant(
            "tile_as_rows",
            _gemm_tile_as_rows,
            "Your rows start at tile * BLOCK_M, as if all tiles before were full. The map says "
            "where this one starts: first.",
        ),
        Mutant(
            "full_rows",
            _gemm_full_rows,
            "A ragged tile stored all its BLOCK_M rows, over rows of the next expert. Whichever "
            "program comes last wins: store only rows < end.",
        ),
        Mutant(
            "no_k_mask",
            _gemm_no_k_mask,
            "Your last block of k reads past the row's end into the next row. Mask k < K, "
            "other=0.0.",
        ),
        Mutant(
            "last_block",
            _gemm_last_block,
            "Each block of k replaces the sum of those before. Give total to tl.dot as its third "
            "argument, or add.",
        ),
        Mutant(
            "no_column_mask",
            _gemm_no_column_mask,
            "Columns beyond N are stored as well, at the start of the next row. Mask cols < N.",
        ),
        Mutant(
            "untransposed",
            _gemm_untransposed,
            "You read w[expert] as [K, N]. It is [N, K]: column k of row n is at n * K + k.",
        ),
        Mutant(
            "no_return",
            _gemm_no_return,
            "A program without a tile has expert -1, and yours looked for its matrix before the "
            "first. It has to return, or mask everything.",
        ),
        Mutant(
            "row_of_nobody",
            _gemm_row_of_nobody,
            "A program without a tile (expert -1) stored a row all the same. It has to return, or "
            "mask everything.",
        ),
        Mutant(
            "sizes_mixed",
            _gemm_sizes_mixed,
            "Your columns start BLOCK_M apart. A tile has BLOCK_M rows and BLOCK_N columns, and "
            "the two need not be equal.",
        ),
    ],
    alternatives=[
        Alternative("clamped", _gemm_clamped),
        Alternative("outer", _gemm_outer),
    ],
)
def check_grouped_gemm(c):
    """Ragged tiles in any order, empty experts, odd sizes, fp16 inputs, a single row."""
    block = 16
    counts = [0, c.size(2, 7), block + c.size(2, 7), block, 0, c.size(17, 20)]
    n, k = c.size(18, 22), c.size(18, 22)
    x, w, y, tiles = _case(c, counts, n, k, block)
    used = int((tiles[:, 0] >= 0).sum())  # programs finish in any order: here the last one first
    tiles = torch.cat((tiles[:used].flip(0), tiles[used:])).contiguous()
    label = f"runs: {len(x)} rows, {len(counts)} experts, N = {n}, K = {k}"
    c.launch(
        (len(tiles), 2), x, w, tiles, y, n, k,
        BLOCK_M=block, BLOCK_N=16, BLOCK_K=16, label=label,
    )  # fmt: skip
    want, experts = (
        _want(x, w, counts),
        torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)),
    )
    with c.part():
        c.true(y.written(), "every element of y is written", "some still hold the poison")
    with c.part():
        first = experts == 1
        label = "expert 1's rows are right, and expert 0 has none"
        c.close(y.view[first], want[first], label=label, atol=1e-4)
    with c.part():
        c.close(y.view, want, label="all rows, each with its own expert's matrix", atol=1e-4)
    with c.part():
        c.true(y.untouched(), "nothing is written outside of y", "the memory after it has changed")
    for name, counts, dtype in (
        ("fp16 inputs, fp32 sums", [3, 0, 5], torch.float16),
        ("a single row for the last expert", [0, 0, 1], torch.float32),
    ):
        with c.part():
            x, w, y, tiles = _case(c, counts, 16, 40, block, dtype)
            c.launch((len(tiles), 1), x, w, tiles, y, 16, 40, BLOCK_M=block, BLOCK_N=16, BLOCK_K=16)
            c.close(y.view, _want(x, w, counts), label=name, atol=1e-4)
    with c.part():
        x, w, y, tiles = _case(c, [0, 40, 9], 70, 33, 32)
        sizes = {"BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_K": 16}
        c.launch((len(tiles), 2), x, w, tiles, y, 70, 33, **sizes)
        label = "tiles of 32 rows and 64 columns, 16 of K at a time"
        c.close(y.view, _want(x, w, [0, 40, 9]), label=label, atol=1e-4)


def _case(c, counts, n, k, block, dtype=torch.float32):
    rows = sum(counts)
    x, w = _inside(c, (rows, k), dtype), _inside(c, (len(counts), n, k), dtype)
    tiles, row = [], 0
    for expert, count in enumerate(counts):
        tiles += [[expert, first, row + count] for first in range(row, row + count, block)]
        row += count
    tiles += [[-1, 0, 0]] * (rows // block + min(len(counts), rows) - len(tiles))
    return x, w, c.guarded(rows, n), torch.tensor(tiles, dtype=torch.int32)


def _inside(c, shape, dtype):
    """Random numbers with more of them behind: what a load without a mask would find."""
    size = math.prod(shape)
    return c.randn(size + 1024, dtype=dtype)[:size].view(shape)


def _want(x, w, counts):
    pairs = zip(x.double().split(counts), w.double(), strict=True)
    return torch.cat([torch.einsum("mk,nk->mn", rows, matrix) for rows, matrix in pairs]).float()
