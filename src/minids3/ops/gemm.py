"""A linear layer whose three products take E4M3 operands, and the same for grouped experts.

Autograd through casts is not the recipe: forward and backward round different tensors, in different
tiles. So both are written out (TR section 3.3)::

    fprop   quantise x (1 x 128) and W (128 x 128), multiply; keep x and W as E4M3 for later
    dgrad   quantise dy (1 x 128), multiply by the kept W
    wgrad   quantise dy in tiles of 128 tokens; read the kept x, transpose, quantise again; multiply

``Float8Recipe`` says what is rounded and how. Its defaults are DeepSeek-V3's; the other settings
are there to measure what each part of the recipe is worth. ``BF16_BASELINE`` runs the same code
with operands rounded to BF16, which is what a BF16 run on a GPU does and a CPU without BF16
instructions would do ten times slower; it makes the two runs differ in the operands alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minids3.ops.moe import _stretches, check_grouped
from minids3.ref.gemm import truncated_mm_ref
from minids3.ref.quant import (
    TILE,
    WEIGHT_BLOCK,
    cache_quantize_ref,
    dequantize_ref,
    quantize_ref,
)

__all__ = ["BF16_BASELINE", "Float8Recipe", "fp8_grouped_linear", "fp8_linear"]

Block = tuple[int, int] | None


@dataclass(frozen=True)
class Float8Recipe:
    """What the products of a linear layer round, and how.

    operands: ``"e4m3"``, or ``"bf16"`` for the baseline (then only ``output`` matters besides).
    activation, gradient, weight: what shares a scale, rows x columns; None: the whole tensor.
    power_of_two: scales of x are powers of two (V3: after attention and before the experts).
    kept: what of x waits for wgrad: ``"operand"``, the E4M3 numbers that were multiplied, or
        ``"e5m6"``, x itself with 6 bits of mantissa (V3: after attention).
    scaled: False writes every number as it is, with scale 1.
    fraction_bits: of the accumulator, never promoted; None: fp32, which promotion amounts to.
    output: outputs and input gradients are rounded to it, whatever dtype then holds them.
    """

    operands: Literal["e4m3", "bf16"] = "e4m3"
    activation: Block = TILE
    gradient: Block = TILE
    weight: Block = WEIGHT_BLOCK
    power_of_two: bool = False
    kept: Literal["operand", "e5m6"] = "operand"
    scaled: bool = True
    fraction_bits: int | None = None
    output: torch.dtype = torch.bfloat16

    @property
    def has_kernels(self) -> bool:
        """Whether the Triton kernels can do it: DeepSeek-V3's tiles and nothing else."""
        blocks = (self.activation, self.gradient, self.weight) == (TILE, TILE, WEIGHT_BLOCK)
        plain = self.operands == "e4m3" and self.scaled and self.fraction_bits is None
        return blocks and plain


BF16_BASELINE = Float8Recipe(operands="bf16")


def fp8_linear(
    x: Tensor, weight: Tensor, *, recipe: Float8Recipe | None = None, backend: str = "auto"
) -> Tensor:
    """``x @ weight.T`` with E4M3 operands forward and backward.

    Args:
        x: ``[..., K]``, any floating dtype.
        weight: ``[N, K]``, the master weight; its gradient has its dtype.
        recipe: default: DeepSeek-V3's.
        backend: ``"ref"``, ``"triton"``, or ``"auto"``: Triton for CUDA tensors if the recipe is
            one that the kernels know.

    Returns:
        ``[..., N]`` in the dtype of ``x``, holding numbers of ``recipe.output``.

    Raises:
        ValueError: the shapes do not fit, or the kernels do not know the recipe.
    """
    recipe = recipe or Float8Recipe()
    if weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x {list(x.shape)} does not fit weight {list(weight.shape)}")
    kernels = _choose(backend, x, recipe, recipe.has_kernels)
    rows = x.reshape(-1, x.shape[-1])
    out = _Fp8Linear.apply(rows, weight[None], None, recipe, kernels)
    return out.view(*x.shape[:-1], weight.shape[0])


def fp8_grouped_linear(
    x: Tensor,
    weight: Tensor,
    counts: Tensor,
    *,
    recipe: Float8Recipe | None = None,
    backend: str = "auto",
) -> Tensor:
    """``fp8_linear`` of each expert's rows and its own matrix.

    Args:
        x: ``[M, K]``, rows sorted by expert.
        weight: ``[E, N, K]``.
        counts: ``[E]`` int64, rows per expert, summing to M; experts may have none.
        recipe: as ``fp8_linear``. Tiles of 128 tokens, in wgrad, do not cross experts. There are
            no kernels that keep x in E5M6 here.
        backend: as ``fp8_linear``.

    Returns:
        ``[M, N]`` in the dtype of ``x``.

    Raises:
        ValueError: as ``check_grouped``, or the kernels do not know the recipe.
    """
    check_grouped(x, weight, counts)
    recipe = recipe or Float8Recipe()
    known = recipe.has_kernels and recipe.kept == "operand"
    kernels = _choose(backend, x, recipe, known)
    return _Fp8Linear.apply(x, weight, counts, recipe, kernels)


def _choose(backend: str, x: Tensor, recipe: Float8Recipe, known: bool) -> bool:
    """Whether to launch kernels; ``known``: there are some for the recipe."""
    if backend not in ("auto", "ref", "triton"):
        raise ValueError(f"backend={backend!r} is unknown; choose auto, ref or triton")
    if backend == "triton" and not known:
        raise ValueError(f"there are no kernels for {recipe}: use backend='ref'")
    return backend == "triton" or (backend == "auto" and x.is_cuda and known)


class _Fp8Linear(torch.autograd.Function):
    """A plain linear layer is one expert that gets all rows: ``counts`` is None."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        counts: Tensor | None,
        recipe: Float8Recipe,
        kernels: bool,
    ) -> Tensor:
        ctx.recipe, ctx.kernels, ctx.dtype = recipe, kernels, weight.dtype
        kept: Sequence[Tensor | None]
        if kernels:
            from minids3.ops.gemm_kernels import kernel_forward

            ctx.counts = counts
            options = recipe.power_of_two, recipe.kept, recipe.output
            out, kept = kernel_forward(x, weight, counts, *options)
        else:
            ctx.counts = (x.shape[0],) if counts is None else tuple(counts.tolist())
            out, kept = _ref_forward(x, weight, ctx.counts, recipe)
        ctx.save_for_backward(*kept)
        ctx.shape = weight.shape
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        recipe, need = ctx.recipe, ctx.needs_input_grad[:2]
        if ctx.kernels:
            from minids3.ops.gemm_kernels import kernel_backward

            options = ctx.counts, recipe.power_of_two, recipe.output
            grad_x, grad_weight = kernel_backward(grad, ctx.saved_tensors, *options, need)
            grad_weight = None if grad_weight is None else grad_weight.to(ctx.dtype)
        else:
            grad_x = grad.new_empty(grad.shape[0], ctx.shape[2]) if need[0] else None
            grad_weight = None
            if need[1]:
                grad_weight = torch.zeros(ctx.shape, dtype=ctx.dtype, device=grad.device)
            _ref_backward(grad, ctx.saved_tensors, ctx.counts, recipe, grad_x, grad_weight)
        return grad_x, grad_weight, None, None, None


class _Operand(NamedTuple):
    """A matrix as it is stored for a product: the numbers, and what reads them."""

    numbers: Tensor
    scale: Tensor | None
    block: Block

    def read(self) -> Tensor:
        """The matrix in fp32."""
        if self.scale is None:
            return self.numbers.float()
        return dequantize_ref(self.numbers, self.scale, self.block)


def _store(x: Tensor, block: Block, recipe: Float8Recipe, power_of_two: bool = False) -> _Operand:
    """Round a matrix to what the recipe multiplies."""
    if recipe.operands == "bf16":
        return _Operand(x.bfloat16(), None, None)
    if not recipe.scaled:
        return _Operand(x.float().clamp(-448, 448).to(torch.float8_e4m3fn), None, None)
    return _Operand(*quantize_ref(x, block, power_of_two), block)


def _store_weight(weight: Tensor, recipe: Float8Recipe) -> _Operand:
    """Round ``[E, N, K]`` as ``[E*N', K]``; N' is N filled up, so that no block joins experts."""
    side = (recipe.weight or (1, 1))[0]
    if len(weight) > 1 and weight.shape[1] % side:
        weight = F.pad(weight, (0, 0, 0, -weight.shape[1] % side))
    return _store(weight.flatten(0, 1), recipe.weight, recipe)


def _product(a: Tensor, b: Tensor, recipe: Float8Recipe) -> Tensor:
    """``a @ b.T`` of fp32 matrices, in the recipe's accumulator."""
    if recipe.fraction_bits is None:
        return a @ b.T
    return truncated_mm_ref(a, b, recipe.fraction_bits)


class _Rows(NamedTuple):
    """Rows of experts, moved apart so that each expert begins a new group of 128.

    stretches: each expert that has rows, and which of the padded rows are its own.
    places: where every row went; None: nowhere, since a single expert needs no padding.
    """

    stretches: list[tuple[int, slice]]
    places: Tensor | None
    total: int

    def spread(self, x: Tensor) -> Tensor:
        """``x [M, .]`` at its places, zeros between."""
        if self.places is None:
            return x
        return x.new_zeros(self.total, x.shape[1]).index_copy_(0, self.places, x)


def _apart(counts: tuple[int, ...], side: int, device: torch.device) -> _Rows:
    if len(counts) == 1:
        return _Rows(_stretches(counts), None, counts[0])
    places, stretches, start = [], [], 0
    for e, n in enumerate(counts):
        if n:
            places.append(torch.arange(start, start + n, device=device))
            stretches.append((e, slice(start, start + n)))
        start += -(-n // side) * side
    return _Rows(stretches, torch.cat(places) if places else None, start)


def _ref_forward(
    x: Tensor, weight: Tensor, counts: tuple[int, ...], recipe: Float8Recipe
) -> tuple[Tensor, list[Tensor | None]]:
    """Output, and what backward needs: x as it is kept and W as it was multiplied, with scales."""
    a = _store(x, recipe.activation, recipe, recipe.power_of_two)
    b = _store_weight(weight, recipe)
    left, right = a.read(), b.read().unflatten(0, (len(weight), -1))[:, : weight.shape[1]]
    out = x.new_empty(x.shape[0], weight.shape[1])
    for e, rows in _stretches(counts):
        out[rows] = _product(left[rows], right[e], recipe).to(recipe.output)
    if recipe.kept == "e5m6":
        a = _Operand(*cache_quantize_ref(x), TILE)
    return out, [a.numbers, a.scale, b.numbers, b.scale]


def _ref_backward(
    grad: Tensor,
    kept: tuple[Tensor, Tensor | None, Tensor, Tensor | None],
    counts: tuple[int, ...],
    recipe: Float8Recipe,
    grad_x: Tensor | None,
    grad_weight: Tensor | None,
) -> None:
    """Fill the two gradients. A tile of the transpose is the transposed tile: 128 x 1."""
    n_experts, size = len(counts), grad.shape[1]
    apart = _apart(counts, 128, grad.device)
    spread = apart.spread(grad)
    across = recipe.gradient and (recipe.gradient[1], recipe.gradient[0])
    stored = _store(spread, recipe.gradient, recipe)
    if grad_x is not None:
        left = stored.read()
        weight = _Operand(kept[2], kept[3], recipe.weight).read().unflatten(0, (n_experts, -1))
        for (e, rows), (_, own) in zip(apart.stretches, _stretches(counts), strict=True):
            grad_x[own] = _product(left[rows], weight[e, :size].T, recipe).to(recipe.output)
    if grad_weight is not None:
        left = _store(spread, across, recipe).read()
        block = TILE if recipe.kept == "e5m6" else recipe.activation
        x = apart.spread(_Operand(kept[0], kept[1], block).read())
        tile = recipe.activation and (recipe.activation[1], recipe.activation[0])
        right = _store(x, tile, recipe, recipe.power_of_two).read()
        for e, rows in apart.stretches:
            grad_weight[e] = _product(left[rows].T, right[rows].T, recipe)
