"""Balancing: the losses by hand, the bias by its sign rule, and what the trainer does with them."""

import math

import pytest
import torch

from deepseek_twin import BASE
from minids3.model import Transformer
from minids3.nn import record_routing
from minids3.train import TrainConfig, Trainer, latest_checkpoint
from minids3.train.balance import (
    batch_balance_loss,
    expert_load,
    load_entropy,
    max_violation,
    mutual_information,
    routing_loads,
    sequence_balance_loss,
    update_expert_bias,
    update_expert_biases,
)


class Batches:
    def batch(self, step):
        ids = torch.randint(0, 101, (4, 13), generator=torch.Generator().manual_seed(step))
        return ids[:, :-1], ids[:, 1:]


def model_of(**changes):
    torch.manual_seed(0)
    return Transformer(BASE.replace(initializer_range=0.05, **changes))


def test_load_metrics():
    load = expert_load(torch.tensor([[0, 1], [1, 3], [1, 0]]), 4)
    assert load.tolist() == [2, 3, 0, 1]
    assert float(max_violation(load)) == pytest.approx(1.0)
    assert float(max_violation(torch.ones(5))) == 0
    assert float(max_violation(torch.zeros(5))) == 0
    assert max_violation(torch.tensor([[1, 1], [2, 0]])).tolist() == [0, 1]
    assert float(load_entropy(torch.full((8,), 3))) == pytest.approx(1)
    assert float(load_entropy(torch.tensor([5, 0, 0]))) == 0
    p = torch.tensor([2, 3, 0, 1]) / 6
    by_hand = -sum(float(q) * math.log(q) for q in p if q > 0) / math.log(4)
    assert float(load_entropy(load)) == pytest.approx(by_hand)


def entropy(shares):
    return -sum(p * math.log2(p) for p in shares if p)


def test_mutual_information_by_hand():
    counts = torch.tensor([[3, 1, 0], [1, 3, 0]])  # the third expert is idle
    known = 1 - entropy([3 / 4, 1 / 4])
    assert mutual_information(counts).item() == pytest.approx(known)
    assert mutual_information(counts.T).item() == pytest.approx(known)
    assert mutual_information(counts * 10**12).item() == pytest.approx(known)
    assert mutual_information(torch.diag(torch.tensor([5, 2, 1]))).item() == pytest.approx(
        entropy([5 / 8, 2 / 8, 1 / 8])
    )
    alone = torch.tensor([1, 4, 2])[:, None] * torch.tensor([3, 1, 5, 0])
    nothing = torch.zeros_like(alone)
    several = mutual_information(torch.stack((alone, nothing)))
    assert several.tolist() == pytest.approx([0, 0], abs=1e-12)
    assert several.dtype == torch.float64
    with pytest.raises(ValueError, match="two axes"):
        mutual_information(torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="below 0"):
        mutual_information(torch.tensor([[1, -2]]))


def test_sequence_loss_by_hand():
    torch.manual_seed(0)
    scores = torch.rand(3, 7, 6).requires_grad_()
    top_k = 2
    total = 0.0
    for b in range(3):
        for i in range(6):
            best = scores[b].topk(top_k, -1).indices
            f = 6 / (top_k * 7) * sum(i in row for row in best.tolist())
            p = sum(scores[b, t, i] / scores[b, t].sum() for t in range(7)) / 7
            total = total + f * p
    loss = sequence_balance_loss(scores, top_k)
    torch.testing.assert_close(loss, total / 3)
    ours, theirs = (torch.autograd.grad(v, scores)[0] for v in (loss, total / 3))
    torch.testing.assert_close(ours, theirs)


def test_losses_are_one_when_even_and_grow_with_the_skew():
    scores = torch.eye(4)[torch.arange(8) % 4].expand(2, 8, 4) + 1e-6
    assert float(sequence_balance_loss(scores, 1)) == pytest.approx(1, abs=1e-4)
    indices = scores.topk(1, -1).indices
    assert float(batch_balance_loss(scores, indices)) == pytest.approx(1, abs=1e-4)
    skewed = torch.eye(4)[torch.zeros(8, dtype=torch.int64)].expand(2, 8, 4) + 1e-6
    assert float(sequence_balance_loss(skewed, 1)) == pytest.approx(4, abs=1e-3)
    # each sequence is one-sided, the batch is even: only the sequence-wise loss minds
    sided = torch.stack([torch.eye(4)[torch.full((8,), i)] for i in range(4)]) + 1e-6
    assert float(batch_balance_loss(sided, sided.topk(1, -1).indices)) == pytest.approx(1, abs=1e-4)
    assert float(sequence_balance_loss(sided, 1)) == pytest.approx(4, abs=1e-3)


def test_bias_moves_by_the_sign_and_by_nothing_else():
    bias = torch.zeros(4)
    update_expert_bias(bias, torch.tensor([100, 4, 4, 0]), 0.5)
    assert bias.tolist() == [-0.5, 0.5, 0.5, 0.5]
    update_expert_bias(bias, torch.tensor([3, 3, 3, 3]), 0.5)
    assert bias.tolist() == [-0.5, 0.5, 0.5, 0.5]
    update_expert_bias(bias, torch.tensor([2, 1, 1, 0]), 0.5)  # the mean itself stays
    assert bias.tolist() == [-1.0, 0.5, 0.5, 1.0]


def test_trainer_moves_every_bias_and_never_by_gradient():
    model = model_of(num_nextn_predict_layers=1)
    trainer = Trainer(model, TrainConfig(steps=3, lr=1e-2, bias_update_speed=0.01), Batches())
    inputs, targets = Batches().batch(0)
    with record_routing(model) as log:
        model.losses(inputs, targets)
    expected = {
        name: 0.01 * torch.sign(load.double().mean() - load).float()
        for name, load in routing_loads(log).items()
    }
    trainer.train_step()
    assert len(expected) == 3  # two layers and the MTP module
    for name, bias in expected.items():
        torch.testing.assert_close(model.get_submodule(name).expert_bias, bias)
    decayed = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert not any(id(b) in decayed for b in model.buffers())
    assert len(trainer.history.mtp_loss) == len(trainer.history.max_violation) == 1


def test_schedules_of_speed_and_lambda():
    cfg = TrainConfig(
        steps=9, bias_update_until=4, mtp_late_from=6, mtp_weight=0.3, mtp_weight_late=0.1
    )
    assert [cfg.bias_speed_at(s) for s in (0, 3, 4)] == [0.001, 0.001, 0.0]
    assert [cfg.mtp_weight_at(s) for s in (5, 6)] == [0.3, 0.1]
    with pytest.raises(ValueError, match="mtp_weight=-1"):
        TrainConfig(steps=1, mtp_weight=-1)


def test_objective_is_the_sum_of_its_parts():
    model = model_of(num_nextn_predict_layers=2)
    cfg = TrainConfig(
        steps=1, seq_balance_weight=0.5, batch_balance_weight=0.25, mtp_weight=0.3, grad_clip=1e9
    )
    trainer = Trainer(model, cfg, Batches())
    inputs, targets = Batches().batch(0)
    with record_routing(model) as log:
        main, extra = model.losses(inputs, targets)
    total = main + 0.3 * (extra[0] + extra[1]) / 2
    for routing in log.values():
        total = total + 0.5 * sequence_balance_loss(routing.scores, 3)
        total = total + 0.25 * batch_balance_loss(routing.scores, routing.indices)
    grads = torch.autograd.grad(total, list(model.parameters()))
    norm = torch.stack([g.norm() for g in grads]).norm()
    loss, trained_norm = trainer.train_step()
    assert loss == pytest.approx(main.item())
    assert trained_norm == pytest.approx(float(norm), rel=1e-5)


def test_mtp_is_not_run_at_weight_zero():
    model = model_of(num_nextn_predict_layers=1)
    trainer = Trainer(model, TrainConfig(steps=1, mtp_weight=0.0), Batches())
    trainer.train_step()
    assert trainer.history.mtp_loss == []
    assert model.mtp[0].eh_proj.weight.grad is None


def test_the_bias_evens_a_skewed_load_and_no_bias_does_not():
    """LFB's point on a model that learns nothing: only the bias differs."""
    ends = {}
    for speed in (0.0, 0.01):
        model = model_of(n_group=1, topk_group=1)
        for layer in model.layers[1:]:
            layer.mlp.gate.expert_bias[:3] = 0.3  # some experts are everybody's favourites
        cfg = TrainConfig(steps=150, lr=1e-9, bias_update_speed=speed, seq_balance_weight=0.0)
        trainer = Trainer(model, cfg, Batches())
        trainer.fit(progress=False)
        ids = torch.randint(0, 101, (64, 32), generator=torch.Generator().manual_seed(1))
        with record_routing(model) as log:
            model(ids)
        ends[speed] = max(float(max_violation(load)) for load in routing_loads(log).values())
    assert ends[0.0] > 1.0
    assert ends[0.01] < 0.5


def test_resume_with_experts_is_bit_for_bit(tmp_path):
    cfg = TrainConfig(steps=6, lr=1e-2, save_every=3)

    def run(folder):
        model = model_of(num_nextn_predict_layers=1)
        return Trainer(model, cfg, Batches(), out_dir=folder)

    whole = run(tmp_path / "a")
    whole.fit(progress=False)
    first = run(tmp_path / "b")
    first.fit(until=3, progress=False)
    second = run(tmp_path / "b")
    second.resume(latest_checkpoint(tmp_path / "b"))
    second.fit(progress=False)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name
    assert whole.history == second.history


def test_updating_what_is_no_gate_is_refused():
    with pytest.raises(TypeError, match="not a Gate"):
        update_expert_biases(model_of(), {"layers.1.mlp": torch.ones(12)}, 0.1)
