"""The MTP modules: causality, what is shared, the loss, and Hugging Face's own module as oracle."""

import pytest
import torch
import torch.nn.functional as F
from transformers.modeling_layers import MtpModel

from deepseek_twin import as_module_state, build, twin
from minids3.model.hf import hf_layout


def batch(shape=(2, 17), seed=1):
    return torch.randint(0, 101, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("changes", [{}, {"rope_interleave": False}, {"n_shared_experts": 2}])
def test_hidden_vectors_equal_hugging_face(changes):
    model = build(num_nextn_predict_layers=1, **changes)
    hf = twin(model)
    theirs = MtpModel(hf, 1)
    prefix = f"model.layers.{model.config.num_hidden_layers}."
    state = {
        name.removeprefix(prefix)
        if name.split(".")[3] in ("enorm", "hnorm", "eh_proj")
        else name.removeprefix(prefix).replace("shared_head.norm", "post_norm")
        if "shared_head" in name
        else "mtp_block." + name.removeprefix(prefix): tensor
        for name, tensor in as_module_state(model.state_dict(), model.config).items()
        if name.startswith(prefix)
    }
    theirs.layers[0].load_state_dict(state)
    ids = batch()
    hidden = hf.model(ids).last_hidden_state[:, :-1]
    positions = torch.arange(ids.shape[1] - 1)[None]
    future = torch.full((positions.shape[1],) * 2, -torch.inf).triu(1)
    expected = theirs.layers[0](
        inputs_embeds=hf.model.embed_tokens(ids[:, 1:]),
        previous_hidden_state=hidden,
        position_embeddings=hf.model.rotary_emb(hidden, positions),
        attention_mask=future[None, None],
        position_ids=positions,
        cache=None,
    )
    (logits,) = model.mtp_logits(ids)
    torch.testing.assert_close(logits, hf.lm_head(expected), rtol=1e-5, atol=1e-5)


def test_a_chain_of_three_sees_no_token_it_has_to_predict():
    model = build(num_nextn_predict_layers=3)
    ids = batch(shape=(1, 12))
    before = model.mtp_logits(ids)
    changed = ids.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 101
    after = model.mtp_logits(changed)
    for k, (old, new) in enumerate(zip(before, after, strict=True), start=1):
        assert old.shape == (1, 12 - k, 101)
        first = 7 - k  # position i of module k has read tokens up to i + k
        torch.testing.assert_close(old[:, :first], new[:, :first])
        assert not torch.allclose(old[:, first], new[:, first])


def test_losses_are_sums_over_fewer_targets_divided_like_the_main_one():
    model = build(num_nextn_predict_layers=2)
    ids = batch()
    targets = ids.roll(-1, 1)
    targets[:, -1] = -100
    targets[0, 3] = -100
    main, extra = model.losses(ids, targets)
    torch.testing.assert_close(main, model.loss(ids, targets))
    counted = int((targets != -100).sum())
    for k, (loss, logits) in enumerate(zip(extra, model.mtp_logits(ids), strict=True), start=1):
        total = 0.0
        for row in range(ids.shape[0]):
            for i in range(ids.shape[1] - k):
                target = int(targets[row, i + k])
                if target != -100:
                    total -= float(F.log_softmax(logits[row, i], -1)[target])
        assert float(loss) == pytest.approx(total / counted, rel=1e-5)
    sums = model.losses(ids, targets, reduction="sum")
    torch.testing.assert_close(sums[0], main * counted)
    torch.testing.assert_close(torch.stack(sums[1]), torch.stack(extra) * counted)
    torch.testing.assert_close(model.loss(ids, targets, reduction="sum"), sums[0])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_nothing_to_learn_is_a_loss_of_zero_without_gradient(reduction):
    model, ids = build(num_nextn_predict_layers=2), batch()
    main, extra = model.losses(ids, torch.full_like(ids, -100), reduction=reduction)
    assert [float(loss) for loss in (main, *extra)] == [0.0] * 3
    (main + sum(extra)).backward()
    assert all(p.grad is None or not bool(p.grad.any()) for p in model.parameters())


def test_sums_of_two_batches_are_the_mean_of_both():
    """What accumulating gradients needs: batches weigh by their targets."""
    model = build(num_nextn_predict_layers=1)
    ids = batch((4, 9))
    targets = ids.roll(-1, 1)
    targets[0, 2:] = targets[1] = targets[3, :1] = -100
    counted = int((targets != -100).sum())
    parts = [model.losses(ids[i : i + 2], targets[i : i + 2], reduction="sum") for i in (0, 2)]
    main, (ahead,) = model.losses(ids, targets)
    torch.testing.assert_close((parts[0][0] + parts[1][0]) / counted, main)
    torch.testing.assert_close((parts[0][1][0] + parts[1][1][0]) / counted, ahead)


def test_embedding_and_head_are_shared_and_everything_is_trained():
    model = build(num_nextn_predict_layers=1)
    ids = batch()
    _, (loss,) = model.losses(ids, ids.roll(-1, 1))
    loss.backward()
    untouched = [n for n, p in model.named_parameters() if p.grad is None]
    assert untouched == []
    own = {n for n, _ in model.named_parameters() if n.startswith("mtp.")}
    assert not any("embed" in n or "head" in n for n in own)
    # the files repeat both in the module's layer
    copies = [e.name for e in hf_layout(model.config) if e.copy]
    assert copies == [
        "model.layers.3.embed_tokens.weight",
        "model.layers.3.shared_head.head.weight",
    ]


def test_too_few_tokens_are_refused():
    with pytest.raises(ValueError, match="1 tokens are too few for MTP module 1"):
        build(num_nextn_predict_layers=1).mtp_logits(batch(shape=(1, 1)))
