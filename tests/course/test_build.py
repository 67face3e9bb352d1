"""The build on a small notebook of its own, through nbclient and a real nbval run."""

import re
import shutil
import subprocess
import sys

import nbformat
import pytest

from minids3.course import build as b
from minids3.course import repository
from minids3.course.__main__ import main
from minids3.course.build import cells
from minids3.course.build.execute import _tidy as tidy

TINY = """\
# %% [markdown]
# # 00 · Tiny
# {{badge}}

# %%
# SETUP

# %% [markdown]
# EXERCISE text
# Write `rms_norm`.

# %%
# EXERCISE rms-norm

# %%
# CHECK rms-norm

# %% tags=["nbval-check-output"]
print(tuple(rms_norm(torch.ones(2, 4), torch.ones(4)).shape))

# %%
x = 1

# %%
x = 1
"""


@pytest.fixture
def tiny(tmp_path):
    folder = tmp_path / "notebooks" / "source"
    folder.mkdir(parents=True)
    path = folder / "00_start_here.py"
    path.write_text(TINY)
    return cells.Source(path)


def cell(notebook, id):
    return next(c for c in notebook.cells if c.id == id)


def test_student_notebook(tiny):
    nb = cells.student(tiny)
    assert "colab.research.google.com/github/" in nb.cells[0].source
    assert 'setup("00_start_here")' in cell(nb, "setup").source
    assert nb.cells[2].source.startswith("Write `rms_norm`.")
    assert "Difficulty 1 of 5 · importance 3 of 5 · 5 minutes" in nb.cells[2].source
    answer, graded = cell(nb, "answer-rms-norm"), cell(nb, "check-rms-norm")
    assert answer.source.startswith("# EXERCISE rms-norm\ndef rms_norm(x, weight, eps=1e-6):")
    assert answer.source.endswith("raise NotImplementedError")
    assert answer.metadata.nbgrader.solution
    assert not answer.metadata.nbgrader.grade
    assert graded.source == 'rms_norm = check("rms-norm", rms_norm)'
    assert graded.metadata.nbgrader.locked
    assert graded.metadata.nbgrader.points == 3
    assert len({c.id for c in nb.cells}) == len(nb.cells)
    assert nb.metadata.colab.name == "00_start_here.ipynb"
    assert b.text_of(nb) == b.text_of(cells.student(tiny))


def test_ids_stay_when_a_cell_is_inserted(tiny):
    before = [c.id for c in cells.student(tiny).cells]
    tiny.path.write_text(TINY.replace("# %%\n# SETUP", "# %% [markdown]\n# New.\n\n# %%\n# SETUP"))
    after = [c.id for c in cells.student(tiny).cells]
    assert [i for i in after if i in before] == before
    assert len(after) == len(before) + 1


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("# EXERCISE rms-norm", "# EXERCISE rms-nrm", "Did you mean rms-norm"),
        ("# CHECK rms-norm", "y = 2", "one '# CHECK id' cell for each of rms-norm"),
        ("x = 1\n", "# EXERCISE rms-norm\n", "one '# EXERCISE id' cell"),
        ("x = 1\n", "x = = 1\n", r"cell 7: .* in line 1"),
    ],
)
def test_bad_sources_are_refused(tiny, old, new, words):
    tiny.path.write_text(TINY.replace(old, new, 1))
    with pytest.raises(cells.BuildError, match=words):
        cells.student(tiny)


def test_a_solution_with_a_name_the_notebook_lacks(tiny, monkeypatch):
    source = "def rms_norm(x, weight, eps=1e-6):\n    '''Doc.'''\n    return helper(x) + math.pi"
    monkeypatch.setattr(cells, "source_of", lambda id: source)
    with pytest.raises(cells.BuildError, match="uses helper, which no earlier cell defines"):
        cells.student(tiny, solved=True)


def test_build_check_and_drift(tiny):
    assert [re.sub(r".*/notebooks/", "", s).split(";")[0] for s in b.check(tiny)] == [
        "notebooks/00_start_here.ipynb is missing",
        "notebooks/solutions/00_start_here.ipynb is missing",
    ]
    assert len(b.build(tiny)) == 2
    assert list(b.check(tiny)) == []
    solved = nbformat.read(tiny.solved_path, as_version=4)
    assert re.search(r"rms-norm +(\d+) of \1\n", cell(solved, "check-rms-norm").outputs[0].text)
    assert all(c.execution_count for c in solved.cells if c.cell_type == "code")
    assert "execution" not in str([c.metadata for c in solved.cells])
    first = tiny.solved_path.read_bytes(), tiny.student_path.read_bytes()
    assert b.build(tiny, run=False) == []
    assert first == (tiny.solved_path.read_bytes(), tiny.student_path.read_bytes())

    tiny.path.write_text(TINY.replace("# Write", "# Now write"))
    found = list(b.check(tiny))
    assert len(found) == 2
    assert all("cell 3" in s and "python -m minids3.course build 00" in s for s in found)

    tiny.path.write_text(TINY)
    cell(solved, "answer-rms-norm").execution_count = None
    nbformat.write(solved, tiny.solved_path)
    assert any("was never executed" in s for s in b.check(tiny))
    error = nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])
    cell(solved, "answer-rms-norm").outputs = [error]
    nbformat.write(solved, tiny.solved_path)
    assert any("holds an error" in s for s in b.check(tiny))


def nbval(path, *, home):
    run = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--nbval-lax"]
    run += ["--nbval-current-env", "-q", "-rA", "--rootdir", str(path.parent), path.name]
    done = subprocess.run(run, cwd=path.parent, capture_output=True, text=True)
    found = re.findall(r"^(PASSED|FAILED) .*::Cell (\d+)", done.stdout, re.MULTILINE)
    return {int(number): outcome for outcome, number in found}, done.stdout


def test_nbval_fails_exactly_at_the_check_cells(tiny, home):
    b.build(tiny)
    outcome, _ = nbval(tiny.solved_path, home=home)
    assert set(outcome.values()) == {"PASSED"}
    assert len(outcome) == 6

    # The student's notebook gets the solved one's output in the cell that nbval compares: that
    # output must be there although the reader's function is a stub.
    student, solved = (
        nbformat.read(p, as_version=4) for p in (tiny.student_path, tiny.solved_path)
    )
    for field in ("outputs", "execution_count"):
        student.cells[5][field] = solved.cells[5][field]
    nbformat.write(student, tiny.student_path)
    outcome, text = nbval(tiny.student_path, home=home)
    assert [n for n, o in sorted(outcome.items()) if o == "FAILED"] == [2]
    assert len(outcome) == 6
    assert "still a stub" in text
    assert str(tiny.path.parent) not in text.split("Traceback:")[1].split("====")[0]


def test_nbval_with_a_syntax_error_in_the_answer(tiny, home):
    nb = cells.student(tiny)
    cell(nb, "answer-rms-norm").source = "# EXERCISE rms-norm\ndef rms_norm(x, weight:\n  pass"
    tiny.student_path.write_text(b.text_of(nb))
    outcome, text = nbval(tiny.student_path, home=home)
    assert [n for n, o in sorted(outcome.items()) if o == "FAILED"] == [1, 2]
    assert "rms_norm is not defined" in text


def test_repository_is_rewritten(tmp_path, monkeypatch):
    root = tmp_path / "clone"
    (root / "notebooks" / "source").mkdir(parents=True)
    shutil.copy(repository.root() / "pyproject.toml", root / "pyproject.toml")
    monkeypatch.setattr(repository, "root", lambda: root)
    old = repository.address().removeprefix("https://github.com/")
    other = f"https://github.com/{old}-other"
    (root / "README.md").write_text(
        f"https://github.com/{old} https://colab.research.google.com/github/{old}/blob/x {other} "
        f"https://github.com/{old}.git, https://github.com/{old}."
    )
    changed = repository.set_address("octocat/fork-1.x")
    assert [p.name for p in changed] == ["pyproject.toml", "README.md"]
    assert repository.address() == "https://github.com/octocat/fork-1.x"
    assert (root / "README.md").read_text() == (
        "https://github.com/octocat/fork-1.x "
        f"https://colab.research.google.com/github/octocat/fork-1.x/blob/x {other} "
        "https://github.com/octocat/fork-1.x.git, https://github.com/octocat/fork-1.x."
    )
    with pytest.raises(ValueError, match="is not OWNER/NAME"):
        repository.set_address("https://github.com/a/b")


def test_changed_files_are_told_with_their_folders(monkeypatch, capsys, tiny):
    root = repository.root()
    made = [root / "notebooks" / "00.ipynb", root / "notebooks" / "solutions" / "00.ipynb"]
    monkeypatch.setattr(repository, "set_address", lambda name: [root / "README.md"])
    monkeypatch.setattr("minids3.course.build.sources", lambda: [tiny])
    monkeypatch.setattr("minids3.course.build.build", lambda source, run: made)
    assert main(["repository", "octocat/fork"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "changed README.md",
        "changed notebooks/00.ipynb",
        "changed notebooks/solutions/00.ipynb",
    ]


@pytest.mark.parametrize("bar", ["  0%|   | 0/9 [00:00<?, ?it/s]", "a, b:  50%|#| 3/6 [00:01<?]"])
def test_bars_are_not_kept_and_tables_are(bar):
    told = "share | 50%| [a]\n0%|x| [b]"
    outputs = [
        nbformat.v4.new_output("display_data", {"text/plain": text}) for text in (bar, "5 %", told)
    ]
    assert [o.data["text/plain"] for o in tidy(outputs)] == ["5 %", told]
