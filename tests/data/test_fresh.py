"""The endless stream: the same everywhere, apart from validation, its floor exact."""

import math
import random

import pytest
import torch

from minids3.data import corpora, entropy_floor, grammar, load_tokenizer
from minids3.data.corpora import ALL_DOMAINS, STREAM_PROBABILITIES, notes
from minids3.data.fresh import ROWS_PER_CHUNK, FreshBatches, stream_validation


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


def stream(tokenizer, **changes):
    return FreshBatches(tokenizer, **{"batch_size": 4, "seq_len": 32, **changes})


def test_rows_are_a_pure_function_of_their_number(tokenizer):
    one, two = stream(tokenizer), stream(tokenizer)
    first = ROWS_PER_CHUNK - 2  # across the border of two chunks
    inputs, targets = one.rows(first, 5)
    for i in (3, 0, 4):
        x, y = two.rows(first + i, 1)
        assert torch.equal(x[0], inputs[i])
        assert torch.equal(y[0], targets[i])
    assert torch.equal(one.batch(3)[0], two.rows(12, 4)[0])
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert inputs.dtype == targets.dtype == torch.int64
    assert not torch.equal(stream(tokenizer, seed=1).batch(0)[0], one.batch(0)[0])


def test_what_decides_the_rows_decides_the_fingerprint(tokenizer):
    own = stream(tokenizer).fingerprint
    assert own == stream(tokenizer, batch_size=9).fingerprint  # rows are rows
    others = [{"seed": 1}, {"seq_len": 33}, {"held_out": ["x"]}, {"probabilities": {"code": 1.0}}]
    assert len({own, *(stream(tokenizer, **o).fingerprint for o in others)}) == 5


def test_other_generators_are_another_stream(tokenizer, monkeypatch):
    own = stream(tokenizer).fingerprint
    monkeypatch.setitem(corpora.PROGRAMS, "notes", notes.with_gaps({1: 1.0}))
    assert stream(tokenizer).fingerprint != own


def test_held_out_documents_never_occur(tokenizer):
    free = stream(tokenizer, probabilities={"arithmetic": 1.0})
    drawn = [next(d) for d in [free.documents(0)] for _ in range(300)]
    held = {d.text for d in drawn[:100]}
    kept = stream(tokenizer, probabilities={"arithmetic": 1.0}, held_out=held)
    documents = kept.documents(0)
    expected = [d.text for d in drawn if d.text not in held]
    assert 100 < len(expected) <= 200
    assert [next(documents).text for _ in expected] == expected


def test_the_floor_counts_what_is_held_out(tokenizer):
    """A grammar of so few texts that half of its probability can be held out and checked."""
    some = corpora.generate("arithmetic", 4000, seed=3)
    texts = {d.text for d in some}
    exact = math.fsum(2.0 ** -corpora.score("arithmetic", text) for text in texts)
    held = stream(tokenizer, probabilities={"arithmetic": 1.0}, held_out=texts)
    assert held.held_out_probability() == pytest.approx(exact)
    assert 0.05 < exact < 0.5
    # An independent estimate: how often a free draw falls among the held-out texts.
    rng = random.Random(8)
    draws = [corpora.draw(rng, {"arithmetic": 1.0}).text in texts for _ in range(4000)]
    assert sum(draws) / 4000 == pytest.approx(exact, abs=4 * math.sqrt(exact / 4000))
    gain = -math.log1p(-exact)  # nats a document
    documents = held.documents(0)
    nats = tokens = 0
    for _ in range(256):
        document = next(documents)
        nats += document.bits * math.log(2) - gain
        tokens += len(tokenizer.encode(document.text)) + 2
    assert held.floor(1) == pytest.approx(nats / tokens)


def test_validation_is_apart_and_of_the_same_mixture(tokenizer):
    split, texts = stream_validation(tokenizer, n=900)
    assert split.n_documents == 900
    assert {tokenizer.decode(split.document(i).tolist()) for i in range(900)} == texts
    counts = {d: split.only(d).n_documents / 900 for d in ALL_DOMAINS}
    for domain, probability in STREAM_PROBABILITIES.items():
        assert counts[domain] == pytest.approx(probability, abs=0.05)
    fresh = stream(tokenizer, held_out=texts)
    assert entropy_floor(split) == pytest.approx(fresh.floor(8), rel=0.05)


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 0}, {"seq_len": 0}, {"probabilities": {"code": 0.9}},
        {"probabilities": {"code": 1.5, "facts": -0.5}},
    ],
)  # fmt: skip
def test_impossible_streams(changes, tokenizer):
    with pytest.raises(ValueError, match="must be positive"):
        stream(tokenizer, **changes)
    with pytest.raises(ValueError, match="first >= 0"):
        stream(tokenizer).rows(-1, 2)
    with pytest.raises(ValueError, match="unknown domain"):
        stream(tokenizer, probabilities={"poems": 1.0}).batch(0)


def test_notes_say_again_what_they_said():
    for document in corpora.generate("notes", 60, seed=4):
        first, again = (part.splitlines() for part in document.text.split("Again\n"))
        told = [line for line in first if line.startswith("The ")]
        assert len({line.split(" has ")[0] for line in told}) == len(told)
        assert set(again) <= set(told)
        assert len(again) == 3 * len(told)
        assert corpora.score("notes", document.text) == pytest.approx(document.bits)


def test_the_entropy_of_notes_is_the_mean_surprisal():
    drawn = corpora.generate("notes", 1500, seed=9)
    mean = sum(d.bits for d in drawn) / len(drawn)
    spread = math.sqrt(sum((d.bits - mean) ** 2 for d in drawn)) / len(drawn)
    assert corpora.entropy("notes") == pytest.approx(mean, abs=4 * spread)
    few = notes.with_gaps({0: 0.5, 1: 0.5}, fewest=2, most=2)
    assert grammar.entropy(few, random.Random(1)) == pytest.approx(grammar.entropy(few))
