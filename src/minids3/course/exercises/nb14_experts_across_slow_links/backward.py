"""The backward pass of an exchange between all."""

from __future__ import annotations

import torch

from minids3.course.registry import Alternative, Mutant, exercise


# fmt: off
def exchange_backward(grads, sent):
    """The gradient of an all-to-all, for all processes at once.

    sent: R x R list of ints; process i sent sent[i][j] rows to process j
    Each process sent its rows in the order of their destinations and got
    rows in the order of their senders.
    grads: list of R tensors [rows got, D]: gradient of what each GOT
    returns a list of R tensors [rows sent, D]: gradient of what each SENT
    """
    ranks = range(len(sent))
    parts = [grads[j].split([sent[i][j] for i in ranks]) for j in ranks]
    return [torch.cat([parts[j][i] for j in ranks]) for i in ranks]
# fmt: on


def _parts(grads, sent):
    ranks = range(len(sent))
    return ranks, [grads[j].split([sent[i][j] for i in ranks]) for j in ranks]


def _unchanged(grads, sent):
    return [g.clone() for g in grads]


def _same_way(grads, sent):
    ranks = range(len(sent))
    parts = [grads[i].split([sent[i][j] for j in ranks]) for i in ranks]
    return [torch.cat([parts[i][j] for i in ranks]) for j in ranks]


def _same_way_sliced(grads, sent):
    out = [[] for _ in sent]
    for grad, row in zip(grads, sent, strict=True):
        at = 0
        for j, n in enumerate(row):
            out[j].append(grad[at : at + n])
            at += n
    return [torch.cat(rows) for rows in out]


def _last_first(grads, sent):
    ranks, parts = _parts(grads, sent)
    return [torch.cat([parts[j][i] for j in reversed(ranks)]) for i in ranks]


def _rows_reversed(grads, sent):
    ranks, parts = _parts(grads, sent)
    return [torch.cat([parts[j][i].flip(0) for j in ranks]) for i in ranks]


def _mean(grads, sent):
    return [g / len(sent) for g in exchange_backward(grads, sent)]


def _own_lost(grads, sent):
    ranks, parts = _parts(grads, sent)
    return [
        torch.cat([parts[j][i] if i != j else torch.zeros_like(parts[j][i]) for j in ranks])
        for i in ranks
    ]


def _others_first(grads, sent):
    ranks, parts = _parts(grads, sent)
    return [torch.cat([parts[j][i] for j in sorted(ranks, key=lambda j: j == i)]) for i in ranks]


def _summed(grads, sent):
    ranks, parts = _parts(grads, sent)
    return [torch.stack([parts[j][i].sum(0) for j in ranks]) for i in ranks]


def _offsets(grads, sent):
    table = torch.tensor(sent)
    starts = table.cumsum(0) - table  # in what j got: where i's rows begin
    out = []
    for i, row in enumerate(sent):
        rows = [grads[j][int(starts[i, j]) :][:n] for j, n in enumerate(row)]
        out.append(torch.cat(rows))
    return out


def _one_tensor(grads, sent):
    table = torch.tensor(sent)
    got = [(j, i) for j in range(len(sent)) for i in range(len(sent))]
    lengths = torch.tensor([sent[i][j] for j, i in got])
    sender = torch.tensor([i for _, i in got]).repeat_interleave(lengths)
    order = sender.argsort(stable=True)  # by sender; within it by receiver
    return list(torch.cat(grads)[order].split(table.sum(1).tolist()))


@exercise(
    "ep-backward",
    solution=exchange_backward,
    notebook="14_experts_across_slow_links",
    title="The way back",
    difficulty=2,
    importance=4,
    minutes=10,
    hints=(
        "Row 5 of what process 2 got came from somewhere. Whose gradient is its gradient? If "
        "everybody sends gradients back to where the rows came from, what kind of exchange is "
        "that, and what has become of the send counts?",
        "cut what j got into stretches by sender: sent[0][j], sent[1][j], ... rows\n"
        "process i gets its stretch back from every j\n"
        "put together in the order in which i had sent: by destination j",
    ),
    mutants=[
        Mutant(
            "unchanged",
            _unchanged,
            "You left the gradients where they are. The rows moved, so their gradients have to "
            "move back.",
        ),
        Mutant(
            "same_way",
            _same_way,
            "You repeated the forward exchange. What process j got from i has sent[i][j] rows and "
            "goes back to i: rows and columns of `sent` change places.",
        ),
        Mutant(
            "same_way_sliced",
            _same_way_sliced,
            "You cut the gradients as the tokens had been cut. Here process j holds sent[i][j] "
            "rows that came from i, one stretch for each i, and they go back there.",
        ),
        Mutant(
            "last_first",
            _last_first,
            "The stretches are in reverse. Process i had sent those for process 0 first.",
        ),
        Mutant(
            "rows_reversed",
            _rows_reversed,
            "Within a stretch the rows keep their order; you reversed them.",
        ),
        Mutant(
            "mean",
            _mean,
            "You divided by the number of processes. An exchange moves rows; it adds nothing up, "
            "so there is nothing to average.",
        ),
        Mutant(
            "own_lost",
            _own_lost,
            "The rows that a process sent to itself have lost their gradient.",
        ),
        Mutant(
            "others_first",
            _others_first,
            "You put a process's own rows last. They have their place in the row like all others.",
        ),
        Mutant(
            "summed",
            _summed,
            "You added up the rows of each stretch. Every row that was sent has a gradient of "
            "its own.",
        ),
    ],
    alternatives=[
        Alternative("offsets", _offsets),
        Alternative("one_tensor", _one_tensor),
    ],
)
def check_exchange_backward(c):
    """Uneven, equal, turned and empty stretches, one process, the definition of a gradient."""
    ranks, width = c.size(3, 4), c.size(3, 5)
    sent = c.randint(1, 6, ranks, ranks)
    sent += torch.arange(ranks)[:, None] + 3 * torch.arange(ranks)
    sent = sent.tolist()
    grads = _grads(c, sent, width)
    got = c.call(grads, sent, label=f"runs on {ranks} processes, returns a list")
    c.equal([list(g.shape) for g in got], [[sum(row), width] for row in sent], label="shapes")
    c.close(list(got), _expected(grads, sent), label="every row's gradient is back at its sender")
    with c.part():
        rows = [c.randn(sum(row), width) for row in sent]
        there = [torch.cat([rows[i].split(sent[i])[j] for i in range(ranks)]) for j in range(ranks)]
        one = sum((a * b).sum() for a, b in zip(there, grads, strict=True))
        two = sum((a * b).sum() for a, b in zip(rows, got, strict=True))
        c.close(two, one, label="<sent there, grad> = <sent, grad back>", rtol=1e-3, atol=1e-3)
    with c.part():
        even = [[2] * ranks] * ranks
        grads = _grads(c, even, width)
        got = list(c.call(grads, even))
        c.close(got, _expected(grads, even), label="equal stretches")
    with c.part():
        turned = [[1 + (j - i) % ranks for j in range(ranks)] for i in range(ranks)]
        grads = _grads(c, turned, width)
        got = list(c.call(grads, turned))
        label = "everybody got as many rows as it sent, in other stretches"
        c.close(got, _expected(grads, turned), label=label)
    with c.part():
        holes = [[n if (i + j) % 2 else 0 for j, n in enumerate(row)] for i, row in enumerate(sent)]
        holes[0] = [0] * ranks  # a process without tokens
        grads = _grads(c, holes, width)
        got = list(c.call(grads, holes))
        c.close(got, _expected(grads, holes), label="empty stretches, and a process without tokens")
    with c.part():
        wide = [g.double() / 3 for g in _grads(c, sent, width)]
        got = list(c.call(wide, sent))
        label = "float64 stays float64"
        c.close(got, _expected(wide, sent), label=label, rtol=1e-14, atol=0)
    with c.part():
        alone = c.randn(4, width)
        c.close(list(c.call([alone], [[4]])), [alone], label="one process: nothing moves")


def _grads(c, sent, width):
    return [c.randn(sum(row[j] for row in sent), width) for j in range(len(sent))]


def _expected(grads, sent):
    """Row by row: take the next unread row of whoever got it."""
    back = [[] for _ in sent]
    for j, grad in enumerate(grads):
        senders = [i for i, row in enumerate(sent) for _ in range(row[j])]
        for i, row in zip(senders, grad, strict=True):
            back[i].append(row)
    width = grads[0].shape[1]
    return [torch.stack(rows) if rows else torch.zeros(0, width) for rows in back]
