"""Kernels as exercises: guarded outputs, errors, and what a check says of them."""

import warnings

import pytest
import torch
from kernel_check import run

from minids3.course.check import placeholder
from minids3.course.launching import Guarded, launch
from minids3.kernels.language import jit, tl
from minids3.kernels.watch import MemoryFault


def good(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.load(x_ptr + i, mask=i < n) + 1, mask=i < n)


def no_mask(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.load(x_ptr + i, mask=i < n, other=0.0) + 1)


def into_input(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x_ptr + i, tl.load(x_ptr + i, mask=i < n) + 1, mask=i < n)


def stub(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    raise NotImplementedError


def broken(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out_ptr + i, undefined + i)  # noqa: F821


@pytest.mark.parametrize("wrap", [lambda f: f, jit], ids=["plain", "jit"])
def test_a_right_kernel_passes_decorated_or_not(wrap):
    assert [i.status for i in run(wrap(good)).items] == ["ok"] * 4


@pytest.mark.parametrize(
    ("fn", "label", "reason"),
    [
        (no_mask, "nothing else", "past the end"),
        (into_input, "runs", "wrote into an input"),
        (stub, "runs", "still a stub"),
        (broken, "runs", "NameError"),
    ],
)
def test_faults_are_told(fn, label, reason):
    c = run(jit(fn))
    first = next(i for i in c.items if i.status == "no")
    assert first.label == label
    assert reason in first.reason
    assert c.stub == (fn is stub)


def test_an_error_names_the_line_of_the_kernel():
    assert "line 3 of your function" in run(jit(broken)).items[-1].reason


def test_the_reader_has_not_defined_the_kernel():
    class Exercise:
        name = "add_kernel"

    with pytest.raises(NotImplementedError, match="add_kernel is not defined"):
        launch(placeholder(Exercise()), (1,), (), {})


def reads_past(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.load(x_ptr + i) + 1, mask=i < n)


def reads_before(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.load(x_ptr + i - 1, mask=i < n, other=0.0) + 1, mask=i < n)


def strays(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    far = i.to(tl.int64) * 1_000_000_000_000
    tl.store(out_ptr + far, tl.load(x_ptr + far, mask=i < n, other=0.0) + 1, mask=i < n)


def counts_far(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    tl.atomic_add(out_ptr + 1_000_000_000_000 * (1 + tl.program_id(0).to(tl.int64)), 1.0)


def swaps_far(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.load(x_ptr + i, mask=i < n, other=0.0) * 0 + 1, mask=i < n)
    far = tl.where(i < n, i, i.to(tl.int64) * 1_000_000_000_000)
    tl.atomic_cas(out_ptr + far, 1.0 + 0 * i, 3.0 + 0 * i)


def past_the_input(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.load(x_ptr + i, mask=i < n, other=0.0) + 1, mask=i < n)
    tl.store(x_ptr + n + 10_000_000_000 + i.to(tl.int64), 1.0 + i)


def one_too_many(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.load(x_ptr + i, mask=i <= n, other=0.0) + 1, mask=i < n)


def spills(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + BLOCK + i, 0.0 * i, mask=i < n - BLOCK)  # a later program repairs it
    tl.store(out_ptr + i, tl.load(x_ptr + i, mask=i < n, other=0.0) + 1, mask=i < n)


def does_all(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    for start in range(0, n, BLOCK):
        i = start + tl.arange(0, BLOCK)
        tl.store(out_ptr + i, tl.load(x_ptr + i, mask=i < n, other=0.0) + 1, mask=i < n)


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (one_too_many, "it reads past the end of x_ptr, at 10 of 10 elements: mask the load, or"),
        (spills, "programs 0 and 1 both write element 8 of out_ptr: which comes last, nobody"),
        (does_all, "programs 0 and 1 both write element 0 of out_ptr: which comes last, nobody"),
        (
            reads_past,
            "it reads past the end of x_ptr, at 10 to 15 of 10 elements: mask the load, or",
        ),
        (
            reads_before,
            "it reads before the beginning of x_ptr, at -1 of 10 elements: look at the index",
        ),
        (strays, "it reads memory that belongs to none of its arguments"),
        (counts_far, "it writes memory that belongs to none of its arguments"),
        (swaps_far, "it writes memory that belongs to none of its arguments"),
        (past_the_input, "it writes memory that belongs to none of its arguments"),
    ],
)
def test_what_is_not_its_own_ends_the_check_and_nothing_else(fn, words):
    item = run(jit(fn)).items[0]
    assert (item.label, item.status) == ("runs", "no")
    assert words in item.reason


def test_a_swap_of_its_own_lanes_is_done_beside_one_that_strays():
    x, out = torch.zeros(5), torch.zeros(16)
    grid, block = (1,), 8
    with pytest.raises(MemoryFault):
        launch(swaps_far, grid, (x, out, 5), {"BLOCK": block})
    assert out.tolist() == [3.0] * 5 + [0.0] * 11


def twice(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, 0.0 * i, mask=i < n)
    tl.store(out_ptr + i, tl.load(x_ptr + i, mask=i < n, other=0.0) + 1, mask=i < n)


def by_turns(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    program, lanes = tl.program_id(0), tl.arange(0, BLOCK)
    for start in range(program, n, tl.num_programs(0) * BLOCK):
        i = start + tl.num_programs(0) * lanes
        tl.store(out_ptr + i, tl.load(x_ptr + i, mask=i < n, other=0.0) + 1, mask=i < n)


@pytest.mark.parametrize("fn", [twice, by_turns])
def test_a_program_may_write_what_is_its_own_as_often_and_where_it_likes(fn):
    assert [i.status for i in run(jit(fn)).items] == ["ok"] * 4


def shares(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    tl.atomic_add(out_ptr, 1.0)


def in_a_plane(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    tl.store(out_ptr + tl.program_id(1), 1.0)


def test_atomic_operations_share_and_a_grid_of_two_axes_is_told_by_both():
    x, out = torch.zeros(4), torch.zeros(4)
    launch(shares, (3,), (x, out, 4), {"BLOCK": 4})
    assert out.tolist() == [3.0, 0.0, 0.0, 0.0]
    launch(in_a_plane, (1, 3), (x, out, 4), {"BLOCK": 4})
    with pytest.raises(MemoryFault, match=r"programs \(0, 0\) and \(1, 0\) both write element 0"):
        launch(in_a_plane, (2, 2), (x, out, 4), {"BLOCK": 4})


def product(a_ptr, b_ptr, out_ptr, N: tl.constexpr):
    i, k = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    a = tl.load(a_ptr + i * N + k)
    b = tl.load(b_ptr + i * N + k)
    tl.store(out_ptr + i * N + k, tl.dot(a, b))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_products_of_half_precision_are_of_their_numbers(dtype):
    torch.manual_seed(0)
    a, b = torch.randn(2, 16, 16).to(dtype)
    out = torch.zeros(16, 16)
    launch(product, (1,), (a, b, out), {"N": 16})
    assert torch.allclose(out.double(), a.double() @ b.double(), rtol=1e-3, atol=1e-3)


def test_where_a_mistake_went_astray_counts_and_what_it_wrote_there_does_not():
    one, other = (Guarded((4,), torch.float32) for _ in range(2))
    for out, number in ((one, 1.0), (other, torch.inf)):
        out.buffer[-3:] = number
    assert torch.equal(one.touched(), other.touched())
    assert one.touched().tolist() == [(1 << 16) - 3, (1 << 16) - 2, (1 << 16) - 1]
    assert not one.strange()  # NaN of its own
    one.view.fill_(torch.inf)
    assert one.strange()


def idle(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.sum(tl.load(x_ptr + i, mask=i < n), 0)
    x = tl.load(x_ptr + i, mask=i < n, other=0.0)
    tl.store(out_ptr + i, x + 1 + 0 * total, mask=i < n)


def test_idle_lanes_are_undefined_where_they_are_used():
    item = run(jit(idle)).items[-1]
    assert (item.label, item.status) == ("values", "no")
    assert "says other=" in item.reason


def nothing_written(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n)
    tl.store(out_ptr + i, x + 1, mask=i < n - 1)


def test_a_number_that_was_never_written_is_no_idle_lane_s():
    items = run(jit(nothing_written)).items
    assert any("it is nan" in i.reason for i in items)
    assert not any("says other=" in i.reason for i in items)


def scalar_mask(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    start = tl.program_id(0) * BLOCK
    i = start + tl.arange(0, BLOCK)
    inside = (i < n) & (start < n)
    tl.store(out_ptr + i, tl.load(x_ptr + i, mask=inside, other=0.0) + 1, mask=inside)


def scalar_other(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    nothing = tl.load(x_ptr + n + tl.program_id(0), mask=tl.program_id(0) < 0, other=0.0)
    tl.store(out_ptr + i, tl.load(x_ptr + i, mask=i < n) + 1 + nothing, mask=i < n)


@pytest.mark.parametrize("fn", [scalar_mask, scalar_other])
def test_right_kernels_that_the_interpreter_alone_would_misread(fn):
    assert [i.status for i in run(jit(fn)).items] == ["ok"] * 4


def writes_nan(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n, other=0.0)
    tl.store(out_ptr + i, (x - x) / (x - x), mask=i < n)


def test_a_nan_that_was_computed_was_written():
    items = run(jit(writes_nan)).items
    assert [i.status for i in items] == ["ok", "ok", "ok", "no"]
    assert "it is nan" in items[-1].reason


def test_watching_ends_with_the_launch():
    from triton.runtime.interpreter import interpreter_builder

    run(jit(broken))
    assert not [n for n in vars(interpreter_builder) if n.startswith("create_")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8, torch.int64])
def test_guards_see_a_single_changed_number(dtype):
    for place in (0, -1, (1 << 15) - 1, -(1 << 15)):
        g = Guarded((3, 5), dtype)
        assert g.untouched()
        assert not g.written()
        g.view.fill_(1)
        assert g.untouched()
        assert g.written()
        g.buffer[place] = 1
        assert not g.untouched()


def test_what_idle_lanes_compute_warns_nobody():
    @jit
    def idle(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + i, i < n)
        tl.store(out_ptr + i, x + 1 + 0.0 * (x - x), i < n)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [i.status for i in run(idle).items] == ["ok"] * 4
