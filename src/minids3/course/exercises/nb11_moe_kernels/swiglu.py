"""SwiGLU and quantisation in one kernel."""

from __future__ import annotations

import torch

from minids3.course.exercises.nb09_fp8_gemm.common import rounded_well
from minids3.course.registry import Alternative, Mutant, exercise
from minids3.kernels.fp8 import encode_e4m3
from minids3.kernels.language import tl


# fmt: off
def swiglu_quant_kernel(x_ptr, q_ptr, scale_ptr, F, BLOCK: tl.constexpr):
    """h = silu(gate) * up, written as E4M3 codes with a scale per tile.

    x [M, 2F]: a row's F gate numbers, then its F up numbers, any dtype
    q [M, F] uint8: code of h / scale;  scale [M, ceil(F / BLOCK)] fp32:
    largest |h| of the tile / 448, or 1 if all of it is zero
    programs (row, tile); encode_e4m3(fp32) -> uint8 is given
    """
    row, tile = tl.program_id(0), tl.program_id(1)
    f = tile * BLOCK + tl.arange(0, BLOCK)
    x_ptr += row * 2 * F
    gate = tl.load(x_ptr + f, mask=f < F, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + F + f, mask=f < F, other=0.0).to(tl.float32)
    h = gate / (1 + tl.exp(-gate)) * up
    largest = tl.max(tl.abs(h), 0)
    scale = tl.where(largest > 0, largest / 448, 1.0)
    tl.store(q_ptr + row * F + f, encode_e4m3(h / scale), mask=f < F)
    tl.store(scale_ptr + row * tl.cdiv(F, BLOCK) + tile, scale)
# fmt: on


def _swiglu_swapped(x_ptr, q_ptr, scale_ptr, F, BLOCK: tl.constexpr):
    row, tile = tl.program_id(0), tl.program_id(1)
    f = tile * BLOCK + tl.arange(0, BLOCK)
    x_ptr += row * 2 * F
    up = tl.load(x_ptr + f, mask=f < F, other=0.0).to(tl.float32)
    gate = tl.load(x_ptr + F + f, mask=f < F, other=0.0).to(tl.float32)
    h = gate / (1 + tl.exp(-gate)) * up
    largest = tl.max(tl.abs(h), 0)
    scale = tl.where(largest > 0, largest / 448, 1.0)
    tl.store(q_ptr + row * F + f, encode_e4m3(h / scale), mask=f < F)
    tl.store(scale_ptr + row * tl.cdiv(F, BLOCK) + tile, scale)


def _swiglu_sigmoid(x_ptr, q_ptr, scale_ptr, F, BLOCK: tl.constexpr):
    row, tile = tl.program_id(0), tl.program_id(1)
    f = tile * BLOCK + tl.arange(0, BLOCK)
    x_ptr += row * 2 * F
    gate = tl.load(x_ptr + f, mask=f < F, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + F + f, mask=f < F, other=0.0).to(tl.float32)
    h = 1 / (1 + tl.exp(-gate)) * up
    largest = tl.max(tl.abs(h), 0)
    scale = tl.where(largest > 0, largest / 448, 1.0)
    tl.store(q_ptr + row * F + f, encode_e4m3(h / scale), mask=f < F)
    tl.store(scale_ptr + row * tl.cdiv(F, BLOCK) + tile, scale)


def _swiglu_no_abs(x_ptr, q_ptr, scale_ptr, F, BLOCK: tl.constexpr):
    row, tile = tl.program_id(0), tl.program_id(1)
    f = tile * BLOCK + tl.arange(0, BLOCK)
    x_ptr += row * 2 * F
    gate = tl.load(x_ptr + f, mask=f < F, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + F + f, mask=f < F, other=0.0).to(tl.float32)
    h = gate / (1 + tl.exp(-gate)) * up
    largest = tl.max(h, 0)
    scale = tl.where(largest > 0, largest / 448, 1.0)
    tl.store(q_ptr + row * F + f, encode_e4m3(h / scale), mask=f < F)
    tl.store(scale_ptr + row * tl.cdiv(F, BLOCK) + tile, scale)


def _swiglu_input_scale(x_ptr, q_ptr, scale_ptr, F, BLOCK: tl.constexpr):
    row, tile = tl.program_id(0), tl.program_id(1)
    f = tile * BLOCK + tl.arange(0, BLOCK)
    x_ptr += row * 2 * F
    gate = tl.load(x_ptr + f, mask=f < F, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + F + f, mask=f < F, other=0.0).to(tl.float32)
    h = gate / (1 + tl.exp(-gate)) * up
    largest = tl.max(tl.maximum(tl.abs(gate), tl.abs(up)), 0)
    scale = tl.where(largest > 0, largest / 448, 1.0)
    tl.store(q_ptr + row * F + f, encode_e4m3(h / scale), mask=f < F)
    tl.store(scale_ptr + row * tl.cdiv(F, BLOCK) + tile, scale)


def _swiglu_inverse_scale(x_ptr, q_ptr, scale_ptr, F, BLOCK: tl.constexpr):
    row, tile = tl.program_id(0), tl.program_id(1)
    f = tile * BLOCK + tl.arange(0, BLOCK)
    x_ptr += row * 2 * F
    gate = tl.load(x_ptr + f, mask=f < F, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + F + f, mask=f < F, other=0.0).to(tl.float32)
    h = gate / (1 + tl.exp(-gate)) * up
    largest = tl.max(tl.abs(h), 0)
    scale = tl.where(largest > 0, largest / 448, 1.0)
    tl.store(q_ptr + row * F + f, encode_e4m3(h / scale), mask=f < F)
    tl.store(scale_ptr + row * tl.cdiv(F, BLOCK) + tile, 1 / scale)


def _swiglu_no_zero(x_ptr, q_ptr, scale_ptr, F, BLOCK: tl.constexpr):
    row, tile = tl.program_id(0), tl.program_id(1)
    f = tile * BLOCK + tl.arange(0, BLOCK)
    x_ptr += row * 2 * F
    gate = tl.load(x_ptr + f, mask=f < F, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + F + f, mask=f < F, other=0.0).to(tl.float32)
    h = gate / (1 + tl.exp(-gate)) * up
    scale = tl.max(tl.abs(h), 0) / 448
    tl.store(q_ptr + row * F + f, encode_e4m3(h / scale), mask=f < F)
    tl.store(scale_ptr + row * tl.cdiv(F, BLOCK) + tile, scale)


def _swiglu_unscaled(x_ptr, q_ptr, scale_ptr, F, BLOCK: tl.constexpr):
    row, tile = tl.program_id(0), tl.program_id(1)
    f = tile * BLOCK + tl.arange(0, BLOCK)
    x_ptr += row * 2 * F
    gate = tl.load(x_ptr + f, mask=f < F, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + F + f, mask=f < F, other=0.0).to(tl.float32)
    h = gate / (1 + tl.exp(-gate)) * up
    largest = tl.max(tl.abs(h), 0)
    scale = tl.where(largest > 0, largest / 448, 1.0)
    tl.store(q_ptr + row * F + f, encode_e4m3(h), mask=f < F)
    tl.store(scale_ptr + row * tl.cdiv(F, BLOCK) + tile, scale)


def _swiglu_floor_stride(x_ptr, q_ptr, scale_ptr, F, BLOCK: tl.constexpr):
    row, tile = tl.program_id(0), tl.program_id(1)
    f = tile * BLOCK + tl.arange(0, BLOCK)
    x_ptr += row * 2 * F
    gate = tl.load(x_ptr + f, mask=f < F, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + F + f, mask=f < F, other=0.0).to(tl.float32)
    h = gate / (1 + tl.exp(-gate)) * up
    largest = tl.max(tl.abs(h), 0)
    scale = tl.where(largest > 0, largest / 448, 1.0)
    tl.store(q_ptr + row * F + f, encode_e4m3(h / scale), mask=f < F)
    tl.store(scale_ptr + row * (F // BLOCK) + tile, scale)


def _swiglu_half(x_ptr, q_ptr, scale_ptr, F, BLOCK: tl.constexpr):
    row, tile = tl.program_id(0), tl.program_id(1)
    f = tile * BLOCK + tl.arange(0, BLOCK)
    x_ptr += row * 2 * F
    gate = tl.load(x_ptr + f, mask=f < F, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + F + f, mask=f < F, other=0.0).to(tl.float32)
    h = (gate / (1 + tl.exp(-gate)) * up).to(tl.float16).to(tl.float32)
    largest = tl.max(tl.abs(h), 0)
    scale = tl.where(largest > 0, largest / 448, 1.0)
    tl.store(q_ptr + row * F + f, encode_e4m3(h / scale), mask=f < F)
    tl.store(scale_ptr + row * tl.cdiv(F, BLOCK) + tile, scale)


def _swiglu_bf16(x_ptr, q_ptr, scale_ptr, F, BLOCK: tl.constexpr):
    row, tile = tl.program_id(0), tl.program_id(1)
    f = tile * BLOCK + tl.arange(0, BLOCK)
    x_ptr += row * 2 * F
    gate = tl.load(x_ptr + f, mask=f < F, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + F + f, mask=f < F, other=0.0).to(tl.float32)
    h = (gate / (1 + tl.exp(-gate)) * up).to(tl.bfloat16).to(tl.float32)
    largest = tl.max(tl.abs(h), 0)
    scale = tl.where(largest > 0, largest / 448, 1.0)
    tl.store(q_ptr + row * F + f, encode_e4m3(h / scale), mask=f < F)
    tl.store(scale_ptr + row * tl.cdiv(F, BLOCK) + tile, scale)


def _swiglu_ceil_off(x_ptr, q_ptr, scale_ptr, F, BLOCK: tl.constexpr):
    row, tile = tl.program_id(0), tl.program_id(1)
    f = tile * BLOCK + tl.arange(0, BLOCK)
    x_ptr += row * 2 * F
    gate = tl.load(x_ptr + f, mask=f < F, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + F + f, mask=f < F, other=0.0).to(tl.float32)
    h = gate / (1 + tl.exp(-gate)) * up
    largest = tl.max(tl.abs(h), 0)
    scale = tl.where(largest > 0, largest / 448, 1.0)
    tl.store(q_ptr + row * F + f, encode_e4m3(h / scale), mask=f < F)
    tl.store(scale_ptr + row * ((F + BLOCK) // BLOCK) + tile, scale)


def _flat_mask(x_ptr, q_ptr, scale_ptr, F, BLOCK: tl.constexpr):
    row, tile = tl.program_id(0), tl.program_id(1)
    f = tile * BLOCK + tl.arange(0, BLOCK)
    x_ptr += row * 2 * F
    gate = tl.load(x_ptr + f, mask=f < F, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + F + f, mask=f < F, other=0.0).to(tl.float32)
    h = gate / (1 + tl.exp(-gate)) * up
    largest = tl.max(tl.abs(h), 0)
    scale = tl.where(largest > 0, largest / 448, 1.0)
    tl.store(q_ptr + row * F + f, encode_e4m3(h / scale), mask=row * F + f < tl.num_programs(0) * F)
    tl.store(scale_ptr + row * tl.cdiv(F, BLOCK) + tile, scale)


def _eps_added(x_ptr, q_ptr, scale_ptr, F, BLOCK: tl.constexpr):
    row, tile = tl.program_id(0), tl.program_id(1)
    f = tile * BLOCK + tl.arange(0, BLOCK)
    x_ptr += row * 2 * F
    gate = tl.load(x_ptr + f, mask=f < F, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + F + f, mask=f < F, other=0.0).to(tl.float32)
    h = gate / (1 + tl.exp(-gate)) * up
    largest = tl.max(tl.abs(h), 0)
    scale = tl.where(largest > 0, largest / 448, 1.0)
    tl.store(q_ptr + row * F + f, encode_e4m3(h / (scale + 1e-8)), mask=f < F)
    tl.store(scale_ptr + row * tl.cdiv(F, BLOCK) + tile, scale)


def _swiglu_two_dims(x_ptr, q_ptr, scale_ptr, F, BLOCK: tl.constexpr):
    row, tile = tl.program_id(0), tl.program_id(1)
    lane, half = tl.arange(0, BLOCK), tl.arange(0, 2)
    inside = tile * BLOCK + lane < F
    at = x_ptr + (2 * row + half[:, None]) * F + tile * BLOCK + lane[None, :]
    both = tl.load(at, mask=inside[None, :], other=0.0).to(tl.float32)
    gate = tl.sum(tl.where(half[:, None] == 0, both, 0.0), 0)
    up = tl.sum(tl.where(half[:, None] == 1, both, 0.0), 0)
    h = gate * tl.sigmoid(gate) * up
    top = tl.maximum(tl.max(h, 0), -tl.min(h, 0))
    if top == 0:
        scale = 1.0
    else:
        scale = top / 448.0
    tl.store(q_ptr + row * F + tile * BLOCK + lane, encode_e4m3(h / scale), mask=inside)
    tl.store(scale_ptr + row * ((F + BLOCK - 1) // BLOCK) + tile, scale)


def _swiglu_reciprocal(x_ptr, q_ptr, scale_ptr, F, BLOCK: tl.constexpr):
    row, tile = tl.program_id(0), tl.program_id(1)
    f = tile * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(x_ptr + row * (F + F) + f, mask=f < F, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * (F + F) + F + f, mask=f < F, other=0.0).to(tl.float32)
    h = up * gate * (1 - 1 / (1 + tl.exp(gate)))
    largest = tl.max(tl.where(f < F, tl.abs(h), 0.0), 0)
    stretch = tl.where(largest == 0, 1.0, 448 / tl.where(largest == 0, 1.0, largest))
    tl.store(q_ptr + row * F + f, encode_e4m3(h * stretch), mask=f < F)
    tl.store(scale_ptr + row * tl.cdiv(F, BLOCK) + tile, 1 / stretch)


def _floor_under(x_ptr, q_ptr, scale_ptr, F, BLOCK: tl.constexpr):
    row, tile = tl.program_id(0), tl.program_id(1)
    f = tile * BLOCK + tl.arange(0, BLOCK)
    x_ptr += row * 2 * F
    gate = tl.load(x_ptr + f, mask=f < F, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + F + f, mask=f < F, other=0.0).to(tl.float32)
    h = gate / (1 + tl.exp(-gate)) * up
    largest = tl.max(tl.abs(h), 0)
    scale = tl.where(largest > 0, tl.maximum(largest, 1e-4) / 448, 1.0)
    tl.store(q_ptr + row * F + f, encode_e4m3(h / scale), mask=f < F)
    tl.store(scale_ptr + row * tl.cdiv(F, BLOCK) + tile, scale)


def _no_other(x_ptr, q_ptr, scale_ptr, F, BLOCK: tl.constexpr):
    row, tile = tl.program_id(0), tl.program_id(1)
    f = tile * BLOCK + tl.arange(0, BLOCK)
    x_ptr += row * 2 * F
    gate = tl.load(x_ptr + f, mask=f < F).to(tl.float32)
    up = tl.load(x_ptr + F + f, mask=f < F).to(tl.float32)
    h = gate / (1 + tl.exp(-gate)) * up
    largest = tl.max(tl.abs(h), 0)
    scale = tl.where(largest > 0, largest / 448, 1.0)
    tl.store(q_ptr + row * F + f, encode_e4m3(h / scale), mask=f < F)
    tl.store(scale_ptr + row * tl.cdiv(F, BLOCK) + tile, scale)


@exercise(
    "moe-swiglu-quant",
    solution=swiglu_quant_kernel,
    notebook="11_moe_kernels",
    title="Round once, on the way out",
    difficulty=3,
    importance=4,
    minutes=12,
    kernel=True,
    hints=(
        "The scale belongs to what is written. Which numbers do you have to know before the first "
        "one can be written, and are they all in this program? What is 0 / 0?",
        "gate, up = two masked loads, F apart, .to(tl.float32)\n"
        "h = gate / (1 + exp(-gate)) * up\n"
        "largest = max of abs(h);  scale = largest / 448, or 1 if largest is 0\n"
        "store encode_e4m3(h / scale), masked\n"
        "store scale at row * cdiv(F, BLOCK) + tile",
    ),
    mutants=[
        Mutant(
            "swapped",
            _swiglu_swapped,
            "You passed the second half through silu. The gate's numbers come first in a row.",
        ),
        Mutant(
            "sigmoid",
            _swiglu_sigmoid,
            "That is sigmoid(gate) * up. silu(gate) is gate * sigmoid(gate).",
        ),
        Mutant(
            "no_abs",
            _swiglu_no_abs,
            "You took the largest number, not the largest magnitude: a large negative one "
            "saturates at -448.",
        ),
        Mutant(
            "input_scale",
            _swiglu_input_scale,
            "You took the scale from gate and up. What is written is h, so h sets the scale.",
        ),
        Mutant(
            "inverse_scale",
            _swiglu_inverse_scale,
            "You stored 1 / scale. Scales multiply when reading: number = code * scale.",
        ),
        Mutant(
            "no_zero",
            _swiglu_no_zero,
            "A tile of zeros has largest 0, scale 0, and 0 / 0 is NaN. Its scale is 1.",
        ),
        Mutant(
            "unscaled",
            _swiglu_unscaled,
            "You stored a scale and did not divide by it. The code is of h / scale.",
        ),
        Mutant(
            "floor_stride",
            _swiglu_floor_stride,
            "Your rows of scales are F // BLOCK long. The last, ragged tile has a scale as well: "
            "round up.",
        ),
        Mutant(
            "through_half",
            _swiglu_half,
            "You rounded h to 16 bits before the eight: twice rounded, and beyond 65,504 it is "
            "infinite. Stay in fp32.",
        ),
        Mutant(
            "through_bf16",
            _swiglu_bf16,
            "You rounded h to BF16 before the eight bits: rounded twice, some codes are not the "
            "nearest. Stay in fp32.",
        ),
        Mutant(
            "ceil_off",
            _swiglu_ceil_off,
            "Where BLOCK divides F your rows of scales are one too long. Rounded up, F / BLOCK is "
            "(F + BLOCK - 1) // BLOCK, or tl.cdiv.",
        ),
        Mutant(
            "flat_mask",
            _flat_mask,
            "Your store's mask asks whether an address lies in q. Idle lanes do: they are the next "
            "row's, and another program's. Mask the columns, f < F.",
        ),
        Mutant(
            "eps_added",
            _eps_added,
            "You added something to the scale before you divided. A quiet tile's scale is smaller "
            "than that, and its codes shrink: only zero needs another scale.",
        ),
        Mutant(
            "floor_under",
            _floor_under,
            "You put a floor under the largest magnitude, so that quiet tiles lose their "
            "precision. Only a tile of zeros needs another scale.",
        ),
        Mutant(
            "no_other",
            _no_other,
            "The lanes that the mask leaves out are undefined, and they enter the maximum. Say "
            "other=0.0.",
        ),
    ],
    alternatives=[
        Alternative("two_dims", _swiglu_two_dims),
        Alternative("reciprocal", _swiglu_reciprocal),
    ],
)
def check_swiglu_quant(c):
    """Scales, codes as numbers, a ragged tile, zeros, products beyond fp16, one column."""
    block = c.choice([16, 32])
    rows, f = c.size(3, 4), 2 * block + c.size(3, 9)
    x = c.randn(rows, 2 * f) * 3
    x[:, 1], x[:, f + 1] = 6.0, -9.0  # the largest magnitude of the first tile is negative
    q, scale = _launched(c, x, block, f"runs on {rows} rows, F = {f}, tiles of {block}")
    h = _swiglu(x)
    tiles = -(-f // block)
    with c.part():
        c.true(scale.written(), "every scale is written", "some still hold the poison")
        want = _scales(h, block)
        c.close(scale.view, want, label="scale: largest |h| of the tile / 448", rtol=1e-5, atol=0)
    with c.part():
        got = _read(q, scale.view, block)
        step = _scales(h, block).repeat_interleave(block, 1)[:, :f]
        bound = torch.maximum(h.abs() / 16, step / 1024) * 1.001
        c.true(
            bool(((got - h).abs() <= bound).all()),
            "code * scale is h, within half a step of E4M3",
            "at some places it is further away",
        )
        label = "codes: the nearest E4M3 numbers to h / scale"
        c.true(_nearest(q, x, block), label, "some other code would be nearer")
    with c.part():
        label = "nothing is written outside of q and scale"
        c.true(q.untouched() and scale.untouched(), label, "the memory after one has changed")
    with c.part():
        x = c.randn(2, 2 * block)
        x[0] = 0.0
        q, scale = _launched(c, x, block)
        c.equal(scale.view[0], torch.ones(1), label="a tile of zeros has scale 1")
        c.equal(q.view[0] & 127, torch.zeros(block, dtype=torch.uint8), label="and codes 0")
    with c.part():
        x = 3 * c.randn(3, 4 * block)
        q, scale = _launched(c, x, block)
        label = "F of two whole tiles: the scales"
        c.close(scale.view, _scales(_swiglu(x), block), label=label, rtol=1e-5, atol=0)
        good = _nearest(q, x, block) and q.untouched() and scale.untouched()
        c.true(good, "and the codes", "some other code would be nearer, or the memory is not yours")
    with c.part():
        x = 600 * torch.ones(1, 16).half()
        q, scale = _launched(c, x, 8)
        c.close(_read(q, scale.view, 8), _swiglu(x), label="fp16 inputs, products of 360,000")
    with c.part():
        x = (3 * c.randn(2, 2 * f)).half()
        q, scale = _launched(c, x, block)
        label = "uneven numbers of fp16, in fp32 from the load on: scales"
        c.close(scale.view, _scales(_swiglu(x), block), label=label, rtol=1e-5, atol=0)
        c.true(_nearest(q, x, block), "and their codes", "some other code would be nearer")
    with c.part():
        x = c.randn(2, 2)
        q, scale = _launched(c, x, 8)
        c.close(_read(q, scale.view, 8), _swiglu(x), label="a single column", rtol=1e-3)
    assert tiles == 3
    for factor, what in ((1e-4, "however small"), (1e-12, "even smaller")):
        with c.part():
            x = c.randn(2, 2 * f) * factor
            q, scale = _launched(c, x, block)
            label = f"a quiet tile keeps its own scale, {what}"
            c.close(scale.view, _scales(_swiglu(x), block), label=label, rtol=1e-4, atol=0)
            why = "some other code would be nearer"
            c.true(_nearest(q, x, block), f"and its codes are as good, {what}", why)
    with c.part():
        x = c.randn(1, 2 * 70) * 2
        q, scale = _launched(c, x, 64)
        label = "tiles of 64 as well"
        c.close(scale.view, _scales(_swiglu(x), 64), label=label, rtol=1e-4, atol=0)


def _launched(c, x, block, label=None):
    rows, f = x.shape[0], x.shape[1] // 2
    tiles = -(-f // block)
    q, scale = c.guarded(rows, f, dtype=torch.uint8), c.guarded(rows, tiles)
    c.launch((rows, tiles), x, q, scale, f, BLOCK=block, label=label)
    return q, scale


def _swiglu(x):
    gate, up = x.double().chunk(2, -1)
    return (torch.nn.functional.silu(gate) * up).float()


def _nearest(q, x, block):
    """Whether each code is as near to h / scale as any, but for fp32's own rounding.

    Some right formulas of the sigmoid cancel where it is small: fp32 knows gate * up to 6e-8.
    """
    h = _swiglu(x)
    gate, up = x.double().chunk(2, -1)
    spread = _scales(h, block).repeat_interleave(block, 1)[:, : h.shape[1]]
    return rounded_well(q.view, h, torch.where(spread > 0, spread, 1.0), 1e-6 * (gate * up).abs())


def _scales(h, block):
    padded = torch.nn.functional.pad(h, (0, -h.shape[1] % block))
    return padded.unflatten(1, (-1, block)).abs().amax(-1) / 448


def _read(q, scale, block):
    numbers = q.view.view(torch.float8_e4m3fn).float()
    return numbers * scale.repeat_interleave(block, 1)[:, : numbers.shape[1]]
