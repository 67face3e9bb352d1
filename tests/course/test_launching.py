"""Kernels as exercises: guarded outputs, errors, and what a check says of them."""

import pytest
import torch

from minids3.course.check import placeholder
from minids3.course.checker import Checker, Stop
from minids3.course.launching import Guarded, launch
from minids3.kernels.language import jit, tl


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


def run(fn):
    c = Checker("triton-x", fn, labels=["runs", "all written", "nothing else", "values"])
    x, out = c.randn(10), c.guarded(10)
    try:
        c.launch((2,), x, out, 10, label="runs", BLOCK=8)
        c.true(out.written(), "all written")
        c.true(out.untouched(), "nothing else", "it wrote past the end")
        c.close(out.view, x + 1, label="values")
    except Stop:
        pass
    return c


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
    assert c.items[-1].label == label
    assert reason in c.items[-1].reason
    assert c.stub == (fn is stub)


def test_an_error_names_the_line_of_the_kernel():
    assert "line 3 of your function" in run(jit(broken)).items[-1].reason


def test_the_reader_has_not_defined_the_kernel():
    class Exercise:
        name = "add_kernel"

    with pytest.raises(NotImplementedError, match="add_kernel is not defined"):
        launch(placeholder(Exercise()), (1,), (), {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8, torch.int64])
def test_guards_see_a_single_changed_number(dtype):
    fill = float("nan") if dtype.is_floating_point else 85
    for place in (0, -1, (1 << 15) - 1, -(1 << 15)):
        g = Guarded((3, 5), dtype, fill)
        assert g.untouched()
        assert not g.written()
        g.view.fill_(1)
        assert g.untouched()
        assert g.written()
        g.buffer[place] = 1
        assert not g.untouched()
