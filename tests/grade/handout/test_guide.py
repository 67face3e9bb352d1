"""The instructor guide follows from the exercises, and says only what the commands do."""

import re

import nbformat
import pytest

from minids3.course.build import Source, check
from minids3.course.registry import exercises
from minids3.course.repository import root
from minids3.grade.cli import parser
from minids3.grade.handout import guide

FOLDER = root() / "notebooks"
PAGE = (FOLDER / "instructor_guide.md").read_text(encoding="utf-8")
SOURCE = Source(FOLDER / "source" / "instructor_guide.py")


def test_generated_parts_are_up_to_date():
    assert guide.page(PAGE) == PAGE, "run: python -m minids3.grade guide"


def test_every_known_mistake_is_in_it():
    names = [p.stem for p in FOLDER.glob("[0-9][0-9]_*.ipynb")]
    sentences = [m.diagnosis for n in names for e in exercises(n) for m in e.mutants]
    assert len(sentences) > 100
    assert [s for s in sentences if f"- {s}\n" not in PAGE] == []


def test_a_part_that_nobody_generates():
    with pytest.raises(KeyError):
        guide.page("<!-- generated: weather -->\n<!-- end -->")


def test_notebook_follows_from_its_source():
    assert list(check(SOURCE)) == []
    assert SOURCE.solved_path.stat().st_size < 300_000


def test_notebook_shows_what_the_page_promises():
    cells = nbformat.read(SOURCE.solved_path, as_version=4).cells
    said = "".join(o.get("text", "") for c in cells for o in c.get("outputs", []))
    assert "For MLA" in said or "latent" in said
    assert "same seed, same grades: True" in said
    assert "3 of 3 need no grading again" in said
    assert re.search(r"noor +total +noor \(1\)\.ipynb is not JSON", said)  # empty cells


def test_commands_on_the_page_exist():
    lines = [line.split("#")[0] for line in PAGE.splitlines() if line.startswith("minids3 ")]
    lines += re.findall(r"`(minids3 [a-z]+ [^`]*)`", PAGE)
    assert len(lines) >= 5
    for line in lines:
        parser().parse_args(line.split()[1:])
    for option in set(re.findall(r"`(--[a-z-]+)", PAGE)):
        assert any(option in p.format_help() for p in _subparsers()), option


def _subparsers():
    actions = [a for a in parser()._actions if hasattr(a, "choices") and a.choices]
    return list(actions[0].choices.values())
