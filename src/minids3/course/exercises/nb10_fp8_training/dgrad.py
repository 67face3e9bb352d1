"""The gradient of the input."""

from __future__ import annotations

import torch

from minids3.course.exercises.nb10_fp8_training.tiles import rounded, tolerance, uneven
from minids3.course.registry import Alternative, Mutant, exercise
from minids3.ref.gemm import fp8_dgrad_ref
from minids3.ref.quant import dequantize_ref as dequantize
from minids3.ref.quant import quantize_ref as quantize

TILE, BLOCK = (1, 128), (128, 128)


def fp8_dgrad(grad, w_q, w_scale):
    """Gradient of an FP8 linear layer's input.

    grad [M, N], the gradient of y; w_q [N, K] E4M3 and w_scale, as kept
    returns [M, K] bf16
    """
    g_q, g_scale = quantize(grad, TILE)
    weight = dequantize(w_q, w_scale, BLOCK)
    return (dequantize(g_q, g_scale, TILE) @ weight).bfloat16()


def _with(grad, w_q, w_scale, tile):
    weight = dequantize(w_q, w_scale, BLOCK)
    return (dequantize(*quantize(grad, tile), tile) @ weight).bfloat16()


def _dgrad_blocks(grad, w_q, w_scale):
    return _with(grad, w_q, w_scale, BLOCK)


def _dgrad_across(grad, w_q, w_scale):
    return _with(grad, w_q, w_scale, (128, 1))


def _dgrad_per_tensor(grad, w_q, w_scale):
    return _with(grad, w_q, w_scale, None)


def _dgrad_whole_token(grad, w_q, w_scale):
    return _with(grad, w_q, w_scale, (1, grad.shape[1]))


def _dgrad_exact(grad, w_q, w_scale):
    return (grad.float() @ dequantize(w_q, w_scale, BLOCK)).bfloat16()


def _dgrad_cast(grad, w_q, w_scale):
    plain = grad.float().clamp(-448, 448).to(torch.float8_e4m3fn).float()
    return (plain @ dequantize(w_q, w_scale, BLOCK)).bfloat16()


def _dgrad_e5m2(grad, w_q, w_scale):
    _, scale = quantize(grad, TILE)
    wide = scale.repeat_interleave(128, 1)[:, : grad.shape[1]]
    rough = (grad.float() / wide).to(torch.float8_e5m2).float() * wide
    return (rough @ dequantize(w_q, w_scale, BLOCK)).bfloat16()


def _dgrad_weight_again(grad, w_q, w_scale):
    turned = dequantize(w_q, w_scale, BLOCK).T.contiguous()
    weight = dequantize(*quantize(turned, TILE), TILE).T
    return (dequantize(*quantize(grad, TILE), TILE) @ weight).bfloat16()


def _dgrad_unscaled_weight(grad, w_q, w_scale):
    return (dequantize(*quantize(grad, TILE), TILE) @ w_q.float()).bfloat16()


def _dgrad_fp32(grad, w_q, w_scale):
    return dequantize(*quantize(grad, TILE), TILE) @ dequantize(w_q, w_scale, BLOCK)


def _dgrad_blocks_of_n(grad, w_q, w_scale):
    g_q, g_scale = quantize(grad, TILE)
    total = torch.zeros(grad.shape[0], w_q.shape[1])
    columns = torch.arange(w_q.shape[1]) // 128
    for n in range(g_scale.shape[1]):
        part = slice(128 * n, 128 * n + 128)
        product = g_q[:, part].float() @ w_q[part].float()
        total += product * g_scale[:, n, None] * w_scale[n, columns]
    return total.bfloat16()


def _dgrad_library(grad, w_q, w_scale):
    return fp8_dgrad_ref(*quantize(grad, TILE), w_q, w_scale)


@exercise(
    "fp8-dgrad",
    solution=fp8_dgrad,
    notebook="10_fp8_training",
    title="The gradient of the input",
    difficulty=2,
    importance=5,
    minutes=6,
    library=_dgrad_library,
    hints=(
        "dx = dy @ W sums over N. Along which axis do the tiles of dy run, then? And does the "
        "kept weight need anything but its scales?",
        "g_q, g_scale = quantize(grad, TILE)\n"
        "weight = dequantize(w_q, w_scale, BLOCK)     # [N, K], as kept\n"
        "return (dequantized grad @ weight) as bf16",
    ),
    mutants=[
        Mutant(
            "block_gradient",
            _dgrad_blocks,
            "Your gradient has blocks of 128 x 128, so tokens share a scale. That is the variant "
            "with which a 16B model diverged (TR, appendix B.2): tiles of 1 x 128.",
        ),
        Mutant(
            "across",
            _dgrad_across,
            "Your tiles run down the tokens. This product sums over N: tiles are 1 x 128. The "
            "128 x 1 ones come with the weight's gradient.",
        ),
        Mutant(
            "per_tensor",
            _dgrad_per_tensor,
            "One scale for the whole gradient, though tokens differ a lot: 1 x 128.",
        ),
        Mutant(
            "whole_token",
            _dgrad_whole_token,
            "You have one scale per token for all of N. Every 128 numbers of it have their own.",
        ),
        Mutant(
            "exact_gradient",
            _dgrad_exact,
            "You multiplied the gradient as it came. Both operands of the product are E4M3.",
        ),
        Mutant(
            "plain_cast",
            _dgrad_cast,
            "You cast without a scale. Gradients are small, and below 2^-10 E4M3 has only zero.",
        ),
        Mutant(
            "e5m2",
            _dgrad_e5m2,
            "That is E5M2, the usual choice for gradients before. With a scale per tile its range "
            "is not needed, and E4M3 has twice its resolution (TR section 3.3.2).",
        ),
        Mutant(
            "weight_again",
            _dgrad_weight_again,
            "You quantised the weight a second time, transposed. A square block is a block of the "
            "transpose, too: the kept numbers are good as they are.",
        ),
        Mutant(
            "unscaled_weight",
            _dgrad_unscaled_weight,
            "You read the weight without its scales.",
        ),
        Mutant("fp32_output", _dgrad_fp32, "The input's gradient leaves the layer as BF16."),
    ],
    alternatives=[
        Alternative("blocks_of_n", _dgrad_blocks_of_n),
        Alternative("library", _dgrad_library),
    ],
)
def check_dgrad(c):
    """Values against tiles rounded in a loop, tiny gradients, zero gradients, one token."""
    m, k, n = c.size(3, 9), c.size(130, 200), c.size(140, 250)
    grad = 1e-4 * uneven(c, m, n)
    w_q, w_scale = quantize(uneven(c, n, k), BLOCK)
    weight = dequantize(w_q, w_scale, BLOCK).double()
    dx = c.call(grad, w_q, w_scale, label="runs")
    with c.part():
        c.shape(dx, (m, k), "dx")
        c.dtype(dx, torch.bfloat16, "dx")
        expected = rounded(grad, 1, 128) @ weight
        c.close(dx, expected, "dx", rtol=5e-3, atol=tolerance(expected))
    with c.part():
        tiny = c.call(grad * 2**-20, w_q, w_scale)
        label = "a gradient of a millionth of that size survives"
        c.close(tiny.double() * 2**20, dx, label=label, rtol=1e-2, atol=tolerance(expected))
    with c.part():
        silent = grad.clone()
        silent[0] = 0
        zero = c.call(silent, w_q, w_scale)
        c.true(not zero[0].any(), "no gradient in, none out")
    with c.part():
        one = c.call(grad[:1], w_q, w_scale)
        c.close(one, dx[:1], label="one token alone gives the same", rtol=2.0**-7, atol=1e-8)
    with c.part():
        large = c.call(1e9 * grad, w_q, w_scale)
        expected = rounded(1e9 * grad, 1, 128) @ weight
        label = "a gradient a billion times as large"
        c.close(large, expected, label=label, rtol=5e-3, atol=tolerance(expected))
    with c.part():
        # Right above the middle of an even code and the next: in BF16 it is the middle itself.
        even = (2 * c.randint(8, 63, 1, n)).to(torch.uint8)
        low, high = (t.view(torch.float8_e4m3fn).float() for t in (even, even + 1))
        beside = (low + high) / 2 * (1 + 2.0**-14)
        beside[:, [0, 128]] = 448.0
        beside[:, 128:] *= 0.625  # the scales are 1 and 0.625, exactly
        expected = rounded(beside, 1, 128) @ weight
        label = "a number right beside the middle of two codes goes to the nearer"
        dx = c.call(beside, w_q, w_scale)
        c.close(dx, expected, label=label, rtol=5e-3, atol=tolerance(expected))
