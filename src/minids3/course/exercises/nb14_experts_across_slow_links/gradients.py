"""One gradient out of many processes' gradients."""

from __future__ import annotations

import itertools

import torch

from minids3.course.registry import Alternative, Mutant, exercise


# fmt: off
def mean_gradients(dense, expert, targets, loss):
    """The gradients of the mean loss over all targets of all processes.

    R processes, in G groups of R / G; in each group the experts are dealt
    out, so that every expert has G owners
    dense [R, D]: each process's gradient of a weight that all of them have
    expert [G, D]: each owner's gradient of one expert's weight; tokens of
      all processes of its group came there, so it is a SUM over them
    targets: list of R ints, how many targets each process had
    loss: what each process called backward on: "sum" or "mean" over its
      own targets
    returns two tensors [D], of the weight and of the expert; raises
    ValueError for "mean" if the processes had unequally many targets
    """
    if loss == "mean":
        if len(set(targets)) > 1:
            raise ValueError(f"means over {targets} targets do not add up")
        return dense.mean(0), expert.sum(0) / len(targets)
    return dense.sum(0) / sum(targets), expert.sum(0) / sum(targets)
# fmt: on


def _unequal(targets, loss):
    if loss == "mean" and len(set(targets)) > 1:
        raise ValueError("unequal")


def _expert_like_dense(dense, expert, targets, loss):
    _unequal(targets, loss)
    if loss == "mean":
        return dense.mean(0), expert.mean(0)
    return dense.sum(0) / sum(targets), expert.sum(0) / sum(targets)


def _expert_untouched(dense, expert, targets, loss):
    _unequal(targets, loss)
    first = mean_gradients(dense, expert, targets, loss)[0]
    return first, expert.sum(0)


def _group_size(dense, expert, targets, loss):
    _unequal(targets, loss)
    if loss == "mean":
        return dense.mean(0), expert.sum(0) / (len(targets) / len(expert))
    return dense.sum(0) / sum(targets), expert.sum(0) / sum(targets)


def _twice(dense, expert, targets, loss):
    _unequal(targets, loss)
    first, second = mean_gradients(dense, expert, targets, loss)
    return first, second / len(expert)


def _dense_summed(dense, expert, targets, loss):
    _unequal(targets, loss)
    second = mean_gradients(dense, expert, targets, loss)[1]
    return dense.sum(0) if loss == "mean" else dense.sum(0) / sum(targets), second


def _mean_of_means(dense, expert, targets, loss):
    if loss == "mean":
        return mean_gradients(dense, expert, targets, loss)
    n = torch.tensor(targets, dtype=dense.dtype)[:, None].clamp(min=1)
    return (dense / n).mean(0), expert.sum(0) / sum(targets)


def _sums_averaged(dense, expert, targets, loss):
    if loss == "mean":
        return mean_gradients(dense, expert, targets, loss)
    return dense.mean(0), expert.sum(0) / len(targets)


def _one_owner(dense, expert, targets, loss):
    _unequal(targets, loss)
    first = mean_gradients(dense, expert, targets, loss)[0]
    return first, expert[0] / (len(targets) if loss == "mean" else sum(targets))


def _weighed(dense, expert, targets, loss):
    if loss != "mean":
        return mean_gradients(dense, expert, targets, loss)
    n = torch.tensor(targets, dtype=dense.dtype)[:, None]
    return (dense * n).sum(0) / n.sum(), expert.sum(0) / len(targets)


def _groups_compared(dense, expert, targets, loss):
    size = len(targets) // len(expert)
    groups = {sum(targets[k : k + size]) for k in range(0, len(targets), size)}
    if loss == "mean" and len(groups) > 1:
        raise ValueError("unequal")
    alike = [1] * len(targets) if loss == "mean" else targets
    return mean_gradients(dense, expert, alike, loss)


def _per_process_targets(dense, expert, targets, loss):
    if loss == "mean":
        return mean_gradients(dense, expert, targets, loss)
    n = sum(targets) / len(targets)
    return dense.sum(0) / n, expert.sum(0) / n


def _loss_ignored(dense, expert, targets, loss):
    _unequal(targets, loss)
    return dense.sum(0) / sum(targets), expert.sum(0) / sum(targets)


def _swapped(dense, expert, targets, loss):
    return mean_gradients(dense, expert, targets, loss)[::-1]


def _weighed_sums(dense, expert, targets, loss):
    first, second = mean_gradients(dense, expert, targets, loss)
    if loss == "mean":
        return first, second
    n = torch.tensor(targets, dtype=dense.dtype)[:, None]
    return (dense * n).sum(0) / n.sum(), second


def _divisor(dense, expert, targets, loss):
    if loss == "mean" and min(targets) != max(targets):
        raise ValueError("every process needs equally many targets")
    divisor = sum(targets) if loss == "sum" else len(targets)
    return torch.stack([g.sum(0) / divisor for g in (dense, expert)]).unbind(0)


def _einsum(dense, expert, targets, loss):
    count = {"mean": len(targets), "sum": sum(targets)}[loss]
    if loss == "mean" and any(n != targets[0] for n in targets):
        raise ValueError("unequal shares")
    weight = dense.new_full((len(dense),), 1 / count)
    return weight @ dense, weight[: len(expert)] @ expert


@exercise(
    "ep-gradients",
    solution=mean_gradients,
    notebook="14_experts_across_slow_links",
    title="Whose mean is it?",
    difficulty=3,
    importance=5,
    minutes=10,
    hints=(
        "Take two processes, one expert, loss = mean over own targets. Each process's loss is "
        "half of what it should count for. Who halves the dense gradient? Who halves the "
        "expert's, which has the contributions of both already?",
        "'sum': everything was added up: divide both sums by the number of all targets\n"
        "'mean': unequal targets: ValueError\n"
        "        dense: mean over R processes\n"
        "        expert: sum over owners, divided by R, not by the number of owners",
    ),
    mutants=[
        Mutant(
            "expert_like_dense",
            _expert_like_dense,
            "You averaged the owners' gradients as if each were one process's. An owner's is the "
            "sum over its group: yours is too large by the size of the group, and the model "
            "trains on, with too large steps for its experts alone.",
        ),
        Mutant(
            "expert_untouched",
            _expert_untouched,
            "The expert's gradient is a sum over all processes. It has to be divided, too.",
        ),
        Mutant(
            "group_size",
            _group_size,
            "You divided the owners' sum by the size of one group. It holds the losses of all R "
            "processes.",
        ),
        Mutant(
            "twice",
            _twice,
            "You divided by all and then by the number of owners again.",
        ),
        Mutant(
            "dense_summed",
            _dense_summed,
            "With means of equal size, the mean over all is the mean of means: you added the "
            "dense gradients up and did not divide.",
        ),
        Mutant(
            "mean_of_means",
            _mean_of_means,
            "You gave every process the same weight. With sums, a process with few targets "
            "counts for few: add up, then divide by all targets.",
        ),
        Mutant(
            "sums_averaged",
            _sums_averaged,
            "You averaged sums over processes. The mean wanted is over targets.",
        ),
        Mutant(
            "one_owner",
            _one_owner,
            "You took the first owner's gradient. The other groups' tokens went to the other "
            "owners.",
        ),
        Mutant(
            "weighed",
            _weighed,
            "You weighed the means by their targets. That repairs the dense gradient alone: the "
            "expert's sum cannot be taken apart any more, so this has to be an error.",
        ),
        Mutant(
            "groups_compared",
            _groups_compared,
            "You compared the targets of whole groups. Inside of a group, means over unequally "
            "many do not add up either: compare all R processes.",
        ),
        Mutant(
            "per_process_targets",
            _per_process_targets,
            "You divided by one process's targets. There are R times as many.",
        ),
        Mutant(
            "loss_ignored",
            _loss_ignored,
            "You divided means by all targets. Each was divided by its process's own already; what "
            "is left is the number of processes.",
        ),
        Mutant("swapped", _swapped, "The weight's gradient comes first, the expert's second."),
        Mutant(
            "weighed_sums",
            _weighed_sums,
            "You weighed sums by their targets. A sum over many targets is larger already: add up, "
            "and divide by all targets.",
        ),
    ],
    alternatives=[
        Alternative("divisor", _divisor),
        Alternative("einsum", _einsum),
    ],
)
def check_mean_gradients(c):
    """Both kinds of loss, one group and several, a process without targets, unequal means."""
    groups, size, width = c.size(2, 3), c.size(2, 3), c.size(4, 6)
    ranks = groups * size
    targets = [int(n) for n in c.randint(3, 40, ranks)]
    targets[1] = targets[0] + 20
    dense, parts = c.randn(ranks, width), c.randn(ranks, width)
    expert = parts.view(groups, size, width).sum(1)
    got = c.call(
        dense,
        expert,
        targets,
        "sum",
        returns=2,
        label=f"runs on {ranks} processes, {groups} groups",
    )
    with c.part():
        c.close(got[0], _over(dense, sum(targets)), label='loss "sum": the dense gradient')
    with c.part():
        c.close(got[1], _over(parts, sum(targets)), label='loss "sum": the expert\'s')
    with c.part():
        equal = [targets[0]] * ranks
        got = c.call(dense, expert, equal, "mean", returns=2)
        with c.part():
            c.close(got[0], _over(dense, ranks), label='loss "mean", equal shares: dense')
        with c.part():
            c.close(got[1], _over(parts, ranks), label='loss "mean", equal shares: the expert\'s')
    with c.part():
        got = c.call(dense, parts.sum(0, keepdim=True), equal, "mean", returns=2)
        label = "one group of all: the only owner's gradient, divided by R"
        c.close(got[1], _over(parts, ranks), label=label)
    with c.part():
        got = c.call(dense, parts.sum(0, keepdim=True), targets, "sum", returns=2)
        wanted = [_over(dense, sum(targets)), _over(parts, sum(targets))]
        label = "one group of all, and sums: both divided by all targets"
        c.close(list(got), wanted, label=label)
    with c.part():
        none = [0, *targets[1:]]
        gone = torch.cat((torch.zeros(1, width), dense[1:]))
        got = c.call(gone, expert, none, "sum", returns=2)
        label = "a process without targets is no trouble for sums"
        c.close(got[0], _over(gone, sum(none)), label=label)
        c.close(got[1], _over(parts, sum(none)), label="and none for the expert's")
    with c.part():
        label = "means over unequal shares raise ValueError"
        c.raises(ValueError, dense, expert, targets, "mean", label=label)
    with c.part():
        last = [*equal[:-1], 0]
        label = "also if all but one had equally many, and that one none"
        c.raises(ValueError, dense, expert, last, "mean", label=label)
    with c.part():
        n = targets[0]
        hidden = [n, n + 1, n - 1, *[n] * (ranks - 3)]
        label = "also if their mean is what the first and the last had"
        c.raises(ValueError, dense, expert, hidden, "mean", label=label)
    with c.part():
        label = "also if every group had as many, and nobody more than one too many"
        c.raises(ValueError, dense, expert, _even_groups(n, groups, size), "mean", label=label)
    with c.part():
        wide, whole = dense.double() / 3, expert.double() / 3
        got = c.call(wide, whole, targets, "sum", returns=2)
        wanted = [t.sum(0) / sum(targets) for t in (wide, whole)]
        label = "float64 stays float64, to 1e-12"
        c.close(list(got), wanted, label=label, rtol=1e-12, atol=1e-14)


def _even_groups(n, groups, size):
    """One process of every group has n + 1, whether groups are neighbours or every G-th one."""
    for place in itertools.product(range(size), repeat=groups):
        more = [group * size + p for group, p in enumerate(place)]
        if len({rank % groups for rank in more}) == groups:
            return [n + (rank in more) for rank in range(groups * size)]
    raise AssertionError


def _over(parts, count):
    return torch.tensor([sum(column) / count for column in zip(*parts.tolist(), strict=True)])
