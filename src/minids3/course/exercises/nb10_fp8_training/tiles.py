"""What the checks expect: every tile rounded in a loop, in fp64, by ``numerics``."""

from __future__ import annotations

import torch
from torch import Tensor

from minids3.numerics import E4M3, round_to


def rounded(x: Tensor, rows: int, columns: int) -> Tensor:
    """``x [M, K]`` as E4M3 tiles of ``rows x columns`` would hold it, in fp64."""
    out = torch.zeros(x.shape, dtype=torch.float64)
    for i in range(0, x.shape[0], rows):
        for j in range(0, x.shape[1], columns):
            place = (slice(i, i + rows), slice(j, j + columns))
            tile = x[place].float()
            scale = tile.abs().max() / 448 if tile.any() else torch.tensor(1.0)
            out[place] = round_to(tile / scale, E4M3, saturate=True).double() * scale.double()
    return out


def uneven(c, rows: int, columns: int) -> Tensor:
    """Normal numbers whose size differs from row to row and column to column, up to 30 times."""
    spread = torch.exp(1.2 * c.randn(rows, 1)) * torch.exp(1.2 * c.randn(1, columns))
    return c.randn(rows, columns) * spread.clamp(0.03, 30)


def tolerance(expected: Tensor, share: float = 4e-3) -> float:
    """An absolute tolerance: a share of the root mean square."""
    return share * float(expected.double().square().mean().sqrt())
