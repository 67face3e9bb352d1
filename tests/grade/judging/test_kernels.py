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
        assert strangers(exercise.name, [kept], GIVEN) == []
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
        ("    x.handle.data\n", [".data", ".handle"]),
        ("    [a for a in y].append(x)\n", [".append"]),
        ("    (a for a in y)\n", ["a generator"]),
        ("    f = lambda: x\n", ["lambda"]),
        ("    y['f'](x)\n", ["a call of y['f']"]),
        ("    match x:\n        case tuple(real=z):\n            pass\n", ["match"]),
        ("    def f():\n        pass\n", ["a function inside of it"]),
        ("    import numpy\n", ["import numpy"]),
        ("    helper(x)\n", [".relu", "torch"]),
        ("    triton.runtime.interpreter.np(x, y)\n", [".np", ".interpreter", ".runtime"]),
        ("    open('x')\n", ["open"]),
        ("    x.__class__\n", [".__class__"]),
        ("    tl.store(x, tl.load(y) * math.pi + tl.cdiv(3, 2))\n", []),
    ],
)
def test_what_a_kernel_may_be_made_of(body, what):
    helper = "def helper(x):\n    return torch.relu(x)\n"
    assert strangers("k", [helper, f"@jit\ndef k(x, y):\n{body}"], GIVEN) == what


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


# PyTorch in the place of Triton: ``other`` computes it, and each of these puts it where the kernel
# should be, or calls it from there.
SIGNATURE = "x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr"
OTHER = f"""
def other({SIGNATURE}):
    import sys
    f = sys._getframe()
    while "args_hst" not in f.f_locals:
        f = f.f_back
    x, y, out, n = f.f_locals["args_hst"][:4]
    out.copy_(x + y)
"""
EMPTY = f"@triton.jit\ndef {{name}}({SIGNATURE}):\n    pass\n"
TEXT = f"CODE = {OTHER + chr(10) + 'other(1, 2, 3, 4, 5)'!r}\n"
DISGUISES = {
    "behind a semicolon": EMPTY + OTHER + "\nimport math; {name} = triton.jit(other)\n",
    "under an innocent twin": OTHER.replace("def other", "@triton.jit\ndef {name}")
    + f"@staticmethod\ndef {{name}}({SIGNATURE}):\n    x = tl.program_id(0)\n",
    "before an innocent twin": OTHER.replace("def other", "@triton.jit\ndef {name}")
    + "first = {name}\n" + EMPTY + "{name} = first\n",
    "a jit of one's own": OTHER + "def jit(fn):\n    return triton.jit(other)\n"
    + EMPTY.replace("@triton.jit", "@jit"),
    "triton of one's own": OTHER + "import types\ntriton = types\n" + EMPTY,
    "a maker of one's own": EMPTY + OTHER
    + "def cdiv():\n    globals().update({name}=triton.jit(other))\nn = cdiv()\n",
    "a maker that is imported": EMPTY + OTHER
    + "from builtins import exec as cdiv\nn = cdiv('{name} = triton.jit(other)')\n",
    "an annotation": EMPTY + OTHER
    + "def f(x: globals().update({name}=triton.jit(other))):\n    pass\n",
    "the annotation of a name": EMPTY + OTHER
    + "x: globals().update({name}=triton.jit(other)) = 1\n",
    "heuristics": "def work(args):\n    args['out_ptr'].copy_(args['x_ptr'] + args['y_ptr'])\n"
    "    return 0\n@triton.heuristics({{'ZERO': work}})\n"
    + EMPTY.replace("BLOCK: tl.constexpr", "BLOCK: tl.constexpr, ZERO: tl.constexpr = 0"),
    "a hook": "def work(args, **more):\n"
    "    args['out_ptr'].copy_(args['x_ptr'] + args['y_ptr'])\n"
    "@triton.autotune([triton.Config({{}}, pre_hook=work)], key=['n'])\n" + EMPTY,
    "a generator's frame": TEXT + EMPTY.replace(
        "pass", "g = (0 for a in (1,))\n    g.gi_frame.f_builtins['exec'](CODE)"),
    "a class pattern": TEXT + "@triton.jit\ndef helper():\n    pass\n" + EMPTY.replace(
        "pass", "match helper:\n        case tuple(__globals__=g):\n"
        "            g['__builtins__']['exec'](CODE, g)"),
    "a line too long to read": EMPTY + OTHER + "\n{name} = triton.jit(other)\nq = 0\nz = "
    + "+".join(["q"] * 2970) + "\n",
}  # fmt: skip


@pytest.fixture(scope="module")
def grader():
    if sandbox.missing():
        pytest.skip("no isolation on this machine")
    made = Grader(limits=Limits(call_seconds=5), kernels=True)
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", DISGUISES)
def test_pytorch_is_no_kernel_wherever_it_stands(grader, kind):
    exercise = get("triton-add")
    code = DISGUISES[kind].format(name=exercise.name)
    got = grader.exercise(program_of(exercise, code), 3, GIVEN)
    assert got.points == 0, got.items
    assert got.status in ("failed", "forbidden", "stub"), got.notes


def test_a_statement_that_does_not_run_leaves_its_line_to_the_others():
    code = "é = 1; play(); import math; x = [\n  play()]; BLOCK = 4\nplay(); play()\n"
    assert definitions(code) == "é = 1; pass; import math; pass; BLOCK = 4\n\npass; pass\n"
    code = "@evil\ndef f():\n    pass\nBLOCK = [2 ** k for k in range(3)]\n"
    assert definitions(code).split("\n") == ["", "", "", "", ""]  # range is called


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
