"""Damaged files, unkind folders and wrong arguments: the promised errors, by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from minids3.data import (
    DataError,
    PackedBatches,
    Tokenizer,
    data_dir,
    entropy_floor,
    load_split,
    load_text,
    load_tokenizer,
    text_split,
)
from minids3.data.bpe import BPE, train_bpe
from minids3.data.build import build, verify
from minids3.data.files import read_checksums, verify_file, write_atomic, write_checksums
from minids3.data.loading import Split
from minids3.data.packing import rows
from minids3.data.shards import read_shard
from minids3.data.tokenizer import train_merges

TOKENIZER = load_tokenizer()
SMALL = Tokenizer(TOKENIZER.merges[:40])
SHARD = (data_dir() / "validation.safetensors").read_bytes()
NOTE = f"minids3-shard-1;generator=1;seed=2;tokenizer={TOKENIZER.checksum}"
SURROGATE = "ab\ud800"
DEEP = "[" * 100_000
relaxed = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def content(**changes):
    whole = json.loads(SMALL.to_json())
    return {k: v for k, v in {**whole, **changes}.items() if v is not ...}


def loaded(load, path):
    """What a file holds, or None where it is refused by name; any other error is the test's."""
    refused = ""
    try:
        return load(path)
    except DataError as error:
        refused = str(error)
    assert path.name in refused
    return None


BAD_TOKENIZERS = [
    b"", b"{", b"[1]", b"3", b"null", b'"text"', b"\xff\xfe", b"\x00" * 40, DEEP.encode(),
    ('{"merges":' + DEEP).encode(), b"1" * 10_000, b"{}", b'{"format": NaN}',
    *(json.dumps(content(**change)).encode() for change in (
        {"format": 1}, {"pattern": ...}, {"pattern": []}, {"specials": ...}, {"specials": None},
        {"specials": "<|bos|>"}, {"merges": ...}, {"merges": None}, {"merges": {}},
        {"merges": "ab"}, {"merges": [1, 2]}, {"merges": [[8]]}, {"merges": [[8, 9, 10]]},
        {"merges": [["8", "9"]]}, {"merges": [[8.5, 9]]}, {"merges": [[8.0, 9]]},
        {"merges": [[None, 9]]}, {"merges": [[-1, 9]]}, {"merges": [[0, 9]]},
        {"merges": [[8, 300]]}, {"merges": [[8, 9], [8, 9]]}, {"merges": [[10**4000, 9]]},
        {"merges": [[8, 8], [264, 8], [8, 264]]},
        {"merges": [[8, 8], *([i, i] for i in range(264, 320))]},
    )),
]  # fmt: skip


@pytest.mark.parametrize("damage", BAD_TOKENIZERS, ids=range(len(BAD_TOKENIZERS)))
def test_damaged_tokenizer(damage, tmp_path):
    path = tmp_path / "tok.json"
    path.write_bytes(damage)
    with pytest.raises(DataError, match=r"tok\.json"):
        Tokenizer.load(path)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    for name in ("missing", "pipe", "."):
        for read in (Tokenizer.load, lambda p: read_shard(p, TOKENIZER)):
            with pytest.raises(DataError, match=name if name != "." else tmp_path.name):
                read(tmp_path / name)
    (tmp_path / "SHA256SUMS").mkdir()
    with pytest.raises(DataError, match="SHA256SUMS is not a file"):
        load_tokenizer(tmp_path)
    with pytest.raises(DataError, match="SHA256SUMS is missing"):
        load_tokenizer(tmp_path / "nowhere")


@relaxed
@given(
    edits=st.lists(
        st.tuples(st.integers(0, 2000), st.integers(0, 4), st.binary(max_size=6)), max_size=4
    ),
    cut=st.integers(0, 2000) | st.none(),
)
def test_a_damaged_tokenizer_is_refused_or_a_tokenizer(edits, cut, tmp_path):
    data = bytearray(SMALL.to_json().encode())
    for place, length, new in edits:
        data[place : place + length] = new
    path = tmp_path / "tok.json"
    path.write_bytes(bytes(data[:cut]))
    tokenizer = loaded(Tokenizer.load, path)
    if tokenizer is None:
        return
    assert tokenizer.decode(tokenizer.encode("any text, 12 of it\r\n")) == "any text, 12 of it\r\n"
    assert tokenizer.merges == [tuple(m) for m in json.loads(path.read_bytes())["merges"]]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)


@relaxed
@given(key=st.sampled_from(["format", "pattern", "specials", "merges"]), value=JSON)
def test_any_json_in_a_tokenizer(key, value, tmp_path):
    path = tmp_path / "tok.json"
    path.write_text(json.dumps(content(**{key: value})))
    if key == "merges" and value == []:
        assert Tokenizer.load(path).vocab_size == 264
    else:
        with pytest.raises(DataError, match=r"tok\.json"):
            Tokenizer.load(path)


def shard(note=NOTE, **changes):
    arrays = {**load(SHARD), **changes}
    arrays = {k: v for k, v in arrays.items() if v is not None}
    return save(arrays, metadata=None if note is None else {"minids3": note})


WHOLE = dict(sorted(load(SHARD).items()))  # in one order, whoever collects
N, M = len(WHOLE["tokens"]), len(WHOLE["doc_starts"])


def put(name, index, value):
    array = WHOLE[name].copy()
    array[index] = value
    return {name: array}


BAD_SHARDS = {
    "no note": shard(None),
    "another format": shard("something else"),
    "malformed note": shard("minids3-shard-1;tokenizer;=;;"),
    "note without tokenizer": shard("minids3-shard-1;generator=1"),
    "short checksum": shard("minids3-shard-1;generator=1;tokenizer=abc"),
    "another tokenizer": shard(NOTE[:-8] + "0" * 8),
    **{f"no {name}": shard(**{name: None}) for name in WHOLE},
    "one more": shard(other=np.zeros(3)),
    **{f"empty {name}": shard(**{name: WHOLE[name][:0]}) for name in WHOLE},
    **{f"2-D {name}": shard(**{name: WHOLE[name][None]}) for name in WHOLE},
    **{f"{name} as float16": shard(**{name: WHOLE[name].astype(np.float16)}) for name in WHOLE},
    **{f"{name} as int64": shard(**{name: WHOLE[name].astype(np.int64)}) for name in WHOLE},
    **{f"short {name}": shard(**{name: WHOLE[name][:-1]}) for name in list(WHOLE)},
    "first start": shard(**put("doc_starts", 0, 1)),
    "negative start": shard(**put("doc_starts", 5, -7)),
    "start after the end": shard(**put("doc_starts", -1, N)),
    "starts in disorder": shard(**put("doc_starts", 5, WHOLE["doc_starts"][7])),
    "starts that overflow": shard(
        **{"doc_starts": np.array([0, 2**31 - 1, -(2**31) + 5], np.int32)},
        domain_ids=WHOLE["domain_ids"][:3],
        bits=WHOLE["bits"][:3],
    ),
    "start within a document": shard(**put("doc_starts", 5, WHOLE["doc_starts"][5] + 1)),
    "foreign token": shard(**put("tokens", 3, 2048)),
    "negative token": shard(tokens=put("tokens", 3, 0)["tokens"].astype(np.int32) - 1),
    "no bos": shard(**put("tokens", 0, 77)),
    "no eos": shard(**put("tokens", -1, 77)),
    "no such domain": shard(**put("domain_ids", 4, 9)),
    "bits that are nan": shard(**put("bits", 4, np.nan)),
    "bits below zero": shard(**put("bits", 4, -1.0)),
    "bits without end": shard(**put("bits", 4, np.inf)),
    "nothing": b"",
    "a long header": b"\xff" * 16,
    "cut off": SHARD[: len(SHARD) // 2],
    "bf16": SHARD.replace(b'"dtype":"F64"', b'"dtype":"BF16"'),
}


@pytest.mark.parametrize("name", BAD_SHARDS)
def test_damaged_shard(name, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(BAD_SHARDS[name])
    with pytest.raises(DataError, match=r"x\.safetensors"):
        read_shard(path, TOKENIZER)
    path.write_bytes(shard())
    assert np.array_equal(read_shard(path, TOKENIZER).tokens, WHOLE["tokens"])


@relaxed
@given(
    edits=st.lists(st.tuples(st.integers(0, 700), st.binary(min_size=1, max_size=4)), max_size=3),
    cut=st.integers(0, len(SHARD)) | st.none(),
)
def test_a_damaged_shard_is_refused_or_a_shard(edits, cut, tmp_path):
    data = bytearray(SHARD)
    for place, new in edits:
        data[place : place + len(new)] = new
    path = tmp_path / "x.safetensors"
    path.write_bytes(bytes(data[:cut]))
    arrays = loaded(lambda p: read_shard(p, TOKENIZER), path)
    if arrays is not None:
        assert (arrays.tokens[arrays.doc_starts] == 0).all()


@pytest.mark.parametrize(
    "lines",
    [
        b"", b"\n", b"abc  tokenizer.json\n", b"\xff\xfe", b"0" * 64 + b" tokenizer.json\n",
        b"g" * 64 + b"  tokenizer.json\n", b"0" * 64 + b"  \n", b"0" * 64 + b"  ../x\n",
        b"0" * 64 + b"  /etc/passwd\n", b"0" * 64 + b"  ..\n", b"0" * 64 + b"  \xff\n",
        b"0" * 64 + b"  a\n" + b"1" * 64 + b"  a\n",
    ],
)  # fmt: skip
def test_damaged_checksums(lines, tmp_path):
    (tmp_path / "SHA256SUMS").write_bytes(lines)
    for ask in (read_checksums, load_tokenizer, verify, lambda p: load_split("train", p)):
        with pytest.raises(DataError, match="SHA256SUMS"):
            ask(tmp_path)


def test_line_ends_that_git_changed_are_named(tmp_path):
    for name in ("tokenizer.json", "SHA256SUMS"):
        converted = (data_dir() / name).read_bytes().replace(b"\n", b"\r\n")
        (tmp_path / name).write_bytes(converted)
    with pytest.raises(DataError, match=r"core\.autocrlf.*git checkout .*tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_rebuilt_tokenizer_is_read_anew(tmp_path):
    for tokenizer in (SMALL, TOKENIZER):
        tokenizer.save(tmp_path / "tokenizer.json")
        write_checksums(tmp_path, ["tokenizer.json"])
        assert load_tokenizer(tmp_path).vocab_size == tokenizer.vocab_size


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_windows_checkout_verifies(tmp_path):
    root = data_dir().parent
    if not (root / ".git").exists():
        pytest.skip("needs a clone")
    git = ["git", "-c", "core.autocrlf=true"]
    clone = tmp_path / "w"
    source = ["--no-local", "--depth=1", f"file://{root}", str(clone)]
    if subprocess.run([*git, "clone", "-q", *source]).returncode:
        pytest.skip("git does not clone this folder")
    if not (clone / ".gitattributes").exists():
        pytest.skip("the last commit has no .gitattributes")
    for folder in ("data", "notebooks", "src"):
        files = [p for p in (clone / folder).rglob("*") if p.suffix in (".json", ".ipynb", ".py")]
        assert files
        assert not [p for p in files if b"\r\n" in p.read_bytes()]
    assert "tokenizer.json" in verify(clone / "data")
    code = "from minids3.data import load_tokenizer; print(load_tokenizer().vocab_size)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "MINIDS3_DATA": str(clone / "data")},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "2048\n", done.stderr


def test_text_keeps_its_bytes(tmp_path):
    raw = "\ufeffone\r\ntwo\rthree\n\x00 \u2028é".encode()
    (tmp_path / "a.TXT").write_bytes(raw)
    (text,) = load_text(tmp_path)
    assert text.encode() == raw
    assert load_text(tmp_path / "a.TXT") == [text]
    split = text_split([text, ""], TOKENIZER)
    assert TOKENIZER.decode(split.document(0)).encode() == raw
    assert split.document(1).tolist() == [0, 1]


def test_an_unkind_folder(tmp_path, monkeypatch):
    for name in ("good.txt", "secret.txt", "latin.txt", "deep.txt"):
        (tmp_path / name).write_bytes(b"\xe9" if name == "latin.txt" else name.encode())
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "dangling.txt").symlink_to("nowhere")
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    (tmp_path / "round").symlink_to(tmp_path)
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / os.fsdecode(b"\xff.txt")).write_text("odd name")
    read = type(tmp_path).read_bytes

    def refuse(self):
        if self.name == "secret.txt":
            raise PermissionError(13, "Permission denied", str(self))
        return read(self)

    monkeypatch.setattr(type(tmp_path), "read_bytes", refuse)
    with pytest.warns(UserWarning, match="left out") as caught:
        assert load_text(tmp_path) == ["deep.txt", "good.txt", "odd name"]
    (warning,) = caught
    for said in ("secret.txt (cannot be read: Permission denied)", "latin.txt (not UTF-8"):
        assert said in str(warning.message)
    assert warning.filename == __file__
    with pytest.raises(DataError, match=r"secret\.txt is unusable: .*Permission denied"):
        load_text(tmp_path / "secret.txt")
    with pytest.raises(DataError, match=r"pipe\.txt is unusable: neither"):
        load_text(tmp_path / "pipe.txt")
    for name in ("dangling.txt", "loop.txt", "nothing", "good.txt/x", "a\0b", "a" * 5000):
        with pytest.raises(DataError, match="is unusable"):
            load_text(tmp_path / name)
    for name in ("good.txt", "deep.txt", os.fsdecode(b"\xff.txt")):
        (tmp_path / name).unlink()
    with pytest.raises(DataError, match=r"no text file .*left out: .*secret\.txt"):
        load_text(tmp_path)
    with pytest.raises(TypeError, match=r"suffixes must be several"):
        load_text(tmp_path, ".txt")


def test_an_unreadable_subfolder_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "closed").mkdir()
    real = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.warns(UserWarning, match=r"closed \(Permission denied\)"):
        assert load_text(tmp_path) == ["a"]


def test_a_kind_folder_gives_no_warning(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "picture.png").write_bytes(b"\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_text(str(tmp_path)) == ["a"]


@pytest.mark.parametrize(
    "take",
    [
        TOKENIZER.encode,
        BPE(SMALL.merges).encode,
        lambda text: TOKENIZER.encode(text, allow_special=True),
        lambda text: TOKENIZER.encode_batch([text]),
        lambda text: TOKENIZER.encode_batch(t for t in ["good", text]),
        lambda text: text_split(["good", text], TOKENIZER),
        lambda text: train_bpe([text], 300),
        lambda text: train_merges([text], 300),
    ],
)
def test_what_is_no_text(take):
    with pytest.raises(ValueError, match="not valid Unicode at character 2"):
        take(SURROGATE)
    for thing in (b"bytes", 3, None, ["a"], 1.5):
        with pytest.raises(TypeError, match="expected a string of text"):
            take(thing)


@pytest.mark.parametrize(
    "take",
    [
        TOKENIZER.encode_batch,
        lambda texts: text_split(texts, TOKENIZER),
        lambda texts: train_bpe(texts, 300),
        lambda texts: train_merges(texts, 300),
    ],
)
def test_one_text_is_no_list_of_texts(take):
    for texts in ("one text", b"one text", ""):
        with pytest.raises(TypeError, match=r"write \[text\]"):
            take(texts)
    with pytest.raises(TypeError):
        take(3)


def test_no_texts_at_all():
    assert TOKENIZER.encode_batch([]) == []
    assert TOKENIZER.encode("") == BPE(SMALL.merges).encode("") == []
    assert TOKENIZER.decode([]) == ""
    assert train_bpe([], 300) == train_merges([], 300) == []
    for documents in ([], iter(())):
        with pytest.raises(ValueError, match="no documents"):
            text_split(documents, TOKENIZER)


def test_huge_text():
    text = "ab 12\r\n" * 100_000 + "x" * 30_000
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.encode_batch([text]) == [ids]


@pytest.mark.parametrize("face", [TOKENIZER, BPE(TOKENIZER.merges)], ids=["package", "ours"])
def test_what_is_no_token(face):
    ids = TOKENIZER.encode("seven")
    for kind in (
        np.array,
        torch.tensor,
        tuple,
        iter,
        lambda i: torch.tensor(i, dtype=torch.int8 if max(i) < 128 else torch.int16),
    ):
        assert face.decode(kind(ids)) == "seven"
    for token in (-1, -264, 2048, 10**30):
        with pytest.raises(ValueError, match="outside the vocabulary of 2048"):
            face.decode([9, token])
    for token in (9.7, 9.0, "a", None, [9], np.float32(9), torch.tensor(9.0)):
        with pytest.raises(TypeError, match="a token id is an integer"):
            face.decode([token])
    for ids in (9, None):
        with pytest.raises(TypeError):
            face.decode(ids)


def test_token_bytes_refuses_the_same():
    with pytest.raises(ValueError, match="outside"):
        TOKENIZER.token_bytes(-1)
    with pytest.raises(TypeError, match="integer"):
        TOKENIZER.token_bytes(9.7)


def test_vocabularies_that_cannot_be():
    for train in (train_bpe, train_merges):
        for size in (300.5, "300", None):
            with pytest.raises(TypeError, match="whole number"):
                train(["aa"], size)
        for size in (263, 0, -5):
            with pytest.raises(ValueError, match="at least 264"):
                train(["aa"], size)
        assert train(["aa aa"], 300, min_frequency=-1) == train(["aa aa"], 300, min_frequency=0)
    for merge in ((8,), (8, 9, 10), 8, "ab", (8.0, 9), (None, 9)):
        for make in (BPE, Tokenizer):
            with pytest.raises(TypeError, match="pair of token ids"):
                make([merge])
    with pytest.raises(ValueError, match="longer than"):
        Tokenizer([(8, 8), *((i, i) for i in range(264, 300))])


def test_batches_that_cannot_be():
    split = load_split("validation")
    for numbers in ((2.0, 8), (2, 8.0), ("2", 8), (2, None)):
        with pytest.raises(TypeError, match="must be a whole number"):
            PackedBatches(split, *numbers)
    with pytest.raises(TypeError, match="seed must be a whole number"):
        PackedBatches(split, 2, 8, seed=0.5)
    with pytest.raises(ValueError, match="seq_len must be positive"):
        rows(split.tokens, 0)
    nothing = Split(
        "none", *(x[:0] for x in (split.tokens, split.doc_starts)), *[split.bits[:0]] * 2
    )
    with pytest.raises(ValueError, match="too few"):
        PackedBatches(nothing, 1, 8)
    with pytest.raises(ValueError, match="nothing to predict"):
        entropy_floor(nothing)
    with pytest.raises(ValueError, match="too few"):
        rows(split.tokens[:0], 3)


def test_writing_is_whole_or_nothing(tmp_path, monkeypatch):
    target = tmp_path / "kept"
    target.write_text("old")
    (tmp_path / "link").symlink_to("kept")
    write_atomic(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert target.read_text() == "new"
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="folder is a folder"):
        write_atomic(tmp_path / "folder", b"x")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(target, b"newer")
    assert target.read_text() == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "kept", "link"]


def test_building_finds_out_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr("minids3.data.build.build_contents", lambda: pytest.fail("worked first"))
    (tmp_path / "file").write_text("kept")
    for place in (tmp_path / "file", tmp_path / "file" / "x"):
        with pytest.raises(OSError, match="file"):
            build(place)
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.skipif(sys.platform != "linux", reason="limits of a process")
def test_a_disk_that_fills_up_while_building(tmp_path):
    code = (
        "import resource, signal, minids3.data.build as b\n"
        "from minids3.data.__main__ import main\n"
        "b.build_contents = lambda: {'tokenizer.json': b'x' * 10**6}\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, 10**5))\n"
        f"raise SystemExit(main(['build', '--out', {str(tmp_path)!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: [Errno 27] File too large\n"
    assert list(tmp_path.iterdir()) == []


def test_verify_names_the_first_that_differs(tmp_path):
    (tmp_path / "a").write_text("a")
    write_checksums(tmp_path, ["a"])
    assert len(verify_file(tmp_path, "a")) == 64
    (tmp_path / "a").write_text("b")
    with pytest.raises(DataError, match="checksum mismatch for a"):
        verify(tmp_path)
    with pytest.raises(DataError, match="does not list b"):
        verify_file(tmp_path, "b")
