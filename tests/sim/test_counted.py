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
        lambda: (M / V.reciprocal()).sum(-1),
        lambda: torch.lerp(torch.zeros(5, 7), M, V.expand(5, 7)).sum(-1),
    ],
)
def test_the_same_product_costs_the_same(act):
    with MultiplyAdds() as counter:
        out = act()
    assert out.flatten().tolist() == [7.0] * 5
    assert 35 <= counter.total <= 35 + 7


@pytest.mark.parametrize(
    "act",
    [
        lambda: (M.log() + V.log()).exp().sum(-1),
        lambda: torch.cdist(M, V[None]),
        lambda: torch.sparse.mm(M.to_sparse(), V[:, None]),
        lambda: torch.sparse.mm(M.to_sparse_csr(), V[:, None]),
        lambda: torch.nn.functional.embedding_bag(
            torch.arange(7).expand(5, 7), V[:, None], mode="sum", per_sample_weights=M
        ),
        lambda: (((M + V) ** 2 - M**2 - V**2) / 2).sum(-1),
        lambda: (((M + V).square() - (M - V).square()) / 4).sum(-1),
        lambda: torch.stack([M, V.expand(5, 7)]).prod(0).sum(-1),
        lambda: torch.xlogy(M, V.exp()).sum(-1),
        lambda: torch.addcdiv(torch.zeros(5, 7), M, 1 / V).sum(-1),
        lambda: torch.nn.functional.layer_norm(M, (7,), V, V),
        lambda: torch.linalg.solve(torch.diag(V), M.T),
        lambda: torch.fft.fft(M) * torch.fft.fft(V),
        lambda: torch.kron(M, V),
        lambda: torch.matrix_exp(torch.outer(V, V)),
        lambda: torch.scatter_reduce(M, 1, torch.zeros(5, 7).long(), M, "prod"),
    ],
)
def test_no_other_way_to_multiply_is_free(act):
    with MultiplyAdds() as counter:
        act()
    assert counter.total >= 35


def test_what_multiplies_nothing_is_free():
    with MultiplyAdds() as counter:
        x = torch.cat([M, V[None]]).masked_fill(torch.ones(6, 7).tril().bool(), 0.0).T.clone()
        x = torch.where(x > 0, x + x.sum(-1, keepdim=True), -x)[:, ::2].contiguous()
        x.sort(-1).values.cumsum(0).amax(-1).expand(2, 7).reshape(-1).topk(2)
    assert counter.total == 0


def test_a_product_with_one_number_costs_nothing():
    with MultiplyAdds() as counter:
        M * 2 + M / 3 - M * torch.tensor(0.5)
    assert counter.total == 0


def test_sums_beside_products_are_counted():
    with MultiplyAdds() as counter:
        x = torch.where(M > 0, M + 1, M - 2.0)
        x.sum(0)
    assert (counter.total, counter.sums) == (0, 4 * 35)


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
