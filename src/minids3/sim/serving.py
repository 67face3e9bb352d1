"""Seconds of a serving step, as a roofline: what memory, multipliers and links allow at best.

A step multiplies each token by the weights (memory-bound while few tokens share a read, then bound
by the multipliers), attends to the cache (each sequence reads its own, so a batch saves nothing),
and sends tokens to their experts and back. Nothing here is efficiency: kernels that reach less than
the peak, uneven load, launching and scheduling all come on top, so a step takes longer than this.

The layout is that of V3's service in February 2025 [OI-serving]: every GPU has its own sequences
and all weights but the routed experts, which are spread over all GPUs. Weights are FP8 with head
and router in BF16, the cache BF16, dispatch FP8 and combine BF16 [TR-3.3.3-links]. Scales, norms,
activations and the MTP module are left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

from minids3.config import ModelConfig, get_config
from minids3.sim import memory, parameters
from minids3.sim.hardware import H800, Accelerator

__all__ = [
    "V3_DECODE",
    "V3_PREFILL",
    "Deployment",
    "Step",
    "absorbed_macs",
    "all_to_all_seconds",
    "decode_step",
    "expected_experts",
    "expected_nodes",
    "largest_batch",
    "prefill_step",
    "weight_bytes_read",
]

DISPATCH_BYTES, COMBINE_BYTES = 1, 2
GPUS_PER_NODE = 8


def expected_experts(columns: float, n_experts: int, top_k: int) -> float:
    """Return how many of a layer's experts at least one of ``columns`` tokens chose, on average.

    E (1 - (1 - K / E)^columns) [C-distinct]: an expert is left alone by a token with probability
    1 - K / E, by all of them with its power. Exact if each token chooses independently and every
    expert equally often, with or without a limit on groups; an uneven choice meets fewer experts.
    Raises ``ValueError`` unless columns >= 0 and 0 <= K <= E.
    """
    _at_least(0, columns=columns)
    if not 0 <= top_k <= n_experts or n_experts < 1:
        raise ValueError(f"top_k={top_k} must lie between 0 and n_experts={n_experts}, 1 or more")
    return n_experts * (1 - (1 - top_k / n_experts) ** columns)


def expected_nodes(nodes: int, n_experts: int, top_k: int) -> float:
    """Return on how many nodes the K experts of a token lie, on average, without a limit.

    N (1 - C(E - E/N, K) / C(E, K)) for a uniform choice and E/N experts a node [C-nodes].
    Raises ``ValueError`` if the nodes do not divide the experts or K is none of 0 to E.
    """
    if nodes < 1 or n_experts < 1 or n_experts % nodes:
        raise ValueError(f"{n_experts} experts cannot be divided equally among {nodes} nodes")
    if not 0 <= top_k <= n_experts:
        raise ValueError(f"top_k={top_k} must lie between 0 and n_experts={n_experts}")
    others, missed = n_experts - n_experts // nodes, 1.0
    for i in range(top_k):
        missed *= max(others - i, 0) / (n_experts - i)
    return nodes * (1 - missed)


def weight_bytes_read(
    cfg: ModelConfig, columns: float, dtype: str = "fp8", gpus: int = 1, places: int | None = None
) -> float:
    """Return the bytes of weights that each of ``gpus`` reads once to multiply its ``columns``.

    All matrices but the routed experts, and of these, of which ``places`` a layer (replicas
    included; by default one for each expert) are spread over the GPUs, those that a token of any
    GPU chose. Router and head are never smaller than BF16. Norms and embedding are left out.
    In BF16 two columns of V3 read 1.54 times the bytes of one, and 256 1.02 times those of 128.
    Raises ``ValueError`` for fewer places than experts, negative columns or no GPU.
    """
    plain, expert = _weight_bytes(cfg, dtype)
    places = cfg.n_routed_experts if places is None else places
    _at_least(0, columns=columns)
    _at_least(cfg.n_routed_experts, places=places)
    _at_least(1, gpus=gpus)
    if not columns:
        return 0.0
    if not cfg.is_moe:
        return plain
    read = expected_experts(columns * gpus, places, cfg.num_experts_per_tok)
    return plain + read * expert / gpus


def _weight_bytes(cfg: ModelConfig, dtype: str) -> tuple[float, float]:
    """Return the bytes of all matrices that every token meets, and of one expert in all layers."""
    size, wide = memory.dtype_bytes(dtype), max(memory.dtype_bytes(dtype), 2)
    layers = _moe_layers(cfg)
    expert = layers * parameters.expert_parameters(cfg)
    wide_numbers = (cfg.vocab_size + layers * cfg.n_routed_experts) * cfg.hidden_size
    met = parameters.matmul_parameters(cfg) - expert * cfg.num_experts_per_tok - wide_numbers
    return met * size + wide_numbers * wide, expert * size


def _moe_layers(cfg: ModelConfig) -> int:
    return sum(cfg.is_moe_layer(i) for i in range(cfg.num_hidden_layers))


def absorbed_macs(cfg: ModelConfig) -> int:
    """Return the multiply-adds that a token spends on each cached token, in all layers.

    MLA scores and sums latents (absorbed): heads x (2 C + R), 139,264 a layer for V3 [C-absorb].
    """
    if cfg.attention == "mla":
        width = 2 * cfg.kv_lora_rank + cfg.qk_rope_head_dim
    else:
        width = 2 * cfg.head_dim
    return cfg.num_hidden_layers * cfg.num_attention_heads * width


def all_to_all_seconds(tokens: float, hidden: int, copies: float, bandwidth: float) -> float:
    """Return the seconds to send each token to ``copies`` experts or nodes and back, in one layer.

    tokens x copies x hidden x (1 + 2 bytes) / bandwidth (ISCA section 2, which counts 9 copies).
    """
    _at_least(0, tokens=tokens, copies=copies, hidden=hidden)
    _positive(bandwidth=bandwidth)
    return tokens * copies * hidden * (DISPATCH_BYTES + COMBINE_BYTES) / bandwidth


@dataclass(frozen=True)
class Deployment:
    """A model on ``gpus`` equal accelerators, ``places`` experts a layer spread over them.

    ``copies`` of each token are sent per layer of experts (by default to each of its routed and
    shared experts); ``link`` is the bandwidth for them in bytes a second (by default the network
    card's, or NVLink's one way within a node of 8). A step may be cut into 2 or more equal
    ``micro_batches``: one is sent while another is multiplied, and each reads the weights anew.
    Raises ``ValueError`` for sizes that cannot be, and for a figure the accelerator lacks.
    """

    cfg: ModelConfig
    machine: Accelerator = H800
    gpus: int = 1
    places: int | None = None
    copies: float | None = None
    link: float | None = None
    micro_batches: int = 1
    weights: str = "fp8"
    cache: str = "bf16"

    def __post_init__(self) -> None:
        """Check the sizes."""
        _at_least(1, gpus=self.gpus, micro_batches=self.micro_batches)
        if self.places is not None:
            _at_least(self.cfg.n_routed_experts, places=self.places)
        if self.copies is not None:
            _at_least(0, copies=self.copies)
        if self.link is not None:
            _positive(link=self.link)
        memory.dtype_bytes(self.weights), memory.dtype_bytes(self.cache)

    def figure(self, name: str) -> float:
        """Return a figure of the accelerator; ``ValueError`` if there is none."""
        value = getattr(self.machine, name)
        if value is None:
            raise ValueError(
                f"{self.machine.name} has no figure for {name}; take another accelerator, or make "
                "an Accelerator with that figure and its source"
            )
        return float(value)

    def link_seconds(self, tokens: float) -> float:
        """Return the seconds that ``tokens`` of one GPU are on the links, in all layers."""
        if self.gpus == 1 or not self.cfg.is_moe:
            return 0.0
        copies, bandwidth = self.copies, self.link
        if copies is None:
            copies = self.cfg.num_experts_per_tok + self.cfg.n_shared_experts
        if bandwidth is None:
            bandwidth = self.figure("nic" if self.gpus > GPUS_PER_NODE else "nvlink_one_way")
        each = all_to_all_seconds(tokens, self.cfg.hidden_size, copies, bandwidth)
        return _moe_layers(self.cfg) * each

    def held_bytes(self) -> float:
        """Return the bytes of weights on each GPU: what one read of everything takes, and more.

        The table of embeddings is held, and never read as a whole.
        """
        plain, routed = _weight_bytes(self.cfg, self.weights)
        places = self.cfg.n_routed_experts if self.places is None else self.places
        wide = max(memory.dtype_bytes(self.weights), 2)
        table = 0 if self.cfg.tie_word_embeddings else self.cfg.vocab_size * self.cfg.hidden_size
        return plain + routed * places / self.gpus + table * wide


@dataclass(frozen=True)
class Step:
    """Seconds of one step on each GPU by what takes them, and the ``tokens`` it is for."""

    tokens: float
    weights: float
    matrices: float
    cache: float
    attention: float
    links: float
    overlapped: bool

    @property
    def parts(self) -> dict[str, float]:
        """The five times by name: weights and matrices, cache and attention, links."""
        names = [f.name for f in fields(self) if f.name not in ("tokens", "overlapped")]
        return {name: getattr(self, name) for name in names}

    @property
    def seconds(self) -> float:
        """Matrices, then attention, each for the longer of its two times; the links beside them."""
        on_gpu = max(self.weights, self.matrices) + max(self.cache, self.attention)
        return max(on_gpu, self.links) if self.overlapped else on_gpu + self.links

    @property
    def bound(self) -> str:
        """The name of the longest of the five times."""
        return max(self.parts, key=self.parts.__getitem__)

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second and GPU."""
        return self.tokens / self.seconds


def decode_step(
    where: Deployment, batch: float, context: float, queries: int = 1, accepted: float | None = None
) -> Step:
    """Return the step that continues ``batch`` sequences on each GPU, each of ``context`` tokens.

    ``queries`` tokens of each sequence go through the model at once (2 with one drafted token), and
    ``accepted`` of them count, ``queries`` or fewer; by default 1. What makes drafts is left out.
    Raises ``ValueError`` for a batch that is not positive, a negative context, or more than that.
    """
    accepted = 1.0 if accepted is None else accepted
    _positive(batch=batch, accepted=accepted)
    _at_least(0, context=context)
    _at_least(1, queries=queries)
    if accepted > queries:
        raise ValueError(f"accepted={accepted} cannot be more than queries={queries}")
    read = batch * context * memory.kv_cache_bytes_per_token(where.cfg, where.cache)
    macs = batch * queries * context * absorbed_macs(where.cfg)
    return _step(where, batch, batch * queries, macs, read, batch * accepted)


def prefill_step(where: Deployment, tokens: float, seen: float) -> Step:
    """Return the step that reads ``tokens`` of prompts on each GPU.

    A token attends to ``seen`` tokens, on average half a prompt's length, by expanded keys and
    values. The cache is written once. Raises ``ValueError`` unless tokens > 0 and seen >= 0.
    """
    _positive(tokens=tokens)
    _at_least(0, seen=seen)
    cfg = where.cfg
    value = cfg.v_head_dim if cfg.attention == "mla" else cfg.head_dim
    pair = cfg.num_hidden_layers * cfg.num_attention_heads * (cfg.qk_head_dim + value)
    written = tokens * memory.kv_cache_bytes_per_token(cfg, where.cache)
    return _step(where, tokens, tokens, tokens * seen * pair, written, tokens)


def _step(
    where: Deployment, rows: float, columns: float, macs: float, cache: float, tokens: float
) -> Step:
    """Return the step of ``rows`` that can be cut into micro-batches, ``columns`` in all."""
    pieces = max(1, min(where.micro_batches, int(rows)))
    rate = where.figure("fp8_flops" if where.weights == "fp8" else "bf16_flops")
    bandwidth, cfg = where.figure("memory_bandwidth"), where.cfg
    read = pieces * weight_bytes_read(
        cfg, columns / pieces, where.weights, where.gpus, where.places
    )
    return Step(
        tokens=tokens,
        weights=read / bandwidth,
        matrices=2 * columns * parameters.matmul_parameters(cfg) / rate,
        cache=cache / bandwidth,
        attention=2 * macs / where.figure("bf16_flops"),
        links=where.link_seconds(columns),
        overlapped=pieces > 1,
    )


def largest_batch(where: Deployment, context: int, reserve: float = 0.1) -> int:
    """Return how many sequences' caches of ``context`` tokens fit on a GPU beside the weights.

    ``reserve`` is the share of the memory that is kept for all else, an assumption.
    Raises ``ValueError`` if not even the weights fit.
    """
    _at_least(1, context=context)
    if not 0 <= reserve < 1:
        raise ValueError(f"reserve={reserve} must be 0 or more and less than 1")
    room = where.figure("memory_bytes") * (1 - reserve) - where.held_bytes()
    if room < 0:
        raise ValueError(
            f"{where.held_bytes() / 1e9:.1f} GB of weights do not fit on a GPU of "
            f"{where.figure('memory_bytes') / 1e9:.0f} GB; use more GPUs"
        )
    return int(room // (context * memory.kv_cache_bytes_per_token(where.cfg, where.cache)))


def _at_least(least: float, **numbers: Any) -> None:
    for name, value in numbers.items():
        good = isinstance(value, Real) and not isinstance(value, bool)
        if not good or not least <= float(value) < math.inf:
            raise ValueError(f"{name}={value!r} must be a finite number, {least} or more")


def _positive(**numbers: Any) -> None:
    _at_least(0, **numbers)
    for name, value in numbers.items():
        if not value:
            raise ValueError(f"{name}={value!r} must be greater than 0")


_V3 = get_config("v3_671b")
V3_DECODE = Deployment(_V3, gpus=144, places=288, micro_batches=2)
"""Decoding in February 2025: 18 nodes, 32 redundant experts a layer [OI-serving]."""
V3_PREFILL = Deployment(
    _V3, gpus=32, places=288, copies=expected_nodes(4, 256, 8) * 3 / 4, micro_batches=2
)
"""Prefill then: 4 nodes. A token crosses the network once for each *other* node it needs."""
