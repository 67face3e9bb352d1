"""The kernels to be measured, with their peers and a way to know that they are right.

Shapes are those of ``bench.kernel_shapes``, which the tests run, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minids3.bench import kernel_shapes
from minids3.kernels import (
    activation,
    gemm,
    grouped,
    grouped_fp8,
    loss,
    moe,
    moe_quant,
    norm,
    quant,
    rope,
    softmax,
    vector,
)
from minids3.ops.moe import plan_dispatch
from minids3.ref.activation import swiglu_ref
from minids3.ref.norm import rms_norm_ref
from minids3.ref.quant import WEIGHT_BLOCK, dequantize_ref, quantize_ref
from minids3.ref.rope import apply_rope_ref, rope_tables

__all__ = ["Case", "Setting", "cases"]

Run = Callable[[], Any]


@dataclass
class Case:
    """One kernel at one shape.

    kind: ``"memory"`` (``work`` is bytes moved) or ``"product"`` (floating-point operations).
    ours: runs our kernel. value: its result as numbers, where ``ours`` returns codes and scales.
    truth: the same in float64, from the same inputs; ``bound`` on the relative error to it.
    peers: other ways to the same result, by name.
    """

    name: str
    shape: str
    kind: str
    work: float
    ours: Run
    truth: Run
    bound: float
    peers: dict[str, Run] = field(default_factory=dict)
    value: Callable[[Any], Any] = lambda out: out


@dataclass(frozen=True)
class Setting:
    """Where and how large; ``full`` sizes are for a GPU, the others only check results."""

    device: str
    dtype: torch.dtype
    full: bool

    def randn(self, *shape: int) -> Tensor:
        """Normal numbers on the device."""
        return torch.randn(shape, device=self.device, dtype=torch.float32).to(self.dtype)

    def bound(self, reduced: float) -> float:
        """Error allowed: ``reduced`` for 16-bit results, fp32 rounding otherwise."""
        return 1e-5 if self.dtype == torch.float32 else reduced

    def compiled(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """``torch.compile`` of a peer where it is timed; elsewhere the function itself."""
        return torch.compile(fn, dynamic=False) if self.full else fn

    def memory(
        self, name: str, shape: str, n_bytes: float, ours: Run, peer: Run, truth: Run, bound: float
    ) -> Case:
        """A memory-bound case, with a device copy that moves as many bytes as a second peer."""
        source = torch.empty(max(int(n_bytes) // 2, 1), dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        peers = {"torch.compile": peer, "device copy": lambda: target.copy_(source)}
        return Case(name, shape, "memory", n_bytes, ours, truth, bound, peers)


def cases(s: Setting) -> Iterator[Case]:
    """Every case, built one after the other so that only one holds memory."""
    for make, listed in _MAKERS:
        for shape in listed.of(s.full):
            yield make(s, *shape)


# memory-bound kernels -----------------------------------------------------------------------------


def _add(s: Setting, n: int) -> Case:
    x, y = s.randn(n), s.randn(n)
    peer = s.compiled(torch.add)
    return s.memory(
        "vector add",
        f"{n}",
        3 * n * x.element_size(),
        lambda: vector.add(x, y),
        lambda: peer(x, y),
        lambda: x.double() + y.double(),
        s.bound(3e-3),
    )


def _softmax(s: Setting, *shape: int) -> Case:
    x = s.randn(*shape)
    peer = s.compiled(lambda x: torch.softmax(x, -1))
    return s.memory(
        "softmax",
        _label(*shape),
        2 * x.numel() * x.element_size(),
        lambda: softmax.softmax(x),
        lambda: peer(x),
        lambda: x.double().softmax(-1),
        s.bound(3e-3),
    )


def _rms_norm(s: Setting, *shape: int) -> Case:
    x, weight = s.randn(*shape), s.randn(shape[-1])
    peer = s.compiled(rms_norm_ref)
    return s.memory(
        "RMSNorm",
        _label(*shape),
        2 * x.numel() * x.element_size(),
        lambda: norm.rms_norm_fwd(x, weight, 1e-6)[0],
        lambda: peer(x, weight, 1e-6),
        lambda: F.rms_norm(x.double(), (shape[-1],), weight.double(), 1e-6),
        s.bound(3e-3),
    )


def _rms_norm_backward(s: Setting, *shape: int) -> Case:
    x, weight, grad = s.randn(*shape), s.randn(shape[-1]), s.randn(*shape)
    rstd = norm.rms_norm_fwd(x, weight, 1e-6)[1]

    def written(x: Tensor, weight: Tensor, grad: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, grad, scale = (t.float() for t in (x, weight, grad, rstd))
        normed = x * scale[..., None]
        inner = grad * weight
        dx = (inner - normed * (inner * normed).mean(-1, keepdim=True)) * scale[..., None]
        return dx.to(s.dtype), (grad * normed).flatten(0, -2).sum(0).to(s.dtype)

    def truth() -> tuple[Tensor, ...]:
        leaves = [t.double().requires_grad_() for t in (x, weight)]
        with torch.enable_grad():
            out = F.rms_norm(leaves[0], (shape[-1],), leaves[1], 1e-6)
            return torch.autograd.grad(out, leaves, grad.double())

    peer = s.compiled(written)
    return s.memory(
        "RMSNorm backward",
        _label(*shape),
        3 * x.numel() * x.element_size(),
        lambda: norm.rms_norm_bwd(grad, x, weight, rstd),
        lambda: peer(x, weight, grad, rstd),
        truth,
        s.bound(6e-3),
    )


def _swiglu(s: Setting, *shape: int) -> Case:
    *rows, hidden = shape
    both = s.randn(*rows, 2 * hidden)
    peer = s.compiled(lambda b: swiglu_ref(*b.chunk(2, -1)))
    return s.memory(
        "SwiGLU",
        _label(*rows, f"2*{hidden}"),
        1.5 * both.numel() * both.element_size(),
        lambda: activation.swiglu_fwd(both),
        lambda: peer(both),
        lambda: F.silu(both.double()[..., :hidden]) * both.double()[..., hidden:],
        s.bound(3e-3),
    )


def _rope(s: Setting, *shape: int) -> Case:
    x = s.randn(*shape)
    cos, sin = (t.to(s.device) for t in rope_tables(*shape[-2:]))
    peer = s.compiled(apply_rope_ref)
    return s.memory(
        "RoPE",
        _label(*shape),
        2 * x.numel() * x.element_size(),
        lambda: rope.rope(x, cos, sin),
        lambda: peer(x, cos, sin),
        lambda: _rotated(x.double(), cos.double(), sin.double()),
        s.bound(3e-3),
    )


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)


def _cross_entropy(s: Setting, rows: int, vocab: int) -> Case:
    logits = s.randn(rows, vocab)
    targets = torch.randint(0, vocab, (rows,), device=s.device)

    def truth() -> tuple[Tensor, Tensor]:
        wide = logits.double().requires_grad_()
        with torch.enable_grad():
            value = F.cross_entropy(wide, targets)
            return value.detach(), torch.autograd.grad(value, wide)[0]

    peer = s.compiled(_cross_entropy_peer)
    return s.memory(
        "cross-entropy, both ways",
        f"{rows} x {vocab}",
        2 * logits.numel() * logits.element_size(),
        lambda: loss.cross_entropy_fwd_bwd(logits, targets, -100),
        lambda: peer(logits, targets),
        truth,
        s.bound(6e-3),
    )


def _cross_entropy_peer(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and gradient in one traced function, as a compiler would like to see it."""
    wide = logits.float()
    log_p = torch.log_softmax(wide, -1)
    value = -log_p.gather(1, targets[:, None]).mean()
    place = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
    return value, ((log_p.exp() - place.float()) / logits.shape[0]).to(logits.dtype)


def _act_quant(s: Setting, rows: int, columns: int) -> Case:
    x = s.randn(rows, columns)
    peer = s.compiled(_tile_quantize)
    case = s.memory(
        "act_quant 1x128",
        f"{rows} x {columns}",
        x.numel() * (x.element_size() + 1) + 4 * x.numel() / 128,
        lambda: quant.act_quant(x),
        lambda: peer(x),
        lambda: dequantize_ref(*quantize_ref(x)).double(),
        1e-6,
    )
    case.value = lambda out: dequantize_ref(*out)
    return case


def _swiglu_quant(s: Setting, rows: int, hidden: int) -> Case:
    both = s.randn(rows, 2 * hidden)

    def peer_of(both: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = both.float().chunk(2, -1)
        return _tile_quantize(F.silu(gate) * up)

    peer = s.compiled(peer_of)
    case = s.memory(
        "SwiGLU + quantise",
        f"{rows} x 2*{hidden}",
        rows * hidden * (2 * both.element_size() + 1 + 4 / 128),
        lambda: moe_quant.swiglu_quant(both),
        lambda: peer(both),
        lambda: F.silu(both.double()[:, :hidden]) * both.double()[:, hidden:],
        0.04,  # the rounding of E4M3
    )
    case.value = lambda out: dequantize_ref(*out)
    return case


def _tile_quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    tiles = x.float().unflatten(-1, (-1, 128))
    scale = tiles.abs().amax(-1, keepdim=True).clamp_min(1e-20) / 448
    return (tiles / scale).to(torch.float8_e4m3fn).flatten(-2), scale[..., 0]


def _permute(s: Setting, tokens: int, experts: int, top_k: int, dim: int) -> Case:
    x = s.randn(tokens, dim)
    plan = plan_dispatch(_routes(s, tokens, experts, top_k), experts)
    peer = s.compiled(lambda x, order: x.index_select(0, order // top_k))
    return s.memory(
        "permute",
        f"{tokens} x {dim}, top-{top_k}",
        (1 + 1 / top_k) * tokens * top_k * dim * x.element_size(),
        lambda: moe.permute(x, inverse=plan.inverse, top_k=top_k),
        lambda: peer(x, plan.order),
        lambda: x.double()[plan.order // top_k],
        1e-9,
    )


def _unpermute(s: Setting, tokens: int, experts: int, top_k: int, dim: int) -> Case:
    y = s.randn(tokens * top_k, dim)
    weights = torch.rand(tokens, top_k, device=s.device)
    plan = plan_dispatch(_routes(s, tokens, experts, top_k), experts)

    def written(y: Tensor, weights: Tensor, inverse: Tensor) -> Tensor:
        rows = y.index_select(0, inverse).unflatten(0, weights.shape).float()
        return (rows * weights[..., None]).sum(1).to(y.dtype)

    peer = s.compiled(written)
    return s.memory(
        "unpermute",
        f"{tokens} x {dim}, top-{top_k}",
        (1 + 1 / top_k) * tokens * top_k * dim * y.element_size(),
        lambda: moe.unpermute(y, weights, plan.inverse),
        lambda: peer(y, weights, plan.inverse),
        lambda: (y.double()[plan.inverse].unflatten(0, weights.shape) * weights[..., None]).sum(1),
        s.bound(3e-3),
    )


def _routes(s: Setting, tokens: int, experts: int, top_k: int) -> Tensor:
    return torch.rand(tokens, experts, device=s.device).topk(top_k, -1).indices


# matrix products ----------------------------------------------------------------------------------


def _fp8_gemm(s: Setting, m: int, n: int, k: int) -> Case:
    x, weight = s.randn(m, k), s.randn(n, k)
    a, a_scale = quantize_ref(x)
    b, b_scale = quantize_ref(weight, WEIGHT_BLOCK)
    peers: dict[str, Run] = {"cuBLAS BF16": lambda: x @ weight.T}
    if s.full and hasattr(F, "scaled_mm"):
        outer_first = a_scale.T.contiguous().T
        peers["torch scaled_mm"] = lambda: F.scaled_mm(
            a,
            b.T,
            outer_first,
            F.ScalingType.BlockWise1x128,
            b_scale.T,
            F.ScalingType.BlockWise128x128,
            output_dtype=torch.bfloat16,
        )
    return Case(
        "FP8 GEMM, 1x128 by 128x128",
        f"{m} x {n} x {k}",
        "product",
        2.0 * m * n * k,
        lambda: gemm.fp8_gemm_nt(a, a_scale, b, b_scale, out_dtype=s.dtype),
        lambda: (
            dequantize_ref(a, a_scale).double()
            @ dequantize_ref(b, b_scale, WEIGHT_BLOCK).double().T
        ),
        s.bound(3e-3),
        peers,
    )


def _fp8_wgrad(s: Setting, m: int, n: int, k: int) -> Case:
    left, right = s.randn(m, k), s.randn(n, k)
    a, a_scale = quantize_ref(left)
    b, b_scale = quantize_ref(right)
    return Case(
        "FP8 GEMM, 1x128 by 1x128 (wgrad)",
        f"{m} x {n} x {k}",
        "product",
        2.0 * m * n * k,
        lambda: gemm.fp8_gemm_nt(a, a_scale, b, b_scale, out_dtype=torch.float32),
        lambda: dequantize_ref(a, a_scale).double() @ dequantize_ref(b, b_scale).double().T,
        1e-3 if s.full else 1e-5,  # FP8 units keep about 14 bits of each product of a step
        {"cuBLAS BF16": lambda: left @ right.T},
    )


def _grouped(s: Setting, per_expert: tuple[int, ...], n: int, k: int) -> Case:
    m, experts = sum(per_expert), len(per_expert)
    counts = torch.tensor(per_expert, device=s.device)
    x, weight = s.randn(m, k), s.randn(experts, n, k)
    peers: dict[str, Run] = {"loop of cuBLAS products": lambda: _loop(x, weight, counts)}
    if s.full and hasattr(F, "grouped_mm"):
        peers["torch grouped_mm"] = lambda: _torch_grouped(x, weight, counts)
    return Case(
        "grouped GEMM",
        f"{m} x {n} x {k}, {experts} experts",
        "product",
        2.0 * m * n * k,
        lambda: grouped.grouped_gemm_nt(x, weight, counts),
        lambda: _loop(x.double(), weight.double(), counts),
        s.bound(3e-3),
        peers,
    )


def _fp8_grouped(s: Setting, per_expert: tuple[int, ...], n: int, k: int) -> Case:
    m, experts = sum(per_expert), len(per_expert)
    counts = torch.tensor(per_expert, device=s.device)
    x, weight = s.randn(m, k), s.randn(experts, n, k)
    a, a_scale = quantize_ref(x)
    pairs = [quantize_ref(w, WEIGHT_BLOCK) for w in weight]
    b, b_scale = (torch.stack(t) for t in zip(*pairs, strict=True))
    peers: dict[str, Run] = {}
    if s.full and hasattr(F, "grouped_mm"):
        peers["torch grouped_mm BF16"] = lambda: _torch_grouped(x, weight, counts)

    def truth() -> Tensor:
        wide = torch.stack([dequantize_ref(*pair, WEIGHT_BLOCK) for pair in pairs])
        return _loop(dequantize_ref(a, a_scale).double(), wide.double(), counts)

    return Case(
        "FP8 grouped GEMM",
        f"{m} x {n} x {k}, {experts} experts",
        "product",
        2.0 * m * n * k,
        lambda: grouped_fp8.fp8_grouped_gemm_nt(a, a_scale, b, b_scale, counts, s.dtype),
        truth,
        s.bound(3e-3),
        peers,
    )


def _torch_grouped(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    return F.grouped_mm(x, weight.transpose(1, 2), offs=counts.cumsum(0).to(torch.int32))


def _loop(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    rows = x.split(counts.tolist())
    return torch.cat([r @ w.T for r, w in zip(rows, weight, strict=True)])


def _label(*sides: object) -> str:
    return " x ".join(map(str, sides))


_MAKERS: tuple[tuple[Callable[..., Case], kernel_shapes.Shapes], ...] = (
    (_add, kernel_shapes.ADD),
    (_softmax, kernel_shapes.SOFTMAX),
    (_rms_norm, kernel_shapes.RMS_NORM),
    (_rms_norm_backward, kernel_shapes.RMS_NORM),
    (_swiglu, kernel_shapes.SWIGLU),
    (_rope, kernel_shapes.ROPE),
    (_cross_entropy, kernel_shapes.CROSS_ENTROPY),
    (_act_quant, kernel_shapes.QUANT),
    (_swiglu_quant, kernel_shapes.SWIGLU_QUANT),
    (_permute, kernel_shapes.ROWS),
    (_unpermute, kernel_shapes.ROWS),
    (_fp8_gemm, kernel_shapes.FP8_GEMM),
    (_fp8_wgrad, kernel_shapes.FP8_WGRAD),
    (_grouped, kernel_shapes.GROUPED),
    (_fp8_grouped, kernel_shapes.GROUPED),
)
