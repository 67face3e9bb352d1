"""Every notebook of the workbook: drift, size, alt text, exercises once."""

import re

import nbformat
import pytest

from minids3.course.build import check, sources
from minids3.course.registry import exercises

ALL = sources()
each = pytest.mark.parametrize("source", ALL, ids=lambda s: s.name)


@each
def test_no_drift(source):
    assert list(check(source)) == []


@each
def test_exercises_are_used_once(source):
    text = source.path.read_text(encoding="utf-8")
    for exercise in exercises(source.name):
        for kind in ("EXERCISE", "CHECK"):
            assert len(re.findall(rf"^# {kind} {exercise.id}$", text, re.MULTILINE)) == 1


@each
def test_solved_notebook_is_small_and_every_picture_has_words(source):
    assert source.solved_path.stat().st_size < 450_000  # figures have two dots a pixel
    pictures = 0
    for cell in nbformat.read(source.solved_path, as_version=4).cells:
        for out in cell.get("outputs", []):
            data = out.get("data", {})
            assert not [m for m in data if m.startswith("image/")], "use viz.show(fig, alt=...)"
            for tag in re.findall(r"<img\b[^>]*>", data.get("text/html", "")):
                alt = re.search(r'alt="([^"]*)"', tag)
                assert alt, f"a picture of cell {cell.id} has no alt text"
                assert len(alt.group(1)) >= 20
                pictures += 1
    assert pictures >= 1


@each
def test_lines_are_short(source):
    for number, line in enumerate(source.path.read_text(encoding="utf-8").splitlines(), 1):
        shown = line.removeprefix("# ")  # what a markdown line is in the notebook
        short = len(shown) <= 76 or "http" in line or line.startswith("# |")
        assert short, f"line {number} of {source.path.name}: {len(shown)} characters"


@each
def test_no_line_of_text_is_one_that_only_the_site_understands(source):
    """MyST takes a line that begins with % for a comment, and the page loses it."""
    for cell in nbformat.read(source.solved_path, as_version=4).cells:
        if cell.cell_type == "markdown":
            lost = re.findall(r"^ {0,3}(?:%|\+\+\+|\(\S+\)=).*", cell.source, re.MULTILINE)
            assert not lost, f"{source.path.name}: begin another line with {lost[0]!r}"


@each
def test_no_cell_ends_with_an_object_that_fills_the_page(source):
    """Such as a whole model, because its last line was ``model.eval()``."""
    for cell in nbformat.read(source.solved_path, as_version=4).cells:
        for out in cell.get("outputs", []):
            shown = out.get("data", {})
            if out["output_type"] == "execute_result" and "text/html" not in shown:
                assert shown.get("text/plain", "").count("\n") < 20, cell.source


MEANT = ("halves of the input swapped, same result: False",)  # what the reader is to see


@each
def test_what_a_notebook_says_of_itself_came_true(source):
    """Its claims are printed as true or false: one that came false is to be seen by the builder."""
    for cell in nbformat.read(source.solved_path, as_version=4).cells:
        if "nbval-check-output" in cell.metadata.get("tags", []):
            for out in cell.get("outputs", []):
                for line in out.get("text", "").splitlines():
                    assert not re.search(r": False\b", line) or line in MEANT, line
