"""How often a token crosses which link."""

from __future__ import annotations

import torch

from minids3.course.registry import Alternative, Mutant, exercise


# fmt: off
def count_rows(indices, home, n_experts, n_gpus, gpus_per_node):
    """Count the rows that dispatch moves over InfiniBand and over NVLink.

    indices [N, K] int64: the experts of each token; home [N]: its GPU
    GPU g holds experts g * E / G to (g + 1) * E / G - 1, G = n_gpus; node
    n holds GPUs n * gpus_per_node to (n + 1) * gpus_per_node - 1
    A token crosses InfiniBand once to each OTHER node that has an expert of
    it, to the GPU there of the same number within the node as its home.
    From there, and in its own node from home, it goes over NVLink, once to
    each other GPU of that node that has an expert of it.
    returns two ints
    """
    gpu = indices // (n_experts // n_gpus)
    needed = torch.zeros(len(indices), n_gpus, dtype=torch.bool)
    needed = needed.scatter(1, gpu, True)
    nodes = needed.view(len(indices), -1, gpus_per_node).any(-1)
    other = torch.arange(nodes.shape[1]) != (home // gpus_per_node)[:, None]
    number = torch.arange(n_gpus) % gpus_per_node
    enters = number == (home % gpus_per_node)[:, None]
    return int((nodes & other).sum()), int((needed & ~enters).sum())
# fmt: on


def _tables(indices, home, n_experts, n_gpus, gpus_per_node):
    """GPUs needed, nodes needed, whether a node or GPU is the token's own, where it enters."""
    gpu = indices // (n_experts // n_gpus)
    needed = torch.zeros(len(indices), n_gpus, dtype=torch.bool).scatter(1, gpu, True)
    nodes = needed.view(len(indices), -1, gpus_per_node).any(-1)
    own_node = torch.arange(nodes.shape[1]) == (home // gpus_per_node)[:, None]
    own_gpus = own_node.repeat_interleave(gpus_per_node, 1)
    enters = torch.arange(n_gpus) % gpus_per_node == (home % gpus_per_node)[:, None]
    return gpu, needed, nodes, own_node, own_gpus, enters


def _per_choice(indices, home, n_experts, n_gpus, gpus_per_node):
    gpu, needed, _, _, _, enters = _tables(indices, home, n_experts, n_gpus, gpus_per_node)
    remote = gpu // gpus_per_node != (home // gpus_per_node)[:, None]
    return int(remote.sum()), int((needed & ~enters).sum())


def _own_node_too(indices, home, n_experts, n_gpus, gpus_per_node):
    _, needed, nodes, _, _, enters = _tables(indices, home, n_experts, n_gpus, gpus_per_node)
    return int(nodes.sum()), int((needed & ~enters).sum())


def _no_forwarding(indices, home, n_experts, n_gpus, gpus_per_node):
    _, needed, _, _, own, enters = _tables(indices, home, n_experts, n_gpus, gpus_per_node)
    return int((needed & ~own).sum()), int((needed & own & ~enters).sum())


def _round_robin(indices, home, n_experts, n_gpus, gpus_per_node):
    dealt = indices % n_gpus * (n_experts // n_gpus)
    return count_rows(dealt, home, n_experts, n_gpus, gpus_per_node)


def _entry_counted(indices, home, n_experts, n_gpus, gpus_per_node):
    _, needed, nodes, own, own_gpus, _ = _tables(indices, home, n_experts, n_gpus, gpus_per_node)
    at_home = torch.arange(n_gpus) == home[:, None]
    del own_gpus
    return int((nodes & ~own).sum()), int((needed & ~at_home).sum())


def _nvlink_per_choice(indices, home, n_experts, n_gpus, gpus_per_node):
    gpu, _, nodes, own, _, _ = _tables(indices, home, n_experts, n_gpus, gpus_per_node)
    elsewhere = gpu % gpus_per_node != (home % gpus_per_node)[:, None]
    return int((nodes & ~own).sum()), int(elsewhere.sum())


def _own_node_forgotten(indices, home, n_experts, n_gpus, gpus_per_node):
    _, needed, nodes, own, own_gpus, enters = _tables(
        indices, home, n_experts, n_gpus, gpus_per_node
    )
    return int((nodes & ~own).sum()), int((needed & ~enters & ~own_gpus).sum())


def _own_node_only(indices, home, n_experts, n_gpus, gpus_per_node):
    _, needed, nodes, own, own_gpus, enters = _tables(
        indices, home, n_experts, n_gpus, gpus_per_node
    )
    return int((nodes & ~own).sum()), int((needed & ~enters & own_gpus).sum())


def _enters_at_first(indices, home, n_experts, n_gpus, gpus_per_node):
    _, needed, nodes, own, own_gpus, _ = _tables(indices, home, n_experts, n_gpus, gpus_per_node)
    first = (torch.arange(n_gpus) % gpus_per_node == 0)[None].expand_as(needed)
    at_home = torch.arange(n_gpus) == home[:, None]
    enters = torch.where(own_gpus, at_home, first)
    return int((nodes & ~own).sum()), int((needed & ~enters).sum())


def _entry_needs_it(indices, home, n_experts, n_gpus, gpus_per_node):
    _, needed, nodes, own, _, _ = _tables(indices, home, n_experts, n_gpus, gpus_per_node)
    return int((nodes & ~own).sum()), int(needed.sum() - nodes.sum())


def _home_has_one(indices, home, n_experts, n_gpus, gpus_per_node):
    _, needed, nodes, _, _, enters = _tables(indices, home, n_experts, n_gpus, gpus_per_node)
    return int(nodes.sum()) - len(indices), int((needed & ~enters).sum())


def _swapped(indices, home, n_experts, n_gpus, gpus_per_node):
    return count_rows(indices, home, n_experts, n_gpus, gpus_per_node)[::-1]


def _with_sets(indices, home, n_experts, n_gpus, gpus_per_node):
    infiniband = nvlink = 0
    for row, here in zip(indices.tolist(), home.tolist(), strict=True):
        gpus = {expert * n_gpus // n_experts for expert in row}
        nodes = {g // gpus_per_node for g in gpus}
        infiniband += len(nodes - {here // gpus_per_node})
        nvlink += sum(g % gpus_per_node != here % gpus_per_node for g in gpus)
    return infiniband, nvlink


def _with_unique(indices, home, n_experts, n_gpus, gpus_per_node):
    token = torch.arange(len(indices))[:, None].expand_as(indices)
    gpu = torch.div(indices * n_gpus, n_experts, rounding_mode="floor")
    pairs = torch.stack((token, gpu), -1).reshape(-1, 2).unique(dim=0)
    node = torch.stack((pairs[:, 0], pairs[:, 1] // gpus_per_node), -1).unique(dim=0)
    remote = node[:, 1] != home[node[:, 0]] // gpus_per_node
    forwarded = pairs[:, 1] % gpus_per_node != home[pairs[:, 0]] % gpus_per_node
    return remote.sum().item(), forwarded.sum().item()


@exercise(
    "ep-copies",
    solution=count_rows,
    notebook="14_experts_across_slow_links",
    title="How often a token crosses which link",
    difficulty=3,
    importance=5,
    minutes=15,
    hints=(
        "A token has two experts on GPU 9 and one on GPU 12, its home is GPU 4, a node has 8 "
        "GPUs. Which node is theirs, at which GPU does the copy enter, who forwards it to whom? "
        "Of which of your numbers does it matter that both experts are on GPU 9?",
        "gpu of each choice = expert // (experts per GPU)\n"
        "needed [N, G]: does the token need this GPU?       # twice is once\n"
        "nodes [N, nodes]: is any of a node's GPUs needed?\n"
        "infiniband = nodes that are not home's\n"
        "nvlink = needed GPUs whose number in the node is not home's number",
    ),
    mutants=[
        Mutant(
            "per_choice",
            _per_choice,
            "You count a crossing for every expert on another node. A node gets one copy, "
            "however many of its experts the token chose: that is the whole trick.",
        ),
        Mutant(
            "own_node_too",
            _own_node_too,
            "You counted the token's own node, too. Nothing crosses InfiniBand to stay at home.",
        ),
        Mutant(
            "no_forwarding",
            _no_forwarding,
            "You send a copy over InfiniBand to every GPU of another node. One is enough: it is "
            "forwarded there over NVLink.",
        ),
        Mutant(
            "round_robin",
            _round_robin,
            "You dealt the experts out like cards. They lie in runs: the first E / G are on GPU "
            "0, the next on GPU 1.",
        ),
        Mutant(
            "entry_counted",
            _entry_counted,
            "You count a forward to the GPU at which the copy enters a node. It is there already.",
        ),
        Mutant(
            "nvlink_per_choice",
            _nvlink_per_choice,
            "You count an NVLink row for every expert. A GPU with two of a token's experts gets "
            "one copy.",
        ),
        Mutant(
            "own_node_forgotten",
            _own_node_forgotten,
            "Experts on other GPUs of the token's own node are missing: they are reached over "
            "NVLink, too.",
        ),
        Mutant(
            "own_node_only",
            _own_node_only,
            "Forwarding inside the other nodes is missing: a copy enters at one GPU, and the "
            "experts are on others.",
        ),
        Mutant(
            "enters_at_first",
            _enters_at_first,
            "You let all copies enter a node at its first GPU. Each enters at the GPU with its "
            "home's number, so that all eight network cards are busy.",
        ),
        Mutant(
            "entry_needs_it",
            _entry_needs_it,
            "You subtract one GPU a node, as if home and the GPUs at which copies enter always had "
            "an expert of the token. Count the GPUs that have one and are not these.",
        ),
        Mutant(
            "home_has_one",
            _home_has_one,
            "You subtract one node as the token's own. It may have no expert there: then every "
            "node counts.",
        ),
        Mutant("swapped", _swapped, "InfiniBand comes first, NVLink second."),
    ],
    alternatives=[
        Alternative("with_sets", _with_sets),
        Alternative("with_unique", _with_unique),
    ],
)
def check_count_rows(c):
    """One token by hand, random routings, everything at home, everything on one far GPU."""
    # Two experts a GPU, four GPUs a node, three nodes.
    one = torch.tensor([[2, 3, 9, 10, 11, 16]])  # GPUs 1 | 4, 5 | 8
    got = c.call(one, torch.tensor([5]), 24, 12, 4, returns=2, label="runs on one token")
    label = "experts on GPUs 1, 4, 5 and 8, home GPU 5: 2 rows over InfiniBand, 2 over NVLink"
    c.equal(_ints(got), [2, 2], label=label)
    nodes, gpus, share, top_k = c.size(3, 4), c.size(4, 5), c.size(3, 4), c.size(5, 6)
    n_gpus = nodes * gpus
    experts = n_gpus * share
    tokens = c.size(40, 60)
    picks = c.rand(tokens, experts).argsort(-1)[:, :top_k]
    home = c.randint(0, n_gpus, tokens)
    with c.part():
        got = c.call(picks, home, experts, n_gpus, gpus, returns=2)
        label = f"{tokens} tokens, {nodes} nodes of {gpus} GPUs: InfiniBand"
        wanted = _counted(picks, home, share, gpus)
        c.equal(_ints(got)[0], wanted[0], label=label)
        c.equal(_ints(got)[1], wanted[1], label="and NVLink")
    with c.part():
        inside = c.rand(tokens, gpus * share).argsort(-1)[:, :top_k]
        inside = inside + (home // gpus)[:, None] * gpus * share
        got = c.call(inside, home, experts, n_gpus, gpus, returns=2)
        label = "all experts in the own node: nothing over InfiniBand"
        c.equal(_ints(got), _counted(inside, home, share, gpus), label=label)
    with c.part():
        far = share + torch.arange(share).expand(tokens, share)  # all on GPU 1
        last = torch.full((tokens,), n_gpus - gpus + 1)  # the last node's GPU of the same number
        got = c.call(far, last, experts, n_gpus, gpus, returns=2)
        label = "all experts where the copy enters: nothing over NVLink"
        c.equal(_ints(got), [tokens, 0], label=label)
    with c.part():
        got = c.call(picks, home, experts, n_gpus, 1, returns=2)
        label = "nodes of one GPU: InfiniBand alone"
        c.equal(_ints(got), _counted(picks, home, share, 1), label=label)


def _ints(pair):
    return list(pair)


def _counted(indices, home, share, gpus_per_node):
    """Follow every copy of every token."""
    infiniband, nvlink = set(), set()
    for token, (row, at) in enumerate(zip(indices.tolist(), home.tolist(), strict=True)):
        for expert in row:
            target = expert // share
            entry = target // gpus_per_node * gpus_per_node + at % gpus_per_node
            if entry != at:
                infiniband.add((token, at, entry))
            if target != entry:
                nvlink.add((token, entry, target))
    return [len(infiniband), len(nvlink)]
