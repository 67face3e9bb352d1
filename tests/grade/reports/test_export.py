"""Grades as platforms read them: everybody gets the own grade, or none, and a human hears of it."""

import pytest
from grade.reports.klass import klass, read, result

from minids3.grade.reports.export import export
from minids3.grade.reports.roster import Roster

MOODLE = "Identifier,Full name,Email address,Status,Grade,Maximum grade,Feedback comments\n"
CANVAS = "Student,ID,SIS User ID,SIS Login ID,Section\n"


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


@pytest.fixture
def exported(tmp_path):
    """Export results by a roster; return the file's rows below its header, and what is missing."""

    def write(kind, roster, *results, out_of=None, grade_column=""):
        place = tmp_path / "roster.csv"
        place.write_text(roster, encoding="utf-8")
        table = Roster.read(kind, place, grade_column)
        missing = export(kind, tmp_path / "out.csv", results, "T", table, out_of)
        return read(tmp_path / "out.csv")[1:], missing

    return write


def kim(id="", platform="", name="Kim Example", **more):
    return result(name, "passed", "passed", points=(4.0, 2.0), id=id, platform=platform, **more)


# who is who ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("others", [["Participant 4711"], []])
def test_a_namesake_who_handed_nothing_in_gets_nobody_s_grade(exported, others):
    """With the whole class in the roster, and with a group's roster that lacks the other one."""
    names = [*others, "Participant 4712"]
    roster = MOODLE + "".join(f"{n},Kim Example,{n[-4:]}@x.edu,,,6.00,\n" for n in names)
    roster += "Participant 4801,Ada Lovelace,ada@x.edu,,,6.00,\n"
    ada = result("Ada Lovelace", "passed", "passed", id="4801", platform="moodle")
    rows, missing = exported("moodle", roster, kim("4711", "moodle"), ada)
    grades = {r[0]: r[4] for r in rows}
    own = {"Participant 4711": "6"} if others else {}
    assert grades == {**own, "Participant 4712": "", "Participant 4801": "5"}
    assert (missing, missing.unsure) == ([] if others else ["Kim Example"], [])


def test_no_number_of_a_class_in_its_platform_s_roster_is_no_reason_to_go_by_names(exported):
    roster = MOODLE + "Participant 4712,Kim Example,k@x.edu,,,6.00,\n"
    rows, missing = exported("moodle", roster, kim("4711", "moodle"))
    assert (rows[0][4], missing) == ("", ["Kim Example"])


TWO = '"Example, Kim",1,,kim1,A\n"Example, Kim",2,,kim2,A\n"Lovelace, Ada",3,,ada,A\n'


def test_namesakes_are_for_a_human_and_stop_nobody_else(exported):
    rows, missing = exported("canvas", CANVAS + TWO, kim(), kim(name="ada", id="3"))
    assert [r[5] for r in rows] == ["6", "", "", "6"]
    assert missing == []
    assert "Kim Example fits line 2 of" in missing.unsure[0]
    assert "line 3 of" in missing.unsure[0]
    assert "enter it by hand" in missing.unsure[0]


def test_two_results_for_one_person_are_for_a_human(exported):
    rows, missing = exported("csv", "student\nKim Example\nAda\n", kim(), kim(name="Example, Kim"),
                             kim(name="Ada"))  # fmt: skip
    assert [r[4] for r in rows] == ["", "6"]
    assert [("and so does" in line) for line in missing.unsure] == [True, True]


@pytest.mark.parametrize(
    ("r", "grades"),
    [
        (kim("2", "canvas"), ["", "6", ""]),  # the number decides
        (kim("2"), ["", "6", ""]),
        (kim("0002"), ["", "6", ""]),
        (kim("2", "moodle"), ["", "", ""]),  # another platform's number, and two of that name
        (kim("1", "moodle", "Ada Lovelace"), ["", "", "6"]),
        (kim("777", "", "lovelaceada"), ["", "", "6"]),  # no number of the roster's kind
        (kim("777", "canvas", "lovelaceada"), ["", "", ""]),
        (kim("kim2", "blackboard", "kim2"), ["", "6", ""]),  # by the name to log in with
    ],
)
def test_a_number_counts_where_it_was_given(exported, r, grades):
    rows, _ = exported("canvas", CANVAS + TWO, r)
    assert [row[5] for row in rows[1:]] == grades


def test_numbers_as_a_spreadsheet_leaves_them(exported):
    rows, _ = exported("canvas", CANVAS + "Bobby,4802.0,,b,A\n", kim("4802", "canvas"))
    assert rows[1][5] == "6"
    with pytest.raises(
        ValueError, match=r"line 2: a spreadsheet has shortened the number 2.02E\+11"
    ):
        exported("canvas", CANVAS + "Bobby,2.02E+11,,b,A\n", kim())
    with pytest.raises(ValueError, match=r"line 2: has 6 cells.*quotation marks"):
        exported("canvas", CANVAS + "Lovelace, Ada,3,,ada,A\n", kim())


def test_rows_that_are_no_students_are_left_out(exported):
    more = "    Points Possible,,,,6\n,,,,Manual Posting\n"
    rows, _ = exported("canvas", CANVAS + more + TWO, kim("1"))
    assert len(rows) == 4
    roster = "Name,SID,Email,Role\nKim Example,1,k@x,Student\nProf X,2,p@x,Instructor\n"
    assert len(exported("gradescope", roster, kim("1"))[0]) == 1


# excused ------------------------------------------------------------------------------------------


def partly(name, *statuses, **more):
    made = result(name, *statuses, points=(4.0, 2.0), **more)
    for e in made.exercises:
        if e.status == "excused":
            e.points = e.max_points = 0.0
    return made.total()


@pytest.mark.parametrize(("out_of", "most"), [(None, "6"), (100.0, "100")])
@pytest.mark.parametrize("everybody_is", [False, True])
@pytest.mark.parametrize("kind", ["canvas", "moodle", "gradescope", "csv"])
def test_an_excused_exercise_costs_nothing(tmp_path, kind, everybody_is, out_of, most):
    made = [partly("Ada", "excused", "passed", id="1")]
    made.append(partly("Eve", "passed", "excused" if everybody_is else "passed", id="2"))
    export(kind, tmp_path / "out.csv", made, "T", None, out_of)
    rows = read(tmp_path / "out.csv")
    column = {"canvas": 5, "moodle": 4, "gradescope": 4, "csv": 4}[kind]
    assert [r[column] for r in rows[-2:]] == [most, most]


@pytest.mark.parametrize("path", ["in/x.ipynb", ""])
def test_excused_is_said_as_each_platform_says_it(tmp_path, path):
    kurt = partly("Kurt", "excused", "excused", id="1", path=path, comment="ill that week")
    made = [kurt, kim("2")]
    place = tmp_path / "out.csv"
    export("canvas", place, made, "T")
    assert [r[5] for r in read(place)[1:]] == ["6", "EX", "6"]
    export("moodle", place, made, "T")  # which would refuse "EX"
    assert read(place)[1][4:] == ["", "6", "Excused. ill that week"]
    export("gradescope", place, made, "T")
    assert read(place)[1][4:] == ["EX", "6", "Excused", "EX", "EX"]
    roster = tmp_path / "roster.csv"
    roster.write_text("student\nAda\n")
    assert export("csv", place, made, "T", roster) == ["Kurt", "Kim Example"]


# moodle's columns ---------------------------------------------------------------------------------

HEADS = [
    "Identifiant,Nom complet,Adresse de courriel,Statut,Note,Note maximale,Note modifiable,"
    "Feedback par commentaires",
    "Identificador,Nome completo,E-mail,Status,Nota,Nota máxima,Alterável,Comentários de feedback",
    "Identificatie,Volledige naam,E-mailadres,Status,Cijfer,Maximumcijfer,Aanpasbaar,Feedback",
    "Identyfikator,Pełna nazwa,Adres e-mail,Status,Ocena,Maksymalna ocena,Zmienna,Feedback",
    "Tunniste,Nimi,Sähköposti,Tila,Xyz,Abc,Muutettavissa,Feedback",  # words that nobody knows
]


@pytest.mark.parametrize("head", HEADS)
def test_moodle_s_columns_in_any_language(exported, head):
    one = kim("1", "moodle", comment="hello")
    roster = f"{head}\nParticipant 1,Kim Example,k@x,s,,{{}},-,\nParticipant 2,Al,a@x,s,,{{}},-,\n"
    with pytest.raises(ValueError, match="add --out-of 100"):
        exported("moodle", roster.format(*["100.00"] * 2), one)
    rows, missing = exported("moodle", roster.format(*['"6,00"'] * 2), one)
    assert rows[0] == ["Participant 1", "Kim Example", "k@x", "s", "6", "6,00", "-", "hello"]
    assert missing.notes == []


def test_moodle_s_column_may_be_named_and_what_is_not_checked_is_said(exported):
    roster = "Nro,Nimi,Xyz\nParticipant 1,Kim Example,\n"
    with pytest.raises(ValueError, match="with --grade-column: Nro, Nimi, Xyz"):
        exported("moodle", roster, kim("1"))
    rows, missing = exported("moodle", roster, kim("1", comment="hello"), grade_column="Xyz")
    assert rows == [["Participant 1", "Kim Example", "6"]]
    assert "names no maximum grade" in missing.notes[0]
    assert "has no column for comments" in missing.notes[1]
    with pytest.raises(ValueError, match="no column 'Abc'"):
        exported("moodle", roster, kim("1"), grade_column="Abc")


def test_columns_of_results_that_lack_an_exercise(tmp_path):
    short = kim(name="Ada")
    short.exercises = short.exercises[1:]
    export("csv", tmp_path / "out.csv", [short.total(), kim()], "T")
    rows = read(tmp_path / "out.csv")
    assert sorted(rows[0][2:4]) == ["a", "b"]
    assert [r[rows[0].index("b")] for r in rows[1:]] == ["2", "2"]
    assert [r[rows[0].index("a")] for r in rows[1:]] == ["", "4"]
