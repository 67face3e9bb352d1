"""What the module of depth k reads and what it predicts."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from minids3.course.registry import Alternative, Mutant, exercise


def mtp_targets(ids, targets, k):
    """Tokens that the MTP module of depth k embeds, and those it predicts.

    ids [B, T]: tokens 0 .. T-1 of a text
    targets [B, T]: the token after each of them, -100 where none counts
    returns tokens [B, T - k] and labels [B, T - k]: at position i the
    token i + k, and the token i + k + 1 (-100 where it does not count)
    """
    return ids[:, k:], targets[:, k:]


def _tokens_early(ids, targets, k):
    return ids[:, k - 1 : ids.shape[1] - 1], targets[:, k:]


def _labels_early(ids, targets, k):
    return ids[:, k:], targets[:, k - 1 : ids.shape[1] - 1]


def _labels_late(ids, targets, k):
    return ids[:, k:], F.pad(targets, (0, 1), value=-100)[:, k + 1 :]


def _leak(ids, targets, k):
    return targets[:, k:], targets[:, k:]


def _from_targets(ids, targets, k):
    return targets[:, k - 1 : ids.shape[1] - 1], targets[:, k:]


def _rolled(ids, targets, k):
    return torch.roll(ids, -k, 1), torch.roll(targets, -k, 1)


def _padded(ids, targets, k):
    return F.pad(ids[:, k:], (0, k)), F.pad(targets[:, k:], (0, k), value=-100)


def _cut_only(ids, targets, k):
    steps = ids.shape[1] - k
    return ids[:, :steps], targets[:, :steps]


def _always_one(ids, targets, k):
    return ids[:, 1:], targets[:, 1:]


def _gathered(ids, targets, k):
    place = torch.arange(ids.shape[1] - k) + k
    return ids.index_select(1, place), targets.index_select(1, place)


def _narrowed(ids, targets, k):
    steps = ids.shape[1] - k
    return torch.narrow(ids, 1, k, steps), torch.narrow(targets, 1, k, steps)


def _viewed(ids, targets, k):
    rows, steps = ids.shape
    flat = ids.view(-1), targets.view(-1)
    return flat[0].view(rows, steps)[:, k:], flat[1].view(rows, steps)[:, k:]


def _as_float(ids, targets, k):
    labels = torch.full(targets[:, k:].shape, -100.0)
    labels[:] = targets[:, k:]
    return ids[:, k:], labels


def _preallocated(ids, targets, k):
    rows, steps = ids.shape
    tokens = torch.empty(rows, steps - k, dtype=torch.int64)
    labels = torch.empty(rows, steps - k, dtype=torch.int64)
    for i in range(steps - k):
        tokens[:, i] = ids[:, i + k]
        labels[:, i] = targets[:, i + k]
    return tokens, labels


@exercise(
    "mtp-targets",
    solution=mtp_targets,
    notebook="06_multi_token_prediction",
    title="One place further",
    difficulty=2,
    importance=5,
    minutes=8,
    hints=(
        "Write the text as t0 t1 t2 t3 t4 and put T = 4. Which token is ids[0], which is "
        "targets[0]? For k = 1 and position 0: which token does the module get, which one must it "
        "name? For how many positions does the text still hold both?",
        "ids[i] is token i, so token i + k is ids[i + k]: ids from index k to the end\n"
        "targets[i] is token i + 1, so token i + k + 1 is targets[i + k]: the same cut\n"
        "both have T - k columns; nothing is padded, nothing wraps around",
    ),
    mutants=[
        Mutant(
            "tokens_early",
            _tokens_early,
            "The tokens come one place too early. Position i is to be told token i + k: the main "
            "model at i has already seen token i, and the module before this one token i + k - 1.",
        ),
        Mutant(
            "labels_early",
            _labels_early,
            "The labels come one place too early: token i + k is what the module is given, so "
            "predicting it would be copying. It predicts the one after.",
        ),
        Mutant(
            "labels_late",
            _labels_late,
            "The labels come one place too late and skip a token. targets[i] already is token "
            "i + 1: cutting k columns is enough.",
        ),
        Mutant(
            "leak",
            _leak,
            "You hand the module its own answer as input. Its loss would fall to zero and it could "
            "draft nothing, for in use that token does not exist yet.",
        ),
        Mutant(
            "from_targets",
            _from_targets,
            "The tokens to embed were taken from targets. An ignored target is -100 and no token; "
            "ids always holds the text itself.",
        ),
        Mutant(
            "rolled",
            _rolled,
            "A roll wraps around: the last positions got the tokens of the beginning. They have no "
            "token that far ahead and must be left off.",
        ),
        Mutant(
            "padded",
            _padded,
            "You kept T columns and filled the end up. The last k positions have no token that far "
            "ahead: leave them off, so that nothing is computed for them.",
        ),
        Mutant(
            "cut_only",
            _cut_only,
            "You cut the end off but did not shift: this trains the main model's task again, "
            "one token ahead.",
        ),
        Mutant(
            "always_one",
            _always_one,
            "You shifted by 1 whatever k is. The module of depth k looks k places further.",
        ),
        Mutant(
            "layout",
            _viewed,
            "Your code needs contiguous inputs, and slices of a text are not: slice, or use "
            "reshape.",
        ),
        Mutant(
            "as_float",
            _as_float,
            "Your labels are floats. Tokens are numbers of rows of a table: int64.",
        ),
    ],
    alternatives=[
        Alternative("gathered", _gathered),
        Alternative("narrowed", _narrowed),
        Alternative("preallocated", _preallocated),
    ],
)
def check_mtp_targets(c):
    """Both cuts against a walk over the text, ignored targets, the last depth that fits."""
    rows, steps = c.size(2, 3), c.size(6, 9)
    text = c.rand(rows, steps + 1).argsort(1) + 10  # no token twice: a wrong one cannot hide
    ids, targets = text[:, :-1], text[:, 1:]
    got = c.call(ids, targets, 1, label=f"runs on ids {[rows, steps]}, k = 1", returns=2)
    with c.part():
        c.shape(got[0], (rows, steps - 1), "for k = 1, tokens")
        c.shape(got[1], (rows, steps - 1), "for k = 1, labels")
        c.equal(got[0], _walk(text, 1), label="for k = 1, position i gets token i + 1")
        c.equal(got[1], _walk(text, 2), label="for k = 1, position i predicts token i + 2")
    with c.part():
        got = c.call(ids, targets, 2, returns=2)
        c.equal(got[0], _walk(text, 2)[:, : steps - 2], label="for k = 2, it gets token i + 2")
        c.equal(got[1], _walk(text, 3), label="for k = 2, it predicts token i + 3")
    with c.part():
        masked = targets.clone()
        masked[0, 2:4] = -100
        got = c.call(ids, masked, 1, returns=2)
        c.equal(got[0], _walk(text, 1), label="with ignored targets, tokens are still the text's")
        label = "and the labels are ignored just where the targets were"
        kept = [[int(masked[r, i + 1]) for i in range(steps - 1)] for r in range(rows)]
        c.equal(got[1], torch.tensor(kept), label=label)
    with c.part():
        got = c.call(ids, targets, steps - 1, returns=2)
        label = "for k = T - 1 one position is left, the first"
        c.equal(torch.cat((got[0], got[1]), 1), text[:, -2:], label=label)
    with c.part():
        row = torch.tensor([[5, 6, 7, 8, 9]])
        told, labels = c.call(row[:, :-1], row[:, 1:], 1, returns=2)
        c.equal(told, row[:, 1:-1], label="the example of the text: told [[6, 7, 8]]")
        c.equal(labels, row[:, 2:], label="and labels [[7, 8, 9]]")
        c.dtype(labels, torch.int64, "a tensor of labels")


def _walk(text, ahead):
    """Token i + ahead of each row, for the positions i = 0 .. T - max(ahead - 1, 1) - 1."""
    steps = text.shape[1] - 1
    last = steps - (ahead if ahead == 1 else ahead - 1)
    return torch.tensor([[int(row[i + ahead]) for i in range(last)] for row in text])
