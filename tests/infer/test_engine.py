"""The engine: whatever runs beside it and whenever it came, a request gets what it gets alone."""

import os
import random

import pytest
import torch

from minids3.infer import generate_ids
from minids3.infer.engine import Engine, RequestError, Sampling
from minids3.infer.pages import OutOfPages, PagePool, extend_digests
from small_models import grouped_model, latent_model

SCHEDULES = int(os.environ.get("MINIDS3_SCHEDULES", "50"))
"""Of each kind; MINIDS3_SCHEDULES=1000 pytest tests/infer/test_engine.py takes its time."""


@pytest.fixture(scope="module")
def latent():
    return latent_model(num_hidden_layers=1, first_k_dense_replace=0)


@pytest.fixture(scope="module")
def grouped():
    return grouped_model()


def some_requests(rng, count, vocabulary=41):
    """Prompts, some of which begin alike, and settings."""
    stem = [rng.randrange(vocabulary) for _ in range(20)]
    found = []
    for _ in range(count):
        prompt = stem[: rng.randrange(20)] + [
            rng.randrange(vocabulary) for _ in range(rng.randrange(1, 6))
        ]
        sampling = Sampling(
            max_new_tokens=rng.randrange(1, 9),
            temperature=rng.choice([0.0, 0.0, 0.7, 1.3]),
            top_p=rng.choice([1.0, 0.8]),
            seed=rng.randrange(1000),
            eos_id=rng.choice([None, 3, 7]),
        )
        found.append((prompt, sampling))
    return found


def alone(model, prompt, sampling):
    out = generate_ids(
        model,
        [prompt],
        sampling.max_new_tokens,
        sampling.temperature,
        sampling.top_p,
        sampling.seed,
        sampling.eos_id,
    )
    return out[0][len(prompt) :].tolist()


def serve_at_random(model, requests, rng, drafts):
    """Requests come at random moments, some leave again; returns texts and the engine."""
    page = rng.choice([1, 2, 3, 4, 8])
    longest = max(len(prompt) + how.max_new_tokens for prompt, how in requests)
    engine = Engine(
        model,
        n_pages=2 + -(-(longest + drafts) // page),  # the longest fits, hardly more
        page=page,
        max_batch=rng.randrange(2, 6),
        chunk=rng.choice([1, 2, 5, 16]),
        drafts=drafts,
    )
    left, texts, cancelled = list(range(len(requests))), {}, set()
    numbers = {}
    while left or not engine.idle:
        while left and (engine.idle or rng.random() < 0.4):
            i = left.pop(0)
            numbers[engine.submit(*requests[i])] = i
            texts[i] = []
        for event in engine.step():
            texts[numbers[event.request]] += event.tokens
        if rng.random() < 0.03 and engine.running:
            victim = rng.choice(engine.running).number
            assert engine.cancel(victim)
            cancelled.add(numbers[victim])
    assert engine.pool.held == 0
    return texts, cancelled, engine


@pytest.mark.parametrize("kind", ["latent", "grouped"])
def test_random_schedules_change_no_text(kind, request):
    model, preempted, reused = request.getfixturevalue(kind), 0, 0
    for seed in range(SCHEDULES):
        rng = random.Random(seed)
        requests = some_requests(rng, 5)
        texts, cancelled, engine = serve_at_random(model, requests, rng, drafts=0)
        for i, (prompt, sampling) in enumerate(requests):
            want = alone(model, prompt, sampling)
            got = texts[i]
            assert got == (want[: len(got)] if i in cancelled else want), (seed, i)
        preempted += engine.statistics.preempted
        reused += engine.statistics.reused
    assert preempted > SCHEDULES / 4  # or the schedules test less than they say
    assert reused > SCHEDULES


@pytest.mark.parametrize("drafts", [1, 3])
def test_random_schedules_with_guesses_change_no_text(drafts, latent):
    preempted = accepted = 0
    for seed in range(SCHEDULES):
        rng = random.Random(seed)
        requests = some_requests(rng, 4)
        texts, cancelled, engine = serve_at_random(latent, requests, rng, drafts)
        for i, (prompt, sampling) in enumerate(requests):
            if sampling.temperature == 0:
                want = alone(latent, prompt, sampling)
            else:  # guesses use random numbers, so the same seed gives another text than without
                (want,) = Engine(latent, max_batch=1, drafts=drafts).generate([prompt], sampling)
            got = texts[i]
            assert got == (want[: len(got)] if i in cancelled else want), (seed, i)
        preempted += engine.statistics.preempted
        accepted += engine.statistics.accepted
    assert preempted > SCHEDULES / 4
    assert accepted > SCHEDULES / 4


@pytest.mark.parametrize("kind", [latent_model, grouped_model])
def test_packed_weights_give_the_same_texts(kind):
    model = kind(torch.float32)
    rng = random.Random(1)
    requests = [r for r in some_requests(rng, 24) if r[1].temperature == 0]
    drafts = 2 if len(model.mtp) else 0
    packed, plain = Engine(model, drafts=drafts), Engine(model, drafts=drafts, prepare=False)
    assert packed.model.prepared is not None
    assert plain.model.prepared is None
    prompts, settings = zip(*requests, strict=True)
    assert packed.generate(prompts, settings) == plain.generate(prompts, settings)


def logits_of(engine, prompt, more):
    """Logits that the engine decides by, one row per token of ``more``."""
    seen, plain = [], engine.model.logits

    def note(hidden):
        seen.append(plain(hidden))
        return seen[-1]

    engine.model.logits = note
    engine.generate([prompt], Sampling(max_new_tokens=more))
    return torch.cat(seen)


@pytest.mark.parametrize("prepare", [True, False])
@pytest.mark.parametrize("kind", [latent_model, grouped_model])
def test_cached_logits_are_the_model_s(kind, prepare):
    model = kind(torch.float32)
    prompt = list(range(1, 12))
    engine = Engine(model, page=4, chunk=3, prepare=prepare)
    got = logits_of(engine, prompt, 8)
    text = prompt + alone(model, prompt, Sampling(max_new_tokens=8))
    with torch.inference_mode():
        want = model(torch.tensor([text]))[0, len(prompt) - 1 : -1]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_bad_requests_fail_alone(latent):
    engine = Engine(latent, n_pages=9, page=4)
    good = engine.submit([1, 2, 3], Sampling(max_new_tokens=6))
    bad = {
        "the prompt has 0 tokens": [],
        "the prompt has 48 tokens": [1] * 48,
        "token 41 is not in the vocabulary, 0 to 40": [1, 41],
        "token -1 is not in the vocabulary": [-1],
        "integer token ids; one is 2.0": [1, 2.0],
        "integer token ids; one is True": [True],
        "a sequence of token ids, not str": "hello",
        "a sequence of token ids, not int": 5,
        "may need 12 pages of 4 tokens, and there are 8": [1] * 40,
    }
    for message, prompt in bad.items():
        with pytest.raises(RequestError, match=message):
            engine.submit(prompt)
    texts = []
    for event in engine.run():
        assert event.request == good
        texts += event.tokens
    assert texts == alone(latent, [1, 2, 3], Sampling(max_new_tokens=6))


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": 2.0},
        {"max_new_tokens": True},
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": "hot"},
        {"top_p": 0},
        {"top_p": 1.5},
        {"seed": -1},
        {"seed": 2**63},
        {"seed": None},
    ],
)
def test_bad_settings(wrong):
    with pytest.raises(RequestError, match=next(iter(wrong))):
        Sampling(**wrong)


@pytest.mark.parametrize("drafts", [0, 2])
def test_logits_that_are_no_numbers_end_their_request_alone(drafts):
    model = latent_model()
    with torch.no_grad():
        model.embed_tokens.weight[40] = float("nan")
    engine = Engine(model, page=2, drafts=drafts)
    good = engine.submit([1, 2, 3], Sampling(max_new_tokens=9))
    bad = engine.submit([1, 2, 40, 3], Sampling(max_new_tokens=9))
    events = list(engine.run())
    assert [e.finished for e in events if e.request == bad] == ["error"]
    text = [t for e in events if e.request == good for t in e.tokens]
    assert text == alone(model, [1, 2, 3], Sampling(max_new_tokens=9))
    # Its pages go to others, and what lies in them harms nobody.
    for seed in range(4):
        prompt = [seed + 1] * 20
        (text,) = engine.generate([prompt], Sampling(max_new_tokens=9))
        assert text == alone(model, prompt, Sampling(max_new_tokens=9))


@pytest.mark.parametrize("prepare", [True, False])
def test_poisoned_pages_harm_nobody(prepare):
    model = latent_model(torch.float32)
    engine = Engine(model, page=3, drafts=1, prepare=prepare)
    for part in engine.model.memory:
        part[:, 1:] = float("nan")
    prompts = [[1, 2, 3], [4] * 13, [5, 6]]
    want = [alone(model, p, Sampling(max_new_tokens=9)) for p in prompts]
    assert engine.generate(prompts, Sampling(max_new_tokens=9)) == want


def test_a_known_prefix_is_not_computed_again(latent):
    engine = Engine(latent, page=4)
    prompt = list(range(17))
    (first,) = engine.generate([prompt], Sampling(max_new_tokens=4))
    before = engine.statistics.computed
    (second,) = engine.generate([prompt], Sampling(max_new_tokens=4))
    assert first == second
    assert engine.statistics.reused == 16
    assert engine.statistics.computed - before == 1 + 3
    engine.generate([[*prompt[:9], 40, 40]], Sampling(max_new_tokens=1))
    assert engine.statistics.reused == 16 + 8
    # The answer is part of the next turn's prefix.
    engine.generate([prompt + first], Sampling(max_new_tokens=1))
    assert engine.statistics.reused == 16 + 8 + 20


def test_a_page_under_guesses_depends_on_the_token_after_it():
    same, other = [1, 2, 3, 4, 5], [1, 2, 3, 4, 6]
    assert extend_digests([], same, 4) == extend_digests([], other, 4)
    assert extend_digests([], same, 4, ahead=1) != extend_digests([], other, 4, ahead=1)
    assert extend_digests([], [1, 2, 3, 4], 4, ahead=1) == []
    assert extend_digests([], [12, 3], 2) != extend_digests([], [1, 23], 2)


def test_the_oldest_is_served_first_and_nobody_starves(latent):
    engine = Engine(latent, n_pages=14, page=4, max_batch=3, chunk=4)
    first = engine.submit([1] * 30, Sampling(max_new_tokens=18))
    ended = []
    for i in range(40):  # a stream of newcomers
        engine.submit([2 + i % 30], Sampling(max_new_tokens=6))
        ended += [e.request for e in engine.step() if e.finished]
    assert first in ended
    assert ended == sorted(ended) or ended.index(first) < 12
    rest = {e.request for e in engine.run() if e.finished}
    assert rest | set(ended) == set(range(1, 42))


def test_a_long_prompt_does_not_stop_the_others(latent):
    engine = Engine(latent, chunk=4)
    talking = engine.submit([1, 2], Sampling(max_new_tokens=12))
    engine.step()
    engine.submit([3] * 40, Sampling(max_new_tokens=1))
    for _ in range(9):
        assert [e.request for e in engine.step() if e.tokens] == [talking]


def test_cancelled_requests_leave_no_trace(latent):
    engine = Engine(latent, max_batch=1)
    running, waiting = engine.submit([1, 2]), engine.submit([3])
    engine.step()
    assert engine.cancel(running)
    assert engine.cancel(waiting)
    assert not engine.cancel(running)
    assert engine.idle
    assert engine.pool.held == 0
    assert list(engine.run()) == []


def test_generate_serves_all_or_none(latent):
    engine = Engine(latent)
    with pytest.raises(RequestError, match="token 99"):
        engine.generate([[1], [99]])
    assert engine.idle
    assert engine.generate([]) == []


def test_pages_are_lent_shared_and_forgotten_oldest_first():
    pool = PagePool(4)
    a, b, c = pool.take(), pool.take(), pool.take()
    assert sorted((a, b, c)) == [1, 2, 3]
    with pytest.raises(OutOfPages, match="all 3 pages"):
        pool.take()
    pool.publish(a, b"a")
    pool.publish(b, b"b")
    assert pool.share(b"a") == a
    pool.give_back(a)
    assert pool.available == 0  # still held once
    pool.give_back(b)
    pool.give_back(a)
    assert pool.available == 2
    assert pool.take() == b  # unused for longest
    assert pool.share(b"b") is None
    assert pool.share(b"a") == a
    with pytest.raises(ValueError, match="held by nobody"):
        pool.give_back(0)
    pool.give_back(c)
    assert pool.take() == c  # never published, so nothing is lost
    with pytest.raises(ValueError, match="2 or more"):
        PagePool(1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"page": 0}, "page=0"),
        ({"max_batch": 1.5}, "max_batch=1.5"),
        ({"chunk": -1}, "chunk=-1"),
        ({"drafts": -1}, "drafts=-1"),
        ({"fp8_cache": True}, "has no FP8 line"),
    ],
)
def test_engines_that_cannot_be(latent, settings, message):
    with pytest.raises(ValueError, match=message):
        Engine(latent, **settings)


def test_models_that_cannot_be_served(grouped):
    with pytest.raises(ValueError, match="no MTP module"):
        Engine(grouped, drafts=1)
    with pytest.raises(ValueError, match="only latents"):
        Engine(grouped, fp8_cache=True)
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        Engine(grouped_model().train())
    strange = grouped_model()
    strange.layers[0].self_attn = torch.nn.Identity()
    with pytest.raises(ValueError, match="own layers only"):
        Engine(strange)


def test_a_cache_of_fp8_lines():
    model = latent_model(torch.float32, kv_lora_rank=128, initializer_range=0.3)
    prompt = list(range(1, 14))
    want = logits_of(Engine(model, page=4, chunk=5), prompt, 4)
    got = logits_of(Engine(model, page=4, chunk=5, fp8_cache=True), prompt, 4)
    error = (got[0] - want[0]).norm() / want[0].norm()
    assert 1e-5 < error < 0.1  # FP8 it is, and no more than that
