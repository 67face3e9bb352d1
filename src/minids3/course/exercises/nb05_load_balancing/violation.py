"""MaxVio: how far the fullest expert of a layer is above the mean."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from minids3.course.registry import Alternative, Mutant, exercise
from minids3.train.balance import expert_load, max_violation


def layer_violation(indices, n_experts):
    """MaxVio of every layer, from the experts that were chosen.

    indices [L, N, K] int64: in each of L layers, the K experts of N tokens
    returns [L] float: (largest load - mean load) / mean load
    """
    load = F.one_hot(indices, n_experts).sum((1, 2)).float()  # [L, E]
    mean = load.mean(-1)
    return (load.amax(-1) - mean) / mean


def _loads(indices, n_experts):
    return F.one_hot(indices, n_experts).sum((1, 2)).float()


def _violation_pooled(indices, n_experts):
    load = _loads(indices, n_experts).sum(0)
    return (load.max() / load.mean() - 1).expand(len(indices)).clone()


def _violation_used_only(indices, n_experts):
    load = _loads(indices, n_experts)
    mean = load.sum(-1) / (load > 0).sum(-1)
    return load.amax(-1) / mean - 1


def _violation_ratio(indices, n_experts):
    load = _loads(indices, n_experts)
    return load.amax(-1) / load.mean(-1)


def _violation_range(indices, n_experts):
    load = _loads(indices, n_experts)
    return (load.amax(-1) - load.amin(-1)) / load.mean(-1)


def _violation_over_max(indices, n_experts):
    load = _loads(indices, n_experts)
    return 1 - load.mean(-1) / load.amax(-1)


def _violation_spread(indices, n_experts):
    load = _loads(indices, n_experts)
    return load.std(-1) / load.mean(-1)


def _violation_tokens(indices, n_experts):
    mean = indices.shape[1] / n_experts
    return _loads(indices, n_experts).amax(-1) / mean - 1


def _violation_first_choice(indices, n_experts):
    return layer_violation(indices[..., :1], n_experts)


def _violation_loop(indices, n_experts):
    found = []
    for layer in indices:
        load = torch.bincount(layer.flatten(), minlength=n_experts)
        found.append(load.max().item() * n_experts / load.sum().item() - 1)
    return torch.tensor(found)


def _violation_sorted(indices, n_experts):
    flat = indices.flatten(1).sort(-1).values.contiguous()
    edges = torch.arange(n_experts + 1).expand(len(flat), -1).contiguous()
    load = torch.searchsorted(flat, edges).diff(dim=-1).double()
    return (load.amax(-1) - load.mean(-1)) / load.mean(-1)


def _violation_library(indices, n_experts):
    return torch.stack([max_violation(expert_load(i, n_experts)) for i in indices]).float()


def _either_side(indices, n_experts):
    load = F.one_hot(indices, n_experts).sum((1, 2)).float()
    mean = load.mean(-1, keepdim=True)
    return (load - mean).abs().amax(-1) / mean[:, 0]


def _eight_bits(indices, n_experts):
    load = F.one_hot(indices, n_experts).sum((1, 2)).to(torch.uint8).float()
    mean = indices.shape[1] * indices.shape[2] / n_experts
    return (load.amax(-1) - mean) / mean


def _no_minlength(indices, n_experts):
    rows = [torch.bincount(layer.flatten()).float() for layer in indices]
    return torch.stack([(r.max() - r.mean()) / r.mean() for r in rows])


def _viewed(indices, n_experts):
    return layer_violation(indices.view(len(indices), -1)[..., None], n_experts)


def _scattered(indices, n_experts):
    load = torch.zeros(indices.shape[0], n_experts, dtype=torch.float64)
    flat = indices.reshape(indices.shape[0], -1)
    load.scatter_add_(1, flat, torch.ones_like(flat, dtype=load.dtype))
    return (load.max(1).values * n_experts / flat.shape[1] - 1).float()


@exercise(
    "balance-violation",
    solution=layer_violation,
    notebook="05_load_balancing",
    title="How full is the fullest?",
    difficulty=2,
    importance=4,
    minutes=8,
    library=_violation_library,
    hints=(
        "An expert that nobody chose does not occur in the indices at all. Which functions count "
        "it all the same, with 0? Over how many experts is the mean?",
        "load = for each layer, how often each of 0 .. n_experts - 1 occurs   # [L, E]\n"
        "       (one_hot of the indices, summed over tokens and choices)\n"
        "mean = mean of load over all experts                                # [L]\n"
        "return (largest load - mean) / mean",
    ),
    mutants=[
        Mutant(
            "pooled_layers",
            _violation_pooled,
            "You added the layers up first. Their hot experts are different ones and hide one "
            "another in the sum: measure every layer for itself.",
        ),
        Mutant(
            "used_only",
            _violation_used_only,
            "The mean is over the used experts only. An idle expert must pull the mean down, or a "
            "collapse onto two experts looks perfectly even.",
        ),
        Mutant(
            "ratio",
            _violation_ratio,
            "That is largest over mean, 1 when even. MaxVio is the excess over the mean: subtract "
            "the mean first, so that even means 0.",
        ),
        Mutant(
            "range",
            _violation_range,
            "You took largest minus smallest. What a layer waits for is the distance from the "
            "mean to the largest.",
        ),
        Mutant(
            "over_max",
            _violation_over_max,
            "You divided by the largest load. Divide by the mean, or the measure can never "
            "exceed 1.",
        ),
        Mutant(
            "spread",
            _violation_spread,
            "That is the standard deviation over the mean. Nobody waits for a typical expert: "
            "take the largest one.",
        ),
        Mutant(
            "tokens_not_pairs",
            _violation_tokens,
            "The mean load is N * K / E: every token counts once for each of its K experts. You "
            "forgot the K.",
        ),
        Mutant(
            "first_choice",
            _violation_first_choice,
            "You counted each token's first choice only. All K of its experts have to work.",
        ),
        Mutant(
            "either_side",
            _either_side,
            "You took the largest distance from the mean on either side. MaxVio looks at the "
            "fullest expert only, not at the emptiest.",
        ),
        Mutant(
            "eight_bits",
            _eight_bits,
            "Your counts overflow from 256 on: count in int64.",
        ),
        Mutant(
            "no_minlength",
            _no_minlength,
            "bincount ends at the largest expert that occurs, so idle experts after it are "
            "missing from the mean. Say minlength=n_experts.",
        ),
        Mutant(
            "layout",
            _viewed,
            "Your code needs indices to be contiguous: use flatten or reshape.",
        ),
    ],
    alternatives=[
        Alternative("loop", _violation_loop),
        Alternative("sorted", _violation_sorted),
        Alternative("scattered", _scattered),
    ],
)
def check_violation(c):
    """Counts by hand, an even load, a collapse, layers apart, one token."""
    layers, experts, top_k = c.size(3, 4), c.size(7, 9), c.size(2, 3)
    tokens = c.size(12, 19)
    indices = _uneven(c, layers, tokens, experts, top_k)
    out = c.call(indices, experts, label=f"runs on indices {list(indices.shape)}")
    c.shape(out, (layers,), "the result")
    worst = torch.tensor([experts / top_k - 1])
    with c.part():
        c.true(out.is_floating_point(), "the result is a floating-point tensor")
        c.close(out, _by_hand(indices, experts), label="every layer has its own MaxVio")
    with c.part():
        steps = torch.arange(experts)
        even = torch.stack([(steps + k) % experts for k in range(top_k)], -1)[None]
        c.close(c.call(even, experts), torch.zeros(1), label="an even load gives 0")
    with c.part():
        same = torch.arange(top_k).expand(1, tokens, top_k)
        label = f"all tokens on the same K experts give E / K - 1 = {worst.item():.2f}"
        c.close(c.call(same, experts), worst, label=label)
    with c.part():
        one = indices[:, :1]
        c.close(c.call(one, experts), worst.expand(layers), label="a single token works (N = 1)")
    with c.part():
        busy = torch.arange(experts - 1).repeat(2)[None, :, None]
        label = "one idle expert among even ones: the fullest counts, not the emptiest"
        c.close(c.call(busy, experts), torch.tensor([1 / (experts - 1)]), label=label)
    with c.part():
        crowd = _uneven(c, 1, 1000, experts, top_k).repeat(1, 3, 1)
        label = "thousands of tokens are counted right"
        c.close(c.call(c.strided(crowd), experts), _by_hand(crowd, experts), label=label)
    with c.part():
        two = torch.arange(3050).ge(2049).long()[None, :, None]
        label = "2049 tokens on one expert, 1001 on the other"
        c.close(c.call(two, 2), torch.tensor([524 / 1525]), label=label)


def _uneven(c, layers, tokens, experts, top_k):
    """Choices in which some experts are hot and the last one is never used."""
    scores = c.randn(layers, tokens, experts) + 1.5 * c.randn(layers, 1, experts)
    scores[..., experts - 1] = -99
    return scores.topk(top_k, -1).indices


def _by_hand(indices, experts):
    found = []
    for layer in indices.tolist():
        load = [0] * experts
        for chosen in layer:
            for e in chosen:
                load[e] += 1
        mean = sum(load) / experts
        found.append((max(load) - mean) / mean)
    return torch.tensor(found)
