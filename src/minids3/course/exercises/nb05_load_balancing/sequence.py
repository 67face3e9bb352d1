"""The sequence-wise balance loss, TR eq. 17-20."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from minids3.course.registry import Alternative, Mutant, exercise
from minids3.train.balance import sequence_balance_loss


def sequence_loss(scores, top_k):
    """Sum of f_i P_i within each sequence, mean over sequences.

    scores [B, T, E] positive, before the bias; top_k: K experts per token
    returns a scalar, 1 for an even sequence; alpha is not in it
    """
    steps, experts = scores.shape[1:]
    chosen = scores.topk(top_k, dim=-1).indices
    hits = F.one_hot(chosen, experts).sum((1, 2))  # [B, E]
    f = hits * experts / (top_k * steps)
    p = (scores / scores.sum(-1, keepdim=True)).mean(1)
    return (f * p).sum(-1).mean()


def _parts(scores, top_k):
    """f and P, each [B, E]."""
    steps, experts = scores.shape[1:]
    hits = F.one_hot(scores.topk(top_k, -1).indices, experts).sum((1, 2))
    p = (scores / scores.sum(-1, keepdim=True)).mean(1)
    return hits * experts / (top_k * steps), p


def _seq_batch_wise(scores, top_k):
    f, p = _parts(scores, top_k)
    return (f.mean(0) * p.mean(0)).sum()


def _seq_unnormalised(scores, top_k):
    f, _ = _parts(scores, top_k)
    return (f * scores.mean(1)).sum(-1).mean()


def _seq_ratio_of_means(scores, top_k):
    f, _ = _parts(scores, top_k)
    p = scores.mean(1) / scores.mean(1).sum(-1, keepdim=True)
    return (f * p).sum(-1).mean()


def _seq_no_factor(scores, top_k):
    f, p = _parts(scores, top_k)
    return (f * top_k / scores.shape[-1] * p).sum(-1).mean()


def _seq_no_k(scores, top_k):
    f, p = _parts(scores, top_k)
    return (f * top_k * p).sum(-1).mean()


def _seq_summed(scores, top_k):
    f, p = _parts(scores, top_k)
    return (f * p).sum()


def _seq_mean_experts(scores, top_k):
    f, p = _parts(scores, top_k)
    return (f * p).mean()


def _seq_soft_counts(scores, top_k):
    _, p = _parts(scores, top_k)
    return (p * scores.shape[-1] * p).sum(-1).mean()


def _seq_softmax(scores, top_k):
    f, _ = _parts(scores, top_k)
    return (f * scores.softmax(-1).mean(1)).sum(-1).mean()


def _seq_chosen_only(scores, top_k):
    f, _ = _parts(scores, top_k)
    best = scores.topk(top_k, -1)
    gates = torch.zeros_like(scores).scatter(-1, best.indices, best.values)
    p = (gates / gates.sum(-1, keepdim=True)).mean(1)
    return (f * p).sum(-1).mean()


def _seq_detached(scores, top_k):
    f, p = _parts(scores, top_k)
    return (f * p.detach()).sum(-1).mean()


def _seq_loop(scores, top_k):
    losses = []
    for s in scores:
        steps, experts = s.shape
        load = torch.bincount(s.topk(top_k, -1).indices.flatten(), minlength=experts)
        share = s / s.sum(-1, keepdim=True)
        losses.append(share.mean(0) @ (load.to(s.dtype) * (experts / (top_k * steps))))
    return sum(losses) / len(losses)


def _seq_masked(scores, top_k):
    place = scores.argsort(-1, descending=True).argsort(-1)  # each expert's rank
    f = (place < top_k).to(scores.dtype).mean(1) * scores.shape[-1] / top_k
    p = torch.einsum("bte,bt->be", scores, 1 / scores.sum(-1)) / scores.shape[1]
    return torch.einsum("be,be->b", f.detach(), p).mean()


def _seq_library(scores, top_k):
    return sequence_balance_loss(scores, top_k)


def _seq_ties(scores, top_k):
    steps, experts = scores.shape[1:]
    least = scores.topk(top_k, dim=-1).values[..., -1:]
    hits = (scores >= least).sum(1)
    p = (scores / scores.sum(-1, keepdim=True)).mean(1)
    return (hits * experts / (top_k * steps) * p).sum(-1).mean()


def _seq_k_built_in(scores, top_k):
    return sequence_loss(scores, 2)


def _seq_viewed(scores, top_k):
    return sequence_loss(scores.view(-1).view(scores.shape), top_k)


def _seq_scatter(scores, top_k):
    experts = scores.shape[-1]
    chosen = torch.zeros_like(scores)
    with torch.no_grad():
        chosen.scatter_(-1, scores.argsort(-1, descending=True)[..., :top_k], 1.0)
    share = scores / torch.einsum("bte->bt", scores)[..., None]
    f, p = chosen.mean(1) * experts / top_k, share.mean(1)
    return torch.einsum("be,be->", f, p) / scores.shape[0]


@exercise(
    "balance-sequence",
    solution=sequence_loss,
    notebook="05_load_balancing",
    title="No text may live on two experts",
    difficulty=3,
    importance=3,
    minutes=12,
    library=_seq_library,
    hints=(
        "Which axes are summed away when you count for each sequence how often each expert was "
        "chosen, and which two remain? Which of f and P can pass a gradient on?",
        "chosen = top-k of scores over E                            # [B, T, K]\n"
        "hits = per sequence, how often each expert was chosen      # [B, E]\n"
        "f = hits * E / (K * T)                                     # 1 when even\n"
        "share = scores / (their sum over E, token by token)        # [B, T, E]\n"
        "P = mean of share over T                                   # [B, E]\n"
        "return mean over sequences of (sum over E of f * P)",
    ),
    mutants=[
        Mutant(
            "batch_wise",
            _seq_batch_wise,
            "You averaged over the batch before multiplying: that is the batch-wise loss. One "
            "sequence's excess hides another's there; multiply f and P within each sequence.",
        ),
        Mutant(
            "unnormalised",
            _seq_unnormalised,
            "P uses the raw scores. Divide each token's scores by their sum, or the loss can fall "
            "by making all scores small.",
        ),
        Mutant(
            "ratio_of_means",
            _seq_ratio_of_means,
            "You normalised after averaging over the tokens. Then tokens with large scores weigh "
            "more: divide token by token, then take the mean.",
        ),
        Mutant(
            "no_factor",
            _seq_no_factor,
            "f is hits over T here. The factor E / K is missing, so an even sequence does not "
            "give 1.",
        ),
        Mutant(
            "no_k",
            _seq_no_k,
            "The K is missing in f: T tokens make K * T choices.",
        ),
        Mutant(
            "summed",
            _seq_summed,
            "You summed over the sequences: the loss grows with the batch size. Take their mean.",
        ),
        Mutant(
            "mean_over_experts",
            _seq_mean_experts,
            "Yours is too small by the factor E: either f lacks its E, or you averaged f times P "
            "over the experts instead of summing.",
        ),
        Mutant(
            "soft_counts",
            _seq_soft_counts,
            "Your f is made of scores. f counts choices, 0 or 1 each, and is therefore a constant "
            "for the gradient.",
        ),
        Mutant(
            "softmax",
            _seq_softmax,
            "You sent sigmoid scores through a softmax, which flattens them. Divide them by their "
            "sum.",
        ),
        Mutant(
            "chosen_only",
            _seq_chosen_only,
            "P is made of the chosen experts' gate weights. It takes the scores of all E experts, "
            "so that those not chosen get a gradient too.",
        ),
        Mutant(
            "detached",
            _seq_detached,
            "P is detached as well, so no gradient is left and the loss trains nothing. Only the "
            "counts are constants.",
        ),
        Mutant(
            "ties",
            _seq_ties,
            "You counted every expert that is as good as the K-th. With equal scores that is more "
            "than K: take exactly K, as topk does.",
        ),
        Mutant(
            "k_built_in",
            _seq_k_built_in,
            "You built K = 2 in. top_k is an argument.",
        ),
        Mutant(
            "layout",
            _seq_viewed,
            "Your code needs scores to be contiguous: use flatten or reshape.",
        ),
    ],
    alternatives=[
        Alternative("loop", _seq_loop),
        Alternative("masked", _seq_masked),
        Alternative("scatter", _seq_scatter),
    ],
)
def check_sequence(c):
    """Values by hand, even and one-sided sequences, batches against sequences, gradient."""
    rows, steps, top_k = c.size(2, 3), c.size(4, 5), 2
    experts = c.size(6, 8)
    scores = torch.sigmoid(2 * c.randn(rows, steps, experts))
    loss = c.call(scores, top_k, label=f"runs on scores {list(scores.shape)}")
    c.shape(loss, (), label="the loss is one number, shape []")
    with c.part():
        c.close(loss, _by_hand(scores, top_k), label="it is the mean over sequences of sum f P")
    base = torch.linspace(0.1, 0.9, experts)
    with c.part():
        even = torch.stack([base.roll(t) for t in range(experts)])[None]
        label = "where every expert is chosen equally often it is 1"
        c.close(c.call(even, top_k), torch.tensor(1.0), label=label)
    with c.part():
        sides = torch.stack([base.expand(steps, -1), base.flip(0).expand(steps, -1)])
        label = "two one-sided texts stay two one-sided texts in one batch"
        c.close(c.call(sides, top_k), _by_hand(sides, top_k), label=label)
    with c.part():
        one = scores[:, :1]
        c.close(c.call(one, 5), _by_hand(one, 5), label="one token and another K work")
    with c.part():
        c.grad(
            args=(scores, top_k),
            wrt=(0,),
            expected_fn=_seq_library,
            label="the gradient comes through P alone",
            names=("scores",),
        )
    with c.part():
        level = torch.full((2, steps, experts), 0.5)
        label = "equal scores: K experts are chosen all the same, and the loss is 1"
        c.close(c.call(level, top_k), torch.tensor(1.0), label=label)
    with c.part():
        label = "scores that are not contiguous, and small ones, give the same"
        c.close(c.call(c.strided(1e-4 * scores), 3), _by_hand(scores, 3), label=label)


def _by_hand(scores, top_k):
    rows, steps, experts = scores.shape
    total = 0.0
    for row in scores.double().tolist():
        hits, share = [0] * experts, [0.0] * experts
        for token in row:
            for e in sorted(range(experts), key=lambda e, t=token: -t[e])[:top_k]:
                hits[e] += 1
            for e in range(experts):
                share[e] += token[e] / sum(token) / steps
        total += sum(h * experts / (top_k * steps) * p for h, p in zip(hits, share, strict=True))
    return torch.tensor(total / rows, dtype=torch.float32)
