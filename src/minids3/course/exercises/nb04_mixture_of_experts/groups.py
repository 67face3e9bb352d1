"""The group limit: a token may only use experts of its best groups."""

from __future__ import annotations

import torch

from minids3.course.registry import Alternative, Mutant, exercise


def limit_groups(choice, n_group, topk_group):
    """Forbid all experts outside the best groups of each token.

    choice [N, E]: biased scores; experts 0 .. E/n_group - 1 are group 0,
    the next ones group 1, and so on; topk_group: groups each token keeps
    returns [N, E]: choice, with -inf for experts of the other groups
    """
    groups = choice.unflatten(-1, (n_group, -1))  # [N, G, E / G]
    best_two = groups.topk(min(2, groups.shape[-1]), dim=-1).values
    kept = best_two.sum(-1).topk(topk_group, dim=-1).indices  # [N, topk_group]
    closed = torch.ones(groups.shape[:2], dtype=torch.bool).scatter(1, kept, False)
    return groups.masked_fill(closed[..., None], float("-inf")).flatten(1)


def _limit(choice, n_group, topk_group, score, fill=float("-inf"), largest=True, groups=None):
    groups = choice.unflatten(-1, (n_group, -1)) if groups is None else groups
    kept = score(groups).topk(topk_group, dim=-1, largest=largest).indices
    closed = torch.ones(groups.shape[:2], dtype=torch.bool).scatter(1, kept, False)
    return groups.masked_fill(closed[..., None], fill)


def _top_two(groups):
    return groups.topk(min(2, groups.shape[-1]), dim=-1).values.sum(-1)


def _groups_max(choice, n_group, topk_group):
    return _limit(choice, n_group, topk_group, lambda g: g.amax(-1)).flatten(1)


def _groups_mean(choice, n_group, topk_group):
    return _limit(choice, n_group, topk_group, lambda g: g.mean(-1)).flatten(1)


def _groups_zeroed(choice, n_group, topk_group):
    return _limit(choice, n_group, topk_group, _top_two, fill=0.0).flatten(1)


def _groups_minus_1e30(choice, n_group, topk_group):
    return _limit(choice, n_group, topk_group, _top_two, fill=-1e30).flatten(1)


def _groups_smallest(choice, n_group, topk_group):
    smallest = torch.finfo(choice.dtype).min
    return _limit(choice, n_group, topk_group, _top_two, fill=smallest).flatten(1)


def _groups_worst(choice, n_group, topk_group):
    return _limit(choice, n_group, topk_group, _top_two, largest=False).flatten(1)


def _groups_strided(choice, n_group, topk_group):
    groups = choice.unflatten(-1, (-1, n_group)).transpose(1, 2)
    limited = _limit(choice, n_group, topk_group, _top_two, groups=groups)
    return limited.transpose(1, 2).flatten(1)


def _groups_for_all(choice, n_group, topk_group):
    def score(groups):
        return _top_two(groups).sum(0, keepdim=True).expand(groups.shape[0], -1)

    return _limit(choice, n_group, topk_group, score).flatten(1)


def _groups_one_short(choice, n_group, topk_group):
    return limit_groups(choice, n_group, max(topk_group - 1, 1))


def _groups_only_best_two(choice, n_group, topk_group):
    limited = _limit(choice, n_group, topk_group, _top_two)
    third = limited.topk(min(2, limited.shape[-1]), dim=-1).values[..., -1:]
    return limited.masked_fill(limited < third, float("-inf")).flatten(1)


def _groups_by_sorting(choice, n_group, topk_group):
    size = choice.shape[-1] // n_group
    groups = choice.reshape(choice.shape[0], n_group, size)
    ranked = groups.sort(-1, descending=True).values[..., :2].sum(-1)
    place = ranked.argsort(-1, descending=True).argsort(-1)
    open_experts = (place < topk_group).repeat_interleave(size, -1)
    return torch.where(open_experts, choice, torch.tensor(float("-inf")))


def _groups_row_by_row(choice, n_group, topk_group):
    out = torch.full_like(choice, float("-inf"))
    size = choice.shape[-1] // n_group
    for n, row in enumerate(choice.tolist()):
        starts = range(0, len(row), size)
        best = sorted(starts, key=lambda s: -sum(sorted(row[s : s + size])[-2:]))
        for start in best[:topk_group]:
            out[n, start : start + size] = choice[n, start : start + size]
    return out


def _ties(choice, n_group, topk_group):
    groups = choice.unflatten(-1, (n_group, -1))
    sums = groups.topk(min(2, groups.shape[-1]), dim=-1).values.sum(-1)
    least = sums.topk(topk_group, dim=-1).values[:, -1:]
    return groups.masked_fill((sums < least)[..., None], float("-inf")).flatten(1)


def _viewed(choice, n_group, topk_group):
    flat = choice.view(-1)
    return limit_groups(flat.view(choice.shape), n_group, topk_group)


def _preallocated(choice, n_group, topk_group):
    n, experts = choice.shape
    size = experts // n_group
    out = torch.full_like(choice, float("-inf"))
    for token in range(n):
        sums = [
            choice[token, g * size : (g + 1) * size].sort().values[-2:].sum().item()
            for g in range(n_group)
        ]
        for g in sorted(range(n_group), key=sums.__getitem__)[n_group - topk_group :]:
            out[token, g * size : (g + 1) * size] = choice[token, g * size : (g + 1) * size]
    return out


@exercise(
    "moe-groups",
    solution=limit_groups,
    notebook="04_mixture_of_experts",
    title="At most a few nodes per token",
    difficulty=3,
    importance=4,
    minutes=10,
    hints=(
        "Give the experts' axis two dimensions, [groups, experts in a group]. What is a group's "
        "score then? Which value can never be among the largest, even when scores are negative?",
        "groups = choice as [N, n_group, E / n_group]\n"
        "score of a group = sum of its two largest values   # of its one, if it has one\n"
        "kept = the topk_group groups with the best score, for each token\n"
        "everything in the other groups -> minus infinity\n"
        "return it as [N, E]",
    ),
    mutants=[
        Mutant(
            "max",
            _groups_max,
            "You ranked a group by its best expert alone. DeepSeek-V3 adds its two best, since a "
            "token will use about two experts of each group.",
        ),
        Mutant(
            "mean",
            _groups_mean,
            "You ranked a group by all of its experts. A group with two good experts and many bad "
            "ones should win: add the two best only.",
        ),
        Mutant(
            "zeroed",
            _groups_zeroed,
            "You put 0 into the other groups. A biased score can be negative, and then a "
            "forbidden 0 beats an allowed expert. Use minus infinity.",
        ),
        Mutant(
            "minus_1e30",
            _groups_minus_1e30,
            "You closed groups with -1e30, which is still a number. They hold minus infinity: "
            'float("-inf").',
        ),
        Mutant(
            "smallest",
            _groups_smallest,
            "You closed groups with the lowest finite number (finfo.min). Minus infinity is lower "
            "still, and that is what they hold.",
        ),
        Mutant(
            "worst",
            _groups_worst,
            "You kept the groups with the smallest scores. Keep the largest.",
        ),
        Mutant(
            "strided",
            _groups_strided,
            "You dealt the experts out like cards. A group is a run of neighbours: the experts "
            "that live on one node.",
        ),
        Mutant(
            "for_all",
            _groups_for_all,
            "All tokens got the same groups. Each token chooses its own.",
        ),
        Mutant(
            "one_short",
            _groups_one_short,
            "You kept one group too few: topk_group of them stay.",
        ),
        Mutant(
            "only_best_two",
            _groups_only_best_two,
            "You closed experts inside the groups that were kept. The two best only rank a group; "
            "all of its experts stay eligible.",
        ),
        Mutant(
            "ties",
            _ties,
            "You kept every group that is as good as the last one kept. With equal groups that is "
            "too many: exactly topk_group stay, whichever of the equal ones.",
        ),
        Mutant(
            "layout",
            _viewed,
            "Your code needs choice to be contiguous: use unflatten or reshape.",
        ),
    ],
    alternatives=[
        Alternative("by_sorting", _groups_by_sorting),
        Alternative("row_by_row", _groups_row_by_row),
        Alternative("preallocated", _preallocated),
    ],
)
def check_limit_groups(c):
    """Values by hand, each token on its own, negative scores, groups of one, no limit."""
    n_group, size = c.size(4, 5), c.size(4, 6)
    kept, tokens = n_group - 2, c.size(9, 12)
    experts = n_group * size
    choice = c.rand(tokens, experts) + 0.3 * c.randn(experts)
    # A row in which each way of ranking has a last group of its own: one star; two good ones; all
    # middling. The other groups, one fewer than stay, are high in every ranking.
    made = torch.full((n_group, size), -0.5)
    made[3:] = 2.0
    made[0, 0], made[1, :2], made[2] = 0.9, 0.7, 0.4
    choice[0] = made.flatten() + 0.01 * c.rand(experts)
    y = c.call(
        choice,
        n_group,
        kept,
        label=f"runs on choice {[tokens, experts]}, {n_group} groups, keeps {kept}",
    )
    c.shape(y, (tokens, experts), "the result")
    wanted = _expected(choice, n_group, kept)
    with c.part():
        n_open = torch.full((tokens,), kept * size)
        c.equal(y.isfinite().sum(-1), n_open, label=f"each token keeps {kept} whole groups")
        label = "they are the ones whose two best experts score most"
        c.equal(y.isfinite(), wanted.isfinite(), label=label)
        c.close(y, wanted, label="open experts keep their value, the rest is minus infinity")
    with c.part():
        low = choice - 5
        negative = c.call(low, n_group, kept)
        label = "scores below zero: the best expert left is an allowed one"
        allowed = _expected(low, n_group, kept)
        c.equal(negative.argmax(-1), allowed.argmax(-1), label=label)
        label = "and the groups with the largest sums of two stay"
        c.equal(negative[0].isfinite(), allowed[0].isfinite(), label=label)  # row 0: no near ties
    with c.part():
        twins = torch.tensor([[0.74, 0.74, 0.1, 0.881, 0.596, 0.05]])  # BF16 ranks them wrongly
        best = c.call(twins, 2, 1)
        label = "if the two best of a group are equal, both count"
        c.equal(best.isfinite(), _expected(twins, 2, 1).isfinite(), label=label)
    with c.part():
        single = c.call(choice[:3], experts, 2)
        label = "with topk_group = 2 and groups of one expert, the two best experts stay"
        c.equal(single.isfinite(), _expected(choice[:3], experts, 2).isfinite(), label=label)
    with c.part():
        same = c.call(choice[:1], n_group, n_group)
        c.close(same, choice[:1], label="keeping every group changes nothing (one token)")
    with c.part():
        level = 0.25 * c.randint(1, 4, 5, 1).expand(-1, experts).contiguous()
        tied = c.call(level, n_group, kept)
        n_open = torch.full((5,), kept * size)
        c.equal(tied.isfinite().sum(-1), n_open, label=f"of equal groups, too, exactly {kept} stay")
    with c.part():
        again = c.call(c.strided(choice), n_group, kept)
        c.close(again, wanted, label="a choice that is not contiguous gives the same")


def _expected(choice, n_group, kept):
    size = choice.shape[-1] // n_group
    rows = []
    for row in choice.tolist():
        groups = [row[g * size : (g + 1) * size] for g in range(n_group)]
        rank = sorted(range(n_group), key=lambda g: sum(sorted(groups[g])[-2:]), reverse=True)
        values = [v if g in rank[:kept] else -torch.inf for g in range(n_group) for v in groups[g]]
        rows.append(values)
    return torch.tensor(rows)
