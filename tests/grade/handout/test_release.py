"""The students' bundle."""

import ast
import hashlib
import json
import subprocess
import zipfile

import pytest

from minids3.grade.handout.autograder import grade_folder, results_of, write_autograders
from minids3.grade.handout.release import release
from minids3.grade.records import ExerciseResult, ItemResult, SubmissionResult
from minids3.grade.submissions.pristine import Pristine, find_notebook


def test_bundle(tmp_path):
    out = tmp_path / "week3"
    made = release(["03", "00_start_here"], out, pack=True)
    assert sorted(p.name for p in made) == [
        "00_start_here.ipynb",
        "03_latent_attention.ipynb",
        "README.md",
        "manifest.json",
    ]
    for path in out.glob("*.ipynb"):
        notebook = Pristine.read(path)
        assert all(notebook.is_stub(e.exercise, e.source) for e in notebook.exercises)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["notebooks"]["03_latent_attention"]["exercises"][0] == "mla-compress"
    for name, digest in manifest["sha256"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    text = (out / "README.md").read_text()
    assert "minids3 grade --self 03_latent_attention.ipynb" in text
    assert "**28**" in text  # 25 points of notebook 03, 3 of notebook 00
    first = (tmp_path / "week3.zip").read_bytes()
    release(["03", "00_start_here"], out, pack=True)  # again, over itself
    assert (tmp_path / "week3.zip").read_bytes() == first
    assert "week3/README.md" in zipfile.ZipFile(tmp_path / "week3.zip").namelist()


def test_pictures_come_along(save, student, tmp_path):
    student["cells"][0]["source"] = "# Title\n![loss](images/a.png) ![x](../secret.png)"
    path = save(student, "src", "03_latent_attention.ipynb")
    (path.parent / "images").mkdir()
    (path.parent / "images" / "a.png").write_bytes(b"png")
    (tmp_path / "secret.png").write_bytes(b"no")
    release([str(path)], tmp_path / "out")
    assert (tmp_path / "out" / "images" / "a.png").read_bytes() == b"png"
    assert not (tmp_path / "secret.png").samefile(tmp_path / "out" / "images" / "a.png")


def test_refuses_answers_outputs_and_strangers(save, solved, student, tmp_path):
    path = save(solved, "03_latent_attention.ipynb")
    with pytest.raises(ValueError, match="has outputs"):
        release([str(path)], tmp_path / "out")
    for c in solved["cells"]:
        c["outputs"] = []
    save(solved, "03_latent_attention.ipynb")
    with pytest.raises(ValueError, match="mla-compress is answered"):
        release([str(path)], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"thesis\.tex"):
        release(["03"], tmp_path / "full")


def test_an_autograder_for_gradescope(tmp_path):
    (made,) = write_autograders(["03"], tmp_path / "week3")
    assert made == tmp_path / "03_latent_attention-autograder.zip"  # not in the students' bundle
    with zipfile.ZipFile(made) as pack:
        names = set(pack.namelist())
        assert {"setup.sh", "run_autograder", "notebooks/03_latent_attention.ipynb",
                "minids3/pyproject.toml", "minids3/src/minids3/grade/cli.py"} <= names  # fmt: skip
        assert not any("__pycache__" in n or n.startswith("minids3/tests") for n in names)
        run = pack.read("run_autograder").decode()
        module = "minids3.grade.handout.autograder"
        assert module in run
        assert f"minids3/src/{module.replace('.', '/')}.py" in names
        assert "source/notebooks/03_latent_attention.ipynb submission results/results.json" in run
        for script in ("setup.sh", "run_autograder"):
            assert pack.getinfo(script).external_attr >> 16 == 0o755
            done = subprocess.run(["bash", "-n"], input=pack.read(script))
            assert done.returncode == 0
        ast.parse(pack.read("minids3/src/minids3/grade/cli.py"))


def test_results_as_gradescope_reads_them(tmp_path):
    items = [ItemResult("y is right", "no", "at [0] it is 2")]
    wrong = ExerciseResult("a", "A", 1.5, 3, "partial", items, diagnosis="You divided twice.")
    waits = ExerciseResult("b", "B", 0, 2, "forbidden", notes=["calls f", "for a human: uses os"])
    result = SubmissionResult("s", "03_x", "x.ipynb", [wrong, waits]).total()
    made = results_of(result)
    assert json.loads(json.dumps(made)) == made
    assert made["tests"][0]["score"] == 1.5
    assert made["tests"][0]["output"] == "You divided twice.\ny is right: at [0] it is 2"
    assert "score" not in made["tests"][1]  # nobody has decided
    assert "score" not in made
    assert "uses os" not in made["tests"][1]["output"]
    assert made["tests"][2]["visibility"] == "hidden"
    result.exercises.pop()
    assert results_of(result.total())["score"] == 1.5
    (tmp_path / "submission").mkdir()
    (tmp_path / "submission" / "essay.pdf").write_bytes(b"%PDF")
    got = grade_folder(find_notebook("03"), tmp_path / "submission", 1)
    assert {e.status for e in got.exercises} == {"needs a human"}
    assert "score" not in results_of(got)
