"""Answers without knowledge earn nothing, in any exercise; known mistakes at most half."""

import re

import pytest
import torch

from minids3.course.baselines import earning, evidence
from minids3.course.compare import snapshot
from minids3.course.registry import exercises
from minids3.course.run import Report, checked, run_check, solution_items
from minids3.grade.judging.scoring import Run, score
from minids3.grade.records import ExerciseResult

ALL = exercises()
PLAIN = [e for e in ALL if not e.kernel]
KERNELS = [e for e in ALL if e.kernel]


def points(exercise, fn, seeds=(0, 7, 8)):
    """Return the points that the grader gives for these seeds, and how many items passed."""
    runs = []
    for seed in seeds:
        found = {i.label: i for i in checked(exercise, fn, seed).items}
        items = solution_items(exercise, seed)
        made = [found.get(i.label) or type(i)(i.label, "not reached") for i in items]
        runs.append(Run(seed, seed != 0, Report(exercise.id, made)))
    result = ExerciseResult(exercise.id, "", 0, float(exercise.points), "partial")
    score(exercise, result, runs, [])
    assert result.points == pytest.approx(sum(i.points for i in result.items), abs=0.01)
    return result


def filled(value, number=0):
    if isinstance(value, torch.Tensor):
        return torch.full(value.shape, number).to(value.dtype)
    if isinstance(value, bool | int | float):
        return type(value)(number)
    if isinstance(value, dict):
        return {k: filled(v, number) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(filled(v, number) for v in value)
    return value if value is None else ""


def right(exercise, args, kwargs):
    try:
        return exercise.solution(*snapshot(args), **snapshot(kwargs))
    except Exception:
        return None


def baselines(exercise):
    """Yield name and function; some are told the right answer's shape."""
    yield "zeros", lambda *a, **k: filled(right(exercise, a, k))
    yield "identity", lambda *a, **k: a[0] if a else None
    yield "None", lambda *a, **k: None
    numbers = re.findall(r"(?<![\w.])\d+(?:\.\d+)?", exercise.solution.__doc__)
    for text in [*dict.fromkeys(numbers)][:4]:
        yield text, lambda *a, n=float(text), **k: filled(right(exercise, a, k), n)
    book = {}

    def copied(*args, **kwargs):  # from what the check prints for everybody
        return book.get(repr((args, kwargs)), filled(right(exercise, args, kwargs)))

    def writing(*args, **kwargs):
        key = repr((args, kwargs))
        book[key] = exercise.solution(*args, **kwargs)
        return book[key]

    checked(exercise, writing, 0)
    yield "copied", copied


@pytest.mark.parametrize("exercise", PLAIN, ids=lambda e: e.id)
def test_what_knows_nothing_gets_nothing(exercise):
    for name, fn in baselines(exercise):
        got = points(exercise, fn)
        assert (got.points, got.status) == (0, "failed"), name


class Kernel:
    """Stands for a kernel that gives its arguments to ``act``."""

    run = arg_names = None

    def __init__(self, act):
        self.act = act

    def __getitem__(self, grid):
        return lambda *args, **constexprs: self.act(args)

    def __call__(self):
        raise AssertionError


def outputs(args):
    tensors = [a for a in args if isinstance(a, torch.Tensor)]
    return [t for t in tensors if bool((t.isnan() if t.is_floating_point() else t == 85).all())]


@pytest.mark.parametrize("exercise", KERNELS, ids=lambda e: e.id)
def test_an_empty_kernel_gets_nothing(exercise):
    pytest.importorskip("triton")
    acts = [lambda args: None, lambda args: [t.zero_() for t in outputs(args)]]
    for act in acts:
        got = points(exercise, Kernel(act), (0, 1))
        assert (got.points, got.status) == (0, "failed")


@pytest.mark.parametrize("exercise", ALL, ids=lambda e: e.id)
def test_every_exercise_has_evidence(exercise):
    if exercise.kernel:
        pytest.importorskip("triton")
    proof = evidence(exercise)
    assert any(proof)
    assert not proof[0] or len(solution_items(exercise, 0)) == len(proof)
    assert earning(exercise, range(len(proof))) == set(range(len(proof)))
    assert earning(exercise, [n for n, p in enumerate(proof) if not p]) == set()


@pytest.mark.parametrize("exercise", PLAIN, ids=lambda e: e.id)
def test_known_mistakes_get_at_most_half(exercise):
    for mutant in exercise.mutants:
        runs = [Run(s, s != 0, run_check(exercise, mutant.fn, s, confirm=False)) for s in (0, 7)]
        result = ExerciseResult(exercise.id, "", 0, float(exercise.points), "partial")
        score(exercise, result, runs, [])
        assert result.points <= exercise.points / 2, mutant.name
        assert sum(i.points for i in result.items) == pytest.approx(result.points, abs=0.01)
        assert result.status in ("partial", "failed")
