"""Causal attention."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from minids3.course.registry import Alternative, Mutant, exercise
from minids3.ref.attention import causal_attention_ref


def causal_attention(q, k, v):
    """Softmax attention in which position t sees positions 0 .. t.

    q, k [B, H, T, d]; v [B, H, T, dv]
    returns [B, H, T, dv]
    """
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    steps = q.shape[-2]
    future = torch.ones(steps, steps, dtype=torch.bool).triu(1)
    scores = scores.masked_fill(future, float("-inf"))
    return torch.softmax(scores, dim=-1) @ v


def _attention(q, k, v, scale=None, keep=None, axis=-1):
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = q @ k.transpose(-1, -2) * scale
    ones = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool)
    kept = ones.tril() if keep is None else keep(ones)
    return torch.softmax(scores.masked_fill(~kept, float("-inf")), axis) @ v


def _attention_unscaled(q, k, v):
    return _attention(q, k, v, scale=1.0)


def _attention_scaled_by_d(q, k, v):
    return _attention(q, k, v, scale=1.0 / q.shape[-1])


def _attention_leaky(q, k, v):
    return _attention(q, k, v, keep=lambda ones: ones)


def _attention_off_by_one(q, k, v):
    return _attention(q, k, v, keep=lambda ones: ones.tril(1))


def _attention_backwards(q, k, v):
    return _attention(q, k, v, keep=lambda ones: ones.triu())


def _attention_blind_to_itself(q, k, v):
    return _attention(q, k, v, keep=lambda ones: ones.tril(-1))


def _attention_masked_late(q, k, v):
    weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), -1)
    return weights.tril() @ v


def _attention_masked_with_zero(q, k, v):
    scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).tril()
    return torch.softmax(scores, -1) @ v


def _attention_wrong_axis(q, k, v):
    return _attention(q, k, v, axis=-2)


def _attention_einsum(q, k, v):
    scores = torch.einsum("bhtd,bhsd->bhts", q * q.shape[-1] ** -0.5, k)
    bias = torch.full((q.shape[-2], q.shape[-2]), float("-inf")).triu(1)
    weights = torch.exp(scores + bias - (scores + bias).amax(-1, keepdim=True))
    return torch.einsum("bhts,bhsd->bhtd", weights / weights.sum(-1, keepdim=True), v)


def _attention_row_by_row(q, k, v):
    rows = []
    for t in range(q.shape[-2]):
        scores = (k[..., : t + 1, :] @ q[..., t, :, None])[..., 0] / q.shape[-1] ** 0.5
        weights = torch.softmax(scores, -1)
        rows.append((weights[..., None] * v[..., : t + 1, :]).sum(-2))
    return torch.stack(rows, -2)


def _attention_library(q, k, v):
    return causal_attention_ref(q, k, v)


@exercise(
    "causal-attention",
    solution=causal_attention,
    notebook="02_transformer_baseline",
    title="Look back, never ahead",
    difficulty=3,
    importance=5,
    minutes=10,
    library=_attention_library,
    forbids=(
        "torch.nn.functional.scaled_dot_product_attention",
        "torch.nn.functional.multi_head_attention_forward",
        "torch.nn.MultiheadAttention",
    ),
    hints=(
        "Which axis of the [T, T] score matrix are the queries, and over which one must the "
        "weights sum to 1? What value, put into a score before the softmax, gives weight 0?",
        "scores = q times k transposed on its last two axes, divided by sqrt(d)   # [B, H, T, T]\n"
        "future = ones [T, T], strictly above the diagonal\n"
        "scores where future -> minus infinity\n"
        "weights = softmax over the last axis\n"
        "return weights times v",
    ),
    mutants=[
        Mutant(
            "unscaled",
            _attention_unscaled,
            "The scores were not divided by sqrt(d): for wide heads the softmax then picks a "
            "single key and its gradient vanishes.",
        ),
        Mutant(
            "scaled_by_d",
            _attention_scaled_by_d,
            "You divided by d. Scores of random vectors have variance d: divide by its root.",
        ),
        Mutant(
            "leaky",
            _attention_leaky,
            "There is no mask: every position saw the future. Section 2.9 shows what that costs.",
        ),
        Mutant(
            "off_by_one",
            _attention_off_by_one,
            "The mask starts one step too late: position t saw t + 1, the very token it is to "
            "predict.",
        ),
        Mutant(
            "backwards",
            _attention_backwards,
            "The mask is upside down: positions saw the future and not the past.",
        ),
        Mutant(
            "blind_to_itself",
            _attention_blind_to_itself,
            "The mask hides a position from itself, so the first one has nothing to look at (NaN). "
            "Keep the diagonal.",
        ),
        Mutant(
            "masked_late",
            _attention_masked_late,
            "You masked after the softmax: the weights left over no longer sum to 1. Mask the "
            "scores.",
        ),
        Mutant(
            "masked_with_zero",
            _attention_masked_with_zero,
            "A masked score of 0 still weighs exp(0) = 1 before normalising. Use minus infinity.",
        ),
        Mutant(
            "wrong_axis",
            _attention_wrong_axis,
            "The softmax ran over the queries. Each query's weights must sum to 1: the last axis.",
        ),
    ],
    alternatives=[
        Alternative("einsum", _attention_einsum),
        Alternative("row_by_row", _attention_row_by_row),
    ],
)
def check_causal_attention(c):
    """Shape, values, causality by experiment, and weights that sum to one."""
    steps, v_dim = c.size(4, 7), c.size(2, 3)
    dim = steps + c.size(1, 4)  # no two sizes alike, so that a swapped axis shows
    q, k, v = c.randn(2, 3, steps, dim), c.randn(2, 3, steps, dim), c.randn(2, 3, steps, v_dim)
    y = c.call(q, k, v, label=f"runs on q, k {list(q.shape)} and v {list(v.shape)}")
    c.shape(y, (2, 3, steps, v_dim), "the result")
    with c.part():
        c.dtype(y, torch.float32, "the result")
        wanted = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=True)
        c.close(y, wanted.float(), "the result")
    with c.part():
        c.close(y[..., 0, :], v[..., 0, :], label="position 0 sees only itself: its own value")
    with c.part():
        later = [torch.cat((t[..., :2, :], c.randn(*t[..., 2:, :].shape)), -2) for t in (q, k, v)]
        changed = c.call(*later)
        label = "new tokens from position 2 on leave positions 0 and 1 alone"
        c.close(changed[..., :2, :], y[..., :2, :], label=label)
    with c.part():
        ones = c.call(q, k, torch.ones_like(v))
        c.close(ones, torch.ones_like(v), label="weights sum to 1: an average of ones is one")
    with c.part():
        one = c.call(q[..., :1, :], k[..., :1, :], v[..., :1, :])
        c.close(one, v[..., :1, :], label="a text of one token works (T = 1)")
    with c.part():
        c.grad(
            args=(q, k, v),
            wrt=(0, 1, 2),
            expected_fn=_attention_library,
            label="the gradient reaches q, k and v",
            names=("q", "k", "v"),
        )
