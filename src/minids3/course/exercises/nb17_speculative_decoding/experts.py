"""How many experts several columns read."""

from __future__ import annotations

import math

import torch

from minids3.course.registry import Alternative, Mutant, exercise


# fmt: off
def experts_read(indices, n_experts, columns):
    """Different experts that neighbours read, and strangers would.

    indices [T, K] int64: the experts that each token of a text chose in one
    layer, none twice; columns: tokens that go through a pass together
    returns two floats: how many different experts `columns` tokens in a row
    chose, the mean over all T - columns + 1 such rows; and how many as many
    tokens would choose on average that know nothing of each other, each
    choosing expert e as often as the tokens of this text do
    """
    chosen = torch.zeros(len(indices), n_experts).scatter(1, indices, 1.0)
    together = chosen.unfold(0, columns, 1).amax(-1)
    share = chosen.mean(0)
    missed = (1 - share) ** columns
    return together.sum(1).mean().item(), (1 - missed).sum().item()
# fmt: on


def _chosen(indices, n_experts):
    return torch.zeros(len(indices), n_experts).scatter(1, indices, 1.0)


def _each_counts(indices, n_experts, columns):
    return float(columns * indices.shape[1]), experts_read(indices, n_experts, columns)[1]


def _blocks(indices, n_experts, columns):
    together = _chosen(indices, n_experts).unfold(0, columns, columns).amax(-1)
    return together.sum(1).mean().item(), experts_read(indices, n_experts, columns)[1]


def _one_row_less(indices, n_experts, columns):
    together = _chosen(indices, n_experts).unfold(0, columns, 1).amax(-1)
    kept = together[:-1] if len(together) > 1 else together
    return kept.sum(1).mean().item(), experts_read(indices, n_experts, columns)[1]


def _shared_by_all(indices, n_experts, columns):
    together = _chosen(indices, n_experts).unfold(0, columns, 1).amin(-1)
    return together.sum(1).mean().item(), experts_read(indices, n_experts, columns)[1]


def _whole_text(indices, n_experts, columns):
    return float(len(indices.unique())), experts_read(indices, n_experts, columns)[1]


def _first_choice(indices, n_experts, columns):
    return experts_read(indices[:, :1], n_experts, columns)


def _even(indices, n_experts, columns):
    met = n_experts * (1 - (1 - indices.shape[1] / n_experts) ** columns)
    return experts_read(indices, n_experts, columns)[0], met


def _summed_chance(indices, n_experts, columns):
    share = _chosen(indices, n_experts).mean(0)
    met = (share * columns).clamp(max=1).sum().item()
    return experts_read(indices, n_experts, columns)[0], met


def _share_of_choices(indices, n_experts, columns):
    share = _chosen(indices, n_experts).mean(0) / indices.shape[1]
    met = (1 - (1 - share) ** columns).sum().item()
    return experts_read(indices, n_experts, columns)[0], met


def _draws(indices, n_experts, columns):
    share = _chosen(indices, n_experts).mean(0) / indices.shape[1]
    met = (1 - (1 - share) ** (columns * indices.shape[1])).sum().item()
    return experts_read(indices, n_experts, columns)[0], met


def _without_replacement(indices, n_experts, columns):
    tokens = len(indices)
    times = _chosen(indices, n_experts).sum(0).long().tolist()
    all_rows = math.comb(tokens, columns)
    met = sum(1 - math.comb(tokens - n, columns) / all_rows for n in times)
    return experts_read(indices, n_experts, columns)[0], float(met)


def _all_share(indices, n_experts, columns):
    share = _chosen(indices, n_experts).mean(0)
    return experts_read(indices, n_experts, columns)[0], (share**columns).sum().item()


def _swapped(indices, n_experts, columns):
    return experts_read(indices, n_experts, columns)[::-1]


def _with_sets(indices, n_experts, columns):
    rows = indices.tolist()
    counts = []
    for start in range(len(rows) - columns + 1):
        met = set()
        for row in rows[start : start + columns]:
            met.update(row)
        counts.append(len(met))
    expected = 0.0
    for e in range(n_experts):
        share = sum(e in row for row in rows) / len(rows)
        expected += 1 - (1 - share) ** columns
    return sum(counts) / len(counts), expected


def _with_or(indices, n_experts, columns):
    chosen = _table(indices, n_experts)
    last = len(indices) - columns + 1
    met = chosen[:last].clone()
    for shift in range(1, columns):
        met |= chosen[shift : shift + last]
    share = torch.bincount(indices.flatten(), minlength=n_experts) / len(indices)
    return float(met.float().mean() * n_experts), float(n_experts - ((1 - share) ** columns).sum())


def _table(indices, n_experts):
    """Whether token t chose expert e."""
    return (indices[..., None] == torch.arange(n_experts)).any(1)


@exercise(
    "spec-experts",
    solution=experts_read,
    notebook="17_speculative_decoding",
    title="Whose weights are read?",
    difficulty=3,
    importance=4,
    minutes=12,
    hints=(
        "Two neighbours chose experts 1, 4 and 4, 7. How many expert matrices does a pass over "
        "both read? And for strangers: with what probability does neither of two tokens choose "
        "expert e, if a share f of all tokens does?",
        "chosen [T, E]: 1 where a token chose an expert\n"
        "for every start: the largest of `columns` rows of it, summed over experts; then the mean\n"
        "share [E] = mean of chosen over tokens\n"
        "strangers = sum over experts of 1 - (1 - share) ** columns",
    ),
    mutants=[
        Mutant(
            "each_counts",
            _each_counts,
            "You counted an expert once for every token. A pass reads its matrices once, however "
            "many of its tokens chose it.",
        ),
        Mutant(
            "blocks",
            _blocks,
            "You cut the text into blocks. A step may begin at any token: take every row of "
            "neighbours, overlapping ones too.",
        ),
        Mutant(
            "one_row_less",
            _one_row_less,
            "The last row of neighbours is missing: there are T - columns + 1.",
        ),
        Mutant(
            "shared_by_all",
            _shared_by_all,
            "You counted the experts that all of the tokens chose. Read are those that at least "
            "one of them chose.",
        ),
        Mutant(
            "whole_text",
            _whole_text,
            "You counted the experts of the whole text. A pass sees `columns` tokens of it.",
        ),
        Mutant(
            "first_choice",
            _first_choice,
            "You looked at the first choice alone. All K of a token's experts are read.",
        ),
        Mutant(
            "even",
            _even,
            "For strangers you let all experts be equally popular. Use this text's own shares: "
            "favourites are met twice more often.",
        ),
        Mutant(
            "summed_chance",
            _summed_chance,
            "For strangers you added the chances of the columns. Two tokens may meet in one "
            "expert: 1 minus the chance that nobody chose it.",
        ),
        Mutant(
            "share_of_choices",
            _share_of_choices,
            "Your shares are of all choices and sum to 1. A token has K of them: the share of "
            "tokens that chose e, which sum to K.",
        ),
        Mutant(
            "draws",
            _draws,
            "You drew K times `columns` experts one by one. A token never chooses the same expert "
            "twice, so it meets more of them.",
        ),
        Mutant(
            "without_replacement",
            _without_replacement,
            "You drew your strangers from this text, none of its tokens twice. They know nothing "
            "of each other: each chooses e with e's share, whatever the others are.",
        ),
        Mutant(
            "all_share",
            _all_share,
            "For strangers you counted the experts that every one of them chose.",
        ),
        Mutant(
            "swapped",
            _swapped,
            "Your two numbers are in the other order: neighbours first.",
        ),
    ],
    alternatives=[
        Alternative("with_sets", _with_sets),
        Alternative("with_or", _with_or),
    ],
)
def check_experts(c):
    """By sets of neighbours and shares; one to three columns, all; a text that repeats itself."""
    experts, top_k, tokens = c.size(11, 14), 4, 2 * c.size(10, 14) + 1
    liking = c.randn(experts)  # some experts are popular, and neighbours are alike
    scores = c.randn(tokens, experts) + 0.8 * liking
    scores[1:] += 0.9 * scores[:-1]
    picks = scores.topk(top_k).indices
    picks[-1] = picks[0]
    for columns, first in ((2, "runs on one layer's choices, two columns"), (3, None)):
        with c.part():
            got = c.call(picks, experts, columns, returns=2, label=first)
            want = _by_sets(picks, experts, columns)
            c.close(got[0], want[0], label=f"{columns} neighbours: the mean of all rows")
            c.close(got[1], want[1], label=f"{columns} strangers with the same shares")
    with c.part():
        got = c.call(picks, experts, 1, returns=2)
        c.close(list(got), [float(top_k)] * 2, label="one column reads its own K, alone or not")
        alike = picks[:1].expand(tokens, top_k).contiguous()
        got = c.call(alike, experts, 2, returns=2)
        c.close(list(got), [float(top_k)] * 2, label="tokens that all choose alike read no more")
    with c.part():
        got = c.call(picks, experts, tokens, returns=2)
        want = _by_sets(picks, experts, tokens)
        c.close(list(got), list(want), label="the whole text in one pass")
    with c.part():
        twice = picks.unique(dim=0).repeat(2, 1)
        got = c.call(twice, experts, 2, returns=2)
        want = _by_sets(twice, experts, 2)
        c.close(got[1], want[1], label="a text written twice: two strangers may be the same token")


def _by_sets(picks, n_experts, columns):
    rows = [frozenset(row) for row in picks.tolist()]
    starts = range(len(rows) - columns + 1)
    met = [len(frozenset().union(*rows[s : s + columns])) for s in starts]
    shares = [sum(e in row for row in rows) / len(rows) for e in range(n_experts)]
    return sum(met) / len(met), n_experts - sum((1 - f) ** columns for f in shares)
