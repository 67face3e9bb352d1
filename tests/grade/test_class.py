"""A class of sixty from the bundle to the platform's table, with a stand-in for the judging."""

import copy
import csv
import functools
import io
import json
import sys
import zipfile
from pathlib import Path

from minids3.course.registry import exercises
from minids3.grade import cli
from minids3.grade.process import pool
from minids3.grade.process.pool import Pool
from minids3.grade.reports import gradebook

NAME = "03_latent_attention"
FAKE = (sys.executable, str(Path(__file__).parent / "fake_job.py"))


def cell(book, id):
    return next(c for c in book["cells"] if c.get("id") == f"answer-{id}")


def hand_in(archive, solved, student):
    """Write the zip file of a Moodle course with sixty people in it; return what is odd."""
    text = copy.deepcopy(solved)
    cell(text, "mla-naive")["cell_type"] = "markdown"
    emoji = copy.deepcopy(solved)
    emoji["cells"].insert(1, {"cell_type": "code", "source": "# half \ud83d an emoji\n1 + 1"})
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as pack:
        pack.writestr(f"hw/{NAME}.ipynb", json.dumps(solved))
    odd = {
        3: ("Kim Example", "x.ipynb", solved), 4: ("Kim Example", "x.ipynb", student),
        5: ("Cut Off", "x.ipynb", json.dumps(solved)[:5000]),
        6: ("In Markdown", "x.ipynb", text), 7: ("Half Emoji", "x.ipynb", emoji),
        8: ("Zip Ped", "work.zip", inner.getvalue()),
        9: ("Tx T", "x.ipynb.txt", solved), 10: ("P Df", "essay.pdf", b"%PDF"),
        11: ("=1+1", "x.ipynb", student), 12: ("Wrong One", "x.ipynb", {"cells": []}),
    }  # fmt: skip
    with zipfile.ZipFile(archive, "w") as pack:
        for k in range(60):
            name, file, book = odd.get(k, (f"Student {k:02}", f"{NAME}.ipynb", solved))
            content = book if isinstance(book, str | bytes) else json.dumps(book)
            pack.writestr(f"{name}_{4700 + k}_assignsubmission_file/{file}", content)
            pack.writestr(f"{name}_{4700 + k}_assignsubmission_file/._{file}", b"\0")
        pack.writestr("syllabus.pdf", b"%PDF")


def test_sixty(solved, student, tmp_path, monkeypatch, capsys):
    log = tmp_path / "log"
    log.touch()
    monkeypatch.setenv("FAKE_LOG", str(log))
    monkeypatch.setattr(gradebook, "grader_digest", lambda name: "the same")
    assert cli.main(["release", "03", "--out", str(tmp_path / "bundle"), "--zip"]) == 0
    archive, out = tmp_path / "course.zip", tmp_path / "out"
    hand_in(archive, solved, student)
    command = ["grade", "03", str(archive), "--out", str(out), "--no-sandbox", "--jobs", "2"]

    class Stopped(Pool):
        def run(self, tasks, seconds=900.0):
            for number, done in enumerate(super().run(tasks, seconds)):
                if number == 20:
                    raise KeyboardInterrupt
                yield done

    monkeypatch.setattr(pool, "Pool", functools.partial(Stopped, command=FAKE))
    assert cli.main(command) == 130
    monkeypatch.setattr(pool, "Pool", functools.partial(Pool, command=FAKE))
    assert cli.main(command) == 1
    said = capsys.readouterr().out
    assert "20 of 57 need no grading again" in said
    assert "not taken: syllabus.pdf: is no notebook" in said
    graded = log.read_text().splitlines()
    assert len(set(graded)) == 57
    assert len(graded) <= 59  # what was under way when it was stopped

    def table():
        return {r["id"]: r for r in csv.DictReader((out / "grades.csv").open(encoding="utf-8"))}

    rows = table()
    assert len(rows) == 60
    assert [rows[str(4700 + k)]["total"] for k in (0, 3, 4, 7, 8, 9)] == ["6", "6", "0", *"666"]
    waiting = [id for id, r in rows.items() if r["total"] == ""]
    assert waiting == ["4705", "4710", "4712"]  # and the answer in markdown, which the stand-in
    assert rows["4705"]["mla-naive"] == ""  # takes for a missing one
    place = out / "decisions.csv"
    text = place.read_text(encoding="utf-8-sig")
    for id in (e.id for e in exercises(NAME)):
        text = text.replace(f"Cut Off,{id},,,,", f"Cut Off,{id},1,read by hand,,")
    text += "4710,*,,ill,yes,\n4712,*,,,yes,\nStudent 00,mla-naive,0,talked about it,,\n"
    place.write_text(text)
    roster = tmp_path / "worksheet.csv"
    head = "Identifier,Full name,Email address,Status,Grade,Maximum grade,Feedback comments\n"
    line = "Participant {0},Name {0},n{0}@example.org,Submitted,,25.00,\n"
    roster.write_text(head + "".join(line.format(4700 + k) for k in range(62)))
    more = ["--export", "moodle", "--roster", str(roster)]
    for _ in range(2):  # it stays decided
        log.write_text("")
        status = cli.main([*command, *more])
        assert log.read_text() == ""
        rows = table()
        assert [r["id"] for r in rows.values() if r["total"] == ""] == []
        assert rows["4705"]["total"] == "6"
        assert (rows["4700"]["total"], rows["4710"]["total"]) == ("5", "EX")
    assert status == 1  # the stray file is still there
    exported = list(csv.reader((out / "moodle.csv").open(encoding="utf-8-sig")))
    grades = {r[0]: r[4] for r in exported[1:]}
    assert len(grades) == 62
    assert [grades[f"Participant {n}"] for n in (4700, 4704, 4705, 4710, 4761)] == [
        "5", "0", "6", "", ""]  # fmt: skip
    assert "talked about it" in exported[1][6]
    page = (out / "feedback" / "Student_00-").parent.glob("Student_00*")
    assert "talked about it" in next(page).read_text(encoding="utf-8")
    log.write_text("")
    cli.main([*command, "--student", "4703", "--force"])
    assert log.read_text().splitlines() == ["Kim Example (4703)"]
    assert len(table()) == 60
    cli.main([*command[:5], "--no-sandbox", "--exercise", "mla-naive=10", "--student", "4703"])
    assert table()["4703"]["mla-naive"] != ""
    assert "mla-choose" not in table()["4703"]
