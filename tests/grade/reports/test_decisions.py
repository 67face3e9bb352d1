"""What a person decided is read back, holds, and shows; what nobody decided is no number."""

import csv
import io
import re

import pytest
from grade.reports.klass import POINTS, Notebook, klass, result

from minids3.grade.judging.likeness import alike, normal
from minids3.grade.reports.decisions import Decisions
from minids3.grade.reports.feedback import feedback
from minids3.grade.reports.gradebook import _table
from minids3.grade.reports.publish import write_pages
from minids3.grade.reports.summary import summary
from minids3.grade.tables import safe


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
        ("Ada,a,1_0,,", "are no points"),
        ("*,a,,,yes", "name the student"),
        # a comment with a comma, without quotation marks: it excused the student
        ("Ada,a,,Well done, but ask me about eps", "'excused' is yes or no, not 'but ask me"),
        ("Ada,a,,Well done, yes,", "has 6 cells, and the header 5.*quotation marks"),
        ("Ada,a,,Well done, but, ask me", "has 6 cells"),
        ('Ada,a,3,"Well done,,\nEve (7),a,1,,', 'a " in a text is written twice'),
        *((f"Ada,a,,,{word}", "'excused' is yes or no") for word in ("-", "?", "later", "maybe")),
    ],
)
def test_rows_that_cannot_be_meant(tmp_path, row, why):
    place = tmp_path / "decisions.csv"
    place.write_text(f"student,exercise,points,comment,excused\n{row}\n")
    with pytest.raises(ValueError, match=f"line [23].*{why}"):
        Decisions.read(place, POINTS)


@pytest.mark.parametrize(
    ("word", "excused"),
    [
        *((word, True) for word in ("yes", "X", "1", "TRUE", "WAHR", "VRAI", "Sí", "EX")),
        *((word, False) for word in ("no", "0", "FALSE", "FALSCH", "FAUX", "FALSO", "ONWAAR")),
    ],
)
def test_excused_is_said_in_the_words_of_spreadsheets(tmp_path, word, excused):
    place = tmp_path / "decisions.csv"
    place.write_text(f"student;exercise;points;comment;excused\nAda;a;;hello;{word}\n", "utf-8")
    ada = Decisions.read(place, POINTS).apply(klass()[0])
    assert (ada.exercises[0].status == "excused") == excused
    assert ada.exercises[0].comment == "hello"


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ("student,exercise,points,Comment", "a column 'Comment'; write 'comment'"),
        ("student,exercise,points,comments", "a column 'comments'; write 'comment'"),
        ("student,exercise,points,Excused", "a column 'Excused'; write 'excused'"),
        ("student,exercise,points,comment,comment", "two columns 'comment'"),
    ],
)
def test_a_column_that_would_be_lost_is_refused(tmp_path, header, why):
    place = tmp_path / "decisions.csv"
    place.write_text(f"{header}\nAda,a,,x\n")
    with pytest.raises(ValueError, match=why):
        Decisions.read(place, POINTS)
    place.write_text("student,exercise,points,student id,seen by\nAda,a,1,s-1,me\n")
    assert Decisions.read(place, POINTS).rows[0]["seen by"] == "me"  # one's own may stand there


def read_decisions(tmp_path, *rows):
    place = tmp_path / "decisions.csv"
    lines = ["student,exercise,points,comment,excused", *rows]
    place.write_text("\n".join(lines) + "\n", "utf-8")
    return Decisions.read(place, POINTS)


@pytest.mark.parametrize(
    ("written", "student"),
    [
        ("ADA LOVELACE", "Ada Lovelace"), ("ada lovelace", "Ada Lovelace"),
        ("Lovelace Ada", "Ada Lovelace"), ('"Lovelace, Ada"', "Ada Lovelace"),
        ("Ada Lovelase", "Ada Lovelace"), ("12345", "0012345"), ("12345.0", "0012345"),
        ("2.0231E+11", "202310011234"), ("2,0231E+11", "202310011234"), ("11", "011"),
        ("Kim Example", "Kim Example (4711)"),
    ],
)  # fmt: skip
def test_whoever_is_written_a_little_otherwise_is_asked_for(tmp_path, written, student):
    written = f'"{written}"' if "," in written and '"' not in written else written
    decisions = read_decisions(tmp_path, f"{written},a,3,,")
    with pytest.raises(
        ValueError, match=f"line 2: nobody is called .*; is it '.*{re.escape(student[-5:])}"
    ):
        decisions.unknown([result(student, "passed", "passed")])


@pytest.mark.parametrize("written", ["12346", "112345", "2.0232E+11", "Somebody Else", "Ida"])
def test_somebody_else_is_somebody_else(tmp_path, written):
    there = [result(n, "passed", "passed") for n in ("0012345", "202310011234", "Ada Lovelace")]
    assert read_decisions(tmp_path, f"{written},a,3,,").unknown(there) == [written]


def test_one_student_by_name_and_by_number_is_decided_twice(tmp_path):
    ada = result("Ada", "passed", "passed", id="11")
    with pytest.raises(ValueError, match="line 3: Ada, a is decided twice, as Ada and as 11"):
        read_decisions(tmp_path, "Ada,a,3,,", "11,a,2,,").unknown([ada])
    assert read_decisions(tmp_path, "Ada,a,3,,", "11,b,2,,").unknown([ada]) == []


def test_a_number_of_two_is_for_a_human(tmp_path):
    both = [result(n, "passed", "passed", id="11") for n in ("Kim", "Lou")]
    with pytest.raises(ValueError, match="line 2: '11' fits Kim, Lou; write one of these"):
        read_decisions(tmp_path, "11,a,3,,").unknown(both)


@pytest.mark.parametrize(
    ("rows", "settled"),
    [
        (["Kurt,*,,ill,yes"], True),
        (["Kurt,*,,ill,yes", "Kurt,a,3,oral exam,"], True),
        (["Kurt,*,,by hand,", "Kurt,a,3,,", "Kurt,b,,,yes"], True),
        (["Kurt,a,3,,", "Kurt,b,2,,"], False),
        (["Kurt,*,,seen him,"], False),
        (["Kurt,*,,ill,yes", "Kurt,a,,,no"], False),
    ],
)
def test_who_handed_nothing_in_may_be_decided_on(tmp_path, rows, settled):
    assert read_decisions(tmp_path, *rows).settles("Kurt", ["a", "b"]) == settled


def test_the_whole_is_excused_whatever_comments_an_exercise_has(tmp_path):
    decisions = read_decisions(tmp_path, "Kurt,*,,ill,yes", "Kurt,a,,nice,")
    kurt = decisions.apply(klass()[3])
    assert kurt.excused
    assert [kurt.comment, *(e.comment for e in kurt.exercises)] == ["ill", "nice", ""]
    page = feedback(kurt, "T")
    assert "has excused you from this notebook" in page
    assert "0 of 2 exercises" not in page


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
