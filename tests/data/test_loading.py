"""Shards, packing, real text: right on good input, clear on bad input."""

from __future__ import annotations

import math
import shutil

import pytest
import torch

from minids3.data import (
    DOMAINS,
    DataError,
    PackedBatches,
    Tokenizer,
    corpora,
    data_dir,
    entropy_floor,
    load_split,
    load_text,
    load_tokenizer,
    standard_library,
    text_split,
)
from minids3.data.__main__ import main
from minids3.data.build import SPLIT_SIZES, build_contents
from minids3.data.files import read_checksums, write_checksums

TOKENIZER = load_tokenizer()


@pytest.fixture
def copy(tmp_path):
    for name in [*read_checksums(data_dir()), "SHA256SUMS"]:
        shutil.copy(data_dir() / name, tmp_path / name)
    return tmp_path


def test_rebuilt_byte_for_byte():
    contents = build_contents()
    assert sorted(contents) == sorted(read_checksums(data_dir()))
    for name, content in contents.items():
        assert content == (data_dir() / name).read_bytes(), name


@pytest.mark.parametrize("name", ["train", "validation"])
def test_split(name):
    split = load_split(name)
    assert (split.tokens.dtype, split.doc_starts.dtype) == (torch.int32, torch.int64)
    assert (split.domain_ids.dtype, split.bits.dtype) == (torch.int8, torch.float64)
    n, seed = SPLIT_SIZES[name]
    assert split.n_documents == n
    assert int((split.tokens == TOKENIZER.bos_id).sum()) == n
    assert int((split.tokens == TOKENIZER.eos_id).sum()) == n
    documents = corpora.mixture(n, seed)
    for index, document in zip(range(50), documents, strict=False):
        tokens = split.document(index).tolist()
        assert tokens == TOKENIZER.encode(document.text, bos=True, eos=True)
        assert DOMAINS[split.domain_ids[index]] == document.domain
        assert split.bits[index].item() == document.bits
    assert split.document(-1)[-1] == TOKENIZER.eos_id
    with pytest.raises(IndexError):
        split.document(n)


def test_floor_and_domains():
    split = load_split("validation")
    floor = entropy_floor(split)
    per_document = corpora.mixture_entropy() * math.log(2)
    assert abs(floor - per_document / float(split.lengths().double().mean())) < 0.02
    parts = [split.only(domain) for domain in DOMAINS]
    assert sum(len(part.tokens) for part in parts) == len(split.tokens)
    assert math.isclose(sum(float(p.bits.sum()) for p in parts), float(split.bits.sum()))
    for part, domain in zip(parts, DOMAINS, strict=True):
        text = TOKENIZER.decode(part.document(3).tolist())
        corpora.score(domain, text)
    with pytest.raises(ValueError, match="unknown domain"):
        split.only("poems")


def test_splits_share_few_documents():
    def seen(split):
        return {tuple(split.document(i).tolist()) for i in range(split.n_documents)}

    train, validation = seen(load_split("train")), seen(load_split("validation"))
    assert len(train & validation) < 0.1 * len(validation)


def test_batches_are_a_pure_function_and_cover_an_epoch():
    split = load_split("validation")
    batches = PackedBatches(split, batch_size=4, seq_len=64, seed=3)
    late = batches.batch(500)
    again = PackedBatches(split, batch_size=4, seq_len=64, seed=3)
    for step in (0, 500, len(again) + 2):
        for one, two in zip(again.batch(step), batches.batch(step), strict=True):
            assert torch.equal(one, two)
    assert torch.equal(late[0], again.batch(500)[0])
    assert late[0].dtype == torch.int64
    assert late[0].shape == (4, 64)
    assert not torch.equal(PackedBatches(split, 4, 64, seed=4).batch(0)[0], batches.batch(0)[0])
    whole = PackedBatches(split, batch_size=1, seq_len=64, seed=3)
    rows = [whole.batch(step) for step in range(whole.rows_per_epoch)]
    assert all(torch.equal(x[0, 1:], y[0, :-1]) for x, y in rows)
    counted = torch.bincount(torch.cat([y[0] for _, y in rows]), minlength=2048)
    total = torch.bincount(split.tokens.long(), minlength=2048)
    assert int((total - counted).sum()) == len(split.tokens) - 64 * whole.rows_per_epoch
    assert int((total - counted).min()) >= 0


def test_unshuffled_batches_follow_the_documents():
    split = load_split("validation")
    x, y = PackedBatches(split, 2, 50, shuffle=False).batch(0)
    assert torch.equal(x.flatten(), split.tokens[:100].long())
    assert torch.equal(y.flatten(), split.tokens[1:101].long())


def test_bad_batches():
    split = load_split("validation")
    with pytest.raises(ValueError, match="positive"):
        PackedBatches(split, 0, 64)
    with pytest.raises(ValueError, match="too few for one row"):
        PackedBatches(split, 1, 10**6)
    with pytest.raises(ValueError, match="negative"):
        PackedBatches(split, 1, 64).batch(-1)


def test_missing_file(copy):
    (copy / "train.safetensors").unlink()
    with pytest.raises(DataError, match=r"train\.safetensors is missing.*minids3\.data build"):
        load_split("train", copy)
    with pytest.raises(ValueError, match="unknown split 'test': choose one of train"):
        load_split("test", copy)
    (copy / "SHA256SUMS").unlink()
    with pytest.raises(DataError, match="SHA256SUMS is missing"):
        load_tokenizer(copy)


def test_damaged_file(copy):
    path = copy / "validation.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"checksum mismatch for validation\.safetensors"):
        load_split("validation", copy)
    path.write_bytes(b"nonsense")
    write_checksums(copy, list(read_checksums(copy)))
    with pytest.raises(DataError, match=r"validation\.safetensors cannot be read"):
        load_split("validation", copy)


def test_wrong_vocabulary(copy):
    Tokenizer(TOKENIZER.merges[:-1]).save(copy / "tokenizer.json")
    write_checksums(copy, list(read_checksums(copy)))
    with pytest.raises(DataError, match="wrong vocabulary"):
        load_split("validation", copy)


def test_data_dir_override(copy, monkeypatch):
    monkeypatch.setenv("MINIDS3_DATA", str(copy))
    assert data_dir() == copy
    monkeypatch.setenv("MINIDS3_DATA", str(copy / "nothing"))
    with pytest.raises(DataError, match="MINIDS3_DATA is set to"):
        data_dir()


def test_commands(copy, capsys):
    assert main(["verify", "--dir", str(copy)]) == 0
    (copy / "checkpoints").mkdir()
    (copy / "checkpoints" / "kept.txt").write_text("kept")
    assert main(["build", "--out", str(copy)]) == 0
    assert (copy / "checkpoints" / "kept.txt").read_text() == "kept"
    (copy / "tokenizer.json").write_text("{}")
    assert main(["verify", "--dir", str(copy)]) == 1
    assert main(["show", "stories", "--n", "2"]) == 0
    out = capsys.readouterr()
    assert "checksum mismatch for tokenizer.json" in out.err
    assert out.out.count("Where is the") == 2


def test_real_text(tmp_path):
    (tmp_path / "a.txt").write_text("one two", encoding="utf-8")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.py").write_text("x = 3\n", encoding="utf-8")
    (tmp_path / "c.bin").write_bytes(b"\xff\xfe")
    assert load_text(tmp_path / "a.txt") == ["one two"]
    assert load_text(tmp_path) == ["one two", "x = 3\n"]
    split = text_split(load_text(tmp_path), TOKENIZER)
    assert TOKENIZER.decode(split.document(1).tolist()) == "x = 3\n"
    assert math.isnan(entropy_floor(split))
    with pytest.raises(DataError, match="not UTF-8"):
        load_text(tmp_path / "c.bin")
    with pytest.raises(DataError, match="no such file or folder"):
        load_text(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no text file"):
        load_text(tmp_path / "empty")


def test_standard_library():
    documents = standard_library(120_000)
    assert 10_000 < sum(len(text.encode()) for text in documents) <= 120_000
    assert any('"""' in text for text in documents)
    with pytest.raises(ValueError, match="positive"):
        standard_library(0)
