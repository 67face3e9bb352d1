"""Data, experts and stages on several processes: loss and gradients are those of one process."""

import itertools

import pytest
import torch
import torch.distributed as dist

from minids3.config import ModelConfig
from minids3.model import Transformer
from minids3.nn import record_routing
from minids3.parallel.data import (
    gradient_norm,
    local_part,
    make_layout,
    scale_gradients,
    shard_model,
    share_of_rows,
    sum_gradients,
    sum_loads,
)
from minids3.parallel.expert import distribute_experts
from minids3.parallel.launch import run
from minids3.parallel.pipeline import Objective, Pipeline, cut_layers
from minids3.ref.loss import IGNORE_INDEX
from minids3.train.balance import routing_loads, sequence_balance_loss

SCHEDULES = ("1f1b", "zb1p", "zbv", "dualpipev")
ROWS, LENGTH, MTP, BALANCE = 11, 6, 0.3, 0.05


def config(**changes):
    sizes = {"vocab_size": 31, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 6}
    experts = {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2}
    more = {"moe_intermediate_size": 10, "first_k_dense_replace": 1, "num_nextn_predict_layers": 1}
    return ModelConfig(**{**sizes, **heads, **experts, **more, "initializer_range": 0.2, **changes})


def built(cfg):
    torch.manual_seed(5)
    return Transformer(cfg)


def batch():
    """Rows with unequal numbers of targets."""
    generator = torch.Generator().manual_seed(9)
    inputs = torch.randint(0, 31, (ROWS, LENGTH), generator=generator)
    targets = torch.randint(0, 31, (ROWS, LENGTH), generator=generator)
    for row in range(ROWS):
        targets[row, 1 + row % LENGTH :] = IGNORE_INDEX
    return inputs, targets


def alone(cfg):
    """The one process: losses, loads, and the model with its gradients."""
    model, (inputs, targets) = built(cfg), batch()
    with record_routing(model) as routings:
        loss, mtp = model.losses(inputs, targets)
    objective = loss + (MTP * mtp[0] if mtp else 0)
    for routing in routings.values():
        objective = objective + BALANCE * sequence_balance_loss(routing.scores, 2)
    objective.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    values = torch.stack([loss, *mtp, objective]).detach()
    return model, values, routing_loads(routings), norm


def off(found, expected):
    if found.shape != expected.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-3))


def gradients_off(model, expected, layout):
    """Largest relative difference of this process's gradients from those of one."""
    known = dict(expected.named_parameters(remove_duplicate=False))
    worst = 0.0
    for name, parameter in model.named_parameters():
        grad, full = parameter.grad, known[name].grad
        if hasattr(grad, "full_tensor"):
            grad = grad.full_tensor()
        elif ".experts." in name:
            share = len(parameter)
            first = layout.data.get_local_rank() % layout.sizes[2] * share
            full = full[first : first + share]
        worst = max(worst, off(grad, full))
    return worst


def objective_for(targets, rows=ROWS):
    return Objective(int((targets != IGNORE_INDEX).sum()), rows, MTP, BALANCE)


def pipelined(schedule, pp, dp, ep, record=False, **changes):
    cfg = config(**changes)
    expected, values, expected_loads, expected_norm = alone(cfg)
    layout = make_layout(pp, dp, ep)
    model = built(cfg)
    distribute_experts(model, layout.experts)
    pipeline = Pipeline(model, layout.stages, schedule, record=record)
    inputs, targets = batch()
    mine = share_of_rows(ROWS, layout.data.get_local_rank(), dp * ep)
    n_microbatches = 2 * pp
    objective = objective_for(targets)
    for _ in range(2):  # the second step reuses the schedule
        model.zero_grad()
        losses, balance, loads = pipeline.step(
            inputs[mine], targets[mine], objective, n_microbatches
        )
        sum_gradients(model, layout.data.get_group(), layout.replicas)
        pipeline.sum_shared()
    losses /= objective.targets
    n_mtp = len(losses) - 1
    whole = losses[0] + (MTP * losses[1] if n_mtp else 0) + balance
    told = torch.cat((losses, whole[None]))
    dist.all_reduce(told)
    loads = sum_loads(loads, layout.data.get_group())
    found = {
        "losses": off(told, values),
        "grads": gradients_off(model, expected, layout),
        "loads": max([0, *(int((n - expected_loads[k]).abs().max()) for k, n in loads.items())]),
        "gates": len(loads),
        "norm": off(gradient_norm(model, layout, pipeline.shared), expected_norm),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    sums = pipeline.evaluate(inputs[mine], targets[mine])
    dist.all_reduce(sums)
    with torch.no_grad():
        expected_loss = expected.loss(inputs, targets, reduction="sum")
    found["evaluation"] = off(sums[0], expected_loss)
    found["counts"] = sums[1:].tolist()
    found["spans"] = [tuple(span) for span in pipeline.spans]
    return found


def sharded(dp, ep, losses="shares", shard=True, per_node=None):
    """FSDP2 or whole weights, experts dealt out; ``means``: the plain mean of each process."""
    cfg = config()
    expected, values, expected_loads, expected_norm = alone(cfg)
    layout = make_layout(1, dp, ep, per_node=per_node)
    model = built(cfg)
    distribute_experts(model, layout.experts)
    if shard:
        shard_model(model, layout.data)
    inputs, targets = batch()
    mine = share_of_rows(ROWS, layout.data.get_local_rank(), dp * ep)
    n_targets, part = int((targets != IGNORE_INDEX).sum()), inputs[mine]
    with record_routing(model) as routings:
        loss, mtp = model.losses(part, targets[mine], reduction="sum")
    loss, mtp_loss = loss / n_targets, mtp[0] / n_targets
    objective = loss + MTP * mtp_loss
    for routing in routings.values():
        if len(part):
            balance = sequence_balance_loss(routing.scores, 2)
            objective = objective + BALANCE * len(part) / ROWS * balance
    told = torch.stack([loss, mtp_loss, objective]).detach()
    if losses == "means":  # a mean of means that is the same sum
        objective = objective * dist.get_world_size()
    objective.backward()
    sum_gradients(model, layout.data.get_group(), layout.replicas, losses)
    dist.all_reduce(told)
    loads = sum_loads(routing_loads(routings))
    norm = gradient_norm(model, layout)
    found = {
        "losses": off(told, values),
        "grads": gradients_off(model, expected, layout),
        "loads": max(int((n - expected_loads[k]).abs().max()) for k, n in loads.items()),
        "norm": off(norm, expected_norm),
        "parameters": sum(local_part(p).numel() for p in model.parameters()),
    }
    scale_gradients(model, torch.tensor(0.5))
    found["halved"] = off(gradient_norm(model, layout), expected_norm / 2)
    return found


def refusals():
    told = []
    acts = (
        lambda: make_layout(1, 3, 1),
        lambda: Pipeline(built(config()), dist.group.WORLD, "gpipe"),
        lambda: Pipeline(built(config(num_hidden_layers=6)), dist.group.WORLD, "zbv"),
        lambda: Pipeline(built(config()), dist.group.WORLD, "dualpipev").step(
            *batch(), Objective(1, 1), 4
        ),
    )
    for act in acts:
        try:
            act()
            told.append("nothing")
        except ValueError as error:
            told.append(str(error))
    return told


def all_cases():
    found = {}
    for schedule, (pp, dp, ep) in itertools.product(SCHEDULES, ((4, 1, 1), (2, 1, 2))):
        found[schedule, pp, dp, ep] = pipelined(schedule, pp, dp, ep, record=pp == 4)
    found["1f1b", 2, 2, 1] = pipelined("1f1b", 2, 2, 1, tie_word_embeddings=True)
    found["zbv", 2, 2, 1] = pipelined("zbv", 2, 2, 1, tie_word_embeddings=True)
    found["zb1p", 2, 2, 1] = pipelined("zb1p", 2, 2, 1, tie_word_embeddings=True)
    found["zb1p", 4, 1, 1, "plain"] = pipelined("zb1p", 4, 1, 1, num_nextn_predict_layers=0)
    for dp, ep in ((4, 1), (2, 2), (1, 4)):
        found["fsdp", 1, dp, ep] = sharded(dp, ep)
    found["nodes", 1, 1, 4] = sharded(1, 4, per_node=2)
    found["whole", 1, 2, 2] = sharded(2, 2, shard=False)
    found["means", 1, 2, 2] = sharded(2, 2, "means")
    found["means whole", 1, 1, 4] = sharded(1, 4, "means", shard=False)
    return found, refusals()


@pytest.fixture(scope="module")
def ranks():
    return run(all_cases, 4, timeout=500).results


def test_loss_and_gradients_are_those_of_one_process(ranks):
    wrong = {
        (rank, case, name): found[name]
        for rank, (cases, _) in enumerate(ranks)
        for case, found in cases.items()
        for name in ("losses", "grads", "norm", "evaluation", "halved")
        if name in found and not found[name] < 5e-6  # fp32, added in another order
    }
    assert wrong == {}
    assert all(f["loads"] == 0 for cases, _ in ranks for f in cases.values())
    assert len(ranks[0][0]) == 19


def test_every_part_is_somewhere(ranks):
    total = sum(p.numel() for p in built(config()).parameters())
    embedding = 31 * 24

    def parameters(case):
        return sum(cases[case]["parameters"] for cases, _ in ranks)

    assert parameters(("1f1b", 4, 1, 1)) == total + embedding  # MTP's copy in the last stage
    assert parameters(("dualpipev", 4, 1, 1)) == total  # shared in one process
    assert parameters(("fsdp", 1, 1, 4)) == total
    experts = 8 * 4 * 3 * 10 * 24
    assert parameters(("fsdp", 1, 2, 2)) == total + experts
    assert sum(cases["zbv", 4, 1, 1]["gates"] for cases, _ in ranks) == 8


def test_actions_that_were_recorded_are_the_schedules(ranks):
    from minids3.sim.pipeline import make_schedule

    for name in SCHEDULES:
        planned = make_schedule(name, n_ranks=4, n_microbatches=8)
        for rank, (cases, _) in enumerate(ranks):
            spans = cases[name, 4, 1, 1]["spans"]
            done = [(kind, stage, chunk) for kind, stage, chunk, _, _ in spans]
            expected = [
                (part.kind, part.stage, part.microbatch)
                for action in planned.orders[rank]
                for part in action.parts
            ]
            assert done == expected, (name, rank)
            assert all(start <= stop for _, _, _, start, stop in spans)


def test_drafts_and_targets_are_counted(ranks):
    model, (inputs, targets) = built(config()), batch()
    from minids3.model.mtp import draft_agreement

    agreed = draft_agreement(model, inputs)
    expected = [(targets != IGNORE_INDEX).sum(), agreed.sum(), agreed.numel()]
    for cases, _ in ranks:
        assert cases["zbv", 2, 1, 2]["counts"] == [float(n) for n in expected]


def test_what_cannot_work_is_refused(ranks):
    for _, (layout, schedule, layers, few) in ranks:
        assert layout == "pp=1, dp=3 and ep=1 need 3 processes, and there are 4"
        assert "schedule='gpipe'; choose 1f1b, zb1p, zbv, dualpipev" in schedule
        assert layers == "6 layers cannot be cut into 8 stages"
        assert few == "dualpipev on 4 processes needs 8 micro-batches or more, not 4"


def test_layers_and_rows_are_cut_evenly():
    assert cut_layers(6, 4) == [range(1), range(1, 3), range(3, 4), range(4, 6)]
    rows = [share_of_rows(11, place, 4) for place in range(4)]
    assert [list(range(11))[r] for r in rows] == [[0, 1], [2, 3, 4], [5, 6, 7], [8, 9, 10]]
    assert [share_of_rows(1, place, 3) for place in range(3)] == [
        slice(0, 0),
        slice(0, 0),
        slice(0, 1),
    ]
