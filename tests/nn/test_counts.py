"""Counts, indices and plans that do not fit are refused where they enter, on any way they take."""

from __future__ import annotations

import pytest
import torch

from minids3.config import get_config
from minids3.nn.moe import Experts
from minids3.ops.gemm import fp8_grouped_linear
from minids3.ops.moe import combine, dispatch, grouped_mm, plan_dispatch

X, WEIGHT = torch.randn(10, 16), torch.randn(3, 8, 16)
BAD = {
    "too few rows": ([3, 3, 3], "sum to 9"),
    "too many rows": ([3, 3, 5], "sum to 11"),
    "none at all": ([0, 0, 0], "sum to 0"),
    "negative": ([12, -4, 2], "the least is -4"),
    "one expert missing": ([5, 5], r"\[2\] torch.int64, expected \[3\]"),
    "one expert more": ([5, 5, 0, 0], r"\[4\] torch.int64, expected \[3\]"),
    "2-D": ([[5, 5, 0]], "expected"),
    "fractions": ([5.0, 5.0, 0.0], "torch.float32"),
    "yes and no": ([True, True, False], "torch.bool"),
}


@pytest.mark.parametrize("product", [grouped_mm, fp8_grouped_linear])
@pytest.mark.parametrize("backend", ["auto", "ref", "triton"])
@pytest.mark.parametrize("name", BAD)
def test_counts_that_do_not_fit(product, backend, name):
    counts, said = BAD[name]
    with pytest.raises(ValueError, match=said):
        product(X, WEIGHT, torch.tensor(counts), backend=backend)


@pytest.mark.parametrize("product", [grouped_mm, fp8_grouped_linear])
def test_shapes_that_do_not_fit(product):
    counts = torch.tensor([4, 0, 6])
    for x, weight in ((X[:, :8], WEIGHT), (X, WEIGHT[0]), (X[None], WEIGHT), (X[0], WEIGHT)):
        with pytest.raises(ValueError, match="does not fit weight"):
            product(x, weight, counts)
    assert product(X, WEIGHT, counts).shape == (10, 8)
    assert product(X[:0], WEIGHT, counts * 0).shape == (0, 8)
    want = torch.cat([X[:4] @ WEIGHT[0].T, X[4:] @ WEIGHT[2].T])
    torch.testing.assert_close(grouped_mm(X, WEIGHT, counts.int()), want)


def test_indices_that_name_no_expert():
    for indices in ([[0, 3]], [[-1, 0]], [[0.0, 1.0]]):
        with pytest.raises(ValueError, match="whole numbers from 0 to 2"):
            plan_dispatch(torch.tensor(indices), 3)
    plan = plan_dispatch(torch.zeros(0, 2, dtype=torch.int64), 3)
    assert plan.counts.tolist() == [0, 0, 0]
    experts = Experts(get_config("mini"))
    x = torch.randn(2, experts.gate_up_proj.shape[2])
    with pytest.raises(ValueError, match="from 0 to 15"):
        experts(x, torch.tensor([[0], [16]]), torch.ones(2, 1))


def test_plans_for_other_tokens():
    plan = plan_dispatch(torch.tensor([[0, 1], [2, 0], [1, 2]]), 3)
    with pytest.raises(ValueError, match="4 tokens do not fit a plan of 6 rows"):
        dispatch(torch.randn(4, 8), plan)
    with pytest.raises(ValueError, match="0 tokens"):
        dispatch(torch.randn(0, 8), plan)
    rows = dispatch(torch.randn(3, 8), plan)
    for y, weights in ((rows[:4], torch.ones(3, 2)), (rows, torch.ones(2, 2))):
        with pytest.raises(ValueError, match="do not fit a plan of 6 rows"):
            combine(y, weights, plan)
    assert combine(rows, torch.ones(3, 2), plan).shape == (3, 8)
