"""Recomputation: the same numbers to the bit, and less that waits for the backward pass."""

import pytest
import torch

from minids3.config import get_config
from minids3.model import Transformer
from minids3.ops.recompute import recomputable, recomputation
from minids3.train import TrainConfig, Trainer


class RandomIds:
    def __init__(self, vocab, rows=4, length=24):
        self.vocab, self.shape = vocab, (rows, length + 1)

    def batch(self, step):
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(0, self.vocab, self.shape, generator=generator)
        return ids[:, :-1], ids[:, 1:]


SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "moe_intermediate_size": 24,
    "num_attention_heads": 2, "vocab_size": 131, "q_lora_rank": 20, "kv_lora_rank": 12,
    "max_position_embeddings": 64,
}  # fmt: skip


def run(recompute, steps=4, **settings):
    torch.manual_seed(0)
    changes = {**SMALL, **settings.pop("model", {})}
    model = Transformer(get_config("mini", **changes))
    cfg = TrainConfig(steps=steps, lr=1e-2, recompute=recompute, **settings)
    trainer = Trainer(model, cfg, RandomIds(131))
    model.train()
    told = [trainer.train_step() for _ in range(steps)]
    return told, model


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"micro_batch_size": 1},
        {"precision": "fp8"},
        {"model": {"q_lora_rank": None, "v_head_dim": 48}},
        {"model": {"attention": "gqa", "num_key_value_heads": 2, "head_dim": 16}},
    ],
    ids=["whole", "accumulated", "fp8", "plain queries", "grouped queries"],
)
def test_training_is_the_same_to_the_bit(settings):
    plain, a = run(False, **settings)
    again, b = run(True, **settings)
    assert plain == again
    for (name, one), two in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


def kept_bytes(recompute, monkeypatch):
    """Bytes of what a graph keeps for its backward pass, every storage once, no parameters."""
    torch.manual_seed(0)
    model = Transformer(get_config("mini", num_hidden_layers=2, num_nextn_predict_layers=0))
    ids, targets = RandomIds(2048, 4, 128).batch(0)
    storages = {p.untyped_storage()._cdata: 0 for p in model.parameters()}
    alive = []
    hooks = torch.autograd.graph.saved_tensors_hooks

    def counting(pack, unpack):
        def weigh(tensor):
            kept = pack(tensor)
            if isinstance(kept, torch.Tensor):
                storage = kept.untyped_storage()
                storages.setdefault(storage._cdata, storage.nbytes())
                alive.append(storage)
            return kept

        return hooks(weigh, unpack)

    if recompute:
        monkeypatch.setattr(torch.autograd.graph, "saved_tensors_hooks", counting)
        with recomputation():
            model.loss(ids, targets)
        monkeypatch.undo()
    else:
        with counting(lambda t: t, lambda t: t):
            model.loss(ids, targets)
    return sum(storages.values())


def test_less_is_kept(monkeypatch):
    kept, forgotten = (kept_bytes(recompute, monkeypatch) for recompute in (False, True))
    assert forgotten < 0.7 * kept


def test_outputs_are_made_again_once_and_gradients_are_those_of_the_plain_function():
    calls = []

    def double_and_square(x, factor):
        calls.append(1)
        return x * factor, (x * x).sum(-1, keepdim=True) + x

    x = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 7, dtype=torch.float64, requires_grad=True)

    def loss(function):
        a, b = function(double_and_square, x, 3.0)
        return ((a @ weight).tanh() * (b[:, 1:4] @ weight[1:4]).sin()).sum()

    expected = torch.autograd.grad(loss(lambda fn, *args: fn(*args)), (x, weight))
    calls.clear()
    with recomputation():
        value = loss(recomputable)
    assert len(calls) == 1
    value.backward()
    assert len(calls) == 2
    assert torch.equal(x.grad, expected[0])
    assert torch.equal(weight.grad, expected[1])


def test_without_the_context_nothing_changes():
    x = torch.ones(3, requires_grad=True)
    assert recomputable(torch.exp, x).grad_fn.name() == "ExpBackward0"
    with recomputation(), torch.no_grad():
        assert recomputable(torch.exp, x).grad_fn is None
