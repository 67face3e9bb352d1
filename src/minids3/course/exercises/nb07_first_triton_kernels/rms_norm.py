"""RMSNorm forward, one row to a program."""

from __future__ import annotations

import torch

from minids3.course.registry import Alternative, Mutant, exercise
from minids3.kernels.language import tl


# fmt: off
def rms_norm_kernel(x_ptr, weight_ptr, y_ptr, rstd_ptr, n_cols, eps,
                    BLOCK: tl.constexpr):
    """RMSNorm of one row: y = x * rstd * weight.

    x, y [rows, n_cols], of any floating dtype; weight [n_cols]; rstd
    [rows] fp32: 1 / sqrt(mean of squares + eps), kept for the backward
    program p owns row p; BLOCK: a power of two, at least n_cols
    """
    row, col = tl.program_id(0), tl.arange(0, BLOCK)
    inside = col < n_cols
    at = row * n_cols + col
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + col, mask=inside, other=0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, 0) / n_cols + eps)
    tl.store(rstd_ptr + row, rstd)
    tl.store(y_ptr + at, x * rstd * weight, mask=inside)
# fmt: on


def _rms_block(x_ptr, weight_ptr, y_ptr, rstd_ptr, n_cols, eps, BLOCK: tl.constexpr):
    row, col = tl.program_id(0), tl.arange(0, BLOCK)
    at = row * n_cols + col
    x = tl.load(x_ptr + at, mask=col < n_cols, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + col, mask=col < n_cols, other=0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, 0) / BLOCK + eps)
    tl.store(rstd_ptr + row, rstd)
    tl.store(y_ptr + at, x * rstd * weight, mask=col < n_cols)


def _rms_half(x_ptr, weight_ptr, y_ptr, rstd_ptr, n_cols, eps, BLOCK: tl.constexpr):
    row, col = tl.program_id(0), tl.arange(0, BLOCK)
    at = row * n_cols + col
    x = tl.load(x_ptr + at, mask=col < n_cols, other=0.0)
    weight = tl.load(weight_ptr + col, mask=col < n_cols, other=0.0)
    square = (x * x).to(tl.float32)
    rstd = 1.0 / tl.sqrt(tl.sum(square, 0) / n_cols + eps)
    tl.store(rstd_ptr + row, rstd)
    tl.store(y_ptr + at, x.to(tl.float32) * rstd * weight, mask=col < n_cols)


def _rms_eps_outside(x_ptr, weight_ptr, y_ptr, rstd_ptr, n_cols, eps, BLOCK: tl.constexpr):
    row, col = tl.program_id(0), tl.arange(0, BLOCK)
    at = row * n_cols + col
    x = tl.load(x_ptr + at, mask=col < n_cols, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + col, mask=col < n_cols, other=0.0)
    rstd = 1.0 / (tl.sqrt(tl.sum(x * x, 0) / n_cols) + eps)
    tl.store(rstd_ptr + row, rstd)
    tl.store(y_ptr + at, x * rstd * weight, mask=col < n_cols)


def _rms_centred(x_ptr, weight_ptr, y_ptr, rstd_ptr, n_cols, eps, BLOCK: tl.constexpr):
    row, col = tl.program_id(0), tl.arange(0, BLOCK)
    at = row * n_cols + col
    x = tl.load(x_ptr + at, mask=col < n_cols, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + col, mask=col < n_cols, other=0.0)
    x = tl.where(col < n_cols, x - tl.sum(x, 0) / n_cols, 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, 0) / n_cols + eps)
    tl.store(rstd_ptr + row, rstd)
    tl.store(y_ptr + at, x * rstd * weight, mask=col < n_cols)


def _rms_no_weight(x_ptr, weight_ptr, y_ptr, rstd_ptr, n_cols, eps, BLOCK: tl.constexpr):
    row, col = tl.program_id(0), tl.arange(0, BLOCK)
    at = row * n_cols + col
    x = tl.load(x_ptr + at, mask=col < n_cols, other=0.0).to(tl.float32)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, 0) / n_cols + eps)
    tl.store(rstd_ptr + row, rstd)
    tl.store(y_ptr + at, x * rstd, mask=col < n_cols)


def _rms_one_weight(x_ptr, weight_ptr, y_ptr, rstd_ptr, n_cols, eps, BLOCK: tl.constexpr):
    row, col = tl.program_id(0), tl.arange(0, BLOCK)
    at = row * n_cols + col
    x = tl.load(x_ptr + at, mask=col < n_cols, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + row)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, 0) / n_cols + eps)
    tl.store(rstd_ptr + row, rstd)
    tl.store(y_ptr + at, x * rstd * weight, mask=col < n_cols)


def _rms_kept_rms(x_ptr, weight_ptr, y_ptr, rstd_ptr, n_cols, eps, BLOCK: tl.constexpr):
    row, col = tl.program_id(0), tl.arange(0, BLOCK)
    at = row * n_cols + col
    x = tl.load(x_ptr + at, mask=col < n_cols, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + col, mask=col < n_cols, other=0.0)
    rms = tl.sqrt(tl.sum(x * x, 0) / n_cols + eps)
    tl.store(rstd_ptr + row, rms)
    tl.store(y_ptr + at, x / rms * weight, mask=col < n_cols)


def _rms_sum(x_ptr, weight_ptr, y_ptr, rstd_ptr, n_cols, eps, BLOCK: tl.constexpr):
    row, col = tl.program_id(0), tl.arange(0, BLOCK)
    at = row * n_cols + col
    x = tl.load(x_ptr + at, mask=col < n_cols, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + col, mask=col < n_cols, other=0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, 0) + eps)
    tl.store(rstd_ptr + row, rstd)
    tl.store(y_ptr + at, x * rstd * weight, mask=col < n_cols)


def _rms_no_mask(x_ptr, weight_ptr, y_ptr, rstd_ptr, n_cols, eps, BLOCK: tl.constexpr):
    row, col = tl.program_id(0), tl.arange(0, BLOCK)
    at = row * n_cols + col
    x = tl.load(x_ptr + at, mask=col < n_cols, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + col, mask=col < n_cols, other=0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, 0) / n_cols + eps)
    tl.store(rstd_ptr + row, rstd)
    tl.store(y_ptr + at, x * rstd * weight)


def _rms_moved_pointers(x_ptr, weight_ptr, y_ptr, rstd_ptr, n_cols, eps, BLOCK: tl.constexpr):
    row, lane = tl.program_id(0), tl.arange(0, BLOCK)
    x_ptr += row * n_cols
    y_ptr += row * n_cols
    x = tl.load(x_ptr + lane, mask=lane < n_cols, other=0.0).to(tl.float32)
    rstd = tl.rsqrt(tl.sum(x * x, axis=0) / n_cols + eps)
    tl.store(rstd_ptr + row, rstd)
    weight = tl.load(weight_ptr + lane, mask=lane < n_cols, other=0.0).to(tl.float32)
    tl.store(y_ptr + lane, weight * (x * rstd), mask=lane < n_cols)


def _rms_scaled_first(x_ptr, weight_ptr, y_ptr, rstd_ptr, n_cols, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    col = tl.arange(0, BLOCK)
    inside = col < n_cols
    x = tl.load(x_ptr + row * n_cols + col, mask=inside, other=0.0).to(tl.float32)
    biggest = tl.maximum(tl.max(tl.abs(x), 0), 1e-30)
    small = x / biggest
    rms = biggest * tl.sqrt(tl.sum(small * small, 0) / n_cols + eps / (biggest * biggest))
    rms = tl.where(biggest == 1e-30, tl.sqrt(eps), rms)
    weight = tl.load(weight_ptr + col, mask=inside, other=0.0)
    tl.store(y_ptr + row * n_cols + col, x / rms * weight, mask=inside)
    tl.store(rstd_ptr + row, 1.0 / rms)


def _rstd_without_eps(x_ptr, weight_ptr, y_ptr, rstd_ptr, n_cols, eps, BLOCK: tl.constexpr):
    row, col = tl.program_id(0), tl.arange(0, BLOCK)
    inside = col < n_cols
    at = row * n_cols + col
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + col, mask=inside, other=0.0)
    mean = tl.sum(x * x, 0) / n_cols
    tl.store(rstd_ptr + row, 1.0 / tl.sqrt(mean))
    tl.store(y_ptr + at, x / tl.sqrt(mean + eps) * weight, mask=inside)


def _index_mask(x_ptr, weight_ptr, y_ptr, rstd_ptr, n_cols, eps, BLOCK: tl.constexpr):
    row, col = tl.program_id(0), tl.arange(0, BLOCK)
    at = row * n_cols + col
    inside = at < n_cols
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + col, mask=col < n_cols, other=0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, 0) / n_cols + eps)
    tl.store(rstd_ptr + row, rstd)
    tl.store(y_ptr + at, x * rstd * weight, mask=inside)


def _eps_built_in(x_ptr, weight_ptr, y_ptr, rstd_ptr, n_cols, eps, BLOCK: tl.constexpr):
    row, col = tl.program_id(0), tl.arange(0, BLOCK)
    inside = col < n_cols
    at = row * n_cols + col
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + col, mask=inside, other=0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, 0) / n_cols + 1e-5)
    tl.store(rstd_ptr + row, rstd)
    tl.store(y_ptr + at, x * rstd * weight, mask=inside)


def _rstd_rounded(x_ptr, weight_ptr, y_ptr, rstd_ptr, n_cols, eps, BLOCK: tl.constexpr):
    row, col = tl.program_id(0), tl.arange(0, BLOCK)
    inside = col < n_cols
    at = row * n_cols + col
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    weight = tl.load(weight_ptr + col, mask=inside, other=0.0)
    wide = x.to(tl.float32)
    rstd = 1.0 / tl.sqrt(tl.sum(wide * wide, 0) / n_cols + eps)
    tl.store(rstd_ptr + row, rstd.to(x.dtype))
    tl.store(y_ptr + at, wide * rstd * weight, mask=inside)


def _flat_mask(x_ptr, weight_ptr, y_ptr, rstd_ptr, n_cols, eps, BLOCK: tl.constexpr):
    row, col = tl.program_id(0), tl.arange(0, BLOCK)
    inside = col < n_cols
    at = row * n_cols + col
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + col, mask=inside, other=0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, 0) / n_cols + eps)
    tl.store(rstd_ptr + row, rstd)
    tl.store(y_ptr + at, x * rstd * weight, mask=at < tl.num_programs(0) * n_cols)


def _no_other(x_ptr, weight_ptr, y_ptr, rstd_ptr, n_cols, eps, BLOCK: tl.constexpr):
    row, col = tl.program_id(0), tl.arange(0, BLOCK)
    inside = col < n_cols
    at = row * n_cols + col
    x = tl.load(x_ptr + at, mask=inside).to(tl.float32)
    weight = tl.load(weight_ptr + col, mask=inside)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, 0) / n_cols + eps)
    tl.store(rstd_ptr + row, rstd)
    tl.store(y_ptr + at, x * rstd * weight, mask=inside)


def _weight_unmasked(x_ptr, weight_ptr, y_ptr, rstd_ptr, n_cols, eps, BLOCK: tl.constexpr):
    row, col = tl.program_id(0), tl.arange(0, BLOCK)
    inside = col < n_cols
    at = row * n_cols + col
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, 0) / n_cols + eps)
    tl.store(rstd_ptr + row, rstd)
    tl.store(y_ptr + at, x * rstd * tl.load(weight_ptr + col), mask=inside)


@exercise(
    "triton-rms-norm",
    solution=rms_norm_kernel,
    notebook="07_first_triton_kernels",
    title="The norm, in one trip",
    difficulty=2,
    importance=4,
    minutes=8,
    kernel=True,
    hints=(
        "Idle lanes hold what you give them with other=. Which number leaves a sum of squares "
        "alone, and by how many elements is the mean then divided? And what is the largest square "
        "that fp16 can hold?",
        "at = row * n_cols + lanes;  inside = lanes < n_cols\n"
        "x = load at, masked, other = 0, then .to(tl.float32)\n"
        "rstd = 1 / sqrt(sum(x * x) / n_cols + eps)\n"
        "store rstd at rstd_ptr + row\n"
        "store x * rstd * weight, masked",
    ),
    mutants=[
        Mutant(
            "mean_of_block",
            _rms_block,
            "You divided by BLOCK. The tile has idle lanes, the mean is over the n_cols elements "
            "that exist.",
        ),
        Mutant(
            "squares_in_half",
            _rms_half,
            "You squared before converting. 300 squared is 90,000, and fp16 ends at 65,504: "
            "convert with .to(tl.float32) right after the load.",
        ),
        Mutant(
            "eps_outside",
            _rms_eps_outside,
            "Your eps is added outside of the square root. It belongs to the mean of squares.",
        ),
        Mutant(
            "centred",
            _rms_centred,
            "You subtracted the mean: that is LayerNorm. RMSNorm leaves the mean alone.",
        ),
        Mutant("no_weight", _rms_no_weight, "The weight is missing: y = x * rstd * weight."),
        Mutant(
            "one_weight",
            _rms_one_weight,
            "You took one weight for the whole row, the row's. There is one for each column.",
        ),
        Mutant(
            "kept_the_rms",
            _rms_kept_rms,
            "You kept the root mean square; asked for is its reciprocal, so that the backward can "
            "multiply.",
        ),
        Mutant(
            "sum_of_squares",
            _rms_sum,
            "You took the root of the sum of squares. It is the mean: divide by n_cols.",
        ),
        Mutant(
            "no_mask",
            _rms_no_mask,
            "You stored a whole tile of y: the last row's idle lanes are beyond the end.",
        ),
        Mutant(
            "flat_mask",
            _flat_mask,
            "Your store's mask asks whether an address lies in y. Idle lanes do: they are the next "
            "row's, and another program's. Mask the columns, col < n_cols.",
        ),
        Mutant(
            "index_mask",
            _index_mask,
            "Your mask compares the address with n_cols, which is right in row 0 alone: compare "
            "the column, 0 .. BLOCK - 1.",
        ),
        Mutant(
            "eps_built_in",
            _eps_built_in,
            "You built an eps in. The caller's may be another: use the argument.",
        ),
        Mutant(
            "rstd_rounded",
            _rstd_rounded,
            "You rounded rstd to the dtype of x. It is kept in fp32, so that the backward pass "
            "loses nothing by it.",
        ),
        Mutant(
            "rstd_without_eps",
            _rstd_without_eps,
            "The rstd you keep has no eps in it. A row of zeros gives inf there, and the backward "
            "pass nan: keep the very number that y was multiplied by.",
        ),
        Mutant(
            "no_other",
            _no_other,
            "The lanes that the mask leaves out are undefined, and they enter the sum of squares. "
            "Say other=0.0.",
        ),
        Mutant(
            "weight_unmasked",
            _weight_unmasked,
            "You loaded the weight without a mask: the lanes past n_cols read past its end.",
        ),
    ],
    alternatives=[
        Alternative("moved_pointers", _rms_moved_pointers),
        Alternative("scaled_first", _rms_scaled_first),
    ],
)
def check_rms_norm(c):
    """Ragged rows, rstd, fp16 with large numbers, a row of zeros, exact and single columns."""
    block = c.choice([16, 32])
    rows, n, eps = c.size(3, 5), block - c.size(2, 6), 1e-5
    x, weight = 1 + 2 * c.randn(rows, n), c.randn(block)[:n]
    y, rstd = c.guarded(rows, n), c.guarded(rows)
    c.launch((rows,), x, weight, y, rstd, n, eps, label="runs, a program a row", BLOCK=block)
    with c.part():
        c.true(y.written(), "every element of y is written", "some still hold the poison")
        c.close(y.view, _want(x, weight, eps)[0], label="y is right")
    with c.part():
        c.close(rstd.view, _want(x, weight, eps)[1], label="rstd is 1 / root mean square")
    with c.part():
        label = "nothing is written outside of y and rstd"
        c.true(y.untouched() and rstd.untouched(), label, "the memory after one has changed")
    large = 300 * c.randn(2, 7).sign()
    for label, x, size, dtype, eps in (
        ("in fp16 large numbers do not overflow", large, 8, torch.float16, 1e-5),
        ("eps counts where numbers are small", 0.01 * c.randn(2, 6), 8, torch.float32, 1e-2),
        ("a row of zeros stays zero", torch.zeros(1, 5), 8, torch.float32, 1e-5),
        ("a row that fills its tile", c.randn(2, 16), 16, torch.float32, 1e-5),
        ("a single column", c.randn(3, 1), 2, torch.float32, 1e-5),
        ("uneven rows of fp16", 1 + 2 * c.randn(3, 6), 8, torch.float16, 1e-5),
        ("100 columns in a tile of 128", 1 + 2 * c.randn(2, 100), 128, torch.float32, 1e-5),
    ):
        with c.part():
            x, weight = x.to(dtype), c.randn(size)[: x.shape[1]].to(dtype)
            y, rstd = c.guarded(*x.shape, dtype=dtype), c.guarded(len(x))
            c.launch((len(x),), x, weight, y, rstd, x.shape[1], eps, BLOCK=size)
            want = _want(x, weight, eps)[0].to(dtype)
            tolerance = 2e-3 if dtype == torch.float16 else 1e-4
            c.close(y.view, want, label=label, rtol=tolerance, atol=1e-5)
            rstd_want = _want(x, weight, eps)[1]
            c.close(rstd.view, rstd_want, label=f"{label}: rstd", rtol=1e-5)


def _want(x, weight, eps):
    x = x.double()
    rms = (x.pow(2).sum(-1, keepdim=True) / x.shape[-1] + eps).sqrt()
    return (x / rms * weight.double()).float(), (1 / rms[:, 0]).float()
