"""What a newcomer meets first: threads, money, no network, machines without Triton."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement

from minids3.course.build import sources, student
from minids3.course.build.cells import BuildError, _no_stray_maths

ROOT = Path(__file__).parents[2]


def python(code, **env):
    kept = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "PYTEST_VERSION")}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**kept, **env}
    )


# threads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [None, "ACTIVE"])
def test_threads_are_told_to_wait_before_torch_is_imported(given):
    code = (
        "import minids3, os, sys\n"
        "assert 'torch' not in sys.modules\n"
        "print(os.environ['OMP_WAIT_POLICY'])"
    )
    done = python(code, **({"OMP_WAIT_POLICY": given} if given else {}))
    assert done.stdout.strip() == (given or "PASSIVE"), done.stderr


def test_set_up_cell_imports_the_library_before_torch():
    (cell,) = (c for c in student(sources(["00"])[0]).cells if c.id == "setup")
    order = re.findall(r"^(?:import|from) ([\w.]+)", cell.source, re.MULTILINE)
    first = next(i for i, name in enumerate(order) if name.startswith(("torch", "numpy")))
    assert "minids3" in order[:first]


# money --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        r"It costs \$1 or \$2 a million.",
        "It costs \\$1\nor \\$2 a million.",
        r"| a | **\$0.14 in, \$0.28 out** |",
        "- one: \\$5\n  and \\$6",
        "It costs $5.",
    ],
)
def test_amounts_that_would_become_a_formula_are_refused(text):
    with pytest.raises(BuildError, match="formula"):
        _no_stray_maths(text, "here")


@pytest.mark.parametrize(
    "text",
    [
        r"It costs \$1 or 2 dollars, and $a + b$ is a sum.",
        "It costs \\$1.\n\nOr \\$2.",
        "- \\$1\n- \\$2",
        r"| \$1 | \$2 |" + "\n" + r"| \$3 | 4 |",
        "`$HOME` and `$PATH`\n\n```\n$1 $2\n```",
    ],
)
def test_other_dollars_are_let_through(text):
    _no_stray_maths(text, "here")


def html_outputs():
    for path in sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb")):
        for number, cell in enumerate(nbformat.read(path, as_version=4).cells):
            for output in cell.get("outputs", ()):
                for kind in ("text/html", "text/markdown"):
                    if kind in output.get("data", {}):
                        yield f"{path.name}, cell {number}", output["data"][kind]


def test_no_output_holds_two_dollars_in_one_run_of_text():
    """MathJax joins what no tag but <br> and <wbr> divides."""
    found = 0
    for where, page in html_outputs():
        for text in re.split(r"<(?!/?w?br\b)[^>]*>", page):
            found += "$" in text
            assert text.count("$") < 2, f"{where}: {text}"
    assert found > 10  # the bills do speak of money


# no network ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["notebooks", "notebooks/solutions"])
def test_opening_a_notebook_fetches_nothing(folder):
    """Images, styles and scripts are those of the notebook itself; links are only links."""
    fetched = re.compile(r"!\[[^]]*\]\(\s*https?:|(?:src|srcset)\s*=\s*[\"']?(?:https?:)?//|url\(")
    paths = sorted((ROOT / folder).glob("*.ipynb"))
    assert len(paths) > 10
    for path in paths:
        for cell in nbformat.read(path, as_version=4).cells:
            pages = [cell.source] if cell.cell_type == "markdown" else []
            for output in cell.get("outputs", ()):
                pages += [v for k, v in output.get("data", {}).items() if k.startswith("text/h")]
            for page in pages:
                assert not fetched.search(page), f"{path.name}: {page[:200]}"


# no Triton ----------------------------------------------------------------------------------------

CELLS = [
    "from minids3.course import check, setup\nsetup('07_first_triton_kernels')",
    "import triton\nimport triton.language as tl\nseven = 7",
    "@triton.jit\ndef kernel(x_ptr):\n    pass",
    "add_kernel = check('triton-add', add_kernel)",
    "before = 1",
    "table = {}\nkernel[(1,)](before)\nafter = 2",
    "print(after)",
    "table[3]",
    "before + 1",
    "from minids3.kernels.vector import add\nimport torch\nadd(torch.ones(3), torch.ones(3))",
    "from minids3.kernels.compile import inspect\ninspect(add, 't4', signature={})",
    "rows = [before for _ in range(3)]\nrows[-1]",
    "no_such_name",
    "import no_such_module",
    "1 / 0",
]
WANTED = ["", *["skip"] * 3, "None", *["skip"] * 3, "2", "skip", "skip", "1"]
WANTED += ["NameError", "ModuleNotFoundError", "ZeroDivisionError"]


def test_without_triton_a_notebook_is_read_to_its_end(tmp_path):
    code = f"""
import io, contextlib, sys
sys.modules["triton"] = None
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for cell in {CELLS!r}:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        done = shell.run_cell(cell)
    text = out.getvalue()
    error = done.error_in_exec
    if error is not None:
        print("#", type(error).__name__)
    elif "skipped, no Triton" in text:
        print("# skip", done.result if not text.startswith("triton-add") else None)
    else:
        print("#", "" if "ready" in text or "needs" in text else done.result, )
    if "Notebook 07" in text:
        print("SET-UP", " ".join(text.split()))
"""
    env = {"MINIDS3_HOME": str(tmp_path), "TRITON_INTERPRET": "1", "IPYTHONDIR": str(tmp_path)}
    done = python(code, **env)
    assert done.returncode == 0, done.stderr
    answers = [line[2:] for line in done.stdout.splitlines() if line.startswith("# ")]
    assert [a.split()[0] if a.split() else "" for a in answers[1:]] == WANTED[1:]
    assert "skip None" in answers
    (said,) = (line for line in done.stdout.splitlines() if line.startswith("SET-UP"))
    assert "there is none here" in said
    assert "notebooks/solutions/07_first_triton_kernels.ipynb" in said
    assert not (tmp_path / "progress.json").exists()


@pytest.mark.parametrize("kind", ["read-only", "full", "writable", "chosen"])
def test_where_triton_keeps_what_it_compiled(kind, tmp_path, monkeypatch):
    import tempfile

    from minids3.kernels import language

    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("TRITON_HOME", str(home))
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    if kind == "chosen":
        monkeypatch.setenv("TRITON_CACHE_DIR", "/a/place")
    if kind == "read-only":
        (home / ".triton").write_text("a file, so that nothing can be made below it")
    if kind == "full":

        def full(*args, **kwargs):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(tempfile, "TemporaryFile", full)
    language._choose_cache()
    chosen = os.environ.get("TRITON_CACHE_DIR")
    if kind in ("read-only", "full"):
        assert Path(chosen).parent == Path(tempfile.gettempdir())
        assert "triton" in chosen
    else:
        assert chosen == ("/a/place" if kind == "chosen" else None)
    monkeypatch.setenv("TRITON_CACHE_DIR", "put back")  # so that monkeypatch undoes what was set


@pytest.mark.parametrize(
    ("system", "machine", "wanted"),
    [
        ("Linux", "x86_64", True),
        ("Linux", "aarch64", True),
        ("Linux", "riscv64", False),
        ("Darwin", "arm64", False),
        ("Windows", "AMD64", False),
    ],
)
def test_triton_is_installed_where_there_is_one(system, machine, wanted):
    """PyPI has wheels of Triton for Linux, on ARM since 3.5."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (line,) = [x for x in re.findall(r'"(triton[^"]*)"', text) if ";" in x]
    marker = Requirement(line).marker
    assert marker.evaluate({"platform_system": system, "platform_machine": machine}) == wanted


# colours of feedback pages ------------------------------------------------------------------------


def test_words_on_feedback_pages_have_a_contrast_of_four_and_a_half():
    from minids3.viz.legible import contrast

    css = (ROOT / "src/minids3/grade/reports/templates/page.css").read_text(encoding="utf-8")
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w{6});", part)) for part in css.split("@media")[:2]
    )
    pairs = [(name, f"{name}-bg") for name in ("ok", "some", "no", "look", "none")]
    pairs += [(ink, ground) for ink in ("ink", "soft", "look") for ground in ("paper", "ground")]
    pairs += [(ink, "code") for ink in ("k", "s", "c", "n", "ink")]
    for theme in (light, {**light, **dark}):
        for ink, ground in pairs:
            assert contrast(theme[ink], theme[ground]) >= 4.5, (ink, ground)


# the site -----------------------------------------------------------------------------------------


def test_readme_begins_with_the_site_of_this_repository():
    from minids3.course.repository import address, pages

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert pages("https://github.com/Octo-Cat/a.book") == "https://octo-cat.github.io/a.book/"
    links = re.findall(r"\]\(([^)]+)\)", readme)
    assert links[0] == pages(address())


def test_the_site_folds_answers_and_checklists_and_links_files_that_exist(tmp_path):
    """What ``make site`` gives to Sphinx; ``make browser`` looks at the pages."""
    import json
    import runpy

    book = runpy.run_path(str(ROOT / "book" / "prepare.py"))
    names = book["prepare"](tmp_path / "site")
    solved = {p.stem for p in (ROOT / "notebooks" / "solutions").glob("[0-9][0-9]_*.ipynb")}
    assert set(names) == solved
    toc = (tmp_path / "site" / "index.md").read_text(encoding="utf-8")
    for name in names:
        assert f"\n{name}\n" in toc
        shown = json.loads((tmp_path / "site" / f"{name}.ipynb").read_text(encoding="utf-8"))
        tags = {c["id"]: c["metadata"].get("tags", []) for c in shown["cells"] if "id" in c}
        for id, given in tags.items():
            if id.startswith("check-"):
                assert given == ["hide-output"]
            if id.startswith("answer-"):
                assert given == ["hide-input"]
        assert any(id.startswith("check-") for id in tags)
        for link in re.findall(r"href='(files/[^']+)'", shown["cells"][0]["source"]):
            assert (tmp_path / "site" / "extra" / link).is_file()
        assert shown["cells"][0]["source"].count("href='files/") == 2
    with pytest.raises(SystemExit, match="does not exist"):
        book["relink"]("[a](no_such.md)", ROOT / "notebooks", set(), "https://github.com/a/b")
