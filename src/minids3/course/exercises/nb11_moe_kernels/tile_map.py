"""The tile map: each program finds its expert and its rows in the counts."""

from __future__ import annotations

import torch

from minids3.course.registry import Alternative, Mutant, exercise
from minids3.kernels.language import tl


# fmt: off
def tile_map_kernel(counts_ptr, map_ptr, n_experts, BLOCK: tl.constexpr,
                    E_PAD: tl.constexpr):
    """Program t writes (expert, first row, end) of tile t.

    counts [E] int64: rows per expert, which are sorted by expert
    map [programs, 3] int32: the tile's expert, its first row, and the end
    of that EXPERT's rows (a full tile may end before it, none after);
    -1, 0, 0 for a program with no tile left
    BLOCK: rows of a tile; E_PAD: a power of two, at least E
    """
    tile = tl.program_id(0)
    e = tl.arange(0, E_PAD)
    counts = tl.load(counts_ptr + e, mask=e < n_experts, other=0)
    tiles = (counts + BLOCK - 1) // BLOCK
    expert = tl.sum((tl.cumsum(tiles, 0) <= tile).to(tl.int32), 0)
    start = tl.sum(tl.where(e < expert, counts, 0), 0)
    before = tl.sum(tl.where(e < expert, tiles, 0), 0)
    first = start + (tile - before) * BLOCK
    end = start + tl.sum(tl.where(e == expert, counts, 0), 0)
    found = expert < n_experts
    tl.store(map_ptr + 3 * tile, tl.where(found, expert, -1))
    tl.store(map_ptr + 3 * tile + 1, tl.where(found, first, 0))
    tl.store(map_ptr + 3 * tile + 2, tl.where(found, end, 0))
# fmt: on


def _map_no_mask(counts_ptr, map_ptr, n_experts, BLOCK: tl.constexpr, E_PAD: tl.constexpr):
    tile = tl.program_id(0)
    e = tl.arange(0, E_PAD)
    counts = tl.load(counts_ptr + e)
    tiles = (counts + BLOCK - 1) // BLOCK
    expert = tl.sum((tl.cumsum(tiles, 0) <= tile).to(tl.int32), 0)
    start = tl.sum(tl.where(e < expert, counts, 0), 0)
    first = start + (tile - tl.sum(tl.where(e < expert, tiles, 0), 0)) * BLOCK
    end = start + tl.sum(tl.where(e == expert, counts, 0), 0)
    found = expert < n_experts
    tl.store(map_ptr + 3 * tile, tl.where(found, expert, -1))
    tl.store(map_ptr + 3 * tile + 1, tl.where(found, first, 0))
    tl.store(map_ptr + 3 * tile + 2, tl.where(found, end, 0))


def _map_strict(counts_ptr, map_ptr, n_experts, BLOCK: tl.constexpr, E_PAD: tl.constexpr):
    tile = tl.program_id(0)
    e = tl.arange(0, E_PAD)
    counts = tl.load(counts_ptr + e, mask=e < n_experts, other=0)
    tiles = (counts + BLOCK - 1) // BLOCK
    expert = tl.sum((tl.cumsum(tiles, 0) < tile).to(tl.int32), 0)
    start = tl.sum(tl.where(e < expert, counts, 0), 0)
    first = start + (tile - tl.sum(tl.where(e < expert, tiles, 0), 0)) * BLOCK
    end = start + tl.sum(tl.where(e == expert, counts, 0), 0)
    found = expert < n_experts
    tl.store(map_ptr + 3 * tile, tl.where(found, expert, -1))
    tl.store(map_ptr + 3 * tile + 1, tl.where(found, first, 0))
    tl.store(map_ptr + 3 * tile + 2, tl.where(found, end, 0))


def _map_floor(counts_ptr, map_ptr, n_experts, BLOCK: tl.constexpr, E_PAD: tl.constexpr):
    tile = tl.program_id(0)
    e = tl.arange(0, E_PAD)
    counts = tl.load(counts_ptr + e, mask=e < n_experts, other=0)
    tiles = counts // BLOCK
    expert = tl.sum((tl.cumsum(tiles, 0) <= tile).to(tl.int32), 0)
    start = tl.sum(tl.where(e < expert, counts, 0), 0)
    first = start + (tile - tl.sum(tl.where(e < expert, tiles, 0), 0)) * BLOCK
    end = start + tl.sum(tl.where(e == expert, counts, 0), 0)
    found = expert < n_experts
    tl.store(map_ptr + 3 * tile, tl.where(found, expert, -1))
    tl.store(map_ptr + 3 * tile + 1, tl.where(found, first, 0))
    tl.store(map_ptr + 3 * tile + 2, tl.where(found, end, 0))


def _map_every_block(counts_ptr, map_ptr, n_experts, BLOCK: tl.constexpr, E_PAD: tl.constexpr):
    tile = tl.program_id(0)
    e = tl.arange(0, E_PAD)
    counts = tl.load(counts_ptr + e, mask=e < n_experts, other=0)
    first = tile * BLOCK
    expert = tl.sum((tl.cumsum(counts, 0) <= first).to(tl.int32), 0)
    end = tl.sum(tl.where(e <= expert, counts, 0), 0)
    found = expert < n_experts
    tl.store(map_ptr + 3 * tile, tl.where(found, expert, -1))
    tl.store(map_ptr + 3 * tile + 1, tl.where(found, first, 0))
    tl.store(map_ptr + 3 * tile + 2, tl.where(found, end, 0))


def _map_first_from_zero(counts_ptr, map_ptr, n_experts, BLOCK: tl.constexpr, E_PAD: tl.constexpr):
    tile = tl.program_id(0)
    e = tl.arange(0, E_PAD)
    counts = tl.load(counts_ptr + e, mask=e < n_experts, other=0)
    tiles = (counts + BLOCK - 1) // BLOCK
    expert = tl.sum((tl.cumsum(tiles, 0) <= tile).to(tl.int32), 0)
    start = tl.sum(tl.where(e < expert, counts, 0), 0)
    end = start + tl.sum(tl.where(e == expert, counts, 0), 0)
    found = expert < n_experts
    tl.store(map_ptr + 3 * tile, tl.where(found, expert, -1))
    tl.store(map_ptr + 3 * tile + 1, tl.where(found, tile * BLOCK, 0))
    tl.store(map_ptr + 3 * tile + 2, tl.where(found, end, 0))


def _map_start_only(counts_ptr, map_ptr, n_experts, BLOCK: tl.constexpr, E_PAD: tl.constexpr):
    tile = tl.program_id(0)
    e = tl.arange(0, E_PAD)
    counts = tl.load(counts_ptr + e, mask=e < n_experts, other=0)
    tiles = (counts + BLOCK - 1) // BLOCK
    expert = tl.sum((tl.cumsum(tiles, 0) <= tile).to(tl.int32), 0)
    start = tl.sum(tl.where(e < expert, counts, 0), 0)
    end = start + tl.sum(tl.where(e == expert, counts, 0), 0)
    found = expert < n_experts
    tl.store(map_ptr + 3 * tile, tl.where(found, expert, -1))
    tl.store(map_ptr + 3 * tile + 1, tl.where(found, start, 0))
    tl.store(map_ptr + 3 * tile + 2, tl.where(found, end, 0))


def _map_full_tiles(counts_ptr, map_ptr, n_experts, BLOCK: tl.constexpr, E_PAD: tl.constexpr):
    tile = tl.program_id(0)
    e = tl.arange(0, E_PAD)
    counts = tl.load(counts_ptr + e, mask=e < n_experts, other=0)
    tiles = (counts + BLOCK - 1) // BLOCK
    expert = tl.sum((tl.cumsum(tiles, 0) <= tile).to(tl.int32), 0)
    start = tl.sum(tl.where(e < expert, counts, 0), 0)
    first = start + (tile - tl.sum(tl.where(e < expert, tiles, 0), 0)) * BLOCK
    found = expert < n_experts
    tl.store(map_ptr + 3 * tile, tl.where(found, expert, -1))
    tl.store(map_ptr + 3 * tile + 1, tl.where(found, first, 0))
    tl.store(map_ptr + 3 * tile + 2, tl.where(found, first + BLOCK, 0))


def _map_clipped(counts_ptr, map_ptr, n_experts, BLOCK: tl.constexpr, E_PAD: tl.constexpr):
    tile = tl.program_id(0)
    e = tl.arange(0, E_PAD)
    counts = tl.load(counts_ptr + e, mask=e < n_experts, other=0)
    tiles = (counts + BLOCK - 1) // BLOCK
    expert = tl.sum((tl.cumsum(tiles, 0) <= tile).to(tl.int32), 0)
    start = tl.sum(tl.where(e < expert, counts, 0), 0)
    first = start + (tile - tl.sum(tl.where(e < expert, tiles, 0), 0)) * BLOCK
    end = start + tl.sum(tl.where(e == expert, counts, 0), 0)
    found = expert < n_experts
    tl.store(map_ptr + 3 * tile, tl.where(found, expert, -1))
    tl.store(map_ptr + 3 * tile + 1, tl.where(found, first, 0))
    tl.store(map_ptr + 3 * tile + 2, tl.where(found, tl.minimum(first + BLOCK, end), 0))


def _map_no_other(counts_ptr, map_ptr, n_experts, BLOCK: tl.constexpr, E_PAD: tl.constexpr):
    tile = tl.program_id(0)
    e = tl.arange(0, E_PAD)
    counts = tl.load(counts_ptr + e, mask=e < n_experts)
    tiles = (counts + BLOCK - 1) // BLOCK
    expert = tl.sum((tl.cumsum(tiles, 0) <= tile).to(tl.int32), 0)
    start = tl.sum(tl.where(e < expert, counts, 0), 0)
    first = start + (tile - tl.sum(tl.where(e < expert, tiles, 0), 0)) * BLOCK
    end = start + tl.sum(tl.where(e == expert, counts, 0), 0)
    found = expert < n_experts
    tl.store(map_ptr + 3 * tile, tl.where(found, expert, -1))
    tl.store(map_ptr + 3 * tile + 1, tl.where(found, first, 0))
    tl.store(map_ptr + 3 * tile + 2, tl.where(found, end, 0))


def _map_last_repeats(counts_ptr, map_ptr, n_experts, BLOCK: tl.constexpr, E_PAD: tl.constexpr):
    tile = tl.program_id(0)
    e = tl.arange(0, E_PAD)
    counts = tl.load(counts_ptr + e, mask=e < n_experts, other=0)
    tiles = (counts + BLOCK - 1) // BLOCK
    expert = tl.sum((tl.cumsum(tiles, 0) <= tile).to(tl.int32), 0)
    expert = tl.minimum(expert, n_experts - 1)
    start = tl.sum(tl.where(e < expert, counts, 0), 0)
    first = start + (tile - tl.sum(tl.where(e < expert, tiles, 0), 0)) * BLOCK
    end = start + tl.sum(tl.where(e == expert, counts, 0), 0)
    tl.store(map_ptr + 3 * tile, expert)
    tl.store(map_ptr + 3 * tile + 1, first)
    tl.store(map_ptr + 3 * tile + 2, end)


def _map_loop(counts_ptr, map_ptr, n_experts, BLOCK: tl.constexpr, E_PAD: tl.constexpr):
    tile = tl.program_id(0).to(tl.int64)
    left, row, expert, first, end = tile, tile * 0, tile * 0 - 1, tile * 0, tile * 0
    for e in range(n_experts):
        count = tl.load(counts_ptr + e)
        tiles = tl.cdiv(count, BLOCK)
        mine = (left >= 0) & (left < tiles)
        expert = tl.where(mine, e, expert)
        first = tl.where(mine, row + left * BLOCK, first)
        end = tl.where(mine, row + count, end)
        left = tl.where(mine, -1, left - tiles)
        row += count
    tl.store(map_ptr + 3 * tile, expert.to(tl.int32))
    tl.store(map_ptr + 3 * tile + 1, first.to(tl.int32))
    tl.store(map_ptr + 3 * tile + 2, end.to(tl.int32))


def _map_mine(counts_ptr, map_ptr, n_experts, BLOCK: tl.constexpr, E_PAD: tl.constexpr):
    tile = tl.program_id(0)
    e = tl.arange(0, E_PAD)
    counts = tl.load(counts_ptr + e, mask=e < n_experts, other=0).to(tl.int32)
    ends = tl.cumsum(counts, 0)
    tiles = tl.cdiv(counts, BLOCK)
    tile_ends = tl.cumsum(tiles, 0)
    mine = (tile_ends > tile) & (tile_ends - tiles <= tile)
    first = ends - counts + (tile - tile_ends + tiles) * BLOCK
    tl.store(map_ptr + 3 * tile, tl.max(tl.where(mine, e, -1), 0))
    tl.store(map_ptr + 3 * tile + 1, tl.max(tl.where(mine, first, 0), 0))
    tl.store(map_ptr + 3 * tile + 2, tl.max(tl.where(mine, ends, 0), 0))


@exercise(
    "moe-tile-map",
    solution=tile_map_kernel,
    notebook="11_moe_kernels",
    title="Which expert am I?",
    difficulty=4,
    importance=5,
    minutes=15,
    kernel=True,
    hints=(
        "Program 5 holds the running sum of tiles, say 2, 2, 5, 6. How many of these ends are "
        "already before it, and what has that number to do with its expert? Which of "
        "<= and < lets it skip an expert without tiles?",
        "counts = load E_PAD lanes, masked, other = 0\n"
        "tiles = ceil(counts / BLOCK)\n"
        "expert = how many of cumsum(tiles) are <= tile\n"
        "start, before = sums of counts and of tiles over lanes e < expert\n"
        "first = start + (tile - before) * BLOCK\n"
        "end = start + the count of lane e == expert\n"
        "if expert reached n_experts there is no tile: store -1, 0, 0",
    ),
    mutants=[
        Mutant(
            "no_mask",
            _map_no_mask,
            "You loaded E_PAD counts, and after the E-th comes somebody else's memory: mask the "
            "load, with other=0.",
        ),
        Mutant(
            "strict",
            _map_strict,
            "Tile t comes after every expert whose tiles end at t or before: compare with <=. "
            "With < the first tile of an expert goes to the one before.",
        ),
        Mutant(
            "floor",
            _map_floor,
            "You rounded an expert's tiles down, so its last rows have no program.",
        ),
        Mutant(
            "every_block",
            _map_every_block,
            "You cut the sorted rows every BLOCK rows, wherever experts end. Tiles then run from "
            "one expert into the next: each expert starts a tile of its own.",
        ),
        Mutant(
            "first_from_zero",
            _map_first_from_zero,
            "first is tile * BLOCK, as if all earlier tiles were full. Start at the expert's first "
            "row, and count tiles from the expert's own first one.",
        ),
        Mutant(
            "start_only",
            _map_start_only,
            "Every tile of an expert starts at the expert's first row. Its second tile starts "
            "BLOCK rows later.",
        ),
        Mutant(
            "full_tiles",
            _map_full_tiles,
            "You wrote the end of a full tile. Asked for is where the expert's rows end: a ragged "
            "tile has to stop there.",
        ),
        Mutant(
            "clipped_end",
            _map_clipped,
            "You wrote where the tile ends. Asked for is where its expert's rows end, which is the "
            "same for all of the expert's tiles.",
        ),
        Mutant(
            "no_other",
            _map_no_other,
            "The lanes that the mask leaves out are undefined, and they enter the running sum. Say "
            "other=0.",
        ),
        Mutant(
            "last_repeats",
            _map_last_repeats,
            "Programs without a tile think that they are the last expert's. They get -1, 0, 0.",
        ),
    ],
    alternatives=[
        Alternative("loop", _map_loop),
        Alternative("mine", _map_mine),
    ],
)
def check_tile_map(c):
    """Maps written down by a loop: ragged and full tiles, empty experts, surplus programs."""
    block = c.choice([4, 8])
    n_experts = c.size(5, 6)
    ragged = [c.size(1, block - 1) + block * c.size(0, 2) for _ in range(n_experts)]
    ragged[1] = ragged[-1] = 0
    ragged[2] = 2 * block
    ragged[3] = block + 1
    label = f"runs, {n_experts} experts in 8 lanes, tiles of {block}"
    _part(c, ragged, block, 8, "the ragged routing", label)
    with c.part():
        _part(c, [0, 0, 3, 0], block, 4, "empty experts first and last")
    with c.part():
        _part(c, [block, 3 * block, block], block, 4, "full tiles only")
    with c.part():
        _part(c, [2 * block + 1], block, 2, "a single expert")
    with c.part():
        _part(c, [33333, 0, 5], 2048, 4, "tens of thousands of rows")
    with c.part():
        _part(c, [c.size(0, 9) for _ in range(11)] + [3], 8, 16, "twelve experts in 16 lanes")


def _part(c, counts, block, pad, name, label=None):
    rows = sum(counts)
    programs = rows // block + min(len(counts), rows)
    behind = torch.full((len(counts) + 16,), 3)  # what an unmasked load would find
    behind[: len(counts)] = torch.tensor(counts)
    out = c.guarded(programs, 3, dtype=torch.int32)
    given = behind[: len(counts)]
    c.launch((programs,), given, out, len(counts), BLOCK=block, E_PAD=pad, label=label)
    want, row = [], 0
    for expert, n in enumerate(counts):
        want += [[expert, first, row + n] for first in range(row, row + n, block)]
        row += n
    used = len(want)
    want += [[-1, 0, 0]] * (programs - used)
    want = torch.tensor(want, dtype=torch.int32)
    if label is None:
        c.equal(out.view, want, label=f"{name}: the whole map")
        return
    for column, what in enumerate(("expert", "first row", "end of the expert's rows")):
        with c.part():
            c.equal(out.view[:used, column], want[:used, column], label=f"{name}: {what}")
    with c.part():
        c.equal(out.view[used:], want[used:], label="programs without a tile write -1, 0, 0")
    with c.part():
        c.true(out.untouched(), "nothing is written outside of the map", "memory after it changed")
