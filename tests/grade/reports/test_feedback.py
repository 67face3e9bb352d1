"""Students' pages and the class summary: everything is said, nothing is executed or fetched."""

import html
import re
from html.parser import HTMLParser

import pytest

from minids3.grade.records import ExerciseResult, ItemResult, SubmissionResult
from minids3.grade.reports.feedback import feedback
from minids3.grade.reports.publish import write_pages
from minids3.grade.reports.summary import _bins, summary

EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&$title"


def exercise(id, status, points, most=4.0, **more):
    if status in ("stub", "missing"):
        items = [ItemResult("runs", "no", "nothing was written", 0, most)]
    else:
        count = round(4 * points / most)
        items = [ItemResult(f"check {k}", "ok", "", most / 4, most / 4) for k in range(count)]
        states = ["no"] + ["not reached"] * 4
        items += [
            ItemResult(f"check {k}", states[k - count], f"reason {k}", 0, most / 4)
            for k in range(count, 4)
        ]
    code = f"def {id}():\n    return {points}\n"
    more = {"hint": f"Which axis of {id}?", "code": code, **more}
    return ExerciseResult(id, f"Title of {id}", points, most, status, items, **more)


def submission(student, *exercises, **more):
    path = more.pop("path", f"in/{student}.ipynb")
    return SubmissionResult(student, "03_x", path, list(exercises), **more).total()


class Page(HTMLParser):
    """Collects tags, and sees that they are closed in order."""

    VOID = frozenset(("meta", "link", "br", "img", "input", "hr"))

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def mixed():
    return submission(
        "ada",
        exercise("a", "passed", 4.0),
        exercise("b", "partial", 1.0, diagnosis="You divided twice.", mutant="twice"),
        exercise("c", "forbidden", 0.0, notes=["calls torch.softmax"]),
        exercise("d", "stub", 0.0),
        exercise("e", "grader error", 0.0, notes=["for a human: secret remark"]),
        problems=["took x.ipynb"],
        remarks=["the same file, byte for byte: ada, eve"],
        late="late by 2 hours",
        seed=987654,
    )


def test_a_students_page_says_what_why_and_what_next():
    page = Page(feedback(mixed(), "03 · Title"))
    for said in (
        "5 of 20 points",
        "late by 2 hours",
        "1 of 5 exercises passed. The next one to look at is “Title of b”. 2 will be looked at",
        "4 checks, all passed",
        "1 of 4 checks passed",
        "reason 1",
        "You divided twice.",
        "Which axis of b?",
        "calls torch.softmax",
        "This is not a zero",
        "Nothing was written here",
        "took x.ipynb",
    ):
        assert said in page.text
    for private in ("secret remark", "eve", "Which axis of a?", "987654"):
        assert private not in page.text
    code = [t for t, _ in page.tags].count("pre")
    assert code == 4  # the stub has nothing to show


@pytest.mark.parametrize("text", [EVIL, "x" * 50_000, "def f(:\n\x00", "%s {0} $style ${x}"])
def test_what_a_student_writes_is_only_text(text):
    result = submission(
        text[:200],
        exercise("a", "partial", 1.0, code=text, diagnosis=text, hint=text, notes=[text]),
        problems=[text],
        remarks=[text],
    )
    result.exercises[0].items[0].reason = text
    for made in (feedback(result, text[:100]), summary([result], text[:100], {text[:200]: "x"})):
        tags = {tag for tag, _ in Page(made).tags}
        assert not tags & {"script", "img", "iframe", "link", "object", "embed", "base"}
        assert not any(k.startswith("on") for _, attrs in Page(made).tags for k in attrs)
        if text == EVIL:
            assert html.escape(EVIL[:30], quote=True) in made


def test_pages_need_nothing_from_elsewhere():
    for made in (feedback(mixed(), "T"), summary([mixed()], "T", {})):
        assert not re.search(r"(src|href)=[\"'](https?:|//)|url\(|@import", made)
        assert "prefers-color-scheme: dark" in made
        # Every bar and drawing says in words what it shows.
        for tag, attrs in Page(made).tags:
            if tag == "svg" or attrs.get("role") == "img":
                assert len(attrs["aria-label"]) > 3


def class_of(count=12):
    made = [submission(f"s{k}", exercise("a", "passed", 4.0), exercise("b", "partial", 1.0,
            diagnosis="You divided twice." if k % 2 else "")) for k in range(count)]  # fmt: skip
    made.append(
        submission("none", exercise("a", "missing", 0), exercise("b", "missing", 0), path="")
    )
    return [*made, mixed()]


def test_summary_counts():
    page = Page(summary(class_of(), "03 · Title", {"ada": "feedback/ada.html"}))
    for said in (
        "13 graded of 14",
        "5 median of 20 points",
        "1 late",
        "1 need a human",
        "c: forbidden (calls torch.softmax)",
        "e: secret remark",
        "the same file, byte for byte: ada, eve",
        "7 You divided twice.",
        "6 check 1",  # the first failure that no known mistake explains
    ):
        assert said in page.text
    labels = " ".join(a["aria-label"] for _, a in page.tags if a.get("role") == "img")
    assert "13 passed" in labels
    order = [page.text.index(f"Title of {id}", page.text.index("were hard")) for id in "bca"]
    assert order[0] > order[1] < order[2]  # hardest first
    assert ("a", {"href": "feedback/ada.html"}) in page.tags


@pytest.mark.parametrize("most", [0.5, 1.0, 3.0, 22.0, 25.0, 47.0, 100.0, 999.0])
def test_every_grade_is_in_one_bin(most):
    results = [submission(str(k), exercise("a", "partial", most * k / 40, most)) for k in range(41)]
    bins = _bins(results, most)
    assert sum(n for *_, n in bins) == 41
    assert len(bins) <= 12
    assert bins[0][0] == 0
    assert bins[-1][1] >= most


def test_a_summary_of_nothing():
    Page(summary([], "T", {}))
    Page(summary([submission("x", exercise("a", "missing", 0), path="")], "T", {}))


def test_files(tmp_path):
    write_pages(tmp_path, [mixed()], {"ada": "ada"}, "T")
    assert (tmp_path / "feedback" / "ada.html").read_text().startswith("<!doctype html>")
    assert 'href="feedback/ada.html"' in (tmp_path / "summary.html").read_text()
