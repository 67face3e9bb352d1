"""Every kernel compiles for six generations of GPUs, uses its instruction, and does not spill."""

import importlib
import inspect
import pkgutil
import re

import pytest
import torch
from launches import misfits

import minids3.kernels
from minids3.kernels import compile as compiler
from minids3.kernels.fp8 import decode_e4m3
from minids3.kernels.language import jit, tl

ALL = compiler.specs()


@jit
def _dot_kernel(a_ptr, b_ptr, c_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    at = i[:, None] * N + i[None, :]
    tl.store(c_ptr + at, tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at)))


@jit
def _decode_kernel(code_ptr, x_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(x_ptr + i, decode_e4m3(tl.load(code_ptr + i)))


@jit
def _wrong_kernel(x_ptr, N: tl.constexpr):
    tl.store(x_ptr + tl.arange(0, N), [1, 2, 3])


SIGNATURE = {"a_ptr": "*fp16", "b_ptr": "*fp16", "c_ptr": "*fp32"}


def inspect_dot(target):
    return compiler.inspect(
        _dot_kernel, target, signature=SIGNATURE, constexprs={"N": 64}, num_warps=4
    )


def test_inspect_finds_the_tensor_core_instruction_of_a_target():
    hopper = inspect_dot("H100")
    assert hopper.target == "sm_90"
    assert any(i.startswith("wgmma.mma_async") for i in hopper.instructions)
    assert hopper.registers > 16
    assert hopper.shared_bytes > 0
    assert hopper.spill_bytes == 0
    assert hopper.find(r"\.target sm_90a")


def test_inspect_works_for_kernels_that_use_other_kernels():
    result = compiler.inspect(
        _decode_kernel,
        "t4",
        signature={"code_ptr": "*u8", "x_ptr": "*fp16"},
        constexprs={"N": 256},
    )
    assert result.target == "sm_75"
    assert result.instructions == {}


def test_kernels_of_a_notebook_are_written_out_with_what_they_use(tmp_path):
    from minids3.kernels.source import _write

    space = {"tl": tl, "decode_e4m3": decode_e4m3, "SCALE": 3.0, "jit": jit}
    path = tmp_path / "cell.py"
    path.write_text(
        "def helper(x):\n    return x * SCALE\n\n\n"
        "def kernel(p, N: 'tl.constexpr'):\n"
        "    i = tl.arange(0, N)\n"
        "    tl.store(p + i, helper(decode_e4m3(tl.load(p + i))))\n"
    )
    space["__name__"] = "__main__"
    exec(compile(path.read_text(), str(path), "exec"), space)
    space["helper"] = jit(space["helper"])
    lines = []
    _write(space["kernel"], lines, set())
    text = "\n".join(lines)
    assert "from minids3.kernels.fp8 import decode_e4m3 as decode_e4m3" in text
    assert "SCALE = tl.constexpr(3.0)" in text
    assert text.index("def helper") < text.index("def kernel")


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="unknown target 'h200x'"):
        inspect_dot("h200x")
    with pytest.raises(compiler.CompileError, match="no type or value for c_ptr"):
        compiler.inspect(
            _dot_kernel, signature={"a_ptr": "*fp16", "b_ptr": "*fp16"}, constexprs={"N": 64}
        )
    with pytest.raises(compiler.CompileError):
        compiler.inspect(_wrong_kernel, signature={"x_ptr": "*fp32"}, constexprs={"N": 4})


def test_a_missing_instruction_and_a_spill_are_faults():
    spec = compiler.Spec("dot", _dot_kernel, SIGNATURE, {"N": 64}, expects={"sm_90": "e4m3"})
    ((_, _, result),) = list(compiler.matrix([spec]))[3:4]
    (sentence,) = compiler.faults(spec, "sm_90", result)
    assert "e4m3" in sentence
    spilled = compiler.Inspection("dot", "sm_90", result.ptx, 255, 0, 64, {})
    assert any("64 bytes" in s for s in compiler.faults(spec, "sm_90", spilled))


@pytest.fixture(scope="module")
def compiled(request):
    """What is wrong with each kernel that a test asks for, all compiled by one process."""
    asked = {
        item.callspec.params["name"]
        for item in request.session.items
        if item.path == request.path and hasattr(item, "callspec")
    }
    wrong = {name: [] for name in asked}
    for spec, target, result in compiler.matrix([s for s in ALL if s.name in asked]):
        found = compiler.faults(spec, target, result)
        wrong[spec.name] += [f"{target}: {sentence}" for sentence in found]
    return wrong


@pytest.mark.parametrize("name", sorted({s.name for s in ALL}))
def test_matrix(name, compiled):
    assert compiled[name] == []


def test_every_kernel_file_has_specs():
    infrastructure = {"language", "launch", "fp8", "compile", "source", "watch"}
    files = {m.name for m in pkgutil.iter_modules(minids3.kernels.__path__)} - infrastructure
    without = [
        f
        for f in files
        if not getattr(importlib.import_module(f"minids3.kernels.{f}"), "SPECS", ())
    ]
    assert without == []


def functions():
    """Every function of ``minids3.kernels`` that Triton compiles, by name."""
    found = {}
    for module in pkgutil.iter_modules(minids3.kernels.__path__):
        space = vars(importlib.import_module(f"minids3.kernels.{module.name}"))
        for name, value in space.items():
            if hasattr(value, "arg_names") and value.fn.__module__ == space["__name__"]:
                found[f"{module.name}.{name}"] = value
    return found


@pytest.mark.parametrize("name", sorted(functions()))
def test_every_kernel_tells_its_formula(name):
    text = inspect.getdoc(functions()[name].fn) or ""
    assert re.search(r"\w.* = .*\w", text), f"{name} says what, not how"
    if name.endswith("_kernel"):
        assert re.search(r"\[\w.*\]", text), f"{name} has no shapes"


@pytest.mark.parametrize("name", sorted({s.name for s in ALL}))
def test_every_spec_settles_every_argument_once(name):
    for spec in (s for s in ALL if s.name == name):
        given = [*spec.signature, *spec.constexprs]
        assert sorted(given) == sorted(spec.kernel.arg_names)


def test_a_launch_that_does_not_fit_its_spec_is_noticed():
    spec = compiler.Spec("dot", _dot_kernel, SIGNATURE, {"N": 64})
    x = torch.zeros(1)
    assert misfits(spec, (x, x, x)) == []
    assert misfits(spec, (x, x)) == ["c_ptr"]
    assert misfits(spec, (x, 3, x)) == ["b_ptr: int for *fp16"]
    assert misfits(spec, (x, x, x, 4)) == ["one more: 4"]


def test_hundreds_of_jobs_do_not_fill_a_pipe():
    spec = compiler.Spec("dot" * 50, _dot_kernel, {"a_ptr": "*fp16"}, {"N": 64})
    results = list(compiler.matrix([spec] * 120))
    assert len(results) == 120 * len(compiler.TARGETS)
    assert all("no type or value" in str(result) for _, _, result in results)
