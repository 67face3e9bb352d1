"""Dispatch: which rows go to which process."""

from __future__ import annotations

import torch

from minids3.course.registry import Alternative, Mutant, exercise


# fmt: off
def plan_send(indices, n_experts, n_ranks):
    """Which tokens of this process go to which processes.

    indices [N, K] int64: the experts of each token; N may be 0
    process r holds experts r * E / R to (r + 1) * E / R - 1, R = n_ranks
    Each token goes once to every process that has an expert of it, this
    one too.
    returns tokens [M] int64: the token of each row sent, rows for process 0
    first, then those for process 1 ..., each in the tokens' order;
    and send [R] int64: how many rows go to each process
    """
    rank = indices // (n_experts // n_ranks)
    goes = torch.zeros(len(indices), n_ranks, dtype=torch.bool)
    goes = goes.scatter(1, rank, True)
    _, tokens = goes.T.nonzero(as_tuple=True)
    return tokens, goes.sum(0)
# fmt: on


def _goes(indices, n_experts, n_ranks):
    rank = indices // (n_experts // n_ranks)
    return torch.zeros(len(indices), n_ranks, dtype=torch.bool).scatter(1, rank, True)


def _per_choice(indices, n_experts, n_ranks):
    rank = (indices // (n_experts // n_ranks)).flatten()
    order = rank.argsort(stable=True)
    return order // indices.shape[1], torch.bincount(rank, minlength=n_ranks)


def _by_token(indices, n_experts, n_ranks):
    goes = _goes(indices, n_experts, n_ranks)
    return goes.nonzero()[:, 0], goes.sum(0)


def _per_expert(indices, n_experts, n_ranks):
    tokens, _ = plan_send(indices, n_experts, n_ranks)
    return tokens, torch.bincount(indices.flatten(), minlength=n_experts)


def _choices_counted(indices, n_experts, n_ranks):
    tokens, _ = plan_send(indices, n_experts, n_ranks)
    rank = (indices // (n_experts // n_ranks)).flatten()
    return tokens, torch.bincount(rank, minlength=n_ranks)


def _round_robin(indices, n_experts, n_ranks):
    return plan_send(indices % n_ranks * (n_experts // n_ranks), n_experts, n_ranks)


def _first_choice(indices, n_experts, n_ranks):
    return plan_send(indices[:, :1], n_experts, n_ranks)


def _last_first(indices, n_experts, n_ranks):
    goes = _goes(indices, n_experts, n_ranks)
    rows = [goes[:, r].nonzero()[:, 0].flip(0) for r in range(n_ranks)]
    return torch.cat(rows), goes.sum(0)


def _no_minlength(indices, n_experts, n_ranks):
    place, tokens = _goes(indices, n_experts, n_ranks).T.nonzero(as_tuple=True)
    return tokens, torch.bincount(place)


def _ends(indices, n_experts, n_ranks):
    tokens, send = plan_send(indices, n_experts, n_ranks)
    return tokens, send.cumsum(0)


def _destinations(indices, n_experts, n_ranks):
    place, _ = _goes(indices, n_experts, n_ranks).T.nonzero(as_tuple=True)
    return place, torch.bincount(place, minlength=n_ranks)


def _buckets(indices, n_experts, n_ranks):
    share = n_experts // n_ranks
    buckets = [[] for _ in range(n_ranks)]
    for token, row in enumerate(indices.tolist()):
        for rank in sorted({expert // share for expert in row}):
            buckets[rank].append(token)
    flat = [token for bucket in buckets for token in bucket]
    counts = [len(bucket) for bucket in buckets]
    return torch.tensor(flat, dtype=torch.int64), torch.tensor(counts, dtype=torch.int64)


def _one_key(indices, n_experts, n_ranks):
    n = max(len(indices), 1)
    rank = torch.div(indices * n_ranks, n_experts, rounding_mode="floor")
    key = (rank * n + torch.arange(len(indices))[:, None]).flatten().unique()
    return key % n, torch.bincount(key // n, minlength=n_ranks)


@exercise(
    "ep-dispatch",
    solution=plan_send,
    notebook="14_experts_across_slow_links",
    title="What goes where",
    difficulty=3,
    importance=5,
    minutes=12,
    hints=(
        "Make a table first: token by process, does this one go there? In which direction must "
        "you read it, so that rows for one process lie next to each other? What does a token "
        "with two experts on one process look like in it?",
        "rank of each choice = expert // (experts per process)\n"
        "goes [N, R]: all False; True where a choice says so\n"
        "tokens = for process 0, 1, ...: the tokens that go there\n"
        "send = how many Trues for each process",
    ),
    mutants=[
        Mutant(
            "per_choice",
            _per_choice,
            "You send a row for every expert. A process with two of a token's experts needs one "
            "copy of it.",
        ),
        Mutant(
            "by_token",
            _by_token,
            "Your rows are sorted by token. all_to_all_single cuts them into consecutive "
            "stretches, one for each process: sort by destination.",
        ),
        Mutant(
            "per_expert",
            _per_expert,
            "You counted rows for each expert. The exchange is between processes: R numbers.",
        ),
        Mutant(
            "choices_counted",
            _choices_counted,
            "Your counts are of choices, your rows of copies. They do not add up to the rows.",
        ),
        Mutant(
            "round_robin",
            _round_robin,
            "You dealt the experts out like cards. Process 0 has the first E / R of them.",
        ),
        Mutant(
            "first_choice",
            _first_choice,
            "You looked at the first choice alone. A token goes to the processes of all K.",
        ),
        Mutant(
            "last_first",
            _last_first,
            "Within a process your tokens are in reverse. Keep their order.",
        ),
        Mutant(
            "no_minlength",
            _no_minlength,
            "Your counts end at the last process that gets something. The others get 0, and "
            "everybody has to be told: R numbers.",
        ),
        Mutant(
            "ends",
            _ends,
            "You returned where each stretch ends. Asked is how long it is.",
        ),
        Mutant(
            "destinations",
            _destinations,
            "You returned the destination of each row. Asked is its token.",
        ),
    ],
    alternatives=[
        Alternative("buckets", _buckets),
        Alternative("one_key", _one_key),
    ],
)
def check_plan_send(c):
    """A table by hand, random routings, a process that gets nothing, no tokens, dtypes."""
    hand = torch.tensor([[0, 1, 5], [7, 4, 2], [6, 7, 5]])  # two experts each: 0 2 | 3 2 1 | 3 3 2
    got = c.call(hand, 8, 4, returns=2, label="runs on 3 tokens, 8 experts, 4 processes")
    label = "tokens: 0 to process 0, 1 to 1, all to 2, 1 and 2 to 3"
    c.equal(got[0], torch.tensor([0, 1, 0, 1, 2, 1, 2]), label=label)
    c.equal(got[1], torch.tensor([1, 1, 3, 2]), label="send: 1, 1, 3, 2")
    ranks, share, top_k, tokens = c.choice((3, 5)), c.size(3, 4), c.size(3, 4), c.size(18, 25)
    picks = c.rand(tokens, ranks * share).argsort(-1)[:, :top_k]
    with c.part():
        got = c.call(picks, ranks * share, ranks, returns=2)
        wanted = _table(picks, ranks, share)
        c.equal(got[0], wanted[0], label=f"{tokens} tokens, {ranks} processes: the tokens")
        c.equal(got[1], wanted[1], label="and how many for each")
    with c.part():
        low = picks % ((ranks - 1) * share)  # nobody chooses the last process's experts
        got = c.call(low, ranks * share, ranks, returns=2)
        wanted = _table(low, ranks, share)
        c.equal(got[0], wanted[0], label="the last process gets nothing: the tokens")
        c.equal(got[1], wanted[1], label="and a 0 for it")
    with c.part():
        got = c.call(picks[:0], ranks * share, ranks, returns=2)
        c.equal(got[0], torch.zeros(0, dtype=torch.int64), label="no tokens: no rows")
        c.equal(got[1], torch.zeros(ranks, dtype=torch.int64), label="and a 0 for everybody")
    with c.part():
        got = c.call(picks, ranks * share, ranks, returns=2)
        c.dtype(got[0], torch.int64, label="the tokens are int64")
        c.dtype(got[1], torch.int64, label="and so are the counts")


def _table(indices, ranks, share):
    rows = [
        [t for t, row in enumerate(indices.tolist()) if any(e // share == r for e in row)]
        for r in range(ranks)
    ]
    return torch.tensor([t for row in rows for t in row]), torch.tensor([len(row) for row in rows])
