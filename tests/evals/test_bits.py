"""Bits per byte, and nats above the floor."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from minids3.config import get_config
from minids3.data import load_split, load_tokenizer
from minids3.evals import bits_per_byte, loss_above_floor
from minids3.model import Transformer


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


def test_above_the_floor_is_the_loss_less_the_surprisal_document_by_document():
    torch.manual_seed(0)
    split = load_split("validation")
    model = Transformer(get_config("mini_dense", num_hidden_layers=1))
    found = loss_above_floor(model, split, 3, ("facts", "arithmetic"))
    assert list(found) == ["facts", "arithmetic"]
    for domain, above in found.items():
        part = split.only(domain)
        texts = [part.document(i).long() for i in range(3)]
        with torch.no_grad():
            nats = sum(cross_entropy(model(t[None, :-1])[0], t[1:], reduction="sum") for t in texts)
        floor = part.bits[:3].sum() * math.log(2)
        tokens = sum(len(t) - 1 for t in texts)
        assert above == pytest.approx(((nats - floor) / tokens).item(), rel=1e-5)


def test_what_cannot_be_measured_is_left_out_or_refused():
    split, model = load_split("validation"), Transformer(get_config("tiny", vocab_size=2048))
    assert "notes" not in loss_above_floor(model, split.only("facts"), 1)
    with pytest.raises(ValueError, match="n=0"):
        loss_above_floor(model, split, 0)
    with pytest.raises(ValueError, match="unknown domain"):
        loss_above_floor(model, split, 1, ("poems",))
