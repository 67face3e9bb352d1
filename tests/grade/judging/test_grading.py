"""Grades of whole exercises: what is right keeps its points, what is wrong loses its own."""

from dataclasses import replace

import pytest
import torch
from grade.cells import cell_of, program_of
from torch.utils.flop_counter import FlopCounterMode

from minids3.course.hints import source_of
from minids3.course.registry import exercises, get
from minids3.grade.judging import oracle
from minids3.grade.judging.grading import Grader, grade_submission, hidden_seeds
from minids3.grade.judging.oracle import Remote
from minids3.grade.process.zygote import GraderFault
from minids3.grade.records import Piece, Program, SubmissionResult
from minids3.grade.submissions.merge import merge
from minids3.isolation import sandbox
from minids3.isolation.sandbox import Limits
from minids3.sim.counted import MultiplyAdds

pytestmark = pytest.mark.skipif(bool(sandbox.missing()), reason="no isolation on this machine")
NAME = "03_latent_attention"
# Given by the notebook's cells in front of the answers.
BEFORE = ["from minids3.ref.rope import apply_rope_ref as rope, rope_tables"]


@pytest.fixture(scope="module")
def grader():
    made = Grader(limits=Limits(call_seconds=3, exercise_seconds=15))
    yield made
    made.close()


def grade(grader, id, code, seed=3, **more):
    return grader.exercise(program_of(get(id), code, **more), seed)


def pairs(kind):
    found = [(e, a) for e in exercises(NAME) for a in getattr(e, kind)]
    names = [f"{e.id}-{a.name}" for e, a in found]
    return pytest.mark.parametrize(("exercise", "answer"), found, ids=names)


@pairs("alternatives")
def test_alternatives_get_full_marks(grader, exercise, answer):
    got = grader.exercise(program_of(exercise, cell_of(exercise, answer.fn)), 3, BEFORE)
    assert (got.status, got.points) == ("passed", exercise.points), got.notes


@pairs("mutants")
def test_mutants_lose_points_and_hear_why(grader, exercise, answer):
    got = grader.exercise(program_of(exercise, cell_of(exercise, answer.fn)), 3, BEFORE)
    assert got.status in ("partial", "failed"), got.notes
    assert got.points < exercise.points
    assert got.mutant == answer.name
    assert any(i.reason for i in got.items)


def test_solved_notebook_gets_full_marks_and_a_mutant_loses_only_its_own(grader, pristine, solved):
    whole = grader.submission(merge(pristine, solved), seed=4)
    assert whole.points == whole.max_points == 25
    exercise = get("mla-choose")
    for cell in solved["cells"]:
        if cell.get("id") == "answer-mla-choose":
            cell["source"] = cell_of(exercise, exercise.mutants[0].fn)
    less = grader.submission(merge(pristine, solved), seed=4)
    lost = [e.id for e in less.exercises if e.points < e.max_points]
    assert lost == ["mla-choose"]


def test_student_notebook_gets_nothing_and_hears_why(grader, pristine, student):
    got = grader.submission(merge(pristine, student), seed=4)
    assert got.points == 0
    assert {e.status for e in got.exercises} == {"stub"}
    assert all(e.items[0].reason and e.hint for e in got.exercises)


def test_the_same_seed_gives_the_same_grade(grader, pristine, solved):
    exercise = get("mla-naive")
    code = cell_of(exercise, exercise.mutants[2].fn)
    one, two, other = (grade(grader, "mla-naive", code, seed) for seed in (8, 8, 9))
    assert one == two
    assert one.seeds != other.seeds
    assert hidden_seeds(8, "mla-naive") != hidden_seeds(8, "mla-absorb")


def test_what_only_public_inputs_pass_does_not_count(grader):
    code = f"{source_of('mla-choose')}\n\nright, seen = count_macs, set()\n"
    code += "def count_macs(*a):\n    seen.add(a)\n"
    code += "    return right(*a) if len(seen) < 6 else (0, 0)\n"
    got = grade(grader, "mla-choose", code)
    assert got.status != "passed"
    assert any("with other inputs" in i.reason for i in got.items)


def test_helpers_earlier_answers_and_failing_cells(grader):
    exercise = get("mla-choose")
    helper = "def twice(x):\n    return 2 * x\n"
    code = source_of("mla-choose") + "\nassert twice(2) == 4\nprint(undefined)\n"
    got = grade(grader, "mla-choose", code, helpers=["1 / 0", helper])
    assert got.points == exercise.points
    assert any("ZeroDivisionError" in n for n in got.notes)
    assert any("NameError" in n for n in got.notes)


def test_earlier_exercises_are_the_library_s(grader):
    code = source_of("bpe-encode")
    exercise = get("bpe-encode")
    program = Program(exercise.id, exercise.name, (Piece("answer", code, "cell 1"),),
                      ("bpe-merge",))  # fmt: skip
    assert grader.exercise(program, 3).points == exercise.points


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def count_macs(:", "SyntaxError"),
        ("count_macs = 3", "not a function"),
        ("pass", "does not define count_macs"),
        ("def count_macs(*a):\n    raise ValueError('mine')", "ValueError: mine (line 2 of your"),
        (
            "def f():\n    raise ValueError('mine')\ndef count_macs(*a):\n    f()",
            "ValueError: mine (line 2 of your cell",
        ),
        (
            "def count_macs(*a):\n    f()\ndef f():\n    raise ValueError('mine')",
            "ValueError: mine (line 4 of your cell",
        ),
        ("def count_macs(*a):\n    while True: pass", "TimeLimit"),
        ("import os\ndef count_macs(*a):\n    os._exit(3)", "ended"),
        ("def count_macs(*a):\n    pass", "None"),
    ],
)
def test_reasons(grader, code, reason):
    got = grade(grader, "mla-choose", code)
    assert got.points == 0
    assert reason in " ".join(i.reason for i in got.items), got.items


def test_a_newer_python_s_answer_is_no_zero_but_for_a_human(grader):
    program = program_of(get("mla-choose"), "def count_macs[T](x: T): pass")
    got = grader.exercise(replace(program, human="cell 1 is not Python here: type parameters"), 3)
    assert (got.status, got.needs_human) == ("needs a human", True)
    assert "type parameters" in got.notes[0]
    assert got.max_points == get("mla-choose").points


def test_future_imports_hold_for_later_cells(grader):
    code = source_of("mla-choose").replace("def count_macs(", "def count_macs(first: Unknown, ", 1)
    code += "\ninner = count_macs\ndef count_macs(*a: Unknown):\n    return inner(None, *a)\n"
    assert grade(grader, "mla-choose", code).points == 0
    got = grade(grader, "mla-choose", code, helpers=["from __future__ import annotations"])
    assert got.status == "passed", got.notes


@pytest.mark.parametrize(
    "first",
    [
        "from google.colab import drive\ndrive.mount('/content/drive')",
        "import google.colab.files as files\nfiles.upload()",
        "from google.colab import userdata\nuserdata.get('TOKEN')",
        "from google.colab.patches import cv2_imshow",
        "from google.colab import output\noutput.no_vertical_scroll.at_all()",
    ],
)
def test_what_colab_writes_does_nothing(grader, first):
    got = grade(grader, "mla-choose", f"{first}\n{source_of('mla-choose')}")
    assert got.status == "passed", got.notes


@pytest.mark.parametrize("where", ["above", "inside", "helper"])
def test_a_package_that_is_not_here_is_no_zero_but_for_a_human(grader, where):
    code, helpers, line = source_of("mla-choose"), [], "import not_installed_here.part as n"
    if where == "above":
        code = f"{line}\n{code}"
    elif where == "inside":
        code += f"\ninner = count_macs\ndef count_macs(*a):\n    {line}\n    return inner(*a)\n"
    else:
        code = f"{code}\ninner = count_macs\ndef count_macs(*a):\n    return n.f(inner(*a))\n"
        helpers = [line]
    got = grade(grader, "mla-choose", code, helpers=helpers)
    assert (got.status, got.points) == ("needs a human", 0)
    assert "not_installed_here" in got.notes[0]


def test_a_package_that_nobody_imports_is_a_zero(grader):
    code = "def count_macs(*a):\n    raise ModuleNotFoundError('No module named einops')"
    assert grade(grader, "mla-choose", code).status == "failed"
    code = "try:\n    import not_installed_here\nexcept ImportError:\n    pass\n"
    assert grade(grader, "mla-choose", code + source_of("mla-choose")).status == "passed"


def test_what_a_call_has_changed_counts_where_the_answer_needs_it(grader, pristine, solved):
    own = source_of("mla-choose").replace("def count_macs(", "def inner(", 1)
    for c in solved["cells"]:
        if c.get("id") == "answer-mla-choose":
            c["source"] = f"{own}\ndef count_macs(*a):\n    return T['f'](inner, *a)\n"
            at = solved["cells"].index(c)
    helper = "T = {}\ndef fill(d):\n    d['f'] = lambda f, *a: f(*a)\nfill(T)\n"
    new = {"cell_type": "code", "metadata": {}, "source": helper, "outputs": [], "id": "mine"}
    solved["cells"].insert(at, new)
    got = grader.submission(merge(pristine, solved), seed=3)
    assert [e.status for e in got.exercises] == ["passed"] * len(got.exercises)


def test_a_call_that_kills_the_process_costs_its_own_items_only(grader):
    code = f"import os\n{source_of('bpe-merge')}\nright = merge_pair\n"
    code += "def merge_pair(ids, *a):\n    return right(ids, *a) if ids else os._exit(1)\n"
    got = grade(grader, "bpe-merge", code)
    lost = [i.label for i in got.items if i.status != "ok"]
    assert lost == ["an empty list stays empty"]
    assert got.status == "partial"


def test_our_own_faults_are_no_zeros(grader, monkeypatch):
    def broken(*args, **kwargs):
        raise GraderFault("the machine is on fire")

    monkeypatch.setattr(Remote, "start", broken)
    monkeypatch.setattr(grader, "_restart", lambda: None)
    got = grade(grader, "mla-choose", source_of("mla-choose"))
    assert got.status == "grader error"
    assert "GRADER ERROR" in got.notes[0]
    assert got.needs_human


def test_the_process_is_started_again_when_it_is_lost(grader):
    grader._zygote._process.kill()
    got = grade(grader, "mla-choose", source_of("mla-choose"))
    assert got.status == "passed"


def test_private_checks(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from minids3.grade.private import private_check\n"
        "@private_check('mla-choose', title='one token')\n"
        "def check(c):\n"
        "    got = c.call(1, 1, 1, 1, 1, 1, 1, returns=2, label='runs')\n"
        "    c.equal(list(got), [4, 5] if False else list(got), label='agrees')\n"
    )
    made = Grader(private=tmp_path)
    try:
        got = grade(made, "mla-choose", source_of("mla-choose"))
        assert got.points == got.max_points
        assert [i.label for i in got.items if i.label.startswith("one token")] == [
            "one token: runs", "one token: agrees"]  # fmt: skip
    finally:
        made.close()
    (tmp_path / "wrong.py").write_text("1 / 0")
    with pytest.raises(ValueError, match=r"wrong\.py"):
        Grader(private=tmp_path)


def test_without_isolation_it_refuses(monkeypatch):
    monkeypatch.setattr(sandbox, "missing", lambda: ["no Landlock"])
    with pytest.raises(sandbox.Unavailable, match="no-sandbox"):
        Grader()


def test_the_function_that_the_command_calls(pristine, student):
    got = grade_submission(merge(pristine, student), seed=1, student="a", path="a.ipynb")
    assert SubmissionResult.from_dict(got.to_dict()) == got
    assert (got.student, got.seed, got.points) == ("a", 1, 0)


def remote(grader, code, name="f"):
    load = {"pieces": [{"kind": "answer", "code": code}], "name": name, "forbid": [], "seed": 0}
    return Remote(grader._zygote, load)


def test_gradients_in_place_changes_and_shared_arguments(grader):
    f = remote(grader, "def f(x, y):\n    return x * y, (x ** 2).sum()\n")
    x = torch.randn(3, requires_grad=True)
    y = torch.randn(3, requires_grad=True)
    a, b = f(x, y)
    got = torch.autograd.grad((2 * a).sum() + 3 * b, (x, y))
    assert torch.allclose(got[0], 2 * y + 6 * x)
    assert torch.allclose(got[1], 2 * x)
    f.close()
    g = remote(grader, "def f(x, y, z):\n    x.add_(1)\n    z['a'].append(2)\n    return x is y\n")
    x, z = torch.zeros(2), {"a": [1]}
    assert g(x, x, z) is True
    assert x.tolist() == [1, 1]
    assert z == {"a": [1, 2]}
    g.close()


def counted(f, *args):
    with MultiplyAdds() as counter:
        out = f(*args)
    return out, counter.total


def test_multiply_adds_are_counted_in_a_process_that_knows_no_answer(grader):
    x, y = torch.randn(4, 4), torch.randn(4)
    f = remote(grader, "def f(x, y):\n    return x @ x, (x * y).sum(-1)\n")
    (a, b), spent = counted(f, x, y)
    assert torch.equal(a, x @ x)
    assert torch.equal(b, (x * y).sum(-1))
    assert spent == 4**3 + 4**2
    f.close()
    g = remote(grader, "seen = []\ndef f(x):\n    seen.append(x)\n    return [x + 0] + seen\n")
    (own, told), _ = counted(g, x)
    assert torch.equal(own, x)
    assert torch.equal(told, x)  # repeated on these numbers; the process itself saw others:
    assert not torch.isclose(g(x)[1], x).any()
    g.close()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise ValueError('mine')", "mine"),
        ("return torch.from_numpy(x.numpy() @ x.numpy())", "cannot be counted"),
        ("return x.add_(1)", "in place"),
        ("return x[x < 9].view(1, int((x < 9).sum()))", "cannot be repeated"),
    ],
)
def test_what_cannot_be_counted_says_why(grader, body, reason):
    f = remote(grader, f"import torch\ndef f(x):\n    {body}\n")
    with pytest.raises(Exception, match=reason):
        counted(f, 10 + torch.rand(4, 4))
    f.close()


def test_a_check_that_counts_otherwise_is_our_fault(grader):
    f = remote(grader, "def f(x):\n    return x\n")
    with FlopCounterMode(display=False), pytest.raises(GraderFault, match=r"sim\.counted"):
        f(torch.ones(2))
    f.close()


def test_arguments_without_a_plain_form_are_our_fault(grader):
    f = remote(grader, "def f(x):\n    return 1\n")
    with pytest.raises(GraderFault, match="no plain form"):
        f(object())
    f.close()
    assert issubclass(oracle.TimeLimit, Exception)
    assert not issubclass(GraderFault, Exception)


def test_a_process_that_does_not_start_is_our_fault(grader, monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    made = Grader()
    try:
        got = grade(made, "mla-choose", source_of("mla-choose"))
    finally:
        made.close()
    assert got.status == "grader error"
    assert "did not start" in got.notes[0]
