"""RMSNorm backward: the input's gradient, and each program's share of the weight's."""

from __future__ import annotations

import torch

from minids3.course.registry import Alternative, Mutant, exercise
from minids3.kernels.language import tl


# fmt: off
def rms_norm_backward_kernel(grad_ptr, x_ptr, weight_ptr, rstd_ptr, dx_ptr,
                             partial_ptr, n_rows, n_cols,
                             ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Gradient of x for ROWS rows, and their share of the weight's.

    program p owns rows p * ROWS .. p * ROWS + ROWS - 1, those that exist
    grad, x, dx [n_rows, n_cols]; weight [n_cols]; rstd [n_rows]
    partial [programs, n_cols]: row p is the sum over the program's rows
    BLOCK and ROWS: powers of two, BLOCK at least n_cols
    """
    program, lane = tl.program_id(0), tl.arange(0, BLOCK)
    row = program * ROWS + tl.arange(0, ROWS)[:, None]
    col = lane[None, :]
    inside = (row < n_rows) & (col < n_cols)
    at = row * n_cols + col
    grad = tl.load(grad_ptr + at, mask=inside, other=0.0)
    rstd = tl.load(rstd_ptr + row, mask=row < n_rows, other=0.0)
    x_hat = tl.load(x_ptr + at, mask=inside, other=0.0) * rstd
    tl.store(partial_ptr + program * n_cols + lane,
             tl.sum(grad * x_hat, 0), mask=lane < n_cols)
    weight = tl.load(weight_ptr + col, mask=col < n_cols, other=0.0)
    grad = grad * weight
    along = tl.sum(grad * x_hat, 1)[:, None] / n_cols
    dx = (grad - x_hat * along) * rstd
    tl.store(dx_ptr + at, dx, mask=inside)
# fmt: on


def _back_straight(
    grad_ptr,
    x_ptr,
    weight_ptr,
    rstd_ptr,
    dx_ptr,
    partial_ptr,
    n_rows,
    n_cols,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program, lane = tl.program_id(0), tl.arange(0, BLOCK)
    row = program * ROWS + tl.arange(0, ROWS)[:, None]
    col = lane[None, :]
    inside = (row < n_rows) & (col < n_cols)
    at = row * n_cols + col
    grad = tl.load(grad_ptr + at, mask=inside, other=0.0)
    rstd = tl.load(rstd_ptr + row, mask=row < n_rows, other=0.0)
    x_hat = tl.load(x_ptr + at, mask=inside, other=0.0) * rstd
    tl.store(partial_ptr + program * n_cols + lane, tl.sum(grad * x_hat, 0), mask=lane < n_cols)
    weight = tl.load(weight_ptr + col, mask=col < n_cols, other=0.0)
    grad = grad * weight
    dx = grad * rstd
    tl.store(dx_ptr + at, dx, mask=inside)


def _back_plus(
    grad_ptr,
    x_ptr,
    weight_ptr,
    rstd_ptr,
    dx_ptr,
    partial_ptr,
    n_rows,
    n_cols,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program, lane = tl.program_id(0), tl.arange(0, BLOCK)
    row = program * ROWS + tl.arange(0, ROWS)[:, None]
    col = lane[None, :]
    inside = (row < n_rows) & (col < n_cols)
    at = row * n_cols + col
    grad = tl.load(grad_ptr + at, mask=inside, other=0.0)
    rstd = tl.load(rstd_ptr + row, mask=row < n_rows, other=0.0)
    x_hat = tl.load(x_ptr + at, mask=inside, other=0.0) * rstd
    tl.store(partial_ptr + program * n_cols + lane, tl.sum(grad * x_hat, 0), mask=lane < n_cols)
    weight = tl.load(weight_ptr + col, mask=col < n_cols, other=0.0)
    grad = grad * weight
    along = tl.sum(grad * x_hat, 1)[:, None] / n_cols
    dx = (grad + x_hat * along) * rstd
    tl.store(dx_ptr + at, dx, mask=inside)


def _back_sum(
    grad_ptr,
    x_ptr,
    weight_ptr,
    rstd_ptr,
    dx_ptr,
    partial_ptr,
    n_rows,
    n_cols,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program, lane = tl.program_id(0), tl.arange(0, BLOCK)
    row = program * ROWS + tl.arange(0, ROWS)[:, None]
    col = lane[None, :]
    inside = (row < n_rows) & (col < n_cols)
    at = row * n_cols + col
    grad = tl.load(grad_ptr + at, mask=inside, other=0.0)
    rstd = tl.load(rstd_ptr + row, mask=row < n_rows, other=0.0)
    x_hat = tl.load(x_ptr + at, mask=inside, other=0.0) * rstd
    tl.store(partial_ptr + program * n_cols + lane, tl.sum(grad * x_hat, 0), mask=lane < n_cols)
    weight = tl.load(weight_ptr + col, mask=col < n_cols, other=0.0)
    grad = grad * weight
    along = tl.sum(grad * x_hat, 1)[:, None]
    dx = (grad - x_hat * along) * rstd
    tl.store(dx_ptr + at, dx, mask=inside)


def _back_block(
    grad_ptr,
    x_ptr,
    weight_ptr,
    rstd_ptr,
    dx_ptr,
    partial_ptr,
    n_rows,
    n_cols,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program, lane = tl.program_id(0), tl.arange(0, BLOCK)
    row = program * ROWS + tl.arange(0, ROWS)[:, None]
    col = lane[None, :]
    inside = (row < n_rows) & (col < n_cols)
    at = row * n_cols + col
    grad = tl.load(grad_ptr + at, mask=inside, other=0.0)
    rstd = tl.load(rstd_ptr + row, mask=row < n_rows, other=0.0)
    x_hat = tl.load(x_ptr + at, mask=inside, other=0.0) * rstd
    tl.store(partial_ptr + program * n_cols + lane, tl.sum(grad * x_hat, 0), mask=lane < n_cols)
    weight = tl.load(weight_ptr + col, mask=col < n_cols, other=0.0)
    grad = grad * weight
    along = tl.sum(grad * x_hat, 1)[:, None] / BLOCK
    dx = (grad - x_hat * along) * rstd
    tl.store(dx_ptr + at, dx, mask=inside)


def _back_no_rstd(
    grad_ptr,
    x_ptr,
    weight_ptr,
    rstd_ptr,
    dx_ptr,
    partial_ptr,
    n_rows,
    n_cols,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program, lane = tl.program_id(0), tl.arange(0, BLOCK)
    row = program * ROWS + tl.arange(0, ROWS)[:, None]
    col = lane[None, :]
    inside = (row < n_rows) & (col < n_cols)
    at = row * n_cols + col
    grad = tl.load(grad_ptr + at, mask=inside, other=0.0)
    rstd = tl.load(rstd_ptr + row, mask=row < n_rows, other=0.0)
    x_hat = tl.load(x_ptr + at, mask=inside, other=0.0) * rstd
    tl.store(partial_ptr + program * n_cols + lane, tl.sum(grad * x_hat, 0), mask=lane < n_cols)
    weight = tl.load(weight_ptr + col, mask=col < n_cols, other=0.0)
    grad = grad * weight
    along = tl.sum(grad * x_hat, 1)[:, None] / n_cols
    dx = grad - x_hat * along
    tl.store(dx_ptr + at, dx, mask=inside)


def _back_raw_x(
    grad_ptr,
    x_ptr,
    weight_ptr,
    rstd_ptr,
    dx_ptr,
    partial_ptr,
    n_rows,
    n_cols,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program, lane = tl.program_id(0), tl.arange(0, BLOCK)
    row = program * ROWS + tl.arange(0, ROWS)[:, None]
    col = lane[None, :]
    inside = (row < n_rows) & (col < n_cols)
    at = row * n_cols + col
    grad = tl.load(grad_ptr + at, mask=inside, other=0.0)
    rstd = tl.load(rstd_ptr + row, mask=row < n_rows, other=0.0)
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    x_hat = x * rstd
    tl.store(partial_ptr + program * n_cols + lane, tl.sum(grad * x, 0), mask=lane < n_cols)
    weight = tl.load(weight_ptr + col, mask=col < n_cols, other=0.0)
    grad = grad * weight
    along = tl.sum(grad * x_hat, 1)[:, None] / n_cols
    dx = (grad - x_hat * along) * rstd
    tl.store(dx_ptr + at, dx, mask=inside)


def _back_weight_twice(
    grad_ptr,
    x_ptr,
    weight_ptr,
    rstd_ptr,
    dx_ptr,
    partial_ptr,
    n_rows,
    n_cols,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program, lane = tl.program_id(0), tl.arange(0, BLOCK)
    row = program * ROWS + tl.arange(0, ROWS)[:, None]
    col = lane[None, :]
    inside = (row < n_rows) & (col < n_cols)
    at = row * n_cols + col
    grad = tl.load(grad_ptr + at, mask=inside, other=0.0)
    rstd = tl.load(rstd_ptr + row, mask=row < n_rows, other=0.0)
    weight = tl.load(weight_ptr + col, mask=col < n_cols, other=0.0)
    x_hat = tl.load(x_ptr + at, mask=inside, other=0.0) * rstd
    tl.store(
        partial_ptr + program * n_cols + lane, tl.sum(grad * weight * x_hat, 0), mask=lane < n_cols
    )
    grad = grad * weight
    along = tl.sum(grad * x_hat, 1)[:, None] / n_cols
    dx = (grad - x_hat * along) * rstd
    tl.store(dx_ptr + at, dx, mask=inside)


def _back_whole_mean(
    grad_ptr,
    x_ptr,
    weight_ptr,
    rstd_ptr,
    dx_ptr,
    partial_ptr,
    n_rows,
    n_cols,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program, lane = tl.program_id(0), tl.arange(0, BLOCK)
    row = program * ROWS + tl.arange(0, ROWS)[:, None]
    col = lane[None, :]
    inside = (row < n_rows) & (col < n_cols)
    at = row * n_cols + col
    grad = tl.load(grad_ptr + at, mask=inside, other=0.0)
    rstd = tl.load(rstd_ptr + row, mask=row < n_rows, other=0.0)
    x_hat = tl.load(x_ptr + at, mask=inside, other=0.0) * rstd
    tl.store(partial_ptr + program * n_cols + lane, tl.sum(grad * x_hat, 0), mask=lane < n_cols)
    weight = tl.load(weight_ptr + col, mask=col < n_cols, other=0.0)
    grad = grad * weight
    along = tl.sum(tl.sum(grad * x_hat, 1), 0) / n_cols
    dx = (grad - x_hat * along) * rstd
    tl.store(dx_ptr + at, dx, mask=inside)


def _back_one_partial(
    grad_ptr,
    x_ptr,
    weight_ptr,
    rstd_ptr,
    dx_ptr,
    partial_ptr,
    n_rows,
    n_cols,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program, lane = tl.program_id(0), tl.arange(0, BLOCK)
    row = program * ROWS + tl.arange(0, ROWS)[:, None]
    col = lane[None, :]
    inside = (row < n_rows) & (col < n_cols)
    at = row * n_cols + col
    grad = tl.load(grad_ptr + at, mask=inside, other=0.0)
    rstd = tl.load(rstd_ptr + row, mask=row < n_rows, other=0.0)
    x_hat = tl.load(x_ptr + at, mask=inside, other=0.0) * rstd
    tl.store(partial_ptr + lane, tl.sum(grad * x_hat, 0), mask=lane < n_cols)
    weight = tl.load(weight_ptr + col, mask=col < n_cols, other=0.0)
    grad = grad * weight
    along = tl.sum(grad * x_hat, 1)[:, None] / n_cols
    dx = (grad - x_hat * along) * rstd
    tl.store(dx_ptr + at, dx, mask=inside)


def _back_rows_beyond(
    grad_ptr,
    x_ptr,
    weight_ptr,
    rstd_ptr,
    dx_ptr,
    partial_ptr,
    n_rows,
    n_cols,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program, lane = tl.program_id(0), tl.arange(0, BLOCK)
    row = program * ROWS + tl.arange(0, ROWS)[:, None]
    col = lane[None, :]
    inside = (row < n_rows) & (col < n_cols)
    at = row * n_cols + col
    grad = tl.load(grad_ptr + at, mask=inside, other=0.0)
    rstd = tl.load(rstd_ptr + row, mask=row < n_rows, other=0.0)
    x_hat = tl.load(x_ptr + at, mask=inside, other=0.0) * rstd
    tl.store(partial_ptr + program * n_cols + lane, tl.sum(grad * x_hat, 0), mask=lane < n_cols)
    weight = tl.load(weight_ptr + col, mask=col < n_cols, other=0.0)
    grad = grad * weight
    along = tl.sum(grad * x_hat, 1)[:, None] / n_cols
    dx = (grad - x_hat * along) * rstd
    tl.store(dx_ptr + at, dx, mask=col < n_cols)


def _back_no_weight(
    grad_ptr,
    x_ptr,
    weight_ptr,
    rstd_ptr,
    dx_ptr,
    partial_ptr,
    n_rows,
    n_cols,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program, lane = tl.program_id(0), tl.arange(0, BLOCK)
    row = program * ROWS + tl.arange(0, ROWS)[:, None]
    col = lane[None, :]
    inside = (row < n_rows) & (col < n_cols)
    at = row * n_cols + col
    grad = tl.load(grad_ptr + at, mask=inside, other=0.0)
    rstd = tl.load(rstd_ptr + row, mask=row < n_rows, other=0.0)
    x_hat = tl.load(x_ptr + at, mask=inside, other=0.0) * rstd
    tl.store(partial_ptr + program * n_cols + lane, tl.sum(grad * x_hat, 0), mask=lane < n_cols)
    along = tl.sum(grad * x_hat, 1)[:, None] / n_cols
    dx = (grad - x_hat * along) * rstd
    tl.store(dx_ptr + at, dx, mask=inside)


def _flat_mask(
    grad_ptr,
    x_ptr,
    weight_ptr,
    rstd_ptr,
    dx_ptr,
    partial_ptr,
    n_rows,
    n_cols,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program, lane = tl.program_id(0), tl.arange(0, BLOCK)
    row = program * ROWS + tl.arange(0, ROWS)[:, None]
    col = lane[None, :]
    at = row * n_cols + col
    inside = at < n_rows * n_cols
    grad = tl.load(grad_ptr + at, mask=inside, other=0.0)
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    rstd = tl.load(rstd_ptr + row, mask=row < n_rows, other=0.0)
    x_hat = x * rstd
    tl.store(partial_ptr + program * n_cols + lane, tl.sum(grad * x_hat, 0), mask=lane < n_cols)
    weight = tl.load(weight_ptr + col, mask=col < n_cols, other=0.0)
    grad = grad * weight
    along = tl.sum(grad * x_hat, 1)[:, None] / n_cols
    dx = (grad - x_hat * along) * rstd
    tl.store(dx_ptr + at, dx, mask=inside)


def _rstd_anew(
    grad_ptr,
    x_ptr,
    weight_ptr,
    rstd_ptr,
    dx_ptr,
    partial_ptr,
    n_rows,
    n_cols,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program, lane = tl.program_id(0), tl.arange(0, BLOCK)
    row = program * ROWS + tl.arange(0, ROWS)[:, None]
    col = lane[None, :]
    at = row * n_cols + col
    inside = (row < n_rows) & (col < n_cols)
    grad = tl.load(grad_ptr + at, mask=inside, other=0.0)
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, 1)[:, None] / n_cols + 1e-5)
    x_hat = x * rstd
    tl.store(partial_ptr + program * n_cols + lane, tl.sum(grad * x_hat, 0), mask=lane < n_cols)
    weight = tl.load(weight_ptr + col, mask=col < n_cols, other=0.0)
    grad = grad * weight
    along = tl.sum(grad * x_hat, 1)[:, None] / n_cols
    dx = (grad - x_hat * along) * rstd
    tl.store(dx_ptr + at, dx, mask=inside)


def _back_loop(
    grad_ptr,
    x_ptr,
    weight_ptr,
    rstd_ptr,
    dx_ptr,
    partial_ptr,
    n_rows,
    n_cols,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program, col = tl.program_id(0), tl.arange(0, BLOCK)
    weight = tl.load(weight_ptr + col, mask=col < n_cols, other=0.0)
    partial = tl.zeros((BLOCK,), tl.float32)
    for r in range(ROWS):
        row = program * ROWS + r
        at = row * n_cols + col
        here = (col < n_cols) & (at < n_rows * n_cols)
        rstd = tl.load(rstd_ptr + row, mask=row < n_rows, other=0.0)
        x_hat = tl.load(x_ptr + at, mask=here, other=0.0) * rstd
        grad = tl.load(grad_ptr + at, mask=here, other=0.0)
        partial += grad * x_hat
        grad = grad * weight
        along = tl.sum(grad * x_hat, 0) / n_cols
        tl.store(dx_ptr + at, (grad - x_hat * along) * rstd, mask=here)
    tl.store(partial_ptr + program * n_cols + col, partial, mask=col < n_cols)


def _back_cubed(
    grad_ptr,
    x_ptr,
    weight_ptr,
    rstd_ptr,
    dx_ptr,
    partial_ptr,
    n_rows,
    n_cols,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program, lane = tl.program_id(0), tl.arange(0, BLOCK)
    row = program * ROWS + tl.arange(0, ROWS)[:, None]
    col = lane[None, :]
    inside = (row < n_rows) & (col < n_cols)
    at = row * n_cols + col
    grad = tl.load(grad_ptr + at, mask=inside, other=0.0)
    rstd = tl.load(rstd_ptr + row, mask=row < n_rows, other=0.0)
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    tl.store(partial_ptr + program * n_cols + lane, tl.sum(grad * x * rstd, 0), mask=lane < n_cols)
    weight = tl.load(weight_ptr + col, mask=col < n_cols, other=0.0)
    grad = grad * weight
    shared = tl.sum(grad * x, axis=1, keep_dims=True) / n_cols
    dx = grad * rstd - x * shared * rstd * rstd * rstd
    tl.store(dx_ptr + at, dx, mask=inside)


@exercise(
    "triton-rms-backward",
    solution=rms_norm_backward_kernel,
    notebook="07_first_triton_kernels",
    title="The way back, the same in every run",
    difficulty=4,
    importance=4,
    minutes=15,
    kernel=True,
    hints=(
        "Work on paper first: of the gradient that reaches y, which direction does dx lose, and "
        "why? And over which axis of a tile do you sum for the weight, over which for a row?",
        "row = program * ROWS + (0 .. ROWS - 1)[:, None];  col = (0 .. BLOCK - 1)[None, :]\n"
        "inside = row exists and col exists;  at = row * n_cols + col\n"
        "x_hat = x * rstd of its row\n"
        "store sum over the rows of grad * x_hat in row 'program' of partial\n"
        "grad = grad * weight\n"
        "along = sum over the columns of grad * x_hat, / n_cols, as a column again\n"
        "store (grad - x_hat * along) * rstd, masked",
    ),
    mutants=[
        Mutant(
            "straight",
            _back_straight,
            "You treated rstd as a constant. It depends on every element of the row, and that is "
            "where the term - x_hat * along comes from.",
        ),
        Mutant(
            "plus",
            _back_plus,
            "The sign of the second term is wrong: the component along x_hat is taken away. A norm "
            "does not notice the length of x, so neither may the gradient.",
        ),
        Mutant(
            "sum_not_mean",
            _back_sum,
            "Your along is a sum. The mean square was divided by n_cols, and so is its derivative.",
        ),
        Mutant(
            "mean_of_block",
            _back_block,
            "You divided by BLOCK. The tile has idle lanes; the mean is over n_cols elements.",
        ),
        Mutant(
            "no_rstd",
            _back_no_rstd,
            "dx lacks its factor rstd: if x doubles, y stays the same, so the slope must halve.",
        ),
        Mutant(
            "raw_x",
            _back_raw_x,
            "Your weight's gradient uses x. What the weight multiplied was x_hat = x * rstd.",
        ),
        Mutant(
            "weight_in_partial",
            _back_weight_twice,
            "The weight's own gradient must not contain the weight: add to partial before you "
            "multiply the gradient by it.",
        ),
        Mutant(
            "mean_of_tile",
            _back_whole_mean,
            "You summed along over the whole tile, so that rows mix. Every row has its own: sum "
            "over axis 1 and keep the rows apart.",
        ),
        Mutant(
            "one_partial",
            _back_one_partial,
            "All programs stored into the first row of partial, and the last one to come wins. "
            "Each has its own row.",
        ),
        Mutant(
            "rows_beyond",
            _back_rows_beyond,
            "The last program has fewer rows than ROWS and wrote the missing ones anyway, after "
            "the end of dx. Mask rows as well as columns.",
        ),
        Mutant(
            "flat_mask",
            _flat_mask,
            "Your mask asks whether an address lies in the matrix. Idle lanes do: they are the "
            "next row's, of another program at the end of a tile. Mask rows and columns.",
        ),
        Mutant(
            "rstd_anew",
            _rstd_anew,
            "You computed rstd anew, with an eps of your own. rstd_ptr holds what the forward pass "
            "multiplied by: load it.",
        ),
        Mutant(
            "no_weight",
            _back_no_weight,
            "The weight is missing on the way to dx: y = x_hat * weight, so the gradient of x_hat "
            "is grad * weight.",
        ),
    ],
    alternatives=[
        Alternative("loop", _back_loop),
        Alternative("cubed", _back_cubed),
    ],
)
def check_rms_backward(c):
    """Both gradients against fp64 autograd, a ragged end, direction, one row, a full tile."""
    block, per = c.choice([8, 16]), c.choice([2, 4])
    programs, n = 3, block - c.size(1, 3)
    rows = programs * per - c.size(1, per - 1)
    x, grad, weight = 1 + 2 * c.randn(rows, n), c.randn(rows, n), c.randn(n)
    rstd, dx_want, parts_want = _want(x, weight, grad, per)
    dx, partial = c.guarded(rows, n), c.guarded(programs, n)
    given = (grad, x, weight, rstd)
    size = {"ROWS": per, "BLOCK": block}
    c.launch((programs,), *given, dx, partial, rows, n, label="runs as three programs", **size)
    with c.part():
        c.true(dx.written(), "every element of dx is written", "some still hold the poison")
        c.close(dx.view, dx_want, label="dx is right")
    with c.part():
        c.true(partial.written(), "every program writes its row of partial", "one is missing")
        c.close(partial.view, parts_want, label="each holds the sum over the program's own rows")
    with c.part():
        label = "nothing is written outside of dx and partial"
        c.true(dx.untouched() and partial.untouched(), label, "the memory after one has changed")
    with c.part():
        ones, (rstd, _, _) = torch.ones(n), _want(x, torch.ones(n), grad, per, eps=0.0)
        dx, partial = c.guarded(rows, n), c.guarded(programs, n)
        c.launch((programs,), grad, x, ones, rstd, dx, partial, rows, n, **size)
        label = "dx is perpendicular to x if the weights are one"
        c.close((dx.view * x).sum(-1), torch.zeros(rows), label=label, atol=1e-4)
    with c.part():
        x, grad, weight = c.randn(1, 8), c.randn(1, 8), c.randn(8)
        rstd, dx_want, parts_want = _want(x, weight, grad, 1)
        dx, partial = c.guarded(1, 8), c.guarded(1, 8)
        c.launch((1,), grad, x, weight, rstd, dx, partial, 1, 8, ROWS=1, BLOCK=8)
        c.close(dx.view, dx_want, label="one row that fills its tile")
        c.close(partial.view, parts_want, label="and its share of the weight's gradient")
    with c.part():
        x, grad, weight = 0.1 * c.randn(3, 100), c.randn(3, 100), c.randn(100)
        rstd, dx_want, parts_want = _want(x, weight, grad, 2, eps=0.1)
        dx, partial = c.guarded(3, 100), c.guarded(2, 100)
        c.launch((2,), grad, x, weight, rstd, dx, partial, 3, 100, ROWS=2, BLOCK=128)
        c.close(dx.view, dx_want, label="100 columns, with the rstd of an eps of 0.1")
        c.close(partial.view, parts_want, label="and the shares")


def _want(x, weight, grad, per, eps=1e-5):
    """rstd, dx, and the weight's gradient of each block of ``per`` rows, by fp64 autograd."""
    rstd = (x.double().square().mean(-1) + eps).rsqrt().float()
    leaf, parts, slopes = x.double().requires_grad_(), [], []
    for rows, g in zip(leaf.split(per), grad.double().split(per), strict=True):
        w = weight.double().requires_grad_()
        y = rows / (rows.square().mean(-1, keepdim=True) + eps).sqrt() * w
        slope, part = torch.autograd.grad(y, (leaf, w), g)
        parts.append(part)
        slopes.append(slope)
    return rstd, sum(slopes).float(), torch.stack(parts).float()
