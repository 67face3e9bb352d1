"""The order of one rank in a 1F1B pipeline."""

from __future__ import annotations

from minids3.course.compare import describe
from minids3.course.registry import Alternative, Mutant, exercise


# fmt: off
def one_f_one_b(rank, n_ranks, n_microbatches):
    """What one rank of a 1F1B pipeline does, in order.

    rank: 0 holds the first stage, n_ranks - 1 the last
    returns a list of ("F", i) and ("B", i), each micro-batch once forward
    and once backward, both in the order 0, 1, 2 ...: first a forward for
    every rank that comes after this one, then a forward and a backward in
    turn, then the backwards that are left. With fewer micro-batches than
    that, all forwards come first.
    """
    ahead = min(n_ranks - 1 - rank, n_microbatches)
    order = [("F", i) for i in range(ahead)]
    for i in range(n_microbatches):
        if ahead + i < n_microbatches:
            order.append(("F", ahead + i))
        order.append(("B", i))
    return order
# fmt: on


def _with_warmup(ahead, n):
    forwards, backwards = [("F", i) for i in range(n)], [("B", i) for i in range(n)]
    order, rest = forwards[:ahead], forwards[ahead:]
    for i, backward in enumerate(backwards):
        order += [*rest[i : i + 1], backward]
    return order


def _gpipe(rank, n_ranks, n_microbatches):
    return _with_warmup(n_microbatches, n_microbatches)


def _serial(rank, n_ranks, n_microbatches):
    return _with_warmup(0, n_microbatches)


def _one_more(rank, n_ranks, n_microbatches):
    return _with_warmup(n_ranks - rank, n_microbatches)


def _one_less(rank, n_ranks, n_microbatches):
    return _with_warmup(max(n_ranks - rank - 2, 0), n_microbatches)


def _ranks_before(rank, n_ranks, n_microbatches):
    return _with_warmup(rank, n_microbatches)


def _alike(rank, n_ranks, n_microbatches):
    return _with_warmup(n_ranks - 1, n_microbatches)


def _twice(rank, n_ranks, n_microbatches):
    return _with_warmup(2 * (n_ranks - 1 - rank), n_microbatches)


def _last_in_first_out(rank, n_ranks, n_microbatches):
    order, held = [], []
    for kind, i in one_f_one_b(rank, n_ranks, n_microbatches):
        if kind == "F":
            held.append(i)
        order.append((kind, i) if kind == "F" else ("B", held.pop()))
    return order


def _no_rest(rank, n_ranks, n_microbatches):
    order = one_f_one_b(rank, n_ranks, n_microbatches)
    last = max(i for i, (kind, _) in enumerate(order) if kind == "F")
    return order[: last + 2]


def _backward_first(rank, n_ranks, n_microbatches):
    ahead = min(n_ranks - 1 - rank, n_microbatches)
    order = [("F", i) for i in range(ahead)]
    for i in range(n_microbatches):
        order.append(("B", i))
        if ahead + i < n_microbatches:
            order.append(("F", ahead + i))
    return order


def _same_number(rank, n_ranks, n_microbatches):
    ahead = min(n_ranks - 1 - rank, n_microbatches)
    order = [("F", i) for i in range(ahead)]
    for i in range(ahead, n_microbatches):
        order += [("F", i), ("B", i)]
    return order + [("B", i) for i in range(ahead)]


def _not_clamped(rank, n_ranks, n_microbatches):
    order = [("F", i) for i in range(n_ranks - 1 - rank)]
    for i in range(n_microbatches):
        if n_ranks - 1 - rank + i < n_microbatches:
            order.append(("F", n_ranks - 1 - rank + i))
        order.append(("B", i))
    return order


def _by_memory(rank, n_ranks, n_microbatches):
    order, forwards, backwards = [], 0, 0
    while backwards < n_microbatches:
        if forwards < n_microbatches and forwards - backwards < n_ranks - rank:
            order.append(("F", forwards))
            forwards += 1
        else:
            order.append(("B", backwards))
            backwards += 1
    return order


def _three_lists(rank, n_ranks, n_microbatches):
    lead = n_ranks - rank - 1
    lead = lead if lead < n_microbatches else n_microbatches
    turns = [
        step
        for f, b in zip(range(lead, n_microbatches), range(n_microbatches), strict=False)
        for step in (("F", f), ("B", b))
    ]
    rest = [("B", b) for b in range(n_microbatches - lead, n_microbatches)]
    return [("F", f) for f in range(lead)] + turns + rest


@exercise(
    "pipe-1f1b",
    solution=one_f_one_b,
    notebook="15_pipelines_and_dualpipe",
    title="One forward, one backward",
    difficulty=2,
    importance=5,
    minutes=12,
    hints=(
        "How many micro-batches must the first rank have sent on before the first gradient can "
        "come back to it? And how many must the last rank? How many does a rank hold once it "
        "takes turns?",
        "ahead = ranks after this one, at most n_microbatches\n"
        "forwards 0 ... ahead - 1\n"
        "for i = 0, 1, ...: forward ahead + i, as long as there is one; backward i",
    ),
    mutants=[
        Mutant(
            "gpipe",
            _gpipe,
            "You do all forwards before the first backward. That is GPipe: right results, no more "
            "idle time, but the activations of every micro-batch are held at once.",
        ),
        Mutant(
            "serial",
            _serial,
            "Your rank waits for each micro-batch to come back before it sends the next. Only one "
            "rank of the pipeline works at a time then.",
        ),
        Mutant(
            "one_more",
            _one_more,
            "You send one forward too many ahead. The turn itself begins with a forward, so count "
            "the ranks after this one, without itself.",
        ),
        Mutant(
            "one_less",
            _one_less,
            "You send one forward too few ahead. Each rank after this one gets one before the "
            "first gradient comes back.",
        ),
        Mutant(
            "ranks_before",
            _ranks_before,
            "You counted the ranks before this one. A gradient comes back from the ranks after "
            "it: the first rank sends most ahead, the last none.",
        ),
        Mutant(
            "alike",
            _alike,
            "All your ranks send equally many ahead. The nearer a rank is to the end, the sooner "
            "its first gradient comes back.",
        ),
        Mutant(
            "twice",
            _twice,
            "You send two forwards ahead for each later rank. That is what interleaved 1F1B does; "
            "here one is enough and holds half as much.",
        ),
        Mutant(
            "last_in_first_out",
            _last_in_first_out,
            "Your backward takes the newest micro-batch. The oldest comes back first: it was "
            "first at the end of the pipeline, too.",
        ),
        Mutant(
            "no_rest",
            _no_rest,
            "Your order ends with the last forward's turn. The micro-batches that were sent ahead "
            "are still without their backward.",
        ),
        Mutant(
            "backward_first",
            _backward_first,
            "Each of your turns begins with the backward. The last rank sends nothing ahead, so "
            "it would go backward before it has gone forward.",
        ),
        Mutant(
            "same_number",
            _same_number,
            "You go backward through the micro-batch that has just gone forward. On any rank but "
            "the last its gradient is not there yet; the oldest one's is.",
        ),
        Mutant(
            "not_clamped",
            _not_clamped,
            "With few micro-batches you send ahead some that do not exist.",
        ),
    ],
    alternatives=[
        Alternative("by_memory", _by_memory),
        Alternative("three_lists", _three_lists),
    ],
)
def check_one_f_one_b(c):
    """First, middle and last rank, a short batch, one rank alone."""
    ranks = c.size(6, 8)
    batches = c.size(2 * ranks + 2, 3 * ranks)
    middle = c.size(2, ranks - 4)
    got = c.call(1, ranks, batches, label=f"runs for rank 1 of {ranks}, {batches} micro-batches")
    c.true(isinstance(got, list | tuple), "it is a list", f"it is {describe(got)}")
    label = "every micro-batch goes forward once and backward once"
    wanted = sorted((kind, i) for kind in "FB" for i in range(batches))
    c.equal(sorted(_pairs(got)), wanted, label=label)
    c.equal(_pairs(got), _expected(1, ranks, batches), label="rank 1 has the right order")
    for rank, name in ((0, "the first rank"), (middle, f"rank {middle}"), (ranks - 1, "the last")):
        with c.part():
            got = _pairs(c.call(rank, ranks, batches))
            held = _most_held(got)
            label = f"{name} never holds more than {ranks - rank} micro-batches"
            c.true(held <= ranks - rank, label, f"it holds {held}")
            c.equal(got, _expected(rank, ranks, batches), label=f"{name} has the right order")
    with c.part():
        got = _pairs(c.call(0, ranks, 4))
        label = "four micro-batches on more ranks: four forwards, four backwards"
        c.equal(got, [(kind, i) for kind in "FB" for i in range(4)], label=label)
    with c.part():
        few = c.size(3, 5)
        got = _pairs(c.call(0, few + 1, few))
        label = f"{few} micro-batches and as many ranks after this one: all forwards first"
        c.equal(got, [(kind, i) for kind in "FB" for i in range(few)], label=label)
        got = _pairs(c.call(0, few + 1, few + 1))
        c.equal(got, _expected(0, few + 1, few + 1), label="and one micro-batch more: one turn")
    with c.part():
        got = _pairs(c.call(0, 1, 2))
        label = "a single rank takes turns from the start"
        c.equal(got, [("F", 0), ("B", 0), ("F", 1), ("B", 1)], label=label)


def _expected(rank, n_ranks, n_microbatches):
    """Every action at the place that counting gives it, no loop over turns."""
    lead = n_ranks - 1 - rank
    place = {}
    for i in range(n_microbatches):
        place["F", i] = i + max(0, i - lead)
        place["B", i] = min(lead + i + 1, n_microbatches) + i
    return sorted(place, key=place.__getitem__)


def _most_held(order):
    held = most = 0
    for kind, _ in order:
        held += 1 if kind == "F" else -1
        most = max(most, held)
    return most


def _pairs(order):
    return [tuple(action) for action in order]
