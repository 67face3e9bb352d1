"""Expert parallelism: experts dealt to processes, tokens sent to them and their results back.

A token goes to K experts. It travels by *hops*, each an all-to-all within one axis of a mesh, one
copy to every place that has an expert of it, however many it has there. A mesh of one axis is one
hop, from process to process. A mesh of (node, gpu) is two, as in V3 (TR section 3.2.2): a copy for
each node crosses the slow links, to the process there with the sender's number, which forwards it
within the node. Results go back by the same way and are summed wherever copies meet again.

Counts go first, so that everybody knows how much will come, and the choice of experts with them.
Vectors follow. In FP8 they are bytes, numbers and scales (powers of two) in one row, made once
where a token starts and forwarded as they are; results are BF16, as in V3 (TR section 3.3.3). The
way there and the way back are each other's gradient, so a gradient of results travels in FP8, one
of tokens in BF16.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from minids3.nn import Experts, MoE
from minids3.ops.activation import swiglu
from minids3.ops.recompute import recomputable
from minids3.ref.quant import TILE, dequantize_ref, quantize_ref

__all__ = [
    "Meter",
    "ParallelExperts",
    "Route",
    "Wire",
    "count_bytes",
    "distribute_experts",
    "exchange",
    "plan_route",
]

Format = Literal["exact", "bf16", "fp8"]


class Wire(NamedTuple):
    """In what format vectors travel.

    dispatch: tokens to experts, and gradients of results: "exact" (as they are), "bf16" or "fp8".
    combine: results to tokens, and gradients of tokens: "exact" or "bf16".
    """

    dispatch: Format = "exact"
    combine: Format = "exact"


class Meter:
    """Counts what this process sends.

    ``sent[kind, hop]`` is a list of bytes by destination on that hop's axis, this process itself
    among them. Kinds are "counts", "routing" (choices of experts), "weights" (of choices, and
    their gradients), "dispatch" and "combine" (vectors, and their gradients).
    """

    def __init__(self) -> None:
        self.sent: dict[tuple[str, int], list[int]] = {}
        self._self: dict[tuple[str, int], int] = defaultdict(int)

    def add(self, kind: str, hop: int, rows: list[int], row_bytes: int, own: int) -> None:
        """Count ``rows`` of so many bytes by destination; ``own`` is this process's number."""
        before = self.sent.get((kind, hop), [0] * len(rows))
        self.sent[kind, hop] = [b + r * row_bytes for b, r in zip(before, rows, strict=True)]
        self._self[kind, hop] = own

    def to_others(self, kind: str, hop: int = 0) -> int:
        """Bytes of a kind that left this process in a hop."""
        sent = self.sent.get((kind, hop), [])
        return sum(n for place, n in enumerate(sent) if place != self._self[kind, hop])

    def total(self, kind: str, hop: int = 0) -> int:
        """The same with what it sent to itself."""
        return sum(self.sent.get((kind, hop), []))


_METER: contextvars.ContextVar[Meter | None] = contextvars.ContextVar("meter", default=None)


@contextlib.contextmanager
def count_bytes() -> Iterator[Meter]:
    """Count the bytes of every forward pass in the block, and of its backward pass whenever."""
    meter = Meter()
    token = _METER.set(meter)
    try:
        yield meter
    finally:
        _METER.reset(token)


def exchange(x: Tensor, send: list[int], receive: list[int], group: Any = None) -> Tensor:
    """Send consecutive rows of ``x`` to the members of ``group`` in order, and get theirs.

    Args:
        x: ``[M, ...]``, any dtype.
        send: rows for each member, summing to M; zeros are fine.
        receive: rows from each member.
        group: default: all processes.

    Returns:
        ``[sum(receive), ...]``, without a gradient.

    Raises:
        ValueError: ``send`` does not sum to M.
    """
    if sum(send) != x.shape[0]:
        raise ValueError(f"send={send} sums to {sum(send)}, but x has {x.shape[0]} rows")
    if dist.get_world_size(group) == 1:
        return x
    plain = x.view(torch.uint8) if x.dtype == torch.float8_e4m3fn else x  # gloo knows no FP8
    out = plain.new_empty((sum(receive), *x.shape[1:]))
    dist.all_to_all_single(out, plain.contiguous(), receive, send, group)
    return out.view(x.dtype)


class Hop(NamedTuple):
    """One all-to-all: which tokens go, in the order of their destinations, and how many.

    group: of the axis.
    place: this process's number on it.
    tokens: ``[M]``, of the ``n_tokens`` here, each once for every destination.
    send: copies to each member.
    receive: copies from each member.
    n_tokens: N.
    """

    group: Any
    place: int
    tokens: Tensor
    send: list[int]
    receive: list[int]
    n_tokens: int


class Route:
    """The way of one layer's tokens to the processes of their experts, and back."""

    def __init__(self, hops: list[Hop], indices: Tensor, meter: Meter | None) -> None:
        """Keep ``hops``; ``indices [R, K]`` are the choices of the rows that arrive, or -1."""
        self.hops, self.indices, self.meter = hops, indices, meter

    def send(self, x: Tensor, form: Format, kind: str) -> Tensor:
        """Bring ``x [N, ...]`` to its places: ``[R, ...]``, in the dtype of ``x``."""
        rows = _encode(x, form)
        for number, hop in enumerate(self.hops):
            rows = rows.index_select(0, hop.tokens)
            self._count(kind, number, hop.send, rows, hop)
            rows = exchange(rows, hop.send, hop.receive, hop.group)
        return _decode(rows, form, x)

    def collect(self, y: Tensor, form: Format, kind: str) -> Tensor:
        """Bring ``y [R, ...]`` back and sum it by token: ``[N, ...]``, in the dtype of ``y``."""
        for number, hop in reversed(list(enumerate(self.hops))):
            rows = _encode(y, form)
            self._count(kind, number, hop.receive, rows, hop)
            rows = _decode(exchange(rows, hop.receive, hop.send, hop.group), form, y)
            y = y.new_zeros((hop.n_tokens, *y.shape[1:])).index_add_(0, hop.tokens, rows)
        return y

    def _count(self, kind: str, number: int, rows: list[int], payload: Tensor, hop: Hop) -> None:
        if self.meter is not None:
            row = payload.shape[1:].numel() * payload.element_size()
            self.meter.add(kind, number, rows, row, hop.place)


def plan_route(indices: Tensor, n_experts: int, mesh: DeviceMesh) -> Route:
    """Find the way of tokens and tell everybody how many will come.

    Args:
        indices: ``[N, K]`` int64, chosen experts of this process's tokens; N may be 0 and differ
            between processes. Experts are dealt to the processes of the mesh in order.
        n_experts: E.
        mesh: one axis, or two: (node, gpu).

    Raises:
        ValueError: the processes cannot have equal shares of the experts, or an index names none.
    """
    if n_experts % mesh.size():
        raise ValueError(f"{n_experts} experts cannot be shared equally by {mesh.size()} processes")
    if indices.numel() and not (int(indices.min()) >= 0 and int(indices.max()) < n_experts):
        raise ValueError(f"indices must lie between 0 and {n_experts - 1}")
    meter, hops = _METER.get(), []
    below = mesh.size()
    for axis in range(mesh.ndim):
        size = mesh.size(axis)
        above, below = below, below // size
        owner = indices.div(n_experts // mesh.size(), rounding_mode="floor") % above // below
        owner = owner.masked_fill(indices < 0, -1)
        there = owner[..., None] == torch.arange(size, device=indices.device)
        places, tokens = there.any(1).T.nonzero(as_tuple=True)
        group, place = mesh.get_group(axis), mesh.get_local_rank(axis)
        send = torch.bincount(places, minlength=size)
        receive = exchange(send, [1] * size, [1] * size, group)
        hop = Hop(group, place, tokens, send.tolist(), receive.tolist(), len(indices))
        chosen = indices[tokens].masked_fill(owner[tokens] != places[:, None], -1)
        indices = exchange(chosen.to(torch.int32), hop.send, hop.receive, group).long()
        if meter is not None:
            meter.add("counts", axis, [1] * size, 8, place)
            meter.add("routing", axis, hop.send, 4 * indices.shape[1], place)
        hops.append(hop)
    return Route(hops, indices, meter)


def _encode(x: Tensor, form: Format) -> Tensor:
    """What travels instead of ``x``: for FP8 bytes ``[N, D + 4 * tiles]``, scales at the end."""
    if form == "exact":
        return x
    if form == "bf16":
        return x.bfloat16()
    numbers, scales = quantize_ref(x, TILE, power_of_two=True)
    # An empty tensor with one tile counts as contiguous whatever its strides are; a clone's are 1.
    scales = scales.clone(memory_format=torch.contiguous_format)
    return torch.cat((numbers.view(torch.uint8), scales.view(torch.uint8)), 1)


def _decode(rows: Tensor, form: Format, like: Tensor) -> Tensor:
    if form != "fp8":
        return rows.to(like.dtype)
    width = like.shape[1]
    numbers = rows[:, :width].contiguous().view(torch.float8_e4m3fn)
    scales = rows[:, width:].contiguous().view(torch.float32)
    return dequantize_ref(numbers, scales, TILE).to(like.dtype)


class _Dispatch(torch.autograd.Function):
    """Tokens and weights there; one node, so that every process sends gradients in one order."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, route: Route, wire: Wire
    ) -> tuple[Tensor, Tensor]:
        ctx.route, ctx.wire = route, wire
        return route.send(x, wire.dispatch, "dispatch"), route.send(weights, "exact", "weights")

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_weights: Tensor) -> tuple[Any, ...]:
        grad_x = ctx.route.collect(grad, ctx.wire.combine, "combine")
        return grad_x, ctx.route.collect(grad_weights, "exact", "weights"), None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, route: Route, wire: Wire) -> Tensor:
        ctx.route, ctx.wire = route, wire
        return route.collect(y, wire.combine, "combine")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return ctx.route.send(grad.contiguous(), ctx.wire.dispatch, "dispatch"), None, None


class ParallelExperts(Experts):
    """This process's share of a layer's routed experts; ``forward`` is that of all of them.

    Parameters keep their names, with E / (size of the mesh) experts instead of E. Their gradients
    are sums over the tokens of all processes of the mesh; see ``data.sum_gradients``.
    """

    def __init__(
        self,
        experts: Experts,
        mesh: DeviceMesh,
        wire: Wire = Wire(),  # noqa: B008
        copies: Literal["place", "choice"] = "place",
    ) -> None:
        """Keep this process's share of ``experts``, whose parameters are cut to it.

        Args:
            experts: all of them, the same on every process.
            mesh: of one axis, or of two: (node, gpu).
            wire: in what format vectors travel.
            copies: one for every ``"place"`` with an expert of the token, or for every
                ``"choice"``, the plainer way that sends more.

        Raises:
            ValueError: the processes cannot have equal shares, or an option is unknown.
        """
        nn.Module.__init__(self)
        total = experts.gate_up_proj.shape[0]
        if mesh.ndim not in (1, 2):
            raise ValueError(f"the mesh has {mesh.ndim} axes; give it one, or (node, gpu)")
        if total % mesh.size():
            raise ValueError(f"{total} experts cannot be shared equally by {mesh.size()} processes")
        if wire.dispatch not in ("exact", "bf16", "fp8") or wire.combine not in ("exact", "bf16"):
            raise ValueError(f"{wire}: dispatch is exact, bf16 or fp8, combine exact or bf16")
        if copies not in ("place", "choice"):
            raise ValueError(f"copies={copies!r}; choose 'place' or 'choice'")
        self.mesh, self.wire, self.copies, self.n_experts = mesh, wire, copies, total
        position = 0
        for axis in range(mesh.ndim):
            position = position * mesh.size(axis) + mesh.get_local_rank(axis)
        share = total // mesh.size()
        self.first = position * share
        for name in ("gate_up_proj", "down_proj"):
            own = getattr(experts, name).detach()[self.first : self.first + share].clone()
            setattr(experts, name, nn.Parameter(own))
            setattr(self, name, getattr(experts, name))
        self._kind = [experts]  # not a submodule: its parameters are ours

    def forward(self, x: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        """As ``Experts.forward``, of this process's tokens ``[N, D]``; N may be 0."""
        shape = indices.shape
        if self.copies == "choice":
            x = x.repeat_interleave(shape[1], 0)
            indices, weights = indices.reshape(-1, 1), weights.reshape(-1, 1)
        route = plan_route(indices, self.n_experts, self.mesh)
        rows, row_weights = _Dispatch.apply(x, weights, route, self.wire)
        out = _Combine.apply(self._own_experts(rows, route.indices, row_weights), route, self.wire)
        return out.unflatten(0, shape).sum(1) if self.copies == "choice" else out

    def _own_experts(self, x: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        """Sum of the outputs of the experts here: ``x [R, D]``, choices elsewhere are -1."""
        here = (indices >= 0).flatten().nonzero()[:, 0]
        experts = indices.flatten()[here] - self.first
        here = here[experts.argsort(stable=True)]
        counts = torch.bincount(experts, minlength=self.gate_up_proj.shape[0])
        token = here // indices.shape[1]
        gate_up = self.product(x.index_select(0, token), self.gate_up_proj, counts)
        rows = self.product(recomputable(swiglu, gate_up), self.down_proj, counts)
        rows = rows * weights.flatten()[here, None].to(rows.dtype)
        return torch.zeros_like(x).index_add(0, token, rows.to(x.dtype))

    def product(self, x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
        """Multiply as the experts that these were made from, in FP8 if they did."""
        return self._kind[0].product(x, weight, counts)

    def extra_repr(self) -> str:
        """Sizes for ``print(model)``."""
        last = self.first + self.gate_up_proj.shape[0] - 1
        return f"experts={self.first}..{last} of {self.n_experts}, {self.wire}"


def distribute_experts(
    model: nn.Module,
    mesh: DeviceMesh,
    wire: Wire = Wire(),  # noqa: B008
    copies: Literal["place", "choice"] = "place",
) -> list[str]:
    """Deal the experts of every layer of ``model`` to the processes of ``mesh``, in place.

    The model must be the same on all of them. Arguments as ``ParallelExperts``.

    Returns:
        Names of the layers' ``experts``.

    Raises:
        ValueError: there are no routed experts, or as ``ParallelExperts``.
    """
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, MoE)]
    if not layers:
        raise ValueError("the model has no routed experts to distribute")
    for _, layer in layers:
        layer.experts = ParallelExperts(layer.experts, mesh, wire, copies)
    return [f"{name}.experts".lstrip(".") for name, _ in layers]
