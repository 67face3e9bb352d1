"""Which GPU holds which experts, and the busy ones several times."""

from __future__ import annotations

import heapq

import torch

from minids3.course.registry import Alternative, Mutant, exercise

# Loads are multiples of 27,720, which all numbers up to 12 divide: exact in any precision.
_UNIT = 27_720


# fmt: off
def place_experts(load, n_places, n_gpus):
    """Give busy experts more places, and spread them all over the GPUs.

    load [E]: tokens of each expert, some of them more than 0
    n_places: in all, E or more, equally many on each of the n_gpus
    1. Every expert has one replica. As long as there are places left, the
       expert with the most load PER REPLICA gets one more, the first of
       equals.
    2. A replica carries its expert's load divided by the expert's replicas.
       The heaviest comes first; of equals the one that was made first, in
       step 1's order. It goes to the GPU with the least load that has a
       place left, the first of equals.
    (Two or more places a GPU; two replicas of an expert may meet.)
    returns a list for each GPU, its experts in the order in which they came
    """
    load = [float(x) for x in load]
    expert_of, count = list(range(len(load))), [1] * len(load)
    while len(expert_of) < n_places:
        share = [x / n for x, n in zip(load, count, strict=True)]
        busiest = share.index(max(share))
        expert_of.append(busiest)
        count[busiest] += 1
    share = [load[e] / count[e] for e in expert_of]
    order = sorted(range(n_places), key=lambda r: -share[r])  # stable
    gpus, held = [[] for _ in range(n_gpus)], [0.0] * n_gpus
    for r in order:
        room = [g for g in range(n_gpus) if len(gpus[g]) < n_places // n_gpus]
        lightest = min(room, key=lambda g: held[g])
        gpus[lightest].append(expert_of[r])
        held[lightest] += share[r]
    return gpus
# fmt: on


def _replicas(load, n_places, key=None, last=False):
    load = [float(x) for x in load]
    expert_of, count = list(range(len(load))), [1] * len(load)
    while len(expert_of) < n_places:
        share = [x / n if key is None else key(x, n) for x, n in zip(load, count, strict=True)]
        best = max(share)
        busiest = max(e for e, s in enumerate(share) if s == best) if last else share.index(best)
        expert_of.append(busiest)
        count[busiest] += 1
    return expert_of, count, load


def _packed(
    expert_of, weight, n_gpus, *, up=False, room=True, ties="first", apart=False, emptier=False
):
    sign = 1 if up else -1
    order = sorted(range(len(expert_of)), key=lambda r: sign * weight[r])
    if ties == "last":
        order = sorted(range(len(expert_of)), key=lambda r: (sign * weight[r], -r))
    gpus, held = [[] for _ in range(n_gpus)], [0.0] * n_gpus
    size = len(expert_of) // n_gpus
    for r in order:
        free = [g for g in range(n_gpus) if not room or len(gpus[g]) < size]
        if apart:
            free = [g for g in free if expert_of[r] not in gpus[g]] or free
        lightest = min(free, key=lambda g: (held[g], len(gpus[g]) if emptier else 0))
        gpus[lightest].append(expert_of[r])
        held[lightest] += weight[r]
    return gpus


def _shares(expert_of, count, load):
    return [load[e] / count[e] for e in expert_of]


def _always_the_busiest(load, n_places, n_gpus):
    expert_of, count, load = _replicas(load, n_places, lambda x, n: x)
    return _packed(expert_of, _shares(expert_of, count, load), n_gpus)


def _one_more_each(load, n_places, n_gpus):
    load = [float(x) for x in load]
    ranked = sorted(range(len(load)), key=lambda e: -load[e])
    extra = [ranked[i % len(ranked)] for i in range(n_places - len(load))]
    expert_of = [*range(len(load)), *extra]
    count = [expert_of.count(e) for e in range(len(load))]
    return _packed(expert_of, _shares(expert_of, count, load), n_gpus)


def _after_adding(load, n_places, n_gpus):
    expert_of, count, load = _replicas(load, n_places, lambda x, n: x / (n + 1))
    return _packed(expert_of, _shares(expert_of, count, load), n_gpus)


def _floored_choice(load, n_places, n_gpus):
    expert_of, count, load = _replicas(load, n_places, lambda x, n: x // n)
    return _packed(expert_of, _shares(expert_of, count, load), n_gpus)


def _floored(load, n_places, n_gpus):
    expert_of, count, load = _replicas(load, n_places, lambda x, n: x // n)
    return _packed(expert_of, [load[e] // count[e] for e in expert_of], n_gpus)


def _emptier(load, n_places, n_gpus):
    expert_of, count, load = _replicas(load, n_places)
    return _packed(expert_of, _shares(expert_of, count, load), n_gpus, emptier=True)


def _whole_load(load, n_places, n_gpus):
    expert_of, _, load = _replicas(load, n_places)
    return _packed(expert_of, [load[e] for e in expert_of], n_gpus)


def _lightest_first(load, n_places, n_gpus):
    expert_of, count, load = _replicas(load, n_places)
    return _packed(expert_of, _shares(expert_of, count, load), n_gpus, up=True)


def _as_made(load, n_places, n_gpus):
    expert_of, count, load = _replicas(load, n_places)
    share = _shares(expert_of, count, load)
    gpus, held = [[] for _ in range(n_gpus)], [0.0] * n_gpus
    for r, e in enumerate(expert_of):
        room = [g for g in range(n_gpus) if len(gpus[g]) < n_places // n_gpus]
        lightest = min(room, key=held.__getitem__)
        gpus[lightest].append(e)
        held[lightest] += share[r]
    return gpus


def _no_room(load, n_places, n_gpus):
    expert_of, count, load = _replicas(load, n_places)
    return _packed(expert_of, _shares(expert_of, count, load), n_gpus, room=False)


def _dealt_out(load, n_places, n_gpus):
    expert_of, count, load = _replicas(load, n_places)
    share = _shares(expert_of, count, load)
    order = sorted(range(n_places), key=lambda r: -share[r])
    return [[expert_of[r] for r in order[g::n_gpus]] for g in range(n_gpus)]


def _by_number(load, n_places, n_gpus):
    expert_of, _, _ = _replicas(load, n_places)
    size, row = n_places // n_gpus, sorted(expert_of)
    return [row[g * size : (g + 1) * size] for g in range(n_gpus)]


def _kept_apart(load, n_places, n_gpus):
    expert_of, count, load = _replicas(load, n_places)
    return _packed(expert_of, _shares(expert_of, count, load), n_gpus, apart=True)


def _last_of_equals(load, n_places, n_gpus):
    expert_of, count, load = _replicas(load, n_places, last=True)
    return _packed(expert_of, _shares(expert_of, count, load), n_gpus)


def _last_made_first(load, n_places, n_gpus):
    expert_of, count, load = _replicas(load, n_places)
    return _packed(expert_of, _shares(expert_of, count, load), n_gpus, ties="last")


def _equals_by_expert(load, n_places, n_gpus):
    expert_of, count, load = _replicas(load, n_places)
    expert_of.sort()
    return _packed(expert_of, _shares(expert_of, count, load), n_gpus)


def _with_heaps(load, n_places, n_gpus):
    waiting = [(-float(x), e) for e, x in enumerate(load)]
    heapq.heapify(waiting)
    count, made = [1] * len(waiting), list(range(len(waiting)))
    for _ in range(n_places - len(count)):
        e = waiting[0][1]
        made.append(e)
        count[e] += 1
        heapq.heapreplace(waiting, (-float(load[e]) / count[e], e))
    lightest = [(0.0, g) for g in range(n_gpus)]
    gpus = [[] for _ in lightest]
    for share, _, e in sorted((-float(load[e]) / count[e], r, e) for r, e in enumerate(made)):
        held, g = heapq.heappop(lightest)
        gpus[g].append(e)
        if len(gpus[g]) * n_gpus < n_places:
            heapq.heappush(lightest, (held - share, g))
    return gpus


def _with_tensors(load, n_places, n_gpus):
    load = torch.as_tensor(load, dtype=torch.float32)
    count, made = torch.ones(len(load)), list(range(len(load)))
    for _ in range(n_places - len(load)):
        made.append(int(torch.argmax(load / count)))
        count[made[-1]] += 1
    share = (load / count)[made]
    held, number = torch.zeros(n_gpus), torch.zeros(n_gpus)
    gpus = [[] for _ in range(n_gpus)]
    for r in torch.sort(share, descending=True, stable=True).indices.tolist():
        full = number >= n_places / n_gpus
        g = int(torch.where(full, torch.inf, held).argmin())
        gpus[g].append(made[r])
        held[g] += share[r]
        number[g] += 1
    return gpus


@exercise(
    "serve-place",
    solution=place_experts,
    notebook="16_serving",
    title="Placing redundant experts",
    difficulty=4,
    importance=4,
    minutes=20,
    forbids=("minids3.sim.eplb.*",),
    hints=(
        "Loads 90, 40 and 35, five places. Who gets the fourth? After that, what does each of its "
        "two replicas carry, and who gets the fifth? Then: five parcels, heaviest first, onto the "
        "cart that carries least. Why heaviest first?",
        "replicas = one of each expert; count = 1 each\n"
        "while places are left: e = first with the largest load / count; one more replica of it\n"
        "share of a replica = load / count of its expert\n"
        "for replicas by share, descending, equal ones as they were made:\n"
        "    the GPU with the least load among those with room gets it",
    ),
    mutants=[
        Mutant(
            "always_the_busiest",
            _always_the_busiest,
            "You compared whole loads, so that one expert gets every place. Once it has a second "
            "replica each carries half; the next place goes by load per replica.",
        ),
        Mutant(
            "one_more_each",
            _one_more_each,
            "You gave the busiest experts one more replica each, in turn. One that is still the "
            "busiest after that gets a third before another gets its second.",
        ),
        Mutant(
            "after_adding",
            _after_adding,
            "You compared what a replica would carry after one more had been added. It goes to "
            "whoever carries most now.",
        ),
        Mutant(
            "floored_choice",
            _floored_choice,
            "You compared loads per replica in whole tokens. 7 tokens on two replicas are 3.5 "
            "each, more than the 3 of an expert that has one.",
        ),
        Mutant(
            "floored",
            _floored,
            "Your replicas carry whole tokens, in both steps. 7 tokens on two replicas are 3.5 "
            "each: divide without rounding.",
        ),
        Mutant(
            "emptier",
            _emptier,
            "Of GPUs with equal loads you took the one with fewer replicas. It is the first of "
            "them, however many it holds.",
        ),
        Mutant(
            "whole_load",
            _whole_load,
            "You packed replicas with their expert's whole load. Replicas share it.",
        ),
        Mutant(
            "lightest_first",
            _lightest_first,
            "You packed the lightest first. The heavy ones then come when everything is nearly "
            "full, and find no place where they fit well.",
        ),
        Mutant(
            "as_made",
            _as_made,
            "You packed the replicas in the order in which they were made. Sort them by what they "
            "carry, heaviest first.",
        ),
        Mutant(
            "no_room",
            _no_room,
            "You filled GPUs beyond their places. Each has room for n_places / n_gpus replicas, "
            "since memory is what is scarce.",
        ),
        Mutant(
            "dealt_out",
            _dealt_out,
            "You dealt the sorted replicas out in turn. The first GPU then has the heaviest of "
            "every round; look at who carries least instead.",
        ),
        Mutant(
            "by_number",
            _by_number,
            "You placed the replicas by their experts' numbers. That puts all replicas of one "
            "expert side by side, which relieves nobody.",
        ),
        Mutant(
            "kept_apart",
            _kept_apart,
            "You kept replicas of one expert apart. It is a good idea, and not the rule: EPLB lets "
            "them meet, and this exercise is about what it does.",
        ),
        Mutant(
            "last_of_equals",
            _last_of_equals,
            "Of equally busy experts the first one gets the place; you took the last.",
        ),
        Mutant(
            "last_made_first",
            _last_made_first,
            "Of equally heavy replicas the one that was made first goes first; yours come in "
            "reverse.",
        ),
        Mutant(
            "equals_by_expert",
            _equals_by_expert,
            "You took equally heavy replicas by their experts' numbers. Their order is that of "
            "step 1: each expert's first replica, then the others as they were made.",
        ),
    ],
    alternatives=[
        Alternative("with_heaps", _with_heaps),
        Alternative("with_tensors", _with_tensors),
    ],
)
def check_place_experts(c):
    """A steep load, equal loads, no redundancy, odd loads and none, one hot expert, ties."""
    experts, gpus = c.size(9, 11), c.size(4, 5)
    places = gpus * (experts // gpus + 2)
    load = _skewed(c, experts)
    got = c.call(
        load, places, gpus, label=f"runs on {experts} experts, {places} places, {gpus} GPUs"
    )
    want = _expected(load, places, gpus)
    with c.part():
        c.equal(_counts(got, experts), _counts(want, experts), label="how many replicas each has")
    with c.part():
        c.equal(_lists(got), want, label="which GPU holds which")
    with c.part():
        more = 2 * gpus * (experts // gpus + 1)
        load = _skewed(c, experts)
        got = c.call(load, more, gpus)
        label = f"{more} places: the busiest GPU's load"
        c.close(_busiest(got, load), _busiest(_expected(load, more, gpus), load), label=label)
        c.equal(_lists(got), _expected(load, more, gpus), label="and who holds what")
    with c.part():
        few = c.randint(1, 4, experts) * _UNIT
        few[c.randint(0, experts, 1)] = 3 * _UNIT
        got = c.call(few, places, gpus)
        c.equal(
            _lists(got), _expected(few, places, gpus), label="many equal loads: first of equals"
        )
    with c.part():
        n = 3 * gpus
        plain = c.randint(1, 60, n) * _UNIT
        plain[c.rand(n).argsort()[:2]] = torch.tensor([300, 200]) * _UNIT
        got = c.call(plain, n, gpus)
        c.equal(_lists(got), _expected(plain, n, gpus), label="no place to spare: packing alone")
    with c.part():
        # Nobody gets a third replica: halves are exact in any precision.
        odd = torch.tensor([3, 7, 4, 0, 2])
        got = c.call(odd, 6, 2)
        c.equal(_lists(got), _expected(odd, 6, 2),
                label="halves of tokens, and an expert without any")  # fmt: skip
    with c.part():
        hot = c.randint(1, 4, experts) * _UNIT
        hot[c.randint(0, experts, 1)] = 20 * _UNIT
        got = c.call(hot, places, gpus)
        c.equal(_lists(got), _expected(hot, places, gpus), label="one expert far above the others")
    m = 2 * c.size(1, 9) + 1
    for pair in ([m, 2 * m + 1], [2 * m + 1, m + 1]):
        with c.part():
            got = c.call(torch.tensor(pair), 4, 2)
            label = f"four places for loads of {pair[0]} and {pair[1]}: half a token decides"
            c.equal(_lists(got), _expected(torch.tensor(pair), 4, 2), label=label)
    for name, loads in (
        ("the first of which holds more", [6, 5, 5, 2, 2, 1, 1, 1]),
        ("the first of which holds less", [6, 3, 3, 1, 1, 1]),
    ):
        with c.part():
            even = c.size(1, 9) * torch.tensor(loads)[c.rand(len(loads)).argsort()]
            got = c.call(even, len(loads), 2)
            label = f"two GPUs of equal load, {name}"
            c.equal(_lists(got), _expected(even, len(loads), 2), label=label)
    with c.part():
        none = c.size(1, 9) * torch.tensor([5, 3, 3, 0, 0, 0])[c.rand(6).argsort()]
        got = c.call(none, 6, 2)
        label = "experts without any load go where the load is least, too"
        c.equal(_lists(got), _expected(none, 6, 2), label=label)


def _skewed(c, experts):
    """Loads that fall off, in random order."""
    falling = torch.tensor([60 // (i + 1) for i in range(experts)])
    return (falling + c.randint(0, 9, experts))[c.rand(experts).argsort()] * _UNIT


def _lists(gpus):
    return [[int(e) for e in gpu] for gpu in gpus]


def _counts(gpus, experts):
    held = [int(e) for gpu in gpus for e in gpu]
    return [held.count(e) for e in range(experts)]


def _busiest(gpus, load):
    counts = _counts(gpus, len(load))
    shares = [float(x) / max(n, 1) for x, n in zip(load, counts, strict=True)]
    return max(sum(shares[int(e)] for e in gpu) for gpu in gpus)


def _expected(load, n_places, n_gpus):
    from minids3.sim import eplb

    found = eplb.place(load[None].float(), n_places, 1, 1, n_gpus, policy="global")
    return found.phy2log[0].view(n_gpus, -1).tolist()
