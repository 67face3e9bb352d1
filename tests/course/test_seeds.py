"""Many seeds: what is passed is kept, a failure is told, and a quick slice is tried here."""

import json

import pytest

from minids3.course import run, seeds
from minids3.course.__main__ import main
from minids3.course.registry import Alternative, Exercise, Mutant, exercises, get

QUICK = [e for e in exercises() if not e.kernel]


@pytest.mark.parametrize("exercise", QUICK, ids=lambda e: e.id)
def test_right_answers_pass_seeds_that_nobody_looks_at(exercise):
    """The whole is ``python -m minids3.course seeds``: a thousand of each."""
    first = 1000 + QUICK.index(exercise)
    assert [*seeds.rejected(exercise, first)] == []


def test_many_seeds_do_not_fill_the_memory(monkeypatch):
    """A run is kept for later, and the oldest is forgotten."""
    monkeypatch.setattr(run, "_KEPT", 3)
    monkeypatch.setattr(run, "_SOLUTIONS", {})
    monkeypatch.setattr(run, "_MUTANTS", {})
    exercise = get("bpe-merge")
    for seed in range(900, 906):
        assert [*seeds.rejected(exercise, seed)] == []
        assert [*seeds.misjudged(exercise, seed)] == []
        assert len(run._SOLUTIONS) <= 3 >= len(run._MUTANTS)


@pytest.mark.parametrize(
    ("id", "seed"),
    [
        *(("rms-norm", seed) for seed in (46, 102, 296)),
        ("fp8-dgrad", 118),
        ("serve-merge", 632),
        ("serve-decode", 306),
        ("moe-swiglu-quant", 100),
    ],
)
def test_seeds_that_once_cost_a_class_its_points(id, seed):
    if get(id).kernel:
        pytest.importorskip("triton")
    assert [*seeds.rejected(get(id), seed)] == []


def answer(x):
    """Return x."""
    return x


def unlucky(c):
    x = c.size(0, 9)
    c.equal(c.call(x, label="runs"), 3 if x == 3 and c.seed > 5 else x, label="right")


def exercise_of(check, alternatives=()):
    given = get("rms-norm").__dict__ | {"id": "unlucky", "solution": answer, "library": answer}
    return Exercise(**given | {"check": check, "mutants": (), "alternatives": alternatives})


def test_progress_is_kept_and_a_failure_ends_the_exercise(tmp_path, capsys):
    path = tmp_path / "kept" / "seeds.json"
    calls = []

    def check(c):
        calls.append(c.seed)
        c.equal(c.call(1, label="runs"), 1, label="right")

    check.__module__ = __name__
    exercise = exercise_of(check)
    assert seeds.run([exercise], 3, path) == []
    assert sorted({*calls}) == [0, 1, 2]
    calls.clear()
    assert seeds.run([exercise], 5, path) == []
    assert sorted({*calls}) == [3, 4]
    assert [*json.loads(path.read_text()).values()] == [5]

    odd = Alternative("odd", lambda x: x + (len(calls) > 40))
    wrong = exercise_of(check, (odd,))
    path.unlink()
    found = seeds.run([wrong], 30, path)
    assert len(found) == 1
    assert "odd fails at 'right'" in found[0]
    assert f"{json.loads(path.read_text()).popitem()[1]} seeds passed" in capsys.readouterr().out


def test_mistakes_that_are_accepted_or_told_another_cause_are_found(tmp_path):
    def check(c):
        x = c.size(3, 9)
        c.equal(c.call(x, label="runs"), x, label="right")

    check.__module__ = __name__
    right = Mutant("right", answer, "This one returns x, as it should, so nothing is wrong.")
    one = Mutant("one", lambda x: x + 1, "It adds one to x before it returns it.")
    too = Mutant("too", lambda x: 1 + x, "It adds x to one, which is the same number.")
    two = Mutant("two", lambda x: x + 2, "It adds two to x before it returns it.")
    wrong = Exercise(**exercise_of(check).__dict__ | {"mutants": (right, one, too, two)})
    told = dict(t.split(": ", 2)[1:] for t in seeds.misjudged(wrong, 0))
    assert told.pop("right") == "the check accepts this wrong answer"
    assert {*told} <= {"one", "too"}
    assert told
    assert all("instead of its own cause" in t for t in told.values())
    found = seeds.run([wrong], 5, tmp_path / "seeds.json", mutants=True)
    assert len(found) == 1 + len(told)


def test_a_damaged_file_is_told(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        seeds.run([], 1, tmp_path / "x.json")


def test_the_command(tmp_path, capsys):
    path = str(tmp_path / "seeds.json")
    for more in ([], ["--mutants"]):
        assert main(["seeds", "bpe-merge", "--count", "2", "--progress", path, *more]) == 0
        assert "bpe-merge                2 seeds" in capsys.readouterr().out
