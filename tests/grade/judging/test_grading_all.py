"""Every answer that the workbook knows, of every notebook, through the sandbox (slow)."""

import pytest
from grade.cells import cell_of, program_of

from minids3.course.registry import exercises
from minids3.course.repository import root
from minids3.grade.judging.grading import Grader
from minids3.grade.judging.prepare import given_before
from minids3.grade.submissions.merge import merge
from minids3.grade.submissions.pristine import Pristine
from minids3.grade.submissions.reading import load
from minids3.isolation import sandbox

NOTEBOOKS = sorted(p.stem for p in (root() / "notebooks").glob("[0-9]*.ipynb"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(sandbox.missing()), reason="no isolation on this machine"),
]


@pytest.fixture(scope="module", params=NOTEBOOKS)
def graded(request):
    found = exercises(request.param)
    kernels = any(e.kernel for e in found)
    if kernels:
        pytest.importorskip("triton")
    pristine = Pristine.read(root() / "notebooks" / f"{request.param}.ipynb")
    made = Grader(kernels=kernels)
    yield request.param, found, made, pristine
    made.close()


def test_notebooks(graded):
    name, _, grader, pristine = graded
    solved = load(root() / "notebooks" / "solutions" / f"{name}.ipynb")
    got = grader.submission(merge(pristine, solved), seed=6)
    assert got.points == got.max_points, [(e.id, e.status, e.notes) for e in got.exercises]
    got = grader.submission(merge(pristine, pristine.notebook), seed=6)
    assert got.points == 0
    assert all(e.status == "stub" and e.items[0].reason for e in got.exercises)


def test_alternatives_and_mutants(graded):
    _, found, grader, pristine = graded
    before = given_before(pristine.notebook)
    wrong = []
    for e in found:
        answers = [(a, True) for a in e.alternatives] + [(m, False) for m in e.mutants]
        for answer, right in answers:
            program = program_of(e, cell_of(e, answer.fn))
            got = grader.exercise(program, 6, before[e.id])
            full = got.status == "passed" and got.points == e.points
            lost = got.status in ("partial", "failed") and got.points < e.points
            if not (full if right else lost and got.mutant == answer.name):
                wrong.append((e.id, answer.name, got.status, got.points, got.mutant, got.notes))
    assert wrong == []
