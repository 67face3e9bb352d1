"""The whole product: sizes that are no multiple of anything."""

from __future__ import annotations

import torch

from minids3.course.exercises.nb09_fp8_gemm.common import NAN_CODE, codes_of, product, uneven
from minids3.course.registry import Alternative, Mutant, exercise
from minids3.kernels.fp8 import decode_e4m3
from minids3.kernels.language import tl
from minids3.ref.quant import WEIGHT_BLOCK, quantize_ref


# fmt: off
def gemm_any_kernel(a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, y_ptr, M, N, K,
                    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """One tile of Y = A B^T for any sizes.

    a [M, K], b [N, K]: E4M3 codes; y [M, N] fp32
    a_scale [M, ceil(K / 128)]; b_scale [ceil(N / 128), ceil(K / 128)]
    program (i, j) owns rows i * BLOCK_M .. and columns j * BLOCK_N ..,
    those that exist; BLOCK_N divides 128
    """
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    tiles = tl.cdiv(K, 128)
    b_row = tl.program_id(1) * BLOCK_N // 128
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(tiles):
        k = step * 128 + tl.arange(0, 128)
        a = tl.load(a_ptr + row[:, None] * K + k[None, :], other=0,
                    mask=(row < M)[:, None] & (k < K)[None, :])
        b = tl.load(b_ptr + col[None, :] * K + k[:, None], other=0,
                    mask=(col < N)[None, :] & (k < K)[:, None])
        a_scale = tl.load(a_scale_ptr + row * tiles + step, mask=row < M)
        b_scale = tl.load(b_scale_ptr + b_row * tiles + step)
        part = tl.dot(decode_e4m3(a), decode_e4m3(b))
        total += part * (a_scale * b_scale)[:, None]
    tl.store(y_ptr + row[:, None] * N + col[None, :], total,
             mask=(row < M)[:, None] & (col < N)[None, :])


def _edges_store_only(a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, y_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    tiles, b_row = tl.cdiv(K, 128), tl.program_id(1) * BLOCK_N // 128
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(tiles):
        k = step * 128 + tl.arange(0, 128)
        a = tl.load(a_ptr + row[:, None] * K + k[None, :])
        b = tl.load(b_ptr + col[None, :] * K + k[:, None])
        a_scale = tl.load(a_scale_ptr + row * tiles + step)
        b_scale = tl.load(b_scale_ptr + b_row * tiles + step)
        total += tl.dot(decode_e4m3(a), decode_e4m3(b)) * (a_scale * b_scale)[:, None]
    tl.store(y_ptr + row[:, None] * N + col[None, :], total,
             mask=(row < M)[:, None] & (col < N)[None, :])


def _edges_one_side(a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, y_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    tiles, b_row = tl.cdiv(K, 128), tl.program_id(1) * BLOCK_N // 128
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(tiles):
        k = step * 128 + tl.arange(0, 128)
        a = tl.load(a_ptr + row[:, None] * K + k[None, :], other=0,
                    mask=(row < M)[:, None] & (k < K)[None, :])
        b = tl.load(b_ptr + col[None, :] * K + k[:, None], other=0,
                    mask=(col < N)[None, :])
        a_scale = tl.load(a_scale_ptr + row * tiles + step, mask=row < M)
        b_scale = tl.load(b_scale_ptr + b_row * tiles + step)
        total += tl.dot(decode_e4m3(a), decode_e4m3(b)) * (a_scale * b_scale)[:, None]
    tl.store(y_ptr + row[:, None] * N + col[None, :], total,
             mask=(row < M)[:, None] & (col < N)[None, :])


def _edges_no_store_mask(a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, y_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    tiles, b_row = tl.cdiv(K, 128), tl.program_id(1) * BLOCK_N // 128
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(tiles):
        k = step * 128 + tl.arange(0, 128)
        a = tl.load(a_ptr + row[:, None] * K + k[None, :], other=0,
                    mask=(row < M)[:, None] & (k < K)[None, :])
        b = tl.load(b_ptr + col[None, :] * K + k[:, None], other=0,
                    mask=(col < N)[None, :] & (k < K)[:, None])
        a_scale = tl.load(a_scale_ptr + row * tiles + step, mask=row < M)
        b_scale = tl.load(b_scale_ptr + b_row * tiles + step)
        total += tl.dot(decode_e4m3(a), decode_e4m3(b)) * (a_scale * b_scale)[:, None]
    tl.store(y_ptr + row[:, None] * N + col[None, :], total)


def _edges_lost_tail(a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, y_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    tiles, b_row = tl.cdiv(K, 128), tl.program_id(1) * BLOCK_N // 128
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(K // 128):
        k = step * 128 + tl.arange(0, 128)
        a = tl.load(a_ptr + row[:, None] * K + k[None, :], other=0, mask=(row < M)[:, None])
        b = tl.load(b_ptr + col[None, :] * K + k[:, None], other=0, mask=(col < N)[None, :])
        a_scale = tl.load(a_scale_ptr + row * tiles + step, mask=row < M)
        b_scale = tl.load(b_scale_ptr + b_row * tiles + step)
        total += tl.dot(decode_e4m3(a), decode_e4m3(b)) * (a_scale * b_scale)[:, None]
    tl.store(y_ptr + row[:, None] * N + col[None, :], total,
             mask=(row < M)[:, None] & (col < N)[None, :])


def _edges_floor_stride(a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, y_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    tiles, b_row = K // 128, tl.program_id(1) * BLOCK_N // 128
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(tl.cdiv(K, 128)):
        k = step * 128 + tl.arange(0, 128)
        a = tl.load(a_ptr + row[:, None] * K + k[None, :], other=0,
                    mask=(row < M)[:, None] & (k < K)[None, :])
        b = tl.load(b_ptr + col[None, :] * K + k[:, None], other=0,
                    mask=(col < N)[None, :] & (k < K)[:, None])
        a_scale = tl.load(a_scale_ptr + row * tiles + step, mask=row < M)
        b_scale = tl.load(b_scale_ptr + b_row * tiles + step)
        total += tl.dot(decode_e4m3(a), decode_e4m3(b)) * (a_scale * b_scale)[:, None]
    tl.store(y_ptr + row[:, None] * N + col[None, :], total,
             mask=(row < M)[:, None] & (col < N)[None, :])


def _edges_lane(a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, y_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    tiles, b_row = tl.cdiv(K, 128), tl.program_id(1) * BLOCK_N // 128
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    lane = tl.arange(0, 128)
    for step in range(tiles):
        k = step * 128 + lane
        a = tl.load(a_ptr + row[:, None] * K + k[None, :], other=0,
                    mask=(row < M)[:, None] & (lane < K)[None, :])
        b = tl.load(b_ptr + col[None, :] * K + k[:, None], other=0,
                    mask=(col < N)[None, :] & (lane < K)[:, None])
        a_scale = tl.load(a_scale_ptr + row * tiles + step, mask=row < M)
        b_scale = tl.load(b_scale_ptr + b_row * tiles + step)
        total += tl.dot(decode_e4m3(a), decode_e4m3(b)) * (a_scale * b_scale)[:, None]
    tl.store(y_ptr + row[:, None] * N + col[None, :], total,
             mask=(row < M)[:, None] & (col < N)[None, :])


def _edges_no_k(a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, y_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    tiles, b_row = tl.cdiv(K, 128), tl.program_id(1) * BLOCK_N // 128
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    lane = tl.arange(0, 128)
    for step in range(tiles):
        k = step * 128 + lane
        a = tl.load(a_ptr + row[:, None] * K + k[None, :], other=0,
                    mask=(row < M)[:, None])
        b = tl.load(b_ptr + col[None, :] * K + k[:, None], other=0,
                    mask=(col < N)[None, :])
        a_scale = tl.load(a_scale_ptr + row * tiles + step, mask=row < M)
        b_scale = tl.load(b_scale_ptr + b_row * tiles + step)
        total += tl.dot(decode_e4m3(a), decode_e4m3(b)) * (a_scale * b_scale)[:, None]
    tl.store(y_ptr + row[:, None] * N + col[None, :], total,
             mask=(row < M)[:, None] & (col < N)[None, :])


def _edges_floor_both(a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, y_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    tiles, b_row = K // 128, tl.program_id(1) * BLOCK_N // 128
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(tiles):
        k = step * 128 + tl.arange(0, 128)
        a = tl.load(a_ptr + row[:, None] * K + k[None, :], other=0, mask=(row < M)[:, None])
        b = tl.load(b_ptr + col[None, :] * K + k[:, None], other=0, mask=(col < N)[None, :])
        a_scale = tl.load(a_scale_ptr + row * tiles + step, mask=row < M)
        b_scale = tl.load(b_scale_ptr + b_row * tiles + step)
        total += tl.dot(decode_e4m3(a), decode_e4m3(b)) * (a_scale * b_scale)[:, None]
    tl.store(y_ptr + row[:, None] * N + col[None, :], total,
             mask=(row < M)[:, None] & (col < N)[None, :])


def _edges_flat(a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, y_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    tiles, b_row = tl.cdiv(K, 128), tl.program_id(1) * BLOCK_N // 128
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(tiles):
        k = step * 128 + tl.arange(0, 128)
        a = tl.load(a_ptr + row[:, None] * K + k[None, :], other=0,
                    mask=row[:, None] * K + k[None, :] < M * K)
        b = tl.load(b_ptr + col[None, :] * K + k[:, None], other=0,
                    mask=(col < N)[None, :] & (k < K)[:, None])
        a_scale = tl.load(a_scale_ptr + row * tiles + step, mask=row < M)
        b_scale = tl.load(b_scale_ptr + b_row * tiles + step)
        total += tl.dot(decode_e4m3(a), decode_e4m3(b)) * (a_scale * b_scale)[:, None]
    tl.store(y_ptr + row[:, None] * N + col[None, :], total,
             mask=(row < M)[:, None] & (col < N)[None, :])


def _edges_sizes_swapped(a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, y_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    tiles, b_row = tl.cdiv(K, 128), tl.program_id(1) * BLOCK_N // 128
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(tiles):
        k = step * 128 + tl.arange(0, 128)
        a = tl.load(a_ptr + row[:, None] * K + k[None, :], other=0,
                    mask=(row < N)[:, None] & (k < K)[None, :])
        b = tl.load(b_ptr + col[None, :] * K + k[:, None], other=0,
                    mask=(col < M)[None, :] & (k < K)[:, None])
        a_scale = tl.load(a_scale_ptr + row * tiles + step, mask=row < M)
        b_scale = tl.load(b_scale_ptr + b_row * tiles + step)
        total += tl.dot(decode_e4m3(a), decode_e4m3(b)) * (a_scale * b_scale)[:, None]
    tl.store(y_ptr + row[:, None] * N + col[None, :], total,
             mask=(row < M)[:, None] & (col < N)[None, :])


def _edges_whole_tiles(a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, y_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    tiles, b_row = tl.cdiv(K, 128), tl.program_id(1) * BLOCK_N // 128
    fits = (tl.program_id(0) + 1) * BLOCK_M <= M
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(tiles):
        k = step * 128 + tl.arange(0, 128)
        a = tl.load(a_ptr + row[:, None] * K + k[None, :], other=0,
                    mask=fits & (k < K)[None, :])
        b = tl.load(b_ptr + col[None, :] * K + k[:, None], other=0,
                    mask=(col < N)[None, :] & (k < K)[:, None])
        a_scale = tl.load(a_scale_ptr + row * tiles + step, mask=row < M)
        b_scale = tl.load(b_scale_ptr + b_row * tiles + step)
        total += tl.dot(decode_e4m3(a), decode_e4m3(b)) * (a_scale * b_scale)[:, None]
    tl.store(y_ptr + row[:, None] * N + col[None, :], total,
             mask=(row < M)[:, None] & (col < N)[None, :])


def _edges_clamped(a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, y_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    r, n = tl.minimum(row, M - 1), tl.minimum(col, N - 1)
    lane, tiles = tl.arange(0, 128), tl.cdiv(K, 128)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(tiles):
        left = lane < K - step * 128
        a = tl.load(a_ptr + r[:, None] * K + step * 128 + lane, mask=left[None, :], other=0)
        b = tl.load(b_ptr + n[:, None] * K + step * 128 + lane, mask=left[None, :], other=0)
        a_scale = tl.load(a_scale_ptr + r * tiles + step)
        b_scale = tl.load(b_scale_ptr + n // 128 * tiles + step)
        part = tl.dot(decode_e4m3(a), tl.trans(decode_e4m3(b)))
        total += part * a_scale[:, None] * b_scale[None, :]
    tl.store(y_ptr + row[:, None] * N + col[None, :], total,
             mask=(row < M)[:, None] & (col < N)[None, :])


def _edges_zeroed(a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, y_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    tiles = (K + 127) // 128
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(tiles):
        k = step * 128 + tl.arange(0, 128)
        down, along = k[:, None], k[None, :]
        a = tl.load(a_ptr + row * K + along, mask=(row < M) & (along < K), other=0)
        b = tl.load(b_ptr + col * K + down, mask=(col < N) & (down < K), other=0)
        a, b = decode_e4m3(a).to(tl.float32), decode_e4m3(b).to(tl.float32)
        scale = tl.load(a_scale_ptr + row * tiles + step, mask=row < M, other=0.0)
        scale *= tl.load(b_scale_ptr + col // 128 * tiles + step, mask=col < N, other=0.0)
        total += scale * tl.dot(a, b, input_precision="ieee")
    tl.store(y_ptr + row * N + col, total, mask=(row < M) & (col < N))
# fmt: on


def _scale_unmasked(
    a_ptr,
    a_scale_ptr,
    b_ptr,
    b_scale_ptr,
    y_ptr,
    M,
    N,
    K,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    tiles = tl.cdiv(K, 128)
    b_row = tl.program_id(1) * BLOCK_N // 128
    inside = (row < M)[:, None] & (col < N)[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(tiles):
        k = step * 128 + tl.arange(0, 128)
        a = tl.load(
            a_ptr + row[:, None] * K + k[None, :],
            other=0,
            mask=(row < M)[:, None] & (k < K)[None, :],
        )
        b = tl.load(
            b_ptr + col[None, :] * K + k[:, None],
            other=0,
            mask=(col < N)[None, :] & (k < K)[:, None],
        )
        a_scale = tl.load(a_scale_ptr + row * tiles + step)
        b_scale = tl.load(b_scale_ptr + b_row * tiles + step)
        part = tl.dot(decode_e4m3(a), decode_e4m3(b))
        total += part * (a_scale * b_scale)[:, None]
    tl.store(y_ptr + row[:, None] * N + col[None, :], total, mask=inside)


def _scalar_joined(
    a_ptr,
    a_scale_ptr,
    b_ptr,
    b_scale_ptr,
    y_ptr,
    M,
    N,
    K,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    tiles = tl.cdiv(K, 128)
    b_row = tl.program_id(1) * BLOCK_N // 128
    inside = ((row < M)[:, None] & (col < N)[None, :]) & (tl.program_id(0) * BLOCK_M < M)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(tiles):
        k = step * 128 + tl.arange(0, 128)
        a = tl.load(
            a_ptr + row[:, None] * K + k[None, :],
            other=0,
            mask=(row < M)[:, None] & (k < K)[None, :],
        )
        b = tl.load(
            b_ptr + col[None, :] * K + k[:, None],
            other=0,
            mask=(col < N)[None, :] & (k < K)[:, None],
        )
        a_scale = tl.load(a_scale_ptr + row * tiles + step, mask=row < M, other=0.0)
        b_scale = tl.load(b_scale_ptr + b_row * tiles + step)
        part = tl.dot(decode_e4m3(a), decode_e4m3(b))
        total += part * (a_scale * b_scale)[:, None]
    tl.store(y_ptr + row[:, None] * N + col[None, :], total, mask=inside)


@exercise(
    "fp8-gemm-edges",
    solution=gemm_any_kernel,
    notebook="09_fp8_gemm",
    title="Sizes that fit nothing",
    difficulty=3,
    importance=4,
    minutes=12,
    kernel=True,
    hints=(
        "Three sizes, three edges. Which of them decide what may be loaded, and which what may be "
        "stored? A number beyond the end of K: what must it be, so that it adds nothing?",
        "start from your gemm_kernel\n"
        "tiles = K / 128 rounded up, for the loop and as the length of a row of scales\n"
        "load a where row < M and k < K, else 0\n"
        "load b where col < N and k < K, else 0\n"
        "load a_scale where row < M\n"
        "store where row < M and col < N",
    ),
    mutants=[
        Mutant(
            "store_only",
            _edges_store_only,
            "You masked what is stored and not what is loaded. Beyond the end of a row is the "
            "next one, and its numbers were multiplied into yours.",
        ),
        Mutant(
            "one_side",
            _edges_one_side,
            "Beyond K only a is set to 0. 0 times a number is 0, but 0 times NaN is NaN, and what "
            "follows the row of b may be anything: mask k on both sides.",
        ),
        Mutant(
            "no_store_mask",
            _edges_no_store_mask,
            "Your store's mask is missing or incomplete. Columns beyond N land in the next row, "
            "rows beyond M outside of y.",
        ),
        Mutant(
            "lost_tail",
            _edges_lost_tail,
            "Your loop makes K // 128 steps and never sees the last, shorter block.",
        ),
        Mutant(
            "floor_stride",
            _edges_floor_stride,
            "A row of scales is ceil(K / 128) long, also where you compute its address.",
        ),
        Mutant(
            "lane_mask",
            _edges_lane,
            "Your mask compares the lane (0 .. 127) with K. From the second step on that says "
            "nothing: compare step * 128 + lane.",
        ),
        Mutant(
            "no_k_mask",
            _edges_no_k,
            "You masked rows and columns, and k on neither side. Beyond the end of a row is the "
            "next one, and its numbers were multiplied into yours: k < K.",
        ),
        Mutant(
            "floor_both",
            _edges_floor_both,
            "K // 128 counts whole blocks. The last, shorter one is never multiplied, and a row of "
            "scales is longer than that: round up, tl.cdiv(K, 128).",
        ),
        Mutant(
            "flat_mask",
            _edges_flat,
            "Your mask compares a's address with M * K. Beyond the end of a row is the next one, "
            "which that lets through, and a NaN there spoils yours: mask row < M and k < K.",
        ),
        Mutant(
            "sizes_swapped",
            _edges_sizes_swapped,
            "Rows are limited by M and columns by N. You have them the other way round.",
        ),
        Mutant(
            "whole_tiles",
            _edges_whole_tiles,
            "A tile that sticks out loads nothing at all here. Its rows that exist have to be "
            "computed: mask single rows.",
        ),
        Mutant(
            "scale_unmasked",
            _scale_unmasked,
            "You loaded a's scales without a mask: the rows past M read past their end.",
        ),
    ],
    alternatives=[
        Alternative("clamped", _edges_clamped),
        Alternative("masks_everywhere", _edges_zeroed),
        Alternative("scalar_joined", _scalar_joined),
    ],
)
def check_edges(c):
    """Ragged in all three, tiny, whole; NaN stays where it is; nothing outside."""
    m, n, k = 32 + c.size(3, 12), 128 + c.size(5, 30), 256 + c.size(3, 100)
    a, b = quantize_ref(uneven(c, m, k)), quantize_ref(uneven(c, n, k), WEIGHT_BLOCK)
    y = _run(c, a, b, label=f"runs on a {[m, k]} and b {[n, k]}, tiles of 32 x 64", bn=64)
    with c.part():
        c.true(y.written(), "every element of y is written", "some still hold the poison")
        _close(c, y, product(a, b, WEIGHT_BLOCK), "the values are right")
    with c.part():
        label = "nothing is written outside of y"
        c.true(y.untouched(), label, "the memory next to y has changed")
    with c.part():
        a, b = quantize_ref(uneven(c, 7, 130)), quantize_ref(uneven(c, 12, 130), WEIGHT_BLOCK)
        b[0].view(torch.uint8)[9, 0] = NAN_CODE
        a[0].view(torch.uint8)[5, 0] = NAN_CODE
        label = "a NaN that begins row 5 of a or row 9 of b spoils that row or column, no other"
        _close(c, _run(c, a, b), product(a, b, WEIGHT_BLOCK), label)
    for m, n, k in ((1, 1, 1), (33, 7, 128), (5, 130, 127), (32, 32, 256)):
        with c.part():
            a, b = quantize_ref(uneven(c, m, k)), quantize_ref(uneven(c, n, k), WEIGHT_BLOCK)
            y, label = _run(c, a, b, bn=64 if n > 64 else 32), f"M, N, K = {m}, {n}, {k}"
            c.true(y.untouched(), f"{label}: nothing outside", "the memory next to y has changed")
            _close(c, y, product(a, b, WEIGHT_BLOCK), f"{label}: right")
    with c.part():
        a, b = quantize_ref(uneven(c, 18, 130)), quantize_ref(uneven(c, 150, 130), WEIGHT_BLOCK)
        y = _run(c, a, b, bm=16, bn=64)
        _close(c, y, product(a, b, WEIGHT_BLOCK), "tiles of 16 x 64 as well")


def _close(c, y, want, label):
    size = want[want.isfinite()].abs().mean().item()
    c.close(y.view, want.float(), label=label, rtol=1e-4, atol=3e-5 * size)


def _run(c, a, b, label=None, bm=32, bn=32):
    (m, k), n = a[0].shape, len(b[0])
    y = c.guarded(m, n)
    grid, sizes = (-(-m // bm), -(-n // bn)), {"BLOCK_M": bm, "BLOCK_N": bn}
    c.launch(grid, *codes_of(a), *codes_of(b), y, m, n, k, label=label, **sizes)
    return y
