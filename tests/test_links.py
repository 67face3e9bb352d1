"""Links lead somewhere: files, headings, sections of notebooks, and arXiv ids against sources.md.

Nothing here needs a network: the stored list of papers is the page of sources.
"""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"
SOURCES = [  # of notebooks that are built; others are being written
    path
    for path in sorted((NOTEBOOKS / "source").glob("[0-9][0-9]_*.py"))
    if (NOTEBOOKS / f"{path.stem}.ipynb").exists()
]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "AGENTS.md", "CHANGELOG.md")),
    *sorted(NOTEBOOKS.glob("*.md")),
]
LINK = re.compile(r"\[[^\]\n]*(?:\n[^\]\n]*)?\]\(([^)\s]+)\)")
PAPER = re.compile(r"\b(?:arXiv[: ]|arxiv\.org/(?:abs|pdf)/)\s*(\d{4}\.\d{4,5})")
SECTION = re.compile(r"(\S*) ?\bsections? (\d+)\.(\d+)(?![.\d])")
PLACE = re.compile(r"\b[Nn]otebook (\d\d)\.(\d+)")
MONTHS = "January February March April May June July August September October November December"


def markdown(path):
    """The markdown cells of a source, as one text; of a page, all of it."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    cells = re.split(r"(?m)^# %%(.*)$", text)
    words = [body for head, body in zip(cells[1::2], cells[2::2], strict=True) if "[mark" in head]
    return "\n\n".join(re.sub(r"(?m)^# ?", "", body) for body in words)


def anchors(path):
    """Names by which GitHub links to a page's headings, and those that it sets itself."""
    text = path.read_text(encoding="utf-8")
    titles = re.findall(r"(?m)^#+ (.+)$", text)
    plain = [re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", t)) for t in titles]
    return {t.strip().lower().replace(" ", "-") for t in plain} | set(
        re.findall(r'<a id="([^"]+)"', text)
    )


def broken(path, base):
    """Links of a page that lead nowhere, seen from the folder ``base``."""
    wrong = []
    for target in LINK.findall(markdown(path)):
        file, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            if not re.fullmatch(r"https://[\w.-]+\.\w+(/\S*)?", target):
                wrong.append(target)
            continue
        place = (base / file) if file else path
        if not place.exists() or (anchor and anchor not in anchors(place)):
            wrong.append(target)
    return wrong


def headings(number):
    """Section numbers ("6", "11") of a notebook's headings, as strings."""
    (path,) = (p for p in SOURCES if p.name.startswith(number))
    return set(re.findall(rf"(?m)^##+ {int(number)}\.(\d+)\b", markdown(path)))


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_links_of_pages(path):
    assert broken(path, path.parent) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_links_of_notebooks(path):
    assert broken(path, NOTEBOOKS) == []


@pytest.mark.parametrize("folder", [NOTEBOOKS, NOTEBOOKS / "solutions"], ids=lambda p: p.name)
def test_links_of_built_notebooks_lead_somewhere_from_where_they_lie(folder):
    files = 0
    for path in sorted(folder.glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for cell in (c for c in cells if c["cell_type"] == "markdown"):
            for target in LINK.findall("".join(cell["source"])):
                if not re.match(r"[a-z]+:|#", target):
                    files += 1
                    assert (folder / target.partition("#")[0]).exists(), (path.name, target)
    assert files > 10


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_a_notebook_leads_to_the_next_one_that_exists(path):
    number = int(path.name[:2]) + 1
    following = [p.stem for p in SOURCES if p.name.startswith(f"{number:02}")]
    last = markdown(path).rsplit("**Next:**", 1)
    assert len(last) == 2, "no **Next:**"
    linked = LINK.findall(last[1])
    assert linked == [f"{name}.ipynb" for name in following]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_sections_that_are_named_exist(path):
    text = " ".join(markdown(path).split("\n## References")[0].split())
    own = path.name[:2]
    missing = []
    for before, chapter, section in SECTION.findall(text):
        if re.search(r"[A-Z]", before.strip("(,;")):  # of a paper: "TR section 3.2"
            continue
        if int(chapter) == int(own) and section not in headings(own):
            missing.append(f"section {chapter}.{section}")
    known = {p.name[:2] for p in SOURCES}
    for number, section in PLACE.findall(text):
        if number in known and section not in headings(number):
            missing.append(f"notebook {number}.{section}")
    assert missing == []


def test_papers_are_on_the_stored_list():
    page = (NOTEBOOKS / "sources.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"(?m)^\| (\d{4}\.\d{5}) \|", page))
    named = set(PAPER.findall(page.split("\n## The model")[0]))
    for path in [*PAGES, *SOURCES]:
        if path.name != "sources.md":
            cited = set(PAPER.findall(path.read_text(encoding="utf-8").replace("\n# ", " ")))
            assert cited <= listed | named, path.name
    for paper in listed | named:
        assert 7 <= int(paper[:2]) <= 26, paper
        assert 1 <= int(paper[2:4]) <= 12, paper


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_every_notebook_says_what_became_of_its_idea_and_of_the_claim(path):
    text = markdown(path)
    became = re.split(r"What became of it\.?\**\n?", text)
    assert len(became) == 2
    box = became[1].split("\n## ")[0]
    assert re.search(rf"({'|'.join(MONTHS.split())}) 20\d\d", " ".join(box.split())), "undated"
    assert re.search(r"[Aa]rticle,\s+so\s+far", text)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_minutes_are_those_of_the_readme(path):
    row = re.search(
        rf"(?m)^\| {path.name[:2]} \| .* \| (\d+) \| ready \|$", (ROOT / "README.md").read_text()
    )
    assert row is not None
    takes = re.search(r"\*\*Takes\*\* about (\d+) minutes", markdown(path))
    assert takes is not None
    assert takes[1] == row[1]


def test_the_check_sees_a_broken_link(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A title, with a comma\n[a](missing.md) [b](#a-title-with-a-comma) [c](#no)")
    assert broken(page, tmp_path) == ["missing.md", "#no"]
    page.write_text("[here](http://insecure.example) [there](https://example.org/x)")
    assert broken(page, tmp_path) == ["http://insecure.example"]
