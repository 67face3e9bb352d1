"""Needles: where they are, that nothing leaks, and what counts as found."""

import random

import pytest
import torch

from minids3.config import get_config
from minids3.data import load_tokenizer
from minids3.data.corpora import notes
from minids3.evals import (
    LongRows,
    build_haystack,
    draw_haystack,
    recall,
    recall_by_length,
)
from minids3.model import Transformer

LINES = [[1, 1, 1], [2, 2], [3, 3, 3, 3], [4], [5, 5, 5, 5, 5]]


def test_needles_stand_where_it_is_said():
    # 15 tokens of hay; half of it is 7.5, and the first boundary at or after is 9.
    ids, starts = build_haystack([9, 9], LINES, [[7, 7], [8]], [0.5, 1.0], 2 + 3 + 15)
    assert ids == [9, 9, 1, 1, 1, 2, 2, 3, 3, 3, 3, 7, 7, 4, 5, 5, 5, 5, 5, 8]
    assert starts == [11, 19]


def test_only_whole_lines_that_fit():
    ids, starts = build_haystack([9], LINES, [[7]], [0.0], 1 + 1 + 8)
    assert (ids, starts) == ([9, 7, 1, 1, 1, 2, 2], [1])
    ids, _ = build_haystack([9], LINES, [[7]], [0.0], 1 + 1 + 9)
    assert ids == [9, 7, 1, 1, 1, 2, 2, 3, 3, 3, 3]


@pytest.mark.parametrize(
    ("depths", "length", "says"),
    [
        ([0.5], 3, "no room"),
        ([0.5, 0.1], 30, "ascending"),
        ([], 30, "ascending"),
        ([1.5], 30, "from 0 to 1"),
        ([-0.1], 30, "from 0 to 1"),
    ],
)
def test_bad_haystacks(depths, length, says):
    needles = [[7, 7]] * max(len(depths), 1)
    with pytest.raises(ValueError, match=says):
        build_haystack([9, 9], LINES, needles, depths, length)


@pytest.fixture(scope="module")
def tok():
    return load_tokenizer()


def test_a_drawn_text_says_where_its_needles_are(tok):
    for seed in range(20):
        hay = draw_haystack(tok, 300, random.Random(seed), n_needles=3)
        assert len(hay.ids) + 12 <= 300
        for start, key, value in zip(hay.starts, hay.keys, hay.values, strict=True):
            line = tok.encode(notes.needle(key, value))
            assert hay.ids[start : start + len(line)].tolist() == line
        text = tok.decode(hay.ids.tolist())
        assert all(f"{key} " not in text for key in hay.absent)
        assert len(set(hay.keys) | set(hay.absent)) == 6
        assert "?" not in text


def test_one_needle_is_one_thing(tok):
    hay = draw_haystack(tok, 100, random.Random(0), n_needles=1)
    assert tok.decode(hay.ids[1:].tolist()).startswith("Notes\n1 thing\n")


def test_texts_are_full_and_fresh(tok):
    lengths = [len(draw_haystack(tok, 256, random.Random(s)).ids) for s in range(10)]
    assert min(lengths) > 256 - 13 - 11  # less than a line is left over
    one, two = (draw_haystack(tok, 256, random.Random(s)) for s in (1, 2))
    assert one.keys != two.keys
    assert one.values != two.values
    again = draw_haystack(tok, 256, random.Random(1))
    assert torch.equal(one.ids, again.ids)
    assert one.keys == again.keys


class Copier(torch.nn.Module):
    """A perfect model: it finds the key in the text and reads the number off."""

    def __init__(self, tok, forget=()):
        super().__init__()
        self.config = get_config("tiny", vocab_size=tok.vocab_size, max_position_embeddings=4096)
        self.tok, self.forget, self.seen = tok, forget, []
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def lm_head(self, hidden):
        return hidden

    def hidden_states(self, ids, cache):
        if cache.length == 0:
            self.seen = ids[0].tolist()
            cache.advance(ids.shape[1])
            return None
        logits = torch.zeros(*ids.shape, self.tok.vocab_size)
        text = self.tok.decode(self.seen)
        for row, line in enumerate(ids.tolist()):
            marker = self.tok.decode(line).removeprefix("Again\n")[: -len("12")]
            key = marker.removeprefix("The ").removesuffix(" has ")
            if marker in text and key not in self.forget:
                digits = self.tok.encode(text.split(marker)[1][:3])
                for place, token in zip((-3, -2, -1), digits, strict=True):
                    logits[row, place, token] = 1
        return logits


def test_recall_judges_the_answers(tok):
    hay = draw_haystack(tok, 400, random.Random(5))
    found = recall(Copier(tok), tok, hay)
    assert [f.right for f in found] == [True] * 4
    assert [f.lucky for f in found] == [False] * 4
    assert [f.start for f in found] == list(hay.starts)
    assert {f.length for f in found} == {len(hay.ids) + 12}
    found = recall(Copier(tok, forget=hay.keys[1:2]), tok, hay)
    assert [f.right for f in found] == [True, False, True, True]


def test_recall_through_the_cache_is_the_plain_forward_pass(tok):
    torch.manual_seed(0)
    cfg = get_config("mini", num_hidden_layers=2, num_nextn_predict_layers=0)
    model = Transformer(cfg).eval()
    hay = draw_haystack(tok, 200, random.Random(3))
    key = hay.keys[2]
    question = tok.encode(notes.AGAIN + notes.question(key))
    ids = torch.tensor([hay.ids.tolist() + question])
    for _ in range(3):  # what the model itself would say, digit by digit
        ids = torch.cat((ids, model(ids)[:, -1:].argmax(-1)), 1)
    said = ids[0, -3:].tolist()

    # Let the text's number be just that, as far as token ids go.
    class Told:
        def encode(self, text, **options):
            return said if text == str(hay.values[2]) else tok.encode(text, **options)

    found = recall(model, Told(), hay)
    assert [f.right for f in found] == [False, False, True, False]


def test_an_untrained_model_finds_nothing(tok):
    torch.manual_seed(0)
    model = Transformer(get_config("tiny", vocab_size=tok.vocab_size, max_position_embeddings=300))
    found = recall_by_length(model, tok, (200, 300), texts=2, n_needles=3)
    assert len(found) == 12
    assert not any(f.right or f.lucky for f in found)
    assert all(f.distance == f.length - 1 - f.start for f in found)
    with pytest.raises(ValueError, match="max_position_embeddings"):
        recall_by_length(model, tok, (400,), texts=1)


def test_long_rows(tok):
    rows = LongRows(tok, 2, 512, seed=3)
    inputs, targets = rows.batch(4)
    assert inputs.shape == targets.shape == (2, 512)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert torch.equal(inputs, LongRows(tok, 2, 512, seed=3).batch(4)[0])
    assert not torch.equal(inputs, rows.batch(5)[0])
    text = tok.decode(inputs[0].tolist())
    long = text.split("Notes\n4 things\n")[1]
    first, again = (part.splitlines() for part in long.split("Again\n")[:2])
    needles = [line for line in first if " has " in line]
    assert len(needles) == 4
    assert sorted(again[:4]) == sorted(needles)


def test_long_rows_leave_out_what_is_held_out(tok):
    first = next(LongRows(tok, 1, 512).fresh.documents(-1)).text
    filled = tok.decode(LongRows(tok, 1, 512).row(0).tolist())
    assert first[:30] in filled
    assert first[:30] not in tok.decode(LongRows(tok, 1, 512, held_out=[first]).row(0).tolist())


def test_long_rows_refuses_short_rows(tok):
    with pytest.raises(ValueError, match="too short"):
        LongRows(tok, 2, 128)
