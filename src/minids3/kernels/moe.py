"""Rows of a mixture of experts on a GPU: out to the experts, through SwiGLU into FP8, and back.

``inverse [N*K]`` says at which place each token-expert pair stands after sorting by expert. Every
kernel here walks over tokens or pairs in their own order and looks their place up, so each token is
read once and each sum has a fixed order; nothing is added atomically.

The grouped products are in ``minids3.kernels.grouped`` and can be imported from here as well.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minids3.kernels.compile import Spec
from minids3.kernels.fp8 import decode_e4m3, encode_e4m3
from minids3.kernels.grouped import (
    TILE,
    find_tile,
    fp8_grouped_gemm_nt,
    fp8_grouped_wgrad,
    grouped_gemm_nn,
    grouped_gemm_nt,
    grouped_wgrad,
    most_tiles,
    power_of_two_from,
)
from minids3.kernels.language import jit, tl
from minids3.kernels.launch import cdiv, check_tensors, fp8_mode

__all__ = [
    "SPECS",
    "combine_bwd",
    "fp8_grouped_gemm_nt",
    "fp8_grouped_wgrad",
    "grouped_gemm_nn",
    "grouped_gemm_nt",
    "grouped_quant_transposed",
    "grouped_wgrad",
    "permute",
    "swiglu_quant",
    "unpermute",
]


@jit
def _permute_kernel(
    x_ptr,  # noqa: ANN001
    inverse_ptr,  # noqa: ANN001
    y_ptr,  # noqa: ANN001
    D,  # noqa: ANN001
    TOP_K: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + token * D + d, mask=d < D)
    for k in range(TOP_K):
        place = tl.load(inverse_ptr + token * TOP_K + k).to(tl.int64)
        tl.store(y_ptr + place * D + d, x, mask=d < D)


@jit
def _unpermute_kernel(
    y_ptr,  # noqa: ANN001
    weights_ptr,  # noqa: ANN001
    inverse_ptr,  # noqa: ANN001
    out_ptr,  # noqa: ANN001
    D,  # noqa: ANN001
    TOP_K: tl.constexpr,
    BLOCK: tl.constexpr,
    WEIGHTED: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in range(TOP_K):
        place = tl.load(inverse_ptr + token * TOP_K + k).to(tl.int64)
        y = tl.load(y_ptr + place * D + d, mask=d < D, other=0.0).to(tl.float32)
        if WEIGHTED:
            y *= tl.load(weights_ptr + token * TOP_K + k).to(tl.float32)
        total += y
    tl.store(out_ptr + token * D + d, total.to(out_ptr.dtype.element_ty), mask=d < D)


@jit
def _combine_bwd_kernel(
    grad_ptr,  # noqa: ANN001
    y_ptr,  # noqa: ANN001
    weights_ptr,  # noqa: ANN001
    inverse_ptr,  # noqa: ANN001
    grad_y_ptr,  # noqa: ANN001
    grad_weights_ptr,  # noqa: ANN001
    D,  # noqa: ANN001
    TOP_K: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    pair = tl.program_id(0).to(tl.int64)
    grad_ptr += pair // TOP_K * D
    place = tl.load(inverse_ptr + pair).to(tl.int64)
    weight = tl.load(weights_ptr + pair).to(tl.float32)
    product = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, D, BLOCK):
        d = start + tl.arange(0, BLOCK)
        grad = tl.load(grad_ptr + d, mask=d < D, other=0.0).to(tl.float32)
        product += grad * tl.load(y_ptr + place * D + d, mask=d < D, other=0.0).to(tl.float32)
        grad_y = (grad * weight).to(grad_y_ptr.dtype.element_ty)
        tl.store(grad_y_ptr + place * D + d, grad_y, mask=d < D)
    total = tl.sum(product)
    tl.store(grad_weights_ptr + pair, total.to(grad_weights_ptr.dtype.element_ty))


@jit
def _scale_of(largest, POWER_OF_TWO: tl.constexpr):  # noqa: ANN001, ANN202
    """The scale that brings ``largest`` to 448; 1 where there is nothing to scale."""
    scale = tl.div_rn(largest, tl.full(largest.shape, 448.0, tl.float32))
    if POWER_OF_TWO:
        tiny = scale < 1.1754943508222875e-38  # subnormal: round up where the bits are regular
        lifted = tl.where(tiny, scale * 18446744073709551616.0, scale)
        bits = (lifted.to(tl.int32, bitcast=True) + 0x7FFFFF) & 0x7F800000
        lifted = bits.to(tl.float32, bitcast=True)
        scale = tl.where(tiny, lifted * 5.421010862427522e-20, lifted)
    return tl.where(scale > 0, scale, 1.0)


@jit
def _finite_magnitude(x):  # noqa: ANN001, ANN202
    magnitude = tl.abs(x)
    return tl.where(magnitude <= 3.4028234663852886e38, magnitude, 0.0)


@jit
def _swiglu_quant_kernel(
    x_ptr,  # noqa: ANN001
    q_ptr,  # noqa: ANN001
    scale_ptr,  # noqa: ANN001
    M,  # noqa: ANN001
    F,  # noqa: ANN001
    ROWS: tl.constexpr,
    POWER_OF_TWO: tl.constexpr,
    NATIVE: tl.constexpr,
) -> None:
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    tile = tl.program_id(1)
    f = tile * 128 + tl.arange(0, 128)
    inside = (rows < M)[:, None] & (f < F)[None, :]
    wide = rows.to(tl.int64)
    gate_at = x_ptr + wide[:, None] * (2 * F) + f[None, :]
    gate = tl.load(gate_at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_at + F, mask=inside, other=0.0).to(tl.float32)
    h = gate / (1.0 + tl.exp(-gate)) * up
    scale = _scale_of(tl.max(_finite_magnitude(h), 1), POWER_OF_TWO)
    scaled = tl.div_rn(h, tl.broadcast_to(scale[:, None], (ROWS, 128)))
    q_at = q_ptr + wide[:, None] * F + f[None, :]
    if NATIVE:
        tl.store(q_at, scaled.to(tl.float8e4nv), mask=inside)
    else:
        tl.store(q_at, encode_e4m3(scaled), mask=inside)
    tl.store(scale_ptr + wide * tl.cdiv(F, 128) + tile, scale, mask=rows < M)


@jit
def _grouped_quant_transposed_kernel(
    x_ptr,  # noqa: ANN001
    x_scale_ptr,  # noqa: ANN001
    counts_ptr,  # noqa: ANN001
    q_ptr,  # noqa: ANN001
    scale_ptr,  # noqa: ANN001
    row_tiles,  # noqa: ANN001
    n_experts,  # noqa: ANN001
    K,  # noqa: ANN001
    BLOCK_K: tl.constexpr,
    E_PAD: tl.constexpr,
    SCALED: tl.constexpr,
    POWER_OF_TWO: tl.constexpr,
    NATIVE: tl.constexpr,
) -> None:
    tile = tl.program_id(0)
    expert, first, end = find_tile(counts_ptr, tile, n_experts, 128, E_PAD)
    if expert >= n_experts:
        return
    rows = first + tl.arange(0, 128)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = (rows < end)[:, None] & (k < K)[None, :]
    x = tl.load(x_ptr + rows.to(tl.int64)[:, None] * K + k[None, :], mask=inside, other=0.0)
    if SCALED:
        if not NATIVE:
            x = decode_e4m3(x)
        # BLOCK_K divides 128: one scale for each row of this block.
        scale_at = rows.to(tl.int64) * tl.cdiv(K, 128) + tl.program_id(1) * BLOCK_K // 128
        x_scale = tl.load(x_scale_ptr + scale_at, mask=rows < end, other=0.0)
        x = x.to(tl.float32) * x_scale[:, None]
    x = tl.trans(x.to(tl.float32))
    scale = _scale_of(tl.max(_finite_magnitude(x), 1), POWER_OF_TWO)
    scaled = tl.div_rn(x, tl.broadcast_to(scale[:, None], (BLOCK_K, 128)))
    wide = k.to(tl.int64) * row_tiles + tile
    q_at = q_ptr + wide[:, None] * 128 + tl.arange(0, 128)[None, :]
    if NATIVE:
        tl.store(q_at, scaled.to(tl.float8e4nv), mask=(k < K)[:, None])
    else:
        tl.store(q_at, encode_e4m3(scaled), mask=(k < K)[:, None])
    tl.store(scale_ptr + wide, scale, mask=k < K)


def permute(x: Tensor, *, inverse: Tensor, top_k: int) -> Tensor:
    """Copy each token to the places of its pairs: ``[N, D] -> [N*K, D]``, sorted by expert.

    Args:
        x: ``[N, D]``, any dtype of 1, 2 or 4 bytes.
        inverse: ``[N*K]`` int32 or int64, the place of pair ``token * K + slot``.
        top_k: K.

    Raises:
        ValueError: shapes do not fit, or a tensor is not contiguous.
    """
    check_tensors(x=x, inverse=inverse)
    if x.ndim != 2 or inverse.shape != (x.shape[0] * top_k,):
        raise ValueError(
            f"x {list(x.shape)}, inverse {list(inverse.shape)}, top_k={top_k}: expected [N, D] "
            "and [N * top_k]"
        )
    n, d = x.shape
    out = x.new_empty(n * top_k, d)
    if out.numel() == 0:
        return out
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[x.element_size()]
    block = _block(d)
    _permute_kernel[(n, cdiv(d, block))](
        x.view(bits), inverse, out.view(bits), d, TOP_K=top_k, BLOCK=block
    )
    return out


def unpermute(y: Tensor, weights: Tensor | None, *, inverse: Tensor, top_k: int) -> Tensor:
    """Sum each token's K rows, by weight if there are weights: ``[N*K, D] -> [N, D]``.

    Args:
        y: ``[N*K, D]`` fp32, fp16 or bf16.
        weights: ``[N, K]`` of any floating dtype, or None for a plain sum.
        inverse: as in ``permute``.
        top_k: K.

    Returns:
        ``[N, D]`` in the dtype of ``y``, summed in fp32 in the order of the slots.

    Raises:
        ValueError: shapes do not fit, or a tensor is not contiguous.
    """
    check_tensors(y=y, weights=weights, inverse=inverse)
    n = inverse.numel() // max(top_k, 1)
    if y.ndim != 2 or y.shape[0] != inverse.numel() or n * top_k != y.shape[0]:
        raise ValueError(
            f"y {list(y.shape)}, inverse {list(inverse.shape)}, top_k={top_k}: expected "
            "[N * top_k, D] and [N * top_k]"
        )
    if weights is not None and weights.shape != (n, top_k):
        raise ValueError(f"weights are {list(weights.shape)}, expected {[n, top_k]}")
    d = y.shape[1]
    out = y.new_empty(n, d)
    if out.numel() == 0:
        return out
    block = _block(d)
    _unpermute_kernel[(n, cdiv(d, block))](
        y,
        y if weights is None else weights,
        inverse,
        out,
        d,
        TOP_K=top_k,
        BLOCK=block,
        WEIGHTED=weights is not None,
    )
    return out


def combine_bwd(
    grad: Tensor, y: Tensor, weights: Tensor, *, inverse: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of ``unpermute`` with weights, in one pass over the rows.

    Args:
        grad: ``[N, D]``; y: ``[N*K, D]``; weights: ``[N, K]``; inverse: ``[N*K]``.

    Returns:
        Gradients of ``y`` and of ``weights``, in their dtypes.

    Raises:
        ValueError: shapes do not fit, or a tensor is not contiguous.
    """
    check_tensors(grad=grad, y=y, weights=weights, inverse=inverse)
    fits = weights.ndim == 2 and grad.ndim == 2 and y.ndim == 2
    if not fits or y.shape != (weights.numel(), grad.shape[1]) or len(grad) != len(weights):
        raise ValueError(
            f"grad {list(grad.shape)}, y {list(y.shape)}, weights {list(weights.shape)}: expected "
            "[N, D], [N * K, D] and [N, K]"
        )
    d = grad.shape[1]
    grad_y, grad_weights = torch.empty_like(y), torch.empty_like(weights)
    if y.numel() == 0:
        return grad_y, grad_weights.zero_()
    _combine_bwd_kernel[(weights.numel(),)](
        grad,
        y,
        weights,
        inverse,
        grad_y,
        grad_weights,
        d,
        TOP_K=weights.shape[1],
        BLOCK=_block(d),
    )
    return grad_y, grad_weights


def swiglu_quant(gate_up: Tensor, power_of_two: bool = False) -> tuple[Tensor, Tensor]:
    """SwiGLU and quantisation in one pass: the products never visit memory in 16 bits.

    Rounded once, from fp32 to E4M3. Going through bf16 first, as two kernels do, rounds twice.

    Args:
        gate_up: ``[M, 2F]`` fp32, fp16 or bf16, gate columns first.
        power_of_two: round scales up to powers of two.

    Returns:
        ``[M, F]`` float8_e4m3fn and ``[M, ceil(F / 128)]`` fp32, as ``ref.quant.quantize_ref``
        makes them of ``silu(gate) * up``.

    Raises:
        ValueError: an odd number of columns, or not contiguous.
    """
    check_tensors(gate_up=gate_up)
    if gate_up.ndim != 2 or gate_up.shape[1] % 2:
        raise ValueError(f"gate_up is {list(gate_up.shape)}, expected [M, 2F]")
    m, f = gate_up.shape[0], gate_up.shape[1] // 2
    q = torch.empty(m, f, device=gate_up.device, dtype=torch.float8_e4m3fn)
    scale = torch.empty(m, cdiv(f, TILE), device=gate_up.device)
    if q.numel() == 0:
        return q, scale
    native = fp8_mode(gate_up.device) == "native"
    rows = 16
    _swiglu_quant_kernel[(cdiv(m, rows), cdiv(f, TILE))](
        gate_up,
        q if native else q.view(torch.uint8),
        scale,
        m,
        f,
        ROWS=rows,
        POWER_OF_TWO=power_of_two,
        NATIVE=native,
    )
    return q, scale


def grouped_quant_transposed(
    x: Tensor, counts: Tensor, scale: Tensor | None = None, power_of_two: bool = False
) -> tuple[Tensor, Tensor]:
    """Transpose and quantise in tiles of 128 rows that never cross an expert: for weight gradients.

    An expert's last tile is filled up with zeros. Tiles beyond the last expert's are not written.

    Args:
        x: ``[M, K]`` fp32, fp16 or bf16, rows sorted by expert; or float8_e4m3fn with ``scale``.
        counts: ``[E]`` rows per expert, int32 or int64, summing to M.
        scale: ``[M, ceil(K / 128)]`` of a quantised ``x``: dequantised, transposed and requantised
            (TR section 3.3.2).
        power_of_two: round the new scales up to powers of two.

    Returns:
        ``[K, T * 128]`` float8_e4m3fn and ``[K, T]`` fp32 with T = M // 128 + min(E, M).

    Raises:
        ValueError: shapes do not fit, or a tensor is not contiguous.
    """
    check_tensors(x=x, counts=counts, scale=scale)
    if x.ndim != 2 or counts.ndim != 1 or (x.dtype == torch.float8_e4m3fn) != (scale is not None):
        raise ValueError(
            f"x {list(x.shape)} {x.dtype}, counts {list(counts.shape)}: expected [M, K] and [E], "
            "and a scale exactly if x is float8_e4m3fn"
        )
    m, k = x.shape
    if scale is not None and scale.shape != (m, cdiv(k, TILE)):
        raise ValueError(f"scale is {list(scale.shape)}, expected {[m, cdiv(k, TILE)]}")
    n_experts = counts.numel()
    tiles = most_tiles(m, n_experts, TILE)
    q = torch.empty(k, tiles * TILE, device=x.device, dtype=torch.float8_e4m3fn)
    new_scale = torch.empty(k, tiles, device=x.device)
    if q.numel() == 0:
        return q, new_scale
    native = fp8_mode(x.device) == "native"
    block = 64
    _grouped_quant_transposed_kernel[(tiles, cdiv(k, block))](
        x.view(torch.uint8) if scale is not None and not native else x,
        new_scale if scale is None else scale,
        counts,
        q if native else q.view(torch.uint8),
        new_scale,
        tiles,
        n_experts,
        k,
        BLOCK_K=block,
        E_PAD=power_of_two_from(n_experts),
        SCALED=scale is not None,
        POWER_OF_TWO=power_of_two,
        NATIVE=native,
    )
    return q, new_scale


def _block(d: int) -> int:
    """Columns of a row per program: rows are long, so a few pieces each."""
    return min(1024, power_of_two_from(d))


def _specs() -> tuple[Spec, ...]:
    rows = {"inverse_ptr": "*i64", "D": "i32"}
    block = {"TOP_K": 8, "BLOCK": 1024}
    modern = ("sm_89", "sm_90", "sm_100")
    old = ("sm_75", "sm_80")
    quantised = {"x_ptr": "*bf16", "scale_ptr": "*fp32"}
    transposed = {"x_scale_ptr": "*fp32", "counts_ptr": "*i64", "scale_ptr": "*fp32"}
    transposed |= {"row_tiles": "i32", "n_experts": "i32", "K": "i32"}
    found = [
        Spec(
            "permute",
            _permute_kernel,
            {"x_ptr": "*i16", "y_ptr": "*i16", **rows},
            block,
            divisible=("D",),
        ),
        Spec(
            "unpermute",
            _unpermute_kernel,
            {"y_ptr": "*bf16", "weights_ptr": "*fp32", "out_ptr": "*bf16", **rows},
            {**block, "WEIGHTED": True},
            divisible=("D",),
        ),
        Spec(
            "combine_bwd",
            _combine_bwd_kernel,
            {
                "grad_ptr": "*bf16",
                "y_ptr": "*bf16",
                "weights_ptr": "*fp32",
                "grad_y_ptr": "*bf16",
                "grad_weights_ptr": "*fp32",
                **rows,
            },
            block,
            divisible=("D",),
        ),
    ]
    for native, targets in ((True, modern), (False, old)):
        kind = "*fp8e4nv" if native else "*u8"
        suffix = "" if native else "_software"
        constexprs = {"ROWS": 16, "POWER_OF_TWO": False, "NATIVE": native}
        found.append(
            Spec(
                f"swiglu_quant{suffix}",
                _swiglu_quant_kernel,
                {**quantised, "q_ptr": kind, "M": "i32", "F": "i32"},
                constexprs,
                divisible=("M", "F"),
                expects=dict.fromkeys(modern, r"cvt\.rn\.satfinite\.e4m3x2") if native else {},
                targets=targets,
            )
        )
        for scaled in (False, True):
            found.append(
                Spec(
                    f"grouped_quant_transposed{'_fp8' if scaled else ''}{suffix}",
                    _grouped_quant_transposed_kernel,
                    {**transposed, "x_ptr": kind if scaled else "*bf16", "q_ptr": kind},
                    {
                        "BLOCK_K": 64,
                        "E_PAD": 256,
                        "SCALED": scaled,
                        "POWER_OF_TWO": True,
                        "NATIVE": native,
                    },
                    divisible=("K",),
                    targets=targets,
                )
            )
    return tuple(found)


SPECS = _specs()
