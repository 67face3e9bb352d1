"""Which tile a program computes: what the kernels use, and what readers of notebook 09 write."""

import pytest
import torch

from minids3.course.registry import get
from minids3.kernels.grouped import place_of
from minids3.kernels.language import jit, tl


@jit
def _places_kernel(out_ptr, m_tiles, n_tiles, GROUP_M: tl.constexpr):
    program = tl.program_id(0)
    row, column = place_of(program, m_tiles, n_tiles, GROUP_M)
    tl.store(out_ptr + 2 * program, row)
    tl.store(out_ptr + 2 * program + 1, column)


@pytest.mark.parametrize(("rows", "columns", "band"), [(8, 5, 4), (11, 6, 4), (3, 4, 8), (5, 3, 1)])
def test_kernels_and_readers_walk_through_the_tiles_in_bands(device, rows, columns, band):
    out = torch.full((rows * columns, 2), -1, dtype=torch.int32, device=device)
    _places_kernel[(rows * columns,)](out, rows, columns, GROUP_M=band)
    tiles = [(row, column) for row in range(rows) for column in range(columns)]
    walk = sorted(tiles, key=lambda tile: (tile[0] // band, tile[1], tile[0]))
    assert [tuple(tile) for tile in out.tolist()] == walk
    tile_of = get("gemm-order").solution
    assert [tile_of(p, rows, columns, band) for p in range(rows * columns)] == walk
