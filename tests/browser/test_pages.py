"""The pages of a graded class and the tables of the library: both themes, widths, no barrier."""

import pytest
from browser.helpers import framed, serious
from grade.reports.test_feedback import EVIL, class_of, exercise, submission

from minids3 import viz
from minids3.course.progress import Progress, Row
from minids3.course.setup import device_matrix
from minids3.grade.reports.publish import write_pages
from minids3.sim import bill

SCHEMES = ("light", "dark")
GROUND = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """The folder of a class: all that can happen to an answer, and a hostile one."""
    out = tmp_path_factory.mktemp("graded")
    states = ["passed", "partial", "failed", "stub", "missing", "forbidden", "grader error"]
    states += ["needs a human", "decided", "excused"]
    points = {"passed": 4.0, "partial": 2.0, "decided": 3.0}
    every = submission(
        "every state",
        *(exercise(s.replace(" ", "-"), s, points.get(s, 0.0), comment="Seen.") for s in states),
        problems=["took work.ipynb"],
        late="late by 2 hours",
    )
    evil = submission("evil", exercise("a", "partial", 1.0, code=EVIL, diagnosis=EVIL, hint=EVIL))
    results = [*class_of(), every, evil]
    names = {r.student: r.student.replace(" ", "_") for r in results}
    left = [("essay.pdf", "is no notebook")]
    alike = [("a", ["s1", "s2"], False)]
    assert write_pages(out, results, names, "03 · Latent attention", left, alike) == []
    return out


PAGES = ("feedback/ada", "feedback/every_state", "feedback/evil", "summary")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_pages_of_a_class(scheme, graded, open_page):
    watched = open_page("file://", scheme=scheme)
    page, grounds = watched.page, set()
    for name in PAGES:
        page.goto(f"{(graded / name).as_uri()}.html")
        assert page.locator("h1").count() == 1
        grounds.add(page.evaluate(GROUND))
        folded = page.locator("details:not([open]) > summary")
        while folded.count():  # what was clicked is no longer among them
            folded.first.click()
        assert serious(page, "html") == [], name
    assert grounds == {"rgb(244, 243, 239)" if scheme == "light" else "rgb(20, 24, 27)"}
    watched.clean()


@pytest.mark.parametrize("width", [1280, 1024, 400])
def test_no_page_of_a_class_is_wider_than_its_window(width, graded, open_page):
    page = open_page("file://", width=width).page
    for name in PAGES:
        page.goto(f"{(graded / name).as_uri()}.html")
        wide = page.evaluate("document.scrollingElement.scrollWidth")
        assert wide <= width + 1, f"{name} is {wide} pixels wide"


def test_the_summary_leads_to_each_students_page(graded, open_page):
    page = open_page("file://").page
    page.goto((graded / "summary.html").as_uri())
    page.get_by_role("link", name="ada", exact=True).first.click()
    page.get_by_role("heading", level=1, name="ada").wait_for()
    page.get_by_role("link", name="Title of b").click()
    assert page.url.endswith("#b")
    assert page.locator("#b").is_visible()


def tables():
    rows = (
        Row("03_x", "mla-naive", "Naive <b>", 4, 4, 2, 0),
        Row("03_x", "mla-absorb", "Absorb", 1, 4, 1, 3),
        Row("04_y", "moe-route", "Route", 0, 0, 0, 0),
    )
    return {
        "progress": Progress(rows),
        "devices": device_matrix(),
        "texts": viz.text_table(["you", "it"], [["a <b>", "c\nd"]]),
        "tokens": viz.token_strip(["the", " cat", "\n"], [0.1, 2.0, 4.0]),
        "plain tokens": viz.token_strip(list("abcdef")),
        "bill": bill.show("08"),
    }


@pytest.mark.parametrize("scheme", SCHEMES)
def test_tables_of_the_library(scheme, tmp_path, open_page):
    """As they stand in a page whose own colours read: JupyterLab's, say."""
    made = "".join(f"<h2>{name}</h2>{table._repr_html_()}" for name, table in tables().items())
    (tmp_path / "tables.html").write_text(framed("Tables", made), encoding="utf-8")
    watched = open_page("file://", scheme=scheme)
    watched.page.goto((tmp_path / "tables.html").as_uri())
    assert watched.page.locator("table").count() >= 4
    assert serious(watched.page, "html") == []
    watched.clean()


@pytest.mark.parametrize("width", [1280, 600])
def test_a_long_word_does_not_push_a_column_out_of_the_window(width, tmp_path, open_page):
    words = "An ordinary sentence of some length, which may break between its words."
    table = viz.text_table(["opening", "untrained", "trained"], [[words, "star" * 40, words]])
    (tmp_path / "t.html").write_text(framed("Texts", table._repr_html_()), encoding="utf-8")
    page = open_page("file://", width=width).page
    page.goto((tmp_path / "t.html").as_uri())
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    narrowest = "Math.min(...[...document.querySelectorAll('td pre')].map(p => p.clientWidth))"
    assert page.evaluate(narrowest) >= 100  # nobody's words are broken into letters
