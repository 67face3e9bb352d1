"""Experts on several processes are the experts of one: outputs, gradients, and bytes counted."""

import itertools

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from minids3.config import ModelConfig
from minids3.nn import MoE, to_float8
from minids3.ops.gemm import Float8Recipe
from minids3.parallel import expert
from minids3.parallel.expert import (
    ParallelExperts,
    Wire,
    count_bytes,
    distribute_experts,
    exchange,
    plan_route,
)
from minids3.parallel.launch import run
from minids3.ref.quant import dequantize_ref, quantize_ref
from minids3.sim.comm import count_copies, row_bytes

MESHES = {
    "1": ([[0], [1], [2], [3]], ("ep",)),
    "2": ([[0, 1], [2, 3]], ("ep",)),
    "2 of 4": ([[0, 2], [1, 3]], ("ep",)),
    "4": ([[0, 1, 2, 3]], ("ep",)),
    "2 nodes": ([[[0, 1], [2, 3]]], ("node", "gpu")),
    "4 nodes": ([[[0], [1], [2], [3]]], ("node", "gpu")),
    "1 node": ([[[0, 1, 2, 3]]], ("node", "gpu")),
}
TOKENS = {"unequal": (5, 0, 17, 1), "equal": (6, 6, 6, 6), "one rank": (0, 0, 0, 9)}


def config(width=24, experts=8, **changes):
    sizes = {"hidden_size": width, "moe_intermediate_size": 10, "n_routed_experts": experts}
    options = {"n_shared_experts": 1, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2}
    return ModelConfig(**{**sizes, **options, **changes})


def layer(cfg):
    torch.manual_seed(3)
    made = MoE(cfg)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def my_mesh(groups, names):
    """The mesh that holds this rank; every rank makes all of them, in one order."""
    meshes = [DeviceMesh("cpu", group, mesh_dim_names=names) for group in groups]
    return next(m for m in meshes if dist.get_rank() in m.mesh.flatten().tolist())


def tokens_of(counts, ranks, width):
    """Tokens and a probe of every rank of a mesh, the same on all."""
    generator = torch.Generator().manual_seed(11)
    drawn = [torch.randn(2, n, width, generator=generator) for n in counts]
    return {rank: drawn[rank] for rank in ranks}


def off(found, expected):
    """Largest difference, by the largest of what is expected (at least 1)."""
    if found.shape != expected.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1.0))


def difference(mesh, counts, cfg, copies="place", wire=None):
    """How far one layer's output and gradients are from those of one process with all tokens."""
    rank, ranks = dist.get_rank(), mesh.mesh.flatten().tolist()
    data = tokens_of(counts, ranks, cfg.hidden_size)
    alone, spread = layer(cfg), layer(cfg)
    distribute_experts(spread, mesh, wire or Wire(), copies)
    x = torch.cat([data[r][0] for r in ranks]).requires_grad_()
    whole = alone(x)
    (whole * torch.cat([data[r][1] for r in ranks])).sum().backward()
    start = sum(counts[r] for r in ranks[: ranks.index(rank)])
    mine = slice(start, start + counts[rank])
    own = data[rank][0].clone().requires_grad_()
    out = spread(own)
    (out * data[rank][1]).sum().backward()
    found = {"out": off(out, whole[mine]), "x": off(own.grad, x.grad[mine])}
    first, share = spread.experts.first, len(spread.experts.down_proj)
    for name, parameter in spread.named_parameters():
        expected = dict(alone.named_parameters())[name].grad
        grad = parameter.grad
        if name.startswith("experts."):
            expected = expected[first : first + share]
        else:  # replicated: the sum over the mesh
            pieces = [torch.empty_like(grad) for _ in range(dist.get_world_size())]
            dist.all_gather(pieces, grad)
            grad = sum(pieces[r] for r in ranks)
        found[name] = off(grad, expected)
    return found


def counted(mesh, cfg, wire, copies="place"):
    """Bytes that this rank sent in a forward pass and its backward, by kind and hop."""
    spread = layer(cfg)
    distribute_experts(spread, mesh, wire, copies)
    torch.manual_seed(100 + dist.get_rank())
    n = (5, 0, 17, 3)[dist.get_rank()]
    x = torch.randn(n, cfg.hidden_size, requires_grad=True)
    with torch.no_grad():
        chosen = spread.gate(x).indices
    with count_bytes() as meter:
        out = spread(x)
    sent = {}
    kinds = list(itertools.product(("dispatch", "combine", "weights", "routing"), (0, 1)))
    for kind, hop in kinds:
        sent["forward", kind, hop] = (meter.to_others(kind, hop), meter.total(kind, hop))
    out.sum().backward()
    for kind, hop in kinds:
        sent["both", kind, hop] = (meter.to_others(kind, hop), meter.total(kind, hop))
    return {"sent": sent, "chosen": chosen}


def lossy(mesh):
    """FP8 there and BF16 back, against one process whose tokens were rounded likewise."""
    cfg = config(width=256)
    spread, alone = layer(cfg), layer(cfg)
    x = torch.randn(9, 256, generator=torch.Generator().manual_seed(dist.get_rank()))
    routing = alone.gate(x)
    rounded = dequantize_ref(*quantize_ref(x, power_of_two=True))
    expected = alone.experts(rounded, routing.indices, routing.weights)
    distribute_experts(spread, mesh, Wire("fp8", "bf16"))
    out = spread.experts(x, routing.indices, routing.weights)
    exact = alone.experts(x, routing.indices, routing.weights)
    grown = layer(cfg)
    to_float8(grown, Float8Recipe())
    kept = layer(cfg)
    to_float8(kept, Float8Recipe())
    distribute_experts(kept, mesh)
    return off(out, expected), off(out, exact), off(kept(x), grown(x))


def refused(mesh):
    """What the layer says to what cannot work, on every rank alike."""
    told = []
    for act in (
        lambda: distribute_experts(layer(config(experts=6, n_group=1, topk_group=1)), mesh),
        lambda: distribute_experts(torch.nn.Linear(2, 2), mesh),
        lambda: ParallelExperts(layer(config()).experts, mesh, Wire("fp8", "fp8")),
        lambda: ParallelExperts(layer(config()).experts, mesh, copies="token"),
        lambda: plan_route(torch.tensor([[8]]), 8, mesh),
        lambda: exchange(torch.zeros(3), [1, 1, 0, 0], [1, 1, 1, 1]),
    ):
        try:
            act()
            told.append("nothing")
        except ValueError as error:
            told.append(str(error))
    return told


def all_cases():
    meshes = {name: my_mesh(*layout) for name, layout in MESHES.items()}
    found = {"equal": {}, "bytes": {}}
    for name, counts in itertools.product(MESHES, TOKENS):
        found["equal"][f"{name}, {counts}"] = difference(meshes[name], TOKENS[counts], config())
    for name in ("4", "2 nodes"):
        unequal = TOKENS["unequal"]
        found["equal"][f"{name}, each choice"] = difference(
            meshes[name], unequal, config(), copies="choice"
        )
    for name in ("4", "2 nodes", "4 nodes"):
        wire = Wire("fp8", "bf16")
        found["bytes"][name] = counted(meshes[name], config(width=256), wire)
    found["bytes"]["choice"] = counted(meshes["4"], config(width=256), Wire("bf16"), "choice")
    found["lossy"] = lossy(meshes["2 nodes"])
    found["refused"] = refused(meshes["4"])
    return found


@pytest.fixture(scope="module")
def ranks():
    return run(all_cases, 4, timeout=300).results


def test_outputs_and_all_gradients_are_those_of_one_process(ranks):
    wrong = {
        (rank, case, name): value
        for rank, found in enumerate(ranks)
        for case, parts in found["equal"].items()
        for name, value in parts.items()
        if not value < 1e-6
    }
    assert wrong == {}
    names = {"out", "x", "gate.weight", "experts.gate_up_proj", "experts.down_proj"}
    assert names < ranks[0]["equal"]["4, unequal"].keys()
    assert len(ranks[0]["equal"]) == 23


@pytest.mark.parametrize(
    ("name", "nodes", "gpus"), [("4", 4, 1), ("2 nodes", 2, 2), ("4 nodes", 4, 1)]
)
def test_bytes_are_those_of_the_formula(ranks, name, nodes, gpus):
    chosen = [found["bytes"][name]["chosen"] for found in ranks]
    home = np.repeat(np.arange(4), [len(c) for c in chosen])
    copies = count_copies(torch.cat(chosen).numpy(), home, 8, nodes, gpus)
    fp8, bf16 = row_bytes(256, "fp8"), row_bytes(256, "bf16")
    assert fp8 == 256 + 2 * 4

    def sent(when, kind, hop, which=0):
        return sum(found["bytes"][name]["sent"][when, kind, hop][which] for found in ranks)

    assert copies.remote_nodes > 0
    assert sent("forward", "dispatch", 0) == copies.remote_nodes * fp8
    assert sent("forward", "combine", 0) == copies.remote_nodes * bf16
    assert sent("both", "dispatch", 0) == 2 * copies.remote_nodes * fp8
    assert sent("both", "combine", 0) == 2 * copies.remote_nodes * bf16
    assert sent("forward", "dispatch", 0, 1) == copies.nodes * fp8  # DeepEP counts the own node
    assert sent("forward", "weights", 0) == copies.remote_nodes * 3 * 4
    if gpus > 1:
        assert copies.nvlink > 0
        assert sent("forward", "dispatch", 1) == copies.nvlink * fp8
        assert sent("both", "combine", 1) == 2 * copies.nvlink * bf16


def test_each_choice_by_itself_sends_more(ranks):
    chosen = [found["bytes"]["choice"]["chosen"] for found in ranks]
    home = np.repeat(np.arange(4), [len(c) for c in chosen])
    copies = count_copies(torch.cat(chosen).numpy(), home, 8, 4, 1)
    sent = sum(found["bytes"]["choice"]["sent"]["forward", "dispatch", 0][0] for found in ranks)
    assert sent == copies.remote_experts * row_bytes(256, "bf16") > copies.remote_nodes * 512


def test_fp8_rounds_once_and_bf16_little(ranks):
    for rounded, exact, float8 in (found["lossy"] for found in ranks):
        assert rounded < 2**-7  # BF16 twice: once for each hop
        assert 2**-7 < exact < 2**-3
        assert float8 < 1e-6


@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("width", [128, 256, 384])
def test_fp8_rows_there_and_back_are_the_rounded_numbers(rows, width):
    """Also of no rows, whose column of scales counts as contiguous whatever its strides are."""
    x = torch.randn(rows, width)
    wire = expert._encode(x, "fp8")
    assert wire.shape == (rows, row_bytes(width, "fp8"))
    back = expert._decode(wire, "fp8", x)
    assert torch.equal(back, dequantize_ref(*quantize_ref(x, power_of_two=True)))


def test_what_cannot_work_is_refused(ranks):
    for found in ranks:
        six, none, wire, copies, index, rows = found["refused"]
        assert six == "6 experts cannot be shared equally by 4 processes"
        assert "no routed experts" in none
        assert "dispatch is exact, bf16 or fp8, combine exact or bf16" in wire
        assert "choose 'place' or 'choice'" in copies
        assert index == "indices must lie between 0 and 7"
        assert rows == "send=[1, 1, 0, 0] sums to 2, but x has 3 rows"
