"""Where the gradients of weights go."""

from __future__ import annotations

from minids3.course.compare import describe
from minids3.course.registry import Alternative, Mutant, exercise


# fmt: off
def put_off(order, delay):
    """Split each backward of a rank's order, and put its W off.

    order: list of ("F", i) and ("B", i), i a micro-batch
    delay: how many Is may wait for their W
    returns a list of ("F", i), ("I", i) and ("W", i): each B becomes an I.
    As soon as more than `delay` Is have no W, the W of the one that has
    waited longest follows; those that still wait at the end come last,
    the longest first.
    """
    new, waiting = [], []
    for kind, i in order:
        if kind == "F":
            new.append(("F", i))
        else:
            new.append(("I", i))
            waiting.append(i)
            if len(waiting) > delay:
                new.append(("W", waiting.pop(0)))
    return new + [("W", i) for i in waiting]
# fmt: on


def _placed(order, delay, oldest=True, rest=1):
    new, waiting = [], []
    for kind, i in order:
        new.append(("I" if kind == "B" else kind, i))
        if kind == "B":
            waiting.append(i)
            if len(waiting) > delay:
                new.append(("W", waiting.pop(0 if oldest else -1)))
    return new + [("W", i) for i in waiting[::rest]] if rest else new


def _one_early(order, delay):
    return _placed(order, max(delay - 1, 0))


def _one_late(order, delay):
    return _placed(order, delay + 1)


def _newest_first(order, delay):
    return _placed(order, delay, oldest=False)


def _rest_lost(order, delay):
    return _placed(order, delay, rest=0)


def _rest_backwards(order, delay):
    return _placed(order, delay, rest=-1)


def _at_the_end(order, delay):
    return _placed(order, len(order))


def _not_put_off(order, delay):
    return _placed(order, 0)


def _w_before_i(order, delay):
    new, waiting = [], []
    for kind, i in order:
        if kind == "B":
            waiting.append(i)
            if len(waiting) > delay:
                new.append(("W", waiting.pop(0)))
        new.append(("I" if kind == "B" else kind, i))
    return new + [("W", i) for i in waiting]


def _counts_forwards(order, delay):
    new, waiting = [], []
    for kind, i in order:
        new.append(("I" if kind == "B" else kind, i))
        waiting = [(j, age + 1) for j, age in waiting]
        if kind == "B":
            waiting.append((i, 0))
        if waiting and waiting[0][1] >= delay:
            new.append(("W", waiting.pop(0)[0]))
    return new + [("W", i) for i, _ in waiting]


def _numbered(order, delay, number):
    """The W's micro-batch comes from a count, or from the I's own number, and not from a list."""
    new, count = [], 0
    for kind, i in order:
        new.append(("I" if kind == "B" else kind, i))
        if kind == "B":
            count += 1
            if count > delay:
                new.append(("W", number(count, i)))
    return new + [("W", i) for i in range(max(0, count - delay), count)]


def _by_number(order, delay):
    return _numbered(order, delay, lambda count, i: count - 1 - delay)


def _own_number(order, delay):
    return _numbered(order, delay, lambda count, i: i - delay)


def _smallest_first(order, delay):
    new, waiting = [], []
    for kind, i in order:
        new.append(("I" if kind == "B" else kind, i))
        if kind == "B":
            waiting.append(i)
            if len(waiting) > delay:
                new.append(("W", min(waiting)))
                waiting.remove(min(waiting))
    return new + [("W", i) for i in sorted(waiting)]


def _slice_of_zero(order, delay):
    new, done = [], []
    for kind, i in order:
        new.append(("I" if kind == "B" else kind, i))
        if kind == "B":
            done.append(i)
            if len(done) > delay:
                new.append(("W", done[-1 - delay]))
    return new + [("W", i) for i in done[-delay:]]


def _still_whole(order, delay):
    new = _placed(order, delay)
    return [("B", i) if kind == "I" else (kind, i) for kind, i in new]


def _with_queue(order, delay):
    from collections import deque

    queue, out = deque(), []
    for action in order:
        if action[0] != "B":
            out.append(action)
            continue
        out.append(("I", action[1]))
        queue.append(action[1])
        while len(queue) > delay:
            out.append(("W", queue.popleft()))
    while queue:
        out.append(("W", queue.popleft()))
    return out


def _by_place(order, delay):
    backwards = [i for kind, i in order if kind == "B"]
    out, seen = [], 0
    for kind, i in order:
        if kind == "F":
            out += [("F", i)]
            continue
        out += [("I", i)]
        if seen - delay >= 0:
            out += [("W", backwards[seen - delay])]
        seen += 1
    return out + [("W", i) for i in backwards[max(0, len(backwards) - delay) :]]


@exercise(
    "pipe-put-off",
    solution=put_off,
    notebook="15_pipelines_and_dualpipe",
    title="Where the W goes",
    difficulty=2,
    importance=4,
    minutes=10,
    hints=(
        "Who is waiting for the result of an I, and who for that of a W? Keep a list of those "
        "micro-batches whose W is still to come: when does it grow, when does it shrink, and "
        "from which end?",
        "waiting = empty\n"
        "for each action: copy a forward\n"
        "    for a backward: add I; its micro-batch waits\n"
        "    more than delay wait: add the W of the one that came first\n"
        "at the end: the W of all that still wait, in their order",
    ),
    mutants=[
        Mutant(
            "one_early",
            _one_early,
            "Your W comes one backward too early: `delay` of them may wait, and only one more "
            "than that is one too many.",
        ),
        Mutant(
            "one_late",
            _one_late,
            "You let one more wait than `delay`. That holds the activations of one micro-batch "
            "more than the pipeline has memory for.",
        ),
        Mutant(
            "newest_first",
            _newest_first,
            "You took the W of the newest I. The first in line waits until the end then, and its "
            "activations with it.",
        ),
        Mutant(
            "rest_lost",
            _rest_lost,
            "The Ws that still wait at the end are lost. Those micro-batches would leave no "
            "gradient in the weights.",
        ),
        Mutant(
            "rest_backwards",
            _rest_backwards,
            "The Ws at the end are in the wrong order: the one that has waited longest comes "
            "first.",
        ),
        Mutant(
            "at_the_end",
            _at_the_end,
            "You put all Ws at the end. The pauses before it stay empty, and what a W needs is "
            "held for every micro-batch.",
        ),
        Mutant(
            "not_put_off",
            _not_put_off,
            "You did not use `delay`: every W follows its I at once.",
        ),
        Mutant(
            "w_before_i",
            _w_before_i,
            "Your W comes before the I that makes room for it. The I goes first: another rank is "
            "waiting for it.",
        ),
        Mutant(
            "counts_forwards",
            _counts_forwards,
            "You counted all actions, forwards too. `delay` counts backwards that wait.",
        ),
        Mutant(
            "by_number",
            _by_number,
            "You computed the W's micro-batch from a count. Micro-batches need not come in the "
            "order 0, 1, 2: keep a list of those that wait.",
        ),
        Mutant(
            "own_number",
            _own_number,
            "Your W is that of micro-batch i - delay. Numbers need not rise by one from backward "
            "to backward: keep a list of those that wait.",
        ),
        Mutant(
            "smallest_first",
            _smallest_first,
            "You took the W with the smallest number. The one that has waited longest goes first.",
        ),
        Mutant(
            "slice_of_zero",
            _slice_of_zero,
            "With delay 0 your slice [-0:] is the whole list, and every W is done twice.",
        ),
        Mutant(
            "still_whole",
            _still_whole,
            "Your order has a W, and the whole B as well, which contains it. Each B becomes an I.",
        ),
    ],
    alternatives=[
        Alternative("with_queue", _with_queue),
        Alternative("by_place", _by_place),
    ],
)
def check_put_off(c):
    """A 1F1B rank, delays from 0 to more than there are backwards, another order."""
    batches, lead, delay = c.size(8, 11), c.size(2, 3), c.size(2, 3)
    order = [("F", i) for i in range(lead)]
    for i in range(batches):
        order += [("F", lead + i)] * (lead + i < batches) + [("B", i)]
    got = c.call(list(order), delay, label=f"runs on {batches} micro-batches with delay {delay}")
    c.true(isinstance(got, list | tuple), "it is a list", f"it is {describe(got)}")
    kinds = sorted(_pairs(got))
    wanted = sorted((kind, i) for kind in "FIW" for i in range(batches))
    c.equal(kinds, wanted, label="one F, one I and one W for every micro-batch")
    with c.part():
        got = [(kind, i) for kind, i in _pairs(got) if kind != "W"]
        wanted = [("I" if kind == "B" else kind, i) for kind, i in order]
        c.equal(got, wanted, label="F and I keep the old order")
    for late in (delay, 1, 0, batches + 2):
        with c.part():
            got = _pairs(c.call(list(order), late))
            c.equal(got, _expected(order, late), label=f"delay {late}: every W in its place")
    with c.part():
        numbers = c.randint(0, 2**31, batches).argsort().tolist()
        if numbers[-2] < numbers[-1]:  # sorting what waits at the end must show
            numbers.reverse()
        mixed = [(kind, numbers[i]) for kind, i in order]
        got = _pairs(c.call(mixed, delay))
        c.equal(got, _expected(mixed, delay), label="micro-batches in another order")
    with c.part():
        c.equal(_pairs(c.call([("F", 0)], 1)), [("F", 0)], label="no backward, no W")
    with c.part():
        got = _pairs(c.call([("F", 0), ("B", 0), ("F", 1)], 1))
        label = "what still waits comes last, after a last forward, too"
        c.equal(got, [("F", 0), ("I", 0), ("F", 1), ("W", 0)], label=label)


def _expected(order, delay):
    """Each W has a place of its own: just after the I that comes `delay` backwards later."""
    at = [place for place, (kind, _) in enumerate(order) if kind == "B"]
    places = [
        (place, 0, ("I" if kind == "B" else kind, i)) for place, (kind, i) in enumerate(order)
    ]
    for n, place in enumerate(at):
        later = at[n + delay] if n + delay < len(at) else len(order) + n
        places.append((later, 1, ("W", order[place][1])))
    return [action for _, _, action in sorted(places, key=lambda entry: entry[:2])]


def _pairs(order):
    return [tuple(action) for action in order]
