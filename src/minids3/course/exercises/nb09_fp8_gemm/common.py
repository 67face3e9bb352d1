"""Inputs and comparisons that the checks of notebook 09 share."""

from __future__ import annotations

import torch

from minids3.numerics.formats import E4M3, decode
from minids3.ref.quant import dequantize_ref

NAN_CODE = 0x7F


def numbers(codes):
    """The numbers of E4M3 codes, in fp64."""
    return decode(codes.long(), E4M3).double()


def within(x, fill):
    """The same tensor inside longer memory, so that reading past its end finds ``fill``."""
    room = 1 << 15
    memory = torch.full((x.numel() + 2 * room,), fill, dtype=x.dtype)
    memory[room : room + x.numel()] = x.flatten()
    return memory[room : room + x.numel()].view(x.shape)


def codes_of(pair):
    """An operand as kernels read it: E4M3 codes amid NaN codes, and scales amid NaN."""
    q, scale = pair
    return within(q.view(torch.uint8), NAN_CODE), within(scale, float("nan"))


def uneven(c, rows, columns):
    """Numbers whose size changes from row to row and from 128 columns to the next."""
    x = c.randn(rows, columns)
    x *= torch.exp(1.5 * c.randn(-(-columns // 128))).repeat_interleave(128)[:columns]
    return x * torch.exp(c.randn(rows, 1))


def product(a, b, block):
    """``a @ b.T`` of two quantised pairs, in fp64."""
    return dequantize_ref(*a).double() @ dequantize_ref(*b, block).double().T


def rounded_well(codes, x, scale, slack=0.0):
    """Whether each code is the nearest to x / scale, or as near as another; all in fp64.

    ``slack``: how far off x may have been computed, of its shape or a number.
    """
    table = numbers(torch.arange(127)).sort().values  # 0 .. 448
    target = (x.double() / scale.double()).abs().clamp(max=448.0)
    above = torch.searchsorted(table, target.contiguous()).clamp(1, len(table) - 1)
    best = torch.minimum(target - table[above - 1], table[above] - target).abs()
    got = numbers(codes)
    signs = (got == 0) | ((got < 0) == (x < 0))
    allowed = best + 1e-5 * target + slack / scale.double()
    return bool((signs & ((got.abs() - target).abs() <= allowed)).all())
