"""Softmax, one row to a program."""

from __future__ import annotations

import torch

from minids3.course.registry import Alternative, Mutant, exercise
from minids3.kernels.language import tl


# fmt: off
def softmax_kernel(x_ptr, out_ptr, n_cols, BLOCK: tl.constexpr):
    """Write the softmax of one row of x to the same row of out.

    x, out [rows, n_cols]; program p owns row p; BLOCK: a power of two, at
    least n_cols, so that a tile holds the whole row
    """
    at = tl.program_id(0) * n_cols + tl.arange(0, BLOCK)
    inside = tl.arange(0, BLOCK) < n_cols
    x = tl.load(x_ptr + at, mask=inside, other=-float("inf"))
    e = tl.exp(x - tl.max(x, 0))
    tl.store(out_ptr + at, e / tl.sum(e, 0), mask=inside)
# fmt: on


def _softmax_zeros(x_ptr, out_ptr, n_cols, BLOCK: tl.constexpr):
    at = tl.program_id(0) * n_cols + tl.arange(0, BLOCK)
    inside = tl.arange(0, BLOCK) < n_cols
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    e = tl.exp(x - tl.max(x, 0))
    tl.store(out_ptr + at, e / tl.sum(e, 0), mask=inside)


def _softmax_no_max(x_ptr, out_ptr, n_cols, BLOCK: tl.constexpr):
    at = tl.program_id(0) * n_cols + tl.arange(0, BLOCK)
    inside = tl.arange(0, BLOCK) < n_cols
    e = tl.exp(tl.load(x_ptr + at, mask=inside, other=-float("inf")))
    tl.store(out_ptr + at, e / tl.sum(e, 0), mask=inside)


def _softmax_row_of_blocks(x_ptr, out_ptr, n_cols, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = tl.arange(0, BLOCK) < n_cols
    x = tl.load(x_ptr + at, mask=inside, other=-float("inf"))
    e = tl.exp(x - tl.max(x, 0))
    tl.store(out_ptr + at, e / tl.sum(e, 0), mask=inside)


def _softmax_no_mask(x_ptr, out_ptr, n_cols, BLOCK: tl.constexpr):
    at = tl.program_id(0) * n_cols + tl.arange(0, BLOCK)
    inside = tl.arange(0, BLOCK) < n_cols
    x = tl.load(x_ptr + at, mask=inside, other=-float("inf"))
    e = tl.exp(x - tl.max(x, 0))
    tl.store(out_ptr + at, e / tl.sum(e, 0))


def _flat_mask(x_ptr, out_ptr, n_cols, BLOCK: tl.constexpr):
    at = tl.program_id(0) * n_cols + tl.arange(0, BLOCK)
    inside = tl.arange(0, BLOCK) < n_cols
    x = tl.load(x_ptr + at, mask=inside, other=-float("inf"))
    e = tl.exp(x - tl.max(x, 0))
    tl.store(out_ptr + at, e / tl.sum(e, 0), mask=at < tl.num_programs(0) * n_cols)


def _index_mask(x_ptr, out_ptr, n_cols, BLOCK: tl.constexpr):
    at = tl.program_id(0) * n_cols + tl.arange(0, BLOCK)
    inside = at < n_cols
    x = tl.load(x_ptr + at, mask=inside, other=-float("inf"))
    e = tl.exp(x - tl.max(x, 0))
    tl.store(out_ptr + at, e / tl.sum(e, 0), mask=inside)


def _minimum(x_ptr, out_ptr, n_cols, BLOCK: tl.constexpr):
    at = tl.program_id(0) * n_cols + tl.arange(0, BLOCK)
    inside = tl.arange(0, BLOCK) < n_cols
    x = tl.load(x_ptr + at, mask=inside, other=-float("inf"))
    e = tl.exp(x - tl.min(x, 0))
    tl.store(out_ptr + at, e / tl.sum(e, 0), mask=inside)


def _softmax_not_divided(x_ptr, out_ptr, n_cols, BLOCK: tl.constexpr):
    at = tl.program_id(0) * n_cols + tl.arange(0, BLOCK)
    inside = tl.arange(0, BLOCK) < n_cols
    x = tl.load(x_ptr + at, mask=inside, other=-float("inf"))
    tl.store(out_ptr + at, tl.exp(x - tl.max(x, 0)), mask=inside)


def _softmax_two(x_ptr, out_ptr, n_cols, BLOCK: tl.constexpr):
    at = tl.program_id(0) * n_cols + tl.arange(0, BLOCK)
    inside = tl.arange(0, BLOCK) < n_cols
    x = tl.load(x_ptr + at, mask=inside, other=-float("inf"))
    e = tl.exp2(x - tl.max(x, 0))
    tl.store(out_ptr + at, e / tl.sum(e, 0), mask=inside)


def _softmax_first_row(x_ptr, out_ptr, n_cols, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    inside = at < n_cols
    x = tl.load(x_ptr + at, mask=inside, other=-float("inf"))
    e = tl.exp(x - tl.max(x, 0))
    tl.store(out_ptr + at, e / tl.sum(e, 0), mask=inside)


def _softmax_logarithm(x_ptr, out_ptr, n_cols, BLOCK: tl.constexpr):
    row, col = tl.program_id(0) * n_cols, tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row + col, mask=col < n_cols, other=-float("inf"))
    x = x - tl.max(x, axis=0)
    tl.store(out_ptr + row + col, tl.exp(x - tl.log(tl.sum(tl.exp(x), axis=0))), mask=col < n_cols)


def _softmax_zeroed(x_ptr, out_ptr, n_cols, BLOCK: tl.constexpr):
    col = tl.arange(0, BLOCK)
    inside = col < n_cols
    at = tl.program_id(0) * n_cols + col
    x = tl.load(x_ptr + at, mask=inside, other=-1e30)
    e = tl.where(inside, tl.exp(x - tl.max(x, 0)), 0.0)
    tl.store(out_ptr + at, e * (1.0 / tl.sum(e, 0)), mask=inside)


def _load_unmasked(x_ptr, out_ptr, n_cols, BLOCK: tl.constexpr):
    at = tl.program_id(0) * n_cols + tl.arange(0, BLOCK)
    inside = tl.arange(0, BLOCK) < n_cols
    x = tl.where(inside, tl.load(x_ptr + at), -float("inf"))
    e = tl.exp(x - tl.max(x, 0))
    tl.store(out_ptr + at, e / tl.sum(e, 0), mask=inside)


def _no_other(x_ptr, out_ptr, n_cols, BLOCK: tl.constexpr):
    at = tl.program_id(0) * n_cols + tl.arange(0, BLOCK)
    inside = tl.arange(0, BLOCK) < n_cols
    x = tl.load(x_ptr + at, mask=inside)
    e = tl.exp(x - tl.max(x, 0))
    tl.store(out_ptr + at, e / tl.sum(e, 0), mask=inside)


@exercise(
    "triton-softmax",
    solution=softmax_kernel,
    notebook="07_first_triton_kernels",
    title="A row in registers",
    difficulty=2,
    importance=4,
    minutes=8,
    kernel=True,
    hints=(
        "A row of 5 in a tile of 8: three lanes hold whatever you give them with other=. They go "
        "into the maximum and into the sum. Which number changes neither?",
        "at = row number * n_cols + lanes;  inside = lanes < n_cols\n"
        "x = load at, masked, other = minus infinity      # exp of it is 0\n"
        "e = exp(x - maximum of x)                        # tl.max(x, 0)\n"
        "store e / sum of e, masked",
    ),
    mutants=[
        Mutant(
            "zeros",
            _softmax_zeros,
            "Idle lanes hold 0, and exp(0 - max) goes into your sum. Load them as minus infinity, "
            "whose exponential is 0.",
        ),
        Mutant(
            "no_max",
            _softmax_no_max,
            "You did not subtract the maximum: from 89 on the exponential overflows fp32, and "
            "infinity divided by infinity is NaN.",
        ),
        Mutant(
            "row_of_blocks",
            _softmax_row_of_blocks,
            "Your rows start BLOCK elements apart. In memory they are n_cols apart; BLOCK is only "
            "the size of your tile.",
        ),
        Mutant(
            "no_mask",
            _softmax_no_mask,
            "You stored a whole tile: its idle lanes lie in the next row, which another program "
            "writes, and the last row's past the end. Mask the store, lane < n_cols.",
        ),
        Mutant(
            "flat_mask",
            _flat_mask,
            "Your store's mask asks whether an address lies in out. Idle lanes do: they are the "
            "next row's, and another program's. Mask the lanes, lane < n_cols.",
        ),
        Mutant(
            "index_mask",
            _index_mask,
            "Your mask compares the address with n_cols, which is right in row 0 alone: compare "
            "the column, 0 .. BLOCK - 1.",
        ),
        Mutant(
            "minimum",
            _minimum,
            "You subtracted the minimum, which idle lanes make minus infinity. The largest number "
            "has to become 0: tl.max.",
        ),
        Mutant(
            "not_divided",
            _softmax_not_divided,
            "The exponentials are right, but a softmax sums to one: divide by their sum.",
        ),
        Mutant(
            "base_two",
            _softmax_two,
            "These are powers of two. tl.exp2 is what the hardware has, and needs x times "
            "log2(e); tl.exp does that for you.",
        ),
        Mutant(
            "first_row",
            _softmax_first_row,
            "Every program took the first row. Its own begins at tl.program_id(0) * n_cols.",
        ),
        Mutant(
            "load_unmasked",
            _load_unmasked,
            "You loaded without a mask and put -inf in afterwards. The last row's load reads past "
            "the end of x: mask it.",
        ),
        Mutant(
            "no_other",
            _no_other,
            "The lanes that the mask leaves out are undefined, and they enter the maximum and the "
            "sum. Say other=-float('inf').",
        ),
    ],
    alternatives=[
        Alternative("logarithm", _softmax_logarithm),
        Alternative("zeroed", _softmax_zeroed),
    ],
)
def check_softmax(c):
    """Ragged rows, the sum, large numbers, very negative rows, exact and single columns."""
    block = c.choice([16, 32])
    rows, n = c.size(3, 5), block - c.size(2, 6)
    # Inside a longer piece of memory, so that a wrong stride reads numbers and not the void.
    x = (3 * c.randn(2 * rows * block))[: rows * n].view(rows, n)
    out = c.guarded(rows, n)
    c.launch((rows,), x, out, n, label="runs, a program for each row", BLOCK=block)
    with c.part():
        c.true(out.written(), "every element of out is written", "some still hold the poison")
        label = "each row sums to one"
        c.close(out.view.sum(-1), torch.ones(rows), label=label)
        c.close(out.view, _want(x), label="the values are right")
    with c.part():
        label = "nothing is written outside of out"
        c.true(out.untouched(), label, "the memory after out has changed")
    apart = c.randn(3, 5)
    apart[1:, 1:] += 300  # these rows begin with their smallest number
    apart[2] -= 1000
    for label, x, block in (
        ("numbers around 1000 do not overflow", 1000 + c.randn(2, 7), 8),
        ("rows of large negative numbers", -2e5 + c.randn(2, 5), 8),
        ("rows of very different size, some with a small first number", apart, 8),
        ("a row that fills its tile", c.randn(2, 16), 16),
        ("a single column", c.randn(3, 1), 2),
        ("200 columns in a tile of 256", 3 * c.randn(2, 200), 256),
        (
            "a score of -inf gets 0",
            torch.tensor([[0.5, -torch.inf, 1.0], [-torch.inf, 2.0, 0.0]]),
            4,
        ),
    ):
        with c.part():
            out = c.guarded(*x.shape)
            c.launch((len(x),), x, out, x.shape[1], BLOCK=block)
            c.close(out.view, _want(x), label=label)
            if "-inf" in label:
                c.equal(out.view[x.isinf()], torch.zeros(2), label="and exactly 0")


def _want(x):
    e = (x.double() - x.double().amax(-1, keepdim=True)).exp()
    return (e / e.sum(-1, keepdim=True)).float()
