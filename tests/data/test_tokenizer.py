"""Our byte-pair encoding equals the `tokenizers` package, and loses nothing."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minids3.data import DataError, Tokenizer, corpora, load_tokenizer, standard_library
from minids3.data.bpe import BPE, PATTERN, SPECIALS, merge_pair, split_pieces, train_bpe
from minids3.data.build import VOCAB_SIZE, tokenizer_texts
from minids3.data.tokenizer import train_merges

TOKENIZER = load_tokenizer()
OURS = BPE(TOKENIZER.merges)


def test_merges_equal_the_package_on_the_shipped_corpora():
    assert train_bpe(tokenizer_texts(), VOCAB_SIZE) == TOKENIZER.merges


@pytest.mark.parametrize("domain", corpora.DOMAINS)
def test_ids_equal_the_package(domain):
    for document in corpora.generate(domain, 300, seed=2):
        ids = TOKENIZER.encode(document.text)
        assert OURS.encode(document.text) == ids
        assert OURS.decode(ids) == TOKENIZER.decode(ids) == document.text
        assert TOKENIZER.backend.decode(ids) == document.text


def test_merges_equal_the_package_on_other_texts():
    rng = random.Random(0)
    runs = ["".join(rng.choice("ab ") for _ in range(rng.randint(1, 30))) for _ in range(300)]
    library = standard_library(200_000)
    for texts, size in (
        (runs, 400),
        (library, 900),
        (["aaaa aaa aa a" * 5], 300),
        (["é漢🙂"] * 3, 300),
    ):
        assert train_bpe(texts, size) == train_merges(texts, size)


def test_ids_equal_the_package_on_real_text():
    for text in standard_library(100_000):
        assert OURS.encode(text) == TOKENIZER.encode(text)


def test_vocabulary_of_2048():
    assert TOKENIZER.vocab_size == VOCAB_SIZE == 2048
    assert (TOKENIZER.bos_id, TOKENIZER.eos_id, TOKENIZER.pad_id) == (0, 1, 2)
    assert TOKENIZER.encode("Long ago", bos=True, eos=True) == [0, *TOKENIZER.encode("Long ago"), 1]
    for i, name in enumerate(SPECIALS):
        assert TOKENIZER.encode(name, allow_special=True) == [i]
        assert TOKENIZER.decode([i]) == ""
        assert TOKENIZER.decode([i], skip_special=False) == name


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_round_trip_of_any_text(text):
    assert "".join(split_pieces(text)) == text
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert OURS.encode(text) == ids


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([*SPECIALS, "<|", "|>", "a", " ", "\n    ", "7"])))
def test_control_tokens_in_text_stay_text(parts):
    text = "".join(parts)
    ids = TOKENIZER.encode(text)
    assert min(ids, default=8) >= 8
    assert TOKENIZER.decode(ids) == text


def test_pieces():
    assert split_pieces("def f(n):\n    return n * 12") == [
        "def", " f", "(", "n", "):", "\n    ", "return", " n", " *", " ", "1", "2",
    ]  # fmt: skip
    assert merge_pair([1, 1, 1], (1, 1), 9) == [9, 1]


def test_file_round_trip_and_bad_files(tmp_path):
    path = tmp_path / "tokenizer.json"
    TOKENIZER.save(path)
    assert Tokenizer.load(path).checksum == TOKENIZER.checksum
    assert json.loads(path.read_text())["pattern"] == PATTERN
    path.write_text("{")
    with pytest.raises(DataError, match=r"tokenizer\.json is not JSON"):
        Tokenizer.load(path)
    path.write_text("{}")
    with pytest.raises(DataError, match="format minids3-bpe-1"):
        Tokenizer.load(path)
    with pytest.raises(DataError, match="missing"):
        Tokenizer.load(tmp_path / "nothing.json")


def test_bad_arguments():
    with pytest.raises(TypeError, match="expected a string of text, got bytes"):
        TOKENIZER.encode(b"bytes")
    with pytest.raises(ValueError, match="not valid Unicode at character 2"):
        TOKENIZER.encode("ab\ud800")
    with pytest.raises(ValueError, match="token 2048 is outside the vocabulary"):
        TOKENIZER.decode([2048])
    with pytest.raises(ValueError, match="at least 264"):
        train_bpe(["a"], 100)
    with pytest.raises(ValueError, match="does not exist yet"):
        BPE([(900, 901)])
