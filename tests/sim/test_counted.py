"""The count of multiply-adds, by whichever call they are made."""

import pytest
import torch

from minids3.sim.counted import multiply_add_counter

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
    with multiply_add_counter() as counter:
        out = act()
    assert out.flatten().tolist() == [7.0] * 5
    assert counter.get_total_flops() // 2 == 35


def test_a_product_with_one_number_costs_nothing():
    with multiply_add_counter() as counter:
        M * 2 + M / 3 - M * torch.tensor(0.5)
    assert counter.get_total_flops() == 0
