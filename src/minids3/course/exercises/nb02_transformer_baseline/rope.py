"""RoPE: position as rotation."""

from __future__ import annotations

import torch

from minids3.course.registry import Alternative, Mutant, exercise
from minids3.ref.rope import apply_rope_ref, rope_tables


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


def _rope_view_as(x, cos, sin):
    pairs = torch.view_as_complex(x.float().view(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2).to(x.dtype)


def _rope_preallocated(x, cos, sin):
    out = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, cos.dtype))
    out[..., ::2] = x[..., ::2] * cos - x[..., 1::2] * sin
    out[..., 1::2] = x[..., 1::2] * cos + x[..., ::2] * sin
    return out.to(x.dtype)


def _rope_matrices(x, cos, sin):
    turn = torch.stack((torch.stack((cos, -sin), -1), torch.stack((sin, cos), -1)), -2)
    pairs = x.unflatten(-1, (-1, 2)).to(turn.dtype)
    return torch.einsum("tjab,...tjb->...tja", turn, pairs).flatten(-2).to(x.dtype)


def _rope_recomputes(x, cos, sin):
    steps, width = x.shape[-2:]
    angle = torch.arange(steps)[:, None] * 10000.0 ** (-torch.arange(0, width, 2) / width)
    return rope(x, angle.cos(), angle.sin())


def _rope_first_untouched(x, cos, sin):
    return torch.cat((x[..., :1, :], rope(x, cos, sin)[..., 1:, :]), -2)


@exercise(
    "rope",
    solution=rope,
    notebook="02_transformer_baseline",
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
        Mutant(
            "layout",
            _rope_view_as,
            "Your code needs x to be contiguous. A slice or a transposed tensor is not: use "
            "reshape, or contiguous() first.",
        ),
        Mutant(
            "recomputes",
            _rope_recomputes,
            "You made the tables yourself for positions 0 to T - 1; the arguments may begin "
            "elsewhere.",
        ),
        Mutant(
            "first_untouched",
            _rope_first_untouched,
            "You left the first row alone, as if it were position 0. Its angle, too, is in the "
            "tables.",
        ),
    ],
    alternatives=[
        Alternative("complex_numbers", _rope_complex),
        Alternative("quarter_turn", _rope_quarter_turn),
        Alternative("preallocated", _rope_preallocated),
        Alternative("matrices", _rope_matrices),
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
        label = "pair (2j, 2j + 1) of position t is turned by its angle"
        c.close(y, _turned(x, cos, sin), label=label)
    with c.part():
        c.close(y[..., 0, :], x[..., 0, :], label="position 0 stays as it is")
        c.close(y.norm(dim=-1), x.norm(dim=-1), label="turning keeps every vector's length")
    with c.part():
        query, key = c.randn(1, width), c.randn(1, width)
        scores = []
        for start in (7, 50):
            cos_2, sin_2 = rope_tables(torch.tensor([start, start + 3]), width)
            q = c.call(query, cos_2[:1], sin_2[:1])
            k = c.call(key, cos_2[1:], sin_2[1:])
            scores.append((q * k).sum())
        label = "a score depends on the distance alone: (7, 10) equals (50, 53)"
        c.close(scores[1], scores[0], label=label)
    with c.part():
        half = c.call(x.to(torch.bfloat16), cos, sin)
        c.dtype(half, torch.bfloat16, label="a bfloat16 x stays bfloat16")
        half = c.call(x.half(), cos, sin)
        c.dtype(half, torch.float16, label="a float16 x stays float16")
        double = c.call(x.double(), cos, sin)
        c.dtype(double, torch.float64, label="a float64 x stays float64")
    with c.part():
        c.grad(
            args=(x, cos, sin),
            wrt=(0,),
            expected_fn=_rope_library,
            label="the gradient reaches x",
            names=("x",),
        )
    with c.part():
        label = "an x that is not contiguous gives the same"
        apart = c.call(c.strided(x), cos, sin)
        c.close(apart, rope(x, cos, sin), label=label)
    with c.part():
        late = rope_tables(torch.arange(50, 50 + steps), width)
        label = "tables from position 50 on say the angle, and [T, R] alone works"
        c.close(c.call(x[0, 0], *late), _turned(x[0, 0], *late), label=label)
        first = x[0, 0, :1], late[0][:1], late[1][:1]
        c.close(c.call(*first), _turned(*first), label="so does position 50 alone (T = 1)")


def _turned(x, cos, sin):
    turn = torch.complex(cos.double(), sin.double())
    points = torch.complex(x[..., 0::2].double(), x[..., 1::2].double()) * turn
    return torch.stack((points.real, points.imag), -1).flatten(-2).float()
