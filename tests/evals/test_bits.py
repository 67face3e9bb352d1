"""Bits per byte."""

import math

import pytest

from minids3.data import load_split, load_tokenizer
from minids3.evals import bits_per_byte


def test_by_hand():
    ln2 = math.log(2)
    assert bits_per_byte([ln2, 2 * ln2], [8, 4], ["ab", "cdef"]) == pytest.approx(16 / 6)
    assert bits_per_byte([ln2], [6], ["é獺"]) == pytest.approx(6 / 5)
    assert bits_per_byte([ln2, math.nan], [6, 0], ["abc"]) == pytest.approx(2)
    assert bits_per_byte((x for x in [0.0]), iter([5]), ["abc"]) == 0


def test_the_grammar_has_one_value_in_every_notation():
    tok, facts = load_tokenizer(), load_split("validation").only("facts")
    texts = [tok.decode(facts.document(i).tolist()) for i in range(50)]
    bits = facts.bits[:50].double()
    exact = bits.sum().item() / sum(len(text.encode()) for text in texts)
    for counts in (
        [len(tok.encode(text)) + 1 for text in texts],
        [len(text.encode()) + 1 for text in texts],
    ):
        losses = [b * math.log(2) / n for b, n in zip(bits.tolist(), counts, strict=True)]
        assert bits_per_byte(losses, counts, texts) == pytest.approx(exact)
        assert bits_per_byte(losses, counts, ["".join(texts)]) == pytest.approx(exact)


def test_bad_input_is_named():
    with pytest.raises(TypeError, match="one string"):
        bits_per_byte([1.0], [3], "abc")
    with pytest.raises(ValueError, match="2 losses and 1 numbers"):
        bits_per_byte([1.0, 2.0], [3], ["abc"])
    with pytest.raises(ValueError, match="n_tokens has -3"):
        bits_per_byte([1.0], [-3], ["abc"])
    with pytest.raises(ValueError, match="no bytes"):
        bits_per_byte([1.0], [3], ["", ""])
