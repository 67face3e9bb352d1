"""Whose work a file is, when there is more in the folder than one notebook a student."""

import json
import os
import zipfile

import pytest

from minids3.course.repository import root
from minids3.grade.submissions import choose
from minids3.grade.submissions.collect import collect
from minids3.grade.submissions.identity import sent

NAME = "00_start_here"
FOLDER = root() / "notebooks"
SOLVED = (FOLDER / "solutions" / f"{NAME}.ipynb").read_bytes()
STUB = (FOLDER / f"{NAME}.ipynb").read_bytes()
FILE = f"{NAME}.ipynb"


def answered(body):
    """Return the student's notebook with an answer that has this body."""
    made = json.loads(STUB)
    cell = next(c for c in made["cells"] if c.get("id") == "answer-rms-norm")
    cell["source"] = f"# EXERCISE rms-norm\ndef rms_norm(x, weight, eps=1e-6):\n    {body}\n"
    return json.dumps(made).encode()


ONE, TWO = answered("return x"), answered("return 2 * x")


@pytest.fixture
def put(tmp_path):
    def write(*parts, content=ONE):
        path = tmp_path.joinpath("in", *parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    return write


@pytest.fixture
def found(tmp_path):
    def collected(names=(("rms-norm", "rms_norm"),)):
        return collect(tmp_path / "in", NAME, ["rms-norm"], dict(names), tmp_path / "unpacked")

    return collected


def zipped(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as pack:
        for name, content in members.items():
            pack.writestr(name, content)


# the workbook's own solutions ---------------------------------------------------------------------

REPOSITORY = ("minids3", "notebooks")


@pytest.mark.parametrize("own", [STUB, ONE], ids=["untouched", "answered"])
@pytest.mark.parametrize("change", ["none", "line ends", "run again", "another answer"])
def test_a_whole_repository_is_not_graded_by_its_solutions(put, found, own, change):
    solved = {
        "none": SOLVED,
        "line ends": SOLVED.replace(b"\n", b"\r\n"),
        "run again": json.dumps(json.loads(SOLVED)).encode(),
        "another answer": TWO,  # an older repository's
    }[change]
    mine = put("ada", *REPOSITORY, FILE, content=own)
    put("ada", *REPOSITORY, "solutions", FILE, content=solved)
    s = found()[0]
    assert s.path == mine
    assert "solutions" in s.problems[0]
    assert bool(s.look) == (change == "another answer")


def test_beside_others_the_solved_file_is_not_taken_under_any_name(put, found):
    mine = put("ada", "homework.ipynb", content=STUB)
    put("ada", FILE, content=SOLVED)
    s = found()[0]
    assert s.path == mine
    assert s.problems == [f"did not take {FILE}, the workbook's own solved version"]


@pytest.mark.parametrize("place", [("ada.ipynb",), ("ada", "solutions", FILE), ("ada", "x", FILE)])
def test_the_solved_version_alone_is_for_a_human(put, found, place):
    path = put(*place, content=SOLVED)
    s = found()[0]
    assert s.path == path
    assert "the workbook's own solved version" in s.look[0]


def test_beside_a_broken_notebook_the_solved_version_is_not_graded(put, found):
    put("ada", FILE, content=ONE[:500])
    put("ada", "solutions", FILE, content=SOLVED)
    s = found()[0]
    assert (s.path, s.unreadable) == (None, True)
    assert "cut off" in s.problems[0]
    assert "own solved version" in s.problems[1]


def test_whoever_writes_just_the_worked_answer_is_not_asked(put, found):
    path = put("ada", FILE, content=json.dumps(json.loads(SOLVED)).encode())
    put("ada", "solutions of my own", "other.ipynb", content=STUB)
    s = found()[0]
    assert s.path == path
    assert s.look == []


def test_where_no_repository_is_the_folder_tells(put, found, monkeypatch):
    def nowhere():
        raise FileNotFoundError

    monkeypatch.setattr(choose, "root", nowhere)
    choose._solved.cache_clear()
    mine = put("ada", *REPOSITORY, FILE, content=STUB)
    put("ada", *REPOSITORY, "solutions", FILE, content=SOLVED)
    s = found()[0]
    choose._solved.cache_clear()
    assert s.path == mine
    assert "has other answers" in s.look[0]


# several notebooks --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("places", "asked"),
    [
        ([("ada", FILE), ("ada", f"{NAME} (1).ipynb")], False),
        ([("ada", FILE), ("ada", f"{NAME}_FINAL.ipynb")], False),
        ([("ada", FILE), ("ada", "Untitled.ipynb")], False),
        ([("ada", "work_v1.ipynb"), ("ada", "work_v2.ipynb")], False),
        ([("ada", "hw.zip", FILE), ("ada", "hw (1).zip", FILE)], False),
        ([("lovelaceada_123_45678_hw.ipynb",), ("lovelaceada_123_45679_hw-1.ipynb",)], False),
        ([("group A", "ada.ipynb"), ("group A", "eve.ipynb")], True),
        ([("group A", "student1.ipynb"), ("group A", "student2.ipynb")], True),
        ([("week 3", "ada", FILE), ("week 3", "eve", FILE)], True),
        ([("week 3", "1", FILE), ("week 3", "2", FILE)], True),
    ],
)
@pytest.mark.parametrize("apart", [True, False], ids=["in time", "at once"])
def test_other_answers_are_asked_about_unless_a_later_copy_has_them(
    put, found, places, asked, apart
):
    for k, (place, content) in enumerate(zip(places, (ONE, TWO), strict=True)):
        when = 1_790_000_000 + k * (3600 if apart else 1)
        os.utime(put(*place, content=content), (when, when))
    put("kurt.ipynb")
    s = next(s for s in found() if s.student != "kurt")
    assert s.path is not None
    assert s.problems[0].startswith("took ")
    named = {"Untitled.ipynb"} & {p[-1] for p in places}  # the other one's name tells
    assert bool(s.look) == (asked or (not apart and not named))


@pytest.mark.parametrize("where", [(), (".ipynb_checkpoints",)])
def test_a_checkpoint_loses_against_its_notebook_however_new_it_is(put, found, where):
    mine = put("tom", FILE)
    newer = put("tom", *where, CHECKPOINT, content=TWO)
    os.utime(newer, (4e9, 4e9))
    s = found()[0]
    assert s.path == mine
    assert s.look == []
    mine.write_bytes(STUB)
    s = found()[0]
    assert s.look


def test_the_feedback_says_why_a_notebook_was_taken(put, found):
    mine = put("ada", FILE)
    for name, content, why in (
        ("x.ipynb", STUB, "answers most"),
        ("y.ipynb", ONE, "has the notebook's name"),
        (f"a-{FILE}", ONE, "is the newest"),
    ):
        other = put("ada", name, content=content)
        os.utime(other, (1, 1))
        s = found()[0]
        assert s.path == mine
        assert f"took {FILE}, which {why}; not {name}" in s.problems[0]
        assert s.look == []


def test_two_halves_of_a_notebook_are_for_a_human(put, tmp_path):
    halves = []
    for id, name in (("rms-norm", "f"), ("other", "g")):
        cell = {"cell_type": "code", "metadata": {}, "id": f"answer-{id}"}
        cells = [{**cell, "source": f"def {name}(x):\n    return x"}]
        halves.append(json.dumps({"cells": cells}).encode())
    put("ada", "hw_v1.ipynb", content=halves[0])
    put("ada", "hw_v2.ipynb", content=halves[1])
    s = collect(tmp_path / "in", NAME, ["rms-norm", "other"])[0]
    assert "has other answers" in s.look[0]


@pytest.mark.parametrize(
    "body", ["return x\n    raise NotImplementedError", "# raise NotImplementedError\n    return x"]
)
def test_a_raise_that_is_never_reached_leaves_an_answer(put, found, body):
    put("ada", FILE, content=STUB)
    mine = put("ada", "my homework.ipynb", content=answered(body))
    assert found()[0].path == mine
    assert found(names=())[0].path == mine


@pytest.mark.parametrize(
    "body",
    ["(" * 5000, "x = a" + ".b" * 9000, "x = a" + ".b" * 900, "-" * 15000 + "1", "return '\\d'"],
    ids=range(5),
)
@pytest.mark.filterwarnings("error")
def test_an_answer_built_to_break_the_reader_is_still_one(put, found, body):
    put("ada", FILE, content=STUB)
    mine = put("ada", "x.ipynb", content=answered(body))
    assert found()[0].path == mine


# folders around a class ---------------------------------------------------------------------------

MOODLE = [f"Kim {k}_471{k}_assignsubmission_file_" for k in range(3)]
SAKAI = ["Lovelace, Ada(ada)", "Turing, Alan(alan)"]
GRADESCOPE = ["submission_111221", "submission_111222"]


@pytest.mark.parametrize("around", [(), ("Course-Week 3-99",), ("my downloads", "Week 3")])
@pytest.mark.parametrize("people", [MOODLE, SAKAI, GRADESCOPE, MOODLE[:1]])
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_folders_around_a_class_are_taken_off(put, found, tmp_path, people, around, packed):
    if packed:
        members = {"/".join((*around, p, "hw", FILE)): ONE for p in people}
        zipped(tmp_path / "in" / "download.zip", members | {"__MACOSX/._x": b"\0"})
    else:
        for p in people:
            put(*around, p, "hw", FILE)
        put(*around, "grades.csv", content=b"x")
    got = found()
    assert sorted(s.entry for s in got) == sorted(people)
    assert all(s.path is not None and not s.look for s in got)


def test_groups_of_a_class_are_no_students(put, found):
    for group, people in (("Group A", MOODLE[:2]), ("Group B", MOODLE[2:])):
        for p in people:
            put(group, p, FILE)
    put("Nobody_4719_assignsubmission_file_", FILE)
    assert [s.id for s in found()] == ["4710", "4711", "4712", "4719"]


def test_a_student_s_own_folder_stays_one(put, found):
    put("ada", "run_100_1000_steps.json", content=b"{}")
    put("ada", "run_200_1000_steps.json", content=b"{}")
    put("ada", "lovelaceada_123_45678_hw.ipynb")
    put("eve", "submission_1", FILE)
    put("eve", "2026-10 - Week 3 - mine", "notes.ipynb", content=STUB)
    assert [s.student for s in found()] == ["ada", "eve"]


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_a_folder_around_people_whom_no_platform_named_is_for_a_human(put, found, tmp_path, packed):
    if packed:
        zipped(tmp_path / "in" / "a.zip", {f"{n}/{FILE}": ONE for n in ("ada", "eve")})
    else:
        for name in ("ada", "eve"):
            put("submitted", name, FILE)
    assert "notebooks lie in 2 folders (ada, eve)" in found()[0].look[0]


def test_one_name_in_two_archives_is_two_people(put, found, tmp_path):
    for k, content in enumerate((ONE, TWO)):
        people = {f"{MOODLE[k]}/{FILE}": ONE, "ada.ipynb": content}
        zipped(tmp_path / "in" / f"section{k}.zip", people)
    got = found()
    named = [s for s in got if s.student.startswith("ada")]
    assert [s.student for s in named] == [
        "ada (section0.zip/ada.ipynb)",
        "ada (section1.zip/ada.ipynb)",
    ]
    assert all("2 submissions are called ada" in s.look[0] for s in named)


def test_nobody_joins_another_s_work_unseen(put, found, tmp_path):
    """A student may pack a folder with somebody else's name."""
    put(MOODLE[0], FILE)
    zipped(tmp_path / "in" / "eve.zip", {f"{MOODLE[0]}/{FILE}": TWO, f"{MOODLE[1]}/{FILE}": ONE})
    got = found()
    assert [s.student for s in got] == ["Kim 0", "Kim 1"]
    assert "lies in several places" in str(got[0].look)


def test_a_link_to_a_file_of_names_is_not_followed(put, found, tmp_path):
    put("submission_1", FILE)
    (tmp_path / "names.yml").write_text(METADATA)
    (tmp_path / "in" / "submission_metadata.yml").symlink_to(tmp_path / "names.yml")
    assert [s.student for s in found()] == ["submission_1"]


# names of platforms -------------------------------------------------------------------------------

WHEN = "attempt_2026-10-01-12-00-00"


@pytest.mark.parametrize(
    ("heads", "users"),
    [
        (["Week 3_smith_j", "Week 3_jones_j"], ["jones_j", "smith_j"]),
        (["Week_3_jdoe", "Week_3_ada"], ["ada", "jdoe"]),
        (["Week 3_smith", "Week 3_smith_j"], ["smith", "smith_j"]),
        (["Week 3_smith_j", "Week 4_smith_j"], ["smith_j"]),
    ],
)
def test_users_of_blackboard_may_have_underscores(put, found, heads, users):
    for head in heads:
        put(f"{head}_{WHEN}_{FILE}")
    assert [s.id for s in found()] == users


def test_blackboard_s_own_text_tells_the_user(put, found):
    for user in ("smith_j", "smith_k"):
        put(f"Week 3_{user}_{WHEN}_{FILE}")
        put(f"Week 3_{user}_{WHEN}.txt", content=f"Name: Some Body ({user})\nx".encode())
    assert [s.id for s in found()] == ["smith_j", "smith_k"]


def test_names_that_only_look_like_canvas_s_are_not_merged(put, found):
    for name in ("ada", "eve"):
        put(f"hw_3_2026_{name}.ipynb")
        put(f"ex_2026_1001_{name}.ipynb")
        put(f"2026-10 - Week 3 - {name}.ipynb")
    assert len(found()) == 6


def test_the_later_attempt_counts_whatever_the_file_system_says(put, found):
    for day, content in (("Sep 30", TWO), ("Oct 1", ONE)):
        put(f"4711-88123 - Ada Lovelace - {day}, 2026 1159 PM", "hw.ipynb", content=content)
    s = found()[0]
    assert "Oct 1" in str(s.path)
    assert "Sep 30" in s.problems[0]
    assert s.look == []


def test_when_a_name_says_that_something_was_handed_in():
    early = sent(f"Week 3_jdoe_{WHEN}_hw.ipynb")
    late = sent("4711-88123 - Ada Lovelace - Oct 1, 2026 110 PM")
    assert late - early == 70 * 60
    assert sent("4711-88123 - Ada Lovelace - some day in 2026") is None
    assert sent("ada.ipynb") is None


def test_a_platform_s_text_may_be_all_that_somebody_handed_in(put, found):
    put("lovelaceada_123_45678_hw.ipynb")
    put("turingalan_124_45679_link.html", content=b"<a href=...>")
    put("index.html", content=b"<p>")
    got = found()
    assert [(s.student, s.id, s.unreadable) for s in got] == [
        ("lovelaceada", "123", False),
        ("turingalan", "124", True),
    ]
    assert [(e.place, e.grave) for e in got.left] == [("index.html", False)]


def test_what_canvas_writes(put, found):
    put("2ndname_126_45681_hw.ipynb")
    put("lovelaceada_LATE_123_45678_hw.ipynb")
    got = found()
    assert [(s.student, s.id, s.platform) for s in got] == [
        ("2ndname", "126", "canvas"),
        ("lovelaceada", "123", "canvas"),
    ]
    assert "marked as late" not in str(got[0].remarks)
    assert "marked as late: lovelaceada_LATE_123_45678_hw.ipynb" in got[1].remarks


METADATA = """---
submission_1:
  :submitters:
  - :name: Ada Lovelace
    :sid: '4711'
    :email: ada@x.edu
  - :name: "M\\u00fcller, J\u00f6rg"
    :sid:
    :email: j@x.edu
  :created_at: 2026-10-01 23:59:00.123 Z
  :history:
  - :name: nobody
    :sid: '1'
submission_2:
  :submitters:
  - :name: Ada Lovelace
    :sid: '4712'
submission_3:
  :submitters: []
"""


@pytest.mark.parametrize("around", [(), ("assignment_99_export",)])
def test_gradescope_s_file_tells_who_is_who(put, found, around):
    for k, content in enumerate((ONE, TWO, STUB), 1):
        put(*around, f"submission_{k}", FILE, content=content)
    put(*around, "submission_metadata.yml", content=METADATA.encode())
    got = found()
    assert {s.student: s.id for s in got} == {
        "Ada Lovelace (4711)": "4711",
        "Ada Lovelace (4712)": "4712",
        "Müller, Jörg": "j@x.edu",
        "submission_3": "",
    }
    together = [s for s in got if "handed in together" in str(s.remarks)]
    assert [s.entry for s in together] == ["submission_1", "submission_1"]
    assert all(s.path is not None and not s.look for s in got)
    assert got.left == []


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"submission_1:\n  :submitters:\n  - :name:\n"])
def test_a_file_of_names_that_says_nothing_does_no_harm(put, found, text):
    put("submission_1", FILE)
    put("submission_metadata.yml", content=text)
    assert [s.student for s in found()] == ["submission_1"]


@pytest.mark.parametrize(
    ("heads", "doubt"),
    [
        (["Week_3_smith_j"], True),
        (["Week 3_smith_j", "Week 3_smith_k"], True),
        (["Week 3_smith_j", "Week 3_jones"], False),
    ],
)
def test_where_a_user_s_name_begins_may_be_in_doubt(put, found, heads, doubt):
    for head in heads:
        put(f"{head}_{WHEN}_{FILE}")
    got = found()
    assert len(got) == len(heads)
    assert [any(head in str(s.remarks) for head in heads) for s in got] == [doubt] * len(got)


def test_names_of_google_s_copies(put, found):
    for copy in ("Copy of", "Kopie von Kopie von", "Copia di", "Cópia de", "のコピー"):
        put(f"{copy} ada-{copy[:2]}.ipynb")
    put(f"Alan Turing - Copy of {FILE}")
    got = found()
    assert len(got) == 6
    assert {s.student for s in got} == {
        "ada-Co (Copia di ada-Co.ipynb)",
        "ada-Co (Copy of ada-Co.ipynb)",
        "ada-Ko",
        "ada-Có",
        "ada-のコ",
        "Alan Turing",
    }


# litter that may be work --------------------------------------------------------------------------

CHECKPOINT = f"{NAME}-checkpoint.ipynb"


def test_a_checkpoint_that_was_handed_in_is_a_notebook(put, found):
    put(f"lovelaceada_123_45678_{CHECKPOINT}")
    put("kai", CHECKPOINT)
    got = found()
    assert {s.student: s.id for s in got} == {"kai": "", "lovelaceada": "123"}
    assert all(s.path is not None and not s.look for s in got)


@pytest.mark.parametrize(
    "place", [(".ipynb_checkpoints", CHECKPOINT), (f"{FILE}.tmp",), (f"._{FILE}",), ("x.tmp",)]
)
def test_an_editor_s_copy_counts_where_it_is_all(put, found, place):
    copy = put("uli", *place)
    s = found()[0]
    assert s.path == copy
    assert "an editor's copy" in s.look[0]
    mine = put("uli", FILE, content=TWO)
    s = found()[0]
    assert (s.path, s.look, s.problems, s.remarks) == (mine, [], [], [])
    mine.write_bytes(STUB)
    assert "has answers; the notebook has none" in found()[0].look[0]
    mine.write_bytes(TWO[:300])
    assert found()[0].path == copy
    assert "cut off" in found()[0].problems[0]


@pytest.mark.parametrize("place", [(f".{FILE}.swp",), (f"._{FILE}",), (".git", "HEAD")])
def test_what_cannot_be_read_is_for_a_human_where_it_is_all(put, found, place):
    put("uli", *place, content=b"b0VIM\0")
    s = found()[0]
    assert (s.path, s.unreadable) == (None, True)
    assert s.problems[0].startswith(f"there is only {place[0]}")


def test_litter_alone_is_nothing(put, found):
    put("uli", ".DS_Store", content=b"\0")
    put("uli", "__MACOSX", "._x.ipynb", content=b"\0")
    s = found()[0]
    assert (s.problems, s.unreadable) == (["handed in no notebook"], False)


def test_copies_without_their_notebooks_are_listed(put, found):
    put("ada.ipynb")
    for name in ("ada", "eve"):
        put(".ipynb_checkpoints", f"{name}-checkpoint.ipynb")
        put(f"{name}.ipynb.tmp")
    got = found()
    assert [s.student for s in got] == ["ada"]
    assert {e.place for e in got.left} == {
        ".ipynb_checkpoints/eve-checkpoint.ipynb",
        "eve.ipynb.tmp",
    }
    assert all(e.grave and "eve.ipynb, which is not here" in e.reason for e in got.left)


def test_a_folder_named_like_litter_is_a_student(put, found):
    put("ada.tmp", FILE)
    assert [s.student for s in found()] == ["ada.tmp"]
