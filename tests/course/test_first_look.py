"""Before a GPU runs a reader's kernel, the interpreter looks at it in a process of its own."""

import itertools
import linecache
import textwrap
import threading

import pytest
import torch
from kernel_check import run

from minids3.course import first_look, launching
from minids3.course.first_look import _PROCESS
from minids3.kernels.language import jit, tl, triton

NUMBERS = itertools.count(1)
HEAD = """
@triton.jit
def kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
"""
GOOD = "tl.store(out_ptr + i, tl.load(x_ptr + i, mask=i < n) + 1, mask=i < n)"


def cell(body, head=HEAD, name="kernel", **names):
    """Run a cell as a notebook does: its text is in no file."""
    text = textwrap.dedent(head).lstrip() + textwrap.indent(textwrap.dedent(body), "    ")
    file = f"/nowhere/ipykernel_1/{next(NUMBERS)}.py"
    linecache.cache[file] = (len(text), None, text.splitlines(True), file)
    space = {"__name__": "__main__", "triton": triton, "tl": tl, **names}
    exec(compile(text, file, "exec"), space)
    return space[name]


@pytest.fixture
def on_gpu(monkeypatch):
    """Have checks take a stand-in for a GPU: it follows every pointer, and tells what it ran."""
    ran = []

    def run(kernel, grid, args, constexprs):
        ran.append(kernel)
        given = [a.view if isinstance(a, launching.Guarded) else a for a in args]
        kernel[tuple(grid)](*given, **constexprs)

    monkeypatch.setattr("minids3.kernels.launch.interpreted", lambda: False)
    monkeypatch.setattr(launching, "_on_gpu", run)
    return ran


def look(fn):
    x, out = torch.arange(10.0), torch.zeros(10)
    return first_look.first_look(fn, (2,), (x, out, 10), {"BLOCK": 8})


def test_a_right_kernel_goes_on_to_the_gpu(on_gpu):
    kernel = cell(GOOD)
    assert [i.status for i in run(kernel).items] == ["ok"] * 4
    assert on_gpu == [kernel]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            "tl.store(out_ptr + i, tl.load(x_ptr + i) + 1, mask=i < n)",
            "it reads past the end of x_ptr, at 10 to 15 of 10 elements: mask the load, or look",
        ),
        (
            "tl.store(out_ptr + i.to(tl.int64) * 1_000_000_000_000, 1.0 + i)",
            "it writes memory that belongs to none of its arguments",
        ),
    ],
)
def test_what_uses_memory_of_others_never_gets_there(on_gpu, body, words):
    item = run(cell(body)).items[0]
    assert (item.label, item.status) == ("runs", "no")
    assert words in item.reason
    assert not on_gpu


def test_lanes_left_undefined_are_not_right_by_luck(on_gpu):
    lucky = "total = tl.sum(tl.load(x_ptr + i, mask=i < n), 0)\n"
    kernel = cell(lucky + GOOD.replace("+ 1,", "+ 1 + 0 * total,"))
    items = run(kernel).items
    assert (items[-1].label, items[-1].status) == ("values", "no")
    assert "says other=" in items[-1].reason
    assert on_gpu == [kernel]


def test_a_stub_is_a_stub(on_gpu):
    c = run(cell("raise NotImplementedError"))
    assert c.stub
    assert not on_gpu


@pytest.mark.parametrize("body", ["undefined + 1", "raise NotImplementedError('no such dot')"])
def test_other_errors_are_for_the_gpu_to_tell(on_gpu, body):
    kernel = cell(body)
    assert run(kernel).items[0].status == "no"
    assert on_gpu == [kernel]


def test_a_kernel_takes_along_what_it_uses():
    head = "@triton.jit\ndef plus(x):\n"
    helper = cell("return x + ONE", head, "plus", ONE=tl.constexpr(1))
    kernel = cell(GOOD.replace("tl.load(", "helper(tl.load(").replace(" + 1,", "),"), helper=helper)
    seen = look(kernel)
    assert seen.fault == ""
    assert seen.written[1].tolist() == list(range(1, 11))


def test_what_it_was_given_stays_as_it_is():
    x, out = torch.arange(10.0), torch.zeros(10)
    seen = first_look.first_look(cell(GOOD), (2,), (x, out, 10), {"BLOCK": 8})
    assert not out.any()
    seen.copy_to((x, out, 10))
    assert out.tolist() == list(range(1, 11))


def test_kernels_of_modules_and_plain_functions_come_as_they_are():
    from minids3.kernels.vector import _add_kernel as add_kernel

    x = torch.arange(10.0)
    for kernel in (add_kernel, add_kernel.fn):
        args = (x, x, torch.zeros(10), 10)
        seen = first_look.first_look(kernel, (2,), args, {"BLOCK": 8})
        assert seen.written[2].tolist() == (2 * x).tolist()


def test_what_a_kernel_prints_is_not_taken_for_an_answer():
    assert look(cell("print('a' * 100)\n" + GOOD)).fault == ""


@pytest.mark.parametrize("body", ["while True:\n    pass", "import os\nos._exit(0)"])
def test_a_process_that_hangs_or_ends_is_replaced(monkeypatch, body):
    assert look(cell(GOOD)) is not None
    monkeypatch.setattr(first_look, "LIMIT", 1.0)
    assert look(cell(body)) is None
    monkeypatch.undo()
    assert look(cell(GOOD)).fault == ""


def test_ctrl_c_leaves_no_answer_to_the_next_launch(monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    assert look(cell(GOOD)) is not None
    before = _PROCESS._child
    with monkeypatch.context() as patch:
        patch.setattr(first_look.pickle, "load", interrupted)
        with pytest.raises(KeyboardInterrupt):
            look(cell(GOOD))
    assert before.poll() is not None
    assert look(cell(GOOD)).fault == ""


def test_what_cannot_be_sent_is_left_to_the_gpu(on_gpu):
    kernel = cell(GOOD + "\nLOCK", LOCK=threading.Lock())
    assert look(kernel) is None
    assert [i.status for i in run(kernel).items] == ["ok"] * 4
    assert on_gpu == [kernel]


def test_a_function_without_a_decorator(on_gpu):
    kernel = cell(GOOD, HEAD.replace("@triton.jit\n", ""))
    assert [i.status for i in run(kernel).items] == ["ok"] * 4
    assert type(on_gpu[0]) is type(jit(kernel))
