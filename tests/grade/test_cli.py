"""The command from a folder to the gradebook, with a stand-in for the grading of one submission."""

import csv
import functools
import json
import os
import sys
from pathlib import Path

import pytest

from minids3.grade import cli
from minids3.grade.process import pool
from minids3.grade.process.pool import Pool
from minids3.grade.reports import gradebook
from minids3.grade.reports.gradebook import Gradebook, Options, file_names
from minids3.grade.submissions.collect import collect
from minids3.grade.submissions.pristine import Pristine, find_notebook

NAME = "03_latent_attention"
FAKE = (sys.executable, str(Path(__file__).parent / "fake_job.py"))


@pytest.fixture
def graded(tmp_path, monkeypatch):
    """Return who was graded since the last call."""
    log = tmp_path / "log"
    log.touch()
    monkeypatch.setenv("FAKE_LOG", str(log))
    monkeypatch.setattr(pool, "Pool", functools.partial(Pool, command=FAKE))
    # Somebody may be editing the library while the tests run.
    monkeypatch.setattr(gradebook, "grader_digest", lambda name: "the same")

    def since():
        names = sorted(log.read_text().split("\n")[:-1])
        log.write_text("")
        return names

    return since


def write_class(save, solved, student, *spoilt):
    save(solved, "in", "ada", f"{NAME}.ipynb")
    save(student, "in", "=eve", f"{NAME}.ipynb")
    for word in spoilt:
        for c in solved["cells"]:
            if c.get("id") == "answer-mla-choose":
                c["source"] = f"# EXERCISE mla-choose\ndef count_macs():\n    return '{word}'\n"
        save(solved, "in", word.lower(), "mine.ipynb")


def run(tmp_path, *more):
    out = str(tmp_path / "out")
    return cli.main(["grade", "03", str(tmp_path / "in"), "--out", out, "--no-sandbox", *more])


def table(tmp_path):
    return {r["student"]: r for r in csv.DictReader((tmp_path / "out" / "grades.csv").open())}


@pytest.mark.parametrize(("said", "shown"), [("1", False), ("0", True)])
def test_the_bar_goes_by_the_variable_as_it_is_when_grading_begins(
    save, solved, student, tmp_path, graded, capsys, monkeypatch, said, shown
):
    """tqdm itself looks when it is first imported, which in a notebook is before it was set."""
    write_class(save, solved, student)
    monkeypatch.setenv("TQDM_DISABLE", said)
    assert run(tmp_path, "--seed", "7") == 0
    assert ("grading 03" in capsys.readouterr().err) == shown


def test_gradebook_and_pages(save, solved, student, tmp_path, graded, capsys):
    write_class(save, solved, student)
    deadline = tmp_path / "deadline.txt"
    deadline.write_text("2001-01-01 12:00")
    assert run(tmp_path, "--seed", "7", "--deadline", str(deadline)) == 0
    rows = table(tmp_path)
    assert rows["ada"]["total"] == "6"
    assert rows["ada"]["max"] == "6"
    assert rows["ada"]["mla-compress"] == "1"
    assert rows["'=eve"]["total"] == "0"  # and no spreadsheet takes the name for a formula
    assert rows["ada"]["late"].startswith("late by ")
    data = json.loads((tmp_path / "out" / "grades.json").read_text())
    assert data["seed"] == 7
    assert [s["student"] for s in data["submissions"]] == ["=eve", "ada"]
    pages = sorted(p.name for p in (tmp_path / "out" / "feedback").iterdir())
    assert pages == ["ada.html", "eve-d883b8bd.html"]
    assert "ada" in (tmp_path / "out" / "summary.html").read_text()
    assert "median" in capsys.readouterr().out


def test_resumes_and_grades_again_only_what_changed(save, solved, student, tmp_path, graded):
    write_class(save, solved, student)
    run(tmp_path)
    assert graded() == ["=eve", "ada"]
    seed = json.loads((tmp_path / "out" / "run.json").read_text())["seed"]
    run(tmp_path)
    assert graded() == []
    solved["cells"][1]["source"] = "1 + 1"
    save(solved, "in", "ada", f"{NAME}.ipynb")
    run(tmp_path)
    assert graded() == ["ada"]
    assert json.loads((tmp_path / "out" / "run.json").read_text())["seed"] == seed
    run(tmp_path, "--seed", str(seed + 1))
    assert graded() == ["=eve", "ada"]
    for path in (tmp_path / "out" / "results").glob("ada*.json"):
        path.write_text(path.read_text()[:-100])  # cut off by a full disk
    run(tmp_path)
    assert graded() == ["ada"]


def test_an_interruption_costs_only_what_is_under_way(
    save, solved, student, tmp_path, graded, capsys, monkeypatch
):
    write_class(save, solved, student)

    class Stopped(Pool):
        def run(self, tasks, seconds=900.0):
            yield next(super().run(tasks[:1], seconds))
            raise KeyboardInterrupt

    whole = pool.Pool
    monkeypatch.setattr(pool, "Pool", functools.partial(Stopped, command=FAKE))
    assert run(tmp_path, "--jobs", "1") == 130
    assert "goes on from here" in capsys.readouterr().err
    first = graded()
    assert len(first) == 1
    monkeypatch.setattr(pool, "Pool", whole)
    assert run(tmp_path) == 0
    assert sorted(first + graded()) == ["=eve", "ada"]
    assert len(table(tmp_path)) == 2


def test_a_dying_grader_is_its_own_error_and_nobody_elses(
    save, solved, student, tmp_path, graded, capsys
):
    write_class(save, solved, student, "BOOM", "KILL", "FAULT")
    assert run(tmp_path, "--jobs", "2") == 1
    rows = table(tmp_path)
    assert rows["ada"]["total"] == "6"
    told = {"boom": "status 3", "kill": "signal 9", "fault": "the disk is full"}
    for name, word in told.items():
        assert word in rows[name]["needs a human"]
    data = json.loads((tmp_path / "out" / "grades.json").read_text())
    broken = [s for s in data["submissions"] if s["student"] in told]
    assert {e["status"] for s in broken for e in s["exercises"]} == {"grader error"}
    assert "needs a human: kill" in capsys.readouterr().out
    assert graded() == ["=eve", "ada"]
    book = Gradebook(tmp_path / "out", *_notebook(), Options(data["seed"], isolate=False))
    left = book.resume(collect(tmp_path / "in", NAME, book.pristine.ids))
    assert sorted(s.student for s in left) == sorted(told)  # tried again next time: our fault


def _notebook():
    path = find_notebook("03").resolve()
    return Pristine.read(path), path


def test_a_hanging_grader_is_given_up(save, solved, student, tmp_path, graded):
    write_class(save, solved, student, "HANG")
    path = str(tmp_path / "in" / "hang" / "mine.ipynb")
    task = {"student": "hang", "path": path, "notebook": str(_notebook()[1]), "seed": 1}
    found = list(Pool(1, FAKE).run([task], seconds=6.0))
    assert [(t["student"], r, e) for t, r, e in found] == [("hang", None, "no grade within 6 s")]


def test_missing_and_unreadable_submissions(save, solved, student, tmp_path, graded):
    write_class(save, solved, student)
    (tmp_path / "in" / "nobody").mkdir()
    save("{", "in", "kurt", "x.ipynb")
    assert run(tmp_path) == 1
    rows = table(tmp_path)
    assert rows["nobody"]["problems"] == "handed in no notebook"
    assert rows["nobody"]["needs a human"] == ""
    assert "is not JSON" in rows["kurt"]["needs a human"]
    assert (rows["kurt"]["total"], rows["kurt"]["mla-naive"]) == ("", "")  # nobody decided
    assert rows["nobody"]["total"] == "0"


CANVAS = """\
Student,ID,SIS User ID,SIS Login ID,Section
    Points Possible,,,,
"Lovelace, Ada",4801,,ada,S
"Kurt, Kurt",4999,,kurt,S
"""


@pytest.mark.parametrize("name", ["kurt", "4999", "Kurt Kurt"])
def test_who_was_ill_is_excused_everywhere(save, solved, student, tmp_path, graded, capsys, name):
    save(solved, "in", "lovelaceada_4801_1234_x.ipynb")
    (tmp_path / "out").mkdir()
    head = "student,exercise,points,comment,excused,reason\n"
    (tmp_path / "out" / "decisions.csv").write_text(f"{head}{name},*,,ill that week,yes,\n")
    (tmp_path / "roster.csv").write_text(CANVAS)
    roster = ["--export", "canvas", "--roster", str(tmp_path / "roster.csv")]
    for _ in range(2):
        assert run(tmp_path, *roster) == 0
    assert "NOT applied" not in capsys.readouterr().out
    row = table(tmp_path)[name]
    assert (row["total"], row["comment"], row["max"]) == ("EX", "ill that week", "0")
    text = (tmp_path / "out" / "canvas.csv").read_text("utf-8-sig")
    assert [line.rpartition(",")[2] for line in text.splitlines()[2:]] == ["6", "EX"]
    page = next((tmp_path / "out" / "feedback").glob(f"{name.replace(' ', '_')}*"))
    assert "excused you from this notebook" in page.read_text()
    assert cli.main(["book", str(tmp_path / "out"), "--out", str(tmp_path / "t.csv")]) == 0
    rows = {
        r["student"]: r for r in csv.DictReader((tmp_path / "t.csv").open(encoding="utf-8-sig"))
    }
    assert (rows[name][NAME], rows[name]["max"]) == ("EX", "0")
    platform = ["--platform", "canvas", "--roster", str(tmp_path / "roster.csv")]
    book = ["book", str(tmp_path / "out"), "--out", str(tmp_path / "t.csv")]
    assert cli.main([*book, *platform]) == 0
    rows = {r["id"]: r for r in csv.DictReader((tmp_path / "t.csv").open(encoding="utf-8-sig"))}
    assert (rows["4999"][NAME], rows["4801"][NAME]) == ("EX", "6")
    assert cli.main([*book, *platform[2:]]) == 2
    assert "add --platform canvas" in capsys.readouterr().err


def test_a_decision_that_fits_nobody_is_loud_and_stays(
    save, solved, student, tmp_path, graded, capsys
):
    write_class(save, solved, student)
    place = tmp_path / "out" / "decisions.csv"
    place.parent.mkdir()
    place.write_text("student,exercise,points\nSomebody Else,mla-naive,1\n")
    assert run(tmp_path) == 1
    said = capsys.readouterr().out
    assert "decisions.csv, line 2: Somebody Else handed nothing in: decision NOT applied" in said
    assert "Somebody Else" not in table(tmp_path)
    assert "Somebody Else,mla-naive,1" in place.read_text("utf-8-sig")


def test_the_roster_is_read_before_anybody_is_graded(
    save, solved, student, tmp_path, graded, capsys
):
    write_class(save, solved, student)
    roster = tmp_path / "roster.csv"
    for more, why in (
        (["--roster", "no.csv"], "say which one's with --export"),
        (["--export", "csv", "--roster", "no.csv"], "no.csv"),
        (["--export", "csv", "--roster", str(roster)], "no column 'student'"),
        (["--export", "csv", "--out-of", "-5"], "must be more than 0"),
        (["--export", "csv", "--out-of", "0"], "must be more than 0"),
        (["--export", "csv", "--out-of", "nan"], "must be more than 0"),
    ):
        roster.write_text("name\nAda\n")
        assert run(tmp_path, *more) == 2
        assert why in capsys.readouterr().err
    assert graded() == []
    roster.write_text("student\nAda\nada\n=eve\n")
    assert run(tmp_path, "--export", "csv", "--roster", str(roster)) == 1
    assert "needs a human: ada fits line 2 of" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "out" / "csv.csv").open(encoding="utf-8-sig")))
    assert [r["total"] for r in rows] == ["", "", "0"]


def test_one_student_of_a_new_folder(save, solved, student, tmp_path, graded, capsys):
    write_class(save, solved, student)
    assert run(tmp_path, "--student", "ada") == 0
    said = capsys.readouterr().out
    assert "1 of 2 are not graded yet, and have no row in grades.csv" in said
    assert "need no grading again" not in said
    run(tmp_path)
    assert "1 of 2 need no grading again" in capsys.readouterr().out
    assert graded() == ["=eve", "ada"]


def test_what_the_command_refuses(save, solved, student, tmp_path, graded, capsys):
    write_class(save, solved, student)
    inside = str(tmp_path / "in" / "grades")
    assert cli.main(["grade", "03", str(tmp_path / "in"), "--out", inside]) == 2
    assert "outside the submissions" in capsys.readouterr().err
    assert cli.main(["grade", "99", str(tmp_path / "in"), "--out", str(tmp_path / "o")]) == 2
    assert "is no notebook; there are 00_start_here" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["grade", "03"])
    run(tmp_path)
    assert cli.main(["grade", "00", str(tmp_path / "in"), "--out", str(tmp_path / "out"),
                     "--no-sandbox"]) == 2  # fmt: skip
    assert "holds grades of 03_latent_attention" in capsys.readouterr().err


def test_no_isolation_no_grading(save, solved, student, tmp_path, graded, capsys, monkeypatch):
    sandbox = pytest.importorskip("minids3.isolation.sandbox")
    monkeypatch.setattr(sandbox, "missing", lambda: ["this kernel has no Landlock"])
    write_class(save, solved, student)
    out = str(tmp_path / "out")
    assert cli.main(["grade", "03", str(tmp_path / "in"), "--out", out]) == 2
    assert "no Landlock" in capsys.readouterr().err
    assert not os.path.exists(out)


def test_other_notebooks_exercises_are_no_reason_to_grade_again():
    names = ("00_start_here", "02_transformer_baseline", NAME)
    assert len({gradebook.grader_digest(n) for n in names}) == 3
    assert gradebook.grader_digest(NAME) == gradebook.grader_digest(NAME)


def test_file_names_differ_on_every_file_system():
    names = file_names(["Ada", "ada", "../../etc/passwd", "ä ö", "a" * 300, "", ".hidden", "ä_ö"])
    assert len({n.casefold() for n in names.values()}) == len(names)
    for name in names.values():
        assert "/" not in name
        assert not name.startswith(".")
        assert 0 < len(name) < 100


def test_self_tells_the_public_story(save, solved, student, tmp_path, capsys):
    assert cli.main(["grade", "--self", str(save(solved, "mine.ipynb"))]) == 0
    assert "public checks: 25 of 25 points" in capsys.readouterr().out
    wrong = next(c for c in student["cells"] if c.get("id") == "answer-mla-choose")
    wrong["source"] = "# EXERCISE mla-choose\ndef count_macs(*a):\n    return helper(a)\n"
    student["cells"].insert(2, {"cell_type": "code", "source": "def helper(a):\n    return 1, 2\n"})
    assert cli.main(["grade", "--self", str(save(student, "mine.ipynb"))]) == 1
    said = capsys.readouterr().out
    assert "mla-compress   not written yet" in said
    assert "no    naive, T = 1 on S = 1,000 at V3's sizes" in said
    assert "ok    runs on V3's sizes and returns two numbers" in said
    assert cli.main(["grade", "--self", str(save({"cells": []}, "other.ipynb"))]) == 2


@pytest.mark.slow
def test_real_grades_end_to_end(save, solved, student, tmp_path):
    sandbox = pytest.importorskip("minids3.isolation.sandbox")
    write_class(save, solved, student)
    trust = ["--no-sandbox"] if sandbox.missing() else []
    out = str(tmp_path / "out")
    cli.main(["grade", "03", str(tmp_path / "in"), "--out", out, "--jobs", "1", *trust])
    rows = table(tmp_path)
    assert rows["ada"]["total"] == rows["ada"]["max"] == "25"
    assert rows["'=eve"]["total"] == "0"
    assert rows["ada"]["needs a human"] == rows["'=eve"]["needs a human"] == ""
    page = (tmp_path / "out" / "feedback" / "ada.html").read_text()
    assert "Everything passed" in page
