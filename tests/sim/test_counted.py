"""The count of multiply-adds, by whichever call they are made."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from minids3.sim.counted import MultiplyAdds

M = torch.ones(5, 7)
V = torch.ones(7)


@pytest.mark.parametrize(
    "act",
    [
        lambda: M @ V,
        lambda: M.mv(V),
        lambda: (M * V).sum(-1),
        lambda: torch.einsum("mk,k->m", M, V),
        lambda: torch.stack([row.dot(V) for row in M]),
        lambda: torch.nn.functional.linear(V, M),
        lambda: torch.addmv(torch.zeros(5), M, V),
        lambda: torch.addcmul(torch.zeros(5, 7), M, V).sum(-1),
        lambda: M.clone().mul_(V).sum(-1),
        lambda: M @ V[:, None],
    ],
)
def test_the_same_product_costs_the_same(act):
    with MultiplyAdds() as counter:
        out = act()
    assert out.flatten().tolist() == [7.0] * 5
    assert counter.total == 35


def test_a_product_with_one_number_costs_nothing():
    with MultiplyAdds() as counter:
        M * 2 + M / 3 - M * torch.tensor(0.5)
    assert counter.total == 0


def attention():
    q, k = torch.ones(1, 3, 2, 8), torch.ones(1, 3, 5, 8)
    return torch.nn.functional.scaled_dot_product_attention(q, k, k)


def convolution():
    return torch.nn.functional.conv1d(torch.ones(1, 8, 6), torch.ones(4, 8, 3))


def bilinear():
    return torch.nn.functional.bilinear(torch.ones(5, 3), torch.ones(5, 4), torch.ones(6, 3, 4))


def layer():
    return torch.nn.functional.linear(torch.ones(2, 3, 8), torch.ones(5, 8))


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize(
    ("act", "total"),
    [
        (attention, 2 * 3 * 2 * 5 * 8),
        (convolution, 4 * 4 * 8 * 3),
        (bilinear, 2 * 5 * 6 * 3 * 4),
        (layer, 6 * 8 * 5),
    ],
)
def test_what_is_made_of_products(inference, act, total):
    with torch.inference_mode(inference), MultiplyAdds() as counter:
        act()
    assert counter.total == total


def test_like_pytorch_s_own_counter_on_a_model():
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    x = torch.randn(5, 8)
    with FlopCounterMode(display=False) as theirs:
        model(x).sum().backward()
    with MultiplyAdds() as ours:
        model(x).sum().backward()
    assert 2 * ours.total == theirs.get_total_flops() > 0
