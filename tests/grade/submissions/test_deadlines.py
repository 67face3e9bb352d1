"""A table of deadlines says what it was meant to say, or which line does not."""

import os
from datetime import datetime

import pytest

from minids3.grade.submissions.collect import Submission
from minids3.grade.submissions.deadlines import Deadlines


@pytest.fixture
def read(tmp_path):
    def write(*lines):
        path = tmp_path / "deadlines.csv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return Deadlines.read(path)

    return write


@pytest.fixture
def handed_in(tmp_path):
    def make(*whos):
        place = tmp_path / "x.ipynb"
        place.write_text("{}")
        when = datetime(2026, 10, 2, 12).timestamp()
        os.utime(place, (when, when))
        return [Submission(name, place, id=id) for name, id in whos]

    return make


HEAD = "student,deadline,submitted"


@pytest.mark.parametrize(
    ("text", "late"),
    [
        ("01.10.2026 23:59", "late by 12 hours 1 minute"),
        ("1.10.2026 9:00", "late by 1 day 3 hours"),
        ("02.10.2026", ""),
        ("01.10.2026 23:59:00", "late by 12 hours 1 minute"),
    ],
)
def test_days_as_excel_writes_them(read, handed_in, text, late):
    ada = handed_in(("Ada", ""))[0]
    assert read(text).late(ada) == late
    assert read(HEAD, f"*,{text},").late(ada) == late


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (["10/1/2026 23:59"], "write 2026-10-01 23:59 in a cell that is formatted as text"),
        (["31.13.2026 23:59"], "is no time"),
        ([HEAD, "*,2026-10-01 12:00,2026-10-01 13:00"], "line 2: 'submitted' is one student's"),
        ([HEAD, "Ada,2026-10-01 12:00,,see me"], "line 2: has 4 cells, and the header 3"),
        (
            ["student,deadline,Submitted", "Ada,2026-10-01,"],
            "column 'Submitted'; write 'submitted'",
        ),
    ],
)
def test_what_cannot_be_meant_so(read, lines, why):
    with pytest.raises(ValueError, match=why):
        read(*lines)


def test_separators_at_the_end_are_a_spreadsheet_s(read):
    assert read(HEAD, "Ada,2026-10-01 12:00,,,,").students.keys() == {"Ada"}


@pytest.mark.parametrize(
    "written", ["ada lovelace", "Lovelace Ada", '"Lovelace, Ada"', "0004801", "4801.0", "Kim"]
)
def test_whoever_is_written_a_little_otherwise_is_asked_for(read, handed_in, written):
    there = handed_in(("Ada Lovelace", "4801"), ("Kim (1)", ""), ("Kim (2)", ""))
    with pytest.raises(ValueError, match=r"line 3: nobody is called .*the extension is lost"):
        read(HEAD, "*,2026-10-01,", f"{written},2026-10-03,").unknown(there)


def test_another_number_is_another_student(read, handed_in):
    there = handed_in(("Ada Lovelace", "480123"))
    assert read(HEAD, "480124,2026-10-03,").unknown(there) == ["480124"]


def test_a_student_by_name_and_by_number(read, handed_in):
    there = handed_in(("Ada", "4801"), ("Kim", "4802"), ("Lou", "4802"))
    with pytest.raises(ValueError, match="line 3: '4801' stands in line 2 as 'Ada', too"):
        read(HEAD, "Ada,2026-10-01,", "4801,2026-10-03,").unknown(there)
    read(HEAD, "Ada,,2026-10-02 10:00", "4801,2026-10-03,").unknown(there)  # they say two things
    with pytest.raises(ValueError, match="line 2: '4802' fits Kim, Lou"):
        read(HEAD, "4802,2026-10-03,").unknown(there)
