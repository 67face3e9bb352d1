"""Who handed something in: nobody is taken for somebody else, and nothing disappears in silence."""

import json
import os
import unicodedata
import zipfile

import pytest

from minids3.course.repository import root
from minids3.grade.submissions.archives import unpack
from minids3.grade.submissions.collect import collect
from minids3.grade.submissions.deadlines import Deadlines
from minids3.grade.submissions.identity import Names

NAME = "00_start_here"
FOLDER = root() / "notebooks"
SOLVED = (FOLDER / "solutions" / f"{NAME}.ipynb").read_bytes()
RIGHT = json.dumps(json.loads(SOLVED)).encode()  # as a student's editor writes it
STUB = (FOLDER / f"{NAME}.ipynb").read_bytes()


@pytest.fixture
def inbox(tmp_path):
    place = tmp_path / "in"
    place.mkdir()

    def put(*parts, content=RIGHT):
        path = place.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    put.place = place
    return put


def found(inbox, folder=None):
    home = inbox.place.parent / "unpacked"
    return collect(folder or inbox.place, NAME, ["rms-norm"], {"rms-norm": "rms_norm"}, home)


@pytest.mark.parametrize(
    ("entry", "name", "id"),
    [
        ("Kim Example_4711_assignsubmission_file_", "Kim Example", "4711"),
        ("Kim Example_4711_assignsubmission_file", "Kim Example", "4711"),
        ("Kim Example_4711_assignsubmission_file_00_start_here.ipynb", "Kim Example", "4711"),
        ("Participant_1101_assignsubmission_file", "Participant 1101", "1101"),
        ("lovelaceada_123_45678_00_start_here.ipynb", "lovelaceada", "123"),
        ("lovelaceada_LATE_123_45678_00_start_here-1.ipynb", "lovelaceada", "123"),
        ("anon_a1B2c_45678_hw.ipynb", "anon_a1B2c", "a1B2c"),
        ("Week 3_jdoe_attempt_2026-10-01-12-00-00_hw.ipynb", "jdoe", "jdoe"),
        ("4711-88123 - Ada Lovelace - Oct 1, 2026 1159 PM", "Ada Lovelace", "4711"),
        ("li_2023111_00_start_here.ipynb", "li_2023111", ""),
        ("Week 3_smith_j_attempt_2026-10-01-12-00-00_hw.ipynb", "smith_j", "smith_j"),
        ("Lovelace, Ada(ada)", "Lovelace, Ada", "ada"),
        ("ada-checkpoint.ipynb", "ada", ""),
        ("2026-10 - Week 3 - Ada.ipynb", "2026-10 - Week 3 - Ada", ""),
        ("hw_3_2026_ada.ipynb", "hw_3_2026_ada", ""),
    ],
)
def test_what_platforms_write(entry, name, id):
    who = Names([entry], NAME).of(entry, folder=not entry.endswith(".ipynb"))[0]
    assert (who.name, who.id) == (name, id)


def test_two_people_of_one_name_stay_two(inbox):
    inbox("Kim Example_4711_assignsubmission_file_", "x.ipynb")
    inbox("Kim Example_4712_assignsubmission_file_", "x.ipynb", content=STUB)
    inbox("Lou_4713_assignsubmission_file_", "x.ipynb")
    inbox("Lou_4713_assignsubmission_onlinetext_", "onlinetext.html", content=b"<p>hello</p>")
    got = found(inbox)
    assert {s.student: s.id for s in got} == {
        "Kim Example (4711)": "4711",
        "Kim Example (4712)": "4712",
        "Lou": "4713",  # one person's text and file are one submission
    }
    assert "Kim Example (4712)" in got[0].remarks[0]
    assert [s.look for s in got] == [[], [], []]  # the numbers tell


def test_a_blind_class_is_a_class(inbox):
    for k in range(5):
        inbox(f"Participant_110{k}_assignsubmission_file", "x.ipynb")
    assert [s.id for s in found(inbox)] == [f"110{k}" for k in range(5)]


def test_copies_are_not_merged_and_a_human_hears_of_namesakes(inbox):
    names = [f"Copy of {NAME}.ipynb", f"{NAME} (1).ipynb", f"{NAME} (2).ipynb", f"{NAME}.ipynb"]
    for name in [*names, "ada.ipynb", f"ada_{NAME}.ipynb"]:
        inbox(name)
    got = found(inbox)
    assert len(got) == 6
    assert len({s.student for s in got}) == 6
    asked = [s.student for s in got if s.look]
    assert asked == ["ada (ada.ipynb)", f"ada (ada_{NAME}.ipynb)"]


def test_one_number_with_two_names_is_for_a_human(inbox):
    inbox("Kim_4711_assignsubmission_file_", "x.ipynb")
    inbox("Lou_4711_assignsubmission_file_", "x.ipynb")
    got = found(inbox)
    assert [s.student for s in got] == ["Kim", "Lou"]
    assert all("the number 4711 has several names" in s.look[0] for s in got)


def test_every_file_is_taken_or_listed_with_the_reason(inbox):
    inbox("kurt.ipynb.txt")
    inbox("mia.ipynb.json")
    inbox("nora.json")
    inbox("cut.ipynb.txt", content=RIGHT[:300])
    inbox("thesis.pdf", content=b"%PDF")
    inbox("all.tar.gz", content=b"\x1f\x8b")
    inbox("readme.txt", content=b"hello")
    inbox("olga", "answer.py", content=b"x = 1")
    inbox("packed.ipynb", content=b"PK\x03\x04rest")
    inbox("bad.zip", content=b"PK\x03\x04rest")
    (inbox.place / "per").mkdir()
    (inbox.place / "link").symlink_to(inbox.place / "olga")
    got = found(inbox)
    rows = {s.student: s for s in got}
    assert {n for n, s in rows.items() if s.path} == {"kurt", "mia", "nora"}
    assert {n for n, s in rows.items() if s.unreadable} == {"cut", "olga", "packed"}
    assert "answer.py is no notebook (.py)" in rows["olga"].problems
    assert "zip archive" in rows["packed"].problems[0]
    assert rows["per"].problems == ["handed in no notebook"]
    left = {e.place: (e.reason, e.grave) for e in got.left}
    assert set(left) == {"thesis.pdf", "all.tar.gz", "readme.txt", "bad.zip", "link"}
    assert [place for place, (_, grave) in left.items() if not grave] == ["readme.txt"]
    assert "broken zip" in left["bad.zip"][0]


def test_droppings_are_nobody_s(inbox):
    inbox("lou", f"{NAME}.ipynb")
    for name in (f"._{NAME}.ipynb", ".DS_Store", "Thumbs.db", "desktop.ini", "~$x.ipynb"):
        inbox("lou", name, content=b"\0\5\x16\7")
        inbox(name, content=b"\0\5\x16\7")
    inbox("lou", ".ipynb_checkpoints", f"{NAME}-checkpoint.ipynb")
    inbox("__MACOSX", "lou", "._x.ipynb", content=b"\0")
    got = found(inbox)
    assert [(s.student, s.problems, s.remarks) for s in got] == [("lou", [], [])]
    assert got.left == []


def zipped(path, **files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as pack:
        for name, content in files.items():
            pack.writestr(name, content)
    return path


def test_zip_files_are_read(inbox):
    hw = f"hw/{NAME}.ipynb"
    zipped(inbox.place / "lena.zip", **{hw: RIGHT, "__MACOSX/._x.ipynb": b"\0"})
    inner = zipped(inbox.place.parent / "inner.zip", **{hw: RIGHT}).read_bytes()
    zipped(inbox.place / "nora" / "submission.zip", **{"deeper.zip": inner})
    deep = inner
    for _ in range(4):
        deep = zipped(inbox.place.parent / "deep.zip", **{"next.zip": deep}).read_bytes()
    inbox("olga", "all.zip", content=deep)
    got = {s.student: s for s in found(inbox)}
    assert got["lena"].path.read_bytes() == got["nora"].path.read_bytes() == RIGHT
    assert got["lena"].problems == []
    assert got["olga"].unreadable
    assert "nested too deep" in got["olga"].problems[0]


def test_a_platform_s_archive_is_a_class(inbox, tmp_path):
    members = {f"P_110{k}_assignsubmission_file/{NAME}.ipynb": RIGHT for k in range(3)}
    archive = zipped(tmp_path / "course.zip", **members)
    assert [s.id for s in found(inbox, archive)] == ["1100", "1101", "1102"]
    (inbox.place / "Course-Week 3-99.zip").write_bytes(archive.read_bytes())
    inbox("Q_1200_assignsubmission_file", "x.ipynb")
    assert [s.id for s in found(inbox)] == ["1100", "1101", "1102", "1200"]
    folders = {f"submissions/{n}/x.ipynb": RIGHT for n in ("ada", "eve")}
    got = found(inbox, zipped(tmp_path / "mine.zip", **folders))
    assert [s.student for s in got] == ["ada", "eve"]


def test_an_archive_writes_nothing_elsewhere(tmp_path):
    bad = zipped(tmp_path / "bad.zip", **{"../out.txt": b"x", "/abs.txt": b"y", "a/b": b"z"})
    folder, left = unpack(bad, tmp_path / "home")
    assert sorted(p.name for p in folder.rglob("*") if p.is_file()) == ["abs.txt", "b"]
    assert left == [("../out.txt", "its name leads out of the archive")]
    assert not (tmp_path / "home" / "out.txt").exists()
    assert (folder / "abs.txt").is_file()
    assert unpack(bad, tmp_path / "home")[0] == folder  # once is enough


def test_names_in_any_encoding(inbox):
    name = os.fsencode(str(inbox.place)) + b"/M\xfcller.ipynb"
    try:
        with open(name, "wb") as file:
            file.write(RIGHT)
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    inbox(unicodedata.normalize("NFD", "Zoë"), "x.ipynb")
    inbox("new\nline", "x.ipynb")
    inbox("emoji 🙂", "x.ipynb")
    got = found(inbox)
    assert {s.student for s in got} == {"Müller", "Zoë", "new?line", "emoji 🙂"}
    assert all(s.path for s in got)
    json.dumps([s.student for s in got]).encode()


def test_an_answer_is_found_by_its_function_s_name_alone(inbox):
    bare = json.loads(RIGHT)
    for cell in bare["cells"]:
        cell["metadata"], cell["id"] = {}, None
        source = "".join(cell["source"])
        cell["source"] = "\n".join(t for t in source.split("\n") if "# EXERCISE" not in t)
    inbox("ada.ipynb", content=json.dumps(bare).encode())
    assert found(inbox)[0].path is not None


def test_the_untouched_notebook_is_nobody_s_copy(inbox):
    for name in ("ada", "eve"):
        inbox(name, "x.ipynb", content=STUB)
        inbox(f"{name}2", "x.ipynb")
    assert [bool(s.remarks) for s in found(inbox)] == [False, True, False, True]


# deadlines ----------------------------------------------------------------------------------------


def late(inbox, text, **more):
    path = inbox.place.parent / "deadlines.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    table = Deadlines.read(path)
    got = found(inbox)
    missing = table.unknown(got)
    return {s.student: table.late(s) for s in got}, missing


@pytest.fixture
def two(inbox):
    for name, day in (("ada", 1), ("Zoë Muster", 5)):
        path = inbox(name, "x.ipynb")
        when = __import__("datetime").datetime(2026, 10, day, 15).timestamp()
        os.utime(path, (when, when))
    return inbox


def test_a_date_alone_is_the_end_of_that_day(two):
    got, _ = late(two, "2026-10-01\n")
    assert got == {"ada": "", "Zoë Muster": "late by 3 days 15 hours"}


ROWS = "student{0}deadline\n*{0}2026-10-01 23:59\nZoë Muster{0}2026-10-09 23:59\n"


@pytest.mark.parametrize(
    "text",
    [
        ROWS.format(","),
        ROWS.format(";"),
        ROWS.format("\t"),
        b"\xef\xbb\xbf" + ROWS.format(";").encode(),
        ROWS.format(",").encode("cp1252"),
        ROWS.format(";").replace("\n", "\r\n").encode("utf-16"),
        "sep=;\n" + ROWS.format(";"),
        unicodedata.normalize("NFD", ROWS.format(",")),
    ],
)
def test_tables_as_spreadsheets_write_them(two, text):
    assert late(two, text) == ({"ada": "", "Zoë Muster": ""}, [])


def test_a_name_that_matches_nobody_is_not_passed_over(two):
    with pytest.raises(ValueError, match=r"line 3: nobody is called 'Zoe Muster'; is it 'Zoë Mus"):
        late(two, ROWS.format(",").replace("Zoë", "Zoe"))
    _, missing = late(two, ROWS.format(",") + "Somebody Else,2026-10-09\n")
    assert missing == ["Somebody Else"]
    with pytest.raises(ValueError, match=r"line 4.*line 3"):
        late(two, ROWS.format(",") + "Zoë Muster,2026-10-08\n")
