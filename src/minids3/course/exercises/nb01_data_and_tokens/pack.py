"""Pack documents into rows of inputs and targets."""

from __future__ import annotations

import torch

from minids3.course.checker import Checker
from minids3.course.registry import Alternative, Mutant, exercise


def pack_documents(documents, seq_len):
    """Lay documents end to end and cut rows for next-token prediction.

    documents: list of int64 tensors, each [n_i]; seq_len: T
    returns inputs [R, T] and targets [R, T], R as large as the tokens allow;
    the target of a position is the token after it, and a short tail is dropped
    """
    stream = torch.cat(documents)
    rows = (len(stream) - 1) // seq_len
    inputs = stream[: rows * seq_len].view(rows, seq_len)
    targets = stream[1 : rows * seq_len + 1].view(rows, seq_len)
    return inputs, targets


def _unshifted(documents, seq_len):
    inputs, _ = pack_documents(documents, seq_len)
    return inputs, inputs.clone()


def _backwards(documents, seq_len):
    inputs, targets = pack_documents(documents, seq_len)
    return targets, inputs


def _roll_rows(documents, seq_len):
    inputs, _ = pack_documents(documents, seq_len)
    return inputs, inputs.roll(-1, dims=1)


def _roll_stream(documents, seq_len):
    stream = torch.cat(documents)
    rows = len(stream) // seq_len
    shifted = stream.roll(-1)
    return (
        stream[: rows * seq_len].view(rows, seq_len),
        shifted[: rows * seq_len].view(rows, seq_len),
    )


def _chunks_apart(documents, seq_len):
    stream = torch.cat(documents)
    rows = len(stream) // (seq_len + 1)
    chunks = stream[: rows * (seq_len + 1)].view(rows, seq_len + 1)
    return chunks[:, :-1], chunks[:, 1:]


def _one_document_a_row(documents, seq_len):
    rows = torch.zeros(len(documents), seq_len + 1, dtype=torch.int64)
    for row, document in zip(rows, documents, strict=True):
        kept = document[: seq_len + 1]
        row[: len(kept)] = kept
    return rows[:, :-1], rows[:, 1:]


def _pack_with_unfold(documents, seq_len):
    stream = torch.cat(documents)
    if len(stream) <= seq_len:
        return stream.new_empty(0, seq_len), stream.new_empty(0, seq_len)
    windows = stream.unfold(0, seq_len + 1, seq_len)
    return windows[:, :seq_len], windows[:, 1:]


def _pack_row_by_row(documents, seq_len):
    flat = [i for document in documents for i in document.tolist()]
    inputs, targets = [], []
    for start in range(0, len(flat) - seq_len, seq_len):
        inputs.append(flat[start : start + seq_len])
        targets.append(flat[start + 1 : start + seq_len + 1])
    shape = (-1, seq_len) if inputs else (0, seq_len)
    return torch.tensor(inputs).long().view(shape), torch.tensor(targets).long().view(shape)


def _not_empty(documents, seq_len):
    stream = torch.cat(documents)
    rows = max(1, (len(stream) - 1) // seq_len)
    return stream[: rows * seq_len].view(rows, -1), stream[1 : rows * seq_len + 1].view(rows, -1)


def _padded(documents, seq_len):
    stream = torch.cat(documents)
    rows = -(-(len(stream) - 1) // seq_len)
    stream = torch.cat((stream, torch.zeros(seq_len + 1, dtype=torch.int64)))
    inputs = stream[: rows * seq_len].view(rows, seq_len)
    return inputs, stream[1 : rows * seq_len + 1].view(rows, seq_len)


def _short_dropped(documents, seq_len):
    kept = [document for document in documents if len(document) >= seq_len]
    return pack_documents(kept or [torch.zeros(0, dtype=torch.int64)], seq_len)


def _preallocated(documents, seq_len):
    stream = torch.cat(documents)
    rows = (stream.numel() - 1) // seq_len
    inputs = torch.empty(rows, seq_len, dtype=torch.int64)
    targets = torch.empty_like(inputs)
    for r in range(rows):
        inputs[r] = stream[r * seq_len : (r + 1) * seq_len]
        targets[r] = stream[r * seq_len + 1 : (r + 1) * seq_len + 1]
    return inputs, targets


@exercise(
    "pack-documents",
    solution=pack_documents,
    notebook="01_data_and_tokens",
    title="Pack documents into rows",
    difficulty=2,
    importance=5,
    minutes=10,
    hints=(
        "Write the stream 0 1 2 3 4 5 6 7 8 on paper and cut it for T = 4. Which token is the "
        "target of 3, the last input of the first row? In which row is it an input?",
        """
        stream  = all documents, concatenated                       [N]
        R       = how many rows of T inputs fit if one token must be left as a target
        inputs  = the first R * T tokens as [R, T]
        targets = R * T tokens again, beginning one later, as [R, T]
        """,
    ),
    mutants=[
        Mutant(
            "unshifted",
            _unshifted,
            "Your targets are the inputs. A model that may look at the token it has to predict "
            "learns to copy: the target is the token after.",
        ),
        Mutant(
            "backwards",
            _backwards,
            "You predict the token before. The target at a position is the token after it.",
        ),
        Mutant(
            "roll_rows",
            _roll_rows,
            "You rolled each row, so its last target is the row's own first token. The right one "
            "is the first token of the next row.",
        ),
        Mutant(
            "roll_stream",
            _roll_stream,
            "You rolled the whole stream: when it fills the rows exactly, the last target is the "
            "first token of all. The last token has no successor, so R = (N - 1) // T.",
        ),
        Mutant(
            "chunks_apart",
            _chunks_apart,
            "You cut pieces of T + 1 that do not overlap. The last token of each is never an "
            "input, so one prediction in T + 1 is thrown away.",
        ),
        Mutant(
            "one_document_a_row",
            _one_document_a_row,
            "You gave each document a row of its own and filled the rest with padding. Packing "
            "lays them end to end; a row may begin in the middle of a document.",
        ),
        Mutant(
            "padded",
            _padded,
            "You filled the last row up with padding. A tail that is too short for a whole row is "
            "dropped.",
        ),
        Mutant(
            "short_dropped",
            _short_dropped,
            "You left out documents that are shorter than a row. They are laid end to end like "
            "the others; only the stream's own tail is dropped.",
        ),
        Mutant(
            "not_empty",
            _not_empty,
            "Too few tokens for a row make no row: shape [0, T]. You made one all the same.",
        ),
    ],
    alternatives=[
        Alternative("with_unfold", _pack_with_unfold),
        Alternative("row_by_row", _pack_row_by_row),
        Alternative("preallocated", _preallocated),
    ],
)
def check_pack_documents(c: Checker) -> None:
    """Shapes, values, the seam between rows, and streams that fit exactly."""
    lengths = [3, *(c.size(3, 9) for _ in range(3)), 12]  # the first is shorter than a row
    documents = [c.randint(0, 129_280, n) for n in lengths]
    documents.insert(0, documents[2])  # the same text may occur twice
    stream = torch.cat(documents)
    t = c.size(4, 5)
    rows = (len(stream) - 1) // t
    out = c.call(documents, t, returns=2, label=f"runs on {len(documents)} documents, T = {t}")
    inputs, targets = out
    c.shape(inputs, (rows, t), "inputs")
    c.shape(targets, (rows, t), "targets")
    c.dtype(inputs, torch.int64, "inputs")
    c.equal(inputs, stream[: rows * t].view(rows, t), label="inputs are the stream, row by row")
    with c.part():
        same = targets[:, :-1] == inputs[:, 1:]
        c.true(same.all(), "inside a row, a target is the next input", "some are not")
    with c.part():
        seam = targets[:-1, -1] == inputs[1:, 0]
        c.true(seam.all(), "the last target of a row opens the next row", "some do not")
    with c.part():
        out = c.call([torch.arange(5), torch.arange(5, 8)], 4, returns=2)
        c.equal(out[0], torch.tensor([[0, 1, 2, 3]]), label="8 tokens and T = 4 make one row only")
        c.equal(out[1], torch.tensor([[1, 2, 3, 4]]), label="whose targets are 1 2 3 4")
    with c.part():
        out = c.call([torch.arange(9)], 4, returns=2)
        expected = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
        c.equal(out[1], expected, label="9 tokens make two rows: none is wasted")
    with c.part():
        few = c.randint(200, 1700, t)
        out = c.call([few[:2], few[2:]], t, returns=2)
        c.shape(out[0], (0, t), label=f"{t} tokens and T = {t} make no row: inputs are [0, {t}]")
        c.shape(out[1], (0, t), label=f"and targets are [0, {t}]")
