"""Combine: bring rows back and sum them by weight, in one kernel."""

from __future__ import annotations

import torch

from minids3.course.registry import Alternative, Mutant, exercise
from minids3.kernels.language import tl


# fmt: off
def combine_kernel(y_ptr, weights_ptr, inverse_ptr, out_ptr, D,
                   TOP_K: tl.constexpr, BLOCK: tl.constexpr):
    """out[n] = sum over k of weights[n, k] * y[inverse[n * TOP_K + k]].

    y [N * TOP_K, D], rows sorted by expert; weights [N, TOP_K]; inverse
    [N * TOP_K] int64: where the row of each pair is; out [N, D]
    programs (token, block of columns); sums are fp32
    """
    token = tl.program_id(0)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in range(TOP_K):
        place = tl.load(inverse_ptr + token * TOP_K + k)
        weight = tl.load(weights_ptr + token * TOP_K + k)
        y = tl.load(y_ptr + place * D + d, mask=d < D, other=0.0)
        total += weight * y.to(tl.float32)
    tl.store(out_ptr + token * D + d, total, mask=d < D)
# fmt: on


def _combine_in_place(
    y_ptr, weights_ptr, inverse_ptr, out_ptr, D, TOP_K: tl.constexpr, BLOCK: tl.constexpr
):
    token = tl.program_id(0)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in range(TOP_K):
        weight = tl.load(weights_ptr + token * TOP_K + k)
        y = tl.load(y_ptr + (token * TOP_K + k) * D + d, mask=d < D, other=0.0)
        total += weight * y.to(tl.float32)
    tl.store(out_ptr + token * D + d, total, mask=d < D)


def _combine_unweighted(
    y_ptr, weights_ptr, inverse_ptr, out_ptr, D, TOP_K: tl.constexpr, BLOCK: tl.constexpr
):
    token = tl.program_id(0)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in range(TOP_K):
        place = tl.load(inverse_ptr + token * TOP_K + k)
        total += tl.load(y_ptr + place * D + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(out_ptr + token * D + d, total, mask=d < D)


def _combine_sorted_weights(
    y_ptr, weights_ptr, inverse_ptr, out_ptr, D, TOP_K: tl.constexpr, BLOCK: tl.constexpr
):
    token = tl.program_id(0)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in range(TOP_K):
        place = tl.load(inverse_ptr + token * TOP_K + k)
        weight = tl.load(weights_ptr + place)
        y = tl.load(y_ptr + place * D + d, mask=d < D, other=0.0)
        total += weight * y.to(tl.float32)
    tl.store(out_ptr + token * D + d, total, mask=d < D)


def _combine_half(
    y_ptr, weights_ptr, inverse_ptr, out_ptr, D, TOP_K: tl.constexpr, BLOCK: tl.constexpr
):
    token = tl.program_id(0)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float16)
    for k in range(TOP_K):
        place = tl.load(inverse_ptr + token * TOP_K + k)
        weight = tl.load(weights_ptr + token * TOP_K + k)
        y = tl.load(y_ptr + place * D + d, mask=d < D, other=0.0)
        total += (weight * y.to(tl.float32)).to(tl.float16)
    tl.store(out_ptr + token * D + d, total, mask=d < D)


def _combine_last(
    y_ptr, weights_ptr, inverse_ptr, out_ptr, D, TOP_K: tl.constexpr, BLOCK: tl.constexpr
):
    token = tl.program_id(0)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in range(TOP_K):
        place = tl.load(inverse_ptr + token * TOP_K + k)
        weight = tl.load(weights_ptr + token * TOP_K + k)
        y = tl.load(y_ptr + place * D + d, mask=d < D, other=0.0)
        total = weight * y.to(tl.float32)
    tl.store(out_ptr + token * D + d, total, mask=d < D)


def _combine_no_mask(
    y_ptr, weights_ptr, inverse_ptr, out_ptr, D, TOP_K: tl.constexpr, BLOCK: tl.constexpr
):
    token = tl.program_id(0)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in range(TOP_K):
        place = tl.load(inverse_ptr + token * TOP_K + k)
        weight = tl.load(weights_ptr + token * TOP_K + k)
        y = tl.load(y_ptr + place * D + d, mask=d < D, other=0.0)
        total += weight * y.to(tl.float32)
    tl.store(out_ptr + token * D + d, total)


def _combine_slot_major(
    y_ptr, weights_ptr, inverse_ptr, out_ptr, D, TOP_K: tl.constexpr, BLOCK: tl.constexpr
):
    token, tokens = tl.program_id(0), tl.num_programs(0)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in range(TOP_K):
        place = tl.load(inverse_ptr + k * tokens + token)
        weight = tl.load(weights_ptr + token * TOP_K + k)
        y = tl.load(y_ptr + place * D + d, mask=d < D, other=0.0)
        total += weight * y.to(tl.float32)
    tl.store(out_ptr + token * D + d, total, mask=d < D)


def _combine_tile(
    y_ptr, weights_ptr, inverse_ptr, out_ptr, D, TOP_K: tl.constexpr, BLOCK: tl.constexpr
):
    token = tl.program_id(0)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    k = tl.arange(0, 16)  # lanes for the slots, those beyond TOP_K idle
    pair = token * TOP_K + k
    place = tl.load(inverse_ptr + pair, mask=k < TOP_K, other=0)
    weight = tl.load(weights_ptr + pair, mask=k < TOP_K, other=0.0)
    inside = (k < TOP_K)[:, None] & (d < D)[None, :]
    y = tl.load(y_ptr + place[:, None] * D + d[None, :], mask=inside, other=0.0)
    total = tl.sum(weight[:, None].to(tl.float32) * y.to(tl.float32), 0)
    tl.store(out_ptr + token * D + d, total, mask=d < D)


def _combine_moved(
    y_ptr, weights_ptr, inverse_ptr, out_ptr, D, TOP_K: tl.constexpr, BLOCK: tl.constexpr
):
    token, block = tl.program_id(0), tl.program_id(1)
    lane = tl.arange(0, BLOCK)
    inside = lane < D - block * BLOCK
    y_ptr += block * BLOCK
    total = tl.zeros((BLOCK,), tl.float32)
    for pair in range(token * TOP_K, token * TOP_K + TOP_K):
        y = tl.load(y_ptr + tl.load(inverse_ptr + pair) * D + lane, mask=inside, other=0.0)
        total += y.to(tl.float32) * tl.load(weights_ptr + pair).to(tl.float32)
    out = total.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + token * D + block * BLOCK + lane, out, mask=inside)


def _flat_mask(
    y_ptr, weights_ptr, inverse_ptr, out_ptr, D, TOP_K: tl.constexpr, BLOCK: tl.constexpr
):
    token = tl.program_id(0)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in range(TOP_K):
        place = tl.load(inverse_ptr + token * TOP_K + k)
        weight = tl.load(weights_ptr + token * TOP_K + k)
        y = tl.load(y_ptr + place * D + d, mask=d < D, other=0.0)
        total += weight * y.to(tl.float32)
    tl.store(out_ptr + token * D + d, total, mask=token * D + d < tl.num_programs(0) * D)


def _mean_over_k(
    y_ptr, weights_ptr, inverse_ptr, out_ptr, D, TOP_K: tl.constexpr, BLOCK: tl.constexpr
):
    token = tl.program_id(0)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in range(TOP_K):
        place = tl.load(inverse_ptr + token * TOP_K + k)
        weight = tl.load(weights_ptr + token * TOP_K + k)
        y = tl.load(y_ptr + place * D + d, mask=d < D, other=0.0)
        total += weight * y.to(tl.float32)
    tl.store(out_ptr + token * D + d, total / TOP_K, mask=d < D)


def _block_built_in(
    y_ptr, weights_ptr, inverse_ptr, out_ptr, D, TOP_K: tl.constexpr, BLOCK: tl.constexpr
):
    token = tl.program_id(0)
    d = tl.program_id(1) * 16 + tl.arange(0, 16)
    total = tl.zeros((16,), tl.float32)
    for k in range(TOP_K):
        place = tl.load(inverse_ptr + token * TOP_K + k)
        weight = tl.load(weights_ptr + token * TOP_K + k)
        y = tl.load(y_ptr + place * D + d, mask=d < D, other=0.0)
        total += weight * y.to(tl.float32)
    tl.store(out_ptr + token * D + d, total, mask=d < D)


def _wrong_row(
    y_ptr, weights_ptr, inverse_ptr, out_ptr, D, TOP_K: tl.constexpr, BLOCK: tl.constexpr
):
    token = tl.program_id(0)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in range(TOP_K):
        place = tl.load(inverse_ptr + token * D + k)
        weight = tl.load(weights_ptr + token * TOP_K + k)
        y = tl.load(y_ptr + place * D + d, mask=d < D, other=0.0)
        total += weight * y.to(tl.float32)
    tl.store(out_ptr + token * D + d, total, mask=d < D)


def _in_out_dtype(
    y_ptr, weights_ptr, inverse_ptr, out_ptr, D, TOP_K: tl.constexpr, BLOCK: tl.constexpr
):
    token = tl.program_id(0)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), out_ptr.dtype.element_ty)
    for k in range(TOP_K):
        place = tl.load(inverse_ptr + token * TOP_K + k)
        weight = tl.load(weights_ptr + token * TOP_K + k)
        y = tl.load(y_ptr + place * D + d, mask=d < D, other=0.0)
        total += (weight * y.to(tl.float32)).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + token * D + d, total, mask=d < D)


@exercise(
    "moe-combine-kernel",
    solution=combine_kernel,
    notebook="11_moe_kernels",
    title="Everybody home again",
    difficulty=2,
    importance=3,
    minutes=8,
    kernel=True,
    hints=(
        "A program owns a token, not a row. Where do the K rows of its token stand now, and what "
        "knows it? In which dtype should a sum of K rounded numbers be kept?",
        "token, d = the program's token and columns\n"
        "total = zeros, fp32\n"
        "for k in range(TOP_K):\n"
        "    place = inverse[token * TOP_K + k];  weight = weights[the same place]\n"
        "    total += weight * (row `place` of y at d, masked, as fp32)\n"
        "store total at out + token * D + d, masked",
    ),
    mutants=[
        Mutant(
            "in_place",
            _combine_in_place,
            "You read pair n * K + k at place n * K + k. After sorting it is at "
            "inverse[n * K + k].",
        ),
        Mutant(
            "unweighted",
            _combine_unweighted,
            "The gate's weights are missing: each row counts weights[n, k] times.",
        ),
        Mutant(
            "sorted_weights",
            _combine_sorted_weights,
            "You took the weight at the row's new place. Weights were never sorted: read them at "
            "n * K + k.",
        ),
        Mutant(
            "half",
            _combine_half,
            "Your sum is kept in fp16 and rounded K times. Keep it in fp32 and round once, at the "
            "end.",
        ),
        Mutant(
            "last",
            _combine_last,
            "Only the last of the K rows arrives: total is replaced where it should grow.",
        ),
        Mutant(
            "no_mask",
            _combine_no_mask,
            "You stored a whole block: the columns beyond D belong to the next token.",
        ),
        Mutant(
            "flat_mask",
            _flat_mask,
            "Your store's mask asks whether an address lies in out. Idle lanes do: they are the "
            "next token's, and another program's. Mask the columns, d < D.",
        ),
        Mutant(
            "slot_major",
            _combine_slot_major,
            "You counted pairs slot by slot. The K pairs of a token are neighbours: n * K + k.",
        ),
        Mutant(
            "mean_over_k",
            _mean_over_k,
            "You divided by K. The weights say how much each expert counts: the sum is all there "
            "is.",
        ),
        Mutant(
            "block_built_in",
            _block_built_in,
            "You built a block of 16 columns in. BLOCK says how many a program owns.",
        ),
        Mutant(
            "wrong_row",
            _wrong_row,
            "Row n of inverse begins at n * TOP_K, not at n * D: what you read there is no place, "
            "and where it leads nobody knows.",
        ),
        Mutant(
            "in_out_dtype",
            _in_out_dtype,
            "You summed in the dtype of out. In fp16 a small number beside 2,000 is lost: sum in "
            "fp32 and convert when you store.",
        ),
    ],
    alternatives=[
        Alternative("tile", _combine_tile),
        Alternative("moved", _combine_moved),
    ],
)
def check_combine(c):
    """Weighted sums by a scatter, ragged columns, fp16 rows, a single token, top-1."""
    block = 16
    tokens, top_k, dim = c.size(4, 6), c.size(3, 4), block + c.size(3, 9)
    y, weights, inverse = _case(c, tokens, top_k, dim)
    out = c.guarded(tokens, dim)
    label = f"runs: {tokens} tokens, top-{top_k}, D = {dim}"
    grid = (tokens, -(-dim // block))
    c.launch(grid, y, weights, inverse, out, dim, TOP_K=top_k, BLOCK=block, label=label)
    with c.part():
        c.true(out.written(), "every element of out is written", "some still hold the poison")
        c.close(out.view, _want(y, weights, inverse), label="out is the weighted sum")
    with c.part():
        c.true(out.untouched(), "nothing is written outside of out", "the memory after it changed")
    for name, shape, dtype in (
        ("fp16 rows are summed in fp32", (3, 4, 8), torch.float16),
        ("a single token", (1, 2, 5), torch.float32),
        ("top-1: rows are moved and weighed", (4, 1, 16), torch.float32),
    ):
        with c.part():
            y, weights, inverse = _case(c, *shape, dtype)
            if dtype == torch.float16:  # large ones that cancel, and a small rest
                y[inverse[0::4]], y[inverse[1::4]] = 2000.0, 0.37
                y[inverse[2::4]], y[inverse[3::4]] = -2000.0, 0.011
                weights = torch.ones_like(weights)
            out = c.guarded(shape[0], shape[2])
            grid = (shape[0], -(-shape[2] // 8))
            c.launch(grid, y, weights, inverse, out, shape[2], TOP_K=shape[1], BLOCK=8)
            c.close(out.view, _want(y, weights, inverse), label=name)
    with c.part():
        y, weights, inverse = _case(c, 3, 2, 8, torch.float16)
        out = c.guarded(3, 8)
        c.launch((3, 1), y, weights, inverse, out, 8, TOP_K=2, BLOCK=8)
        label = "fp16 rows are weighed in fp32"
        c.close(out.view, _want(y, weights, inverse), label=label, rtol=1e-5, atol=1e-5)
    with c.part():
        y, weights, inverse = _case(c, 2, 6, 300)
        out = c.guarded(2, 300)
        c.launch((2, 2), y, weights, inverse, out, 300, TOP_K=6, BLOCK=256)
        c.close(out.view, _want(y, weights, inverse), label="top-6, blocks of 256 columns")
    with c.part():
        y, weights, inverse = _case(c, 3, 4, 8, torch.float16)
        y[inverse[0::4]], y[inverse[1::4]] = 2000.0, 0.37
        y[inverse[2::4]], y[inverse[3::4]] = -2000.0, 0.011
        weights, out = torch.ones_like(weights), c.guarded(3, 8, dtype=torch.float16)
        c.launch((3, 1), y, weights, inverse, out, 8, TOP_K=4, BLOCK=8)
        label = "an fp16 out gets sums that were made in fp32"
        c.close(out.view, _want(y, weights, inverse).half(), label=label, rtol=2e-3)


def _case(c, tokens, top_k, dim, dtype=torch.float32):
    inverse = c.rand(tokens * top_k).argsort()
    return c.randn(tokens * top_k, dim, dtype=dtype), 2 * c.randn(tokens, top_k), inverse


def _want(y, weights, inverse):
    tokens, top_k = weights.shape
    order = inverse.argsort()  # which pair is at each place
    weighed = y.double() * weights.flatten()[order, None].double()
    out = torch.zeros(tokens, y.shape[1], dtype=torch.float64)
    return out.index_add_(0, order // top_k, weighed).float()
