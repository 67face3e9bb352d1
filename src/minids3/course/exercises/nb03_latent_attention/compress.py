"""What is kept of a token: a normalised latent and one rotary key."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from minids3.course.registry import Alternative, Mutant, exercise
from minids3.ref.norm import rms_norm_ref as rms_norm
from minids3.ref.rope import apply_rope_ref as rope
from minids3.ref.rope import rope_tables


def compress(h, w_kv_a, kv_norm, cos, sin):
    """What is remembered of each token: a latent and one rotary key.

    h [B, T, D]; w_kv_a [C + R, D], the latent's rows first
    kv_norm [C]; cos, sin [T, R // 2]
    returns c_kv [B, T, C], normalised, and k_rope [B, T, R], rotated
    """
    rank = kv_norm.shape[0]
    down = h @ w_kv_a.T
    c_kv = rms_norm(down[..., :rank], kv_norm)
    k_rope = rope(down[..., rank:], cos, sin)
    return c_kv, k_rope


def _split(h, w_kv_a, kv_norm):
    return (h @ w_kv_a.T).split((kv_norm.shape[0], w_kv_a.shape[0] - kv_norm.shape[0]), -1)


def _normed_together(h, w_kv_a, kv_norm, cos, sin):
    extra = torch.ones(w_kv_a.shape[0] - kv_norm.shape[0])
    both = rms_norm(h @ w_kv_a.T, torch.cat((kv_norm, extra)))
    return both[..., : kv_norm.shape[0]], rope(both[..., kv_norm.shape[0] :], cos, sin)


def _key_normed_too(h, w_kv_a, kv_norm, cos, sin):
    c_kv, key = _split(h, w_kv_a, kv_norm)
    return rms_norm(c_kv, kv_norm), rope(rms_norm(key, torch.ones(key.shape[-1])), cos, sin)


def _not_normed(h, w_kv_a, kv_norm, cos, sin):
    c_kv, key = _split(h, w_kv_a, kv_norm)
    return c_kv * kv_norm, rope(key, cos, sin)


def _weight_forgotten(h, w_kv_a, kv_norm, cos, sin):
    return compress(h, w_kv_a, torch.ones_like(kv_norm), cos, sin)


def _not_rotated(h, w_kv_a, kv_norm, cos, sin):
    c_kv, key = _split(h, w_kv_a, kv_norm)
    return rms_norm(c_kv, kv_norm), key


def _key_first(h, w_kv_a, kv_norm, cos, sin):
    width = w_kv_a.shape[0] - kv_norm.shape[0]
    down = h @ w_kv_a.T
    return rms_norm(down[..., width:], kv_norm), rope(down[..., :width], cos, sin)


def _latent_rotated(h, w_kv_a, kv_norm, cos, sin):
    c_kv, k_rope = compress(h, w_kv_a, kv_norm, cos, sin)
    wide_cos, wide_sin = rope_tables(h.shape[1], c_kv.shape[-1])
    return rope(c_kv, wide_cos, wide_sin), k_rope


def _compress_two_products(h, w_kv_a, kv_norm, cos, sin):
    w_latent, w_key = w_kv_a[: len(kv_norm)], w_kv_a[len(kv_norm) :]
    c_kv = F.rms_norm(F.linear(h, w_latent), (len(kv_norm),), kv_norm, 1e-6)
    return c_kv, rope(F.linear(h, w_key), cos, sin)


def _compress_complex(h, w_kv_a, kv_norm, cos, sin):
    down = torch.einsum("btd,cd->btc", h, w_kv_a)
    c_kv, key = down[..., : len(kv_norm)], down[..., len(kv_norm) :]
    pairs = torch.view_as_complex(key.float().unflatten(-1, (-1, 2)).contiguous())
    turned = torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)
    size = c_kv.float().pow(2).mean(-1, keepdim=True) + 1e-6
    return (c_kv.float() / size.sqrt() * kv_norm).to(h.dtype), turned.to(h.dtype)


def _viewed(h, w_kv_a, kv_norm, cos, sin):
    flat = h.view(-1, h.shape[-1])
    return compress(flat.view(*h.shape), w_kv_a, kv_norm, cos, sin)


def _preallocated(h, w_kv_a, kv_norm, cos, sin):
    rank = len(kv_norm)
    down = torch.einsum("btd,nd->btn", h, w_kv_a)
    latent = down[..., :rank].double()
    c_kv = latent / (latent.square().mean(-1, keepdim=True) + 1e-6).sqrt() * kv_norm
    k_rope = torch.zeros_like(down[..., rank:])
    even, odd = down[..., rank::2], down[..., rank + 1 :: 2]
    k_rope[..., ::2] = even * cos - odd * sin
    k_rope[..., 1::2] = even * sin + odd * cos
    return c_kv.to(h.dtype), k_rope


@exercise(
    "mla-compress",
    solution=compress,
    notebook="03_latent_attention",
    title="Remember the negative, not the print",
    difficulty=2,
    importance=5,
    minutes=8,
    library=_compress_two_products,
    hints=(
        "One product takes h from D down to C + R. Which of its columns are the latent and which "
        "the key? One of the two parts is normalised, the other is turned by its position. "
        "Which is which, and why would a norm over both mix them?",
        "down = h times w_kv_a transposed          # [B, T, C + R]\n"
        "c_kv = rms_norm of the first C columns, with kv_norm\n"
        "k_rope = rope of the last R columns       # no norm here\n"
        "return c_kv, k_rope",
    ),
    mutants=[
        Mutant(
            "normed_together",
            _normed_together,
            "You normalised the latent and the rotary key together. The key must stay outside the "
            "norm: a long key would shrink the latent, and the other way round.",
        ),
        Mutant(
            "key_normed_too",
            _key_normed_too,
            "The latent is right, but the rotary key was normalised too. Its length says how much "
            "position matters for this token, and a norm throws that away.",
        ),
        Mutant(
            "not_normed",
            _not_normed,
            "The latent was only multiplied by kv_norm. Divide by its root mean square first: "
            "that is what rms_norm does.",
        ),
        Mutant(
            "weight_forgotten",
            _weight_forgotten,
            "The norm's own weight is missing: kv_norm scales every channel after the division.",
        ),
        Mutant(
            "not_rotated",
            _not_rotated,
            "The key was not turned. Without rotation no part of the cache knows its position.",
        ),
        Mutant(
            "key_first",
            _key_first,
            "Latent and key changed places: the first C rows of w_kv_a make the latent, the last R "
            "the key.",
        ),
        Mutant(
            "latent_rotated",
            _latent_rotated,
            "You turned the latent as well. It must not know where it is, or the key matrix can no "
            "longer be folded into the query (section 3.7).",
        ),
        Mutant(
            "layout",
            _viewed,
            "Your code needs h to be contiguous, and a slice of the stream is not: use reshape or "
            "flatten.",
        ),
    ],
    alternatives=[
        Alternative("two_products", _compress_two_products),
        Alternative("complex_numbers", _compress_complex),
        Alternative("preallocated", _preallocated),
    ],
)
def check_compress(c):
    """Shapes, the norm on the latent alone, the rotation on the key alone, gradients."""
    batch, steps, width = c.size(2, 3), c.size(4, 6), c.size(9, 13)
    rank, rotary = 2 * c.size(5, 7), c.choice((4, 8))  # rank is never twice rotary
    h, w_kv_a = c.randn(batch, steps, width), c.randn(rank + rotary, width)
    kv_norm = 0.5 + c.rand(rank)
    cos, sin = rope_tables(steps, rotary)
    label = f"runs on h {list(h.shape)} and returns two tensors"
    c_kv, k_rope = c.call(h, w_kv_a, kv_norm, cos, sin, label=label, returns=2)
    c.shape(c_kv, (batch, steps, rank), "c_kv")
    c.shape(k_rope, (batch, steps, rotary), "k_rope")
    wanted_c, wanted_k = _expected(h, w_kv_a, kv_norm, cos, sin)
    with c.part():
        ones = torch.ones(rank)
        plain, _ = c.call(h, w_kv_a, ones, cos, sin, returns=2)
        size = plain.pow(2).mean(-1)
        label = "c_kv is normalised: with weight 1 its mean square is 1"
        c.close(size, torch.ones_like(size), label=label, rtol=1e-3)
        c.close(c_kv, wanted_c, "c_kv")
    with c.part():
        label = "k_rope is the last R columns, as they are at position 0"
        c.close(k_rope[:, 0], (h @ w_kv_a.T)[:, 0, rank:], label=label, atol=1e-4)
        c.close(k_rope, wanted_k, label="k_rope is turned by its position", atol=1e-4)
    with c.part():
        louder = torch.cat((w_kv_a[:rank], 5 * w_kv_a[rank:]))
        loud_c, loud_k = c.call(h, louder, kv_norm, cos, sin, returns=2)
        c.close(loud_c, wanted_c, label="a key five times as long leaves the latent alone")
        c.close(loud_k, 5 * wanted_k, label="and stays five times as long", atol=1e-3)
    with c.part():
        one_c, one_k = c.call(h[:, 3:4], w_kv_a, kv_norm, cos[3:4], sin[3:4], returns=2)
        c.close(one_c, wanted_c[:, 3:4], label="token 3 alone, T = 1: the same latent")
        c.close(one_k, wanted_k[:, 3:4], label="token 3 alone, T = 1: the same key", atol=1e-4)
    with c.part():
        silent = torch.cat((h[:, :1], torch.zeros_like(h[:, :1]), h[:, 2:]), 1)
        quiet_c, _ = c.call(silent, w_kv_a, kv_norm, cos, sin, returns=2)
        label = "a token of zeros has a latent of zeros, not nan"
        c.equal(quiet_c[:, 1], torch.zeros(batch, rank), label=label)
    with c.part():
        c.grad(
            args=(h, w_kv_a, kv_norm, cos, sin),
            wrt=(0, 1, 2),
            expected_fn=_compress_complex,
            label="the gradient reaches h, w_kv_a and kv_norm",
            names=("h", "w_kv_a", "kv_norm"),
            atol=1e-3,
        )
    with c.part():
        label = "an h that is not contiguous gives the same latent"
        apart_c, apart_k = c.call(c.strided(h), w_kv_a, kv_norm, cos, sin, returns=2)
        c.close(apart_c, wanted_c, label=label)
        c.close(apart_k, wanted_k, label="and the same key", atol=1e-4)


def _expected(h, w_kv_a, kv_norm, cos, sin):
    """In fp64, the rotation as a matrix per position."""
    down = torch.einsum("btd,cd->btc", h.double(), w_kv_a.double())
    latent, key = down[..., : len(kv_norm)], down[..., len(kv_norm) :]
    latent = latent / latent.pow(2).mean(-1, keepdim=True).add(1e-6).sqrt() * kv_norm.double()
    turned = torch.empty_like(key)
    for t in range(h.shape[1]):
        for j in range(key.shape[-1] // 2):
            turn = torch.tensor([[cos[t, j], -sin[t, j]], [sin[t, j], cos[t, j]]]).double()
            turned[:, t, 2 * j : 2 * j + 2] = key[:, t, 2 * j : 2 * j + 2] @ turn.T
    return latent.float(), turned.float()
