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


def _attention_no_maximum(q, k, v):
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    weights = torch.exp(scores).tril()
    return weights / weights.sum(-1, keepdim=True) @ v


def _attention_whole_maximum(q, k, v):
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    weights = torch.exp(scores - scores.max()).tril()
    return weights / weights.sum(-1, keepdim=True) @ v


def _attention_small_mask(q, k, v):
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    future = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool).triu(1)
    return torch.softmax(scores.masked_fill(future, -100.0), -1) @ v


def _attention_by_value_width(q, k, v):
    return _attention(q, k, v, scale=v.shape[-1] ** -0.5)


def _attention_batch_summed(q, k, v):
    scores = torch.einsum("bhtd,bhsd->hts", q, k) / math.sqrt(q.shape[-1])
    future = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool).triu(1)
    return torch.softmax(scores.masked_fill(future, float("-inf")), -1) @ v


def _attention_nan_to_num(q, k, v):
    return _attention_blind_to_itself(q, k, v).nan_to_num(0.0)


def _attention_viewed(q, k, v):
    batch, heads, steps, dim = q.shape
    q, k = q.view(-1, steps, dim), k.view(-1, steps, dim)
    y = causal_attention(q, k, v.view(-1, steps, v.shape[-1]))
    return y.view(batch, heads, steps, -1)


def _attention_finite_mask(q, k, v):
    scores = torch.einsum("bhtd,bhsd->bhts", q, k) / q.shape[-1] ** 0.5
    step = torch.arange(q.shape[-2])
    lowest = torch.finfo(scores.dtype).min
    return F.softmax(torch.where(step[:, None] >= step, scores, lowest), dim=-1).matmul(v)


def _attention_preallocated(q, k, v):
    y = torch.zeros(v.shape, dtype=v.dtype)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            y[b, h] = _attention(q[b, h], k[b, h], v[b, h])
    return y


def _attention_zero_is_masked(q, k, v):
    scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).tril()
    return torch.softmax(scores.masked_fill(scores == 0, float("-inf")), -1) @ v


def _attention_renormalised(q, k, v):
    weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), -1).tril()
    return weights / weights.sum(-1, keepdim=True) @ v


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
        Mutant(
            "no_maximum",
            _attention_no_maximum,
            "You took exp of the scores as they are: from 89 on it overflows, and inf / inf is "
            "nan. Subtract each row's maximum first (softmax does).",
        ),
        Mutant(
            "whole_maximum",
            _attention_whole_maximum,
            "You subtracted one maximum of the whole tensor. Rows far below it become 0 / 0: the "
            "maximum belongs to each row.",
        ),
        Mutant(
            "small_mask",
            _attention_small_mask,
            "Your mask is a score of -100, and real scores can be lower: then the future is seen. "
            "Use -inf.",
        ),
        Mutant(
            "by_value_width",
            _attention_by_value_width,
            "You divided by the root of v's width. It is the width of q and k that the scores "
            "were summed over.",
        ),
        Mutant(
            "batch_summed",
            _attention_batch_summed,
            "Your product sums over the batch, so that the texts see one another's scores. Keep "
            "the batch as a dimension.",
        ),
        Mutant(
            "nan_to_num",
            _attention_nan_to_num,
            "Your mask hides the diagonal, and nan_to_num swept the first row's nan away. "
            "Position t sees itself: mask from t + 1 on.",
        ),
        Mutant(
            "layout",
            _attention_viewed,
            "Your code needs contiguous inputs. The heads of [B, T, H, d] transposed to [B, H, T, "
            "d] are not: use reshape, or contiguous() first.",
        ),
        Mutant(
            "zero_is_masked",
            _attention_zero_is_masked,
            "You took every score of 0 for a masked one. A visible score can be 0: let the "
            "positions say what is masked.",
        ),
        Mutant(
            "renormalised",
            _attention_renormalised,
            "You masked after the softmax and divided by what was left. That is 0 / 0 where the "
            "future took all the weight: mask before it.",
        ),
    ],
    alternatives=[
        Alternative("einsum", _attention_einsum),
        Alternative("row_by_row", _attention_row_by_row),
        Alternative("finite_mask", _attention_finite_mask),
        Alternative("preallocated", _attention_preallocated),
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
        level = c.call(torch.zeros_like(q), k, v)
        label = "queries of zeros: the plain mean of all values so far"
        c.close(level, v.cumsum(-2) / torch.arange(1, steps + 1)[:, None], label=label)
    with c.part():
        low_q, low_k = torch.tensor([[-200.0], [-200.0]]), torch.tensor([[200.0], [100.0]])
        values = torch.tensor([[1.0], [9.0]])
        got = c.call(low_q[None, None], low_k[None, None], values[None, None])
        label = "scores of -40,000 do not let the future in either"
        c.close(got, values[None, None], label=label)
    with c.part():
        c.grad(
            args=(q, k, v),
            wrt=(0, 1, 2),
            expected_fn=_attention_library,
            label="the gradient reaches q, k and v",
            names=("q", "k", "v"),
        )
    with c.part():
        axis = F.normalize(c.randn(dim), dim=0)
        level = torch.linspace(-12.0, 12.0, steps)[:, None] * 30.0
        loud_k = (20.0 + c.rand(steps, 1)) * axis + c.randn(steps, dim)
        loud_q, loud_k = (level * axis).expand(2, 3, -1, -1), (-loud_k).expand(2, 3, -1, -1)
        high = c.call(torch.ones_like(q) * 30, torch.ones_like(k) * 30 + k / 30, v)
        wanted = F.scaled_dot_product_attention(
            torch.ones_like(q).double() * 30, 30 + k.double() / 30, v.double(), is_causal=True
        )
        label = "scores of a thousand do not overflow"
        c.close(high, wanted.float(), label=label, rtol=1e-2, atol=1e-2)
        label = "scores of thousands, of either sign, neither overflow nor let the future in"
        loud = c.call(loud_q.contiguous(), loud_k.contiguous(), v)
        wanted = F.scaled_dot_product_attention(
            loud_q.double(), loud_k.double(), v.double(), is_causal=True
        )
        c.close(loud, wanted.float(), label=label, rtol=1e-2, atol=1e-2)
    with c.part():
        heads_last = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)]
        again = c.call(*heads_last)
        wanted = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        c.close(
            again, wanted, label="inputs that are not contiguous (from [B, T, H, d]) give the same"
        )
