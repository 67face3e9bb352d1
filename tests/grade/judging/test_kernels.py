"""A Triton exercise is solved by a Triton kernel, and by nothing that only looks like one."""

import pytest
from grade.cells import cell_of, program_of

from minids3.course.hints import source_of
from minids3.course.registry import exercises, get
from minids3.grade.judging import shortcuts
from minids3.grade.judging.grading import Grader
from minids3.grade.judging.kernels import definitions, strangers
from minids3.isolation import sandbox
from minids3.isolation.sandbox import Limits

pytest.importorskip("triton")
NOTEBOOKS = ("07_first_triton_kernels", "09_fp8_gemm", "11_moe_kernels")
GIVEN = ["from minids3.kernels.language import jit, tl, triton\nimport torch\nimport math\n"]
KERNELS = [e for n in NOTEBOOKS for e in exercises(n) if e.kernel]


@pytest.mark.parametrize("exercise", KERNELS, ids=lambda e: e.id)
def test_every_kernel_that_the_workbook_knows_is_triton_s(exercise):
    answers = [exercise.solution, *(a.fn for a in exercise.alternatives)]
    for fn in [*answers, *(m.fn for m in exercise.mutants)]:
        code = cell_of(exercise, fn)
        kept = definitions(code)
        assert strangers(exercise.name, [*GIVEN, kept]) == []
        assert f"def {exercise.name}" in kept or f"{exercise.name} =" in kept


def test_what_could_act_does_not_run():
    code = (
        "import triton\nfrom triton import language as tl\nBLOCK: tl.constexpr = 4\nHALF = 2 * 3\n"
        "SIZE = tl.constexpr(8)\nplay(1)\nprint('x')\nthing = object()\n"
        "class Fake:\n    run = arg_names = None\n"
        "@evil\ndef f(x):\n    pass\n"
        "def g(x=play(2)):\n    pass\n"
        "triton.runtime.jit = 3\n"
        "@triton.autotune([triton.Config({'BLOCK': 4})], key=['n'])\n"
        "@triton.jit\ndef k(x):\n    1\n"
        "add = k\n"
    )
    kept = [line for line in definitions(code).splitlines() if line]
    assert kept == [
        "import triton", "from triton import language as tl", "BLOCK: tl.constexpr = 4",
        "HALF = 2 * 3", "SIZE = tl.constexpr(8)",
        "@triton.autotune([triton.Config({'BLOCK': 4})], key=['n'])", "@triton.jit", "def k(x):",
        "    1", "add = k",
    ]  # fmt: skip
    assert definitions("def broken(:") == "def broken(:"
    assert definitions("a = 1\n\nb()\nc = 2").split("\n") == ["a = 1", "", "", "c = 2"]


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("    torch.add(x, y)\n", ["torch"]),
        ("    x.handle.data.cumsum()\n", [".handle"]),
        ("    import numpy\n", ["import numpy"]),
        ("    helper(x)\n", ["torch"]),
        ("    triton.runtime.interpreter.np.add(x, y)\n", [".interpreter", ".runtime"]),
        ("    open('x')\n", ["open"]),
        ("    x.__class__\n", [".__class__"]),
        ("    tl.store(x, tl.load(y) * math.pi + tl.cdiv(3, 2))\n", []),
    ],
)
def test_what_a_kernel_may_be_made_of(body, what):
    helper = "def helper(x):\n    return torch.relu(x)\n"
    assert strangers("k", [*GIVEN, helper, f"@jit\ndef k(x, y):\n{body}"]) == what


OBJECT = """
import torch
class Fake:
    run = arg_names = None
    def __getitem__(self, grid):
        def launch(x, y, out, n, **more):
            out.copy_(x + y)
        return launch
{name} = Fake()
"""
PATCHED = """
import torch, triton
from triton.runtime.interpreter import InterpretedFunction
def launch(self, *args, **more):
    args[2].copy_(args[0] + args[1])
InterpretedFunction.run = launch
@triton.jit
def {name}(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    pass
"""


@pytest.mark.slow
@pytest.mark.skipif(bool(sandbox.missing()), reason="no isolation on this machine")
def test_no_other_object_is_a_kernel():
    exercise = get("triton-add")
    grader = Grader(limits=Limits(call_seconds=5), kernels=True)
    try:
        for code in (OBJECT, PATCHED):
            got = grader.exercise(program_of(exercise, code.format(name=exercise.name)), 3, GIVEN)
            empty = f"@jit\ndef {exercise.name}(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):\n"
            none = grader.exercise(program_of(exercise, empty + "    pass\n"), 3, GIVEN)
            assert got.points <= none.points < exercise.points, got.items
        right = grader.exercise(program_of(exercise, source_of(exercise.id)), 3, GIVEN)
        assert (right.status, right.points) == ("passed", exercise.points), right.notes
    finally:
        grader.close()


# ready-made functions of PyTorch by their other names ---------------------------------------------


@pytest.mark.parametrize(
    ("id", "code"),
    [
        ("lm-loss", "torch.ops.aten.cross_entropy_loss(x, y)"),
        ("lm-loss", "torch.nll_loss(x, y)"),
        ("lm-loss", "torch._C._nn.nll_loss_nd(x, y)"),
        ("lm-loss", "torch.nn.CrossEntropyLoss()(x, y)"),
        ("causal-attention", "torch.ops.aten._scaled_dot_product_attention_math(q, k, v)"),
        ("causal-attention", "torch._scaled_dot_product_flash_attention_for_cpu(q, k, v)"),
        ("causal-attention", "getattr(torch, '_scaled_dot_product_attention_math')(q, k, v)"),
        ("adamw-step", "torch.optim.adam.adam([p], [g], [m], [v])"),
        ("adamw-step", "torch._foreach_adam(p)"),
        ("adamw-step", "torch.optim.NAdam([p])"),
        ("run-clip", "torch.nn.utils.clip_grad.clip_grad_norm(p, 1)"),
    ],
)
def test_twins_of_a_ready_made_function(id, code):
    known = {e.id: e for n in ("02_transformer_baseline", "12_training_run") for e in exercises(n)}
    if id not in known:
        pytest.skip(f"the workbook has no {id} now")
    rules = shortcuts.forbidden(known[id])
    own = [f"import torch\ndef f(*a):\n    return {code}\n"]
    assert shortcuts.named(own, [], rules), code


def test_honest_answers_name_no_twin():
    for e in exercises("02_transformer_baseline"):
        rules = shortcuts.forbidden(e)
        for fn in (e.solution, *(a.fn for a in e.alternatives), *(m.fn for m in e.mutants)):
            assert shortcuts.named([cell_of(e, fn)], ["import torch"], rules) == [], e.id
