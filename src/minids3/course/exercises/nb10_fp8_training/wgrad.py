"""The gradient of the weight."""

from __future__ import annotations

import torch

from minids3.course.exercises.nb10_fp8_training.tiles import rounded, tolerance, uneven
from minids3.course.registry import Alternative, Mutant, exercise
from minids3.ref.gemm import fp8_wgrad_ref, requantize_transposed_ref
from minids3.ref.quant import dequantize_ref as dequantize
from minids3.ref.quant import quantize_ref as quantize

TILE, BLOCK = (1, 128), (128, 128)


def fp8_wgrad(grad, x_q, x_scale):
    """Gradient of an FP8 linear layer's weight.

    grad [M, N], the gradient of y; x_q [M, K] E4M3 and x_scale, as kept
    returns [N, K] fp32
    """
    x = dequantize(x_q, x_scale, TILE)
    xt_q, xt_scale = quantize(x.T.contiguous(), TILE)  # tiles of 128 tokens
    gt_q, gt_scale = quantize(grad.T.contiguous(), TILE)
    return dequantize(gt_q, gt_scale, TILE) @ dequantize(xt_q, xt_scale, TILE).T


def _turned(x, tile=TILE):
    return dequantize(*quantize(x.T.contiguous(), tile), tile)


def _wgrad_not_again(grad, x_q, x_scale):
    return _turned(grad) @ dequantize(x_q, x_scale, TILE)


def _wgrad_row_tiles(grad, x_q, x_scale):
    x = _turned(dequantize(x_q, x_scale, TILE))
    return dequantize(*quantize(grad, TILE), TILE).T @ x.T


def _wgrad_twice(grad, x_q, x_scale):
    x = _turned(dequantize(x_q, x_scale, TILE))
    return _turned(dequantize(*quantize(grad, TILE), TILE)) @ x.T


def _wgrad_transposed(grad, x_q, x_scale):
    return fp8_wgrad(grad, x_q, x_scale).T


def _wgrad_bf16(grad, x_q, x_scale):
    return fp8_wgrad(grad, x_q, x_scale).bfloat16()


def _wgrad_rounded_to_bf16(grad, x_q, x_scale):
    return fp8_wgrad(grad, x_q, x_scale).bfloat16().float()


def _wgrad_blocks(grad, x_q, x_scale):
    return _turned(grad, BLOCK) @ _turned(dequantize(x_q, x_scale, TILE), BLOCK).T


def _wgrad_all_tokens(grad, x_q, x_scale):
    tile = (1, len(grad))
    return _turned(grad, tile) @ _turned(dequantize(x_q, x_scale, TILE), tile).T


def _wgrad_exact_gradient(grad, x_q, x_scale):
    return grad.float().T @ _turned(dequantize(x_q, x_scale, TILE)).T


def _wgrad_unscaled(grad, x_q, x_scale):
    return _turned(grad) @ _turned(x_q.float()).T


def _wgrad_mean(grad, x_q, x_scale):
    return fp8_wgrad(grad, x_q, x_scale) / grad.shape[0]


def _wgrad_tall_tiles(grad, x_q, x_scale):
    tall = (128, 1)
    x = dequantize(*quantize(dequantize(x_q, x_scale, TILE), tall), tall)
    g = dequantize(*quantize(grad, tall), tall)
    return torch.einsum("mn,mk->nk", g, x)


def _wgrad_library(grad, x_q, x_scale):
    x_t = requantize_transposed_ref(x_q, x_scale)
    return fp8_wgrad_ref(*quantize(grad.T.contiguous(), TILE), *x_t)


@exercise(
    "fp8-wgrad",
    solution=fp8_wgrad,
    notebook="10_fp8_training",
    title="The gradient of the weight",
    difficulty=3,
    importance=5,
    minutes=10,
    library=_wgrad_library,
    hints=(
        "dW = dy^T @ x sums over the tokens. Along the axis that is summed, a scale must stay the "
        "same for 128 terms. Which 128 are those here, and how was x stored?",
        "x = dequantize(x_q, x_scale, TILE)                 # undo the tiles along K\n"
        "quantize x transposed, and grad transposed, in TILE  # now along the tokens\n"
        "return dequantized grad^T [N, M] @ (dequantized x^T [K, M]) transposed, in fp32",
    ),
    mutants=[
        Mutant(
            "not_again",
            _wgrad_not_again,
            "x still has its tiles along K. Here the sum runs over tokens, and a scale that "
            "changes from token to token cannot be pulled out of it: transpose and quantise again.",
        ),
        Mutant(
            "row_tiles",
            _wgrad_row_tiles,
            "The gradient has tiles along N. The sum runs over tokens: transpose first, then "
            "quantise.",
        ),
        Mutant(
            "rounded_twice",
            _wgrad_twice,
            "You rounded the gradient twice, along N and then along the tokens. It is at hand in "
            "full: quantise it once, transposed. Only x comes from memory as E4M3.",
        ),
        Mutant(
            "transposed",
            _wgrad_transposed,
            "That is the gradient's transpose, [K, N]. A weight is [N, K], and so is its gradient.",
        ),
        Mutant(
            "bf16",
            _wgrad_bf16,
            "The weight's gradient stays fp32: it is summed over micro-batches, and it belongs to "
            "an fp32 master weight.",
        ),
        Mutant(
            "rounded_to_bf16",
            _wgrad_rounded_to_bf16,
            "The dtype says fp32, but the numbers went through BF16. Leave them as summed.",
        ),
        Mutant(
            "blocks",
            _wgrad_blocks,
            "Blocks of 128 x 128: channels share a scale. Both operands here have tiles of 1 x 128 "
            "of the transpose.",
        ),
        Mutant(
            "all_tokens",
            _wgrad_all_tokens,
            "All tokens of a channel share a scale. Every 128 of them have their own.",
        ),
        Mutant(
            "exact_gradient",
            _wgrad_exact_gradient,
            "You multiplied the gradient as it came. Both operands of the product are E4M3.",
        ),
        Mutant(
            "unscaled",
            _wgrad_unscaled,
            "You read x without its scales.",
        ),
        Mutant(
            "mean",
            _wgrad_mean,
            "You averaged over tokens. The mean is in the loss already: sum.",
        ),
    ],
    alternatives=[
        Alternative("tall_tiles", _wgrad_tall_tiles),
        Alternative("library", _wgrad_library),
    ],
)
def check_wgrad(c):
    """More tokens than a tile, values against tiles rounded in a loop, one token, no gradient."""
    m, k, n = c.size(140, 250), c.size(5, 40), c.size(130, 150)
    x_q, x_scale = quantize(uneven(c, m, k), TILE)
    grad = 1e-4 * uneven(c, m, n)
    dw = c.call(grad, x_q, x_scale, label="runs")
    kept = dequantize(x_q, x_scale, TILE)
    expected = rounded(grad, 128, 1).T @ rounded(kept, 128, 1)
    with c.part():
        c.shape(dw, (n, k), "dW")
        c.dtype(dw, torch.float32, "dW")
        c.close(dw, expected, "dW", rtol=1e-4, atol=tolerance(expected, 1e-4))
    with c.part():
        one = c.call(grad[:1], x_q[:1], x_scale[:1])
        alone = rounded(grad[:1], 1, 1).T @ rounded(kept[:1], 1, 1)
        c.close(one, alone, label="one token", rtol=1e-4, atol=tolerance(alone, 1e-5))
    with c.part():
        silent = c.call(torch.zeros_like(grad), x_q, x_scale)
        c.true(not silent.any(), "no gradient in, none out")
    with c.part():
        large = c.call(1e9 * grad, x_q, x_scale)
        expected = rounded(1e9 * grad, 128, 1).T @ rounded(kept, 128, 1)
        label = "a gradient a billion times as large"
        c.close(large, expected, label=label, rtol=1e-4, atol=tolerance(expected, 1e-4))
