"""Every exercise of the workbook: solutions, mutants, alternatives, stubs, hints.

Here each answer meets one of three seeds, in turn. ``python -m minids3.course seeds`` tries right
answers with a thousand, and with ``--mutants`` the wrong ones.
"""

import inspect

import pytest
import torch
import torch.nn.functional as F

from minids3.course.build.cells import stub_of
from minids3.course.check import format_report
from minids3.course.registry import exercises
from minids3.course.run import run_check
from minids3.course.seeds import mistaken
from minids3.kernels.language import tl, triton

ALL = exercises()
SEEDS = (0, 1, 2)
each = pytest.mark.parametrize("exercise", ALL, ids=lambda e: e.id)


def pairs(kind):
    found = [
        (e, m, SEEDS[i % len(SEEDS)])
        for at, e in enumerate(ALL)
        for i, m in enumerate(getattr(e, kind), at)
    ]
    return pytest.mark.parametrize(
        ("exercise", "answer", "seed"), found, ids=[f"{e.id}-{m.name}-{s}" for e, m, s in found]
    )


def failures(report):
    return [(i.label, i.reason) for i in report.items if i.status != "ok"]


@each
@pytest.mark.parametrize("seed", SEEDS)
def test_solution_passes(exercise, seed):
    report = run_check(exercise, exercise.solution, seed)
    assert report.ok, failures(report)
    assert len(report.items) >= 3


@each
def test_library_passes(exercise):
    report = run_check(exercise, exercise.library)
    assert report.ok, failures(report)


@pairs("mutants")
def test_mutant_is_rejected_with_its_own_message(exercise, answer, seed):
    assert mistaken(exercise, answer, seed) == ""


@pairs("alternatives")
def test_alternative_is_accepted(exercise, answer, seed):
    report = run_check(exercise, answer.fn, seed)
    assert report.ok, failures(report)


@each
def test_stub_fails_and_says_so(exercise):
    space = {"torch": torch, "F": F, "triton": triton, "tl": tl}
    exec("from __future__ import annotations\n" + stub_of(exercise), space)
    report = run_check(exercise, space[exercise.name])
    assert report.stub
    assert report.passed == 0
    assert "stub" in format_report(exercise, report)
    assert not report.diagnosis


@each
def test_stub_solution_and_library_agree(exercise):
    ours = list(inspect.signature(exercise.solution).parameters)
    library = inspect.signature(exercise.library).parameters
    assert list(library)[: len(ours)] == ours
    extra = list(library.values())[len(ours) :]
    assert all(p.default is not p.empty or p.kind == p.VAR_KEYWORD for p in extra)


@each
def test_enough_mutants_alternatives_and_words(exercise):
    assert len(exercise.mutants) >= 4
    assert len(exercise.alternatives) >= 2
    sentences = [" ".join(m.diagnosis.split()) for m in exercise.mutants]
    assert len(set(sentences)) == len(sentences)
    assert all(len(s) >= 30 for s in sentences)
    assert all(len(h.strip()) >= 30 for h in exercise.hints)


def test_ids_are_unique():
    assert len({e.id for e in ALL}) == len(ALL) > 0
