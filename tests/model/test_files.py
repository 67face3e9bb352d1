"""Model folders: what a save replaces, what a kill leaves, and what damage is called."""

import functools
import json
import os
import pathlib
import shutil
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepseek_twin import build
from minids3.config import get_config
from minids3.model import ModelFileError, Transformer, load_model, load_shipped, save_model
from minids3.model.files import STALE_WEIGHTS, finish_replacing, replace_files
from minids3.model.hf import load_hf, save_hf

STAGE = ".minids3-saving"
SMALL = {"num_hidden_layers": 2, "n_routed_experts": 4, "n_group": 2, "topk_group": 1}
SMALL |= {"num_experts_per_tok": 2}


@functools.cache
def small(seed=0):
    return build(seed, **SMALL)


@functools.cache
def tiny(seed=0):
    torch.manual_seed(seed)
    return Transformer(get_config("tiny"))


def shards(model, folder):
    return save_hf(model, folder, max_shard_bytes=50_000)


# How a model is made, saved and loaded.
WAYS = {
    "own": (tiny, save_model, load_model),
    "one file": (small, save_hf, load_hf),
    "shards": (small, shards, load_hf),
}


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if not p.is_dir()}


@pytest.mark.parametrize("way", WAYS)
def test_a_save_keeps_what_it_did_not_write(tmp_path, way):
    make, save, load = WAYS[way]
    foreign = {
        "chapters/1.tex": b"three years",
        "tokenizer.json": b"{}",
        "model.safetensors.bak": b"mine",
        "mymodel.safetensors": b"mine",
        "model-00001-of-00002.safetensors.txt": b"mine",
        "config.json.orig": b"mine",
        ".hidden": b"mine",
    }
    for name, content in foreign.items():
        (tmp_path / "m" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "m" / name).write_bytes(content)
    for seed in (1, 2):
        assert save(make(seed), tmp_path / "m") == tmp_path / "m"
    assert same(load(tmp_path / "m"), make(2))
    left = tree(tmp_path / "m")
    assert {name: left[name] for name in foreign} == foreign
    assert not any(name.startswith(STAGE) for name in left)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_shards_of_an_earlier_save_go(tmp_path):
    shards(small(), tmp_path)
    before = {p.name for p in tmp_path.iterdir()}
    assert len(before) >= 4
    for save, names in (
        (save_hf, {"config.json", "model.safetensors"}),
        (shards, before),
        (save_model, {"config.json", "model.safetensors", "about.json"}),
    ):
        save(small(), tmp_path)
        assert {p.name for p in tmp_path.iterdir()} - {"about.json"} == names - {"about.json"}


def test_links_are_followed_and_stay(tmp_path):
    real, link, blob = tmp_path / "real", tmp_path / "link", tmp_path / "blob"
    real.mkdir()
    blob.write_bytes(b"shared by others")
    link.symlink_to("real", target_is_directory=True)
    (real / "model.safetensors").symlink_to(blob)  # as in Hugging Face's cache
    save_model(tiny(), link)
    assert link.is_symlink()
    assert same(load_model(real), tiny())
    assert blob.read_bytes() == b"shared by others"
    (tmp_path / "dangling").symlink_to("later", target_is_directory=True)
    save_model(tiny(), tmp_path / "dangling")
    assert same(load_model(tmp_path / "later"), tiny())


@pytest.mark.parametrize("way", WAYS)
def test_what_is_in_the_way_is_named_and_kept(tmp_path, way):
    make, save, _ = WAYS[way]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ModelFileError, match="file is a file and no folder: move it"):
        save(make(), tmp_path / "file")
    (tmp_path / "m" / "config.json").mkdir(parents=True)
    (tmp_path / "m" / "config.json" / "notes").write_text("mine")
    with pytest.raises(ModelFileError, match=r"config\.json is a folder where a file must be"):
        save(make(), tmp_path / "m")
    with pytest.raises(OSError, match=r"file"):
        save(make(), tmp_path / "file" / "below")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises((ModelFileError, OSError), match="loop"):
        save(make(), tmp_path / "loop")
    (tmp_path / "loop").unlink()
    assert tree(tmp_path) == {"file": b"mine", "m/config.json/notes": b"mine"}


def test_a_full_disk_is_one_clear_line_and_changes_nothing(tmp_path):
    resource = pytest.importorskip("resource")
    for name, (make, save, _) in WAYS.items():
        save(make(), tmp_path / name)
    before = tree(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        for name, (make, save, _) in WAYS.items():
            with pytest.raises(OSError, match=r"cannot be written \(.*too large") as error:
                save(make(seed=1), tmp_path / name)
            assert "\n" not in str(error.value)
        with pytest.raises(OSError, match="cannot be written"):
            save_model(tiny(), tmp_path / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert tree(tmp_path) == before
    assert not (tmp_path / "new").exists()


def kill_everywhere(monkeypatch, folder, copies, save):
    """Save while copying ``folder`` before every step that changes it: what a kill would leave."""
    busy = False

    def copy():
        nonlocal busy
        busy = True
        shutil.copytree(folder, copies / f"{len(os.listdir(copies)):03d}", symlinks=True)
        busy = False

    def watched(real):
        def step(*args, **options):
            if not busy:
                copy()
            return real(*args, **options)

        return step

    def half_written(tensors, path, metadata=None):
        torn = path.with_name(".tmp-torn")
        torn.write_bytes(b"\0" * 99)
        copy()
        torn.unlink()
        save_file(tensors, path, metadata)

    copies.mkdir()
    with monkeypatch.context() as patch:
        for name in ("replace", "unlink", "mkdir", "rmdir"):
            step = watched(getattr(os, name))
            patch.setattr(os, name, step)
            if own := getattr(pathlib, "_NormalAccessor", None):  # Python 3.10's paths
                patch.setattr(own, name, staticmethod(step))
        patch.setattr("minids3.model.files.save_file", half_written)
        save()
    copy()
    return sorted(copies.iterdir())


@pytest.mark.parametrize(
    ("old", "new"), [("own", "own"), ("one file", "shards"), ("shards", "one file")]
)
def test_a_kill_at_any_step_leaves_the_old_model_or_the_new(tmp_path, monkeypatch, old, new):
    make, save_old, load = WAYS[old]
    save_new = WAYS[new][1]
    folder = tmp_path / "m"
    save_old(make(1), folder)
    (folder / "keep.txt").write_text("mine")
    first = tree(folder)
    found = kill_everywhere(
        monkeypatch, folder, tmp_path / "kills", lambda: save_new(make(2), folder)
    )
    last = tree(folder)
    models = []
    for killed in found:
        # Nobody who looks past the stage sees a mixture of both.
        visible = {n: c for n, c in tree(killed).items() if not n.startswith(STAGE)}
        assert visible.items() <= first.items() or visible.items() <= last.items(), killed
        model = load(killed)
        models.append(1 if same(model, make(1)) else 2)
        assert same(model, make(models[-1])), killed
        assert (killed / "keep.txt").read_text() == "mine"
        save_new(make(3), killed)  # and the next save cleans up
        assert same(load(killed), make(3))
        assert tree(killed).keys() == last.keys()
        assert not (killed / STAGE).exists()
    assert models == sorted(models)
    assert set(models) == {1, 2}
    assert len(found) > 12


def test_an_interruption_by_the_user_at_any_step(tmp_path, monkeypatch):
    save_model(tiny(1), tmp_path / "m")
    for stop_at in range(1, 40):
        calls = iter(range(1, 99))

        def interrupted(real, calls=calls, stop_at=stop_at):
            def step(*args, **options):
                if next(calls) == stop_at:
                    raise KeyboardInterrupt
                return real(*args, **options)

            return step

        with monkeypatch.context() as patch:
            for name in ("replace", "unlink", "rmdir"):
                patch.setattr(os, name, interrupted(getattr(os, name)))
            try:
                save_model(tiny(2), tmp_path / "m")
                break
            except KeyboardInterrupt:
                pass
        model = load_model(tmp_path / "m")
        assert same(model, tiny(1)) or same(model, tiny(2))
        if stop_at % 4 == 0:
            save_model(tiny(1), tmp_path / "m")
    assert 8 < stop_at < 39
    assert same(load_model(tmp_path / "m"), tiny(2))


def test_two_that_save_at_once_leave_one_whole_model(tmp_path):
    models = [tiny(1), tiny(2)]
    errors = []

    def work(model):
        try:
            for _ in range(8):
                save_model(model, tmp_path / "m")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(m,)) for m in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert any(same(load_model(tmp_path / "m"), model) for model in models)
    assert {p.name for p in (tmp_path / "m").iterdir()} == {
        "about.json",
        "config.json",
        "model.safetensors",
    }


def test_files_are_as_readable_as_any_new_file(tmp_path):
    old = os.umask(0o027)
    try:
        save_model(tiny(), tmp_path / "m")
    finally:
        os.umask(old)
    modes = {p.stat().st_mode & 0o777 for p in (tmp_path / "m").iterdir()}
    assert modes == {0o640}


def test_an_empty_block_asks_whether_a_folder_can_be_written(tmp_path):
    save_model(tiny(), tmp_path / "m")
    before = tree(tmp_path)
    with replace_files(tmp_path / "m"):
        pass
    assert tree(tmp_path) == before
    with pytest.raises(OSError, match="below"), replace_files(tmp_path / "m/config.json/below"):
        pass


@pytest.mark.parametrize(
    "journal",
    [
        b"",
        b"[]",
        b"\xff",
        b"{}",
        b'{"remove": 3, "move": []}',
        b'{"remove": ["../precious"], "move": []}',
        b'{"remove": [], "move": ["/etc/x"]}',
        b'{"remove": [[]], "move": []}',
    ],
)
def test_a_damaged_journal_removes_nothing(tmp_path, journal):
    (tmp_path / "precious").write_text("mine")
    folder = save_model(tiny(), tmp_path / "m")
    (folder / STAGE).mkdir()
    (folder / STAGE / "journal.json").write_bytes(journal)
    before = tree(tmp_path)
    for act in (lambda: load_model(folder), lambda: save_model(tiny(), folder)):
        with pytest.raises(ModelFileError, match=r"minids3-saving is damaged.*delete it"):
            act()
    assert tree(tmp_path) == before


def test_a_save_that_cannot_be_finished_says_so(tmp_path, monkeypatch):
    folder = save_model(tiny(1), tmp_path / "m")

    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("minids3.model.files._finish", lambda folder: None)
    save_model(tiny(2), folder)
    monkeypatch.undo()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(ModelFileError, match=r"cannot be finished.*may be writ"):
            load_model(folder)
    finish_replacing(folder)
    assert same(load_model(folder), tiny(2))


def test_any_file_can_be_replaced(tmp_path):
    for name in ("a-1.txt", "a-2.txt", "b.txt"):
        (tmp_path / name).write_text("old")
    with replace_files(tmp_path, stale=r"a-\d\.txt") as stage:
        (stage / "a-3.txt").write_text("new")
    assert {n: c.decode() for n, c in tree(tmp_path).items()} == {"a-3.txt": "new", "b.txt": "old"}
    with pytest.raises(FileNotFoundError), replace_files(tmp_path, STALE_WEIGHTS) as stage:
        (stage / "b.txt").rename(stage / "c.txt")
    assert (tmp_path / "b.txt").read_text() == "old"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_survive(tmp_path, dtype):
    model = build(**SMALL).to(dtype)
    for save, load in ((save_model, load_model), (save_hf, load_hf)):
        save(model, tmp_path / "m")
        again = load(tmp_path / "m")
        assert same(again, model)
        assert again.embed_tokens.weight.dtype == dtype
        assert again.layers[1].mlp.gate.expert_bias.dtype == torch.float32
        assert again.rope_cos.dtype == torch.float32
        assert all(p.requires_grad for p in again.parameters())


@pytest.mark.parametrize("way", ["own", "one file"])
def test_a_loaded_model_does_not_hang_on_its_file(tmp_path, way):
    make, save, load = WAYS[way]
    model = load(save(make(), tmp_path / "m"))
    weights = tmp_path / "m" / "model.safetensors"
    size = weights.stat().st_size
    with weights.open("r+b") as file:
        file.write(b"\xff" * size)
    assert same(model, make())


def test_models_without_numbers_are_not_saved(tmp_path):
    with torch.device("meta"):
        model = build()
    for save in (save_model, save_hf):
        with pytest.raises(ModelFileError, match="meta device"):
            save(model, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_damaged_weights_are_named(tmp_path):
    folder = save_model(tiny(), tmp_path / "m")
    weights = folder / "model.safetensors"
    state = load_file(weights)
    save_file({**state, "norm.weight": torch.ones(24, dtype=torch.int32)}, weights)
    with pytest.raises(ModelFileError, match=r"model\.safetensors: 'norm\.weight' holds torch.int"):
        load_model(folder)
    for content in (b"", b"\0" * 99, b"\xff" * 99):
        weights.write_bytes(content)
        with pytest.raises(ModelFileError, match=r"model\.safetensors is damaged"):
            load_model(folder)
    weights.unlink()
    weights.mkdir()
    with pytest.raises(ModelFileError, match=r"model\.safetensors is missing"):
        load_model(folder)


def test_a_folder_of_the_other_kind_is_called_so(tmp_path):
    save_hf(small(), tmp_path / "hf")
    with pytest.raises(ModelFileError, match=r"Hugging Face: minids3\.model\.hf\.load_hf"):
        load_model(tmp_path / "hf")
    save_model(small(), tmp_path / "own")
    with pytest.raises(ModelFileError, match=r"config\.json: model_type=None: only 'deepseek_v3'"):
        load_hf(tmp_path / "own")


def test_shipped_models_may_be_hugging_face_folders(tmp_path, monkeypatch):
    monkeypatch.setattr("minids3.data.data_dir", lambda: tmp_path)
    model = build(**SMALL, num_nextn_predict_layers=1).eval()
    folder = tmp_path / "checkpoints" / "chat"
    save_hf(model.bfloat16(), folder, fp8=True, about={"steps": 3})
    assert json.loads((folder / "about.json").read_text()) == {"steps": 3}
    shipped = load_shipped("chat")
    assert len(shipped.mtp) == 1
    assert {p.dtype for p in shipped.parameters()} == {torch.float32}
    assert same(shipped, load_hf(folder, dtype=torch.float32))
    (folder / "config.json").write_text("3")
    with pytest.raises(ModelFileError, match=r"chat/config\.json holds a int"):
        load_shipped("chat")
