"""Notebook 12: the small run that readers see is the one that the check uses, and is a real run."""

import copy
import inspect
from pathlib import Path

import pytest
import torch

from minids3.course.exercises.nb12_training_run import checkpoint as exercise
from minids3.course.exercises.nb12_training_run import schedule, small_run
from minids3.course.exercises.nb12_training_run.small_run import STATE, new_run, small_step
from minids3.train.schedule import Schedule

SOURCE = Path(__file__).parents[2] / "notebooks" / "source" / "12_training_run.py"


def test_the_notebook_shows_the_step_that_the_check_takes():
    assert inspect.getsource(small_run.small_step) in SOURCE.read_text(encoding="utf-8")


def test_the_small_run_learns_and_balances():
    run = new_run(3)
    losses = []
    for _ in range(200):
        small_step(run)
        losses.append(run["loss"])
    assert sum(losses[-20:]) < 0.4 * sum(losses[:20])
    assert run["updates"] == 200
    assert run["rows"] == 3200 > run["tokens"] > 2000
    assert run["bias"].abs().max() > 0


@pytest.mark.parametrize("missing", STATE)
def test_every_piece_of_the_state_is_needed(missing):
    run = new_run(4)
    for _ in range(20):
        small_step(run)
    kept = {name: value for name, value in exercise.checkpoint(run).items() if name != missing}
    resumed = {**new_run(99), **copy.deepcopy(kept)}
    small_step(run)
    small_step(resumed)
    same = [torch.equal(torch.as_tensor(run[n]), torch.as_tensor(resumed[n])) for n in STATE]
    assert not all(same)


def test_a_checkpoint_that_is_not_copied_is_told_so():
    from minids3.course.registry import get
    from minids3.course.run import run_check

    def by_reference(run):
        return {name: run[name] for name in STATE}

    report = run_check(get("run-checkpoint"), by_reference)
    wrong = [i for i in report.items if i.status == "no"]
    assert [i.label for i in wrong] == ["the checkpoint stands still while the run goes on"]
    assert "copy" in wrong[0].reason


def test_the_schedule_is_the_librarys():
    phases = list(schedule.V3_RATE)
    ours = Schedule(schedule.V3_RATE)
    for tokens in (0, 1e9, 25e9, 9.99e12, 10e12, 12e12, 14.3e12, 14.633e12, 14.8e12, 2e13):
        assert schedule.value_at(tokens, phases) == pytest.approx(ours(tokens), rel=1e-12, abs=0)
