"""Cache, sampling and generation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import TopPLogitsWarper

from llama_twin import llama_of
from minids3.config import get_config
from minids3.infer import (
    KVCache,
    generate,
    generate_ids,
    next_token_probs,
    sample,
    stream,
    stream_to_cell,
)
from minids3.model import Transformer


def tiny(**changes):
    torch.manual_seed(0)
    return Transformer(get_config("tiny", initializer_range=0.3, **changes)).eval()


def some_ids(batch, steps, seed=0):
    return torch.randint(0, 97, (batch, steps), generator=torch.Generator().manual_seed(seed))


class ByteTokenizer:
    """Bytes shifted by one, 0 is the beginning and the end; enough for generation."""

    vocab_size = 97
    eos_id = 0

    def encode(self, text, bos=False, eos=False):
        return [0] * bos + [1 + b % 96 for b in text.encode()] + [0] * eos

    def decode(self, ids):
        return bytes(i - 1 + 160 if i > 90 else i for i in ids).decode("utf-8", errors="replace")


@pytest.mark.parametrize("parts", [[11], [1] * 11, [4, 7], [3, 1, 5, 1, 1]])
def test_cached_equals_uncached_for_any_split(parts):
    model, ids = tiny(), some_ids(3, 11)
    cache = KVCache(model.config, batch_size=3)
    with torch.no_grad():
        pieces = [model(chunk, cache) for chunk in ids.split(parts, 1)]
        torch.testing.assert_close(torch.cat(pieces, 1), model(ids), rtol=1e-5, atol=1e-5)
    assert cache.length == 11


def test_cache_knows_its_limits_and_size():
    model = tiny()
    cache = KVCache(model.config, batch_size=1, capacity=4)
    assert cache.bytes_per_token == 2 * 2 * 2 * 8 * 4  # k and v, layers, kv heads, head_dim, fp32
    with torch.no_grad():
        with pytest.raises(ValueError, match="holds 4 positions, 5 are needed"):
            model(some_ids(1, 5), cache)
        with pytest.raises(ValueError, match="batch of 1, got 2"):
            model(some_ids(2, 3), cache)
    with pytest.raises(ValueError, match="'mla' keeps others"):
        KVCache(get_config("mini"))


def test_greedy_generation_equals_hugging_face():
    model, ids = tiny(), some_ids(2, 5)
    theirs = llama_of(model).generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=20,
        do_sample=False,
        eos_token_id=None,
    )
    assert torch.equal(generate_ids(model, ids, 20), theirs)


ODD = {
    "latent": {"kv_lora_rank": 65},
    "latent of 1": {"kv_lora_rank": 1},
    "one head, odd width": {"num_attention_heads": 1, "qk_nope_head_dim": 13},
    "odd everything": {
        "num_attention_heads": 3,
        "kv_lora_rank": 7,
        "q_lora_rank": 5,
        "qk_nope_head_dim": 9,
        "qk_rope_head_dim": 2,
        "v_head_dim": 11,
        "hidden_size": 33,
    },
    "plain odd queries": {"q_lora_rank": None, "qk_nope_head_dim": 5, "kv_lora_rank": 9},
    "half-split": {"rope_interleave": False, "kv_lora_rank": 65},
}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", ODD)
def test_odd_widths_decode(name, batch):
    torch.manual_seed(0)
    changes = {"num_hidden_layers": 2, "initializer_range": 0.1, "vocab_size": 97, **ODD[name]}
    model = Transformer(get_config("mini", **changes)).eval()
    ids = some_ids(batch, 4)
    out = generate_ids(model, ids, 9)
    with torch.no_grad():
        for n in range(4, 13):  # what the whole text says without a cache
            assert torch.equal(model(out[:, :n])[:, -1].argmax(-1), out[:, n])
        assert bool(model.mtp_logits(ids[:, :2])[0].isfinite().all())


def test_rows_that_ended_stay_ended():
    model, ids = tiny(), some_ids(4, 3)
    free = generate_ids(model, ids, 12)
    eos = int(free[0, 5])
    ended = generate_ids(model, ids, 12, eos_id=eos)
    for row in range(4):
        new = free[row, 3:].tolist()
        stop = new.index(eos) + 1 if eos in new else len(new)
        expected = new[:stop] + [eos] * (ended.shape[1] - 3 - stop)
        assert ended[row, 3:].tolist() == expected[: ended.shape[1] - 3]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.2, 3.0), st.floats(0.05, 1.0))
def test_nucleus_equals_hugging_face(seed, temperature, top_p):
    logits = torch.randn(3, 29, generator=torch.Generator().manual_seed(seed))
    warped = (
        TopPLogitsWarper(top_p)(None, logits / temperature) if top_p < 1 else logits / temperature
    )
    torch.testing.assert_close(next_token_probs(logits, temperature, top_p), warped.softmax(-1))


def test_samples_follow_the_distribution_and_the_seed():
    logits = torch.tensor([[0.0, 1.0, 2.0, -torch.inf]])
    draws = sample(logits.expand(20000, 4), 1.3, 1.0, torch.Generator().manual_seed(0))
    expected = next_token_probs(logits, 1.3)[0]
    observed = torch.bincount(draws, minlength=4) / 20000
    assert (observed - expected).abs().max() < 4 * (0.25 / 20000) ** 0.5
    again = sample(logits.expand(20000, 4), 1.3, 1.0, torch.Generator().manual_seed(0))
    assert torch.equal(draws, again)
    assert sample(logits, temperature=0).tolist() == [2]
    assert next_token_probs(logits, temperature=0).tolist() == [[0, 0, 1, 0]]


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="temperature=-1"):
        next_token_probs(torch.zeros(1, 3), temperature=-1)
    for wrong in (0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=f"top_p={wrong} must"):
            next_token_probs(torch.zeros(1, 3), top_p=wrong)
        with pytest.raises(ValueError, match=f"top_p={wrong} must"):
            generate_ids(tiny(), some_ids(1, 3), 1, top_p=wrong)  # greedy, too
    for wrong in (float("nan"), float("inf"), -0.5):
        with pytest.raises(ValueError, match=f"temperature={wrong} must"):
            generate_ids(tiny(), some_ids(1, 3), 1, temperature=wrong)
    for wrong in (-1, 2.5):
        with pytest.raises(ValueError, match=f"max_new_tokens={wrong}"):
            generate(tiny(), ByteTokenizer(), "a", wrong)
    with pytest.raises(ValueError, match="it needs 1 to 63"):
        generate_ids(tiny(), some_ids(1, 64), 1)


def test_stream_pieces_are_the_generated_text(capsys):
    model, tokenizer = tiny(), ByteTokenizer()
    pieces = list(stream(model, tokenizer, "ab", 30, temperature=1.5, seed=3))
    text = generate(model, tokenizer, "ab", 30, temperature=1.5, seed=3)
    assert "".join(pieces) == text
    assert text != generate(model, tokenizer, "ab", 30, temperature=1.5, seed=4)
    assert stream_to_cell(model, tokenizer, "ab", 30, temperature=1.5, seed=3) == text
    assert capsys.readouterr().out == f"ab{text}\n"


def test_generation_stops_where_the_positions_end():
    assert generate_ids(tiny(), some_ids(1, 60), 100).shape == (1, 64)


def test_a_foreign_tokenizer_is_refused():
    with pytest.raises(ValueError, match="tokenizer has 97 tokens, the model 98"):
        generate(tiny(vocab_size=98), ByteTokenizer(), "a")
