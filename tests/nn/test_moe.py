"""Gate, dispatch, experts: against the reference that computes everything and masks."""

import copy

import pytest
import torch
from torch.autograd import gradcheck

from deepseek_twin import BASE, CONFIGS
from minids3.model import Transformer
from minids3.nn import Experts, Gate, MoE, record_routing
from minids3.ops.moe import combine, dispatch, grouped_mm, plan_dispatch
from minids3.ref.moe import gate_ref, moe_ref


def gate_of(seed=0, **changes):
    torch.manual_seed(seed)
    gate = Gate(BASE.replace(**changes))
    gate.expert_bias.normal_(std=0.2)
    return gate


def dense_gates(routing):
    return torch.zeros_like(routing.scores).scatter(-1, routing.indices, routing.weights)


@pytest.mark.parametrize("scoring", ["sigmoid", "softmax"])
@pytest.mark.parametrize("groups", [(1, 1), (4, 2), (4, 1), (6, 3), (12, 5)])
@pytest.mark.parametrize("normalize", [True, False])
def test_gate_equals_the_reference(scoring, groups, normalize):
    gate = gate_of(
        n_group=groups[0], topk_group=groups[1], scoring_func=scoring, norm_topk_prob=normalize
    )
    x = torch.randn(50, 40)
    expected = gate_ref(
        x,
        gate.weight,
        gate.expert_bias,
        top_k=3,
        n_group=groups[0],
        topk_group=groups[1],
        scoring=scoring,
        normalize=normalize,
        scale=2.5,
    )
    routing = gate(x)
    torch.testing.assert_close(dense_gates(routing), expected)
    weight = torch.randn_like(expected)
    ours = torch.autograd.grad((dense_gates(routing) * weight).sum(), gate.weight)
    theirs = torch.autograd.grad((expected * weight).sum(), gate.weight)
    torch.testing.assert_close(ours, theirs)


def test_the_bias_chooses_and_does_not_weigh():
    gate = gate_of(n_group=1, topk_group=1)
    x = torch.randn(30, 40)
    gate.expert_bias.zero_()
    gate.expert_bias[5] = 10.0  # everybody's first choice
    routing = gate(x)
    assert bool((routing.indices == 5).any(-1).all())
    chosen = routing.scores.gather(-1, routing.indices)
    torch.testing.assert_close(routing.weights, 2.5 * chosen / chosen.sum(-1, keepdim=True))


def test_negative_biased_scores_can_still_be_chosen():
    gate = gate_of(n_group=4, topk_group=1)
    gate.expert_bias.fill_(-5.0)  # a mask of zeros instead of -inf would open the closed groups
    indices = gate(torch.randn(40, 40)).indices
    groups = indices // 3
    assert bool((groups == groups[:, :1]).all())


def test_node_limit_holds_for_every_token():
    gate = gate_of(n_routed_experts=32, n_group=8, topk_group=3, num_experts_per_tok=6)
    indices = gate(torch.randn(200, 40)).indices
    assert max(len(set(row)) for row in (indices // 4).tolist()) <= 3
    assert all(len(set(row)) == 6 for row in indices.tolist())


def test_the_bias_stays_fp32_when_the_model_is_cast():
    gate = gate_of()
    bias = gate.expert_bias.clone()
    cast = copy.deepcopy(gate).bfloat16()
    assert cast.weight.dtype == torch.bfloat16
    assert torch.equal(cast.expert_bias, bias)
    assert torch.equal(gate.to(torch.float64).expert_bias, bias)
    assert "expert_bias" in gate.state_dict()
    assert "expert_bias" not in dict(gate.named_parameters())
    assert gate_of().to("meta").expert_bias.is_meta


@pytest.mark.parametrize("name", ["base", "no shared expert", "two shared experts", "one group"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 7)])
def test_moe_equals_the_reference_with_gradients(name, shape):
    cfg = BASE.replace(**CONFIGS[name])
    torch.manual_seed(0)
    moe = MoE(cfg)
    x = torch.randn(*shape, 40, requires_grad=True)
    flat = x.flatten(0, 1)
    gates = gate_ref(
        flat,
        moe.gate.weight,
        moe.gate.expert_bias,
        top_k=cfg.num_experts_per_tok,
        n_group=cfg.n_group,
        topk_group=cfg.topk_group,
        scale=cfg.routed_scaling_factor,
    )
    expected = moe_ref(flat, gates, moe.experts.gate_up_proj, moe.experts.down_proj).view_as(x)
    if moe.shared_experts is not None:
        expected = expected + moe.shared_experts(x)
    wanted = [x, *moe.parameters()]
    theirs = torch.autograd.grad(expected.square().sum(), wanted)
    out = moe(x)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    ours = torch.autograd.grad(out.square().sum(), wanted)
    for got, reference in zip(ours, theirs, strict=True):
        assert (got - reference).norm() <= 1e-5 * reference.norm()


def test_all_tokens_to_one_expert_and_no_token_at_all():
    experts = Experts(BASE)
    x = torch.randn(9, 40)
    indices = torch.full((9, 1), 4)
    out = experts(x, indices, torch.ones(9, 1))
    gates = torch.zeros(9, 12)
    gates[:, 4] = 1
    torch.testing.assert_close(out, moe_ref(x, gates, experts.gate_up_proj, experts.down_proj))
    empty = experts(x[:0], indices[:0], torch.ones(0, 1))
    assert empty.shape == (0, 40)
    out.sum().backward()
    idle = [e for e in range(12) if e != 4]
    assert experts.down_proj.grad[idle].abs().max() == 0


def test_dispatch_is_a_permutation_that_combine_undoes():
    indices = torch.randint(0, 7, (20, 3), generator=torch.Generator().manual_seed(0))
    indices[indices == 2] = 3  # an expert without rows
    plan = plan_dispatch(indices, 7)
    assert plan.counts.tolist() == [int((indices == e).sum()) for e in range(7)]
    flat = indices.flatten()
    assert torch.equal(flat[plan.order], flat.sort(stable=True).values)
    same = flat[plan.order][1:] == flat[plan.order][:-1]
    assert bool((plan.order[1:] > plan.order[:-1])[same].all())  # tokens keep their order
    x = torch.randn(20, 5)
    weights = torch.full((20, 3), 1 / 3)
    torch.testing.assert_close(combine(dispatch(x, plan), weights, plan), x)


def test_gradients_by_finite_differences():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(4, 2, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    weights = torch.rand(5, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    plan = plan_dispatch(torch.tensor([[0, 3], [3, 1], [0, 1], [3, 0], [1, 3]]), 4)

    def moe(x, weight, weights):
        return combine(grouped_mm(dispatch(x, plan), weight, plan.counts), weights, plan)

    assert gradcheck(moe, (x, weight, weights))


def test_record_routing_sees_every_gate_and_cleans_up():
    model = Transformer(BASE.replace(num_nextn_predict_layers=1))
    ids = torch.zeros(2, 5, dtype=torch.int64)
    with record_routing(model) as log:
        model.losses(ids, ids)
    assert list(log) == ["layers.1.mlp.gate", "layers.2.mlp.gate", "mtp.0.block.mlp.gate"]
    assert log["layers.1.mlp.gate"].scores.shape == (2, 5, 12)
    assert log["mtp.0.block.mlp.gate"].indices.shape == (2, 4, 3)
    assert log["layers.2.mlp.gate"].scores.requires_grad
    before = log["layers.1.mlp.gate"]
    model(ids)
    assert log["layers.1.mlp.gate"] is before


@pytest.mark.skipif(not hasattr(torch.nn.functional, "grouped_mm"), reason="older PyTorch")
def test_pytorchs_grouped_product_takes_our_layout():
    """The call that BF16 on a GPU goes through, here on the CPU, with gradients."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(48, 16, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(4, 32, 16, generator=generator).bfloat16().requires_grad_()
    counts = torch.tensor([10, 0, 30, 8])
    offsets = counts.cumsum(0).to(torch.int32)
    theirs = torch.nn.functional.grouped_mm(x, weight.transpose(1, 2), offs=offsets)
    ours = grouped_mm(x, weight, counts)
    grad = torch.randn(48, 32, generator=generator).bfloat16()
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(
        torch.autograd.grad(ours, (x, weight), grad),
        torch.autograd.grad(theirs, (x, weight), grad),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)
