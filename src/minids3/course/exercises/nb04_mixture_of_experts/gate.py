"""The gate: sigmoid scores, a bias that only chooses, weights without it."""

from __future__ import annotations

import torch

from minids3.course.registry import Alternative, Mutant, exercise


def moe_gate(x, weight, bias, top_k, scale):
    """Choose top_k experts for every token, and weigh them.

    x [N, D]; weight [E, D]; bias [E], or [N, E] with one row per token
    top_k: experts per token; scale: factor on the weights
    returns weights [N, K] and indices [N, K] (int64), best choice first
    """
    scores = torch.sigmoid(x @ weight.T)
    indices = (scores + bias).topk(top_k, dim=-1).indices
    chosen = scores.gather(-1, indices)
    weights = chosen / chosen.sum(-1, keepdim=True) * scale
    return weights, indices


def _gate(x, weight, bias, top_k, scale, score=torch.sigmoid):
    scores = score(x @ weight.T)
    return scores, (scores + bias).topk(top_k, dim=-1).indices


def _gate_leaked(x, weight, bias, top_k, scale):
    scores, indices = _gate(x, weight, bias, top_k, scale)
    chosen = (scores + bias).gather(-1, indices)
    return chosen / chosen.sum(-1, keepdim=True) * scale, indices


def _gate_blind(x, weight, bias, top_k, scale):
    return moe_gate(x, weight, torch.zeros_like(bias), top_k, scale)


def _gate_softmax(x, weight, bias, top_k, scale):
    scores, indices = _gate(x, weight, bias, top_k, scale, lambda z: z.softmax(-1))
    chosen = scores.gather(-1, indices)
    return chosen / chosen.sum(-1, keepdim=True) * scale, indices


def _gate_softmax_of_chosen(x, weight, bias, top_k, scale):
    _, indices = _gate(x, weight, bias, top_k, scale)
    return (x @ weight.T).gather(-1, indices).softmax(-1) * scale, indices


def _gate_over_all(x, weight, bias, top_k, scale):
    scores, indices = _gate(x, weight, bias, top_k, scale)
    return (scores / scores.sum(-1, keepdim=True)).gather(-1, indices) * scale, indices


def _gate_raw(x, weight, bias, top_k, scale):
    scores, indices = _gate(x, weight, bias, top_k, scale)
    return scores.gather(-1, indices) * scale, indices


def _gate_unscaled(x, weight, bias, top_k, scale):
    return moe_gate(x, weight, bias, top_k, 1.0)


def _gate_bias_before_sigmoid(x, weight, bias, top_k, scale):
    scores = torch.sigmoid(x @ weight.T)
    indices = (x @ weight.T + bias).topk(top_k, dim=-1).indices
    chosen = scores.gather(-1, indices)
    return chosen / chosen.sum(-1, keepdim=True) * scale, indices


def _gate_worst(x, weight, bias, top_k, scale):
    scores = torch.sigmoid(x @ weight.T)
    indices = (scores + bias).topk(top_k, dim=-1, largest=False).indices
    chosen = scores.gather(-1, indices)
    return chosen / chosen.sum(-1, keepdim=True) * scale, indices


def _gate_by_sorting(x, weight, bias, top_k, scale):
    scores = 1 / (1 + torch.exp(-torch.einsum("nd,ed->ne", x, weight)))
    indices = torch.argsort(scores + bias, dim=-1, descending=True)[:, :top_k]
    chosen = torch.take_along_dim(scores, indices, -1)
    return scale * chosen / chosen.sum(-1)[:, None], indices


def _gate_token_by_token(x, weight, bias, top_k, scale):
    biases = bias.expand(x.shape[0], weight.shape[0])
    weights, indices = [], []
    for token, steer in zip(x, biases, strict=True):
        scores = torch.sigmoid(weight @ token)
        rank = (scores.detach() + steer).tolist()
        best = sorted(range(len(rank)), key=lambda e: -rank[e])[:top_k]
        weights.append(scores[best] * (scale / scores[best].sum()))
        indices.append(torch.tensor(best))
    return torch.stack(weights), torch.stack(indices)


def _gate_masked(x, weight, bias, top_k, scale):
    scores = torch.sigmoid(x @ weight.T)
    indices = (scores.detach() + bias).topk(top_k).indices
    mask = torch.zeros_like(scores).scatter(-1, indices, 1.0)
    gates = scores * mask
    gates = gates / gates.sum(-1, keepdim=True) * scale
    return gates.gather(-1, indices), indices


def _gate_scale_built_in(x, weight, bias, top_k, scale):
    return moe_gate(x, weight, bias, top_k, 2.5)


def _gate_batch_sum(x, weight, bias, top_k, scale):
    scores = torch.sigmoid(x @ weight.T)
    indices = (scores + bias).topk(top_k, dim=-1).indices
    chosen = scores.gather(-1, indices)
    return chosen / chosen.sum() * scale, indices


def _gate_indexed(x, weight, bias, top_k, scale):
    scores = torch.sigmoid(x @ weight.T)
    indices = (scores + bias).topk(top_k, dim=-1).indices
    chosen = scores[indices]
    return chosen / chosen.sum(-1, keepdim=True) * scale, indices


def _gate_unordered(x, weight, bias, top_k, scale):
    weights, indices = moe_gate(x, weight, bias, top_k, scale)
    indices, place = indices.sort(-1)
    return weights.gather(-1, place), indices


def _gate_in_float64(x, weight, bias, top_k, scale):
    scores = 1 / (1 + torch.exp(-torch.einsum("nd,ed->ne", x.double(), weight.double())))
    order = (scores + bias).argsort(-1, descending=True)[:, :top_k]
    weights = torch.zeros(x.shape[0], top_k, dtype=torch.float64)
    for n in range(x.shape[0]):
        weights[n] = scores[n, order[n]] * scale / scores[n, order[n]].sum()
    return weights.to(x.dtype), order


@exercise(
    "moe-gate",
    solution=moe_gate,
    notebook="04_mixture_of_experts",
    title="Choose with the bias, weigh without it",
    difficulty=3,
    importance=5,
    minutes=10,
    hints=(
        "Two questions, two numbers: which experts, and how much of each? Which of the two may "
        "see the bias? And what must the weights of one token add up to?",
        "scores = sigmoid(x times weight transposed)          # [N, E]\n"
        "indices = positions of the top_k largest scores + bias\n"
        "chosen = the scores, not the biased ones, at those positions    # [N, K]\n"
        "weights = chosen divided by its own sum per token, times scale\n"
        "return weights, indices",
    ),
    mutants=[
        Mutant(
            "leaked",
            _gate_leaked,
            "The bias leaked into the weights: it may only choose the experts. Weigh with the "
            "plain scores, or balancing changes what the layer computes.",
        ),
        Mutant(
            "blind",
            _gate_blind,
            "The bias had no say in the choice. Rank by score + bias.",
        ),
        Mutant(
            "softmax",
            _gate_softmax,
            "You made the scores with a softmax. DeepSeek-V3 gives each expert a sigmoid of its "
            "own, so that experts do not compete before they are chosen.",
        ),
        Mutant(
            "softmax_of_chosen",
            _gate_softmax_of_chosen,
            "You took a softmax over the chosen logits. The weights are sigmoid scores divided "
            "by their sum.",
        ),
        Mutant(
            "over_all",
            _gate_over_all,
            "You divided by the sum over all experts. Only the chosen ones count, so that their "
            "weights add up to scale however many experts there are.",
        ),
        Mutant(
            "raw",
            _gate_raw,
            "The weights were not normalised: divide the chosen scores by their sum.",
        ),
        Mutant(
            "unscaled",
            _gate_unscaled,
            "The factor scale is missing, or it came before the division, where it cancels.",
        ),
        Mutant(
            "bias_before_sigmoid",
            _gate_bias_before_sigmoid,
            "You added the bias to the logits. It belongs to the scores, after the sigmoid.",
        ),
        Mutant(
            "worst",
            _gate_worst,
            "You chose the experts with the smallest values. Take the largest.",
        ),
        Mutant(
            "scale_built_in",
            _gate_scale_built_in,
            "You built DeepSeek-V3's 2.5 in. scale is an argument.",
        ),
        Mutant(
            "batch_sum",
            _gate_batch_sum,
            "You divided by the sum over the whole batch. Each token's own weights add up to "
            "scale: sum over the last axis, with keepdim=True.",
        ),
        Mutant(
            "indexed",
            _gate_indexed,
            "scores[indices] picks rows, which are tokens. To pick each token's own experts along "
            "the last axis use scores.gather(-1, indices).",
        ),
        Mutant(
            "unordered",
            _gate_unordered,
            "You have the right experts in another order. The best choice comes first, as topk "
            "gives them.",
        ),
    ],
    alternatives=[
        Alternative("by_sorting", _gate_by_sorting),
        Alternative("token_by_token", _gate_token_by_token),
        Alternative("masked", _gate_masked),
        Alternative("in_float64", _gate_in_float64),
    ],
)
def check_moe_gate(c):
    """Choice and weights token by token in double precision, edge cases, gradients."""
    experts, dim, top_k = c.size(7, 9), c.size(5, 6), c.size(3, 4)
    tokens, scale = 2 * experts + c.size(2, 5), c.choice((0.5, 1.5, 4.0))
    x, weight, bias = c.randn(tokens, dim), c.randn(experts, dim) * 0.7, c.randn(experts) * 0.4
    weights, indices = c.call(
        x,
        weight,
        bias,
        top_k,
        scale,
        label=f"runs on x {[tokens, dim]} and {experts} experts and returns two tensors",
        returns=2,
    )
    c.shape(indices, (tokens, top_k), "indices")
    c.dtype(indices, torch.int64, "indices")
    c.shape(weights, (tokens, top_k), "weights")
    wanted_weights, wanted_indices = _expected(x, weight, bias, top_k, scale)
    with c.part():
        chosen, wanted_set = indices.sort(-1).values, wanted_indices.sort(-1).values
        c.equal(chosen, wanted_set, label="the chosen experts have the largest score + bias")
        c.equal(indices, wanted_indices, label="they come in order, the best choice first")
        c.close(weights, wanted_weights, label="the weights are the chosen experts' plain scores")
        total = torch.full((tokens,), scale)
        c.close(weights.sum(-1), total, label="each token's weights add up to scale")
    with c.part():
        one, first = c.call(x[:1], weight, bias, 1, scale, returns=2)
        c.close(one, torch.full((1, 1), scale), label="one token, one expert: its weight is scale")
        c.equal(first, wanted_indices[:1, :1], label="and it is the best of all")
    with c.part():
        # score + bias are 0, 0.1, 0.2, ...: the last expert is the best.
        steps = 0.1 * torch.arange(experts) - torch.sigmoid(weight @ x[0])
        shares, ranked = c.call(x[:1], weight, steps, experts, scale, returns=2)
        wanted, order = _expected(x[:1], weight, steps, experts, scale)
        c.equal(ranked, order, label="top_k = E: all experts, the best choice first")
        c.close(shares, wanted, label="top_k = E: the weights in the same order")
    with c.part():
        forbidden = torch.zeros(tokens, experts).masked_fill(
            c.rand(tokens, experts).argsort(-1) < experts - top_k, float("-inf")
        )
        some, left = c.call(x, weight, forbidden, top_k, scale, returns=2)
        label = "a bias of minus infinity, token by token, forbids an expert"
        c.true(forbidden.gather(-1, left).isfinite().all(), label, "a forbidden one was chosen")
        wanted, _ = _expected(x, weight, forbidden, top_k, scale)
        c.close(some, wanted, label="and the weights of the others stay finite and right")
    with c.part():
        c.grad(
            args=(x, weight, bias, top_k, scale),
            wrt=(0, 1),
            expected_fn=_differentiable,
            label="the gradient reaches x and the gate's weight",
            names=("x", "weight"),
        )


def _expected(x, weight, bias, top_k, scale):
    """Gate in double precision, one token at a time."""
    biases = bias.double().expand(x.shape[0], weight.shape[0])
    rows = []
    for token, steer in zip(x.double(), biases, strict=True):
        scores = [1 / (1 + torch.exp(-(token @ w))) for w in weight.double()]
        ranked = sorted(range(len(scores)), key=lambda e: -float(scores[e] + steer[e]))[:top_k]
        total = sum(scores[e] for e in ranked)
        rows.append(([float(scores[e] / total) * scale for e in ranked], ranked))
    return torch.tensor([w for w, _ in rows]), torch.tensor([i for _, i in rows])


def _differentiable(x, weight, bias, top_k, scale):
    _, indices = _expected(x.detach(), weight.detach(), bias, top_k, scale)
    rows = []
    for n, picked in enumerate(indices):
        odds = torch.stack([torch.exp(-(x[n] * weight[e]).sum()) for e in picked])
        share = 1 / (1 + odds)
        rows.append(share / share.sum() * scale)
    return torch.stack(rows), indices
