"""Packing: documents laid end to end and cut into rows, as in DeepSeek-V3's pre-training.

TR section 4.1: documents are packed, and attention is *not* masked at their borders. Nothing is
padded and nothing is lost but a tail shorter than a row. Rejected: one document a row, which pads
most of it.

An epoch lays the documents in a fresh random order and cuts rows of T + 1 tokens that overlap by
one, so every token but the first is predicted exactly once. A batch is a pure function of (seed,
step).
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import torch
from torch import Tensor

from minids3.data.loading import Split

__all__ = ["PackedBatches", "pack", "rows"]


def pack(split: Split, order: Tensor) -> Tensor:
    """The tokens of the documents in the given order [M], one after the other."""
    lengths = split.lengths()[order]
    starts = split.doc_starts[order]
    shift = torch.repeat_interleave(starts - (torch.cumsum(lengths, 0) - lengths), lengths)
    return split.tokens[torch.arange(int(lengths.sum())) + shift]


def rows(stream: Tensor, seq_len: int) -> tuple[Tensor, Tensor]:
    """Cut a stream [N] into inputs and targets [R, T], R = (N - 1) // T; targets are one ahead."""
    if seq_len < 1:
        raise ValueError(f"seq_len must be positive, got {seq_len}")
    count = (len(stream) - 1) // seq_len
    if count < 1:
        raise ValueError(f"{len(stream)} tokens are too few for one row of {seq_len} + 1")
    inputs = stream[: count * seq_len].view(count, seq_len)
    targets = stream[1 : count * seq_len + 1].view(count, seq_len)
    return inputs, targets


class PackedBatches:
    """Endless batches of packed rows.

    Args:
        split: the documents.
        batch_size: rows B of a batch.
        seq_len: predicted positions T of a row.
        seed: order of the documents.
        shuffle: False keeps the documents in their order (validation).

    Raises:
        TypeError: if a number is not a whole one.
        ValueError: if it is not positive, or the split is shorter than a row.
    """

    def __init__(
        self, split: Split, batch_size: int, seq_len: int, seed: int = 0, shuffle: bool = True
    ) -> None:
        numbers = {"batch_size": batch_size, "seq_len": seq_len, "seed": seed}
        for name, number in numbers.items():
            if not isinstance(number, int):
                raise TypeError(f"{name} must be a whole number, got {number!r}")
        if batch_size < 1 or seq_len < 1:
            raise ValueError(
                f"batch_size and seq_len must be positive, got {batch_size}, {seq_len}"
            )
        self.split, self.batch_size, self.seq_len = split, batch_size, seq_len
        self.seed, self.shuffle = seed, shuffle
        self.rows_per_epoch = (len(split.tokens) - 1) // seq_len
        if self.rows_per_epoch < 1:
            raise ValueError(
                f"split {split.name!r} has {len(split.tokens)} tokens, "
                f"too few for one row of {seq_len} + 1"
            )
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides the batches: every token, their order, and the cut."""
        settings = (self.batch_size, self.seq_len, self.seed, self.shuffle)
        digest = hashlib.sha256(repr(settings).encode())
        for tensor in (self.split.tokens, self.split.doc_starts):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        """Full batches in one epoch."""
        return self.rows_per_epoch // self.batch_size

    def _make_epoch(self, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        if self.shuffle:
            order = torch.randperm(self.split.n_documents, generator=generator)
            row_order = torch.randperm(self.rows_per_epoch, generator=generator)
        else:
            order = torch.arange(self.split.n_documents)
            row_order = torch.arange(self.rows_per_epoch)
        inputs, targets = rows(pack(self.split, order), self.seq_len)
        return inputs, targets, row_order

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets int64 [B, T] of a step: a pure function of seed and step."""
        if step < 0:
            raise ValueError(f"step must not be negative, got {step}")
        picked_inputs, picked_targets = [], []
        for number in range(step * self.batch_size, (step + 1) * self.batch_size):
            epoch, position = divmod(number, self.rows_per_epoch)
            inputs, targets, row_order = self._epoch(epoch)
            row = row_order[position]
            picked_inputs.append(inputs[row])
            picked_targets.append(targets[row])
        return torch.stack(picked_inputs).long(), torch.stack(picked_targets).long()
