"""What a person decided is read back, holds, and shows; what nobody decided is no number."""

import csv
import io

import pytest

from minids3.grade.judging.likeness import alike, normal
from minids3.grade.records import ExerciseResult, ItemResult, SubmissionResult
from minids3.grade.reports.decisions import Decisions
from minids3.grade.reports.export import export
from minids3.grade.reports.feedback import feedback
from minids3.grade.reports.gradebook import _table
from minids3.grade.reports.publish import write_pages
from minids3.grade.reports.summary import summary
from minids3.grade.reports.term import write_term
from minids3.grade.tables import safe

POINTS = {"a": 4.0, "b": 2.0}


class Notebook:
    ids = ("a", "b")


def result(student, *statuses, points=(4.0, 1.0), **more):
    made = []
    for id, status, p in zip(POINTS, statuses, points, strict=True):
        waits = status in ("forbidden", "needs a human", "grader error")
        notes = [f"because of {status}"] if waits else []
        items = [ItemResult("works", "ok")]
        value = 0.0 if waits else p
        made.append(
            ExerciseResult(id, f"Title {id}", value, POINTS[id], status, items, notes=notes)
        )
    path = more.pop("path", f"in/{student}.ipynb")
    return SubmissionResult(student, "03_x", path, made, **more).total()


def klass():
    return [
        result("Ada", "passed", "partial", id="11"),
        result("Eve (7)", "forbidden", "passed", id="12"),
        result("=1+1", "needs a human", "needs a human", id="13", path=""),
        result("Kurt", "passed", "passed", id="14", look=["two files are called Kurt"]),
    ]


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_the_undecided_is_an_empty_cell_and_a_row_for_somebody(tmp_path):
    rows = {r["student"]: r for r in rows_of(_table(klass(), Notebook))}
    assert (rows["Eve (7)"]["a"], rows["Eve (7)"]["b"], rows["Eve (7)"]["total"]) == ("", "1", "")
    assert (rows["'=1+1"]["a"], rows["'=1+1"]["total"]) == ("", "")
    assert rows["Ada"]["total"] == "5"
    place = tmp_path / "decisions.csv"
    assert Decisions.read(place, POINTS).write(klass()) == 4
    asked = rows_of(place.read_text(encoding="utf-8-sig"))
    assert [(r["student"], r["exercise"]) for r in asked] == [
        ("Eve (7)", "a"), ("'=1+1", "a"), ("'=1+1", "b"), ("Kurt", "*")]  # fmt: skip
    assert {r["points"] for r in asked} == {""}


def test_decisions_are_read_back_and_survive(tmp_path):
    place = tmp_path / "decisions.csv"
    Decisions.read(place, POINTS).write(klass())
    text = place.read_text(encoding="utf-8-sig")
    text = text.replace("Eve (7),a,,,,", 'Eve (7),a,"3,5",well argued,,')
    text = text.replace("'=1+1,a,,,,", "'=1+1,a,,ill,yes,").replace("'=1+1,b,,,,", "13,b,,,x,")
    text = text.replace("Kurt,*,,,,", "Kurt,*,,seen him,,") + "Ada,b,2,by hand,,\n"
    place.write_text(text)
    for _ in range(3):  # however often
        decisions = Decisions.read(place, POINTS)
        made = {r.student: decisions.apply(r) for r in klass()}
        assert decisions.unknown(made.values()) == []
        assert decisions.write(made.values()) == 0
    eve = made["Eve (7)"]
    assert [(e.status, e.points) for e in eve.exercises] == [("decided", 3.5), ("passed", 1.0)]
    assert (eve.points, eve.undecided, eve.needs_human) == (4.5, False, [])
    assert (made["=1+1"].excused, made["=1+1"].max_points) == (True, 0)
    assert (made["Kurt"].needs_human, made["Kurt"].comment) == ([], "seen him")
    assert made["Ada"].points == 6
    rows = {r["student"]: r for r in rows_of(_table(list(made.values()), Notebook))}
    assert (rows["Eve (7)"]["a"], rows["'=1+1"]["total"], rows["Ada"]["b"]) == ("3.5", "EX", "2")
    assert "well argued" in rows["Eve (7)"]["comment"]
    page = feedback(eve, "T")
    assert "well argued" in page
    assert "decided by a person" in page
    assert "excused" in summary(list(made.values()), "T", {})


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("Ada,c,1,,", "no exercise 'c'"),
        ("Ada,a,5,,", "has 0 to 4 points"),
        ("Ada,a,-1,,", "has 0 to 4 points"),
        ("Ada,a,nan,,", "has 0 to 4 points"),
        ("Ada,a,many,,", "are no points"),
        ("Ada,,3,,", "say which one"),
        ("Ada,a,3,,yes", "has no points"),
        (",a,3,,", "names no student"),
        ("Ada,a,3,,\nAda,a,2,,", "decided twice"),
    ],
)
def test_rows_that_cannot_be_meant(tmp_path, row, why):
    place = tmp_path / "decisions.csv"
    place.write_text(f"student,exercise,points,comment,excused\n{row}\n")
    with pytest.raises(ValueError, match=f"line [23].*{why}"):
        Decisions.read(place, POINTS)


def test_a_decision_for_a_misspelt_student_is_not_lost(tmp_path):
    place = tmp_path / "decisions.csv"
    place.write_text("student;exercise;points\nEve (8);a;3\nSomebody Else;a;3\n")
    decisions = Decisions.read(place, POINTS)
    with pytest.raises(ValueError, match="is it 'Eve"):
        decisions.unknown(klass())
    place.write_text("student;exercise;points\nSomebody Else;a;3\n")
    decisions = Decisions.read(place, POINTS)
    assert decisions.unknown(klass()) == ["Somebody Else"]
    decisions.write(klass())
    assert "Somebody Else;a;3" in place.read_text(encoding="utf-8-sig")  # kept, as it stood


def test_a_comment_alone_decides_nothing(tmp_path):
    place = tmp_path / "decisions.csv"
    place.write_text("student,exercise,points,comment\nEve (7),a,,come and see me\n")
    eve = Decisions.read(place, POINTS).apply(klass()[1])
    assert eve.undecided
    assert "come and see me" in feedback(eve, "T")


@pytest.mark.parametrize(
    "text",
    ["=1+1", "x;=1+1", "x\t=1+1", "x,@SUM(1)", "-2+3", "+1", "a\n=1", 'a"=1', "x; =1+1", "a|-1"],
)
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_no_text_is_a_formula_whatever_separates_cells(text, separator):
    for line in safe(text).splitlines():
        for cell in line.replace('"', separator).split(separator):
            assert cell.strip()[:1] not in tuple("=+-@")


def read(path, delimiter=","):
    raw = path.read_bytes()
    assert raw.startswith(b"\xef\xbb\xbf")
    return list(csv.reader(io.StringIO(raw.decode("utf-8-sig"))))


def decided():
    made = [result("Ólafur Jónsson", "passed", "partial", id="11"), *klass()[1:2]]
    return [*made, result("kimex", "excused", "excused", points=(0, 0), id="15")]


def test_canvas(tmp_path):
    roster = tmp_path / "canvas.csv"
    roster.write_text(
        "Student,ID,SIS User ID,SIS Login ID,Section,Old (9)\n"
        '    Points Possible,,,,,10\n"Jónsson, Ólafur",11,s-11,olafur,"A; =1",3\n'
        '"Example, Kim",15,s-15,kim,A,\n"Seven, Eve",12,s-12,eve,A,\n"Gone, Al",99,s-99,al,A,\n'
        '"Student, Test",100,,t,A,\n'
    )
    place = tmp_path / "out.csv"
    assert export("canvas", place, decided(), "Notebook 03 (77)", roster) == []
    rows = read(place)
    assert rows[0] == ["Student", "ID", "SIS User ID", "SIS Login ID", "Section",
                       "Notebook 03 (77)"]  # fmt: skip
    assert rows[1] == ["    Points Possible", "", "", "", "", "6"]
    assert rows[2] == ["Jónsson, Ólafur", "11", "s-11", "olafur", "A; '=1", "5"]
    assert [r[5] for r in rows[3:]] == ["EX", "", ""]  # excused, undecided, nothing handed in
    extra = [*decided(), result("Nobody", "passed", "passed")]
    assert export("canvas", place, extra, "T", roster) == ["Nobody"]


def test_moodle(tmp_path):
    roster = tmp_path / "moodle.csv"
    head = "Identifier,Full name,Email address,Status,Grade,Maximum grade,Feedback comments\n"
    line = "Participant {0},{1},x@example.org,Submitted,,{2},\n"
    people = [(11, "Ólafur Jónsson"), (12, "Eve Seven"), (15, "Kim Ex"), (16, "Al Gone")]
    roster.write_text(head + "".join(line.format(i, n, "6,00") .replace("6,00", '"6,00"')
                                     for i, n in people))  # fmt: skip
    place = tmp_path / "out.csv"
    made = decided()
    made[0].exercises[1].comment = "nearly"
    export("moodle", place, made, "T", roster)
    rows = read(place)
    assert rows[1] == ["Participant 11", "Ólafur Jónsson", "x@example.org", "Submitted", "5",
                       "6,00", "Title b: nearly"]  # fmt: skip
    assert [r[4] for r in rows[2:]] == ["", "", ""]
    roster.write_text(head + line.format(11, "Ólafur Jónsson", "100.00"))
    with pytest.raises(ValueError, match="add --out-of 100"):
        export("moodle", place, made, "T", roster)
    export("moodle", place, made, "T", roster, 100.0)
    assert read(place)[1][4] == "83.33"


def test_gradescope_and_plain(tmp_path):
    roster = tmp_path / "gs.csv"
    roster.write_text("First Name,Last Name,SID,Email,Role\nÓlafur,Jónsson,11,o@example.org,S\n")
    place = tmp_path / "out.csv"
    missing = export("gradescope", place, decided(), "T", roster)
    assert missing == ["Eve (7)", "kimex"]
    assert read(place)[1] == ["Ólafur", "Jónsson", "11", "o@example.org", "5", "6", "Graded", "4",
                              "1"]  # fmt: skip
    export("csv", place, klass(), "T")
    rows = read(place)
    assert rows[0][:5] == ["id", "student", "a", "b", "total"]
    assert rows[3][:5] == ["13", "'=1+1", "", "", ""]
    with pytest.raises(ValueError, match="no column 'Student'"):
        export("canvas", place, klass(), "T", roster)


def test_one_book_of_a_term(tmp_path):
    def folder(name, *results):
        data = {"notebook": name, "submissions": [r.to_dict() for r in results]}
        (tmp_path / name).mkdir()
        (tmp_path / name / "grades.json").write_text(__import__("json").dumps(data))
        return tmp_path / name

    one = folder("01_x", result("Ada", "passed", "partial", id="11"), klass()[1])
    two = folder("02_y", result("Ada L.", "passed", "passed", points=(4.0, 2.0), id="11"))
    waiting = write_term([two, one], tmp_path / "term.csv")
    assert read(tmp_path / "term.csv") == [
        ["id", "student", "01_x", "02_y", "total", "max"],
        ["11", "Ada L.", "5", "6", "11", "12"],
        ["12", "Eve (7)", "", "", "", "12"],
    ]
    assert waiting == ["Eve (7): 03_x"]
    with pytest.raises(ValueError, match="given already"):
        write_term([one, one], tmp_path / "term.csv")
    with pytest.raises(ValueError, match="holds no grades"):
        write_term([tmp_path], tmp_path / "term.csv")


LONG = """
def f(x, weight, eps=1e-6):
    # the mean square
    mean = x.float().pow(2).mean(-1, keepdim=True)
    out = x.float() * torch.rsqrt(mean + eps)
    return (out * weight).to(x.dtype)
"""


def test_answers_that_differ_in_names_alone():
    other = LONG.replace("mean =", "ms: float =").replace("mean +", "ms +").replace("out", "y")
    other = other.replace("# the mean square", '"""Mine."""')
    assert normal(LONG) == normal(other) != ""
    assert normal(LONG.replace("rsqrt", "sqrt")) != normal(LONG)
    assert normal("def f(x):\n    return x\n") == ""  # short, and right
    made = [result(n, "passed", "stub") for n in ("Ada", "Eve", "Kurt")]
    for r, code in zip(made, (LONG, other, LONG.replace("-1", "0")), strict=True):
        r.exercises[0].code = code
    assert alike(made) == [("a", ["Ada", "Eve"], False)]
    page = summary(made, "T", {}, [("x.pdf", "is no notebook")], alike(made))
    assert "this proves nothing" in page
    assert "is no notebook" in page
    assert "Eve" not in feedback(made[0], "T")


def test_one_page_that_fails_keeps_nobody_else_waiting(tmp_path):
    made = [result("Ada", "passed", "passed"), result("Eve", "passed", "passed")]
    made[0].exercises[0].code = None
    failed = write_pages(tmp_path, made, {"Ada": "ada", "Eve": "eve"}, "T")
    assert len(failed) == 1
    assert failed[0].startswith("Ada: no page")
    assert (tmp_path / "feedback" / "eve.html").exists()
    made[1].exercises[0].code = "half \ud83d an emoji"
    assert len(write_pages(tmp_path, made[1:], {"Eve": "eve"}, "T")) == 0
