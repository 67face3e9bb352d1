"""Notebook 17's exercises are the library's rules: the same numbers from both."""

import pytest
import torch

from minids3.course.exercises.nb17_speculative_decoding.accept import accept_and_residual
from minids3.course.exercises.nb17_speculative_decoding.experts import experts_read
from minids3.course.exercises.nb17_speculative_decoding.rollback import after_check
from minids3.course.exercises.nb17_speculative_decoding.verify import check_drafts
from minids3.course.exercises.nb17_speculative_decoding.worth import step_worth
from minids3.infer import generate_ids, make_cache
from minids3.infer.acceptance import tokens_per_step
from minids3.infer.speculative import acceptance_probability, residual, verify
from minids3.model import Transformer
from minids3.sim.serving import expected_experts


def distributions(seed, *shape):
    g = torch.Generator().manual_seed(seed)
    p, q = torch.softmax(1.5 * torch.randn(2, *shape, generator=g), -1)
    return p, q


def test_accept_and_residual_are_the_librarys():
    p, q = distributions(0, 5, 9)
    accept, rest = accept_and_residual(p, q)
    torch.testing.assert_close(accept, acceptance_probability(p, q))
    for i in range(5):
        torch.testing.assert_close(rest[i], residual(p[i], q[i]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_results_have_the_dtype_of_what_came_in(dtype):
    p, q = (t.to(dtype) for t in distributions(3, 5, 9))
    ours = accept_and_residual(p, q)
    theirs = acceptance_probability(p, q), residual(p[0], q[0])
    assert {t.dtype for t in (*ours, *theirs)} == {dtype}


@pytest.mark.parametrize("seed", range(40))
def test_check_drafts_decides_as_the_library_with_the_same_numbers(seed):
    p, q = distributions(seed, 4, 7)
    drafts = [int(row.argmax()) for row in q[:3]]
    theirs, _ = verify(p, drafts, q[:3], torch.Generator().manual_seed(seed))
    u = torch.rand(3, generator=torch.Generator().manual_seed(seed))
    n, probs = check_drafts(p, drafts, q[:3], u)
    assert n == theirs
    torch.testing.assert_close(probs, p[3] if n == 3 else residual(p[n], q[n]))


def test_step_worth_of_equal_rates():
    for k in range(4):
        tokens, speed = step_worth([0.85] * k, 0.0, 0.0)
        assert tokens == speed == pytest.approx(tokens_per_step(0.85, k))
    assert step_worth([0.8, 0.5], 0.1, 0.2) == (pytest.approx(2.2), pytest.approx(1.375))


def test_strangers_of_an_even_text_are_those_of_the_formula():
    text = torch.arange(24).view(8, 3) % 12  # every expert twice in eight tokens
    for columns in (1, 2, 5):
        strangers = experts_read(text, 12, columns)[1]
        assert strangers == pytest.approx(expected_experts(columns, 12, 3))


def test_places_that_stay_are_those_of_a_fresh_pass(mini):
    """A cache rolled back by ``after_check`` holds what a pass over the new text puts there."""
    text = generate_ids(mini, torch.tensor([[1, 5, 9]]), 4)[0].tolist()
    drafts, n, token = [7, 8, 3], 1, 11
    cache, fresh = make_cache(mini.config), make_cache(mini.config)
    with torch.no_grad():
        mini.hidden_states(torch.tensor([text[:-1]]), cache)
        hidden = mini.hidden_states(torch.tensor([[text[-1], *drafts]]), cache)[0]
        new, main, module, rows = after_check(text, drafts, n, token, hidden)
        again = mini.hidden_states(torch.tensor([new[:-1]]), fresh)[0]
    assert main == fresh.length == len(new) - 1
    torch.testing.assert_close(
        cache.latent[:, :, :main], fresh.latent[:, :, :main], rtol=1e-4, atol=1e-5
    )
    assert module + len(rows) == main
    torch.testing.assert_close(rows, again[module:main], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def mini():
    from minids3.config import get_config

    torch.manual_seed(0)
    cfg = get_config("mini_chat", num_hidden_layers=2, vocab_size=64)
    return Transformer(cfg).eval()
