"""The students' bundle."""

import hashlib
import json
import zipfile

import pytest

from minids3.grade.handout.release import release
from minids3.grade.submissions.pristine import Pristine


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
    assert "**25**" in text  # 22 points of notebook 03, 3 of notebook 00
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
