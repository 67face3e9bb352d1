import json
import types

import pytest

from minids3.course import check, hint, progress, solution
from minids3.course.registry import get


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
