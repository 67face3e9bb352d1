"""Our model against Hugging Face's DeepseekV3ForCausalLM: same weights, same numbers."""

import pytest
import torch

from deepseek_twin import CONFIGS, as_module_state, build, twin
from minids3.infer import generate_ids


def batch(vocab=101, shape=(2, 23), seed=1):
    ids = torch.randint(0, vocab, shape, generator=torch.Generator().manual_seed(seed))
    targets = ids.roll(-1, 1)
    targets[:, -1] = -100
    return ids, targets


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_loss_and_every_gradient(name):
    model = build(**CONFIGS[name])
    hf = twin(model)
    ids, targets = batch()
    ours, theirs = model(ids), hf(ids).logits
    assert (ours - theirs).norm() / theirs.norm() < 1e-5
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
    loss, their_loss = model.loss(ids, targets), hf(ids, labels=ids).loss
    torch.testing.assert_close(loss, their_loss, rtol=1e-5, atol=0)
    loss.backward()
    their_loss.backward()
    grads = {n: p.grad for n, p in model.named_parameters()}
    ours = as_module_state(grads, model.config)
    reached = 0
    for parameter_name, parameter in hf.named_parameters():
        if parameter.numel() == 0:  # shared experts of width 0
            continue
        error = (ours[parameter_name] - parameter.grad).norm() / parameter.grad.norm()
        assert error < 1e-5, (parameter_name, float(error))
        reached += 1
    assert reached == len(ours)


@pytest.mark.parametrize("name", ["base", "plain queries", "yarn", "no shared expert"])
def test_greedy_generation_token_for_token(name):
    model = build(seed=3, **CONFIGS[name]).eval()
    hf = twin(model).eval()
    ids, _ = batch(shape=(3, 9))
    ours = generate_ids(model, ids, max_new_tokens=30)
    theirs = hf.generate(
        ids,
        max_new_tokens=30,
        min_new_tokens=30,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    assert torch.equal(ours, theirs)
