"""The input of an MTP module."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from minids3.course.registry import Alternative, Mutant, exercise
from minids3.ref.norm import rms_norm_ref as rms_norm


# fmt: off
def mtp_input(x, tokens, table, norm, enorm, hnorm, eh_proj):
    """What goes into the block of an MTP module.

    x [B, S, D]: the stream after the last block, not yet normed
    tokens [B, N], N <= S: the token to tell each of the first N positions
    table [V, D]: embeddings; eh_proj [D, 2 D]
    norm [D]: the final norm of what made x; enorm, hnorm [D]: the module's
    returns [B, N, D]
    """
    hidden = rms_norm(x[:, : tokens.shape[1]], norm)
    embedding = table[tokens]
    both = (rms_norm(embedding, enorm), rms_norm(hidden, hnorm))
    return torch.cat(both, -1) @ eh_proj.T
# fmt: on


def _parts(x, tokens, table, norm, enorm, hnorm):
    hidden = rms_norm(x[:, : tokens.shape[1]], norm)
    return rms_norm(table[tokens], enorm), rms_norm(hidden, hnorm)


def _report_order(x, tokens, table, norm, enorm, hnorm, eh_proj):
    e, h = _parts(x, tokens, table, norm, enorm, hnorm)
    return F.linear(torch.cat((h, e), -1), eh_proj)


def _no_enorm(x, tokens, table, norm, enorm, hnorm, eh_proj):
    _, h = _parts(x, tokens, table, norm, enorm, hnorm)
    return F.linear(torch.cat((table[tokens], h), -1), eh_proj)


def _no_hnorm(x, tokens, table, norm, enorm, hnorm, eh_proj):
    e, _ = _parts(x, tokens, table, norm, enorm, hnorm)
    return F.linear(torch.cat((e, rms_norm(x[:, : tokens.shape[1]], norm)), -1), eh_proj)


def _pre_norm(x, tokens, table, norm, enorm, hnorm, eh_proj):
    e, _ = _parts(x, tokens, table, norm, enorm, hnorm)
    return F.linear(torch.cat((e, rms_norm(x[:, : tokens.shape[1]], hnorm)), -1), eh_proj)


def _norms_swapped(x, tokens, table, norm, enorm, hnorm, eh_proj):
    return mtp_input(x, tokens, table, norm, hnorm, enorm, eh_proj)


def _last_positions(x, tokens, table, norm, enorm, hnorm, eh_proj):
    return mtp_input(x[:, -tokens.shape[1] :], tokens, table, norm, enorm, hnorm, eh_proj)


def _hidden_late(x, tokens, table, norm, enorm, hnorm, eh_proj):
    return mtp_input(x.roll(-1, 1), tokens, table, norm, enorm, hnorm, eh_proj)


def _summed(x, tokens, table, norm, enorm, hnorm, eh_proj):
    e, h = _parts(x, tokens, table, norm, enorm, hnorm)
    return F.linear(e + h, eh_proj[:, : x.shape[-1]])


def _one_norm_over_both(x, tokens, table, norm, enorm, hnorm, eh_proj):
    hidden = rms_norm(x[:, : tokens.shape[1]], norm)
    both = torch.cat((table[tokens], hidden), -1)
    return F.linear(rms_norm(both, torch.cat((enorm, hnorm))), eh_proj)


def _blind(x, tokens, table, norm, enorm, hnorm, eh_proj):
    e, h = _parts(x, tokens, table, norm, enorm, hnorm)
    return F.linear(torch.cat((torch.zeros_like(e), h), -1), eh_proj)


def _detached(x, tokens, table, norm, enorm, hnorm, eh_proj):
    return mtp_input(x.detach(), tokens, table, norm, enorm, hnorm, eh_proj)


def _two_products(x, tokens, table, norm, enorm, hnorm, eh_proj):
    e, h = _parts(x, tokens, table, norm, enorm, hnorm)
    width = x.shape[-1]
    return e @ eh_proj[:, :width].T + h @ eh_proj[:, width:].T


def _torch_norms(x, tokens, table, norm, enorm, hnorm, eh_proj):
    size = x.shape[-1:]
    h = F.rms_norm(F.rms_norm(x, size, norm, 1e-6), size, hnorm, 1e-6)
    e = F.rms_norm(F.embedding(tokens, table), size, enorm, 1e-6)
    return F.linear(torch.cat((e, h[:, : tokens.shape[1]]), -1), eh_proj)


def _einsum(x, tokens, table, norm, enorm, hnorm, eh_proj):
    e, h = _parts(x, tokens, table, norm, enorm, hnorm)
    return torch.einsum("pbnd,opd->bno", torch.stack((e, h)), eh_proj.unflatten(1, (2, -1)))


def _viewed(x, tokens, table, norm, enorm, hnorm, eh_proj):
    flat = x.view(-1, x.shape[-1]).view(x.shape)
    return mtp_input(flat, tokens, table, norm, enorm, hnorm, eh_proj)


def _preallocated(x, tokens, table, norm, enorm, hnorm, eh_proj):
    rows, count = tokens.shape
    width = x.shape[-1]
    both = torch.empty(rows, count, 2 * width)
    both[..., :width] = rms_norm(table[tokens.flatten()].view(rows, count, -1), enorm)
    both[..., width:] = rms_norm(rms_norm(x[:, :count], norm), hnorm)
    return both @ eh_proj.T


@exercise(
    "mtp-input",
    solution=mtp_input,
    notebook="06_multi_token_prediction",
    title="What the module is told",
    difficulty=3,
    importance=5,
    minutes=12,
    hints=(
        "Two vectors come together: what position i has understood, and the token it is told. How "
        "many norms does each of them pass before they are laid side by side, and which comes "
        "first? x may have more positions than there are tokens: which ones have no partner?",
        "hidden = rms_norm of the first N positions of x, with norm      # the final norm\n"
        "e = rms_norm of the tokens' embeddings, with enorm\n"
        "h = rms_norm of hidden, with hnorm\n"
        "lay e and h side by side, [B, N, 2 D], embedding first\n"
        "multiply by eh_proj transposed",
    ),
    mutants=[
        Mutant(
            "report_order",
            _report_order,
            "Hidden first, then the embedding: that is the order of equation 21 in the report. The "
            "released weights want the embedding first, and ours follow the weights.",
        ),
        Mutant(
            "no_enorm",
            _no_enorm,
            "The embedding went in without its norm. Embeddings are much smaller than hidden "
            "vectors; without enorm the projection hardly sees the token.",
        ),
        Mutant(
            "no_hnorm",
            _no_hnorm,
            "The hidden vector passed the main model's norm only. hnorm comes on top: its scale is "
            "the module's own.",
        ),
        Mutant(
            "pre_norm",
            _pre_norm,
            "You skipped the final norm: hnorm was applied to the raw stream. The scales of the "
            "final norm are then missing from what the module reads.",
        ),
        Mutant(
            "norms_swapped",
            _norms_swapped,
            "The two norms changed places: enorm belongs to the embedding, hnorm to the hidden "
            "vector.",
        ),
        Mutant(
            "last_positions",
            _last_positions,
            "You took the last N positions of x. Token i + k belongs to position i, so the "
            "positions without a partner are those at the end.",
        ),
        Mutant(
            "hidden_late",
            _hidden_late,
            "Position i got the hidden vector of position i + 1. The tokens that are handed in are "
            "shifted already: the hidden vectors are the first N of x as they are.",
        ),
        Mutant(
            "summed",
            _summed,
            "You added the two vectors. Side by side they keep apart, and eh_proj has a column for "
            "each of their 2 D numbers.",
        ),
        Mutant(
            "one_norm_over_both",
            _one_norm_over_both,
            "One norm over both halves lets the larger vector drown the smaller. Norm each of "
            "them, then join.",
        ),
        Mutant(
            "blind",
            _blind,
            "The token is missing: the module would have to guess two tokens at once. That is this "
            "notebook's negative control.",
        ),
        Mutant(
            "detached",
            _detached,
            "The gradient stops at x. It has to go on into the main model: that is the extra "
            "training signal.",
        ),
        Mutant(
            "layout",
            _viewed,
            "Your code needs x to be contiguous, and a slice of the stream is not: use reshape.",
        ),
    ],
    alternatives=[
        Alternative("two_products", _two_products),
        Alternative("torch_norms", _torch_norms),
        Alternative("einsum", _einsum),
    ],
)
def check_mtp_input(c):
    """Values against two products in float64, each half alone, sizes, gradients."""
    rows, steps, width, vocab = c.size(2, 3), c.size(4, 6), c.size(6, 10), c.size(9, 13)
    x = 3 * c.randn(rows, steps, width)
    tokens = c.randint(0, vocab, rows, steps - 2)  # two fewer: the last N of x are no shift by one
    table = 0.1 * c.randn(vocab, width)
    norm, enorm, hnorm = (0.5 + c.rand(width) for _ in range(3))
    proj = c.randn(width, 2 * width)
    left, right = proj.clone(), proj.clone()
    left[:, width:], right[:, :width] = 0, 0

    label = f"runs on x {list(x.shape)} and tokens {list(tokens.shape)}"
    out = c.call(x, tokens, table, norm, enorm, hnorm, proj, label=label)
    c.shape(out, (rows, steps - 2, width), label="one vector of width D per token")
    with c.part():
        half = c.call(x, tokens, table, norm, enorm, hnorm, left)
        want = _expected(x, tokens, table, norm, enorm, hnorm, left)
        c.close(half, want, label="the first D columns of eh_proj meet the normed embedding")
    with c.part():
        half = c.call(x, tokens, table, norm, enorm, hnorm, right)
        want = _expected(x, tokens, table, norm, enorm, hnorm, right)
        label = "the last D columns meet the hidden vector of the same position, normed twice"
        c.close(half, want, label=label)
    with c.part():
        c.close(out, _expected(x, tokens, table, norm, enorm, hnorm, proj), label="both together")
        one = c.call(x[:, :1], tokens[:, :1], table, norm, enorm, hnorm, proj)
        want = _expected(x[:, :1], tokens[:, :1], table, norm, enorm, hnorm, proj)
        c.close(one, want, label="a single position works")
    with c.part():
        c.grad(
            args=(x, tokens, table, norm, enorm, hnorm, proj),
            wrt=(0, 2, 6),
            expected_fn=mtp_input,
            label="the gradient reaches the main model, the embeddings and eh_proj",
            names=("x", "table", "eh_proj"),
        )
    with c.part():
        label = "an x that is not contiguous gives the same"
        again = c.call(c.strided(x), tokens, table, norm, enorm, hnorm, proj)
        c.close(again, _expected(x, tokens, table, norm, enorm, hnorm, proj), label=label)


def _expected(x, tokens, table, norm, enorm, hnorm, proj):
    def scaled(v, w):
        return v / (v.square().mean() + 1e-6).sqrt() * w.double()

    x, table, proj = x.double(), table.double(), proj.double()
    out = torch.zeros(*tokens.shape, x.shape[-1], dtype=torch.float64)
    for b in range(tokens.shape[0]):
        for i in range(tokens.shape[1]):
            h = scaled(scaled(x[b, i], norm), hnorm)
            e = scaled(table[tokens[b, i]], enorm)
            out[b, i] = proj[:, : len(e)] @ e + proj[:, len(e) :] @ h
    return out.float()
