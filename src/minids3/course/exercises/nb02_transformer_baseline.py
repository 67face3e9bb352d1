"""Exercises of notebook 02: RoPE, causal attention, SwiGLU, the loss, one AdamW step.

Each solution stands once, here; the notebook's stub and its solved cell are made from its source.
The expected values in the checks are computed another way than the solution computes them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from minids3.course.registry import Alternative, Mutant, exercise
from minids3.ref.attention import causal_attention_ref
from minids3.ref.loss import cross_entropy_ref
from minids3.ref.rope import apply_rope_ref, rope_tables

NOTEBOOK = "02_transformer_baseline"

# ---------------------------------------------------------------------------------------------
# RoPE


def rope(x, cos, sin):
    """Rotate every pair of neighbouring channels by its position's angle.

    x [..., T, R]; cos, sin [T, R // 2], fp32
    returns [..., T, R] in the dtype of x; pairs are channels (2j, 2j + 1)
    """
    first, second = x[..., 0::2], x[..., 1::2]
    turned_first = first * cos - second * sin
    turned_second = first * sin + second * cos
    out = torch.stack((turned_first, turned_second), dim=-1).flatten(-2)
    return out.to(x.dtype)


def _rope_half_split(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), -1).to(x.dtype)


def _rope_backwards(x, cos, sin):
    return rope(x, cos, -sin)


def _rope_concatenated(x, cos, sin):
    first, second = x[..., 0::2], x[..., 1::2]
    return torch.cat((first * cos - second * sin, first * sin + second * cos), -1).to(x.dtype)


def _rope_overwritten(x, cos, sin):
    first, second = x[..., 0::2], x[..., 1::2]
    first = first * cos - second * sin
    second = first * sin + second * cos
    return torch.stack((first, second), dim=-1).flatten(-2).to(x.dtype)


def _rope_swapped(x, cos, sin):
    return rope(x, sin, cos)


def _rope_promoted(x, cos, sin):
    return rope(x.float(), cos, sin)


def _rope_complex(x, cos, sin):
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2).to(x.dtype)


def _rope_quarter_turn(x, cos, sin):
    quarter = torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
    cos, sin = cos.repeat_interleave(2, -1), sin.repeat_interleave(2, -1)
    return (x * cos + quarter * sin).to(x.dtype)


def _rope_library(x, cos, sin):
    return apply_rope_ref(x, cos, sin)


@exercise(
    "rope",
    solution=rope,
    notebook=NOTEBOOK,
    title="Rotate by position",
    difficulty=2,
    importance=5,
    minutes=8,
    library=_rope_library,
    hints=(
        "Rotate the point (a, b) by an angle: which two numbers come out? Now a is every even "
        "channel, b every odd one. After computing both, how do you lay them side by side again?",
        "a, b = x[..., 0::2], x[..., 1::2]\n"
        "new_a = a * cos - b * sin\n"
        "new_b = a * sin + b * cos          # the old a, not new_a\n"
        "stack new_a and new_b on a new last axis, then flatten the last two axes\n"
        "return in x's dtype",
    ),
    mutants=[
        Mutant(
            "half_split",
            _rope_half_split,
            "You paired channel j with j + R/2. Here the pairs are neighbours, (2j, 2j + 1), as in "
            "DeepSeek-V3's checkpoints.",
        ),
        Mutant(
            "backwards",
            _rope_backwards,
            "You turned by minus the angle: check the sign in front of each sin.",
        ),
        Mutant(
            "concatenated",
            _rope_concatenated,
            "The rotation is right, the layout is not: the even channels came out as the first "
            "half. Interleave the two results again (stack on a new last axis, then flatten).",
        ),
        Mutant(
            "overwritten",
            _rope_overwritten,
            "The second channel was computed from the new first one: both need the old one.",
        ),
        Mutant(
            "swapped",
            _rope_swapped,
            "cos and sin changed places: position 0 must stay as it is, since cos 0 = 1.",
        ),
        Mutant(
            "promoted",
            _rope_promoted,
            "The tables are fp32 and pulled the result up with them: return x's own dtype.",
        ),
    ],
    alternatives=[
        Alternative("complex_numbers", _rope_complex),
        Alternative("quarter_turn", _rope_quarter_turn),
    ],
)
def check_rope(c):
    """Shape, values, and the property the whole idea is for: scores see only distances."""
    steps, width = c.size(4, 7), 2 * c.size(3, 6)
    x = c.randn(2, 3, steps, width)
    cos, sin = rope_tables(steps, width)
    y = c.call(x, cos, sin, label=f"runs on x {list(x.shape)}")
    c.shape(y, x.shape, "the result")
    with c.part():
        turn = torch.complex(cos.double(), sin.double())
        points = torch.complex(x[..., 0::2].double(), x[..., 1::2].double()) * turn
        expected = torch.stack((points.real, points.imag), -1).flatten(-2).float()
        c.close(y, expected, label="pair (2j, 2j + 1) of position t is turned by its angle")
    with c.part():
        c.close(y[..., 0, :], x[..., 0, :], label="position 0 stays as it is")
        c.close(y.norm(dim=-1), x.norm(dim=-1), label="turning keeps every vector's length")
    with c.part():
        query, key = c.randn(1, width), c.randn(1, width)
        scores = []
        for start in (0, 50):
            cos_2, sin_2 = rope_tables(torch.tensor([start, start + 3]), width)
            q = c.call(query, cos_2[:1], sin_2[:1])
            k = c.call(key, cos_2[1:], sin_2[1:])
            scores.append((q * k).sum())
        label = "a score depends on the distance alone: (0, 3) equals (50, 53)"
        c.close(scores[1], scores[0], label=label)
    with c.part():
        half = c.call(x.to(torch.bfloat16), cos, sin)
        c.dtype(half, torch.bfloat16, label="a bfloat16 x stays bfloat16")
    with c.part():
        c.grad(
            args=(x, cos, sin),
            wrt=(0,),
            expected_fn=_rope_library,
            label="the gradient reaches x",
            names=("x",),
        )


# ---------------------------------------------------------------------------------------------
# Causal attention


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
    notebook=NOTEBOOK,
    title="Look back, never ahead",
    difficulty=3,
    importance=5,
    minutes=10,
    library=_attention_library,
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
    steps, dim, v_dim = c.size(4, 7), c.size(5, 9), c.size(3, 4)
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


# ---------------------------------------------------------------------------------------------
# SwiGLU


def swiglu(x, w_gate, w_up, w_down):
    """Gated feed-forward network: down(silu(gate(x)) * up(x)).

    x [..., D]; w_gate, w_up [F, D]; w_down [D, F]
    returns [..., D]
    """
    gate = x @ w_gate.T
    up = x @ w_up.T
    return (gate * torch.sigmoid(gate) * up) @ w_down.T


def _swiglu_sigmoid(x, w_gate, w_up, w_down):
    return (torch.sigmoid(x @ w_gate.T) * (x @ w_up.T)) @ w_down.T


def _swiglu_swapped(x, w_gate, w_up, w_down):
    return swiglu(x, w_up, w_gate, w_down)


def _swiglu_gelu(x, w_gate, w_up, w_down):
    return (F.gelu(x @ w_gate.T) * (x @ w_up.T)) @ w_down.T


def _swiglu_relu(x, w_gate, w_up, w_down):
    return (F.relu(x @ w_gate.T) * (x @ w_up.T)) @ w_down.T


def _swiglu_added(x, w_gate, w_up, w_down):
    return (F.silu(x @ w_gate.T) + (x @ w_up.T)) @ w_down.T


def _swiglu_late(x, w_gate, w_up, w_down):
    return F.silu((x @ w_gate.T) * (x @ w_up.T)) @ w_down.T


def _swiglu_linear(x, w_gate, w_up, w_down):
    return F.linear(F.silu(F.linear(x, w_gate)) * F.linear(x, w_up), w_down)


def _swiglu_one_product(x, w_gate, w_up, w_down):
    gate, up = (x @ torch.cat((w_gate, w_up)).T).chunk(2, -1)
    return torch.einsum("...f,df->...d", gate / (1 + torch.exp(-gate)) * up, w_down)


@exercise(
    "swiglu",
    solution=swiglu,
    notebook=NOTEBOOK,
    title="A feed-forward network with a gate",
    difficulty=1,
    importance=4,
    minutes=5,
    library=_swiglu_linear,
    hints=(
        "Two projections of the same x go up to F, one comes back down to D. Which of the two "
        "passes through silu(z) = z * sigmoid(z), and how do they meet? The weights are stored "
        "[out, in]: what must happen before x can be multiplied by them?",
        "gate = x times w_gate transposed        # [..., F]\n"
        "up = x times w_up transposed            # [..., F]\n"
        "hidden = gate * sigmoid(gate) * up\n"
        "return hidden times w_down transposed   # [..., D]",
    ),
    mutants=[
        Mutant(
            "sigmoid",
            _swiglu_sigmoid,
            "That is the plain GLU: sigmoid(gate). SiLU also multiplies by the gate itself.",
        ),
        Mutant(
            "swapped",
            _swiglu_swapped,
            "Gate and up changed places: silu goes around the product with w_gate.",
        ),
        Mutant("gelu", _swiglu_gelu, "That is GeGLU. Here the gate is SiLU, z * sigmoid(z)."),
        Mutant("relu", _swiglu_relu, "That is ReGLU. Here the gate is SiLU, z * sigmoid(z)."),
        Mutant(
            "added",
            _swiglu_added,
            "Gate and up were added. A gate multiplies: where it is 0, nothing passes.",
        ),
        Mutant(
            "late",
            _swiglu_late,
            "SiLU went around the product of both. It belongs around the gate alone.",
        ),
    ],
    alternatives=[
        Alternative("linear", _swiglu_linear),
        Alternative("one_product", _swiglu_one_product),
    ],
)
def check_swiglu(c):
    """Shape, values, a closed gate, and every position on its own."""
    width, hidden, steps = c.size(5, 8), c.size(9, 12), c.size(3, 5)
    x = c.randn(2, steps, width)
    weights = c.randn(hidden, width), c.randn(hidden, width), c.randn(width, hidden)
    y = c.call(x, *weights, label=f"runs on x {list(x.shape)} with F = {hidden}")
    c.shape(y, x.shape, "the result")
    with c.part():
        c.dtype(y, x.dtype, "the result")
        gate, up, down = (w.double() for w in weights)
        z = torch.einsum("btd,fd->btf", x.double(), gate)
        inside = z / (1 + torch.exp(-z)) * torch.einsum("btd,fd->btf", x.double(), up)
        c.close(y, torch.einsum("btf,df->btd", inside, down).float(), "the result", atol=1e-4)
    with c.part():
        closed = c.call(x, torch.zeros_like(weights[0]), *weights[1:])
        label = "behind a closed gate (w_gate = 0) nothing passes"
        c.close(closed, torch.zeros_like(x), label=label)
    with c.part():
        single = c.call(x[0, 0], *weights)
        label = "one vector [D] alone gives what it gave among the others"
        c.close(single, y[0, 0], label=label, atol=1e-4)
    with c.part():
        c.grad(
            args=(x, *weights),
            wrt=(0, 1, 2, 3),
            expected_fn=_swiglu_linear,
            label="the gradient reaches x and all three weights",
            names=("x", "w_gate", "w_up", "w_down"),
            atol=1e-3,
        )


# ---------------------------------------------------------------------------------------------
# The loss


def lm_loss(logits, targets, ignore_index=-100):
    """Mean negative log-probability of the targets, in nats.

    logits [B, T, V]; targets [B, T] int64, already the *next* token of
    each position, or ignore_index where nothing counts
    returns a scalar
    """
    log_total = torch.logsumexp(logits, dim=-1)
    counted = targets != ignore_index
    index = targets.masked_fill(~counted, 0)
    chosen = logits.gather(-1, index[..., None])[..., 0]
    return (log_total - chosen)[counted].mean()


def _loss_terms(logits, targets, ignore_index=-100):
    counted = targets != ignore_index
    index = targets.masked_fill(~counted, 0)
    log_probs = torch.log_softmax(logits, -1)
    return -log_probs.gather(-1, index[..., None])[..., 0] * counted, counted


def _loss_shifted_again(logits, targets, ignore_index=-100):
    return lm_loss(logits[:, :-1], targets[:, 1:], ignore_index)


def _loss_summed(logits, targets, ignore_index=-100):
    return _loss_terms(logits, targets, ignore_index)[0].sum()


def _loss_mean_of_all(logits, targets, ignore_index=-100):
    return _loss_terms(logits, targets, ignore_index)[0].mean()


def _loss_ignored_as_zero(logits, targets, ignore_index=-100):
    return lm_loss(logits, targets.masked_fill(targets == ignore_index, 0), -1)


def _loss_mean_of_rows(logits, targets, ignore_index=-100):
    terms, counted = _loss_terms(logits, targets, ignore_index)
    return (terms.sum(-1) / counted.sum(-1)).mean()


def _loss_bits(logits, targets, ignore_index=-100):
    return lm_loss(logits, targets, ignore_index) / math.log(2)


def _loss_overflowing(logits, targets, ignore_index=-100):
    counted = targets != ignore_index
    index = targets.masked_fill(~counted, 0)
    probs = torch.exp(logits) / torch.exp(logits).sum(-1, keepdim=True)
    return -torch.log(probs.gather(-1, index[..., None])[..., 0])[counted].mean()


def _loss_log_of_softmax(logits, targets, ignore_index=-100):
    counted = targets != ignore_index
    index = targets.masked_fill(~counted, 0)
    probs = torch.softmax(logits, -1)
    return -torch.log(probs.gather(-1, index[..., None])[..., 0])[counted].mean()


def _loss_log_softmax(logits, targets, ignore_index=-100):
    terms, counted = _loss_terms(logits, targets, ignore_index)
    return terms.sum() / counted.sum()


def _loss_flat(logits, targets, ignore_index=-100):
    keep = targets.reshape(-1) != ignore_index
    rows, wanted = logits.reshape(-1, logits.shape[-1])[keep], targets.reshape(-1)[keep]
    rows = rows - rows.max(-1, keepdim=True).values
    chosen = rows[torch.arange(len(rows)), wanted]
    return (rows.exp().sum(-1).log() - chosen).mean()


@exercise(
    "lm-loss",
    solution=lm_loss,
    notebook=NOTEBOOK,
    title="The one number that is minimised",
    difficulty=3,
    importance=5,
    minutes=10,
    library=cross_entropy_ref,
    hints=(
        "What is the logarithm of softmax(logits)[target], before any exp is taken? It is a "
        "difference of two numbers, and one of them has a numerically safe function in torch. "
        "How many positions is the mean over if some are ignored?",
        "log_total = logsumexp of logits over V                  # [B, T]\n"
        "counted = targets differ from ignore_index              # [B, T] bool\n"
        "chosen = logits at the target (gather; put 0 where ignored, gather needs an index)\n"
        "return the mean of (log_total - chosen) over the counted positions",
    ),
    mutants=[
        Mutant(
            "shifted_again",
            _loss_shifted_again,
            "You shifted by one position. The targets already are the next tokens: shifting again "
            "asks for the token after next.",
        ),
        Mutant(
            "summed",
            _loss_summed,
            "That is the sum. With a sum the loss, and the best learning rate, depend on the batch "
            "size.",
        ),
        Mutant(
            "mean_of_all",
            _loss_mean_of_all,
            "You divided by all B x T positions. Ignored ones must not count in the mean either.",
        ),
        Mutant(
            "ignored_as_zero",
            _loss_ignored_as_zero,
            "Ignored positions were scored as if their target were token 0. Leave them out.",
        ),
        Mutant(
            "mean_of_rows",
            _loss_mean_of_rows,
            "You averaged each row, then the rows: a row with few targets got the weight of a "
            "full one. Every counted token weighs the same.",
        ),
        Mutant(
            "bits",
            _loss_bits,
            "That is the loss in bits (log base 2). Training losses are in nats: natural log.",
        ),
        Mutant(
            "overflowing",
            _loss_overflowing,
            "exp of a large logit overflows to infinity. Subtract the row's maximum first, or use "
            "logsumexp.",
        ),
        Mutant(
            "log_of_softmax",
            _loss_log_of_softmax,
            "The softmax of an unlikely token rounds to 0 and its log is minus infinity. Stay in "
            "logs: logsumexp minus the chosen logit.",
        ),
    ],
    alternatives=[
        Alternative("log_softmax", _loss_log_softmax),
        Alternative("flat_with_maximum", _loss_flat),
    ],
)
def check_lm_loss(c):
    """Values, ignored targets, large logits, and the gradient softmax minus one-hot."""
    rows, steps, vocab = c.size(2, 3), c.size(4, 6), c.size(7, 11)
    logits = c.randn(rows, steps, vocab)
    targets = c.randint(0, vocab, rows, steps)
    masked = targets.clone()
    masked[0, 1:] = -100
    loss = c.call(logits, targets, label=f"runs on logits {list(logits.shape)}")
    c.shape(loss, (), label="the loss is one number, shape []")
    with c.part():
        c.close(loss, _expected_loss(logits, targets), label="it is the mean of -log p(target)")
    with c.part():
        flat = c.call(torch.zeros_like(logits), targets)
        wanted = torch.tensor(math.log(vocab))
        c.close(flat, wanted, label=f"equal logits cost ln V = {wanted:.4f} nats")
    with c.part():
        ignored = c.call(logits, masked)
        label = "ignored targets count neither in the sum nor in the mean"
        c.close(ignored, _expected_loss(logits, masked), label=label)
    with c.part():
        large = c.call(logits * 200, targets)
        label = "logits of the order 200 neither overflow nor underflow"
        c.close(large, _expected_loss(logits * 200, targets), label=label)
    with c.part():
        c.grad(
            args=(logits, masked),
            wrt=(0,),
            expected_fn=cross_entropy_ref,
            label="the gradient is softmax minus one-hot over the count",
            names=("logits",),
        )


def _expected_loss(logits, targets):
    total, count = 0.0, 0
    for row, target in zip(logits.double().flatten(0, 1), targets.flatten(), strict=True):
        if target == -100:
            continue
        top = row.max()
        total += float(top + (row - top).exp().sum().log() - row[target])
        count += 1
    return torch.tensor(total / count, dtype=torch.float32)


# ---------------------------------------------------------------------------------------------
# AdamW


def adamw_step(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    """One AdamW update of one tensor, without changing its arguments.

    p, grad, m, v: tensors of one shape; m, v start at zero
    step: 1 for the first update; lr, weight_decay, eps: numbers
    returns the new p, m, v
    """
    beta1, beta2 = betas
    m = beta1 * m + (1 - beta1) * grad
    v = beta2 * v + (1 - beta2) * grad**2
    m_hat = m / (1 - beta1**step)
    v_hat = v / (1 - beta2**step)
    p = p - lr * weight_decay * p
    p = p - lr * m_hat / (torch.sqrt(v_hat) + eps)
    return p, m, v


def _adamw_coupled(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    return adamw_step(p, grad + weight_decay * p, m, v, step, lr, betas, eps, 0.0)


def _adamw_uncorrected(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    m = betas[0] * m + (1 - betas[0]) * grad
    v = betas[1] * v + (1 - betas[1]) * grad**2
    return p - lr * weight_decay * p - lr * m / (torch.sqrt(v) + eps), m, v


def _adamw_corrected_twice(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    p, m, v = adamw_step(p, grad, m, v, step, lr, betas, eps, weight_decay)
    return p, m / (1 - betas[0] ** step), v / (1 - betas[1] ** step)


def _adamw_step_from_zero(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    return adamw_step(p, grad, m, v, step + 1, lr, betas, eps, weight_decay)


def _adamw_full_decay(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    return adamw_step(p, grad, m, v, step, lr, betas, eps, weight_decay / lr)


def _adamw_undecayed(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    return adamw_step(p, grad, m, v, step, lr, betas, eps, 0.0)


def _adamw_no_root(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    decayed, m, v = adamw_step(p, grad, m, v, step, 0.0, betas, eps, 0.0)
    m_hat, v_hat = m / (1 - betas[0] ** step), v / (1 - betas[1] ** step)
    return decayed - lr * weight_decay * p - lr * m_hat / (v_hat + eps), m, v


def _adamw_swapped(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    return adamw_step(p, grad, m, v, step, lr, betas[::-1], eps, weight_decay)


def _adamw_in_place(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    new = adamw_step(p, grad, m, v, step, lr, betas, eps, weight_decay)
    for old, fresh in zip((p, m, v), new, strict=True):
        old.copy_(fresh)
    return p, m, v


def _adamw_lerp(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    m = torch.lerp(m, grad, 1 - betas[0])
    v = torch.lerp(v, grad * grad, 1 - betas[1])
    size = lr / (1 - betas[0] ** step)
    root = v.sqrt() / math.sqrt(1 - betas[1] ** step)
    return p * (1 - lr * weight_decay) - size * m / (root + eps), m, v


def _adamw_one_sum(p, grad, m, v, step, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    m = m + (1 - betas[0]) * (grad - m)
    v = v + (1 - betas[1]) * (grad.square() - v)
    direction = (m / (1 - betas[0] ** step)) / ((v / (1 - betas[1] ** step)) ** 0.5 + eps)
    return p - lr * (direction + weight_decay * p), m, v


@exercise(
    "adamw-step",
    solution=adamw_step,
    notebook=NOTEBOOK,
    title="One step downhill, at the same pace for every weight",
    difficulty=3,
    importance=4,
    minutes=10,
    hints=(
        "m and v start at zero, so after one step m is only (1 - beta1) of the gradient: what do "
        "you divide by to undo that? Does the weight decay pass through m and v, or around them?",
        "m = beta1 * m + (1 - beta1) * grad\n"
        "v = beta2 * v + (1 - beta2) * grad squared\n"
        "m_hat = m / (1 - beta1 ** step);  v_hat = v / (1 - beta2 ** step)\n"
        "p = p - lr * weight_decay * p            # around the moments, not through them\n"
        "p = p - lr * m_hat / (sqrt(v_hat) + eps)\n"
        "return p, m, v                           # m and v as they are, not the corrected ones",
    ),
    mutants=[
        Mutant(
            "coupled",
            _adamw_coupled,
            "The decay went into the gradient (Adam with L2). There it is divided by sqrt(v) like "
            "everything else; the W in AdamW stands for keeping it out.",
        ),
        Mutant(
            "uncorrected",
            _adamw_uncorrected,
            "The bias correction is missing: m and v start at zero and are too small at first.",
        ),
        Mutant(
            "corrected_twice",
            _adamw_corrected_twice,
            "You returned the corrected moments. Keep the raw ones, or they are corrected again "
            "next step.",
        ),
        Mutant(
            "step_from_zero",
            _adamw_step_from_zero,
            "The correction used step + 1. The first update already comes with step = 1.",
        ),
        Mutant(
            "full_decay",
            _adamw_full_decay,
            "The decay was not multiplied by lr: it would not fade with the schedule.",
        ),
        Mutant("undecayed", _adamw_undecayed, "The weight decay is missing: this is plain Adam."),
        Mutant(
            "no_root",
            _adamw_no_root,
            "Divide by the square root of v_hat: v is in squared units of the gradient.",
        ),
        Mutant(
            "swapped_betas",
            _adamw_swapped,
            "The betas changed places: beta1 belongs to m (the direction), beta2 to v (the size).",
        ),
        Mutant(
            "in_place",
            _adamw_in_place,
            "Your function changed the tensors it was given. Compute new ones and return them.",
        ),
    ],
    alternatives=[
        Alternative("lerp", _adamw_lerp),
        Alternative("one_sum", _adamw_one_sum),
    ],
)
def check_adamw_step(c):
    """Three steps against torch.optim.AdamW, the first one's size, decay alone, no side effects."""
    rows, columns = c.size(2, 4), c.size(3, 5)
    p, grads = c.randn(rows, columns), [c.randn(rows, columns) for _ in range(3)]
    zero = torch.zeros_like(p)
    expected = _torch_adamw(p, grads, lr=0.01)
    label = "runs, leaves its arguments alone and returns p, m, v"
    new = c.call(p, grads[0], zero, zero, 1, 0.01, label=label, returns=3)
    with c.part():
        c.close(new[1], 0.1 * grads[0], label="m after step 1 is a tenth of the gradient")
        c.close(new[2], 0.05 * grads[0] ** 2, label="v after step 1 is a twentieth of its square")
        c.close(new[0], expected[0], label="p after step 1 equals torch.optim.AdamW's")
        for i, word in ((1, "2"), (2, "3")):
            new = c.call(new[0], grads[i], new[1], new[2], i + 1, 0.01, returns=3)
            c.close(new[0], expected[i], label=f"p after step {word} equals torch.optim.AdamW's")
    with c.part():
        plain = c.call(p, grads[0], zero, zero, 1, 0.01, (0.9, 0.95), 1e-8, 0.0, returns=3)
        label = "without decay the first step moves every weight by lr"
        c.close((plain[0] - p).abs(), torch.full_like(p, 0.01), label=label, rtol=1e-3)
    with c.part():
        still = c.call(p, zero, zero, zero, 1, 0.01, returns=3)
        c.close(still[0], p * 0.999, label="a gradient of zero leaves only the decay, lr times 0.1")


def _torch_adamw(p, grads, lr):
    w = torch.nn.Parameter(p.clone())
    optimizer = torch.optim.AdamW([w], lr=lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    after = []
    for grad in grads:
        w.grad = grad.clone()
        optimizer.step()
        after.append(w.detach().clone())
    return after
