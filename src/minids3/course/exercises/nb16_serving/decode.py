"""Absorbed attention of the newest tokens, over latents in pages."""

from __future__ import annotations

import torch

from minids3.course.registry import Alternative, Mutant, exercise


# fmt: off
def attend_pages(q, pages, tables, lengths, rank, scale):
    """Attention of each text's newest token to latents that lie in pages.

    q [B, H, C + R]: absorbed queries, C = rank numbers to be compared with
    a latent, and R with its rotary key
    pages [P, size, C + R]: rows [latent | rotary key], shared by all heads
    tables [B, M] int64: pages of each text in order; row s is in page
    tables[b, s // size] at place s % size
    lengths [B] int64: rows of each text, its newest one included, 1 or more
    Entries of `tables` and rows of pages beyond a text's end may hold
    anything, NaN included.
    returns [B, H, C]: for each head the mean of the latents, weighted by
    the softmax of query times row times scale
    """
    out = q.new_zeros(*q.shape[:2], rank)
    size = pages.shape[1]
    for b, n in enumerate(lengths.tolist()):
        used = tables[b, : -(-n // size)]
        rows = pages[used].flatten(0, 1)[:n]  # [n, C + R]
        weights = torch.softmax(q[b] @ rows.T * scale, dim=-1)
        out[b] = weights @ rows[:, :rank]
    return out
# fmt: on


def _with(q, pages, tables, lengths, rank, scale, rows_of=None, weigh=None, part=None):
    out = []
    size = pages.shape[1]
    for b, n in enumerate(lengths.tolist()):
        rows = pages[tables[b, : -(-n // size)]].flatten(0, 1)[:n]
        if rows_of is not None:
            rows = rows_of(b, n)
        scores = q[b] @ rows.T * scale
        weights = scores.softmax(-1) if weigh is None else weigh(scores)
        out.append(weights @ (rows[:, :rank] if part is None else part(rows)))
    return torch.stack(out)


def _whole_pages(q, pages, tables, lengths, rank, scale):
    def rows_of(b, n):
        return pages[tables[b, : -(-n // pages.shape[1])]].flatten(0, 1)

    return _with(q, pages, tables, lengths, rank, scale, rows_of)


def _pages_in_order(q, pages, tables, lengths, rank, scale):
    return _with(
        q, pages, tables, lengths, rank, scale, lambda b, n: pages.flatten(0, 1)[:n]
    )  # fmt: skip


def _without_itself(q, pages, tables, lengths, rank, scale):
    def rows_of(b, n):
        n = max(n - 1, 1)
        return pages[tables[b, : -(-n // pages.shape[1])]].flatten(0, 1)[:n]

    return _with(q, pages, tables, lengths, rank, scale, rows_of)


def _no_rotary(q, pages, tables, lengths, rank, scale):
    q = torch.cat((q[..., :rank], torch.zeros_like(q[..., rank:])), -1)
    return _with(q, pages, tables, lengths, rank, scale)


def _wrong_end(q, pages, tables, lengths, rank, scale):
    return _with(q, pages, tables, lengths, rank, scale, part=lambda rows: rows[:, -rank:])


def _own_scale(q, pages, tables, lengths, rank, scale):
    return _with(q, pages, tables, lengths, rank, q.shape[-1] ** -0.5)


def _over_heads(q, pages, tables, lengths, rank, scale):
    return _with(q, pages, tables, lengths, rank, scale, weigh=lambda s: s.softmax(0))


def _no_peak(q, pages, tables, lengths, rank, scale):
    def weigh(scores):
        e = scores.exp()
        return e / e.sum(-1, keepdim=True)

    return _with(q, pages, tables, lengths, rank, scale, weigh=weigh)


def _rectangle(q, pages, tables, lengths):
    """Rows [B, M * size, C + R], page 0's beyond the end, and which are a text's own."""
    size = pages.shape[1]
    position = torch.arange(tables.shape[1] * size)
    inside = position < lengths[:, None]
    chosen = tables.repeat_interleave(size, 1).masked_fill(~inside, 0)
    return pages[chosen, position % size], inside


def _masked_by_zero(q, pages, tables, lengths, rank, scale):
    rows, inside = _rectangle(q, pages, tables, lengths)
    rows = rows.masked_fill(~inside[..., None], 0.0)
    weights = (q @ rows.mT * scale).masked_fill(~inside[:, None], 0.0).softmax(-1)
    return weights @ rows[..., :rank]


def _nan_leaks(q, pages, tables, lengths, rank, scale):
    size = pages.shape[1]
    position = torch.arange(tables.shape[1] * size)
    inside = position < lengths[:, None]
    last = ((lengths - 1) // size)[:, None]
    chosen = tables.gather(1, torch.minimum(position // size, last))
    rows = pages[chosen, position % size]
    weights = (q @ rows.mT * scale).masked_fill(~inside[:, None], -torch.inf).softmax(-1)
    return weights @ rows[..., :rank]


def _nan_leaks_clamped(q, pages, tables, lengths, rank, scale):
    rows = pages[tables.clamp(0, len(pages) - 1)].flatten(1, 2)
    beyond = torch.arange(rows.shape[1]) >= lengths[:, None]
    weights = (q @ rows.mT * scale).masked_fill(beyond[:, None], -torch.inf).softmax(-1)
    return weights @ rows[..., :rank]


def _normalised_twice(q, pages, tables, lengths, rank, scale):
    return _with(q, pages, tables, lengths, rank, scale) / lengths[:, None, None]


def _masked_rectangle(q, pages, tables, lengths, rank, scale):
    rows, inside = _rectangle(q, pages, tables, lengths)
    rows = rows.masked_fill(~inside[..., None], 0.0)
    scores = torch.einsum("bhc,bsc->bhs", q, rows) * scale
    weights = scores.masked_fill(~inside[:, None], float("-inf")).softmax(-1)
    return torch.einsum("bhs,bsc->bhc", weights, rows[..., :rank])


def _one_more(q, pages, tables, lengths, rank, scale):
    return _masked_rectangle(q, pages, tables, lengths + 1, rank, scale)


def _page_by_page(q, pages, tables, lengths, rank, scale):
    """One pass over the pages with a running maximum, as a kernel does it."""
    out = []
    for b, n in enumerate(lengths.tolist()):
        peak = torch.full(q.shape[1:2], float("-inf"))
        total, mean = torch.zeros(q.shape[1]), torch.zeros(q.shape[1], rank)
        for first in range(0, n, pages.shape[1]):
            rows = pages[int(tables[b, first // pages.shape[1]])][: n - first]
            scores = scale * (q[b] @ rows.T)
            top = torch.maximum(peak, scores.max(-1).values)
            e, old = torch.exp(scores - top[:, None]), torch.exp(peak - top)
            total, mean = total * old + e.sum(-1), mean * old[:, None] + e @ rows[:, :rank]
            peak = top
        out.append(mean / total[:, None])
    return torch.stack(out)


@exercise(
    "serve-decode",
    solution=attend_pages,
    notebook="16_serving",
    title="Attention over pages",
    difficulty=3,
    importance=5,
    minutes=15,
    forbids=("minids3.ops.attention.*", "minids3.kernels.*"),
    hints=(
        "One text has 9 rows in pages of 4. How many pages does it use, and how many rows of the "
        "last one are its own? A row holds a latent and a rotary key: which part of it takes part "
        "in the score, and which in the mean?",
        "for each text b of n rows:\n"
        "    its first ceil(n / size) pages, one after the other: rows [.., C + R], the first n\n"
        "    weights [H, n] = softmax(q[b] @ rows.T * scale)\n"
        "    out[b] = weights @ the first C numbers of every row",
    ),
    mutants=[
        Mutant(
            "whole_pages",
            _whole_pages,
            "You attend to the last page as a whole. Behind the text's end lie rows of whoever had "
            "that page before, or of guesses that were taken back.",
        ),
        Mutant(
            "pages_in_order",
            _pages_in_order,
            "You read the memory from its start and left the table out: these are other texts' "
            "rows.",
        ),
        Mutant(
            "without_itself",
            _without_itself,
            "The newest token does not see itself. Its own row is in the pages already, and "
            "`lengths` counts it.",
        ),
        Mutant(
            "one_more",
            _one_more,
            "You read one row too many: `lengths` counts the newest already.",
        ),
        Mutant(
            "no_rotary",
            _no_rotary,
            "The rotary part is missing from the score, so the model no longer knows how far away "
            "a token is.",
        ),
        Mutant(
            "wrong_end",
            _wrong_end,
            "You averaged the last C numbers of the rows. The latent is in front, the rotary key "
            "behind it, and the key has no part in the mean.",
        ),
        Mutant(
            "own_scale",
            _own_scale,
            "You divided by the root of the row's width. The scale belongs to the heads before "
            "absorbing, and is given.",
        ),
        Mutant(
            "over_heads",
            _over_heads,
            "Your softmax runs over the heads. Each head weighs the rows for itself.",
        ),
        Mutant(
            "no_peak",
            _no_peak,
            "You took exponentials of the scores as they are. Large scores overflow: take off the "
            "largest first, or use softmax.",
        ),
        Mutant(
            "masked_by_zero",
            _masked_by_zero,
            "You set scores beyond the end to 0. exp(0) is 1: those rows weigh as much as many of "
            "the text's own. They need -inf.",
        ),
        Mutant(
            "nan_leaks",
            _nan_leaks,
            "Rows beyond the end have weight 0, and 0 times NaN is NaN. What is not the text's own "
            "may not meet the sum at all: cut it off, or set it to 0 first.",
        ),
        Mutant(
            "nan_leaks_clamped",
            _nan_leaks_clamped,
            "You gave what lies beyond the end weight 0 and left it in the sum, where 0 times NaN "
            "is NaN. Set those rows to 0 first, or cut them off.",
        ),
        Mutant(
            "normalised_twice",
            _normalised_twice,
            "You divided by the number of rows as well. The softmax's weights add up to 1 already.",
        ),
    ],
    alternatives=[
        Alternative("masked_rectangle", _masked_rectangle),
        Alternative("page_by_page", _page_by_page),
    ],
)
def check_attend_pages(c):
    """Texts of unequal length, poisoned memory, wild tables, gaps, scores far from 0."""
    size, heads = c.size(3, 5), c.size(2, 4)
    rank, rope = c.size(6, 9), c.choice((2, 4))
    lengths = torch.tensor([2 * size + 1, size, 1, 3 * size - 1])
    held = [-(-n // size) for n in lengths.tolist()]
    numbers = c.rand(sum(held) + 3).argsort() + 1
    tables = torch.zeros(4, max(held) + 1, dtype=torch.long)
    for row, part in zip(tables, numbers[: sum(held)].split(held), strict=True):
        row[: len(part)] = part
    pages = c.randn(len(numbers) + 2, size, rank + rope)
    q, scale = c.randn(4, heads, rank + rope), 0.2 + 0.3 * c.rand(1).item()
    want = _expected(q, pages, tables, lengths, rank, scale)
    got = c.call(q, pages, tables, lengths, rank, scale, label=f"runs on 4 texts, pages of {size}")
    c.shape(got, (4, heads, rank), "the result")
    for b, name in enumerate(("several pages", "one full page", "one row", "a longer text")):
        with c.part():
            c.close(got[b], want[b], label=f"{name}: {lengths[b]} rows")
    with c.part():
        bad, away = pages.clone(), tables.clone()
        own = torch.zeros(bad.shape[:2], dtype=torch.bool)
        for b, n in enumerate(lengths.tolist()):
            s = torch.arange(n)
            own[tables[b, s // size], s % size] = True
            away[b, held[b] :] = len(pages) - 1
        bad[~own] = float("nan")
        bad[~own, 1] = float("inf")
        got = c.call(q, bad, away, lengths, rank, scale)
        c.close(got, want, label="NaN in all rows that belong to no text")
    with c.part():
        wild = tables.clone()
        for b, used in enumerate(held):
            wild[b, used:] = (-1) ** b * 10**9
        got = c.call(q, pages, wild, lengths, rank, scale)
        c.close(got, want, label="no page's number in `tables` beyond the end")
    with c.part():
        got = c.call(c.strided(q), c.strided(pages), tables, lengths, rank, scale)
        c.close(got, want, label="inputs with gaps in memory")
    with c.part():
        row = pages[tables[2, 0], 0]
        low = (-1e10 * row).repeat(1, heads, 1)
        got = c.call(low, pages, tables[2:3], lengths[2:3], rank, scale)
        c.close(got[0], row[:rank].expand(heads, -1), label="one row, its score far below 0")
    with c.part():
        one = lengths[:1]
        got = c.call(60 * q[:1], pages, tables[:1], one, rank, 1.5)
        far = _expected(60 * q[:1], pages, tables[:1], one, rank, 1.5)
        atol = 1e-4 * pages.abs().max().item()  # what fp32 knows of the exponential of hundreds
        c.close(got, far, label="scores in the hundreds", atol=atol)
    with c.part():
        even, loud = pages.clone(), 60 * q[:1]
        even[..., -1] = 1.0
        loud[:, 0, -1], loud[:, 1, -1] = 200.0, -400.0  # all of a head's scores up, or down
        got = c.call(loud, even, tables[:1], one, rank, 1.5)
        far = _expected(loud, even, tables[:1], one, rank, 1.5)
        atol = 1e-3 * even.abs().max().item()  # what fp32 knows of the exponential of a thousand
        c.close(got, far, label="a head far above 0, another far below", atol=atol)


def _expected(q, pages, tables, lengths, rank, scale):
    """Row by row in float64."""
    size, out = pages.shape[1], []
    for b, n in enumerate(lengths.tolist()):
        rows = [pages[int(tables[b, s // size]), s % size].double() for s in range(n)]
        scores = torch.stack([(q[b].double() * row).sum(-1) * scale for row in rows])
        weights = torch.exp(scores - scores.logsumexp(0))  # [n, H]
        out.append(sum(w[:, None] * row[:rank] for w, row in zip(weights, rows, strict=True)))
    return torch.stack(out).float()
