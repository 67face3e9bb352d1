"""Attention to the latents themselves: the expansions folded into query and result."""

from __future__ import annotations

import math

import torch

from minids3.course.exercises.nb03_latent_attention.naive import (
    attend_naive,
    check_another,
    check_cached,
    check_layout,
    check_loud,
    expected_attention,
    latent_inputs,
)
from minids3.course.registry import Alternative, Mutant, exercise
from minids3.sim.counted import MultiplyAdds


def attend_absorbed(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    """The same attention, without ever rebuilding a key or a value.

    q_nope [B, H, T, dn], q_rope [B, H, T, R]: the last T of S positions
    c_kv [B, S, C]; k_rope [B, S, R], one for all heads
    w_kv_b [H * (dn + dv), C]: per head dn rows for keys, dv for values
    returns [B, H, T, dv]
    """
    n_heads, nope = q_nope.shape[1], q_nope.shape[-1]
    weight = w_kv_b.unflatten(0, (n_heads, -1))
    w_uk, w_uv = weight[:, :nope], weight[:, nope:]  # [H, dn or dv, C]
    folded = q_nope @ w_uk  # [B, H, T, C]
    scores = folded @ c_kv[:, None].transpose(-1, -2)
    scores = scores + q_rope @ k_rope[:, None].transpose(-1, -2)
    scores = scores / math.sqrt(nope + q_rope.shape[-1])
    n_queries, n_keys = scores.shape[-2:]
    future = torch.ones(n_queries, n_keys, dtype=torch.bool)
    future = future.triu(n_keys - n_queries + 1)
    scores = scores.masked_fill(future, float("-inf"))
    mean = torch.softmax(scores, dim=-1) @ c_kv[:, None]  # [B, H, T, C]
    return mean @ w_uv.transpose(-1, -2)


def _parts(q_nope, w_kv_b):
    weight = w_kv_b.unflatten(0, (q_nope.shape[1], -1))
    return weight[:, : q_nope.shape[-1]], weight[:, q_nope.shape[-1] :]


def _weights(q, k, scale, offset=None):
    scores = q @ k[:, None].transpose(-1, -2) * scale
    n_queries, n_keys = scores.shape[-2:]
    offset = n_keys - n_queries + 1 if offset is None else offset
    future = torch.ones(n_queries, n_keys, dtype=torch.bool).triu(offset)
    return scores.masked_fill(future, float("-inf")).softmax(-1)


def _with(q_nope, q_rope, c_kv, k_rope, w_kv_b, scale=None, offset=None):
    w_uk, w_uv = _parts(q_nope, w_kv_b)
    q, k = torch.cat((q_nope @ w_uk, q_rope), -1), torch.cat((c_kv, k_rope), -1)
    scale = (q_nope.shape[-1] + q_rope.shape[-1]) ** -0.5 if scale is None else scale
    return _weights(q, k, scale, offset) @ c_kv[:, None] @ w_uv.mT


def _scaled_by_latent(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    scale = (c_kv.shape[-1] + q_rope.shape[-1]) ** -0.5
    return _with(q_nope, q_rope, c_kv, k_rope, w_kv_b, scale=scale)


def _scaled_by_nope(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    return _with(q_nope, q_rope, c_kv, k_rope, w_kv_b, scale=q_nope.shape[-1] ** -0.5)


def _rebuilds(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    return attend_naive(q_nope, q_rope, c_kv, k_rope, w_kv_b)


def _rebuilds_for_many(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    path = attend_absorbed if q_nope.shape[2] == 1 else attend_naive
    return path(q_nope, q_rope, c_kv, k_rope, w_kv_b)


def _values_left_out(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    w_uk, _ = _parts(q_nope, w_kv_b)
    q, k = torch.cat((q_nope @ w_uk, q_rope), -1), torch.cat((c_kv, k_rope), -1)
    return _weights(q, k, (q_nope.shape[-1] + q_rope.shape[-1]) ** -0.5) @ c_kv[:, None]


def _no_rotary(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    return _with(q_nope, torch.zeros_like(q_rope), c_kv, k_rope, w_kv_b)


def _one_head_for_all(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    first = w_kv_b.unflatten(0, (q_nope.shape[1], -1))[:1]
    weight = first.expand(q_nope.shape[1], -1, -1).flatten(0, 1)
    return attend_absorbed(q_nope, q_rope, c_kv, k_rope, weight)


def _mask_top_left(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    return _with(q_nope, q_rope, c_kv, k_rope, w_kv_b, offset=1)


def _absorb_einsum(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    w_uk, w_uv = _parts(q_nope, w_kv_b)
    folded = torch.einsum("bhtd,hdc->bhtc", q_nope, w_uk)
    scores = torch.einsum("bhtc,bsc->bhts", folded, c_kv)
    scores = scores + torch.einsum("bhtr,bsr->bhts", q_rope, k_rope)
    scores = scores / (q_nope.shape[-1] + q_rope.shape[-1]) ** 0.5
    query = scores.shape[-1] - scores.shape[-2] + torch.arange(scores.shape[-2])[:, None]
    hidden = torch.arange(scores.shape[-1]) > query
    share = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("bhtc,hvc->bhtv", torch.einsum("bhts,bsc->bhtc", share, c_kv), w_uv)


def _absorb_one_row(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    return _with(q_nope, q_rope, c_kv, k_rope, w_kv_b)


def _small_mask(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    return _folded(q_nope, q_rope, c_kv, k_rope, w_kv_b, hidden=-100.0)


def _leaky(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    return _folded(q_nope, q_rope, c_kv, k_rope, w_kv_b, mask=False)


def _keys_then_values(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    n_heads, nope = q_nope.shape[1], q_nope.shape[-1]
    w_uk = w_kv_b[: n_heads * nope].unflatten(0, (n_heads, -1))
    w_uv = w_kv_b[n_heads * nope :].unflatten(0, (n_heads, -1))
    weight = torch.cat((w_uk, w_uv), 1).flatten(0, 1)
    return attend_absorbed(q_nope, q_rope, c_kv, k_rope, weight)


def _viewed(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    weight = w_kv_b.view(q_nope.shape[1], -1, c_kv.shape[-1]).flatten(0, 1)
    return attend_absorbed(
        q_nope, q_rope, c_kv.view(-1, c_kv.shape[-1]).view(c_kv.shape), k_rope, weight
    )


def _folded(q_nope, q_rope, c_kv, k_rope, w_kv_b, hidden=float("-inf"), mask=True):
    w_uk, w_uv = _parts(q_nope, w_kv_b)
    scores = (q_nope @ w_uk) @ c_kv[:, None].transpose(-1, -2)
    scores = scores + q_rope @ k_rope[:, None].transpose(-1, -2)
    scores = scores / math.sqrt(q_nope.shape[-1] + q_rope.shape[-1])
    if mask:
        query = scores.shape[-1] - scores.shape[-2] + torch.arange(scores.shape[-2])[:, None]
        scores = scores.masked_fill(torch.arange(scores.shape[-1]) > query, hidden)
    return torch.softmax(scores, -1) @ c_kv[:, None] @ w_uv.transpose(-1, -2)


def _padded(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    w_uk, w_uv = _parts(q_nope, w_kv_b)
    q, k = torch.cat((q_nope @ w_uk, q_rope), -1), torch.cat((c_kv, k_rope), -1)
    share = _weights(q, k, (q_nope.shape[-1] + q_rope.shape[-1]) ** -0.5)
    return (share @ k[:, None])[..., : c_kv.shape[-1]] @ w_uv.mT  # averages rotary keys for nothing


def _preallocated(q_nope, q_rope, c_kv, k_rope, w_kv_b):
    w_uk, w_uv = _parts(q_nope, w_kv_b)
    out = torch.zeros(*q_nope.shape[:3], w_uv.shape[1])
    n_queries, n_keys = q_nope.shape[2], c_kv.shape[1]
    future = torch.arange(n_keys) > torch.arange(n_keys - n_queries, n_keys)[:, None]
    for h in range(q_nope.shape[1]):
        scores = (q_nope[:, h] @ w_uk[h]) @ c_kv.mT + q_rope[:, h] @ k_rope.mT
        scores = scores * (q_nope.shape[-1] + q_rope.shape[-1]) ** -0.5
        share = torch.softmax(scores.masked_fill(future, torch.finfo(scores.dtype).min), -1)
        out[:, h] = (share @ c_kv) @ w_uv[h].T
    return out


@exercise(
    "mla-absorb",
    solution=attend_absorbed,
    notebook="03_latent_attention",
    title="Move the brackets",
    difficulty=4,
    importance=5,
    minutes=12,
    library=_absorb_one_row,
    forbids=("minids3.ref.attention.*", "minids3.nn.mla.*"),
    hints=(
        "A score is q . (W c). Where may W go if not to c? And the weighted sum of W' c_s over s: "
        "what is it if W' is taken out of the sum? The result is that of mla-naive, so which "
        "width belongs under the root, the new one or the old one?",
        "weight = w_kv_b as [H, dn + dv, C];  w_uk = its first dn rows,  w_uv = the rest\n"
        "folded = q_nope times w_uk                          # [B, H, T, C]\n"
        "scores = folded c_kv^T + q_rope k_rope^T            # c_kv, k_rope: the same for all H\n"
        "scores = scores / sqrt(dn + R); hide what is later than position S - T + t\n"
        "mean = softmax(scores) c_kv                         # [B, H, T, C]\n"
        "return mean times w_uv transposed",
    ),
    mutants=[
        Mutant(
            "scaled_by_latent",
            _scaled_by_latent,
            "You divided by sqrt(C + R), the width of what is multiplied now. The scores are those "
            "of the naive path, so the root is still that of dn + R.",
        ),
        Mutant(
            "scaled_by_nope",
            _scaled_by_nope,
            "You divided by sqrt(dn). The rotary channels count too: sqrt(dn + R).",
        ),
        Mutant(
            "rebuilds",
            _rebuilds,
            "The numbers are right, but they took more multiply-adds than folding does, as when "
            "keys or values of all cached tokens are expanded. Fold W_UK into the query, and apply "
            "W_UV to the average, not to what is averaged.",
        ),
        Mutant(
            "rebuilds_for_many",
            _rebuilds_for_many,
            "One query of yours is folded, but two at once took far more than twice its "
            "multiply-adds, as when the naive path is taken for them. Asked for is one path that "
            "never rebuilds.",
        ),
        Mutant(
            "values_left_out",
            _values_left_out,
            "You returned averaged latents. W_UV still has to turn each into a value, dv wide.",
        ),
        Mutant("no_rotary", _no_rotary, "The rotary part of the score, q_rope k_rope, is missing."),
        Mutant(
            "one_head_for_all",
            _one_head_for_all,
            "Every head used the first head's matrices. The latent is shared, W_UK and W_UV are "
            "not.",
        ),
        Mutant(
            "mask_top_left",
            _mask_top_left,
            "The mask assumes that the first query is position 0. The queries are the last T of S "
            "positions: shift the diagonal by S - T.",
        ),
        Mutant(
            "leaky",
            _leaky,
            "There is no mask: queries see positions that come after their own.",
        ),
        Mutant(
            "keys_then_values",
            _keys_then_values,
            "You took the first H * dn rows as keys of all heads. The rows go head by head: dn for "
            "keys, dv for values, then the next head. Split the heads first.",
        ),
        Mutant(
            "small_mask",
            _small_mask,
            "Your mask is a score that real ones can fall below: then the future is seen. Use "
            "-inf.",
        ),
        Mutant(
            "layout",
            _viewed,
            "Your code needs contiguous inputs, and slices of a cache are not: use reshape, "
            "flatten or unflatten.",
        ),
    ],
    alternatives=[
        Alternative("einsum", _absorb_einsum),
        Alternative("one_row", _absorb_one_row),
        Alternative("padded", _padded),
        Alternative("preallocated", _preallocated),
    ],
)
def check_attend_absorbed(c):
    """The naive path's numbers, a cache, the multiply-adds counted, gradients."""
    args, sizes = latent_inputs(c)
    q_nope, q_rope, c_kv, k_rope, w_kv_b = args
    batch, heads, steps, v_dim = sizes
    y = c.call(*args, label=f"runs on c_kv {list(c_kv.shape)} with {heads} heads")
    c.shape(y, (batch, heads, steps, v_dim), "the result")
    with c.part():
        c.dtype(y, torch.float32, "the result")
        c.close(y, expected_attention(*args), label="the result is that of the naive path")
    with c.part():
        check_cached(c, args)
    with c.part():
        length, rank, nope = 200, c_kv.shape[-1], q_nope.shape[-1]
        cached = c.randn(1, length, rank), c.randn(1, length, k_rope.shape[-1])
        # Absorbed: S (2C + R) + C (dn + dv) a head and query, or S (2C + 2R) if the rotary keys are
        # averaged, too. Expanding the smaller half for one query, or two, is far above.
        fold, pair = rank * (nope + v_dim), 2 * (rank + k_rope.shape[-1])
        for n, label in ((1, "one query on 200 cached tokens rebuilds no key and no value"),
                         (2, "nor do two queries at once")):  # fmt: skip
            query = q_nope[:1, :, -n:], q_rope[:1, :, -n:]
            with MultiplyAdds() as counter:
                out = c.call(*query, *cached, w_kv_b)
            if n == 1:
                c.close(out, expected_attention(*query, *cached, w_kv_b), label="200 cached tokens")
            limit = n * heads * (length * pair + fold)
            why = f"{counter.total:,} multiply-adds, {limit:,} are enough"
            if counter.sums > limit:  # products put together from sums
                why = f"{counter.sums:,} numbers added or chosen, {limit:,} are more than enough"
            c.true(max(counter.total / 1.1, counter.sums) <= limit, label, why, cost=True)
    with c.part():
        check_another(c, args)
    with c.part():
        c.grad(
            args=args,
            wrt=(0, 1, 2, 3, 4),
            expected_fn=attend_naive,
            label="the gradient is that of the naive path",
            names=("q_nope", "q_rope", "c_kv", "k_rope", "w_kv_b"),
            atol=1e-3,
        )
    with c.part():
        check_loud(c, args)
    with c.part():
        check_layout(c, args)
