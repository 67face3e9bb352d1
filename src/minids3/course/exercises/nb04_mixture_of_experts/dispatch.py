"""Dispatch: sort token-expert pairs by expert, and remember the way back."""

from __future__ import annotations

import torch

from minids3.course.registry import Alternative, Mutant, exercise


def plan_dispatch(indices, n_experts):
    """Sort the pairs of tokens and experts by expert.

    indices [N, K] int64: the experts of each token
    pair n * K + k is token n with its k-th expert
    returns order [N*K], the pair at each place after sorting (pairs of one
    expert stay in their old order); inverse [N*K], the place of each pair;
    counts [E], pairs per expert
    """
    experts = indices.flatten()
    order = torch.argsort(experts, stable=True)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order))
    counts = torch.bincount(experts, minlength=n_experts)
    return order, inverse, counts


def _inverse(order):
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order))
    return inverse


def _dispatch_no_empty(indices, n_experts):
    order, inverse, _ = plan_dispatch(indices, n_experts)
    return order, inverse, torch.unique(indices, return_counts=True)[1]


def _dispatch_no_minlength(indices, n_experts):
    order, inverse, _ = plan_dispatch(indices, n_experts)
    return order, inverse, torch.bincount(indices.flatten())


def _dispatch_order_twice(indices, n_experts):
    order, _, counts = plan_dispatch(indices, n_experts)
    return order, order.clone(), counts


def _dispatch_tokens(indices, n_experts):
    order, inverse, counts = plan_dispatch(indices, n_experts)
    return order // indices.shape[1], inverse, counts


def _dispatch_slot_major(indices, n_experts):
    experts = indices.T.flatten()
    order = torch.argsort(experts, stable=True)
    return order, _inverse(order), torch.bincount(experts, minlength=n_experts)


def _dispatch_backwards(indices, n_experts):
    experts = indices.flatten()
    order = torch.argsort(experts.flip(0), stable=True)
    order = len(order) - 1 - order
    return order, _inverse(order), torch.bincount(experts, minlength=n_experts)


def _dispatch_descending(indices, n_experts):
    experts = indices.flatten()
    order = torch.argsort(experts, descending=True, stable=True)
    return order, _inverse(order), torch.bincount(experts, minlength=n_experts)


def _dispatch_first_choice(indices, n_experts):
    order, inverse, _ = plan_dispatch(indices, n_experts)
    return order, inverse, torch.bincount(indices[:, 0], minlength=n_experts)


def _dispatch_dropping(indices, n_experts):
    capacity = -(-indices.numel() // n_experts)
    order, inverse, counts = plan_dispatch(indices, n_experts)
    starts = counts.cumsum(0) - counts
    rank = torch.arange(len(order)) - starts[indices.flatten()[order]]
    order = order[rank < capacity]
    return order, inverse, counts.clamp(max=capacity)


def _dispatch_one_key(indices, n_experts):
    experts = indices.reshape(-1)
    pairs = torch.arange(experts.numel())
    order = (experts * experts.numel() + pairs).sort().values % max(experts.numel(), 1)
    hits = experts[:, None] == torch.arange(n_experts)
    return order, order.argsort(), hits.sum(0)


def _dispatch_buckets(indices, n_experts):
    buckets = [[] for _ in range(n_experts)]
    for pair, expert in enumerate(indices.flatten().tolist()):
        buckets[expert].append(pair)
    order = [pair for bucket in buckets for pair in bucket]
    place = {pair: at for at, pair in enumerate(order)}
    inverse = [place[pair] for pair in range(len(order))]
    return (
        torch.tensor(order, dtype=torch.int64),
        torch.tensor(inverse, dtype=torch.int64),
        torch.tensor([len(b) for b in buckets], dtype=torch.int64),
    )


def _not_stable(indices, n_experts):
    experts = indices.flatten()
    order = experts.argsort()
    return order, order.argsort(), torch.bincount(experts, minlength=n_experts)


def _int8_key(indices, n_experts):
    order = torch.argsort(indices.flatten().to(torch.int8), stable=True)
    return order, order.argsort(), torch.bincount(indices.flatten(), minlength=n_experts)


def _float_counts(indices, n_experts):
    order, inverse, _ = plan_dispatch(indices, n_experts)
    counts = torch.zeros(n_experts).index_add(0, indices.flatten(), torch.ones(indices.numel()))
    return order, inverse, counts


def _names_swapped(indices, n_experts):
    order, inverse, counts = plan_dispatch(indices, n_experts)
    return inverse, order, counts


def _viewed(indices, n_experts):
    return plan_dispatch(indices.view(-1)[:, None], n_experts)


def _one_hot(indices, n_experts):
    hit = torch.zeros(indices.numel(), n_experts, dtype=torch.int64)
    hit[torch.arange(indices.numel()), indices.reshape(-1)] = 1
    counts = hit.sum(0)
    begin = counts.cumsum(0) - counts
    inverse = ((hit.cumsum(0) - 1 + begin) * hit).sum(1)
    order = torch.zeros(indices.numel(), dtype=torch.int64)
    order[inverse] = torch.arange(indices.numel())
    return order, inverse, counts


@exercise(
    "moe-dispatch",
    solution=plan_dispatch,
    notebook="04_mixture_of_experts",
    title="Everyone to their expert, and the way back",
    difficulty=3,
    importance=5,
    minutes=10,
    hints=(
        "argsort answers: which pair is at place 0, at place 1, ...? What is the opposite "
        "question, and how do you answer it by writing instead of reading? How long must counts "
        "be if the last expert has nothing to do?",
        "experts = indices flattened                       # [N*K], pair n*K + k\n"
        "order = stable argsort of experts                 # which pair is at place p\n"
        "inverse[order[p]] = p for every place p           # where pair i is\n"
        "counts = how often each expert occurs, E numbers\n"
        "return order, inverse, counts",
    ),
    mutants=[
        Mutant(
            "no_empty",
            _dispatch_no_empty,
            "Experts without tokens are missing in counts, so every later expert reads its "
            "neighbour's block. An empty expert counts 0.",
        ),
        Mutant(
            "no_minlength",
            _dispatch_no_minlength,
            "counts ends at the last expert that was chosen. It has one number for each of the E "
            "experts: see minlength.",
        ),
        Mutant(
            "order_twice",
            _dispatch_order_twice,
            "You returned order as its own inverse. order asks which pair is at a place; "
            "inverse asks at which place a pair is.",
        ),
        Mutant(
            "tokens",
            _dispatch_tokens,
            "order holds token numbers. It must hold pair numbers n * K + k, or the way back "
            "cannot tell the K copies of a token apart.",
        ),
        Mutant(
            "slot_major",
            _dispatch_slot_major,
            "You numbered the pairs slot by slot. Pair n * K + k: the K experts of a token are "
            "neighbours.",
        ),
        Mutant(
            "backwards",
            _dispatch_backwards,
            "Within an expert the pairs are not in their old order. Sort stably: then sums come "
            "out the same each time.",
        ),
        Mutant(
            "descending",
            _dispatch_descending,
            "You put the last expert first. Block e must belong to expert e.",
        ),
        Mutant(
            "first_choice",
            _dispatch_first_choice,
            "counts holds first choices only. Each of a token's K choices is work for an expert.",
        ),
        Mutant(
            "dropping",
            _dispatch_dropping,
            "You gave experts a capacity and dropped what exceeds it. DeepSeek-V3 drops no token, "
            "neither in training nor when it is used (TR section 2.1.2).",
        ),
        Mutant(
            "not_stable",
            _not_stable,
            "argsort alone does not keep pairs of one expert in their old order: say stable=True.",
        ),
        Mutant(
            "int8_key",
            _int8_key,
            "You sorted 8-bit numbers, which end at 127. V3 has 256 experts: sort the int64 ids.",
        ),
        Mutant(
            "float_counts",
            _float_counts,
            "Your counts are floats. Rows are cut by them later, so they must be whole numbers.",
        ),
        Mutant(
            "names_swapped",
            _names_swapped,
            "order and inverse are swapped. order says which pair is at a place, inverse at which "
            "place a pair is.",
        ),
        Mutant(
            "layout",
            _viewed,
            "Your code needs indices to be contiguous: use flatten or reshape.",
        ),
    ],
    alternatives=[
        Alternative("one_key", _dispatch_one_key),
        Alternative("buckets", _dispatch_buckets),
        Alternative("one_hot", _one_hot),
    ],
)
def check_plan_dispatch(c):
    """Places counted one by one, empty experts, everyone to one expert, a single token."""
    experts, top_k, tokens = c.size(6, 8), c.size(2, 3), c.size(23, 29)
    # The first and last experts stay empty, and one in between.
    usable = torch.tensor([e for e in range(1, experts - 1) if e != 3])
    picks = c.rand(tokens, len(usable)).argsort(-1)[:, :top_k]
    indices = usable[picks]
    indices[:5, 0] = 2  # one expert is popular
    indices[:5, 1:] = usable[usable != 2][: top_k - 1]
    order, inverse, counts = c.call(
        indices,
        experts,
        label=f"runs on indices {[tokens, top_k]} and {experts} experts, returns three tensors",
        returns=3,
    )
    want_order, want_inverse, want_counts = _expected(indices, experts)
    with c.part():
        c.shape(counts, (experts,), "counts")
        c.equal(counts, want_counts, label="counts: pairs per expert, empty experts count 0")
    with c.part():
        c.shape(order, (tokens * top_k,), "order")
        n_pairs = torch.arange(tokens * top_k)
        label = "order holds every pair exactly once"
        c.equal(order.sort().values, n_pairs, label=label)
        label = "after sorting, experts come in rising order"
        c.equal(indices.flatten()[order], indices.flatten().sort().values, label=label)
        c.equal(order, want_order, label="pairs of one expert keep their old order")
    with c.part():
        c.shape(inverse, (tokens * top_k,), "inverse")
        c.equal(inverse, want_inverse, label="inverse says at which place each pair is")
    with c.part():
        everyone = torch.full((tokens, 1), experts - 1)
        full = c.call(everyone, experts, returns=3)
        label = "all tokens to the last expert: its count is N"
        c.equal(full[2], torch.tensor([0] * (experts - 1) + [tokens]), label=label)
    with c.part():
        lone = torch.arange(top_k).flip(0)[None]
        one = c.call(lone, experts, returns=3)
        c.equal(one[0], torch.arange(top_k).flip(0), label="a single token works (N = 1)")
    with c.part():
        nobody = c.call(indices[:0], experts, returns=3)
        label = "no token at all (N = 0): every expert counts 0"
        c.equal(nobody[2], torch.zeros(experts, dtype=torch.int64), label=label)
    with c.part():
        many = c.rand(40, 300).argsort(-1)[:, :8]
        big = c.call(c.strided(many), 300, returns=3)
        wanted = _expected(many, 300)
        c.equal(big[0], wanted[0], label="300 experts, K = 8, indices not contiguous: order")
        c.equal(big[1], wanted[1], label="300 experts, K = 8, indices not contiguous: inverse")
        c.equal(big[2], wanted[2], label="300 experts, K = 8, indices not contiguous: counts")


def _expected(indices, n_experts):
    pairs = indices.flatten().tolist()
    order = sorted(range(len(pairs)), key=lambda i: (pairs[i], i))
    inverse = [order.index(i) for i in range(len(pairs))]
    counts = [pairs.count(e) for e in range(n_experts)]
    return torch.tensor(order), torch.tensor(inverse), torch.tensor(counts)
