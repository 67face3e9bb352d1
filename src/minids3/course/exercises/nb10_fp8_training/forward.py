"""The forward product, and what it keeps."""

from __future__ import annotations

import torch

from minids3.course.exercises.nb10_fp8_training.tiles import rounded, tolerance, uneven
from minids3.course.registry import Alternative, Mutant, exercise
from minids3.ref.gemm import fp8_gemm_nt_ref
from minids3.ref.quant import dequantize_ref as dequantize
from minids3.ref.quant import quantize_ref as quantize

TILE, BLOCK = (1, 128), (128, 128)


def fp8_forward(x, weight):
    """Output of an FP8 linear layer, and what its backward will read.

    x [M, K]; weight [N, K]
    returns y [M, N] bf16, and (x_q, x_scale, w_q, w_scale): both
    matrices as E4M3 with their scales
    """
    x_q, x_scale = quantize(x, TILE)
    w_q, w_scale = quantize(weight, BLOCK)
    y = dequantize(x_q, x_scale, TILE) @ dequantize(w_q, w_scale, BLOCK).T
    return y.bfloat16(), (x_q, x_scale, w_q, w_scale)


def _with(x, weight, tile, block):
    x_q, x_scale = quantize(x, tile)
    w_q, w_scale = quantize(weight, block)
    y = dequantize(x_q, x_scale, tile) @ dequantize(w_q, w_scale, block).T
    return y.bfloat16(), (x_q, x_scale, w_q, w_scale)


def _forward_weight_tiles(x, weight):
    return _with(x, weight, TILE, TILE)


def _forward_activation_blocks(x, weight):
    return _with(x, weight, BLOCK, BLOCK)


def _forward_per_tensor(x, weight):
    return _with(x, weight, None, None)


def _forward_across(x, weight):
    return _with(x, weight, (128, 1), BLOCK)


def _forward_no_scales(x, weight):
    _, kept = fp8_forward(x, weight)
    return (kept[0].float() @ kept[2].float().T).bfloat16(), kept


def _forward_divides(x, weight):
    x_q, x_scale, w_q, w_scale = fp8_forward(x, weight)[1]
    y = dequantize(x_q, 1 / x_scale, TILE) @ dequantize(w_q, 1 / w_scale, BLOCK).T
    return y.bfloat16(), (x_q, x_scale, w_q, w_scale)


def _forward_keeps_inputs(x, weight):
    y, (_, x_scale, _, w_scale) = fp8_forward(x, weight)
    return y, (x, x_scale, weight, w_scale)


def _forward_fp32(x, weight):
    _, kept = fp8_forward(x, weight)
    return dequantize(*kept[:2], TILE) @ dequantize(*kept[2:], BLOCK).T, kept


def _forward_rounded_output(x, weight):
    y, kept = fp8_forward(x, weight)
    return dequantize(*quantize(y, TILE), TILE).bfloat16(), kept


def _forward_weight_exact(x, weight):
    _, kept = fp8_forward(x, weight)
    return (dequantize(*kept[:2], TILE) @ weight.float().T).bfloat16(), kept


def _forward_blocks_of_k(x, weight):
    x_q, x_scale = quantize(x, TILE)
    w_q, w_scale = quantize(weight, BLOCK)
    y = torch.zeros(x.shape[0], weight.shape[0])
    rows = torch.arange(weight.shape[0]) // 128
    for k in range(x_scale.shape[1]):
        part = slice(128 * k, 128 * k + 128)
        product = x_q[:, part].float() @ w_q[:, part].float().T
        y += product * x_scale[:, k, None] * w_scale[rows, k]
    return y.to(torch.bfloat16), (x_q, x_scale, w_q, w_scale)


def _forward_library(x, weight):
    kept = (*quantize(x, TILE), *quantize(weight, BLOCK))
    return fp8_gemm_nt_ref(*kept), kept


def _operands_exact(x, weight):
    return (x @ weight.T).bfloat16(), fp8_forward(x, weight)[1]


def _clamped(x, weight):
    return fp8_forward(x.clamp(-448, 448), weight.clamp(-448, 448))


def _by_rows(x, weight):
    x_q, x_scale = quantize(x, TILE)
    w_q, w_scale = quantize(weight, BLOCK)
    w = dequantize(w_q, w_scale, BLOCK).double()
    y = torch.zeros(x.shape[0], weight.shape[0], dtype=torch.bfloat16)
    for i, row in enumerate(dequantize(x_q, x_scale, TILE).double()):
        y[i] = torch.einsum("k,nk->n", row, w)
    return y, (x_q, x_scale, w_q, w_scale)


@exercise(
    "fp8-forward",
    solution=fp8_forward,
    notebook="10_fp8_training",
    title="Forward, and what to keep",
    difficulty=2,
    importance=5,
    minutes=8,
    library=_forward_library,
    hints=(
        "Which numbers of x share a scale, and which of the weight? And which of the four "
        "tensors does backward have to find again?",
        "x_q, x_scale = quantize(x, TILE)          # 1 x 128, one scale per token and 128\n"
        "w_q, w_scale = quantize(weight, BLOCK)    # 128 x 128\n"
        "y = dequantized x @ dequantized weight, transposed; round y to bf16\n"
        "return y and the four tensors, the E4M3 ones",
    ),
    mutants=[
        Mutant(
            "weight_tiles",
            _forward_weight_tiles,
            "The weight has tiles of 1 x 128. It gets square blocks of 128 x 128, so that the same "
            "numbers serve its transpose in the input gradient.",
        ),
        Mutant(
            "activation_blocks",
            _forward_activation_blocks,
            "Tokens share a scale in your x: one loud token then rounds its neighbours. "
            "Activations get tiles of 1 x 128.",
        ),
        Mutant(
            "per_tensor",
            _forward_per_tensor,
            "One scale for a whole matrix. Activations get 1 x 128, weights 128 x 128.",
        ),
        Mutant(
            "across",
            _forward_across,
            "Your tiles of x run down the tokens (128 x 1). The sum of this product runs over K: "
            "tiles are 1 x 128.",
        ),
        Mutant(
            "no_scales",
            _forward_no_scales,
            "You multiplied the E4M3 numbers and forgot the scales: y is off by factors that "
            "differ from token to token.",
        ),
        Mutant(
            "divides",
            _forward_divides,
            "You divided by the scales. A scale multiplies on the way back: number = fp8 * scale.",
        ),
        Mutant(
            "keeps_inputs",
            _forward_keeps_inputs,
            "You kept x and the weight as they came. Kept as E4M3 they take a quarter (half of "
            "BF16) of the memory, and backward uses the very numbers that were multiplied.",
        ),
        Mutant(
            "fp32_output",
            _forward_fp32,
            "The sum is fp32, but what leaves the layer is BF16: round y.",
        ),
        Mutant(
            "rounded_output",
            _forward_rounded_output,
            "You quantised the output as well. Inputs of a product are E4M3, outputs are BF16.",
        ),
        Mutant(
            "weight_exact",
            _forward_weight_exact,
            "You multiplied by the weight itself. Both operands have to be E4M3.",
        ),
        Mutant(
            "operands_exact",
            _operands_exact,
            "You multiplied the matrices as they came. The product is made of what was rounded to "
            "E4M3: dequantise both and multiply those.",
        ),
        Mutant(
            "clamped",
            _clamped,
            "You clamped the numbers to FP8's range before they were scaled. The scales bring "
            "them there.",
        ),
    ],
    alternatives=[
        Alternative("blocks_of_k", _forward_blocks_of_k),
        Alternative("library", _forward_library),
        Alternative("by_rows", _by_rows),
    ],
)
def check_forward(c):
    """Ragged shapes, values against tiles rounded in a loop, what is kept, one token."""
    m, k, n = c.size(3, 9), c.size(140, 250), c.size(130, 200)
    x, weight = uneven(c, m, k), uneven(c, n, k)
    y, kept = c.call(x, weight, label="runs and returns y and what is kept", returns=2)
    with c.part():
        c.shape(y, (m, n), "y")
        c.dtype(y, torch.bfloat16, "y")
        expected = rounded(x, 1, 128) @ rounded(weight, 128, 128).T
        c.close(y, expected, "y", rtol=5e-3, atol=tolerance(expected))
    with c.part():
        large, _ = c.call(1e5 * x, weight, returns=2)
        expected = rounded(1e5 * x, 1, 128) @ rounded(weight, 128, 128).T
        label = "an x a hundred thousand times as large"
        c.close(large, expected, label=label, rtol=5e-3, atol=tolerance(expected))
    with c.part():
        c.true(
            lambda: len(kept) == 4 and kept[0].dtype == kept[2].dtype == torch.float8_e4m3fn,
            "x and the weight are kept as E4M3",
            "return (x_q, x_scale, w_q, w_scale), with float8_e4m3fn for the first and third",
        )
        c.shape(kept[1], (m, 2), "the scale of x")
        c.shape(kept[3], (2, 2), "the scale of the weight")
        c.dtype(kept[1], torch.float32, "the scale of x")
        c.dtype(kept[3], torch.float32, "the scale of the weight")
        label = "the kept x times its scales is x, rounded in tiles"
        c.close(dequantize(*kept[:2], TILE), rounded(x, 1, 128), label=label, rtol=1e-6, atol=0)
        label = "the kept weight times its scales is the weight, rounded in blocks"
        whole = rounded(weight, 128, 128)
        c.close(dequantize(*kept[2:], BLOCK), whole, label=label, rtol=1e-6, atol=0)
    with c.part():
        loud = x.clone()
        loud[-1] *= 1000
        again, _ = c.call(loud, weight, returns=2)
        c.close(
            again[:-1], y[:-1], label="a loud token changes no other token's output", rtol=2.0**-7
        )
    with c.part():
        one, _ = c.call(x[:1, :1], weight[:1, :1], returns=2)
        c.close(one, x[:1, :1] * weight[:1, :1], label="one token, one channel", rtol=1e-2)
