"""One table over a term: one row a person, and what cannot be told apart waits for a human."""

import pytest
from grade.reports.klass import graded, klass, read, result

from minids3.grade.reports.roster import Roster
from minids3.grade.reports.term import write_term


def test_one_book_of_a_term(tmp_path):
    one = graded(tmp_path / "1", "01_x", result("Ada", "passed", "partial", id="11"), klass()[1])
    two = graded(
        tmp_path / "2", "02_y", result("Ada L.", "passed", "passed", points=(4.0, 2.0), id="11")
    )
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


def one(name, id="", platform="", *statuses, **more):
    statuses = statuses or ("passed", "passed")
    points = (0, 0) if "excused" in statuses else (4.0, 2.0)
    made = result(name, *statuses, points=points, id=id, platform=platform, **more)
    for e in made.exercises:
        e.max_points = 0.0 if e.status == "excused" else e.max_points
    return made.total()


@pytest.fixture
def term(tmp_path):
    """Write the table of some notebooks' results; return its rows, and what waits."""

    def write(*notebooks, rosters=(), kind="moodle"):
        folders = [
            graded(tmp_path / f"{len(notebooks)}{k}", f"0{k}_x", *r)
            for k, r in enumerate(notebooks)
        ]
        tables = []
        for k, text in enumerate(rosters):
            (tmp_path / f"{k}.csv").write_text(text, encoding="utf-8")
            tables.append(Roster.read(kind, tmp_path / f"{k}.csv"))
        waiting = write_term(folders, tmp_path / "term.csv", tables)
        return read(tmp_path / "term.csv")[1:], waiting

    return write


def test_moodle_s_number_is_an_assignment_s(term):
    rows, waiting = term(
        [one("Kim Example", "4711", "moodle"), one("Ada", "4712", "moodle")],
        [one("Kim Example", "5822", "moodle")],
    )
    assert rows == [["", "Ada", "6", "", "6", "12"], ["", "Kim Example", "6", "6", "12", "12"]]
    assert waiting == []


@pytest.mark.parametrize("platform", ["canvas", "brightspace", "blackboard"])
def test_where_the_number_is_the_user_s_it_joins_and_parts(term, platform):
    rows, waiting = term(
        [one("Kim (1)", "1", platform), one("Kim (2)", "2", platform)], [one("Kim", "2", platform)]
    )
    assert [r[2:4] for r in rows] == [["6", ""], ["6", "6"]]
    assert waiting == []


def test_moodle_s_namesakes_are_for_a_human(term):
    two = [one("Kim (1)", "1", "moodle"), one("Kim (2)", "2", "moodle"), one("Ada", "3", "moodle")]
    rows, waiting = term(two, [one("Kim", "8", "moodle"), one("Ada", "9", "moodle")])
    assert [r[1:4] for r in rows] == [["Ada", "6", "6"], ["Kim", "", "6"], ["Kim (1)", "6", ""],
                                      ["Kim (2)", "6", ""]]  # fmt: skip
    assert len(waiting) == 1
    assert "3 rows of one name" in waiting[0]


def test_numbers_of_nobody_knows_what_are_asked_about(term):
    """As grades that an older minids3 wrote, which did not keep the platform."""
    rows, waiting = term([one("Kim", "4711")], [one("Kim", "5822")])
    assert len(rows) == 2
    assert "2 rows of one name" in waiting[0]
    both = [one("Kim (1)", "1"), one("Kim (2)", "2")]
    assert both[0].platform == ""


def test_who_is_excused_by_name_joins_the_one_of_that_name(term):
    kurt = one("Kurt Kurt", "", "", "excused", "excused", path="")
    rows, waiting = term([one("kurtkurt", "4999", "canvas")], [kurt, one("Ada", "1", "canvas")])
    assert rows == [["1", "Ada", "", "6", "6", "12"], ["4999", "kurtkurt", "6", "EX", "6", "6"]]
    assert waiting == []


@pytest.mark.parametrize(
    ("name", "platform"), [("Participant {}", "moodle"), ("anon_a{}", "canvas")]
)
def test_a_blind_class_cannot_be_joined_and_that_is_said(term, name, platform):
    def anyone(id):
        return one(name.format(id), id if platform == "moodle" else f"a{id}", platform)

    rows, waiting = term([anyone("1101")], [anyone("2202")])
    assert len(rows) == 2
    assert ["of a blind class" in line for line in waiting] == [True, True]
    assert term([anyone("1101")])[1] == []


SHEET = "Identifier,Full name,Email address,Status,Grade,Maximum grade\n"


def test_with_moodle_s_worksheets_everybody_is_told_apart(term):
    def sheet(start):
        return SHEET + "".join(
            f"Participant {start + k},Kim Example,kim{k}@x.edu,s,,6.00\n" for k in (1, 2)
        )

    def kims(start):
        return [one(f"Kim Example ({start + k})", str(start + k), "moodle") for k in (1, 2)]

    only = one("Kim Example", "802", "moodle")
    rows, waiting = term(kims(10), [only], rosters=[sheet(10), sheet(800)])
    assert rows == [["kim1@x.edu", "Kim Example", "6", "", "6", "12"],
                    ["kim2@x.edu", "Kim Example", "6", "6", "12", "12"]]  # fmt: skip
    assert waiting == []


def test_with_one_worksheet_the_other_assignments_go_by_name(term):
    sheet = SHEET + "Participant 1,Ada,ada@x.edu,s,,6.00\nParticipant 2,Al,al@x.edu,s,,6.00\n"
    rows, waiting = term([one("Ada", "1", "moodle")],
                         [one("Ada", "77", "moodle"), one("Eve", "78", "moodle")],
                         rosters=[sheet])  # fmt: skip
    assert [r[:4] for r in rows] == [["ada@x.edu", "Ada", "6", "6"], ["al@x.edu", "Al", "", ""],
                                     ["", "Eve", "", "6"]]  # fmt: skip
    assert waiting == ["01_x: Eve: not in the roster"]


def test_a_canvas_gradebook_as_roster(term):
    roster = 'Student,ID\n"Lovelace, Ada",1\n"Kurt, Kurt",4999\n'
    rows, waiting = term([one("lovelaceada", "1", "canvas")], [one("4999", "4999", "canvas")],
                         rosters=[roster], kind="canvas")  # fmt: skip
    assert [r[:4] for r in rows] == [["4999", "Kurt, Kurt", "", "6"],
                                     ["1", "Lovelace, Ada", "6", ""]]  # fmt: skip
    assert waiting == []
