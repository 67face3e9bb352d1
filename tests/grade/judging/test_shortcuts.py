"""What an exercise forbids: never what its notebook hands out, unless it says so by name."""

import copy

import pytest
from grade.cells import cell_of, program_of

from minids3.course.registry import exercises, get
from minids3.course.repository import root
from minids3.grade.judging import shortcuts
from minids3.grade.judging.grading import Grader
from minids3.grade.judging.prepare import given_before
from minids3.grade.submissions.merge import merge
from minids3.grade.submissions.pristine import Pristine
from minids3.grade.submissions.slices import statements
from minids3.isolation import sandbox

NOTEBOOKS = sorted((root() / "notebooks").glob("[0-9][0-9]_*.ipynb"))
isolated = pytest.mark.skipif(bool(sandbox.missing()), reason="no isolation on this machine")


@pytest.fixture(scope="module")
def grader():
    made = Grader()
    yield made
    made.close()


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda p: p.stem)
def rules(request):
    """Each exercise of a notebook with the cells in front of its answer and what it forbids."""
    kernels = any(e.kernel for e in exercises(request.param.stem))
    if kernels:
        pytest.importorskip("triton")
    shortcuts.load_package(kernels)
    before = given_before(Pristine.read(request.param).notebook)
    return [(get(id), given, shortcuts.forbidden(get(id), given)) for id, given in before.items()]


def test_what_a_notebook_hands_out_may_be_used(rules):
    for exercise, given, forbids in rules:
        assert forbids
        names = {n for code in given for s in statements(code) or () for n in s.binds}
        own = [*given, "\n".join(f"use({n})" for n in sorted(names))]
        assert set(shortcuts.named(own, given, forbids)) <= set(exercise.forbids), exercise.id


def test_what_earlier_answers_call_goes_on_working(rules):
    earlier = []
    for exercise, _, forbids in rules:
        used = shortcuts._used(earlier)
        assert not {n for n in used if forbids.get(n, shortcuts.INSIDE) != shortcuts.INSIDE}
        earlier.append(exercise.solution)


def test_names_in_forbids_exist():
    for exercise in (e for path in NOTEBOOKS for e in exercises(path.stem)):
        for name in exercise.forbids:
            assert shortcuts.resolve(name.removesuffix(".*")), name


def test_what_a_cell_imports_is_taken_back_only_by_name():
    exercise = get("mla-absorb")  # forbids all of ref.attention, and not one function by name
    name = "minids3.ref.attention.latent_attention_ref"
    assert name in shortcuts.forbidden(exercise)
    assert name in shortcuts.forbidden(exercise, ["import minids3.ref.attention as a"])
    assert name not in shortcuts.forbidden(
        exercise, [f"from {name.rpartition('.')[0]} import latent_attention_ref as f", "f = 1"]
    )


def test_an_import_counts_though_a_later_cell_gives_its_name_to_something_else():
    given = ["from minids3.ref.rope import rope_tables as t", "from math import tau as t"]
    assert "minids3.ref.rope.rope_tables" not in shortcuts.forbidden(get("mla-compress"), given)
    assert "minids3.ref.rope.rope_tables" in shortcuts.forbidden(get("mla-compress"))


@isolated
@pytest.mark.parametrize("ids", [True, False], ids=["cell ids", "as nbformat 4.0"])
def test_the_tables_that_notebook_03_hands_out(grader, pristine, solved, save, ids):
    """A right answer that imports rope_tables itself and calls it was once marked as forbidden."""
    own = copy.deepcopy(pristine.notebook)
    for cell in solved["cells"]:
        if cell.get("id") == "answer-mla-compress":
            lines = "".join(cell["source"]).splitlines()
            lines.insert(len(lines) - 1, "    make_tables(4, 8)")
            cell["source"] = "\n".join(
                ["from minids3.ref.rope import rope_tables as make_tables", *lines]
            )
    if not ids:
        for cell in [*own["cells"], *solved["cells"]]:
            del cell["id"]
    answers = merge(Pristine.read(save(own, f"{pristine.name}.ipynb")), solved)
    assert "rope_tables" in answers["mla-compress"].answer
    got = grader.submission(answers, seed=3)
    assert (got.exercises[0].id, got.exercises[0].status) == ("mla-compress", "passed")
    assert got.points == got.max_points, [(e.id, e.notes) for e in got.exercises]


@isolated
def test_loads_counted_by_the_notebook_s_own_function(grader):
    path = next(p for p in NOTEBOOKS if p.stem.startswith("05"))
    before = given_before(Pristine.read(path).notebook)["balance-violation"]
    exercise = get("balance-violation")
    code = "import torch\nfrom minids3.train.balance import expert_load\n\n"
    code += "def layer_violation(indices, n_experts):\n"
    code += "    load = torch.stack([expert_load(i, n_experts) for i in indices]).float()\n"
    code += "    return load.amax(-1) / load.mean(-1) - 1\n"
    got = grader.exercise(program_of(exercise, code), 3, before)
    assert (got.status, got.points) == ("passed", exercise.points), got.notes
    got = grader.exercise(program_of(exercise, cell_of(exercise, exercise.library)), 3, before)
    assert got.status == "forbidden"
    assert "max_violation" in got.notes[0]


@isolated
def test_an_answer_forbidden_by_its_exact_name_stays_so_where_a_cell_imports_it(grader):
    before = ["from minids3.numerics import cut, limited_matmul"]
    exercise = get("fp8-accumulate")
    got = grader.exercise(program_of(exercise, cell_of(exercise, exercise.library)), 3, before)
    assert (got.status, got.points) == ("forbidden", 0)
