"""Precision: BF16 by autocast as on a GPU, tried on the CPU, and what stays fp32 in it."""

import pytest
import torch

from minids3.config import get_config
from minids3.model import Transformer
from minids3.nn import Float8Experts, Float8Linear, record_routing, to_float8
from minids3.train import TrainConfig, Trainer


def model():
    torch.manual_seed(0)
    return Transformer(get_config("mini", num_hidden_layers=2, max_position_embeddings=64))


def ids():
    return torch.randint(0, 2048, (2, 17), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("fp8", [False, True])
def test_under_autocast_the_stream_is_bf16_and_weights_and_gate_are_fp32(fp8):
    network, tokens = model(), ids()
    if fp8:
        to_float8(network)
    exact = network.loss(tokens[:, :-1], tokens[:, 1:])
    seen = {}
    network.norm.register_forward_hook(lambda m, i, out: seen.update(stream=out.dtype))
    with torch.autocast("cpu", torch.bfloat16), record_routing(network) as routings:
        loss, mtp = network.losses(tokens[:, :-1], tokens[:, 1:])
    (loss + mtp[0]).backward()
    assert seen["stream"] == torch.bfloat16
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=2e-3)
    assert loss.item() != exact.item()
    for routing in routings.values():
        assert routing.scores.dtype == torch.float32
        assert not torch.equal(routing.scores, routing.scores.bfloat16().float())
    for name, p in network.named_parameters():
        assert p.dtype == p.grad.dtype == torch.float32, name
        assert p.grad.abs().sum() > 0 or "experts" in name, name


class Batches:
    def batch(self, step):
        tokens = ids()
        return tokens[:, :-1], tokens[:, 1:]


def test_one_argument_chooses():
    kinds = {}
    for precision in ("fp32", "bf16", "fp8"):
        run = Trainer(model(), TrainConfig(steps=2, precision=precision), Batches())
        layers = [m for m in run.model.modules() if isinstance(m, Float8Linear | Float8Experts)]
        kinds[precision] = {m.recipe.operands for m in layers}
        assert torch.isfinite(torch.tensor(run.train_step())).all()
    assert kinds == {"fp32": set(), "bf16": {"bf16"}, "fp8": {"e4m3"}}
