"""New rows of several texts into pages of memory."""

from __future__ import annotations

import torch

from minids3.course.registry import Alternative, Mutant, exercise


# fmt: off
def store_rows(pages, tables, lengths, rows, counts, free):
    """Write the new rows of several texts into their pages.

    pages [P, size, W]: the memory, P pages of `size` rows, in any dtype,
    which it keeps
    tables: a list for each text, the numbers of its pages in order
    lengths: rows that each text has; counts: its new ones, 0 or more
    rows [sum(counts), W]: the new rows, text after text
    free: numbers of pages that nobody holds
    Row s of a text lies in page table[s // size], at place s % size. A text
    whose table ends before that takes the first free page, the texts in
    their order, and no page that it does not need; a table may be longer
    than needed, and is then used.
    returns pages, tables and free afterwards, as new objects; raises
    ValueError if a page is needed and none is free
    """
    size = pages.shape[1]
    tables, free = [list(table) for table in tables], list(free)
    slots = []
    for table, length, count in zip(tables, lengths, counts, strict=True):
        for s in range(length, length + count):
            if s // size == len(table):
                if not free:
                    raise ValueError("no page is free")
                table.append(free.pop(0))
            slots.append((table[s // size], s % size))
    pages = pages.clone()
    for (page, place), row in zip(slots, rows, strict=True):
        pages[page, place] = row
    return pages, tables, free
# fmt: on


def _wrong(
    pages, tables, lengths, rows, counts, free, *,
    first=0, where=None, fresh=False, last=False, quiet=False, ahead=False, order=None, zero="",
):  # fmt: skip
    """The solution with a mistake in it."""
    size = pages.shape[1]
    tables, free = [list(table) for table in tables], list(free)
    slots = []
    for table, length, count in zip(tables, lengths, counts, strict=True):
        for s in range(length + first, length + first + count):
            missing = s // size >= len(table) or (zero == "in a table" and not table[s // size])
            if missing or (fresh and s % size == 0):
                if not free and quiet:
                    continue
                if not free or (zero == "in free" and not free[0]):
                    raise ValueError("no page is free")
                table.append(free.pop(-1 if last else 0))
            at = len(table) - 1 if fresh else s // size
            slots.append((table[at], s % size) if where is None else where(table, s, size))
        if ahead and (length + count) % size == 0 and free and count:
            table.append(free.pop(0))
    pages = pages.clone()
    for (page, place), row in zip(slots, rows if order is None else rows[order], strict=False):
        pages[page, place] = row
    return pages, tables, free


def _one_early(pages, tables, lengths, rows, counts, free):
    return _wrong(pages, tables, lengths, rows, counts, free, first=-1)


def _no_table(pages, tables, lengths, rows, counts, free):
    def where(table, s, size):
        return s // size, s % size

    return _wrong(pages, tables, lengths, rows, counts, free, where=where)


def _striped(pages, tables, lengths, rows, counts, free):
    def where(table, s, size):
        return table[s % len(table)], s // len(table) % size

    return _wrong(pages, tables, lengths, rows, counts, free, where=where)


def _always_fresh(pages, tables, lengths, rows, counts, free):
    return _wrong(pages, tables, lengths, rows, counts, free, fresh=True)


def _fresh_unread(pages, tables, lengths, rows, counts, free):
    def where(table, s, size):
        return table[s // size], s % size

    return _wrong(pages, tables, lengths, rows, counts, free, fresh=True, where=where)


def _last_entry(pages, tables, lengths, rows, counts, free):
    def where(table, s, size):
        return table[-1], s % size

    return _wrong(pages, tables, lengths, rows, counts, free, where=where)


def _from_the_back(pages, tables, lengths, rows, counts, free):
    return _wrong(pages, tables, lengths, rows, counts, free, last=True)


def _zero_is_none(pages, tables, lengths, rows, counts, free):
    return _wrong(pages, tables, lengths, rows, counts, free, zero="in free")


def _zero_is_missing(pages, tables, lengths, rows, counts, free):
    return _wrong(pages, tables, lengths, rows, counts, free, zero="in a table")


def _ahead(pages, tables, lengths, rows, counts, free):
    return _wrong(pages, tables, lengths, rows, counts, free, ahead=True)


def _dropped(pages, tables, lengths, rows, counts, free):
    return _wrong(pages, tables, lengths, rows, counts, free, quiet=True)


def _in_turn(pages, tables, lengths, rows, counts, free):
    """Rows taken as if they lay one of each text in turn."""
    first = [sum(counts[:b]) for b in range(len(counts))]
    turn = sorted((k, b) for b, n in enumerate(counts) for k in range(n))
    order = torch.zeros(len(rows), dtype=torch.long)
    for i, (k, b) in enumerate(turn):
        order[first[b] + k] = i
    return _wrong(pages, tables, lengths, rows, counts, free, order=order)


def _still_free(pages, tables, lengths, rows, counts, free):
    return *store_rows(pages, tables, lengths, rows, counts, free)[:2], list(free)


def _one_each(pages, tables, lengths, rows, counts, free):
    tables, free = [list(table) for table in tables], list(free)
    for table in tables:
        if not free:
            raise ValueError("no page is free")
        table.append(free.pop(0))
    return store_rows(pages, tables, lengths, rows, counts, free)


def _reserve_first(pages, tables, lengths, rows, counts, free):
    """Pages first, then all rows at once."""
    size, taken, made = pages.shape[1], 0, []
    page, place = [], []
    for table, length, count in zip(tables, lengths, counts, strict=True):
        need = max(0, -(-(length + count) // size) - len(table)) if count else 0
        if taken + need > len(free):
            raise ValueError(f"{need} pages are needed and {len(free) - taken} are free")
        made.append([*table, *free[taken : taken + need]])
        taken += need
        s = torch.arange(length, length + count)
        numbers = torch.tensor(made[-1] or [0])
        page.append(numbers[torch.div(s, size, rounding_mode="floor")])
        place.append(s % size)
    out = pages.clone()
    out[torch.cat(page), torch.cat(place)] = rows
    return out, made, list(free[taken:])


def _flat_slots(pages, tables, lengths, rows, counts, free):
    """The memory as one long list of rows."""
    n_pages, size, width = pages.shape
    flat = pages.reshape(-1, width).clone()
    queue, made, i = iter(free), [], 0
    used = 0
    for b, table in enumerate(tables):
        mine = list(table)
        for s in range(lengths[b], lengths[b] + counts[b]):
            if len(mine) * size <= s:
                page = next(queue, None)
                if page is None:
                    raise ValueError("out of pages")
                mine, used = [*mine, page], used + 1
            flat[mine[s // size] * size + s % size] = rows[i]
            i += 1
        made.append(mine)
    return flat.view(n_pages, size, width), made, list(free)[used:]


@exercise(
    "serve-pages",
    solution=store_rows,
    notebook="16_serving",
    title="Rows into pages",
    difficulty=2,
    importance=4,
    minutes=12,
    hints=(
        "Pages have 4 rows. A text has 8 rows and pages 7 and 2. Where does its next row go, and "
        "what has to happen first? And if the text had been 10 rows long, with pages 7, 2 and 5, "
        "and its last two rows were taken back?",
        "for each text, for s = length .. length + count - 1:\n"
        "    if its table has no entry s // size: take free's first, or raise ValueError\n"
        "    the next row goes to page table[s // size], place s % size\n"
        "work on copies: the memory, the tables, the free list",
    ),
    mutants=[
        Mutant(
            "one_early",
            _one_early,
            "Your first new row lands on the text's last old one. A text of `length` rows has "
            "them at 0 to length - 1; the next one is number length.",
        ),
        Mutant(
            "no_table",
            _no_table,
            "You used s // size as the number of the page itself. It is the page's place in the "
            "text's table, and the table says which page that is. Texts overwrite each other here.",
        ),
        Mutant(
            "striped",
            _striped,
            "You dealt the rows out to the pages in turn. A page holds `size` rows that follow "
            "each other, so that it stays where it is when the text takes another page.",
        ),
        Mutant(
            "always_fresh",
            _always_fresh,
            "You take a page whenever a row is the first of a page, even where the table has one "
            "already: after rows were taken back, or reserved. That page is lost to everybody.",
        ),
        Mutant(
            "fresh_unread",
            _fresh_unread,
            "You took a page wherever s % size is 0, and it stays empty where the table had one "
            "for that row. Ask whether the table has an entry s // size.",
        ),
        Mutant(
            "last_entry",
            _last_entry,
            "You wrote into the last page of the table. A table may be longer than needed: row s "
            "lies in page table[s // size].",
        ),
        Mutant(
            "from_the_back",
            _from_the_back,
            "You took the last of the free pages. The first was asked for, so that everybody can "
            "say which page comes next.",
        ),
        Mutant(
            "zero_is_none",
            _zero_is_none,
            "You took the free page 0 for none at all: in an `if`, 0 counts as false. Ask whether "
            "the list is empty.",
        ),
        Mutant(
            "zero_is_missing",
            _zero_is_missing,
            "You took page 0 in a table for an entry that is missing: in an `if`, 0 counts as "
            "false. Ask how long the table is.",
        ),
        Mutant(
            "ahead",
            _ahead,
            "You took the next page as soon as the last one was full. The text may end right "
            "there; a page is taken when there is a row for it.",
        ),
        Mutant(
            "dropped",
            _dropped,
            "When no page was free you dropped the rows that were left, and said nothing. The "
            "text would go on with a hole in its memory: raise ValueError.",
        ),
        Mutant(
            "in_turn",
            _in_turn,
            "You read `rows` as one of each text in turn. They come text after text: all of the "
            "first, then all of the second.",
        ),
        Mutant(
            "still_free",
            _still_free,
            "The pages that you took are still in the free list. The next text will take them, "
            "too, and write over this one's rows.",
        ),
        Mutant(
            "one_each",
            _one_each,
            "You take a page for every text, whether it needs one or not: one without new rows, or "
            "with room in its last page, needs none.",
        ),
    ],
    alternatives=[
        Alternative("reserve_first", _reserve_first),
        Alternative("flat_slots", _flat_slots),
    ],
)
def check_store_rows(c):
    """Full pages, spare pages, page 0, no new rows, an empty text, and a memory that is full."""
    size, width = c.size(3, 5), c.size(2, 4)
    # Of 4 texts: one that ends with its page, a full page, nothing new, spare pages.
    lengths = [size + 1, 2 * size, size - 1, size - 1]
    counts = [size - 1, size + c.size(1, 2), 0, 2]
    numbers = (c.rand(20).argsort() + 1).tolist()
    tables = [numbers[:2], numbers[2:4], numbers[4:5], [numbers[5], 0, numbers[7]]]
    free = numbers[8:14]
    pages, rows = c.randn(21, size, width), c.randn(sum(counts), width)
    got = c.call(
        pages, tables, lengths, rows, counts, free, returns=3,
        label=f"runs on 4 texts, pages of {size} rows",
    )  # fmt: skip
    want = _expected(pages, tables, lengths, rows, counts, free)
    with c.part():
        c.equal(_lists(got[1]), want[1], label="every text's table")
    with c.part():
        c.equal([int(p) for p in got[2]], want[2], label="the pages that are still free")
    with c.part():
        c.equal(got[0], want[0], label="every row in its place, and nothing else touched")
    with c.part():
        n = c.size(7, 11)
        pages, rows = (c.randn(m, width).bfloat16() for m in (8 * size, n + 1))
        pages = pages.view(8, size, width)
        two = (pages, [[5], []], [1, 0], rows, [n, 1], [0, 3, 6, 1, 4])
        got = c.call(*two, returns=3)
        want = _expected(*two)
        label = "a prompt over several pages, and a text's first row: their tables"
        c.equal(_lists(got[1]), want[1], label=label)
        c.equal(got[0], want[0], label="and their rows")
        c.dtype(got[0], torch.bfloat16, label="and the memory is bfloat16, as it was")
    with c.part():
        none = c.randn(4, size, width)
        one = (none, [[2], []], [1, 0], c.randn(0, width), [0, 0], [1])
        got = c.call(*one, returns=3)
        c.equal([_lists(got[1]), [int(p) for p in got[2]]], [[[2], []], [1]],
                label="no new rows: no page is taken")  # fmt: skip
        c.equal(got[0], none, label="and nothing is written")
        again = got[0].data_ptr() == none.data_ptr() or got[1] is one[1] or got[2] is one[5]
        again = again or any(a is b for a, b in zip(got[1], one[1], strict=True))
        c.true(not again, "as new objects, even then",
               "what was passed came back, so that a later write changes both")  # fmt: skip
    with c.part():
        last = (none, [[2], [1]], [size - 1, size], c.randn(2, width), [1, 1], [3])
        got = c.call(*last, returns=3)
        c.equal([_lists(got[1]), [int(p) for p in got[2]]], [[[2], [1, 3]], []],
                label="the last free page is taken")  # fmt: skip
        room = (none, [[2], [1, 3]], *last[2:5], [])
        got = c.call(*room, returns=3)
        c.equal([_lists(got[1]), [int(p) for p in got[2]]], [[[2], [1, 3]], []],
                label="no page is free, and none is needed")  # fmt: skip
    with c.part():
        rows = c.randn(size + 2, width)
        full = (none, [[2], [1]], [size - 1, size], rows, [size + 1, 1], [3])
        c.raises(ValueError, *full, label="a page is needed and none is free: ValueError")


def _lists(tables):
    return [[int(page) for page in table] for table in tables]


def _expected(pages, tables, lengths, rows, counts, free):
    """Lay each text's rows out in a list, and cut it into pages."""
    size = pages.shape[1]
    out, made, free = pages.clone(), [], list(free)
    start = 0
    for table, length, count in zip(tables, lengths, counts, strict=True):
        need = max(len(table), -(-(length + count) // size))
        table = table + [free.pop(0) for _ in range(need - len(table))]
        held = torch.cat([out[p] for p in table]) if table else out.new_zeros(0, out.shape[-1])
        held[length : length + count] = rows[start : start + count]
        for i, page in enumerate(table):
            out[page] = held[i * size : (i + 1) * size]
        made.append(table)
        start += count
    return out, made, free
