"""Expert parallelism across links: how many copies, how many bytes, how long, and what is hidden.

A GPU sends each token to the nodes of its experts over InfiniBand, one copy a node; there the copy
is forwarded over NVLink to the GPUs that hold the experts (dispatch). Results come back the same
way (combine). Backward does both again. Dispatch travels in FP8, combine in BF16, and so do their
gradients (TR section 3.3.3). Bytes depend on what one counts, so a ``Convention`` is always named.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from minids3.sim.hardware import H100, H800

__all__ = [
    "CONVENTIONS",
    "DEEPEP",
    "DEEPEP_LOW_LATENCY",
    "INFINIBAND",
    "ISCA_BOUND",
    "NVLINK_H100",
    "NVLINK_H800",
    "PUBLISHED_TRACE",
    "Convention",
    "Copies",
    "LayerLoad",
    "Link",
    "Trace",
    "count_copies",
    "decode_bound",
    "expected_nodes",
    "expert_layer",
    "most_nodes",
    "random_routing",
    "row_bytes",
]

# links --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Link:
    """A link of one GPU; bytes per second in one direction, by its data sheet and achieved."""

    name: str
    nominal: float
    effective: float
    source: str

    def seconds(self, n_bytes: float, nominal: bool = False) -> float:
        """Return how long ``n_bytes`` take, at the achieved rate unless ``nominal``."""
        return n_bytes / (self.nominal if nominal else self.effective)


def _figure(value: float | None) -> float:
    assert value is not None  # the tables of hardware.py hold these
    return value


NVLINK_H800 = Link(
    "NVLink, H800",
    _figure(H800.nvlink_one_way),
    _figure(H800.nvlink_achieved),
    "[ISCA-nvlink]",
)
NVLINK_H100 = Link(
    "NVLink, H100",
    _figure(H100.nvlink_one_way),
    _figure(H100.nvlink_one_way) * NVLINK_H800.effective / NVLINK_H800.nominal,
    "[ISCA-nvlink]; effective: C, assumed to be the same share of the nominal rate as an H800's",
)
INFINIBAND = Link(
    "InfiniBand, 400G",
    _figure(H800.nic),
    _figure(H800.nic_achieved),
    "[ISCA-nic]; one card a GPU; assumed to be the same beside an H100",
)

# bytes --------------------------------------------------------------------------------------------


def row_bytes(width: int, dtype: Literal["fp8", "bf16"], scale_block: int | None = 128) -> int:
    """Return the bytes of one token's vector: FP8 with an FP32 scale a block, or BF16.

    Raises:
        ValueError: another dtype, or blocks that do not divide ``width``.
    """
    if dtype not in ("fp8", "bf16"):
        raise ValueError(f"dtype={dtype!r}; choose 'fp8' or 'bf16'")
    if width < 1:
        raise ValueError(f"width={width} must be 1 or more")
    if dtype == "bf16":
        return 2 * width
    if scale_block is None:
        return width
    if scale_block < 1 or width % scale_block:
        raise ValueError(f"width={width} is no multiple of scale_block={scale_block}")
    return width + 4 * (width // scale_block)


@dataclass(frozen=True)
class Convention:
    """What counts as sent for a token.

    Attributes:
        name: whose count it is.
        dispatch: bytes of a copy on its way to the experts.
        combine: bytes of a copy on its way back.
        counted: copies: one for each ``"node"`` with an expert of the token, its own included, or
            one for each ``"expert"``.
        source: where it is defined.
    """

    name: str
    dispatch: int
    combine: int
    counted: Literal["node", "expert"]
    source: str

    def token_bytes(self, copies: float) -> float:
        """Return dispatch and combine of a token with so many copies."""
        return (self.dispatch + self.combine) * copies


_WIDTH = 7168

DEEPEP = Convention(
    "DeepEP",
    row_bytes(_WIDTH, "fp8"),
    row_bytes(_WIDTH, "bf16"),
    "node",
    "[DEP-bytes]",
)
DEEPEP_LOW_LATENCY = Convention(
    "DeepEP, low latency",
    row_bytes(_WIDTH, "fp8") + 16,  # 16 bytes say where the row comes from
    row_bytes(_WIDTH, "bf16"),
    "expert",
    "[DEP-bytes]",
)
ISCA_BOUND = Convention("ISCA's bound", 7000, 14_000, "expert", "[ISCA-tpot]")
CONVENTIONS = (DEEPEP, DEEPEP_LOW_LATENCY, ISCA_BOUND)


def decode_bound(tokens: int = 32, copies: int = 9, layers: int = 61) -> tuple[float, float]:
    """Return seconds of dispatch and combine of a layer, and of a token, at 50 GB/s [ISCA-tpot].

    ``copies`` are 8 routed experts and the shared one; no scales, 7K is 7,000. Two such exchanges
    a layer, since two micro-batches take turns and neither computes longer than it communicates.
    """
    layer = INFINIBAND.seconds(tokens * ISCA_BOUND.token_bytes(copies), nominal=True)
    return layer, 2 * layers * layer


# copies -------------------------------------------------------------------------------------------


def expected_nodes(n_experts: int = 256, n_nodes: int = 8, top_k: int = 8) -> float:
    """Return the mean number of nodes of a token whose experts are any ``top_k``, equally likely.

    Each of N nodes holds E / N experts and is missed with probability C(E - E/N, k) / C(E, k), so
    the mean is N (1 - C(E - E/N, k) / C(E, k)): 5.295 for V3 without a limit [C-nodes].

    Raises:
        ValueError: experts cannot be shared equally by the nodes, or ``top_k`` is not among them.
    """
    _check_sizes(n_experts, n_nodes, top_k)
    others = n_experts - n_experts // n_nodes
    return n_nodes * (1 - math.comb(others, top_k) / math.comb(n_experts, top_k))


def most_nodes(n_experts: int = 256, n_nodes: int = 8, top_k: int = 8, limit: int = 0) -> int:
    """Return the most nodes a token can need: what a limit guarantees (``limit=0``: none).

    Raises:
        ValueError: as in ``random_routing``.
    """
    _check_sizes(n_experts, n_nodes, top_k, limit)
    return min(top_k, limit or n_nodes)


def random_routing(
    n_tokens: int,
    n_experts: int = 256,
    n_nodes: int = 8,
    top_k: int = 8,
    limit: int = 0,
    seed: int = 0,
) -> np.ndarray:
    """Route tokens of random scores as V3's gate does [TR-2.1.2-nodes].

    Args:
        n_tokens: T.
        n_experts: E; node i of N holds experts i E/N to (i + 1) E/N - 1.
        n_nodes: N.
        top_k: K.
        limit: nodes a token may visit, those with the largest sums of their two best scores; 0 for
            no limit.
        seed: of the scores, sigmoids of independent standard normal logits. The law matters a
            little: with a limit of 4 a token meets 3.965 nodes on average [C-nodes], with uniform
            scores 3.955, with logits three times as wide 3.939.

    Returns:
        Experts of each token ``[T, K]``, int64.

    Raises:
        ValueError: sizes do not fit, or ``limit`` nodes hold fewer than ``top_k`` experts.
    """
    _check_sizes(n_experts, n_nodes, top_k, limit)
    logits = np.random.default_rng(seed).standard_normal((n_tokens, n_experts))
    scores = 1 / (1 + np.exp(-logits))
    if limit:
        by_node = scores.reshape(n_tokens, n_nodes, -1)
        best = np.sort(by_node, axis=-1)[..., -2:].sum(-1)
        left_out = np.argsort(best, axis=-1)[:, : n_nodes - limit]
        np.put_along_axis(by_node, left_out[..., None], -np.inf, axis=1)
    return np.argpartition(scores, -top_k, axis=-1)[:, -top_k:]


@dataclass(frozen=True)
class Copies:
    """Rows that a routing moves, all tokens together.

    Attributes:
        tokens: T.
        experts: expert choices, T K.
        nodes: distinct nodes of each token, its own included where it has an expert there.
        remote_nodes: those that are not its own: rows over InfiniBand.
        gpus: distinct GPUs of each token, its own included.
        nvlink: rows over NVLink: a copy enters a node at the GPU of the same number as its home
            and is forwarded to the other GPUs that need it.
        remote_experts: expert choices on another node.
        local_experts: expert choices on another GPU of the same node.
        by_gpu: the rows of ``gpus`` by GPU ``[n_nodes * gpus_per_node]``, int64.
    """

    tokens: int
    experts: int
    nodes: int
    remote_nodes: int
    gpus: int
    nvlink: int
    remote_experts: int
    local_experts: int
    by_gpu: np.ndarray

    @property
    def nodes_per_token(self) -> float:
        """Mean of distinct nodes."""
        return self.nodes / self.tokens

    @property
    def imbalance(self) -> float:
        """Rows of the busiest GPU, over the mean."""
        return float(self.by_gpu.max() / self.by_gpu.mean())

    def rows(self, convention: Convention) -> int:
        """Return the rows that ``convention`` counts."""
        return self.nodes if convention.counted == "node" else self.experts


def count_copies(
    experts: np.ndarray,
    home: np.ndarray | None = None,
    n_experts: int = 256,
    n_nodes: int = 8,
    gpus_per_node: int = 8,
) -> Copies:
    """Count the rows that a routing moves.

    Args:
        experts: of each token ``[T, K]``, integers below ``n_experts``. Experts are dealt to GPUs
            in order, and GPUs to nodes.
        home: GPU of each token ``[T]``; by default tokens are dealt to the GPUs in equal runs.
        n_experts: E.
        n_nodes: nodes.
        gpus_per_node: GPUs of a node.

    Raises:
        ValueError: shapes or indices do not fit, or experts cannot be shared equally by the GPUs.
    """
    experts = np.asarray(experts)
    n_gpus = n_nodes * gpus_per_node
    _check_sizes(n_experts, n_gpus, 1)
    if experts.ndim != 2 or experts.size == 0:
        raise ValueError(f"experts has shape {experts.shape}; expected [tokens, experts a token]")
    if experts.min() < 0 or experts.max() >= n_experts:
        raise ValueError(f"experts must be between 0 and {n_experts - 1}")
    tokens = len(experts)
    home = np.arange(tokens) * n_gpus // tokens if home is None else np.asarray(home)
    if home.shape != (tokens,) or home.min() < 0 or home.max() >= n_gpus:
        raise ValueError(
            f"home must be a GPU between 0 and {n_gpus - 1} for each of {tokens} tokens"
        )
    expert_gpu = experts // (n_experts // n_gpus)
    on_gpu = np.zeros((tokens, n_gpus), dtype=bool)
    np.put_along_axis(on_gpu, expert_gpu, True, axis=1)
    on_node = on_gpu.reshape(tokens, n_nodes, gpus_per_node).any(-1)
    own_node = np.take_along_axis(on_node, (home // gpus_per_node)[:, None], axis=1)
    same_node = expert_gpu // gpus_per_node == (home // gpus_per_node)[:, None]
    enters = np.arange(n_gpus)[None] % gpus_per_node == (home % gpus_per_node)[:, None]
    return Copies(
        tokens=tokens,
        experts=experts.size,
        nodes=int(on_node.sum()),
        remote_nodes=int(on_node.sum() - own_node.sum()),
        gpus=int(on_gpu.sum()),
        nvlink=int((on_gpu & ~enters).sum()),
        remote_experts=int((~same_node).sum()),
        local_experts=int((same_node & (expert_gpu != home[:, None])).sum()),
        by_gpu=on_gpu.sum(0),
    )


def _check_sizes(n_experts: int, n_nodes: int, top_k: int, limit: int = 0) -> None:
    if n_nodes < 1 or n_experts < 1 or n_experts % n_nodes:
        raise ValueError(f"{n_experts} experts cannot be shared equally by {n_nodes} places")
    if not 1 <= top_k <= n_experts:
        raise ValueError(f"top_k={top_k} must be between 1 and {n_experts}")
    if not 0 <= limit <= n_nodes:
        raise ValueError(f"limit={limit} must be between 0 (no limit) and {n_nodes} nodes")
    if limit and limit * (n_experts // n_nodes) < top_k:
        raise ValueError(f"limit={limit} nodes hold fewer than top_k={top_k} experts")


# time of a layer ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerLoad:
    """What a GPU does for one layer, forward and backward of one micro-batch.

    Attributes:
        infiniband: bytes it sends over InfiniBand.
        nvlink: bytes it sends over NVLink.
        compute: seconds of computing.
    """

    infiniband: float
    nvlink: float
    compute: float

    def communication(self, infiniband: float, nvlink: float) -> float:
        """Return seconds of communication at these rates, in bytes per second.

        Rows are forwarded while others still arrive, so the slower link decides (TR section 3.2).
        """
        if infiniband <= 0 or nvlink <= 0:
            raise ValueError(f"rates {infiniband} and {nvlink} must be greater than 0")
        return max(self.infiniband / infiniband, self.nvlink / nvlink)

    def seconds(self, infiniband: float, nvlink: float, hidden: bool) -> float:
        """Return seconds of the layer: the longer of both parts if ``hidden``, else their sum."""
        communication = self.communication(infiniband, nvlink)
        return max(self.compute, communication) if hidden else self.compute + communication

    def nvlink_enough(self, infiniband: float) -> float:
        """Return the NVLink rate above which InfiniBand at this rate is the slower link."""
        return self.nvlink / self.infiniband * infiniband

    @property
    def infiniband_hidden(self) -> float:
        """The InfiniBand rate at which communication takes as long as computing."""
        return self.infiniband / self.compute

    @property
    def nvlink_hidden(self) -> float:
        """The NVLink rate at which forwarding takes as long as computing."""
        return self.nvlink / self.compute


def expert_layer(
    copies: Copies,
    tokens: int = 4096,
    convention: Convention = DEEPEP,
    compute: float | None = None,
) -> LayerLoad:
    """Return the load of one GPU with ``tokens`` tokens that are routed like those of ``copies``.

    A pass forward dispatches and combines, and so does one backward. Rows that stay in the node do
    not cross InfiniBand; if ``convention`` counts experts, every remote choice crosses by itself
    and nothing is forwarded.

    Args:
        copies: of ``count_copies``.
        tokens: of the micro-batch on one GPU, 4,096 in the published trace.
        convention: bytes of a row, and whether nodes forward.
        compute: seconds of computing a layer; the published trace's by default [PD-trace].
    """
    share = tokens / copies.tokens
    row = 2 * (convention.dispatch + convention.combine)
    compute = PUBLISHED_TRACE.compute / PUBLISHED_TRACE.layers if compute is None else compute
    if convention.counted == "node":
        return LayerLoad(copies.remote_nodes * row * share, copies.nvlink * row * share, compute)
    return LayerLoad(
        copies.remote_experts * row * share, copies.local_experts * row * share, compute
    )


@dataclass(frozen=True)
class Trace:
    """Seconds of a published forward and backward pair, by stream (PD; 64 GPUs, H800).

    ``weight_grad`` runs on a stream of its own; ``dispatch`` and ``combine`` are 8 calls each;
    ``waiting`` is the exchange of counts and waiting for others. The three do not quite add up to
    ``communication``.
    """

    wall: float
    compute: float
    weight_grad: float
    communication: float
    dispatch: float
    combine: float
    waiting: float
    layers: int
    calls: int

    @property
    def exposed(self) -> float:
        """Time in which the compute stream was idle, most of all waiting: at most this is lost."""
        return self.wall - self.compute

    @property
    def hidden_share(self) -> float:
        """Share of communication that ran beside computing, at least."""
        return 1 - self.exposed / self.communication

    @property
    def ratio(self) -> float:
        """Communication over all computing; the report says about 1 (TR section 3.2)."""
        return self.communication / (self.compute + self.weight_grad)

    @property
    def transfer_ratio(self) -> float:
        """The same without waiting."""
        return (self.dispatch + self.combine) / (self.compute + self.weight_grad)


PUBLISHED_TRACE = Trace(
    wall=129.0e-3,
    compute=118.2e-3,
    weight_grad=11.4e-3,
    communication=114.5e-3,
    dispatch=31.0e-3,
    combine=49.4e-3,
    waiting=32.6e-3,
    layers=4,
    calls=8,
)
"""Four layers [PD-trace] [PD-trace-parts]."""
