"""Attention that rebuilds every head's keys and values from the latents."""

from __future__ import annotations

import math

import torch

from minids3.course.registry import Alternative, Mutant, exercise
from minids3.nn.attention import causal_sdpa
from minids3.ref.attention import causal_attention_ref


def attend_naive(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    """Rebuild every head's keys and values from the latents, then attend.

    q_nope [B, H, T, dn], q_rope [B, H, T, R]: the last T of S positions
    c_kv [B, S, C]; k_rope [B, S, R], one for all heads
    w_kv_b [H * (dn + dv), C]: per head dn rows for keys, dv for values
    returns [B, H, T, dv]
    """
    n_heads, nope = q_nope.shape[1], q_nope.shape[-1]
    kv = (c_kv @ w_kv_b.T).unflatten(-1, (n_heads, -1)).transpose(1, 2)
    k_nope, v = kv[..., :nope], kv[..., nope:]  # [B, H, S, dn or dv]
    shared = k_rope[:, None].expand(-1, n_heads, -1, -1)
    q = torch.cat((q_nope, q_rope), dim=-1)
    k = torch.cat((k_nope, shared), dim=-1)
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    n_queries, n_keys = scores.shape[-2:]
    future = torch.ones(n_queries, n_keys, dtype=torch.bool)
    future = future.triu(n_keys - n_queries + 1)
    scores = scores.masked_fill(future, float("-inf"))
    return torch.softmax(scores, dim=-1) @ v


def _expand(q_nope, c_kv, w_kv_b):
    kv = (c_kv @ w_kv_b.T).unflatten(-1, (q_nope.shape[1], -1)).transpose(1, 2)
    return kv[..., : q_nope.shape[-1]], kv[..., q_nope.shape[-1] :]


def _join(q_nope, q_rope, k_nope, k_rope):
    shared = k_rope[:, None].expand(-1, q_nope.shape[1], -1, -1)
    return torch.cat((q_nope, q_rope), -1), torch.cat((k_nope, shared), -1)


def _with(q_nope, q_rope, c_kv, k_rope, w_kv_b, scale=None, offset=None):
    k_nope, v = _expand(q_nope, c_kv, w_kv_b)
    q, k = _join(q_nope, q_rope, k_nope, k_rope)
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    n_queries, n_keys = scores.shape[-2:]
    offset = n_keys - n_queries + 1 if offset is None else offset
    future = torch.ones(n_queries, n_keys, dtype=torch.bool).triu(offset)
    return scores.masked_fill(future, float("-inf")).softmax(-1) @ v


def _scaled_by_nope(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    return _with(q_nope, q_rope, c_kv, k_rope, w_kv_b, scale=q_nope.shape[-1] ** -0.5)


def _unscaled(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    return _with(q_nope, q_rope, c_kv, k_rope, w_kv_b, scale=1.0)


def _no_rotary(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    scale = (q_nope.shape[-1] + q_rope.shape[-1]) ** -0.5
    zero = torch.zeros_like(q_rope)
    return _with(q_nope, zero, c_kv, k_rope, w_kv_b, scale=scale)


def _mask_top_left(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    return _with(q_nope, q_rope, c_kv, k_rope, w_kv_b, offset=1)


def _leaky(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    return _with(q_nope, q_rope, c_kv, k_rope, w_kv_b, offset=c_kv.shape[1] + 1)


def _keys_then_values(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    n_heads, nope = q_nope.shape[1], q_nope.shape[-1]
    w_k, w_v = w_kv_b[: n_heads * nope], w_kv_b[n_heads * nope :]
    parts = w_k.unflatten(0, (n_heads, -1)), w_v.unflatten(0, (n_heads, -1))
    return attend_naive(q_nope, q_rope, c_kv, k_rope, torch.cat(parts, 1).flatten(0, 1))


def _values_first(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    weight = w_kv_b.unflatten(0, (q_nope.shape[1], -1))
    v_dim = weight.shape[1] - q_nope.shape[-1]
    turned = torch.cat((weight[:, v_dim:], weight[:, :v_dim]), 1).flatten(0, 1)
    return attend_naive(q_nope, q_rope, c_kv, k_rope, turned)


def _heads_inside(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    n_heads = q_nope.shape[1]
    shuffled = w_kv_b.unflatten(0, (-1, n_heads)).transpose(0, 1).flatten(0, 1)
    return attend_naive(q_nope, q_rope, c_kv, k_rope, shuffled)


def _naive_library(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    k_nope, v = _expand(q_nope, c_kv, w_kv_b)
    q, k = _join(q_nope, q_rope, k_nope, k_rope)
    return causal_sdpa(q, k, v)


def _naive_reference(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    weight = w_kv_b.unflatten(0, (q_nope.shape[1], -1))
    kv = torch.einsum("bsc,hdc->bhsd", c_kv, weight)
    k_nope, v = kv.split((q_nope.shape[-1], kv.shape[-1] - q_nope.shape[-1]), -1)
    return causal_attention_ref(*_join(q_nope, q_rope, k_nope, k_rope), v)


def _naive_two_scores(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    k_nope, v = _expand(q_nope, c_kv, w_kv_b)
    scores = torch.einsum("bhtd,bhsd->bhts", q_nope, k_nope)
    scores = scores + torch.einsum("bhtr,bsr->bhts", q_rope, k_rope)
    scores = scores / math.sqrt(q_nope.shape[-1] + q_rope.shape[-1])
    first = scores.shape[-1] - scores.shape[-2]
    query = first + torch.arange(scores.shape[-2])[:, None]
    hidden = torch.arange(scores.shape[-1]) > query
    return torch.softmax(scores.masked_fill(hidden, float("-inf")), -1) @ v


def check_cached(c, args):
    """Fewer queries than cached tokens give what they gave among all the queries."""
    q_nope, q_rope, *cached = args
    for last, label in (
        (2, "two new queries over a longer cache (T = 2 < S): the same as before"),
        (1, "a single query, T = 1, sees the whole cache"),
    ):
        y = c.call(q_nope[:, :, -last:], q_rope[:, :, -last:], *cached)
        c.close(y, expected_attention(*args)[:, :, -last:], label=label)


def _late_mask(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    return _attend(q_nope, q_rope, c_kv, k_rope, w_kv_b, late=1)


def _small_mask(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    return _attend(q_nope, q_rope, c_kv, k_rope, w_kv_b, hidden=-100.0)


def _no_maximum(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    return _attend(q_nope, q_rope, c_kv, k_rope, w_kv_b, softmax=_plain_softmax)


def _viewed(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    n_heads = q_nope.shape[1]
    weight = w_kv_b.view(n_heads, -1, w_kv_b.shape[-1]).flatten(0, 1)
    latent = c_kv.view(-1, c_kv.shape[-1]).view(c_kv.shape)
    return attend_naive(q_nope, q_rope, latent, k_rope, weight)


def _plain_softmax(scores):
    weights = torch.exp(scores)
    return weights / weights.sum(-1, keepdim=True)


def _attend(q_nope, q_rope, c_kv, k_rope, w_kv_b, late=0, hidden=float("-inf"), softmax=None):
    n_heads, nope = q_nope.shape[1], q_nope.shape[-1]
    kv = (c_kv @ w_kv_b.T).unflatten(-1, (n_heads, -1)).transpose(1, 2)
    scores = q_nope @ kv[..., :nope].transpose(-1, -2)
    scores = scores + q_rope @ k_rope[:, None].transpose(-1, -2)
    scores = scores / math.sqrt(nope + q_rope.shape[-1])
    n_queries, n_keys = scores.shape[-2:]
    future = torch.ones(n_queries, n_keys, dtype=torch.bool).triu(n_keys - n_queries + 1 + late)
    weights = (softmax or (lambda s: torch.softmax(s, -1)))(scores.masked_fill(future, hidden))
    return weights @ kv[..., nope:]


def _by_head(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    n_heads, nope = q_nope.shape[1], q_nope.shape[-1]
    weight = w_kv_b.reshape(n_heads, -1, w_kv_b.shape[-1])
    y = torch.zeros(*q_nope.shape[:3], weight.shape[1] - nope)
    for b in range(y.shape[0]):
        for h in range(n_heads):
            kv = torch.einsum("sc,nc->sn", c_kv[b], weight[h])
            k = torch.cat((kv[:, :nope], k_rope[b]), -1)
            q = torch.cat((q_nope[b, h], q_rope[b, h]), -1)
            scores = torch.einsum("td,sd->ts", q, k) * k.shape[-1] ** -0.5
            ahead = torch.arange(len(k)) > torch.arange(len(k) - len(q), len(k))[:, None]
            scores = torch.where(ahead, torch.finfo(scores.dtype).min, scores)
            y[b, h] = torch.softmax(scores, -1) @ kv[:, nope:]
    return y


def check_another(c, args):
    """Latents and a matrix of the same shapes as before."""
    q_nope, q_rope, c_kv, k_rope, w_kv_b = args
    other = q_nope, q_rope, c_kv.flip(1), k_rope, w_kv_b.flip(0)
    y = c.call(*other)
    label = "other latents and matrices of the same shapes have their own result"
    c.close(y, expected_attention(*other), label=label)


def check_loud(c, args):
    """Scores of hundreds, and position 0's own ones at -40,000."""
    q_nope, q_rope, c_kv, k_rope, w_kv_b = args
    heads, nope = q_nope.shape[1], q_nope.shape[-1]
    w_uk = w_kv_b.unflatten(0, (heads, -1))[:, :nope]
    own = torch.einsum("bhn,hnc,bc->bh", q_nope[:, :, 0], w_uk, c_kv[:, 0])
    own = own + torch.einsum("bhr,br->bh", q_rope[:, :, 0], k_rope[:, 0])
    factor = torch.full((*q_nope.shape[:3], 1), 300.0)
    factor[:, :, 0, 0] = -4e4 * math.sqrt(nope + q_rope.shape[-1]) / own
    loud = (q_nope * factor, q_rope * factor, c_kv, k_rope, w_kv_b)
    y = c.call(*loud)
    label = "scores of hundreds, or of -40,000, let neither overflow nor future in"
    c.close(y, expected_attention(*loud), label=label, rtol=2e-2, atol=2e-2)


def check_layout(c, args):
    """Inputs that are not contiguous."""
    y = c.call(*[c.strided(t) for t in args])
    c.close(y, expected_attention(*args), label="inputs that are not contiguous give the same")


@exercise(
    "mla-naive",
    solution=attend_naive,
    notebook="03_latent_attention",
    title="Print all heads from one negative",
    difficulty=3,
    importance=5,
    minutes=12,
    library=_naive_library,
    hints=(
        "c_kv times w_kv_b transposed is [B, S, H * (dn + dv)]. What has to be split first, the "
        "heads or keys and values, when a head's rows are together? The rotary key has no head "
        "axis: how does every head get it? How wide is a whole query, and where in the S positions "
        "does the first query stand?",
        "kv = c_kv times w_kv_b transposed, last axis to (H, dn + dv), H moved to axis 1\n"
        "k_nope, v = first dn columns of kv, the rest\n"
        "k = k_nope and k_rope (the same one for every head) side by side    # dn + R wide\n"
        "q = q_nope and q_rope side by side\n"
        "scores = q k^T / sqrt(dn + R); query t is at position S - T + t, hide what is later\n"
        "return softmax(scores) v",
    ),
    mutants=[
        Mutant(
            "scaled_by_nope",
            _scaled_by_nope,
            "You divided by sqrt(dn). A whole query is dn + R wide, and so is the root.",
        ),
        Mutant("unscaled", _unscaled, "The scores were not divided by sqrt(dn + R)."),
        Mutant(
            "no_rotary",
            _no_rotary,
            "The rotary part is missing from the scores: this attention does not know where "
            "anything is.",
        ),
        Mutant(
            "mask_top_left",
            _mask_top_left,
            "The mask assumes that the first query is position 0. With a cache the queries are the "
            "last T of S positions: shift the diagonal by S - T.",
        ),
        Mutant(
            "leaky", _leaky, "There is no mask: queries see positions that come after their own."
        ),
        Mutant(
            "keys_then_values",
            _keys_then_values,
            "You took the first H * dn rows as keys of all heads. The rows go head by head: dn for "
            "keys, dv for values, then the next head. Split the heads first.",
        ),
        Mutant(
            "values_first",
            _values_first,
            "Within a head the keys' rows come first, then the values'. You had them the other way "
            "round.",
        ),
        Mutant(
            "heads_inside",
            _heads_inside,
            "The last axis was cut as (dn + dv, H). A head's rows are together: cut it as "
            "(H, dn + dv).",
        ),
        Mutant(
            "late_mask",
            _late_mask,
            "Your mask starts one too late: each query sees the token after its own. Query t "
            "is at position S - T + t; hide from S - T + t + 1 on.",
        ),
        Mutant(
            "small_mask",
            _small_mask,
            "Your mask is a score that real ones can fall below: then the future is seen. Use "
            "-inf.",
        ),
        Mutant(
            "no_maximum",
            _no_maximum,
            "You took exp of the scores as they are: from 89 on it overflows, and inf / inf is "
            "nan. Use torch.softmax, or subtract each row's maximum.",
        ),
        Mutant(
            "layout",
            _viewed,
            "Your code needs contiguous inputs, and slices of a cache are not: use reshape, "
            "flatten or unflatten.",
        ),
    ],
    alternatives=[
        Alternative("reference", _naive_reference),
        Alternative("two_scores", _naive_two_scores),
        Alternative("by_head", _by_head),
    ],
)
def check_attend_naive(c):
    """Against fp64 head by head, with and without a cache, causality, one token, gradients."""
    args, sizes = latent_inputs(c)
    q_nope, q_rope, c_kv, k_rope, w_kv_b = args
    batch, heads, steps, v_dim = sizes
    y = c.call(*args, label=f"runs on c_kv {list(c_kv.shape)} with {heads} heads")
    c.shape(y, (batch, heads, steps, v_dim), "the result")
    with c.part():
        c.dtype(y, torch.float32, "the result")
        label = "position 0 sees only itself: its own value"
        c.close(y, expected_attention(*args), "the result")
        value = w_kv_b.unflatten(0, (heads, -1))[:, -v_dim:]
        first = torch.einsum("bc,hvc->bhv", c_kv[:, 0], value)
        c.close(y[:, :, 0], first, label=label, atol=1e-4)
    with c.part():
        check_cached(c, args)
    with c.part():
        moved = torch.cat((k_rope[:, :1], 3 * k_rope[:, 1:]), 1)
        label = "another rotary key changes the result"
        changed = c.call(q_nope, q_rope, c_kv, moved, w_kv_b)
        c.close(changed, expected_attention(q_nope, q_rope, c_kv, moved, w_kv_b), label=label)
    with c.part():
        check_another(c, args)
    with c.part():
        c.grad(
            args=args,
            wrt=(0, 1, 2, 3, 4),
            expected_fn=_naive_two_scores,
            label="the gradient reaches queries, latents, rotary keys and w_kv_b",
            names=("q_nope", "q_rope", "c_kv", "k_rope", "w_kv_b"),
            atol=1e-3,
        )
    with c.part():
        check_loud(c, args)
    with c.part():
        check_layout(c, args)


def latent_inputs(c):
    """Random queries, latents, rotary keys and weights, no two sizes alike."""
    batch, heads, steps = 2, 3, c.size(4, 6)
    nope, rotary, v_dim = c.size(7, 8), 2 * c.size(5, 6), c.size(13, 14)
    rank = c.size(16, 19)
    args = (
        c.randn(batch, heads, steps, nope),
        c.randn(batch, heads, steps, rotary),
        c.randn(batch, steps, rank),
        c.randn(batch, steps, rotary),
        c.randn(heads * (nope + v_dim), rank) / math.sqrt(rank),
    )
    return args, (batch, heads, steps, v_dim)


def expected_attention(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    """Each head and each query by itself, in fp64."""
    weight = w_kv_b.double().unflatten(0, (q_nope.shape[1], -1))
    nope, steps, length = q_nope.shape[-1], q_nope.shape[2], c_kv.shape[1]
    c_kv, k_rope = c_kv.double(), k_rope.double()
    heads = []
    for head, w in enumerate(weight):
        keys = torch.cat((c_kv @ w[:nope].T, k_rope), -1)
        values = c_kv @ w[nope:].T
        query = torch.cat((q_nope[:, head], q_rope[:, head]), -1).double()
        rows = []
        for t in range(steps):
            seen = length - steps + t + 1
            score = torch.einsum("bd,bsd->bs", query[:, t], keys[:, :seen])
            share = (score / keys.shape[-1] ** 0.5).softmax(-1)
            rows.append(torch.einsum("bs,bsv->bv", share, values[:, :seen]))
        heads.append(torch.stack(rows, 1))
    return torch.stack(heads, 1).float()
