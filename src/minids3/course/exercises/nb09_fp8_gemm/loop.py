"""The main loop of the block-scaled product."""

from __future__ import annotations

import torch

from minids3.course.exercises.nb09_fp8_gemm.common import codes_of, product, uneven
from minids3.course.registry import Alternative, Mutant, exercise
from minids3.kernels.fp8 import decode_e4m3
from minids3.kernels.language import tl
from minids3.ref.quant import WEIGHT_BLOCK, quantize_ref


# fmt: off
def gemm_kernel(a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, y_ptr, M, N, K,
                BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """One tile of Y = A B^T, all sizes multiples of their blocks.

    a [M, K], b [N, K]: E4M3 codes; y [M, N] fp32
    a_scale [M, K / 128]; b_scale [N / 128, K / 128]
    program (i, j) owns rows i * BLOCK_M .. and columns j * BLOCK_N ..;
    BLOCK_N divides 128, so all its columns share a row of b_scale
    """
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    tiles = K // 128
    b_row = tl.program_id(1) * BLOCK_N // 128
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(tiles):
        k = step * 128 + tl.arange(0, 128)
        a = decode_e4m3(tl.load(a_ptr + row[:, None] * K + k[None, :]))
        b = decode_e4m3(tl.load(b_ptr + col[None, :] * K + k[:, None]))
        a_scale = tl.load(a_scale_ptr + row * tiles + step)
        b_scale = tl.load(b_scale_ptr + b_row * tiles + step)
        total += tl.dot(a, b) * (a_scale * b_scale)[:, None]
    tl.store(y_ptr + row[:, None] * N + col[None, :], total)


def _loop_after_last(a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, y_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    tiles = K // 128
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(tiles):
        k = step * 128 + tl.arange(0, 128)
        a = decode_e4m3(tl.load(a_ptr + row[:, None] * K + k[None, :]))
        b = decode_e4m3(tl.load(b_ptr + col[None, :] * K + k[:, None]))
        total += tl.dot(a, b)
    a_scale = tl.load(a_scale_ptr + row * tiles + tiles - 1)
    b_scale = tl.load(b_scale_ptr + tl.program_id(1) * BLOCK_N // 128 * tiles + tiles - 1)
    total *= (a_scale * b_scale)[:, None]
    tl.store(y_ptr + row[:, None] * N + col[None, :], total)


def _loop_after_mean(a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, y_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    tiles = K // 128
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    scale = tl.zeros((BLOCK_M,), tl.float32)
    for step in range(tiles):
        k = step * 128 + tl.arange(0, 128)
        a = decode_e4m3(tl.load(a_ptr + row[:, None] * K + k[None, :]))
        b = decode_e4m3(tl.load(b_ptr + col[None, :] * K + k[:, None]))
        total += tl.dot(a, b)
        a_scale = tl.load(a_scale_ptr + row * tiles + step)
        b_scale = tl.load(b_scale_ptr + tl.program_id(1) * BLOCK_N // 128 * tiles + step)
        scale += a_scale * b_scale / tiles
    tl.store(y_ptr + row[:, None] * N + col[None, :], total * scale[:, None])


def _loop_first_scale(a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, y_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    tiles = K // 128
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    a_scale = tl.load(a_scale_ptr + row * tiles)
    b_scale = tl.load(b_scale_ptr + tl.program_id(1) * BLOCK_N // 128 * tiles)
    for step in range(tiles):
        k = step * 128 + tl.arange(0, 128)
        a = decode_e4m3(tl.load(a_ptr + row[:, None] * K + k[None, :]))
        b = decode_e4m3(tl.load(b_ptr + col[None, :] * K + k[:, None]))
        total += tl.dot(a, b) * (a_scale * b_scale)[:, None]
    tl.store(y_ptr + row[:, None] * N + col[None, :], total)


def _loop_running(a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, y_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    tiles = K // 128
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(tiles):
        k = step * 128 + tl.arange(0, 128)
        a = decode_e4m3(tl.load(a_ptr + row[:, None] * K + k[None, :]))
        b = decode_e4m3(tl.load(b_ptr + col[None, :] * K + k[:, None]))
        a_scale = tl.load(a_scale_ptr + row * tiles + step)
        b_scale = tl.load(b_scale_ptr + tl.program_id(1) * BLOCK_N // 128 * tiles + step)
        total = (total + tl.dot(a, b)) * (a_scale * b_scale)[:, None]
    tl.store(y_ptr + row[:, None] * N + col[None, :], total)


def _loop_program_scale(a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, y_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    tiles = K // 128
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(tiles):
        k = step * 128 + tl.arange(0, 128)
        a = decode_e4m3(tl.load(a_ptr + row[:, None] * K + k[None, :]))
        b = decode_e4m3(tl.load(b_ptr + col[None, :] * K + k[:, None]))
        a_scale = tl.load(a_scale_ptr + row * tiles + step)
        b_scale = tl.load(b_scale_ptr + tl.program_id(1) * tiles + step)
        total += tl.dot(a, b) * (a_scale * b_scale)[:, None]
    tl.store(y_ptr + row[:, None] * N + col[None, :], total)


def _loop_one_row(a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, y_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    tiles = K // 128
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(tiles):
        k = step * 128 + tl.arange(0, 128)
        a = decode_e4m3(tl.load(a_ptr + row[:, None] * K + k[None, :]))
        b = decode_e4m3(tl.load(b_ptr + col[None, :] * K + k[:, None]))
        a_scale = tl.load(a_scale_ptr + tl.program_id(0) * BLOCK_M * tiles + step)
        b_scale = tl.load(b_scale_ptr + tl.program_id(1) * BLOCK_N // 128 * tiles + step)
        total += tl.dot(a, b) * (a_scale * b_scale)
    tl.store(y_ptr + row[:, None] * N + col[None, :], total)


def _loop_across(a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, y_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    tiles = K // 128
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(tiles):
        k = step * 128 + tl.arange(0, 128)
        a = decode_e4m3(tl.load(a_ptr + row[:, None] * K + k[None, :]))
        b = decode_e4m3(tl.load(b_ptr + col[None, :] * K + k[:, None]))
        a_scale = tl.load(a_scale_ptr + row * tiles + step)
        b_scale = tl.load(b_scale_ptr + tl.program_id(1) * BLOCK_N // 128 * tiles + step)
        total += tl.dot(a, b) * (a_scale * b_scale)[None, :]
    tl.store(y_ptr + row[:, None] * N + col[None, :], total)


def _loop_no_b_scale(a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, y_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    tiles = K // 128
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(tiles):
        k = step * 128 + tl.arange(0, 128)
        a = decode_e4m3(tl.load(a_ptr + row[:, None] * K + k[None, :]))
        b = decode_e4m3(tl.load(b_ptr + col[None, :] * K + k[:, None]))
        total += tl.dot(a, b) * tl.load(a_scale_ptr + row * tiles + step)[:, None]
    tl.store(y_ptr + row[:, None] * N + col[None, :], total)


def _loop_raw_codes(a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, y_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    tiles = K // 128
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(tiles):
        k = step * 128 + tl.arange(0, 128)
        a = tl.load(a_ptr + row[:, None] * K + k[None, :]).to(tl.float16)
        b = tl.load(b_ptr + col[None, :] * K + k[:, None]).to(tl.float16)
        a_scale = tl.load(a_scale_ptr + row * tiles + step)
        b_scale = tl.load(b_scale_ptr + tl.program_id(1) * BLOCK_N // 128 * tiles + step)
        total += tl.dot(a, b) * (a_scale * b_scale)[:, None]
    tl.store(y_ptr + row[:, None] * N + col[None, :], total)


def _loop_b_as_kn(a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, y_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    tiles = K // 128
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(tiles):
        k = step * 128 + tl.arange(0, 128)
        a = decode_e4m3(tl.load(a_ptr + row[:, None] * K + k[None, :]))
        b = decode_e4m3(tl.load(b_ptr + k[:, None] * N + col[None, :]))
        a_scale = tl.load(a_scale_ptr + row * tiles + step)
        b_scale = tl.load(b_scale_ptr + tl.program_id(1) * BLOCK_N // 128 * tiles + step)
        total += tl.dot(a, b) * (a_scale * b_scale)[:, None]
    tl.store(y_ptr + row[:, None] * N + col[None, :], total)


def _loop_stands_still(a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, y_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    tiles = K // 128
    k = tl.arange(0, 128)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(tiles):
        a = decode_e4m3(tl.load(a_ptr + row[:, None] * K + k[None, :]))
        b = decode_e4m3(tl.load(b_ptr + col[None, :] * K + k[:, None]))
        a_scale = tl.load(a_scale_ptr + row * tiles + step)
        b_scale = tl.load(b_scale_ptr + tl.program_id(1) * BLOCK_N // 128 * tiles + step)
        total += tl.dot(a, b) * (a_scale * b_scale)[:, None]
    tl.store(y_ptr + row[:, None] * N + col[None, :], total)


def _loop_overwritten(a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, y_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    tiles = K // 128
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(tiles):
        k = step * 128 + tl.arange(0, 128)
        a = decode_e4m3(tl.load(a_ptr + row[:, None] * K + k[None, :]))
        b = decode_e4m3(tl.load(b_ptr + col[None, :] * K + k[:, None]))
        a_scale = tl.load(a_scale_ptr + row * tiles + step)
        b_scale = tl.load(b_scale_ptr + tl.program_id(1) * BLOCK_N // 128 * tiles + step)
        total = tl.dot(a, b) * (a_scale * b_scale)[:, None]
    tl.store(y_ptr + row[:, None] * N + col[None, :], total)


def _loop_scaled_fp16(a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, y_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    tiles = K // 128
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(tiles):
        k = step * 128 + tl.arange(0, 128)
        a = decode_e4m3(tl.load(a_ptr + row[:, None] * K + k[None, :])).to(tl.float32)
        b = decode_e4m3(tl.load(b_ptr + col[None, :] * K + k[:, None])).to(tl.float32)
        a *= tl.load(a_scale_ptr + row * tiles + step)[:, None]
        b *= tl.load(b_scale_ptr + tl.program_id(1) * BLOCK_N // 128 * tiles + step)
        total += tl.dot(a.to(tl.float16), b.to(tl.float16))
    tl.store(y_ptr + row[:, None] * N + col[None, :], total)


def _loop_pointers(a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, y_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, 128)
    a_at = a_ptr + row[:, None] * K + k[None, :]
    b_at = b_ptr + col[None, :] * K + k[:, None]
    a_scale_at = a_scale_ptr + row * (K // 128)
    b_scale_at = b_scale_ptr + col // 128 * (K // 128)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _ in range(0, K, 128):
        part = tl.dot(decode_e4m3(tl.load(a_at)), decode_e4m3(tl.load(b_at)))
        total += part * tl.load(a_scale_at)[:, None] * tl.load(b_scale_at)[None, :]
        a_at += 128
        b_at += 128
        a_scale_at += 1
        b_scale_at += 1
    tl.store(y_ptr + row[:, None] * N + col[None, :], total)


def _loop_fp32(a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, y_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, 32):
        k = start + tl.arange(0, 32)
        a = decode_e4m3(tl.load(a_ptr + row[:, None] * K + k[None, :])).to(tl.float32)
        b = decode_e4m3(tl.load(b_ptr + col[None, :] * K + k[:, None])).to(tl.float32)
        a *= tl.load(a_scale_ptr + row[:, None] * (K // 128) + k[None, :] // 128)
        b *= tl.load(b_scale_ptr + (col // 128)[None, :] * (K // 128) + k[:, None] // 128)
        total += tl.dot(a, b, input_precision="ieee")
    tl.store(y_ptr + row[:, None] * N + col[None, :], total)


def _loop_bf16(a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, y_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    tiles, b_row = K // 128, tl.program_id(1) * BLOCK_N // 128
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(tiles):
        k = step * 128 + tl.arange(0, 128)
        a = decode_e4m3(tl.load(a_ptr + row[:, None] * K + k[None, :])).to(tl.bfloat16)
        b = decode_e4m3(tl.load(b_ptr + col[None, :] * K + k[:, None])).to(tl.bfloat16)
        part = tl.dot(a, b) * tl.load(a_scale_ptr + row * tiles + step)[:, None]
        total += part * tl.load(b_scale_ptr + b_row * tiles + step)
    tl.store(y_ptr + row[:, None] * N + col[None, :], total)
# fmt: on


@exercise(
    "fp8-gemm-loop",
    solution=gemm_kernel,
    notebook="09_fp8_gemm",
    title="Multiply, scale, add",
    difficulty=4,
    importance=5,
    minutes=18,
    kernel=True,
    hints=(
        "The scales change every 128 steps of K. Until when must the sum of one such block be "
        "kept apart, and what may it be added to once it has been scaled?",
        "row, col = the rows and columns of this program's tile\n"
        "total = zeros [BLOCK_M, BLOCK_N] in fp32\n"
        "for each step of 128 along K:\n"
        "    a = decoded codes at row * K + k      # [BLOCK_M, 128]\n"
        "    b = decoded codes at col * K + k      # [128, BLOCK_N]: k runs down\n"
        "    a_scale = one number per row          # at row * (K // 128) + step\n"
        "    b_scale = one number                  # its row: first column // 128\n"
        "    total += dot(a, b) * a_scale as a column * b_scale\n"
        "store total at row * N + col",
    ),
    mutants=[
        Mutant(
            "after_the_loop",
            _loop_after_last,
            "You scaled once, after the loop. By then blocks with different scales have been "
            "added up raw, and no factor takes them apart again.",
        ),
        Mutant(
            "mean_scale",
            _loop_after_mean,
            "An average of the scales, after the loop, is not what each block was divided by. "
            "Multiply every block by its own scales, inside.",
        ),
        Mutant(
            "first_scale",
            _loop_first_scale,
            "Every block was multiplied by the scales of the first. They must be loaded anew in "
            "each step.",
        ),
        Mutant(
            "running_total",
            _loop_running,
            "You scaled the running total, so earlier blocks are scaled again in every step. "
            "Scale the new product, then add it.",
        ),
        Mutant(
            "program_scale",
            _loop_program_scale,
            "The row of b_scale is not the program's number: a block of weights is 128 columns "
            "wide and several programs may share it. It is j * BLOCK_N // 128.",
        ),
        Mutant(
            "one_row",
            _loop_one_row,
            "All rows of your tile use the scale of its first row. a has a scale for each row.",
        ),
        Mutant(
            "across",
            _loop_across,
            "a_scale is laid along the columns. It belongs to rows: [:, None].",
        ),
        Mutant(
            "no_b_scale",
            _loop_no_b_scale,
            "The weights' scale is missing.",
        ),
        Mutant(
            "raw_codes",
            _loop_raw_codes,
            "You multiplied codes, not numbers: code 56 means 1.0. Send both operands through "
            "decode_e4m3.",
        ),
        Mutant(
            "b_as_kn",
            _loop_b_as_kn,
            "You read b as [K, N]. It is [N, K], row after row: the number of column n at "
            "step k is at n * K + k.",
        ),
        Mutant(
            "stands_still",
            _loop_stands_still,
            "Your loop multiplies the first block of K again and again: the addresses of a and b "
            "must move on by 128.",
        ),
        Mutant(
            "overwritten",
            _loop_overwritten,
            "Each step replaced the total, so only the last block of K is left. Add.",
        ),
        Mutant(
            "scaled_in_fp16",
            _loop_scaled_fp16,
            "You scaled the operands and put them back into fp16. There the scaled numbers are "
            "rounded, and small ones vanish. The product is where fp32 begins: scale that.",
        ),
    ],
    alternatives=[
        Alternative("pointers", _loop_pointers),
        Alternative("fp32", _loop_fp32),
        Alternative("bf16_operands", _loop_bf16),
    ],
)
def check_loop(c):
    """Values in fp64, scales that differ everywhere, a single block, exact integers."""
    m, n, k = 64, 256, 128 * c.size(2, 3)
    a = quantize_ref(uneven(c, m, k) * 100)
    b = quantize_ref(uneven(c, n, k) * 100, WEIGHT_BLOCK)
    y = _run(c, a, b, label=f"runs on a {[m, k]} and b {[n, k]}, tiles of 32 x 64")
    want = product(a, b, WEIGHT_BLOCK)
    with c.part():
        c.true(y.written(), "every element of y is written", "some still hold the poison")
        near = {"rtol": 1e-4, "atol": 3e-5 * want.abs().mean().item()}
        c.close(y.view.double(), want, label="the values are right", **near)
    with c.part():
        label = "nothing is written outside of y"
        c.true(y.untouched(), label, "the memory next to y has changed")
    with c.part():
        codes = [c.randint(1, 100, s, 128).to(torch.uint8) for s in (32, 128)]
        pairs = [(codes[0].view(torch.float8_e4m3fn), torch.full((32, 1), 2.0))]
        pairs += [(codes[1].view(torch.float8_e4m3fn), torch.full((1, 1), 0.5))]
        y = _run(c, *pairs)
        want = product(*pairs, WEIGHT_BLOCK)
        label = "one block (K = 128), scales 2 and 1/2"
        c.close(y.view.double(), want, label=label, rtol=1e-5, atol=1e-5)
    with c.part():
        a, b = quantize_ref(uneven(c, 32, 128)), quantize_ref(uneven(c, 256, 128), WEIGHT_BLOCK)
        y = _run(c, a, b, bm=16, bn=32)
        want = product(a, b, WEIGHT_BLOCK)
        near = {"rtol": 1e-4, "atol": 3e-5 * want.abs().mean().item()}
        c.close(y.view.double(), want, label="tiles of 16 x 32 as well", **near)


def _run(c, a, b, label=None, bm=32, bn=64):
    (m, k), n = a[0].shape, len(b[0])
    y = c.guarded(m, n)
    sizes = {"BLOCK_M": bm, "BLOCK_N": bn}
    c.launch((m // bm, n // bn), *codes_of(a), *codes_of(b), y, m, n, k, label=label, **sizes)
    return y
