"""The site, as a reader's browser has it: no network, no error, folds, search, both themes."""

import json
import re

import pytest
from browser.helpers import ROOT, serious

SITE = ROOT / "build" / "site"
# Checklists and worked answers that a reader sees without having opened them.
OPEN = """() => [...document.querySelectorAll('article pre')]
  .filter(p => /The notebook goes on with your|^# EXERCISE /.test(p.textContent))
  .map(p => [p.textContent.slice(0, 80), !p.closest('details:not([open])')])"""
GROUND = "getComputedStyle(document.body).backgroundColor"
FILTERS = "all => all.map(i => getComputedStyle(i).filter)"
PAGES = ["index", "instructor_guide", "sources", "ERRATA"]
PAGES += sorted(p.stem for p in (ROOT / "notebooks" / "solutions").glob("[0-9][0-9]_*.ipynb"))


def test_under_thirty_megabytes():
    size = sum(p.stat().st_size for p in SITE.rglob("*") if p.is_file())
    assert 1e6 < size < 30e6


def test_every_page_reads_without_network_and_errors(site, open_page):
    watched = open_page(site)
    page, links, folded = watched.page, set(), 0
    for name in PAGES:
        page.goto(f"{site}/{name}.html")
        assert page.locator("article h1").count() == 1, name
        for text, open_ in page.evaluate(OPEN):
            assert not open_, f"{name}: {text}"
            folded += 1
        alts = page.eval_on_selector_all("article img", "all => all.map(i => i.alt.trim())")
        assert all(alts), name
        found = page.eval_on_selector_all("article a[href]", "all => all.map(a => a.href)")
        links |= {u.split("#")[0] for u in found if u.startswith(site)}
    books = (json.loads(p.read_text("utf-8")) for p in (SITE / "files" / "solved").glob("*.ipynb"))
    ids = [cell.get("id", "") for book in books for cell in book["cells"]]
    assert folded == sum(id.startswith(("answer-", "check-")) for id in ids) > 100
    assert len(links) > 3 * 15  # notebooks to read, to solve, solved
    for link in links:
        assert page.request.get(link).ok, link
    watched.clean()


@pytest.mark.parametrize("width", [1280, 1024, 400])
def test_no_page_is_wider_than_its_window(width, site, open_page):
    page = open_page(site, width=width).page
    for name in ("index", "00_start_here", "03_latent_attention", "08_fp8_numbers", "sources"):
        page.goto(f"{site}/{name}.html")
        wide = page.evaluate("document.scrollingElement.scrollWidth")
        assert wide <= width + 1, f"{name} is {wide} pixels wide"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(scheme, site, open_page):
    page = open_page(site, scheme=scheme).page
    for name in ("index", "00_start_here", "sources"):
        page.goto(f"{site}/{name}.html")
        page.wait_for_selector(f"html[data-theme={scheme}]")
        assert serious(page, "article") == [], name
        assert set(page.eval_on_selector_all("article img", FILTERS)) <= {"none"}, name


def test_answers_and_checklists_are_folded_and_open(site, open_page):
    page = open_page(site).page
    page.goto(f"{site}/00_start_here.html")
    list_ = page.get_by_text("The notebook goes on with your rms_norm.")
    answer = page.locator("details", has_text="def rms_norm")
    for hidden in (list_, answer.locator("pre").first):
        assert not hidden.is_visible()
    page.locator("details", has=list_).locator("summary").click()
    answer.locator("summary").first.click()
    assert list_.is_visible()
    assert answer.locator("pre").first.is_visible()


def test_colab_and_files_are_one_click_away(site, open_page):
    page = open_page(site).page
    for name in PAGES[4:6]:
        page.goto(f"{site}/{name}.html")
        colab = page.get_by_role("link", name="Open in Colab").first.get_attribute("href")
        assert re.fullmatch(r"https://colab\.research\.google\.com/github/.+\.ipynb", colab)
        assert colab.endswith(f"/notebooks/{name}.ipynb")
        for folder in ("files", "files/solved"):
            answer = page.request.get(f"{site}/{folder}/{name}.ipynb")
            assert answer.ok
            assert answer.json()["nbformat"] == 4


def test_search_finds_a_word_of_a_notebook(site, open_page):
    watched = open_page(site)
    watched.page.goto(f"{site}/search.html?q=absorb")
    watched.page.locator("#search-results a").first.wait_for()
    found = watched.page.eval_on_selector_all("#search-results a", "a => a.map(x => x.href)")
    assert any("03_latent_attention" in link for link in found)
    watched.clean()


def test_the_theme_can_be_switched(site, open_page):
    page = open_page(site).page
    page.goto(f"{site}/00_start_here.html")
    page.wait_for_function("document.documentElement.dataset.mode")
    before = page.evaluate(GROUND)
    page.locator(".theme-switch-button:visible").first.click()  # its menu: system, light, dark
    page.locator(".theme-change-button[data-mode=dark]:visible").first.click()
    page.wait_for_function("document.documentElement.dataset.theme == 'dark'")
    page.wait_for_function(f"old => {GROUND} != old", arg=before)
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"  # it is remembered
