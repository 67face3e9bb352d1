"""The first kernel: vector addition."""

from __future__ import annotations

from minids3.course.registry import Alternative, Mutant, exercise
from minids3.kernels.language import tl


# fmt: off
def add_kernel(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """Write x + y to out, all of n elements.

    x_ptr, y_ptr, out_ptr: pointers to the first elements; n: how many
    program p owns elements p * BLOCK .. p * BLOCK + BLOCK - 1, those that
    exist
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    x = tl.load(x_ptr + i, mask=inside)
    y = tl.load(y_ptr + i, mask=inside)
    tl.store(out_ptr + i, x + y, mask=inside)
# fmt: on


def _add_no_mask(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n)
    y = tl.load(y_ptr + i, mask=i < n)
    tl.store(out_ptr + i, x + y)


def _nothing_masked(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.load(x_ptr + i) + tl.load(y_ptr + i))


def _add_lane_mask(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    i = tl.program_id(0) * BLOCK + lane
    x = tl.load(x_ptr + i, mask=lane < n)
    y = tl.load(y_ptr + i, mask=lane < n)
    tl.store(out_ptr + i, x + y, mask=lane < n)


def _add_one_more(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i <= n)
    y = tl.load(y_ptr + i, mask=i <= n)
    tl.store(out_ptr + i, x + y, mask=i <= n)


def _one_more_stored(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n)
    y = tl.load(y_ptr + i, mask=i < n)
    tl.store(out_ptr + i, x + y, mask=i <= n)


def _one_more_loaded(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i <= n)
    y = tl.load(y_ptr + i, mask=i <= n)
    tl.store(out_ptr + i, x + y, mask=i < n)


def _every_tile(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    for start in range(0, n, BLOCK):
        i = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + i, mask=i < n)
        y = tl.load(y_ptr + i, mask=i < n)
        tl.store(out_ptr + i, x + y, mask=i < n)


def _size_built_in(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * 1024 + tl.arange(0, 1024)
    x = tl.load(x_ptr + i, mask=i < n)
    y = tl.load(y_ptr + i, mask=i < n)
    tl.store(out_ptr + i, x + y, mask=i < n)


def _add_same_tile(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n)
    y = tl.load(y_ptr + i, mask=i < n)
    tl.store(out_ptr + i, x + y, mask=i < n)


def _add_no_block(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n)
    y = tl.load(y_ptr + i, mask=i < n)
    tl.store(out_ptr + i, x + y, mask=i < n)


def _add_full_tiles(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    start = tl.program_id(0) * BLOCK
    i = start + tl.arange(0, BLOCK)
    inside = (i < n) & (start + BLOCK <= n)
    x = tl.load(x_ptr + i, mask=inside)
    y = tl.load(y_ptr + i, mask=inside)
    tl.store(out_ptr + i, x + y, mask=inside)


def _add_in_place(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n)
    y = tl.load(y_ptr + i, mask=i < n)
    tl.store(x_ptr + i, x + y, mask=i < n)


def _add_pointer_forgotten(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n)
    tl.store(out_ptr + i, x + x, mask=i < n)


def _add_moved_pointers(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    start = tl.program_id(0) * BLOCK
    lane = tl.arange(0, BLOCK)
    left = lane < n - start
    total = tl.load(x_ptr + start + lane, mask=left, other=0.0)
    total += tl.load(y_ptr + start + lane, mask=left, other=0.0)
    tl.store(out_ptr + start + lane, total, mask=left)


def _add_strides(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    for start in range(tl.program_id(0) * BLOCK, n, tl.num_programs(0) * BLOCK):
        i = start + lane
        x = tl.load(x_ptr + i, mask=i < n)
        y = tl.load(y_ptr + i, mask=i < n)
        tl.store(out_ptr + i, y + x, mask=i < n)


def _load_unmasked(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.load(x_ptr + i) + tl.load(y_ptr + i), mask=i < n)


def _both_masks(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    start = tl.program_id(0) * BLOCK
    i = start + tl.arange(0, BLOCK)
    inside = (i < n) & (start < n)
    x = tl.load(x_ptr + i, mask=inside, other=0.0)
    y = tl.load(y_ptr + i, mask=inside, other=0.0)
    tl.store(out_ptr + i, x + y, mask=inside)


@exercise(
    "triton-add",
    solution=add_kernel,
    notebook="07_first_triton_kernels",
    title="One tile for each",
    difficulty=2,
    importance=5,
    minutes=8,
    kernel=True,
    hints=(
        "Which element does lane 3 of program 2 own if BLOCK is 8? Write that as a formula for all "
        "lanes at once. And what should a lane do whose element does not exist?",
        "i = number of this program * BLOCK + (0 .. BLOCK - 1)     # tl.program_id, tl.arange\n"
        "inside = i is below n\n"
        "load x and y at pointer + i, with mask=inside\n"
        "store their sum at out pointer + i, with mask=inside",
    ),
    mutants=[
        Mutant(
            "no_mask",
            _add_no_mask,
            "The last program stored a whole tile, beyond the end of out. The sums are right and "
            "somebody else's memory is not: give tl.store the mask, too.",
        ),
        Mutant(
            "lane_mask",
            _add_lane_mask,
            "Your mask compares the lane (0 .. BLOCK - 1) with n. In every program after the first "
            "that is the wrong number: compare the element's index.",
        ),
        Mutant(
            "one_more",
            _add_one_more,
            "Your mask lets one element too many through: the last index of n elements is n - 1, "
            "so it is < and not <=.",
        ),
        Mutant(
            "one_more_stored",
            _one_more_stored,
            "The loads end in time, and the store's mask lets one element too many through: it is "
            "i < n, not <=.",
        ),
        Mutant(
            "one_more_loaded",
            _one_more_loaded,
            "The store ends in time, and the loads' mask lets one element too many through: it is "
            "i < n, not <=.",
        ),
        Mutant(
            "nothing_masked",
            _nothing_masked,
            "You masked nothing: the last tile reads past the end of x and y and stores past the "
            "end of out. Give all three the mask i < n.",
        ),
        Mutant(
            "every_tile",
            _every_tile,
            "Each of your programs adds everything. They share the work: program p has one tile, "
            "from p * BLOCK on.",
        ),
        Mutant(
            "size_built_in",
            _size_built_in,
            "You built tiles of 1,024 in. BLOCK says how many elements a program owns.",
        ),
        Mutant(
            "same_tile",
            _add_same_tile,
            "All your programs work on the first tile. Each has a number, tl.program_id(0), and "
            "starts at that number times BLOCK.",
        ),
        Mutant(
            "no_block",
            _add_no_block,
            "Your tiles start one element apart, so they overlap and the end is never reached. "
            "They must start BLOCK elements apart.",
        ),
        Mutant(
            "full_tiles",
            _add_full_tiles,
            "You left out the last tile because it is not full. Its lanes that exist have work to "
            "do: mask single elements, not the tile.",
        ),
        Mutant(
            "in_place",
            _add_in_place,
            "You stored the sum over an input. The caller still needs it: the result goes to "
            "out_ptr.",
        ),
        Mutant(
            "pointer_forgotten",
            _add_pointer_forgotten,
            "You added x to itself: y is never read.",
        ),
        Mutant(
            "load_unmasked",
            _load_unmasked,
            "You masked the store and not the loads. They read past the end of x and y, which on "
            "a GPU is an error, or somebody else's numbers.",
        ),
    ],
    alternatives=[
        Alternative("moved_pointers", _add_moved_pointers),
        Alternative("strides", _add_strides),
        Alternative("both_masks", _both_masks),
    ],
)
def check_add(c):
    """A ragged last tile, full tiles, less than a tile, one element, programs without work."""
    block = c.choice([16, 32])
    n = 3 * block + c.size(2, block - 2)
    x, y, out = c.randn(n), c.randn(n), c.guarded(n)
    c.launch((4,), x, y, out, n, label="runs as four programs, inputs are left alone", BLOCK=block)
    with c.part():
        c.true(out.written(), "every element of out is written", _first_missing(out))
        c.close(out.view, x + y, label="the sums are right")
    with c.part():
        label = "nothing is written outside of out"
        c.true(out.untouched(), label, "the memory next to out has changed")
    for n, programs, what in (
        (2 * block, 2, "two full tiles"),
        (c.size(2, block - 2), 1, "less than one tile"),
        (1, 1, "a single element"),
        (block + 1, 5, "more programs than needed"),
        (3000, 2, "tiles of 2,048 elements"),
    ):
        with c.part():
            x, y, out = c.randn(n), c.randn(n), c.guarded(n)
            c.launch((programs,), x, y, out, n, BLOCK=2048 if n == 3000 else block)
            right = out.view.isclose(x + y, rtol=1e-4, atol=1e-5).all() and out.untouched()
            c.true(right, f"{what}: right, and nothing outside")


def _first_missing(out):
    missing = out.view.isnan().nonzero()
    return f"element {missing[0, 0]} still holds the poison" if len(missing) else ""
