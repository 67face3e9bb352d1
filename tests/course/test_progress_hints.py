import ast
import json
import math
import re
import sys
import types

import pytest
import torch

from minids3.course import check, hint, progress, solution
from minids3.course.hints import other_way, source_of
from minids3.course.names import names_of
from minids3.course.registry import UnknownExercise, exercises, get


def row(id="rms-norm"):
    return next(r for r in progress().rows if r.id == id)


def own_copy(fn):
    """The same answer, typed by a reader: other objects, in the notebook's namespace."""
    names = {**fn.__globals__, "__name__": "__main__"}
    return types.FunctionType(fn.__code__.replace(), names, fn.__name__, fn.__defaults__)


@pytest.mark.filterwarnings("error")
def test_progress_records_the_best(home):
    assert row().total == 0
    check("rms-norm", get("rms-norm").mutants[0].fn)
    assert 0 < row().passed < row().total
    check("rms-norm", own_copy(get("rms-norm").solution))
    check("rms-norm", get("rms-norm").mutants[0].fn)
    assert row().solved
    assert row().tries == 3
    assert "##########" in repr(progress("00"))
    assert "rms-norm" in progress("00")._repr_html_()
    assert [p.name for p in home.iterdir()] == ["progress.json"]


@pytest.mark.parametrize("text", ["{", "[]", '{"exercises": {"rms-norm": 3}}', "\x00"])
def test_a_damaged_file_is_kept_aside(home, text):
    home.mkdir()
    (home / "progress.json").write_text(text)
    with pytest.warns(UserWarning, match="damaged"):
        check("rms-norm", own_copy(get("rms-norm").solution))
    assert (home / "progress.json.bak").read_text() == text
    assert json.loads((home / "progress.json").read_text())["exercises"]["rms-norm"]["tries"] == 1


def test_a_home_that_cannot_be_written_is_no_error(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINIDS3_HOME", str(tmp_path / "file" / "below"))
    mine = own_copy(get("rms-norm").solution)
    with pytest.warns(UserWarning, match="not saved"):
        assert check("rms-norm", mine) is mine


def test_hints_come_one_by_one(capsys, monkeypatch):
    monkeypatch.setattr("minids3.course.hints._SEEN", {})
    for level, words in enumerate(("a question", "pseudocode", "worked solution"), 1):
        hint("rms-norm")
        assert f"hint {level} of 3: " in (out := capsys.readouterr().out)
        assert words in out
    assert "def rms_norm" in out
    hint("rms-norm", 1)
    assert "hint 1 of 3" in capsys.readouterr().out
    assert row().hints == 3
    solution("rms-norm")
    assert capsys.readouterr().out.startswith("def rms_norm")


def test_hint_errors():
    with pytest.raises(ValueError, match="levels 1, 2 and 3"):
        hint("rms-norm", 4)
    with pytest.raises(KeyError, match="Did you mean rms-norm"):
        solution("rms_norm")


def test_a_name_that_is_none_shows_the_sentence_and_none_of_our_lines():
    with pytest.raises(UnknownExercise) as caught:
        hint("rmsnorm")
    (line,) = caught.value._render_traceback_()
    assert line.startswith("UnknownExercise: there is no exercise 'rmsnorm'. Did you mean rms-norm")


def test_a_failed_check_offers_the_hint_that_comes_next(capsys, monkeypatch, home):
    monkeypatch.setattr(sys.modules["minids3.course.hints"], "_SEEN", {})
    said = []
    for _ in range(4):
        check("rms-norm", lambda x, weight, eps=1e-6: x)
        said += re.findall(r'hint\("rms-norm"\) has (.*) for you', capsys.readouterr().out)
        hint("rms-norm")
        capsys.readouterr()
    assert said == ["a question", "pseudocode", "the worked solution", "the worked solution"]
    check("rms-norm", lambda x, weight, eps=1e-6: x, dry=True)
    assert "has a question for you" in capsys.readouterr().out


def test_solution_shows_another_accepted_way(capsys):
    solution("lm-loss")
    worked, other = capsys.readouterr().out.split("# The check accepts other ways too.")
    assert worked.count("def lm_loss") == other.count("def lm_loss") == 1
    # Shown as it is, it passes: without helpers of its module, and after one that it calls.
    for id in ("lm-loss", "mla-absorb"):
        names = {"__name__": "__main__", "torch": torch, "math": math}
        exec(other_way(id), names)
        assert check(id, mine := names[get(id).name]) is mine


def test_every_exercise_has_another_way_to_show():
    for exercise in exercises():
        shown = ast.parse(other_way(exercise.id))
        assert shown.body[-1].name == exercise.name, exercise.id
        free = names_of(shown).loads - names_of(shown).binds
        assert not [n for n in free if n.startswith("_")], exercise.id
        assert ast.dump(shown) != ast.dump(ast.parse(source_of(exercise.id))), exercise.id


def test_a_pass_names_the_other_way_to_readers_alone(capsys, monkeypatch):
    mine = own_copy(get("rms-norm").solution)
    words = 'solution("rms-norm") shows the worked solution and one other accepted way.'
    check("rms-norm", mine)
    assert capsys.readouterr().out.splitlines()[-1] == words
    check("rms-norm", mine, dry=True)
    check("rms-norm", get("rms-norm").mutants[0].fn)
    monkeypatch.setenv("MINIDS3_STRICT", "1")  # what is stored in a notebook, and compared
    check("rms-norm", mine)
    assert words not in capsys.readouterr().out
