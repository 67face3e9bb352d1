"""Notebook 14's experts on four processes: equal to one process, and how many bytes they send."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from minids3.bench.timing import environment
from minids3.config import get_config
from minids3.nn.moe import Experts

__all__ = ["SHARES", "everything", "run", "two_nodes"]

EXPERTS, TOP_K, WIDTH, HIDDEN = 8, 3, 128, 32
SHARES = (7, 3, 0, 6)
"""Tokens of each process: unequal, and one has none."""


def everything(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """All tokens, their choices and all weights in float64, the same wherever they are made.

    Returns:
        x ``[N, D]``, choices ``[N, K]`` int64, the gate's ``[E, D]``, of experts ``[E, F, D]`` and
        ``[E, D, F]``.
    """
    draw = torch.Generator().manual_seed(seed)
    n = sum(SHARES)
    shapes = ((n, WIDTH), (EXPERTS, WIDTH), (EXPERTS, HIDDEN, WIDTH), (EXPERTS, WIDTH, HIDDEN))
    x, gate, w1, w2 = (torch.randn(s, generator=draw, dtype=torch.float64) / 8 for s in shapes)
    picks = torch.rand(n, EXPERTS, generator=draw).argsort(-1)[:, :TOP_K]
    return x, picks, gate, w1, w2


def two_nodes(nodes: int = 2) -> dict[str, list[int]]:
    """Run the library's layer, FP8 and BF16, on a (node, gpu) mesh; called on every rank.

    Returns:
        Bytes that this process sent to others, forward and backward, by kind: [between nodes,
        within its node].
    """
    from torch.distributed.device_mesh import init_device_mesh

    from minids3.parallel.expert import ParallelExperts, Wire, count_bytes

    shape = (nodes, dist.get_world_size() // nodes)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("node", "gpu"))
    experts = ParallelExperts(_experts(torch.float32), mesh, Wire("fp8", "bf16"))
    with count_bytes() as meter:
        _pass(experts, _mine(), torch.float32)
    kinds = ("dispatch", "combine", "weights", "routing", "counts")
    return {kind: [meter.to_others(kind, hop) for hop in (0, 1)] for kind in kinds}


def _experts(dtype: torch.dtype) -> Experts:
    """The layer's experts, each with ``w1`` for gate and up."""
    _, _, _, w1, w2 = everything()
    sizes = {"hidden_size": WIDTH, "n_routed_experts": EXPERTS, "moe_intermediate_size": HIDDEN}
    experts = Experts(get_config("mini", **sizes)).to(dtype)
    with torch.no_grad():
        experts.gate_up_proj.copy_(torch.cat((w1, w1), 1))
        experts.down_proj.copy_(w2)
    return experts


def _mine() -> slice:
    """Which tokens are this process's."""
    rank = dist.get_rank()
    return slice(sum(SHARES[:rank]), sum(SHARES[: rank + 1]))


def _pass(experts: Experts, mine: slice, dtype: torch.dtype) -> dict[str, Tensor]:
    """Forward and backward of some tokens: output, and the gradients of tokens and gate."""
    x, picks, gate, _, _ = everything()
    x, gate = x[mine].to(dtype).requires_grad_(), gate.to(dtype).requires_grad_()
    y = experts(x, picks[mine], torch.sigmoid(x @ gate.T).gather(1, picks[mine]))
    y.square().sum().backward()
    assert x.grad is not None
    assert gate.grad is not None
    return {"output": y.detach(), "tokens": x.grad, "gate": gate.grad}


def on_rank() -> dict[str, Any]:
    """What ``run`` asks of every process: the exact layer's results, the other one's bytes."""
    from torch.distributed.device_mesh import init_device_mesh

    from minids3.parallel.expert import ParallelExperts

    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("ep",))
    experts = ParallelExperts(_experts(torch.float64), mesh)
    return {**_pass(experts, _mine(), torch.float64), "sent": two_nodes()}


def run(device: torch.device | str, rounds: int) -> dict[str, Any]:
    """Run both layers on four processes, and compare the first with the same on one.

    ``device`` and ``rounds`` change nothing: it is the CPU, once.
    """
    from minids3.parallel import launch

    del device, rounds
    ranks = launch.run(on_rank, len(SHARES), echo=False, timeout=240).results
    truth = _pass(_experts(torch.float64), slice(None), torch.float64)
    ours = {name: torch.cat([rank[name] for rank in ranks]) for name in ("output", "tokens")}
    ours["gate"] = torch.stack([rank["gate"] for rank in ranks]).sum(0)
    differences = {
        name: float((ours[name] - right).abs().max() / right.abs().max())
        for name, right in truth.items()
    }
    sent = {
        kind: [sum(rank["sent"][kind][hop] for rank in ranks) for hop in (0, 1)]
        for kind in ranks[0]["sent"]
    }
    print(f"differences from one process: {differences}")
    print(f"bytes [between nodes, within nodes]: {sent}")
    return {"about": environment(), "differences": differences, "sent": sent}
