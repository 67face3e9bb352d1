"""A decoding step for small batches on a CPU, where calls cost more than what they compute.

The model spends some 3,000 calls of PyTorch on a token, most of them on a few numbers. A
``PreparedDecoder`` does the same step with a third of them:

- what reads the same vector lies in one matrix: ``q_a`` and ``kv_a``; queries, keys and values;
- RoPE needs no pairs: with the quarter turn J, rotating W h is ``cos * (W h) + sin * (J W h)``, and
  J W is W with its rows exchanged;
- gains of norms, the scale of the scores and the absorbed products of MLA are part of the weights;
- of the experts only the chosen are visited, one after the other, and nothing is sorted; with more
  rows they are sorted after all, and one call multiplies them by all experts.

The numbers are the model's up to the order of summation. The weights are packed when the decoder is
made, for one text: what is done to the model afterwards does not reach it.

Compiled (by ``torch.compile``) the same step has fixed shapes: attention runs over the whole
capacity of the cache and a mask, and experts' matrices are read inside the fused product. That
takes a C++ compiler, and up to two minutes for every new shape.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minids3.config import ModelConfig
from minids3.infer.cache import KVCache, LatentCache
from minids3.model.block import Block
from minids3.model.mtp import MTPModule
from minids3.model.transformer import Transformer
from minids3.nn import Experts, Gate, GroupedQueryAttention, LatentAttention, MoE, RMSNorm, SwiGLU

__all__ = ["PreparedBlock", "PreparedDecoder", "PreparedNorm", "why_not_known", "why_not_prepared"]

FEW_ROWS = 8
"""Up to so many tokens times chosen experts, a loop is faster than sorting rows by expert."""

MOST_WASTED = 1 << 24
"""So many multiply-adds for nothing take as long as sorting rows and a product for each expert."""

MOST_ADDED = 1 << 20
"""Reading so many more numbers a layer takes as long as the calls that are saved."""


KNOWN = {
    Transformer, Block, LatentAttention, GroupedQueryAttention, MoE, Gate, Experts, SwiGLU, RMSNorm,
    nn.Linear, nn.Embedding, nn.ModuleList, MTPModule,
}  # fmt: skip


def why_not_prepared(model: Transformer, drafts: bool = False) -> str | None:
    """Why a prepared decoder would not do what ``model`` does, or do it no faster; None: it would.

    It knows the library's own layers (``why_not_known``), in fp32 on a CPU. With ``drafts`` the MTP
    modules count, too.
    """
    if (why := why_not_known(model, drafts)) is not None:
        return why
    for name, p in model.named_parameters():
        if name.split(".")[0] == "mtp" and not drafts:
            continue
        if p.dtype != torch.float32 or p.device.type != "cpu" or type(p) is not nn.Parameter:
            return f"{name} holds {p.dtype} on {p.device}, not plain fp32 on the CPU"
    if _added_numbers(model.config) > MOST_ADDED:
        return "absorbing makes this model's attention weights so large that it does not pay"
    return None


def why_not_known(model: Transformer, drafts: bool = False) -> str | None:
    """Why doing the layers' work without calling them would not do what ``model`` does, or None.

    They must be the library's own, in evaluation mode, with nobody listening: hooks would not be
    called.
    """
    if model.training:
        return "the model is in training mode: call model.eval()"
    if any(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")):
        return "autocast is on"
    if nn.modules.module._has_any_global_hook():
        return "there are hooks on all modules"
    for name, module in model.named_modules():
        if name.split(".")[0] == "mtp" and not drafts:
            continue
        if type(module) not in KNOWN:
            return f"{name or 'the model'} is a {type(module).__name__}, not a layer of the library"
        replaced = any(callable(v) and hasattr(type(module), k) for k, v in vars(module).items())
        if module._forward_hooks or module._forward_pre_hooks or replaced:
            return f"{name or 'the model'} has a hook or a method of its own"
        if getattr(module, "bias", None) is not None:
            return f"{name} has a bias"
        if getattr(module, "absorb", None) is False:
            return f"{name} has absorb=False"
    return None


def _added_numbers(cfg: ModelConfig) -> int:
    """How many more weights a layer's packed attention has than its own."""
    if cfg.attention == "gqa":
        return cfg.head_dim * (cfg.num_attention_heads + cfg.num_key_value_heads) * cfg.hidden_size
    heads, rank, rope = cfg.num_attention_heads, cfg.kv_lora_rank, cfg.qk_rope_head_dim
    query = cfg.q_lora_rank or cfg.hidden_size
    packed = heads * ((rank + 2 * rope) * query + rank * cfg.hidden_size)
    width = cfg.qk_nope_head_dim + rope
    own = heads * (width * query + cfg.v_head_dim * cfg.hidden_size)
    return packed - own


class _Where(Protocol):
    """What a layer asks about its new tokens: one of every text here, any number in ``paged``."""

    @property
    def index(self) -> int | Tensor | None:
        """The cache's column, if there is one; a tensor when shapes are fixed."""
        ...

    def rotated(self, x: Tensor, turned: Tensor) -> Tensor:
        """RoPE of ``x [N, heads, R]``, given its quarter turn."""
        ...

    def mean_latent(self, layer: int, q: Tensor, new: Tensor, rank: int) -> Tensor:
        """Mean latents ``[N, H, C]`` of ``q [N, H, C + R]``, after storing ``new [N, C + R]``."""
        ...

    def mean_value(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Mean values ``[N, Hk, H / Hk, d]`` of ``q``, after storing ``k`` and ``v [N, Hk, d]``."""
        ...


class _Place(NamedTuple):
    """Where the new token stands.

    index: the cache's column for it; a tensor ``[1]`` when shapes are fixed.
    cos, sin: ``[R]``, or ``[B, R]`` if rows have positions of their own.
    visible: ``[B or 1, S]`` bool, which columns may be seen; None: all up to ``index``.
    memory: the cache's tensors, layers first.
    """

    index: int | Tensor
    cos: Tensor
    sin: Tensor
    visible: Tensor | None
    memory: tuple[Tensor, ...]

    def rotated(self, x: Tensor, turned: Tensor) -> Tensor:
        """RoPE of ``x [B, heads, R]``, given its quarter turn."""
        return torch.addcmul(x * self.cos[..., None, :], turned, self.sin[..., None, :])

    def mean_latent(self, layer: int, q: Tensor, new: Tensor, rank: int) -> Tensor:
        """Mean latents ``[B, H, C]`` of ``q [B, H, C + R]``, after storing ``new [B, C + R]``."""
        keys = self.stored(self.memory[0][layer], new)
        return self.weights(q @ keys.mT) @ keys[..., :rank]

    def mean_value(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Mean values ``[B, Hk, H / Hk, d]`` of ``q``, after storing ``k`` and ``v [B, Hk, d]``."""
        keys = self.stored(self.memory[0][layer], k)
        values = self.stored(self.memory[1][layer], v)
        return self.weights(q @ keys.mT) @ values

    def stored(self, memory: Tensor, new: Tensor) -> Tensor:
        """Put ``new [..., d]`` into its column of ``memory [..., capacity, d]``; all S so far."""
        if isinstance(self.index, Tensor):
            return memory.index_copy_(-2, self.index, new[..., None, :])
        memory[..., self.index, :] = new
        return memory[..., : self.index + 1, :]

    def weights(self, scores: Tensor) -> Tensor:
        """Softmax over the visible columns of ``scores [B, ..., S]``."""
        if self.visible is not None:
            hidden = ~self.visible[(slice(None),) + (None,) * (scores.ndim - 2)]
            scores = scores.masked_fill(hidden, -torch.inf)
        return scores.softmax(-1)


class PreparedNorm:
    """RMSNorm in three calls, or four with the gain."""

    def __init__(self, norm: RMSNorm) -> None:
        width = norm.weight.numel()
        self.gain = norm.weight * math.sqrt(width)
        self.root = torch.tensor(math.sqrt(width * norm.eps))

    def unit(self, x: Tensor) -> Tensor:
        """``x`` without the gain, which the next weight has taken over."""
        return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), self.root)

    def __call__(self, x: Tensor) -> Tensor:
        """The norm of ``x [..., D]``, gain included."""
        return self.unit(x) * self.gain


class _Latent:
    """Absorbed latent attention."""

    def __init__(self, norm: PreparedNorm, attention: LatentAttention) -> None:
        a, self.norm = attention, norm
        self.layer, self.rank, self.rope, self.n_heads = a.layer, a.rank, a.rope, a.n_heads
        c_kv, k_rope = a.kv_a_proj_with_mqa.weight.split((a.rank, a.rope))
        read = [c_kv, k_rope, _turned(k_rope, a.interleaved)]
        self.kv_norm, self.q_norm = PreparedNorm(a.kv_a_layernorm), None
        if a.compresses_queries:
            self.q_norm = PreparedNorm(a.q_a_layernorm)
            read.append(a.q_a_proj.weight)
            query = a.q_b_proj.weight * self.q_norm.gain
        else:
            query = a.q_proj.weight * norm.gain
        self.read, self.sizes = torch.cat(read) * norm.gain, [len(rows) for rows in read]
        expand = a.kv_b_proj.weight.unflatten(0, (a.n_heads, -1))
        w_uk, w_uv = expand.split((a.nope, a.v_dim), 1)  # [H, dn, C], [H, dv, C]
        q_nope, q_rope = query.unflatten(0, (a.n_heads, -1)).split((a.nope, a.rope), 1)
        parts = (w_uk.mT @ q_nope, q_rope, _turned(q_rope, a.interleaved))
        self.query = torch.cat(parts, 1).flatten(0, 1) * a.scale  # [H * (C + 2R), Q or D]
        out = a.o_proj.weight.unflatten(1, (a.n_heads, -1)).permute(1, 2, 0)  # [H, dv, D]
        self.out = (w_uv.mT @ out).flatten(0, 1)  # [H * C, D]

    def __call__(self, x: Tensor, place: _Where) -> Tensor:
        h = self.norm.unit(x)
        c_kv, k, turned, *rest = F.linear(h, self.read).split(self.sizes, -1)
        k = place.rotated(k[:, None], turned[:, None])[:, 0]
        new = torch.cat((self.kv_norm(c_kv), k), -1)
        if self.q_norm is not None:
            h = self.q_norm.unit(rest[0])
        q = F.linear(h, self.query).unflatten(-1, (self.n_heads, -1))
        q, rotary, turned = q.split((self.rank, self.rope, self.rope), -1)
        q = torch.cat((q, place.rotated(rotary, turned)), -1)  # [B, H, C + R]
        mean = place.mean_latent(self.layer, q, new, self.rank)
        return torch.addmm(x, mean.flatten(1), self.out)


class _Grouped:
    """Grouped-query attention."""

    def __init__(self, norm: PreparedNorm, attention: GroupedQueryAttention) -> None:
        a, self.norm = attention, norm
        self.layer, self.head_dim = a.layer, a.head_dim
        q, k, v = (
            proj.weight.unflatten(0, (-1, a.head_dim)) for proj in (a.q_proj, a.k_proj, a.v_proj)
        )
        q = q * a.head_dim**-0.5
        read = (q, _turned(q, a.interleaved), k, _turned(k, a.interleaved), v)
        self.sizes = [len(heads) for heads in read]
        self.read = torch.cat(read).flatten(0, 1) * norm.gain
        self.out = a.o_proj.weight.T

    def __call__(self, x: Tensor, place: _Where) -> Tensor:
        rows = F.linear(self.norm.unit(x), self.read).unflatten(-1, (-1, self.head_dim))
        q, q_turned, k, k_turned, v = rows.split(self.sizes, 1)
        k = place.rotated(k, k_turned)
        q = place.rotated(q, q_turned).unflatten(1, (k.shape[1], -1))  # [B, Hk, H / Hk, d]
        mean = place.mean_value(self.layer, q, k, v)
        return torch.addmm(x, mean.flatten(1), self.out)


class _Dense:
    """One SwiGLU."""

    def __init__(self, norm: PreparedNorm, mlp: SwiGLU) -> None:
        self.norm, self.down = norm, mlp.down_proj.weight.T
        self.gate_up = torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight)) * norm.gain

    def __call__(self, x: Tensor, place: _Where) -> Tensor:
        return torch.addmm(x, _swiglu(F.linear(self.norm.unit(x), self.gate_up)), self.down)


class _Router:
    """What ``Gate`` decides, without the call of a module and its care for autocast."""

    def __init__(self, gate: Gate) -> None:
        self.weight, self.decide = gate.weight, gate.decide

    def __call__(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and indices ``[N, K]`` of the experts that ``h [N, D]`` goes to."""
        routing = self.decide(F.linear(h, self.weight))
        return routing.weights, routing.indices


class _Mixture:
    """The chosen experts and the shared one."""

    def __init__(self, norm: PreparedNorm, moe: MoE) -> None:
        self.norm, self.route, self.experts = norm, _Router(moe.gate), moe.experts
        self.gate_up, self.down = moe.experts.gate_up_proj, moe.experts.down_proj
        self.each = list(zip(self.gate_up, self.down.mT, strict=True))
        self.numbers = torch.arange(len(self.gate_up))
        self.groups = _grouped_products() and not any(n % 4 for n in self.down.shape[1:])
        shared = moe.shared_experts
        if shared is not None:
            self.shared_gate_up = torch.cat((shared.gate_proj.weight, shared.up_proj.weight))
            self.shared_down = shared.down_proj.weight.T
        self.shares = shared is not None

    def __call__(self, x: Tensor, place: _Where) -> Tensor:
        h = self.norm(x)
        weights, indices = self.route(h)
        if isinstance(place.index, Tensor):
            x = x + (self.all if indices.numel() >= len(self.gate_up) else self.gathered)(
                h, indices, weights
            )
        elif indices.numel() <= FEW_ROWS:
            x = self.one_by_one(x, h, indices, weights)
        elif self.groups:
            x = self.by_expert(x, h, indices, weights)
        elif self.wasted(*indices.shape) <= MOST_WASTED:
            x = x + self.all(h, indices, weights)
        else:
            x = x + self.experts(h, indices, weights)
        if self.shares:
            x = torch.addmm(x, _swiglu(F.linear(h, self.shared_gate_up)), self.shared_down)
        return x

    def wasted(self, rows: int, top_k: int) -> int:
        """Multiply-adds that nobody asked for, if all experts see all ``rows``."""
        return rows * (len(self.gate_up) - top_k) * 3 * self.down[0].numel()

    def one_by_one(self, x: Tensor, h: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        """Add to ``x [B, D]`` what each row's experts make of ``h [B, D]``."""
        rows = []
        for out, row, chosen in zip(x.split(1), h.split(1), indices.tolist(), strict=True):
            experts = [self.each[e] for e in chosen]
            both = torch.cat([F.linear(row, gate_up) for gate_up, _ in experts])
            hidden = _swiglu(both) * weights[len(rows)][:, None]
            for (_, down), part in zip(experts, hidden.split(1), strict=True):
                out = torch.addmm(out, part, down)
            rows.append(out)
        return torch.cat(rows)

    def by_expert(self, x: Tensor, h: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        """The same with rows sorted by expert, and all experts in one call."""
        expert, order = indices.flatten().sort()
        ends = torch.searchsorted(expert, self.numbers, right=True, out_int32=True)
        token = order // indices.shape[1]
        both = F.grouped_mm(h.index_select(0, token), self.gate_up.mT, offs=ends)
        hidden = _swiglu(both) * weights.flatten().index_select(0, order)[:, None]
        return x.index_add(0, token, F.grouped_mm(hidden, self.down.mT, offs=ends))

    def gathered(self, h: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        """The same of ``h`` in fixed shapes, for a compiler that fuses gather and product."""
        both = (self.gate_up[indices] * h[:, None, None]).sum(-1)
        hidden = _swiglu(both) * weights[..., None]
        return (self.down[indices] * hidden[:, :, None]).sum((1, 3))

    def all(self, h: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        """The same by all experts: where most are chosen by some row, reading them is the work."""
        share = h.new_zeros(len(h), len(self.gate_up)).scatter_(1, indices, weights)
        hidden = _swiglu(h @ self.gate_up.mT) * share.T[..., None]  # [E, B, F]
        return (hidden @ self.down.mT).sum(0)


class PreparedBlock:
    """One layer: attention, then the feed-forward, each with its residual."""

    def __init__(self, block: Block) -> None:
        norm, attention = PreparedNorm(block.input_layernorm), block.self_attn
        kind = _Latent if isinstance(attention, LatentAttention) else _Grouped
        self.attend = kind(norm, attention)
        norm = PreparedNorm(block.post_attention_layernorm)
        self.feed_forward = (_Mixture if isinstance(block.mlp, MoE) else _Dense)(norm, block.mlp)

    def __call__(self, x: Tensor, place: _Where) -> Tensor:
        """Map ``x [N, D]`` to ``[N, D]``."""
        return self.feed_forward(self.attend(x, place), place)


@functools.cache
def _grouped_products() -> bool:
    """Whether this PyTorch multiplies groups of fp32 rows on a CPU; older ones do not."""
    rows, ends = torch.zeros(1, 4), torch.ones(1, dtype=torch.int32)
    try:
        return F.grouped_mm(rows, torch.zeros(1, 4, 4), offs=ends).shape == rows.shape
    except (AttributeError, RuntimeError):
        return False


def _swiglu(both: Tensor) -> Tensor:
    gate, up = both.chunk(2, -1)
    return F.silu(gate) * up


def _turned(weight: Tensor, interleaved: bool) -> Tensor:
    """Rows ``[..., R, D]`` such that RoPE is cos times the old ones plus sin times these."""
    if interleaved:
        first, second = weight.unflatten(-2, (-1, 2)).unbind(-2)
        return torch.stack((-second, first), -2).flatten(-3, -2)
    first, second = weight.chunk(2, -2)
    return torch.cat((-second, first), -2)


def _step(blocks: Sequence[PreparedBlock], x: Tensor, place: _Where) -> Tensor:
    for block in blocks:
        x = block(x, place)
    return x


@functools.cache
def _compiled_step() -> Any:
    return torch.compile(_step, fullgraph=True, dynamic=False)


def _compile_failure(error: Exception) -> str:
    """What failed in ``torch.compile``, and what to do about it."""
    from torch._inductor.codecache import cache_dir
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    folder = cache_dir()
    if isinstance(error, InvalidCxxCompiler | CppCompileError):
        what = "a compiled decoder needs a C++ compiler (g++ or clang++) that torch can use"
    elif folder in f"{error} {getattr(error, 'filename', '')}":  # what it compiled and cannot load
        what = (
            "a file in its cache is damaged, as after a run that was stopped while it compiled: "
            f"delete the folder {folder} and try again"
        )
    else:
        what = "PyTorch could not compile the step on this machine"
    return f"torch.compile failed: {what}; compile=False does without. It said: {error}"


class PreparedDecoder:
    """Logits of the next token, one token after the other, from a filled cache."""

    def __init__(
        self, model: Transformer, cache: KVCache | LatentCache, compiled: bool = False
    ) -> None:
        """Pack the weights.

        Args:
            model: one with nothing against it (``why_not_prepared``).
            cache: of that model; it is extended by every step.
            compiled: let ``torch.compile`` fuse the step.

        Raises:
            ValueError: the decoder would not do what the model does; the message says why.
        """
        if (why := why_not_prepared(model)) is not None:
            raise ValueError(f"this model's decoding cannot be prepared: {why}")
        self.embedding, self.head = model.embed_tokens.weight, model.lm_head.weight
        self.norm, self.cache = PreparedNorm(model.norm), cache
        self.blocks = [PreparedBlock(block) for block in model.layers]
        tables = (model.rope_cos[: cache.capacity], model.rope_sin[: cache.capacity])
        self.cos, self.sin = (
            t.repeat_interleave(2, -1) if model.config.rope_interleave else torch.cat((t, t), -1)
            for t in tables
        )
        self.memory = (cache.latent,) if isinstance(cache, LatentCache) else (cache.k, cache.v)
        self.columns = torch.arange(cache.capacity)
        self.compiled = compiled
        if cache.real is not None:  # columns still to come hold real tokens
            self.real = F.pad(cache.real, (0, cache.capacity - cache.length), value=True)
            self.behind = cache.length - cache.real.sum(-1)

    def __call__(self, token: Tensor) -> Tensor:
        """Logits ``[B, V]`` after one more ``token [B]`` of every text."""
        column, cache = self.cache.length, self.cache
        if column >= cache.capacity:
            raise ValueError(f"the cache holds {cache.capacity} positions, all are taken")
        position: int | Tensor = column
        visible = None
        if cache.real is not None:
            position = column - self.behind
            visible = self.real if self.compiled else self.real[:, : column + 1]
            cache.real = self.real[:, : column + 1]
        index: int | Tensor = column
        step = _step
        if self.compiled:
            index = self.columns[column : column + 1]
            past = (self.columns <= column)[None]
            visible = past if visible is None else past & visible
            step = _compiled_step()
        place = _Place(index, self.cos[position], self.sin[position], visible, self.memory)
        try:
            x = step(self.blocks, F.embedding(token, self.embedding), place)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            raise RuntimeError(_compile_failure(error.inner_exception)) from error
        cache.advance(1)
        return F.linear(self.norm(x), self.head)
