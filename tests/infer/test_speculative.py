"""Guessing changes nothing: by exact enumeration, by counting, and with rules that do change it."""

import itertools
import math

import pytest
import torch

from minids3.infer import next_token_probs
from minids3.infer.acceptance import second_token_acceptance
from minids3.infer.engine import Engine, Sampling
from minids3.infer.speculative import acceptance_probability, residual, verify, verify_greedy
from small_models import latent_model


def laws(count, seed, vocabulary=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, vocabulary, generator=generator, dtype=torch.float64).softmax(-1)


def first_token(p, q, accept, after):
    """Law of the token that comes out, when the guess is drawn from q."""
    out = torch.zeros_like(p)
    for guess in range(len(p)):
        out[guess] += q[guess] * accept[guess]
        out += q[guess] * (1 - accept[guess]) * after(guess)
    return out


def distance(a, b):
    return 0.5 * (a - b).abs().sum().item()


@pytest.mark.parametrize("seed", range(5))
def test_enumerated_the_law_is_the_target_s(seed):
    p, q = laws(2, seed)
    if seed == 3:
        p = p.masked_fill(p < 0.15, 0) / p[p >= 0.15].sum()
    if seed == 4:
        q = q.masked_fill(q < 0.15, 0) / q[q >= 0.15].sum()
    accept = acceptance_probability(p, q)
    assert distance(first_token(p, q, accept, lambda _: residual(p, q)), p) < 1e-15
    assert math.isclose((q * accept).sum(), torch.minimum(p, q).sum(), rel_tol=1e-12)


def test_enumerated_other_rules_are_not():
    p, q = laws(2, 0)
    accept = acceptance_probability(p, q)
    everything = torch.ones_like(p)
    assert distance(first_token(p, q, accept, lambda _: p), p) > 0.03  # draws from p again
    assert distance(first_token(p, q, everything, lambda _: p), p) > 0.1  # accepts all
    greedy = torch.zeros_like(q)
    greedy[q.argmax()] = 1
    # The guess is the most likely one, but the rule is told that it was drawn from q.
    assert distance(first_token(p, greedy, accept, lambda _: residual(p, q)), p) > 0.03
    right = acceptance_probability(p, greedy)
    assert distance(first_token(p, greedy, right, lambda _: residual(p, greedy)), p) < 1e-15


def pairs_of(verify_rule, seed, draws):
    """Counts of the first two tokens of ``draws`` steps with two guesses each."""
    # Row 0: of the first token; 1 to 3: after each first token; then after each pair.
    p, q = laws(13, seed, 3), laws(13, seed + 1, 3)

    def place(text):
        return sum(3**i for i in range(len(text))) + sum(t * 3**i for i, t in enumerate(text))

    generator = torch.Generator().manual_seed(7)
    counts = torch.zeros(3, 3)
    for _ in range(draws):
        guesses, rows = [], []
        for _ in range(2):
            rows.append(q[place(guesses)])
            guesses.append(int(torch.multinomial(rows[-1], 1, generator=generator)))
        target = torch.stack([p[place(guesses[:i])] for i in range(3)])
        accepted, token = verify_rule(target, guesses, torch.stack(rows), generator)
        text = [*guesses[:accepted], token]
        if len(text) < 2:  # the second token comes from the next step; here, straight from p
            text.append(int(torch.multinomial(p[place(text)], 1, generator=generator)))
        counts[text[0], text[1]] += 1
    want = p[0][:, None] * torch.stack([p[1 + i] for i in range(3)])
    return counts, want * draws


def chi_square(counts, want):
    return (((counts - want) ** 2) / want).sum().item()


def test_counted_two_guesses_keep_the_law():
    counts, want = pairs_of(verify, 0, 3000)
    assert chi_square(counts, want) < 26.1  # 8 degrees of freedom: exceeded once in a thousand


def accept_all(p, guesses, q, generator):
    return len(guesses), int(torch.multinomial(p[-1], 1, generator=generator))


def draw_again(p, guesses, q, generator):
    for i, token in enumerate(guesses):
        if torch.rand((), generator=generator) >= acceptance_probability(p[i], q[i])[token]:
            return i, int(torch.multinomial(p[i], 1, generator=generator))
    return accept_all(p, guesses, q, generator)


@pytest.mark.parametrize("rule", [accept_all, draw_again])
def test_counting_notices_wrong_rules(rule):
    counts, want = pairs_of(rule, 0, 3000)
    assert chi_square(counts, want) > 40


def test_equal_laws_refuse_nothing():
    p = laws(1, 0)[0]
    assert torch.equal(acceptance_probability(p, p), torch.ones_like(p))
    assert torch.equal(residual(p, p), p)


def test_greedy_is_the_case_of_certain_laws():
    generator = torch.Generator().manual_seed(0)
    for guesses in itertools.product(range(3), repeat=2):
        for best in itertools.product(range(3), repeat=3):
            one_hot = torch.nn.functional.one_hot
            p, q = one_hot(torch.tensor(best), 3).double(), one_hot(torch.tensor(guesses), 3)
            want = verify(p, guesses, q.double(), generator)
            assert verify_greedy(best, guesses) == want


def test_shapes_that_do_not_fit():
    p = laws(3, 0)
    with pytest.raises(ValueError, match="2 guesses need p"):
        verify(p[:2], [1, 2], p[:2])
    with pytest.raises(ValueError, match="1 guesses need p"):
        verify(p[:2], [1], p[:2])


@pytest.fixture(scope="module")
def model():
    return latent_model(num_hidden_layers=1, first_k_dense_replace=0, vocab_size=6, seed=3)


@pytest.mark.parametrize("drafts", [1, 2])
def test_counted_the_engine_keeps_the_model_s_law(model, drafts):
    """Pairs of tokens after a first one, which the engine decides without guesses."""
    prompt, draws, how = [1, 2, 3], 400, {"temperature": 0.8, "top_p": 0.9}
    engine = Engine(model, drafts=drafts, max_batch=64)
    settings = [Sampling(max_new_tokens=4, seed=s, **how) for s in range(draws)]
    texts = engine.generate([prompt] * draws, settings)
    assert engine.statistics.accepted > draws / 10
    assert engine.statistics.accepted < engine.statistics.drafted
    texts = torch.tensor(texts)
    first = int(texts[:, 0].mode().values)
    second = texts[texts[:, 0] == first][:, 1]
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, first]]))[0, -1]
    want = next_token_probs(logits, **how) * len(second)
    counts = torch.bincount(second, minlength=6)
    assert bool((counts[want == 0] == 0).all())
    seen = want > 0
    assert chi_square(counts[seen], want[seen]) < 20.5  # 5 degrees of freedom: once in a thousand


def test_guesses_are_the_module_s_and_as_often_right_as_it_is(model):
    prompt = [1, 2, 3, 4]
    engine = Engine(model, drafts=1)
    (text,) = engine.generate([prompt], Sampling(max_new_tokens=40))
    counts = engine.statistics
    assert counts.generated == 40
    assert counts.drafted > 10
    # Walk along the text: which of the module's second tokens would have been proposed, and right?
    whole = torch.tensor([prompt + text])
    proposed = right = 0
    with torch.inference_mode():
        best, ahead = model(whole)[0].argmax(-1), model.mtp_logits(whole)[0][0].argmax(-1)
    last = len(prompt) - 1 + 1  # the first new token has no guess beside it
    while last < len(prompt) + 40 - 2:
        proposed += 1
        agreed = bool(ahead[last - 1] == best[last])
        right += agreed
        last += 1 + agreed
    assert counts.drafted == proposed
    assert counts.accepted == right
    assert 0 <= second_token_acceptance(model, whole) <= 1
