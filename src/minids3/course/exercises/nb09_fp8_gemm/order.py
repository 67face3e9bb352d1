"""Which tile a program computes: bands of tile rows, so that the L2 cache helps."""

from __future__ import annotations

import torch

from minids3.course.registry import Alternative, Mutant, exercise


# fmt: off
def tile_of(program, tile_rows, tile_columns, band):
    """Row and column of the tile that a program computes.

    program: its number, 0 to tile_rows * tile_columns - 1
    band: how many tile rows make a band; the last band has what is left
    The bands follow one another from the top. Within a band programs are
    numbered column by column, and in each column from top to bottom.
    returns two ints, row and column
    """
    in_band = band * tile_columns  # tiles of a whole band
    top = program // in_band * band
    height = min(band, tile_rows - top)
    within = program % in_band
    return top + within % height, within // height
# fmt: on


def _place(program, rows, columns, band, *, tiles=None, height=None, step=None):
    """The solution with parts exchanged."""
    number, within = divmod(program, tiles or band * columns)
    top = number * (band if step is None else step)
    height = height or max(min(band, rows - top), 1)
    return top + within % height, within // height


def _plain(program, tile_rows, tile_columns, band):
    return program // tile_columns, program % tile_columns


def _columns_of_all(program, tile_rows, tile_columns, band):
    return program % tile_rows, program // tile_rows


def _not_clipped(program, tile_rows, tile_columns, band):
    return _place(program, tile_rows, tile_columns, band, height=band)


def _height_of_last(program, tile_rows, tile_columns, band):
    return _place(program, tile_rows, tile_columns, band, height=tile_rows % band or band)


def _turned(program, tile_rows, tile_columns, band):
    return tile_of(program, tile_rows, tile_columns, band)[::-1]


def _bands_of_columns(program, tile_rows, tile_columns, band):
    return tile_of(program, tile_columns, tile_rows, band)[::-1]


def _band_number(program, tile_rows, tile_columns, band):
    return _place(program, tile_rows, tile_columns, band, step=1)


def _all_programs(program, tile_rows, tile_columns, band):
    top = program // (band * tile_columns) * band
    height = min(band, tile_rows - top)
    return top + program % height, program // height


def _rows_for_columns(program, tile_rows, tile_columns, band):
    return _place(program, tile_rows, tile_columns, band, tiles=band * tile_rows)


def _snake(program, tile_rows, tile_columns, band):
    row, column = tile_of(program, tile_rows, tile_columns, band)
    top = row // band * band
    height = min(band, tile_rows - top)
    return (2 * top + height - 1 - row if column % 2 else row), column


def _eight(program, tile_rows, tile_columns, band):
    return tile_of(program, tile_rows, tile_columns, 8)


def _upwards(program, tile_rows, tile_columns, band):
    row, column = tile_of(program, tile_rows, tile_columns, band)
    top = row // band * band
    return 2 * top + min(band, tile_rows - top) - 1 - row, column


def _within_alone(program, tile_rows, tile_columns, band):
    row, column = tile_of(program, tile_rows, tile_columns, band)
    return row % band, column


def _squares(program, tile_rows, tile_columns, band):
    tiles = [(r, k) for r in range(tile_rows) for k in range(tile_columns)]
    tiles.sort(key=lambda t: (t[0] // band, t[1] // band, t[0], t[1]))
    return tiles[program]


def _band_too_high(program, tile_rows, tile_columns, band):
    band = min(band, tile_rows)
    within = program % (band * tile_columns)
    top = min(program // (band * tile_columns) * band, tile_rows - band)
    return top + within % band, within // band


def _tutorial(program, tile_rows, tile_columns, band):
    num_pid_in_group = band * tile_columns
    group_id = program // num_pid_in_group
    first_pid_m = group_id * band
    group_size_m = min(tile_rows - first_pid_m, band)
    pid_m = first_pid_m + ((program % num_pid_in_group) % group_size_m)
    return pid_m, (program % num_pid_in_group) // group_size_m


def _listed(program, tile_rows, tile_columns, band):
    tiles = []
    for top in range(0, tile_rows, band):
        for column in range(tile_columns):
            tiles += [[row, column] for row in range(top, tile_rows)[:band]]
    return tiles[program]


def _counted_down(program, tile_rows, tile_columns, band):
    top = 0
    while program >= band * tile_columns:
        program, top = program - band * tile_columns, top + band
    column, row = divmod(program, min(band, tile_rows - top))
    return top + row, column


def _sorted(program, tile_rows, tile_columns, band):
    tiles = [(row, column) for row in range(tile_rows) for column in range(tile_columns)]
    return sorted(tiles, key=lambda tile: (tile[0] // band, tile[1], tile[0]))[program]


def _map(program, tile_rows, tile_columns, band):
    index = torch.arange(tile_rows * tile_columns).view(tile_rows, tile_columns)
    order = torch.cat([part.T.flatten() for part in index.split(band)])
    return order[program] // tile_columns, order[program] % tile_columns


@exercise(
    "gemm-order",
    solution=tile_of,
    notebook="09_fp8_gemm",
    title="Which tile is mine?",
    difficulty=3,
    importance=3,
    minutes=7,
    hints=(
        "How many tiles has a whole band, and how many of them came before this program? The "
        "column changes once per how many programs, in a whole band and in the last one?",
        "in_band = band * tile_columns\n"
        "top = the number of whole bands before this program, times band\n"
        "height = band, or what is left of tile_rows below top, if that is less\n"
        "within = program's number inside its band\n"
        "row = top + within modulo height, column = within divided by height, whole",
    ),
    mutants=[
        Mutant(
            "plain",
            _plain,
            "That is the plain order, row after row, whatever `band` is. Within a band go column "
            "by column.",
        ),
        Mutant(
            "columns_of_all",
            _columns_of_all,
            "You go down the whole matrix before the next column. A column ends at the band's "
            "lower edge.",
        ),
        Mutant(
            "not_clipped",
            _not_clipped,
            "The last band is not whole, and you gave it the height of the others: some programs "
            "compute tiles below the matrix, and some tiles nobody computes.",
        ),
        Mutant(
            "height_of_last",
            _height_of_last,
            "You gave every band the height of the last one. Only that one is lower.",
        ),
        Mutant(
            "turned",
            _turned,
            "You returned the column first. The row comes first.",
        ),
        Mutant(
            "bands_of_columns",
            _bands_of_columns,
            "Your bands are made of tile columns. They are made of tile rows, and numbered column "
            "by column.",
        ),
        Mutant(
            "band_number",
            _band_number,
            "You took the band's number for its first row. A band begins `band` rows below the "
            "one before.",
        ),
        Mutant(
            "all_programs",
            _all_programs,
            "You counted from the first program of all. Row and column follow from the number "
            "inside of the band, program % (band * tile_columns).",
        ),
        Mutant(
            "rows_for_columns",
            _rows_for_columns,
            "A band has band * tile_columns tiles: it is as wide as the matrix. You took "
            "tile_rows.",
        ),
        Mutant(
            "snake",
            _snake,
            "You turn round at the end of each column. Each begins at the top of the band again.",
        ),
        Mutant(
            "upwards",
            _upwards,
            "Your columns are numbered from the bottom of the band. They go from top to bottom.",
        ),
        Mutant(
            "within_alone",
            _within_alone,
            "Your row is one inside of the band. Add the band's first row to it.",
        ),
        Mutant(
            "squares",
            _squares,
            "You cut a band into squares. It is numbered column by column over its whole width.",
        ),
        Mutant(
            "band_too_high",
            _band_too_high,
            "You moved the last band up until it was whole. Its first tiles belong to the band "
            "before, and are computed twice.",
        ),
        Mutant(
            "eight",
            _eight,
            "You built the library's 8 in. Use `band`.",
        ),
    ],
    alternatives=[
        Alternative("tutorial", _tutorial),
        Alternative("listed", _listed),
        Alternative("counted_down", _counted_down),
        Alternative("sorted", _sorted),
        Alternative("map", _map),
    ],
)
def check_tile_of(c):
    """Bands that fit, a last one that is lower, bands of one row and of more than there are."""

    def walk(rows, columns, band):
        """All tiles in the order in which programs compute them."""
        bands = [range(rows)[top : top + band] for top in range(0, rows, band)]
        return [[row, column] for rows_ in bands for column in range(columns) for row in rows_]

    def places(rows, columns, band, label, every=""):
        with c.part():
            got = [[*c.call(p, rows, columns, band, returns=2)] for p in range(rows * columns)]
            c.equal(got, walk(rows, columns, band), name="the list of tiles", label=label)
            if every:
                tiles = {tuple(int(n) for n in tile) for tile in got}
                why = f"there are {rows * columns}; {len(tiles & known(rows, columns))} of them are"
                c.true(len(tiles) == rows * columns and tiles <= known(rows, columns), every, why)

    def known(rows, columns):
        return {(row, column) for row in range(rows) for column in range(columns)}

    band, columns = c.size(3, 4), c.choice([5, 7])
    rows = 2 * band
    got = c.call(band * columns, rows, columns, band, label="runs on a program", returns=2)
    c.equal([*got], [band, 0], label=f"program {band * columns} begins the second band")
    with c.part():
        got = c.call(band * columns + band + 1, rows, columns, band, returns=2)
        c.equal([*got], [band + 1, 1], label="and its column 1 begins `band` programs later")
    places(3, 4, 2, "the example: 3 x 4 tiles in bands of 2")
    places(rows, columns, band, f"{rows} x {columns} tiles in whole bands of {band}")
    left = c.size(1, band - 1)
    label = f"a last band of {left} instead of {band} rows"
    places(rows + left, columns, band, label, "each of its tiles is computed by one program")
    places(c.size(2, 3), 4, 1, "bands of one row: the plain order")
    places(3, 2, c.size(4, 9), "a band of more rows than there are")
    places(7, 5, 3, "7 x 5 tiles in bands of three")
    places(7, 5, 2, "the same tiles in bands of two")
    with c.part():
        programs = [c.size(0, 32 * 56 - 1) for _ in range(6)]
        got = [[*c.call(p, 32, 56, 8, returns=2)] for p in programs]
        c.equal(got, [walk(32, 56, 8)[p] for p in programs], label="some of 32 x 56, in eights")
