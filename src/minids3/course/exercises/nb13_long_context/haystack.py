"""Putting needles into a haystack."""

from __future__ import annotations

from minids3.course.registry import Alternative, Mutant, exercise
from minids3.evals.needle import build_haystack as library_build


def build_haystack(head, lines, needles, depths, length):
    """Token ids of a text with needles, and where each needle begins.

    head: ids of the beginning; lines: ids of each line of hay, more than
    enough of them; needles: ids of each needle; depths: one number from 0
    to 1 for each needle, ascending; length: the most tokens of the text
    returns ids (a list), starts (a list: index of each needle's first id)
    """
    room = length - len(head) - sum(len(needle) for needle in needles)
    ends = [0]  # tokens of hay before each boundary between lines
    for line in lines:
        if ends[-1] + len(line) > room:
            break
        ends.append(ends[-1] + len(line))
    ids, starts, n = list(head), [], 0
    for i, end in enumerate(ends):
        while n < len(needles) and end >= depths[n] * ends[-1]:
            starts.append(len(ids))
            ids += needles[n]
            n += 1
        if i + 1 < len(ends):
            ids += lines[i]
    return ids, starts


def _room(head, needles, length):
    return length - len(head) - sum(len(needle) for needle in needles)


def _fit(lines, room):
    kept, used = [], 0
    for line in lines:
        if used + len(line) > room:
            break
        kept.append(line)
        used += len(line)
    return kept, used


def _lay(head, kept, needles, places):
    """Needle i before line places[i]."""
    ids, starts = list(head), []
    for i in range(len(kept) + 1):
        for needle, place in zip(needles, places, strict=True):
            if place == i:
                starts.append(len(ids))
                ids = ids + list(needle)
        if i < len(kept):
            ids = ids + list(kept[i])
    return ids, starts


def _places(kept, depths, wanted):
    """First boundary with ``wanted(depth)`` tokens of hay before it."""
    ends = [sum(len(line) for line in kept[:i]) for i in range(len(kept) + 1)]
    return [next(i for i, end in enumerate(ends) if end >= wanted(d, ends)) for d in depths]


def _no_room_for_needles(head, lines, needles, depths, length):
    kept, _ = _fit(lines, length - len(head))
    places = _places(kept, depths, lambda d, ends: d * ends[-1])
    return _lay(head, kept, needles, places)


def _no_room_for_head(head, lines, needles, depths, length):
    kept, _ = _fit(lines, _room([], needles, length))
    places = _places(kept, depths, lambda d, ends: d * ends[-1])
    return _lay(head, kept, needles, places)


def _all_lines(head, lines, needles, depths, length):
    places = _places(lines, depths, lambda d, ends: d * ends[-1])
    return _lay(head, lines, needles, places)


def _by_lines(head, lines, needles, depths, length):
    kept, _ = _fit(lines, _room(head, needles, length))
    places = [-(-int(d * len(kept) * 2**20) // 2**20) for d in depths]
    return _lay(head, kept, needles, places)


def _asked_depth(head, lines, needles, depths, length):
    ids, _ = build_haystack(head, lines, needles, depths, length)
    return ids, [int(d * len(ids)) for d in depths]


def _in_the_hay(head, lines, needles, depths, length):
    ids, starts = build_haystack(head, lines, needles, depths, length)
    return ids, [start - len(head) for start in starts]


def _needles_not_counted(head, lines, needles, depths, length):
    ids, starts = build_haystack(head, lines, needles, depths, length)
    before = 0
    for i, needle in enumerate(needles):
        starts[i] -= before
        before += len(needle)
    return ids, starts


def _ends_for_starts(head, lines, needles, depths, length):
    ids, starts = build_haystack(head, lines, needles, depths, length)
    return ids, [s + len(needle) - 1 for s, needle in zip(starts, needles, strict=True)]


def _walked_to_the_front(head, lines, needles, depths, length):
    kept, _ = _fit(lines, _room(head, needles, length))
    return _lay(head, kept, needles, [0] * len(needles))


def _mid_line(head, lines, needles, depths, length):
    kept, used = _fit(lines, _room(head, needles, length))
    hay, ids, starts, done = [i for line in kept for i in line], list(head), [], 0
    for depth, needle in zip(depths, needles, strict=True):
        cut = int(depth * used)
        ids += hay[done:cut]
        starts.append(len(ids))
        ids += needle
        done = cut
    return ids + hay[done:], starts


def _boundary_before(head, lines, needles, depths, length):
    kept, _ = _fit(lines, _room(head, needles, length))
    ends = [sum(len(line) for line in kept[:i]) for i in range(len(kept) + 1)]
    places = [max(i for i, end in enumerate(ends) if end <= d * ends[-1]) for d in depths]
    return _lay(head, kept, needles, places)


def _of_the_whole(head, lines, needles, depths, length):
    kept, _ = _fit(lines, _room(head, needles, length))
    places = _places(kept, depths, lambda d, ends: min(d * length, ends[-1]))
    return _lay(head, kept, needles, places)


def _skips_long_lines(head, lines, needles, depths, length):
    room, kept, used = _room(head, needles, length), [], 0
    for line in lines:
        if used + len(line) <= room:
            kept.append(line)
            used += len(line)
    places = _places(kept, depths, lambda d, ends: d * ends[-1])
    return _lay(head, kept, needles, places)


def _cut_last_line(head, lines, needles, depths, length):
    room = _room(head, needles, length)
    kept, used = _fit(lines, room)
    if len(kept) < len(lines) and used < room:
        kept = [*kept, lines[len(kept)][: room - used]]
    places = _places(kept, depths, lambda d, ends: d * ends[-1])
    return _lay(head, kept, needles, places)


def _searched(head, lines, needles, depths, length):
    ids, _ = build_haystack(head, lines, needles, depths, length)
    return ids, [ids.index(needle[0]) for needle in needles]


def _searched_whole(head, lines, needles, depths, length):
    ids, _ = build_haystack(head, lines, needles, depths, length)
    found = []
    for needle in needles:
        windows = (ids[i : i + len(needle)] for i in range(len(ids)))
        found.append(next(i for i, window in enumerate(windows) if window == needle))
    return ids, found


def _rounded(head, lines, needles, depths, length):
    kept, _ = _fit(lines, _room(head, needles, length))
    places = _places(kept, depths, lambda d, ends: round(d * ends[-1]))
    return _lay(head, kept, needles, places)


def _cut_to_whole(head, lines, needles, depths, length):
    kept, _ = _fit(lines, _room(head, needles, length))
    places = _places(kept, depths, lambda d, ends: int(d * ends[-1]))
    return _lay(head, kept, needles, places)


def _nearest(head, lines, needles, depths, length):
    kept, used = _fit(lines, _room(head, needles, length))
    ends = [sum(len(line) for line in kept[:i]) for i in range(len(kept) + 1)]
    places = [min(range(len(ends)), key=lambda i: abs(ends[i] - d * used)) for d in depths]
    return _lay(head, kept, needles, places)


def _head_in_depth(head, lines, needles, depths, length):
    kept, _ = _fit(lines, _room(head, needles, length))
    h = len(head)
    places = _places(kept, depths, lambda d, ends: d * (h + ends[-1]) - h)
    return _lay(head, kept, needles, places)


def _more_than_depth(head, lines, needles, depths, length):
    kept, _ = _fit(lines, _room(head, needles, length))
    places = _places(kept, depths, lambda d, ends: min(int(d * ends[-1]) + 1, ends[-1]))
    return _lay(head, kept, needles, places)


def _one_per_boundary(head, lines, needles, depths, length):
    kept, _ = _fit(lines, _room(head, needles, length))
    free, places = 0, []
    for place in _places(kept, depths, lambda d, ends: d * ends[-1]):
        places.append(min(max(place, free), len(kept)))
        free = places[-1] + 1
    return _lay(head, kept, needles, places)


def _last_boundary_forgotten(head, lines, needles, depths, length):
    kept, _ = _fit(lines, _room(head, needles, length))
    places = _places(kept, depths, lambda d, ends: d * ends[-1])
    count = sum(place < len(kept) for place in places)
    return _lay(head, kept, needles[:count], places[:count])


def _one_line_too_many(head, lines, needles, depths, length):
    kept, _ = _fit(lines, _room(head, needles, length))
    kept = lines[: len(kept) + 1]
    places = _places(kept, depths, lambda d, ends: d * ends[-1])
    return _lay(head, kept, needles, places)


def _exact_fit_refused(head, lines, needles, depths, length):
    return build_haystack(head, lines, needles, depths, length - 1)


def _haystack_library(head, lines, needles, depths, length):
    return library_build(head, lines, needles, depths, length)


def _haystack_backwards(head, lines, needles, depths, length):
    """Insert from the last needle to the first, so that earlier places stay."""
    kept, used = _fit(lines, _room(head, needles, length))
    parts = [list(line) for line in kept]
    for depth, needle in list(zip(depths, needles, strict=True))[::-1]:
        before, place = 0, 0
        while before < depth * used:
            before += len(kept[place])
            place += 1
        parts.insert(place, (needle,))
    ids, starts = [*head], []
    for part in parts:
        if isinstance(part, tuple):
            starts.append(len(ids))
            part = part[0]
        ids.extend(part)
    return ids, starts


def _haystack_greedy(head, lines, needles, depths, length):
    room = length - len(head) - sum(map(len, needles))
    total, count = 0, 0
    while count < len(lines) and total + len(lines[count]) <= room:
        total += len(lines[count])
        count += 1
    ids, starts, laid, left = head.copy(), [], 0, list(lines[:count])
    for needle, depth in zip(needles, depths, strict=True):
        while laid < depth * total:
            line = left.pop(0)
            ids.extend(line)
            laid += len(line)
        starts.append(len(ids))
        ids.extend(needle)
    for line in left:
        ids.extend(line)
    return ids, starts


@exercise(
    "needle-haystack",
    solution=build_haystack,
    notebook="13_long_context",
    title="Where is the needle, really?",
    difficulty=3,
    importance=4,
    minutes=15,
    library=_haystack_library,
    hints=(
        "Which tokens are left for hay once head and needles are counted? And after a needle has "
        "been put in, what is the index of the token that comes next?",
        "room = length - tokens of head - tokens of all needles\n"
        "keep lines from the front while they fit into room;  total = their tokens\n"
        "ids = copy of head;  laid = 0\n"
        "for each needle and its depth:\n"
        "    add whole lines to ids, and their tokens to laid, while laid < depth * total\n"
        "    starts gets len(ids), then ids gets the needle\n"
        "add the lines that are left",
    ),
    mutants=[
        Mutant(
            "no_room_for_needles",
            _no_room_for_needles,
            "You filled the text with hay before the needles came: it is longer than asked for. "
            "Leave room for all of them.",
        ),
        Mutant(
            "no_room_for_head",
            _no_room_for_head,
            "Your text is longer than asked for by the head. It counts, too.",
        ),
        Mutant(
            "all_lines",
            _all_lines,
            "You took every line, whatever the length. Take whole lines from the front while they "
            "fit.",
        ),
        Mutant(
            "by_lines",
            _by_lines,
            "You counted lines for the depth. Lines differ in length: count tokens.",
        ),
        Mutant(
            "asked_depth",
            _asked_depth,
            "You reported the depth that was asked for, as an index. A needle goes between lines, "
            "so it is somewhere else: report where its first id really is.",
        ),
        Mutant(
            "in_the_hay",
            _in_the_hay,
            "Your indices leave out the head. They count from the first token of the text.",
        ),
        Mutant(
            "needles_not_counted",
            _needles_not_counted,
            "Your indices leave out the needles that come before. Each of them moves what follows.",
        ),
        Mutant(
            "ends_for_starts",
            _ends_for_starts,
            "Those are the last ids of the needles. Asked for are the first.",
        ),
        Mutant(
            "walked_to_the_front",
            _walked_to_the_front,
            "Your needles are all at the front, whatever the depth. So they were in the first "
            "widely used test, if its search for a full stop found none.",
        ),
        Mutant(
            "mid_line",
            _mid_line,
            "You cut a line in two. A needle goes between lines, where a text may have it.",
        ),
        Mutant(
            "boundary_before",
            _boundary_before,
            "You took the boundary before. Asked for is the first one with at least depth times "
            "the hay before it.",
        ),
        Mutant(
            "of_the_whole",
            _of_the_whole,
            "Your depth is a part of the whole length. It is a part of the hay, so that depth 1 "
            "comes after the last line.",
        ),
        Mutant(
            "skips_long_lines",
            _skips_long_lines,
            "You left out a line that did not fit and went on with shorter ones. Stop at the first "
            "that does not fit, or short lines collect at the end.",
        ),
        Mutant(
            "cut_last_line",
            _cut_last_line,
            "You cut the last line to fill the text. Take whole lines only.",
        ),
        Mutant(
            "searched",
            _searched,
            "You looked for the needle's first id. Other places have it, too: note len(ids) when "
            "you put the needle in.",
        ),
        Mutant(
            "searched_whole",
            _searched_whole,
            "You searched the text for the needle. The hay may have the same ids: note where you "
            "put it.",
        ),
        Mutant(
            "rounded",
            _rounded,
            "You rounded depth times n. At least 4.2 tokens are 5, not 4.",
        ),
        Mutant(
            "cut_to_whole",
            _cut_to_whole,
            "You cut depth times n to a whole number. At least 4.8 tokens are 5.",
        ),
        Mutant(
            "nearest",
            _nearest,
            "You took the nearest boundary. Asked for is the first one with enough tokens before "
            "it.",
        ),
        Mutant(
            "head_in_depth",
            _head_in_depth,
            "You counted the head's tokens for the depth. Only those of the lines count.",
        ),
        Mutant(
            "more_than_depth",
            _more_than_depth,
            "You asked for more than depth times n. At least that many tokens will do.",
        ),
        Mutant(
            "one_per_boundary",
            _one_per_boundary,
            "You put one needle at most at a boundary. All whose depth is reached go there, one "
            "after the other.",
        ),
        Mutant(
            "last_boundary_forgotten",
            _last_boundary_forgotten,
            "You never looked at the boundary after the last line. A needle of depth 1 goes there.",
        ),
        Mutant(
            "one_line_too_many",
            _one_line_too_many,
            "You still took the line that does not fit. Test before you take it.",
        ),
        Mutant(
            "exact_fit_refused",
            _exact_fit_refused,
            "You refused a line that just fits. The text may have all of its length.",
        ),
    ],
    alternatives=[
        Alternative("backwards", _haystack_backwards),
        Alternative("greedy", _haystack_greedy),
    ],
)
def check_haystack(c):
    """Several lengths; depths at both ends; needles at one place; none; ids that repeat; no hay."""
    head, lines, needles = _material(c)
    whole = sum(map(len, [*head, *lines, *needles]))
    hay = sum(map(len, lines))
    head = head[0]
    depths = [0.0, 0.37, 0.71, 1.0]
    length = len(head) + sum(map(len, needles)) + int(0.8 * hay)
    got = c.call(head, lines, needles, depths, length, returns=2, label="runs, returns two lists")
    ids, starts = _by_marks(head, lines, needles, depths, length)
    with c.part():
        c.true(len(got[0]) <= length, "the text is not longer than asked for", f"{len(got[0])}")
    with c.part():
        c.equal(list(got[0]), ids, label="the text, token by token")
    with c.part():
        c.equal(list(got[1]), starts, label="each needle begins where it is said to begin")
    with c.part():
        two = [sorted([c.randint(1, 8, 1).item() / 8, c.randint(1, 8, 1).item() / 8])][0]
        length = len(head) + sum(map(len, needles[:2])) + int(0.55 * hay)
        got = c.call(head, lines, needles[:2], two, length, returns=2)
        want = _by_marks(head, lines, needles[:2], two, length)
        c.equal([list(g) for g in got], list(want), label="two needles, a shorter text")
    with c.part():
        got = c.call(head, lines, needles, [0.5] * 4, whole, returns=2)
        want = _by_marks(head, lines, needles, [0.5] * 4, whole)
        label = "four needles of one depth follow each other; all the hay is used"
        c.equal([list(g) for g in got], list(want), label=label)
    with c.part():
        room = sum(map(len, lines[:6]))
        length = len(head) + len(needles[0]) + room
        got = c.call(head, lines, needles[:1], [1.0], length, returns=2)
        want = _by_marks(head, lines, needles[:1], [1.0], length)
        c.equal([list(g) for g in got], list(want), label="lines that fit to the token are used")
    with c.part():
        got = c.call(head, lines, [], [], len(head) + room, returns=2)
        want = [head + [i for line in lines[:6] for i in line], []]
        c.equal([list(g) for g in got], want, label="no needle at all")
    with c.part():
        lines = [[7, 8, 9, 1], [7, 8, 9, 2], [7, 8, 9, 1], [7, 8, 9, 3], [7, 8, 9, 4]]
        needles = [[7, 8, 9], [7, 6], [7, 5], [7, 4], [7, 3], [7, 2]]
        depths = [0.25, 0.3, 0.34, 0.37, 0.45, 0.51]
        got = c.call([7, 8, 9], lines, needles, depths, 3 + 13 + 16, returns=2)
        ids = [7, 8, 9, *lines[0], *needles[0], *lines[1], *(i for n in needles[1:5] for i in n)]
        ids += [*lines[2], *needles[5], *lines[3]]
        c.equal(list(got[0]), ids, label="a depth at a boundary, and some just past one")
        label = "lines and needles begin alike: where each needle begins"
        c.equal(list(got[1]), [7, 14, 16, 18, 20, 26], label=label)
    with c.part():
        got = c.call([7], [[1, 2, 3]], [[5], [6]], [0.0, 1.0], 3, returns=2)
        label = "no line fits: the needles follow the head"
        c.equal([list(g) for g in got], [[7, 5, 6], [1, 2]], label=label)


def _material(c):
    """A head, lines of two lengths in a lopsided order, a long one that ends the hay, needles."""
    fresh = iter(range(100, 100_000))

    def some(n):
        return [next(fresh) for _ in range(n)]

    head = some(c.size(4, 7))
    short, long = c.size(2, 4), c.size(9, 12)
    sizes = [long] * 4 + [short] * c.size(8, 12) + [long, 3 * long, short, short, short]
    return [head], [some(n) for n in sizes], [some(n) for n in (5, 3, 4, c.size(6, 8))]


def _by_marks(head, lines, needles, depths, length):
    """The same by marking the boundaries first and measuring afterwards."""
    room = length - sum(map(len, [head, *needles]))
    count = max(k for k in range(len(lines) + 1) if sum(map(len, lines[:k])) <= room)
    kept = lines[:count]
    total = sum(map(len, kept))
    before = [sum(map(len, kept[:k])) for k in range(count + 1)]
    marks = [min(k for k in range(count + 1) if before[k] >= d * total) for d in depths]
    parts = [("hay", k, list(line)) for k, line in enumerate(kept)]
    parts += [("needle", k - 0.5, list(n)) for k, n in zip(marks, needles, strict=True)]
    parts.sort(key=lambda part: part[1])
    ids, starts = list(head), []
    for kind, _, piece in parts:
        if kind == "needle":
            starts.append(len(ids))
        ids = ids + piece
    return ids, starts
