"""The warm-up: RMSNorm, three lines of arithmetic."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from minids3.course.checker import Checker
from minids3.course.registry import Alternative, Mutant, exercise
from minids3.ref.norm import rms_norm_ref


def rms_norm(x, weight, eps=1e-6):
    """Divide each vector by its root mean square, then scale each channel.

    x [..., D]; weight [D]; eps is added to the mean square
    returns [..., D], in the dtype of x
    """
    x32 = x.float()
    mean_square = x32.square().mean(dim=-1, keepdim=True)
    y = x32 / torch.sqrt(mean_square + eps) * weight.float()
    return y.to(x.dtype)


def _no_sqrt(x, weight, eps=1e-6):
    x32 = x.float()
    return (x32 / (x32.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def _sum(x, weight, eps=1e-6):
    x32 = x.float()
    return (x32 / torch.sqrt(x32.square().sum(-1, keepdim=True) + eps) * weight).to(x.dtype)


def _layer_norm(x, weight, eps=1e-6):
    x32 = x.float()
    x32 = x32 - x32.mean(-1, keepdim=True)
    scale = torch.sqrt(x32.square().mean(-1, keepdim=True) + eps)
    return (x32 / scale * weight).to(x.dtype)


def _whole_tensor(x, weight, eps=1e-6):
    x32 = x.float()
    return (x32 / torch.sqrt(x32.square().mean() + eps) * weight).to(x.dtype)


def _wrong_axis(x, weight, eps=1e-6):
    x32 = x.float()
    return (x32 / torch.sqrt(x32.square().mean(0, keepdim=True) + eps) * weight).to(x.dtype)


def _no_weight(x, weight, eps=1e-6):
    x32 = x.float()
    return (x32 / torch.sqrt(x32.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def _eps_outside(x, weight, eps=1e-6):
    x32 = x.float()
    scale = torch.sqrt(x32.square().mean(-1, keepdim=True)) + eps
    return (x32 / scale * weight).to(x.dtype)


def _no_eps(x, weight, eps=1e-6):
    x32 = x.float()
    return (x32 / torch.sqrt(x32.square().mean(-1, keepdim=True)) * weight).to(x.dtype)


def _returns_fp32(x, weight, eps=1e-6):
    x32 = x.float()
    return x32 / torch.sqrt(x32.square().mean(-1, keepdim=True) + eps) * weight.float()


def _weight_last(x, weight, eps=1e-6):
    x32 = x.float()
    return weight * (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def _own_precision(x, weight, eps=1e-6):
    mean_square = x.square().mean(-1, keepdim=True)
    return (x / torch.sqrt(mean_square + eps) * weight).to(x.dtype)


def _detached(x, weight, eps=1e-6):
    x32 = x.float()
    scale = torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps).detach()
    return (x32 * scale * weight.float()).to(x.dtype)


def _with_torch(x, weight, eps=1e-6):
    return F.rms_norm(x.float(), (x.shape[-1],), weight.float(), eps).to(x.dtype)


def _with_norm(x, weight, eps=1e-6):
    x32 = x.to(torch.float32)
    rms2 = torch.linalg.vector_norm(x32, dim=-1, keepdim=True) ** 2 / x.shape[-1]
    return (x32 * (rms2 + eps) ** -0.5 * weight.float()).to(x.dtype)


def _row_by_row(x, weight, eps=1e-6):
    rows = [
        row / ((row @ row) / row.numel() + eps).sqrt() * weight.float()
        for row in x.float().reshape(-1, x.shape[-1])
    ]
    return torch.stack(rows).reshape(x.shape).to(x.dtype)


def _rounded_before_weight(x, weight, eps=1e-6):
    h = x.to(torch.float32)
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)
    return weight.to(x.dtype) * h.to(x.dtype)


def _in_float64(x, weight, eps=1e-6):
    wide = x.double()
    size = torch.einsum("...d,...d->...", wide, wide)[..., None] / x.shape[-1]
    return (wide / (size + eps) ** 0.5 * weight.double()).to(x.dtype)


def _preallocated(x, weight, eps=1e-6):
    y = torch.zeros(x.shape)
    y += x.float() / (x.float().pow(2).mean(-1, keepdim=True) + eps).sqrt()
    y *= weight.float()
    return y.to(x.dtype)


def _eps_built_in(x, weight, eps=1e-6):
    return rms_norm(x, weight)


@exercise(
    "rms-norm",
    solution=rms_norm,
    notebook="00_start_here",
    title="RMSNorm",
    difficulty=1,
    importance=3,
    minutes=5,
    library=rms_norm_ref,
    hints=(
        "The name, read from the back, is the recipe: Norm divides by the Root of the Mean of the "
        "Squares. Over which of the dimensions of x do you take that mean, and what keeps the "
        "division possible when every number in the row is zero?",
        """
        x32         = x in float32
        mean_square = mean over the last dimension of x32 * x32, kept as a dimension of size 1
        y           = x32 / sqrt(mean_square + eps) * weight
        return y in the dtype x had
        """,
    ),
    mutants=[
        Mutant(
            "no_sqrt",
            _no_sqrt,
            "You divided by the mean square itself. Take its square root, or a row of large "
            "numbers comes out small instead of normal.",
        ),
        Mutant(
            "sum_instead_of_mean",
            _sum,
            "You divided by the length of the row (the sum of squares). The mean divides that "
            "sum by D first, so that the size of a number does not depend on the width.",
        ),
        Mutant(
            "layer_norm",
            _layer_norm,
            "You subtracted the mean first. That is LayerNorm; RMSNorm only rescales and keeps "
            "the mean where it was.",
        ),
        Mutant(
            "whole_tensor",
            _whole_tensor,
            "You took one mean over the whole tensor. Each position has its own: mean over the "
            "last dimension only, with keepdim=True.",
        ),
        Mutant(
            "wrong_axis",
            _wrong_axis,
            "You took the mean over the first dimension, so the examples of a batch now "
            "influence each other. The mean belongs over the last dimension.",
        ),
        Mutant(
            "no_weight",
            _no_weight,
            "The weight is missing: after the division each channel is multiplied by its own "
            "learned scale.",
        ),
        Mutant(
            "eps_outside",
            _eps_outside,
            "You added eps to the root. It belongs under the root, next to the mean square.",
        ),
        Mutant(
            "no_eps",
            _no_eps,
            "Without eps a row of zeros is 0 / 0, which is nan, and one nan spoils the model.",
        ),
        Mutant(
            "returns_fp32",
            _returns_fp32,
            "You computed in float32, which is right, and stayed there. Return to the dtype of x, "
            "or the rest of the model silently runs at twice the memory.",
        ),
        Mutant(
            "weight_last",
            _weight_last,
            "You returned to the dtype of x before the weight came. A float32 weight pulls the "
            "product up again: convert at the very end.",
        ),
        Mutant(
            "own_precision",
            _own_precision,
            "You squared in the precision of x. bfloat16 keeps 8 bits: convert to float32 first, "
            "and back at the very end.",
        ),
        Mutant(
            "detached",
            _detached,
            "The scale depends on x too, so the gradient must flow through it. Something "
            "(detach, no_grad, item) cut it off.",
        ),
        Mutant(
            "eps_built_in",
            _eps_built_in,
            "You built 1e-6 in. eps is an argument: with another one the result is another one.",
        ),
    ],
    alternatives=[
        Alternative("with_torch", _with_torch),
        Alternative("with_norm", _with_norm),
        Alternative("row_by_row", _row_by_row),
        Alternative("rounded_before_weight", _rounded_before_weight),
        Alternative("in_float64", _in_float64),
        Alternative("preallocated", _preallocated),
    ],
)
def check_rms_norm(c: Checker) -> None:
    """Values, what a zero row gives, precision and the gradient."""
    b, t, d = c.size(2, 3), c.size(4, 6), 2 * c.size(4, 6)
    x = 3.0 * c.randn(b, t, d) + 1.0
    weight = 1.0 + 0.5 * c.randn(d)
    y = c.call(x, weight, label=f"runs on x [{b}, {t}, {d}]")
    c.shape(y, x.shape, "y")
    with c.part():
        rows = c.call(x, torch.ones(d))
        square = rows.float().square().mean(-1)
        ones = torch.ones(b, t)
        c.close(square, ones, label="with weight 1 every row has mean square 1", rtol=1e-3)
    with c.part():
        c.close(y, rms_norm_ref(x, weight), "y")
    with c.part():
        zero = c.call(torch.zeros(2, d), weight)
        c.close(zero, torch.zeros(2, d), label="a row of zeros stays zero")
    with c.part():
        small = 1e-3 * c.randn(2, d)
        got = c.call(small, weight, 1e-4)
        c.close(got, rms_norm_ref(small, weight, 1e-4), label="eps is under the root")
        got = c.call(small, weight, 0.0)
        c.close(got, rms_norm_ref(small, weight, 0.0), label="eps = 0 adds nothing")
    with c.part():
        half = (3.0 * c.randn(2, t, 64)).to(torch.bfloat16)
        gain = (1.0 + 0.5 * c.randn(64)).to(torch.bfloat16)
        low = c.call(half, gain)
        c.dtype(low, torch.bfloat16, label="bfloat16 in, bfloat16 out")
        label = "bfloat16 values are right to one step"
        c.close(low, rms_norm_ref(half, gain), label=label, rtol=2.0**-7)
        label = "a float32 weight changes nothing about that: bfloat16 out"
        c.dtype(c.call(half, gain.float()), torch.bfloat16, label=label)
    with c.part():
        loud = (300.0 * (1.0 + c.rand(2, d))).half()
        label = "statistics are taken in float32: float16 numbers of 300 have squares too"
        got = c.call(loud, weight.half())
        c.dtype(got, torch.float16, label="float16 in, float16 out")
        c.close(got, rms_norm_ref(loud, weight.half()), label=label, rtol=2.0**-8)
    with c.part():
        label = "an x that is not contiguous gives the same"
        c.close(c.call(c.strided(x), weight), rms_norm_ref(x, weight), label=label)
    with c.part():
        c.grad(
            (x, weight),
            (0, 1),
            rms_norm_ref,
            label="the gradient reaches x and weight",
            names=("x", "weight"),
        )
