"""Submissions are found in folders as learning platforms and students leave them."""

import io
import json
import os
import zipfile
from datetime import datetime

import pytest

from minids3.grade.submissions.collect import collect
from minids3.grade.submissions.deadlines import Deadlines
from minids3.grade.submissions.reading import Unreadable, load, parse

NAME = "03_latent_attention"
IDS = ["mla-compress", "mla-naive", "mla-cache-size", "mla-absorb", "mla-choose", "mla-intensity"]


def found(folder):
    return {s.student: s for s in collect(folder, NAME, IDS)}


def test_flat_folder(save, solved, tmp_path):
    names = {
        "ada_03_latent_attention.ipynb": "ada",
        "03_latent_attention_grace hopper.ipynb": "grace hopper",
        "li_2023111_03-latent-attention-1.ipynb": "li_2023111",
        "li_2023112_03-latent-attention-1.ipynb": "li_2023112",
        "alan (1).ipynb": "alan",
        "kurt-Copy2.ipynb": "kurt",
    }
    for name in names:
        save(solved, "in", name)
    save(solved, "in", ".ipynb_checkpoints", "ada_03-checkpoint.ipynb")
    (tmp_path / "in" / "notes.txt").write_text("x")
    assert {s: str(x.path.name) for s, x in found(tmp_path / "in").items()} == {
        student: name for name, student in names.items()
    }


def test_nested_folders(save, solved, student, tmp_path):
    save(solved, "in", "Ada L_55_assignsubmission_file_", "03_latent_attention.ipynb")
    save(solved, "in", "grace", "week 3", "hw", "untitled.ipynb")
    (tmp_path / "in" / "nobody").mkdir()
    save({"cells": []}, "in", "kurt", "other.ipynb")
    got = found(tmp_path / "in")
    assert list(got) == ["Ada L", "grace", "kurt", "nobody"]
    assert got["grace"].path.name == "untitled.ipynb"
    assert (got["nobody"].path, got["nobody"].unreadable) == (None, False)
    assert got["kurt"].unreadable
    assert "no exercise of 03" in got["kurt"].problems[0]


def test_of_several_notebooks_the_one_with_most_answers(save, solved, student, tmp_path):
    save(student, "in", "ada", "03_latent_attention.ipynb")
    best = save(solved, "in", "ada", "Untitled7.ipynb")
    os.utime(best, (1, 1))
    s = found(tmp_path / "in")["ada"]
    assert s.path == best
    assert "not 03_latent_attention.ipynb" in s.problems[0]


def test_of_equals_the_right_name_then_the_newest(save, solved, tmp_path):
    for k, name in enumerate(["b.ipynb", "03_latent_attention.ipynb", "a.ipynb"]):
        path = save(solved, "in", "ada", name)
        os.utime(path, (1e9 + k, 1e9 + k))
    assert found(tmp_path / "in")["ada"].path.name == "03_latent_attention.ipynb"


BROKEN = {
    "": "is empty",
    "{": "is not JSON",
    "[1]": "not a notebook",
    '{"cells": 3}': "not a notebook",
    "<<<<<<< HEAD\n>>>>>>> x": "git merge",
    "[" * 100_000: "is not JSON",
    '{"cells": [], "x": ' + "9" * 10_000 + "}": "is not JSON",
}


@pytest.mark.parametrize("text", BROKEN, ids=lambda t: t[:12])
def test_broken_files_say_so_and_wait_for_a_human(save, tmp_path, text):
    save(text, "in", "ada.ipynb")
    s = found(tmp_path / "in")["ada"]
    assert s.path is None
    assert s.unreadable
    assert BROKEN[text] in s.problems[0]


def test_a_cut_off_file_beside_a_whole_one(save, solved, tmp_path):
    save(json.dumps(solved)[:-500], "in", "ada", "new.ipynb")
    save(solved, "in", "ada", "old.ipynb")
    s = found(tmp_path / "in")["ada"]
    assert s.path.name == "old.ipynb"
    assert "cut off" in s.problems[0]


def test_encodings_and_what_follows_the_end(solved):
    text = json.dumps(solved)
    for raw in (b"\xef\xbb\xbf" + text.encode(), text.encode("utf-16"), text.encode() + b"\n}}"):
        assert len(parse(raw)["cells"]) == len(solved["cells"])


def test_links_and_odd_files_are_not_followed(save, solved, tmp_path):
    secret = save(solved, "elsewhere", "solution.ipynb")
    (tmp_path / "in" / "ada").mkdir(parents=True)
    (tmp_path / "in" / "ada" / "03.ipynb").symlink_to(secret)
    (tmp_path / "in" / "eve").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "in" / "pipe.ipynb")
    got = found(tmp_path / "in")
    assert "eve" not in got
    assert "is a link" in got["ada"].problems[0]
    assert "not an ordinary file" in got["pipe"].problems[0]
    with pytest.raises(Unreadable, match="link"):
        load(tmp_path / "in" / "ada" / "03.ipynb")


def test_twenty_megabytes_of_output(save, solved, tmp_path):
    for c in solved["cells"]:
        if c["cell_type"] == "code":
            c["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "x" * 600_000}]
    path = save(solved, "in", "ada.ipynb")
    assert path.stat().st_size > 2e7
    assert found(tmp_path / "in")["ada"].path == path


def test_same_file_twice_is_noted(save, solved, tmp_path):
    for name in ("ada", "eve"):
        save(solved, "in", f"{name}.ipynb")
    got = found(tmp_path / "in")
    assert got["ada"].remarks == got["eve"].remarks == ["the same file, byte for byte: ada, eve"]
    assert got["ada"].problems == []  # students do not read of each other


def test_nothing_to_grade(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a folder"):
        collect(tmp_path / "no", NAME, IDS)
    with pytest.raises(FileNotFoundError, match="no notebooks"):
        collect(tmp_path, NAME, IDS)


def test_deadlines(save, solved, tmp_path):
    for name in ("ada", "eve", "kurt", "noor"):
        path = save(solved, "in", f"{name}.ipynb")
        when = datetime(2026, 10, 2, 1, 0).timestamp()
        os.utime(path, (when, when))
    got = found(tmp_path / "in")
    plain = tmp_path / "plain.txt"
    plain.write_text("2026-10-01 23:59\n")
    assert Deadlines.read(plain).late(got["ada"]) == "late by 1 hour 1 minute"
    table = tmp_path / "table.csv"
    table.write_text(
        "student,deadline,submitted\n*,2026-10-01 23:59,\neve,2026-10-03T12:00,\n"
        "kurt,,2026-10-01 23:58\nnoor,,2026-10-05 03:59\n"
    )
    late = {n: Deadlines.read(table).late(s) for n, s in got.items()}
    assert late == {
        "ada": "late by 1 hour 1 minute",
        "eve": "",
        "kurt": "",
        "noor": "late by 3 days 4 hours",
    }
    plain.write_text("next Tuesday")
    with pytest.raises(ValueError, match="line 1: 'next Tuesday' is no time"):
        Deadlines.read(plain)
    table.write_text("name,when\nada,2026-10-01\n")
    with pytest.raises(ValueError, match="student,deadline"):
        Deadlines.read(table)


def _patched(make, change):
    """Return the bytes of an archive that ``make`` fills, changed in a few of them."""
    file = io.BytesIO()
    make(file)
    raw = bytearray(file.getvalue())
    change(raw)
    return bytes(raw)


def _of_a_later_version(raw):
    raw[raw.rindex(b"PK\x01\x02") + 6] = 99


def _damaged(raw):
    for k in range(45, 60):
        raw[k] ^= 0xFF


def _packed(method):
    def make(file):
        with zipfile.ZipFile(file, "w", method) as pack:
            pack.writestr("x.ipynb", "{}" * 1000)

    return make


def _deep(file):
    with zipfile.ZipFile(file, "w") as pack:
        pack.writestr(zipfile.ZipInfo("a/" * 1200), b"")
        pack.writestr("b/" * 1200 + "x.ipynb", "{}")


DAMAGED = {
    "a later version": _patched(_packed(zipfile.ZIP_DEFLATED), _of_a_later_version),
    "damaged lzma": _patched(_packed(zipfile.ZIP_LZMA), _damaged),
    "damaged bzip2": _patched(_packed(zipfile.ZIP_BZIP2), _damaged),
    "damaged deflate": _patched(_packed(zipfile.ZIP_DEFLATED), _damaged),
    "folders in folders": _patched(_deep, lambda raw: None),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_zip_file_stops_nobody_else(save, solved, tmp_path, kind):
    save(solved, "in", "ada", f"{NAME}.ipynb")
    (tmp_path / "in" / "zoe").mkdir()
    (tmp_path / "in" / "zoe" / "submission.zip").write_bytes(DAMAGED[kind])
    collected = collect(tmp_path / "in", NAME, IDS, home=tmp_path / "home")
    assert {s.student: s.path is not None for s in collected} == {"ada": True, "zoe": False}
    told = [left.place for left in collected.left]
    told += [problem for s in collected for problem in (*s.problems, *s.look)]
    assert any("submission.zip" in text or "x.ipynb" in text for text in told), told
