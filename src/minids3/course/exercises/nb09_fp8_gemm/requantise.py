"""Operands of the weight gradient: dequantise, transpose, quantise again."""

from __future__ import annotations

import torch

from minids3.course.exercises.nb09_fp8_gemm.common import codes_of, numbers, rounded_well, uneven
from minids3.course.registry import Alternative, Mutant, exercise
from minids3.kernels.fp8 import decode_e4m3, encode_e4m3
from minids3.kernels.language import tl
from minids3.ref.quant import dequantize_ref, quantize_ref


# fmt: off
def requantise_kernel(q_ptr, scale_ptr, t_ptr, t_scale_ptr, M, K,
                      BLOCK_K: tl.constexpr):
    """Tiles along K become tiles along M, of the transpose.

    q [M, K] codes, scale [M, ceil(K / 128)]: tiles of 1 x 128
    t [K, M] codes, t_scale [K, ceil(M / 128)]: the same numbers, transposed
    program (i, j) owns rows i * 128 .. of q and columns j * BLOCK_K ..,
    those that exist; BLOCK_K divides 128
    """
    row = tl.program_id(0) * 128 + tl.arange(0, 128)
    col = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = (row < M)[:, None] & (col < K)[None, :]
    q = tl.load(q_ptr + row[:, None] * K + col[None, :], mask=inside, other=0)
    tile = tl.program_id(1) * BLOCK_K // 128
    scale = tl.load(scale_ptr + row * tl.cdiv(K, 128) + tile, mask=row < M, other=0.0)
    x = decode_e4m3(q).to(tl.float32) * scale[:, None]
    largest = tl.max(tl.abs(x), 0)  # along the rows
    t_scale = tl.where(largest > 0, largest / 448.0, 1.0)
    t = encode_e4m3(x / t_scale[None, :])
    tl.store(t_ptr + col[None, :] * M + row[:, None], t, mask=inside)
    t_scale_at = col * tl.cdiv(M, 128) + tl.program_id(0)
    tl.store(t_scale_ptr + t_scale_at, t_scale, mask=col < K)


def _again_codes_moved(q_ptr, scale_ptr, t_ptr, t_scale_ptr, M, K, BLOCK_K: tl.constexpr):
    row = tl.program_id(0) * 128 + tl.arange(0, 128)
    col = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = (row < M)[:, None] & (col < K)[None, :]
    q = tl.load(q_ptr + row[:, None] * K + col[None, :], mask=inside, other=0)
    at = tl.program_id(0) * 128 * tl.cdiv(K, 128) + tl.program_id(1) * BLOCK_K // 128
    scale = tl.load(scale_ptr + at) + 0.0 * col
    tl.store(t_ptr + col[None, :] * M + row[:, None], q, mask=inside)
    tl.store(t_scale_ptr + col * tl.cdiv(M, 128) + tl.program_id(0), scale, mask=col < K)


def _again_no_scale(q_ptr, scale_ptr, t_ptr, t_scale_ptr, M, K, BLOCK_K: tl.constexpr):
    row = tl.program_id(0) * 128 + tl.arange(0, 128)
    col = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = (row < M)[:, None] & (col < K)[None, :]
    q = tl.load(q_ptr + row[:, None] * K + col[None, :], mask=inside, other=0)
    x = decode_e4m3(q).to(tl.float32)
    largest = tl.max(tl.abs(x), 0)
    t_scale = tl.where(largest > 0, largest / 448.0, 1.0)
    t = encode_e4m3(x / t_scale[None, :])
    tl.store(t_ptr + col[None, :] * M + row[:, None], t, mask=inside)
    tl.store(t_scale_ptr + col * tl.cdiv(M, 128) + tl.program_id(0), t_scale, mask=col < K)


def _again_one_scale(q_ptr, scale_ptr, t_ptr, t_scale_ptr, M, K, BLOCK_K: tl.constexpr):
    row = tl.program_id(0) * 128 + tl.arange(0, 128)
    col = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = (row < M)[:, None] & (col < K)[None, :]
    q = tl.load(q_ptr + row[:, None] * K + col[None, :], mask=inside, other=0)
    tile = tl.program_id(1) * BLOCK_K // 128
    scale = tl.load(scale_ptr + row * tl.cdiv(K, 128) + tile, mask=row < M, other=0.0)
    x = decode_e4m3(q).to(tl.float32) * scale[:, None]
    largest = tl.max(tl.max(tl.abs(x), 0), 0) + 0.0 * col
    t_scale = tl.where(largest > 0, largest / 448.0, 1.0)
    t = encode_e4m3(x / t_scale[None, :])
    tl.store(t_ptr + col[None, :] * M + row[:, None], t, mask=inside)
    tl.store(t_scale_ptr + col * tl.cdiv(M, 128) + tl.program_id(0), t_scale, mask=col < K)


def _again_program_tile(q_ptr, scale_ptr, t_ptr, t_scale_ptr, M, K, BLOCK_K: tl.constexpr):
    row = tl.program_id(0) * 128 + tl.arange(0, 128)
    col = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = (row < M)[:, None] & (col < K)[None, :]
    q = tl.load(q_ptr + row[:, None] * K + col[None, :], mask=inside, other=0)
    tiles = tl.cdiv(K, 128)
    tile = tl.program_id(1)
    scale = tl.load(scale_ptr + row * tiles + tile, mask=row < M, other=0.0)
    x = decode_e4m3(q).to(tl.float32) * scale[:, None]
    largest = tl.max(tl.abs(x), 0)
    t_scale = tl.where(largest > 0, largest / 448.0, 1.0)
    t = encode_e4m3(x / t_scale[None, :])
    tl.store(t_ptr + col[None, :] * M + row[:, None], t, mask=inside)
    tl.store(t_scale_ptr + col * tl.cdiv(M, 128) + tl.program_id(0), t_scale, mask=col < K)


def _again_not_transposed(q_ptr, scale_ptr, t_ptr, t_scale_ptr, M, K, BLOCK_K: tl.constexpr):
    row = tl.program_id(0) * 128 + tl.arange(0, 128)
    col = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = (row < M)[:, None] & (col < K)[None, :]
    q = tl.load(q_ptr + row[:, None] * K + col[None, :], mask=inside, other=0)
    tile = tl.program_id(1) * BLOCK_K // 128
    scale = tl.load(scale_ptr + row * tl.cdiv(K, 128) + tile, mask=row < M, other=0.0)
    x = decode_e4m3(q).to(tl.float32) * scale[:, None]
    largest = tl.max(tl.abs(x), 0)
    t_scale = tl.where(largest > 0, largest / 448.0, 1.0)
    t = encode_e4m3(x / t_scale[None, :])
    tl.store(t_ptr + row[:, None] * K + col[None, :], t, mask=inside)
    tl.store(t_scale_ptr + col * tl.cdiv(M, 128) + tl.program_id(0), t_scale, mask=col < K)


def _again_scales_as_before(q_ptr, scale_ptr, t_ptr, t_scale_ptr, M, K, BLOCK_K: tl.constexpr):
    row = tl.program_id(0) * 128 + tl.arange(0, 128)
    col = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = (row < M)[:, None] & (col < K)[None, :]
    q = tl.load(q_ptr + row[:, None] * K + col[None, :], mask=inside, other=0)
    tile = tl.program_id(1) * BLOCK_K // 128
    scale = tl.load(scale_ptr + row * tl.cdiv(K, 128) + tile, mask=row < M, other=0.0)
    x = decode_e4m3(q).to(tl.float32) * scale[:, None]
    largest = tl.max(tl.abs(x), 0)
    t_scale = tl.where(largest > 0, largest / 448.0, 1.0)
    t = encode_e4m3(x / t_scale[None, :])
    tl.store(t_ptr + col[None, :] * M + row[:, None], t, mask=inside)
    tl.store(t_scale_ptr + tl.program_id(0) * K + col, t_scale, mask=col < K)


def _again_zero_by_zero(q_ptr, scale_ptr, t_ptr, t_scale_ptr, M, K, BLOCK_K: tl.constexpr):
    row = tl.program_id(0) * 128 + tl.arange(0, 128)
    col = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = (row < M)[:, None] & (col < K)[None, :]
    q = tl.load(q_ptr + row[:, None] * K + col[None, :], mask=inside, other=0)
    tile = tl.program_id(1) * BLOCK_K // 128
    scale = tl.load(scale_ptr + row * tl.cdiv(K, 128) + tile, mask=row < M, other=0.0)
    x = decode_e4m3(q).to(tl.float32) * scale[:, None]
    t_scale = tl.max(tl.abs(x), 0) / 448.0
    t = encode_e4m3(x / t_scale[None, :])
    tl.store(t_ptr + col[None, :] * M + row[:, None], t, mask=inside)
    tl.store(t_scale_ptr + col * tl.cdiv(M, 128) + tl.program_id(0), t_scale, mask=col < K)


def _again_no_mask(q_ptr, scale_ptr, t_ptr, t_scale_ptr, M, K, BLOCK_K: tl.constexpr):
    row = tl.program_id(0) * 128 + tl.arange(0, 128)
    col = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = (row < M)[:, None] & (col < K)[None, :]
    q = tl.load(q_ptr + row[:, None] * K + col[None, :], mask=inside, other=0)
    tile = tl.program_id(1) * BLOCK_K // 128
    scale = tl.load(scale_ptr + row * tl.cdiv(K, 128) + tile, mask=row < M, other=0.0)
    x = decode_e4m3(q).to(tl.float32) * scale[:, None]
    largest = tl.max(tl.abs(x), 0)
    t_scale = tl.where(largest > 0, largest / 448.0, 1.0)
    t = encode_e4m3(x / t_scale[None, :])
    tl.store(t_ptr + col[None, :] * M + row[:, None], t)
    tl.store(t_scale_ptr + col * tl.cdiv(M, 128) + tl.program_id(0), t_scale)


def _again_trans(q_ptr, scale_ptr, t_ptr, t_scale_ptr, M, K, BLOCK_K: tl.constexpr):
    row = tl.program_id(0) * 128 + tl.arange(0, 128)
    col = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = (row < M)[None, :] & (col < K)[:, None]
    q = tl.load(q_ptr + row[None, :] * K + col[:, None], mask=inside, other=0)
    scale_at = scale_ptr + row[None, :] * tl.cdiv(K, 128) + col[:, None] // 128
    x = decode_e4m3(q).to(tl.float32) * tl.load(scale_at, mask=inside, other=0.0)
    largest = tl.max(tl.abs(x), 1, keep_dims=True)
    t_scale = tl.where(largest > 0, largest / 448.0, 1.0)
    tl.store(t_ptr + col[:, None] * M + row[None, :], encode_e4m3(x / t_scale), mask=inside)
    t_scale_at = t_scale_ptr + col[:, None] * tl.cdiv(M, 128) + tl.program_id(0)
    tl.store(t_scale_at, t_scale, mask=(col < K)[:, None])


def _again_slabs(q_ptr, scale_ptr, t_ptr, t_scale_ptr, M, K, BLOCK_K: tl.constexpr):
    row = (tl.program_id(0) * 128 + tl.arange(0, 128))[:, None]
    tiles, t_tiles = (K + 127) // 128, (M + 127) // 128
    for j in range(0, BLOCK_K, 8):
        col = (tl.program_id(1) * BLOCK_K + j + tl.arange(0, 8))[None, :]
        inside = (row < M) & (col < K)
        q = tl.load(q_ptr + row * K + col, mask=inside, other=0)
        scale = tl.load(scale_ptr + row * tiles + col // 128, mask=inside, other=0.0)
        x = decode_e4m3(q).to(tl.float32) * scale
        largest = tl.max(tl.abs(x), 0, keep_dims=True)
        largest = tl.where(largest == 0, 448.0, largest)
        tl.store(t_ptr + col * M + row, encode_e4m3(x * (448.0 / largest)), mask=inside)
        tl.store(t_scale_ptr + col * t_tiles + tl.program_id(0), largest / 448.0, mask=col < K)
# fmt: on


def _floor_under(q_ptr, scale_ptr, t_ptr, t_scale_ptr, M, K, BLOCK_K: tl.constexpr):
    row = tl.program_id(0) * 128 + tl.arange(0, 128)
    col = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = (row < M)[:, None] & (col < K)[None, :]
    q = tl.load(q_ptr + row[:, None] * K + col[None, :], mask=inside, other=0)
    tile = tl.program_id(1) * BLOCK_K // 128
    scale = tl.load(scale_ptr + row * tl.cdiv(K, 128) + tile, mask=row < M, other=0.0)
    x = decode_e4m3(q).to(tl.float32) * scale[:, None]
    largest = tl.max(tl.abs(x), 0)
    t_scale = tl.where(largest > 0, tl.maximum(largest, 1e-4) / 448.0, 1.0)
    t = encode_e4m3(x / t_scale[None, :])
    tl.store(t_ptr + col[None, :] * M + row[:, None], t, mask=inside)
    tl.store(t_scale_ptr + col * tl.cdiv(M, 128) + tl.program_id(0), t_scale, mask=col < K)


def _block_built_in(q_ptr, scale_ptr, t_ptr, t_scale_ptr, M, K, BLOCK_K: tl.constexpr):
    row = tl.program_id(0) * 128 + tl.arange(0, 128)
    col = tl.program_id(1) * 32 + tl.arange(0, 32)
    inside = (row < M)[:, None] & (col < K)[None, :]
    q = tl.load(q_ptr + row[:, None] * K + col[None, :], mask=inside, other=0)
    tile = tl.program_id(1) * 32 // 128
    scale = tl.load(scale_ptr + row * tl.cdiv(K, 128) + tile, mask=row < M, other=0.0)
    x = decode_e4m3(q).to(tl.float32) * scale[:, None]
    largest = tl.max(tl.abs(x), 0)
    t_scale = tl.where(largest > 0, largest / 448.0, 1.0)
    t = encode_e4m3(x / t_scale[None, :])
    tl.store(t_ptr + col[None, :] * M + row[:, None], t, mask=inside)
    tl.store(t_scale_ptr + col * tl.cdiv(M, 128) + tl.program_id(0), t_scale, mask=col < K)


@exercise(
    "fp8-requantise",
    solution=requantise_kernel,
    notebook="09_fp8_gemm",
    title="Scales for the other direction",
    difficulty=4,
    importance=4,
    minutes=15,
    kernel=True,
    hints=(
        "You hold 128 rows and BLOCK_K columns. In the transpose a column of yours is a row. So "
        "along which axis is the new maximum taken, and how many new scales are there?",
        "row = 128 row numbers, col = BLOCK_K column numbers, inside = both exist\n"
        "q = load at row * K + col, masked, other = 0       # [128, BLOCK_K]\n"
        "scale = load at row * tiles + (first column // 128) # [128]\n"
        "x = decoded q as fp32 * scale as a column\n"
        "new = maximum of |x| down the rows / 448, 1 if 0    # [BLOCK_K]\n"
        "store encode_e4m3(x / new) at col * M + row, masked\n"
        "store new at col * (tiles along M) + i, masked by col < K",
    ),
    mutants=[
        Mutant(
            "codes_moved",
            _again_codes_moved,
            "You moved the codes as they are and kept a scale of the first row. Each row had its "
            "own: the numbers must be read, and rounded anew with a scale for their new tile.",
        ),
        Mutant(
            "no_scale",
            _again_no_scale,
            "You quantised the decoded codes. They only become numbers again by their old scale.",
        ),
        Mutant(
            "one_scale",
            _again_one_scale,
            "All columns of your program share a scale. Each row of the transpose has its own for "
            "every 128 of M.",
        ),
        Mutant(
            "program_tile",
            _again_program_tile,
            "The tile of the old scale is not j: your program is BLOCK_K columns wide, and a tile "
            "128. It is j * BLOCK_K // 128.",
        ),
        Mutant(
            "not_transposed",
            _again_not_transposed,
            "The new codes are [M, K] in memory. The transpose has rows of length M: column k "
            "of row m goes to k * M + m.",
        ),
        Mutant(
            "scales_as_tiles_k",
            _again_scales_as_before,
            "Your new scales are [tiles, K]. They are wanted as [K, tiles], a row of scales for "
            "each row of the transpose.",
        ),
        Mutant(
            "zero_by_zero",
            _again_zero_by_zero,
            "A column of zeros got the scale 0, and 0 / 0 is NaN. A dead channel is enough for "
            "that: use 1 there.",
        ),
        Mutant(
            "no_mask",
            _again_no_mask,
            "Your stores have no masks. Rows beyond M land in the next row of the transpose, "
            "columns beyond K outside of it.",
        ),
        Mutant(
            "floor_under",
            _floor_under,
            "You put a floor under the largest magnitude, so that quiet columns lose their "
            "precision. Only a column of zeros needs another scale.",
        ),
        Mutant(
            "block_built_in",
            _block_built_in,
            "You built 32 columns in. BLOCK_K says how many a program owns.",
        ),
    ],
    alternatives=[
        Alternative("loaded_transposed", _again_trans),
        Alternative("eight_columns_at_a_time", _again_slabs),
    ],
)
def check_requantise(c):
    """Ragged both ways, scales and codes by brute force, a dead channel, one row."""
    m, k = 128 + c.size(5, 40), 128 + c.size(9, 60)
    x = uneven(c, m, k)
    x[:, 3] = 0
    q, t, t_scale = _run(c, x, label=f"runs on q {[m, k]}, tiles of 128 x 32")
    wide, scales = _numbers_and_scales(q)
    with c.part():
        label = "scales: largest of each 128 rows of a column / 448"
        c.close(t_scale.view, scales, label=label, rtol=1e-5, atol=0)
    with c.part():
        label = "codes: the nearest E4M3 numbers, transposed"
        spread = scales.repeat_interleave(128, 1)[:, :m]
        c.true(rounded_well(t.view, wide.T, spread), label, "some other code would be nearer")
        again = numbers(t.view) * spread.double()
        error = (again - wide.T.double()).norm() / wide.double().norm()
        c.true(bool(error < 0.04), "read again, they are the old numbers within 4 %")
    with c.part():
        label = "nothing is written outside of t and t_scale"
        c.true(t.untouched() and t_scale.untouched(), label, "the memory next to them has changed")
    for m, k, factor in ((1, 1, 1e-6), (128, 32, 1.0), (3, 130, 1e-25)):
        with c.part():
            q, t, t_scale = _run(c, uneven(c, m, k) * factor)
            wide, scales = _numbers_and_scales(q)
            spread = scales.repeat_interleave(128, 1)[:, :m]
            label = f"q {[m, k]}: scales" + (f", of about {factor:.0e}" if factor < 1 else "")
            c.close(t_scale.view, scales, label=label, rtol=1e-5, atol=0)
            good = t.untouched() and rounded_well(t.view, wide.T, spread)
            c.true(good, f"q {[m, k]}: codes", "some other code would be nearer")
    with c.part():
        q, t, t_scale = _run(c, uneven(c, 20, 140), block=64)
        wide, scales = _numbers_and_scales(q)
        c.close(t_scale.view, scales, label="with BLOCK_K = 64 as well: scales", rtol=1e-5, atol=0)
        spread = scales.repeat_interleave(128, 1)[:, :20]
        good = rounded_well(t.view, wide.T, spread)
        c.true(good, "with BLOCK_K = 64 as well: codes", "some other code would be nearer")


def _run(c, x, label=None, block=32):
    m, k = x.shape
    q = quantize_ref(x)
    t, t_scale = c.guarded(k, m, dtype=torch.uint8), c.guarded(k, -(-m // 128))
    grid = (-(-m // 128), -(-k // block))
    c.launch(grid, *codes_of(q), t, t_scale, m, k, label=label, BLOCK_K=block)
    return q, t, t_scale


def _numbers_and_scales(q):
    wide = dequantize_ref(*q)
    columns = [
        [max(map(abs, column[i : i + 128])) / 448 or 1.0 for i in range(0, len(column), 128)]
        for column in wide.T.tolist()
    ]
    return wide, torch.tensor(columns, dtype=torch.float32)
