"""Rows to train on long texts with: a text with needles, its questions, and ordinary documents.

What DeepSeek-V3's extension was trained on is not published. Here every row begins with one long
text of the kind that is tested, keys, numbers and hay drawn anew, and all its needles are asked for
in random order; the rest of the row are documents of the stream, so that short texts are not
forgotten.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

import torch
from torch import Tensor

from minids3.data.corpora import notes
from minids3.data.fresh import FreshBatches
from minids3.data.tokenizer import Tokenizer
from minids3.evals.needle import draw_haystack

__all__ = ["LongRows"]


class LongRows:
    """Batches of rows with a long text each: a pure function of seed and step.

    Args:
        tokenizer: turns texts into ids.
        batch_size: rows B.
        seq_len: predicted positions T of a row.
        seed: another seed, other rows.
        n_needles: of each long text.
        held_out: texts that must not occur among the ordinary documents.

    Raises:
        ValueError: a size below 1, or rows too short for the needles and their questions.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        batch_size: int,
        seq_len: int,
        seed: int = 0,
        n_needles: int = 4,
        held_out: Iterable[str] = (),
    ) -> None:
        self.tokenizer, self.batch_size, self.seq_len = tokenizer, batch_size, seq_len
        self.seed, self.n_needles = seed, n_needles
        self.fresh = FreshBatches(tokenizer, batch_size, seq_len, seed=seed, held_out=held_out)
        if seq_len < 100 * n_needles:
            raise ValueError(
                f"rows of {seq_len} are too short for {n_needles} needles and their questions: "
                f"take at least {100 * n_needles} positions"
            )

    def row(self, number: int) -> Tensor:
        """Ids int64 ``[T + 1]`` of a row."""
        rng = random.Random(f"long rows:{self.seed}:{self.seq_len}:{number}")
        ids = self._long_text(rng, rng.randint(self.seq_len // 2, self.seq_len))
        documents = self.fresh.documents(-1 - number)  # chunks that no batch of the stream uses
        while len(ids) <= self.seq_len:
            ids += self.tokenizer.encode(next(documents).text, bos=True, eos=True)
        return torch.tensor(ids[: self.seq_len + 1])

    def _long_text(self, rng: random.Random, length: int) -> list[int]:
        """At most ``length`` ids: hay, needles, and a question with its answer for every needle."""
        asked = 14 * (self.n_needles - 1)  # draw_haystack leaves room for the first one
        hay = draw_haystack(self.tokenizer, length - asked - 2, rng, self.n_needles)
        ids = hay.ids.tolist()
        pairs = list(zip(hay.keys, hay.values, strict=True))
        rng.shuffle(pairs)
        ids += self.tokenizer.encode(notes.AGAIN)
        for key, value in pairs:
            ids += self.tokenizer.encode(notes.needle(key, value))
        return [*ids, self.tokenizer.eos_id]

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets int64 ``[B, T]`` of a step."""
        first = step * self.batch_size
        rows = torch.stack([self.row(first + i) for i in range(self.batch_size)])
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
