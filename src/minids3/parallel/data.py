"""Data parallelism: every process has rows of its own, and the step is that of all rows together.

Weights other than experts are sharded by PyTorch's FSDP2 (``shard_model``) or kept whole on every
process (``sum_gradients`` then adds gradients up). Experts are dealt out (``parallel.expert``), and
their gradients hold every token of their mesh already.

One rule keeps all gradients right: each process divides its sums by what the *whole* batch counts,
and gradients are added, never averaged. A mean of the processes' means would let a process with few
targets weigh as much as one with many, and would divide experts' gradients once too little, because
they are added up by the tokens' journey and by no average.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from minids3.model import Transformer
from minids3.parallel.expert import ParallelExperts
from minids3.train.ema import local_part

__all__ = [
    "Layout",
    "gradient_norm",
    "local_part",
    "make_layout",
    "scale_gradients",
    "shard_model",
    "share_of_rows",
    "sum_gradients",
    "sum_loads",
]


@dataclass(frozen=True)
class Layout:
    """How processes are arranged: pipeline stages, copies of the experts, shares of the experts.

    Every (dp, ep) place of a stage has rows of its own: ``data`` is the mesh of them.

    mesh: axes (pp, dp, node, gpu); those that share experts have consecutive ranks. Where they
        fill several nodes, ``node`` is how many.
    data: one axis, dp x ep, of this process's stage.
    """

    mesh: DeviceMesh
    data: DeviceMesh

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Sizes of (pp, dp, ep)."""
        pp, dp, nodes, gpus = self.mesh.mesh.shape
        return pp, dp, nodes * gpus

    @property
    def experts(self) -> DeviceMesh:
        """Where the experts of this process's tokens are: axes (node, gpu)."""
        return self.mesh["node", "gpu"]

    @property
    def replicas(self) -> Any:
        """The group of processes with the same experts."""
        return self.mesh.get_group("dp")

    @property
    def stages(self) -> Any:
        """The group of processes that a row passes through."""
        return self.mesh.get_group("pp")


def make_layout(
    pp: int = 1, dp: int = 1, ep: int = 1, device: str = "cpu", per_node: int | None = None
) -> Layout:
    """Arrange all processes; the process group must be there.

    Args:
        pp: stages of the pipeline.
        dp: copies of the experts.
        ep: processes that share the experts of a layer.
        device: "cpu" or "cuda".
        per_node: processes of a node; default: what torchrun says.

    Raises:
        ValueError: there are more or fewer processes than ``pp * dp * ep``.
    """
    if min(pp, dp, ep) < 1 or pp * dp * ep != dist.get_world_size():
        raise ValueError(
            f"pp={pp}, dp={dp} and ep={ep} need {pp * dp * ep} processes, and there are "
            f"{dist.get_world_size()}"
        )
    gpus = min(per_node or int(os.environ.get("LOCAL_WORLD_SIZE", ep)), ep)
    if ep % gpus:
        raise ValueError(f"ep={ep} processes do not fill whole nodes of {gpus}")
    names = ("pp", "dp", "node", "gpu")
    mesh = init_device_mesh(device, (pp, dp, ep // gpus, gpus), mesh_dim_names=names)
    return Layout(mesh, mesh["dp", "node", "gpu"]._flatten("data"))


def share_of_rows(n_rows: int, place: int, n_places: int) -> slice:
    """Consecutive rows of one of ``n_places``: sizes differ by one at most, and may be 0."""
    return slice(n_rows * place // n_places, n_rows * (place + 1) // n_places)


def _experts(model: nn.Module) -> set[nn.Parameter]:
    return {p for m in model.modules() if isinstance(m, ParallelExperts) for p in m.parameters()}


def shard_model(model: Transformer, mesh: DeviceMesh) -> None:
    """Shard all weights but distributed experts over ``mesh``, in place, by FSDP2.

    Each block is gathered when it runs, forward and backward. FSDP2 leaves gradients averaged over
    the mesh; ``sum_gradients`` makes sums of them. ``loss``, ``losses`` and ``mtp_logits`` may be
    called besides the model itself.

    Raises:
        RuntimeError: this PyTorch's FSDP2 cannot leave parameters out (before 2.7).
    """
    try:
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    except ImportError as error:
        raise RuntimeError("sharding needs PyTorch 2.7 or newer") from error
    experts = _experts(model)
    options: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": True}
    if experts:
        options["ignored_params"] = experts
    try:
        for block in (*model.layers, *model.mtp):
            fully_shard(block, **options)
        fully_shard(model, **options)
    except TypeError as error:
        raise RuntimeError("sharding beside experts needs PyTorch 2.7 or newer") from error
    for method in ("loss", "losses", "mtp_logits"):
        register_fsdp_forward_method(model, method)


def sum_gradients(
    model: nn.Module,
    data: Any,
    replicas: Any = None,
    losses: Literal["shares", "means"] = "shares",
) -> None:
    """Make every gradient that of all rows, once a step, after ``backward`` on each one's own.

    Args:
        model: the same on all processes but for distributed experts.
        data: the group of all processes with rows.
        replicas: those of them with the same experts; None: nobody else has this process's.
        losses: ``"shares"``: each process's loss is its part of a sum over all rows, so gradients
            are added. ``"means"``: each is the mean of its own rows, and the loss is the mean of
            these means: *all* gradients, experts' too, are then divided by the processes.
    """
    if losses not in ("shares", "means"):
        raise ValueError(f"losses={losses!r}; choose 'shares' or 'means'")
    experts = _experts(model)
    for parameter in model.parameters():
        if parameter.grad is None:
            continue
        if hasattr(parameter, "to_local"):  # FSDP2 has averaged it
            if losses == "shares":
                local_part(parameter.grad).mul_(dist.get_world_size(data))
            continue
        group = replicas if parameter in experts else data
        if group is not None and dist.get_world_size(group) > 1:
            dist.all_reduce(parameter.grad, group=group)
        if losses == "means":
            parameter.grad.div_(dist.get_world_size(data))


def sum_loads(loads: Mapping[str, Tensor], group: Any = None) -> dict[str, Tensor]:
    """Loads ``[E]`` of every gate, added over all processes of ``group``.

    The bias of an expert moves against its load in the whole batch (LFB); each process would else
    move its own copy its own way.
    """
    if not loads:
        return {}
    total = torch.stack(list(loads.values()))
    dist.all_reduce(total, group=group)
    return dict(zip(loads, total.unbind(), strict=True))


def gradient_norm(model: nn.Module, layout: Layout, shared: Iterable[nn.Parameter] = ()) -> Tensor:
    """Norm of all gradients of the model together, wherever its parts are, a scalar fp32.

    A part that several processes hold counts once: each adds its square divided by how many do.

    Args:
        model: this process's part of it.
        layout: sharded weights are on one place of ``data`` each, whole ones on all, experts on
            all of ``dp``.
        shared: parameters that a second stage holds a copy of.
    """
    _, dp, ep = layout.sizes
    experts, twice = _experts(model), set(shared)
    total = torch.zeros((), device=next(model.parameters()).device)
    for parameter in model.parameters():
        if parameter.grad is None:
            continue
        copies = dp if parameter in experts else dp * ep
        if hasattr(parameter, "to_local"):
            copies = 1
        copies *= 2 if parameter in twice else 1
        total += local_part(parameter.grad).float().square().sum() / copies
    dist.all_reduce(total)
    return total.sqrt()


def scale_gradients(model: nn.Module, factor: Tensor) -> None:
    """Multiply every gradient that this process holds."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            local_part(parameter.grad).mul_(factor)
