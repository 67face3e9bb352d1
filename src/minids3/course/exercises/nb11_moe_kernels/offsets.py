"""Offsets: sort, count, add up; and a grid that is large enough for any routing."""

from __future__ import annotations

import torch

from minids3.course.registry import Alternative, Mutant, exercise


def grouped_offsets(experts, n_experts, block):
    """Where each expert's rows and tiles are, once rows are sorted.

    experts [M] int64: the expert of each row, in any order
    returns order [M], the rows sorted by expert (equal ones keep their
    order); starts [E], each expert's first place; tile_ends [E], the
    running sum of the experts' tiles of up to `block` rows; programs, an
    int: tiles enough for ANY routing of M rows, M // block + min(E, M)
    """
    order = torch.argsort(experts, stable=True)
    counts = torch.bincount(experts, minlength=n_experts)
    starts = counts.cumsum(0) - counts
    tile_ends = ((counts + block - 1) // block).cumsum(0)
    rows = experts.numel()
    return order, starts, tile_ends, rows // block + min(n_experts, rows)


def _counts(experts, n_experts):
    return torch.bincount(experts, minlength=n_experts)


def _offsets_ends(experts, n_experts, block):
    order, _, tile_ends, programs = grouped_offsets(experts, n_experts, block)
    return order, _counts(experts, n_experts).cumsum(0), tile_ends, programs


def _offsets_floor(experts, n_experts, block):
    order, starts, _, programs = grouped_offsets(experts, n_experts, block)
    return order, starts, (_counts(experts, n_experts) // block).cumsum(0), programs


def _offsets_whole(experts, n_experts, block):
    order, starts, _, programs = grouped_offsets(experts, n_experts, block)
    rows = _counts(experts, n_experts).cumsum(0)
    return order, starts, (rows + block - 1) // block, programs


def _offsets_plus_one(experts, n_experts, block):
    order, starts, _, programs = grouped_offsets(experts, n_experts, block)
    return order, starts, (_counts(experts, n_experts) // block + 1).cumsum(0), programs


def _offsets_not_summed(experts, n_experts, block):
    order, starts, _, programs = grouped_offsets(experts, n_experts, block)
    return order, starts, (_counts(experts, n_experts) + block - 1) // block, programs


def _offsets_exact(experts, n_experts, block):
    order, starts, tile_ends, _ = grouped_offsets(experts, n_experts, block)
    return order, starts, tile_ends, int(tile_ends[-1])


def _offsets_dense(experts, n_experts, block):
    order, starts, tile_ends, _ = grouped_offsets(experts, n_experts, block)
    return order, starts, tile_ends, -(-experts.numel() // block)


def _offsets_generous(experts, n_experts, block):
    order, starts, tile_ends, _ = grouped_offsets(experts, n_experts, block)
    return order, starts, tile_ends, -(-experts.numel() // block) * n_experts


def _offsets_inverse(experts, n_experts, block):
    order, starts, tile_ends, programs = grouped_offsets(experts, n_experts, block)
    return order.argsort(), starts, tile_ends, programs


def _offsets_short(experts, n_experts, block):
    counts = torch.bincount(experts)
    rows = experts.numel()
    return (
        torch.argsort(experts, stable=True),
        counts.cumsum(0) - counts,
        ((counts + block - 1) // block).cumsum(0),
        rows // block + min(n_experts, rows),
    )


def _offsets_search(experts, n_experts, block):
    ordered, order = experts.sort(stable=True)
    edges = torch.searchsorted(ordered, torch.arange(n_experts + 1))
    tiles = -torch.div(-edges.diff(), block, rounding_mode="floor")
    rows = len(experts)
    programs = rows // block + (n_experts if n_experts < rows else rows)
    return order, edges[:-1], tiles.cumsum(0), programs


def _offsets_matrix(experts, n_experts, block):
    hits = experts[None, :] == torch.arange(n_experts)[:, None]
    counts = hits.sum(1)
    before = torch.tril(torch.ones(n_experts, n_experts, dtype=torch.int64), -1)
    tiles = counts // block + (counts % block > 0)
    keys = experts * max(len(experts), 1) + torch.arange(len(experts))
    programs = len(experts) // block + min(n_experts, len(experts))
    return keys.argsort(), before @ counts, before @ tiles + tiles, programs


def _unstable(experts, n_experts, block):
    _, starts, tile_ends, programs = grouped_offsets(experts, n_experts, block)
    return experts.argsort(), starts, tile_ends, programs


def _float_programs(experts, n_experts, block):
    order, starts, tile_ends, programs = grouped_offsets(experts, n_experts, block)
    return order, starts, tile_ends, programs / 1


def _float_starts(experts, n_experts, block):
    order, starts, tile_ends, programs = grouped_offsets(experts, n_experts, block)
    return order, starts.float(), tile_ends, programs


@exercise(
    "moe-offsets",
    solution=grouped_offsets,
    notebook="11_moe_kernels",
    title="Where everybody's tiles are",
    difficulty=2,
    importance=5,
    minutes=8,
    hints=(
        "Each expert rounds its own rows up to tiles. In which order do you round and add up, if "
        "no tile may hold rows of two experts? And how many tiles are there at worst, if every "
        "expert that has a row ends in a tile with a single one?",
        "order = stable argsort of experts\n"
        "counts = how often each expert occurs, E numbers\n"
        "starts = running sum of counts, without the expert itself\n"
        "tile_ends = running sum of ceil(count / block)\n"
        "programs = M // block + min(E, M)     # from shapes alone",
    ),
    mutants=[
        Mutant(
            "ends",
            _offsets_ends,
            "starts holds the places after each expert's last row. Leave the expert itself out of "
            "its running sum.",
        ),
        Mutant(
            "floor",
            _offsets_floor,
            "You rounded down: an expert's last rows, which do not fill a tile, get none.",
        ),
        Mutant(
            "whole",
            _offsets_whole,
            "You added up the rows and rounded then. That cuts the sorted rows every `block` rows, "
            "and tiles run across two experts. Round each expert first.",
        ),
        Mutant(
            "plus_one",
            _offsets_plus_one,
            "count // block + 1 gives a tile too many to experts whose rows fill their tiles, and "
            "one to experts without rows.",
        ),
        Mutant(
            "not_summed",
            _offsets_not_summed,
            "tile_ends holds each expert's own number of tiles. Add them up from the left: the "
            "program that searches needs where they end.",
        ),
        Mutant(
            "exact",
            _offsets_exact,
            "programs depends on the counts. On a GPU the CPU would have to wait for them: take "
            "the most there can be, from M, E and block alone.",
        ),
        Mutant(
            "dense",
            _offsets_dense,
            "ceil(M / block) tiles are enough for one expert. Every expert may end in a tile that "
            "is nearly empty.",
        ),
        Mutant(
            "generous",
            _offsets_generous,
            "That is enough tiles for every expert to get all rows at once. They share M rows: "
            "M // block + min(E, M) will do.",
        ),
        Mutant(
            "inverse",
            _offsets_inverse,
            "order answers where each row goes. Asked for is which row is at each place: "
            "argsort itself, not its inverse.",
        ),
        Mutant(
            "short",
            _offsets_short,
            "The last experts got no row and are missing. There are E starts and E tile_ends: see "
            "minlength.",
        ),
        Mutant(
            "unstable",
            _unstable,
            "argsort alone does not keep equal rows in their order: say stable=True.",
        ),
        Mutant(
            "float_programs",
            _float_programs,
            "programs is a float. A grid wants a whole number: divide with //.",
        ),
        Mutant(
            "float_starts",
            _float_starts,
            "Your starts are floats. They are places of rows: int64.",
        ),
    ],
    alternatives=[
        Alternative("search", _offsets_search),
        Alternative("matrix", _offsets_matrix),
    ],
)
def check_offsets(c):
    """Tiles counted one by one, empty experts, full tiles, fewer rows than experts."""
    block, n_experts = c.choice([4, 8]), c.size(6, 8)
    counts = [c.size(1, 3 * block) for _ in range(n_experts)]
    counts[1], counts[2], counts[3], counts[-1] = 0, 2 * block, block + 1, 0
    experts = torch.tensor([e for e, n in enumerate(counts) for _ in range(n)])
    experts = experts[c.rand(len(experts)).argsort()]
    label = f"runs on {len(experts)} rows, {n_experts} experts, tiles of {block}; returns four"
    order, starts, tile_ends, programs = c.call(experts, n_experts, block, label=label, returns=4)
    with c.part():
        want = sorted(range(len(experts)), key=lambda row: (int(experts[row]), row))
        c.equal(order, torch.tensor(want), label="order: rows sorted by expert, stable")
    with c.part():
        c.shape(starts, (n_experts,), "starts")
        want = torch.tensor([sum(counts[:e]) for e in range(n_experts)])
        c.equal(starts, want, label="starts: the rows of all experts before")
    with c.part():
        c.shape(tile_ends, (n_experts,), "tile_ends")
        tiles = [len(range(0, n, block)) for n in counts]
        want = torch.tensor([sum(tiles[: e + 1]) for e in range(n_experts)])
        c.equal(tile_ends, want, label="tile_ends: no tile holds two experts' rows")
    with c.part():
        rows = len(experts)
        c.equal(programs, rows // block + n_experts, label="programs is M // block + E here")
        why = f"it is a {type(programs).__name__}"
        c.true(type(programs) is int, "programs is an int", why)
        skewed = torch.zeros_like(experts)
        again = c.call(skewed, n_experts, block, returns=4)
        c.equal(again[3], programs, label="programs does not depend on the routing")
        c.equal(again[2][0], len(range(0, rows, block)), label="all rows to expert 0: its tiles")
    with c.part():
        two = c.call(torch.tensor([n_experts - 1, 0]), n_experts, block, returns=4)
        c.equal(two[3], 2, label="two rows need two tiles at most, however many experts")
        c.equal(two[0], torch.tensor([1, 0]), label="and are sorted")
    with c.part():
        got = c.call(torch.tensor([1, 0, 0, 0, 0, 1, 0]), 2, 3, returns=4)
        c.equal(got[2], torch.tensor([2, 3]), label="tiles of three rows, no power of two")
    with c.part():
        many = c.randint(0, 300, 900)
        big = c.call(many, 300, 16, returns=4)
        want = torch.tensor(sorted(range(900), key=lambda row: (int(many[row]), row)))
        c.equal(big[0], want, label="900 rows of 300 experts: order")
        c.equal(big[3], 900 // 16 + 300, label="900 rows of 300 experts: programs")
        tiles = [len(range(0, int((many == e).sum()), 16)) for e in range(300)]
        c.equal(big[2], torch.tensor(tiles).cumsum(0), label="900 rows of 300 experts: tile_ends")
