"""What docstrings and notebooks cite stands in notebooks/sources.md, short names included."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "notebooks/sources.md").read_text(encoding="utf-8")
PLACES = ("src", "notebooks/source", "tests")
FILES = [p for place in PLACES for p in sorted((ROOT / place).rglob("*.py")) if p != Path(__file__)]
CERTAIN = ("verified", "computed", "second-hand", "unverified")

PLACE = re.compile(
    r"\b(TR|ISCA|LFB)[, ]+(sections?|eq\.|equations?|tables?|figures?|appendix)"
    r" ((?:[A-Z]\.)?\d+(?:\.\d+)*)(?:(?:-| to )(\d+))?"
)
ENTRY = re.compile(r"\[(?!A-Z)((?:[A-Z][A-Z0-9]*|2nd)-[A-Za-z0-9][\w.-]*)\]")
TAG = re.compile(r"\[(2nd|C|[A-Z][A-Z0-9]{1,4})\]|\b([A-Z]{2,5})[, ]+(?:section|table|eq\.) \d")
PAPER = re.compile(r"\b[arA]+Xiv:?\s*(\d{4}\.\d{5})")


def rows(heading):
    """Cells of the tables' rows below a heading, up to the next."""
    part = PAGE.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    found = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ")]
    return found[1:]


def entries():
    """Name of each entry, and its cells."""
    pattern = re.compile(r'^\| <a id="([^"]+)"></a>(\S+) \| (.+) \| (.+) \| (.+) \|$', re.M)
    return [match.groups() for match in pattern.finditer(PAGE)]


def prose(path):
    """A file as one line: citations may be broken by an end of line and a comment's sign."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return " ".join(re.sub(r"^\s*#? ?", "", line).strip() for line in lines)


def places(text):
    """Each place named in a text, such as ("TR", "eq", "12"); a range names all that it holds."""
    for source, kind, first, last in PLACE.findall(text):
        kind = {"equation": "eq", "eq.": "eq"}.get(kind.rstrip("s"), kind.rstrip("s"))
        numbers = range(int(first), int(last) + 1) if last else [first]
        yield from ((source, kind, str(n)) for n in numbers)


def missing(pattern_of, known):
    """What files cite and ``known`` lacks, by file."""
    lacking = {}
    for path in FILES:
        wrong = sorted(set(pattern_of(prose(path))) - known)
        if wrong:
            lacking[str(path.relative_to(ROOT))] = wrong
    return lacking


SHORT = {row[0] for row in rows("Short names")}


def test_each_entry_has_one_name_a_source_and_a_certainty():
    found = entries()
    assert len(found) == PAGE.count("<a id=")
    assert len(found) > 100
    names = [anchor for anchor, *_ in found]
    assert len(set(names)) == len(names)
    for anchor, name, figure, source, sure in found:
        assert anchor == name
        assert name.split("-")[0] in SHORT, name
        assert figure
        assert source
        assert sure.startswith(CERTAIN), (name, sure)


def test_places_that_are_cited_stand_on_the_page():
    cited = missing(places, set(places(PAGE)))
    assert cited == {}


def test_entries_that_are_cited_exist():
    names = {anchor for anchor, *_ in entries()}
    assert missing(ENTRY.findall, names) == {}
    assert set(ENTRY.findall(PAGE)) <= names
    cited = {name for path in FILES for name in ENTRY.findall(prose(path))}
    assert {"C-params", "C-flops", "HF-mtp-order"} <= cited  # the pattern finds what is there


def test_short_names_are_defined():
    def tags(text):
        return {a or b for a, b in TAG.findall(text)}

    # Kinds of token, constants and the like in brackets.
    own = {"AP", "CHAIN", "DONE", "DOT", "JOB", "LAYER", "NAME", "NEW", "ROWS", "SIGN"}
    assert missing(lambda text: tags(text) - own, SHORT) == {}


def test_sources_of_the_bill_and_of_machines_use_defined_names():
    from minids3.sim.bill import lines
    from minids3.sim.hardware import ACCELERATORS

    texts = [line.source for line in lines()] + [
        text for machine in ACCELERATORS.values() for text in machine.sources.values()
    ]
    for text in texts:
        words = set(re.findall(r"\b[A-Z][A-Z0-9]{1,4}\b", text))
        units = {"GPU", "MFU", "BF16", "FP8", "H800", "H100", "MTP", "TFLOPS", "KB", "1B", "NIC"}
        assert words - units <= SHORT, text


def test_papers_that_are_cited_are_listed_once():
    listed = [row[0] for row in rows("Papers")]
    assert len(set(listed)) == len(listed)
    named = PAPER.findall("\n".join(" ".join(row) for row in rows("Short names")))
    assert missing(PAPER.findall, set(listed) | set(named)) == {}


def test_nothing_points_to_a_page_that_is_not_here():
    for path in FILES:
        assert not re.search(r"facts section|\(facts[: ]|facts\.md", prose(path)), path


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("so (TR eq. 12-14)", [("TR", "eq", n) for n in ("12", "13", "14")]),
        ("ISCA table 4; LFB, section 4.1", [("ISCA", "table", "4"), ("LFB", "section", "4.1")]),
        ("(TR appendix B.2)", [("TR", "appendix", "B.2")]),
        ("TR equations 1 to 2.", [("TR", "eq", "1"), ("TR", "eq", "2")]),
        ("TR section 4.2.", [("TR", "section", "4.2")]),
    ],
)
def test_the_patterns_see_what_they_should(text, found):
    assert list(places(text)) == found
