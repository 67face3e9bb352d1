"""As much fresh text as a run needs: documents drawn on the fly.

The grammars can write for ever, so a long run goes over nothing twice; what is written again, such
as a small sum, is so by the grammar's own chance. The stream is cut into
*chunks*, each drawn from a seed of its own and cut into a fixed number of rows: row 1,000,000 is
there at once, without the rows before it, which is what resuming and many readers at once need.

Held out by construction: a document whose text stands in the validation split is drawn again.
Validation documents have probability P(V) under the grammar, a sum over their exact surprisals, so
every other document is 1 / (1 - P(V)) times as likely here, and the floor stays exact.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache

import torch
from torch import Tensor

from minids3.data import corpora
from minids3.data.corpora import STREAM_PROBABILITIES, Document
from minids3.data.loading import Split, as_split
from minids3.data.shards import tokenize_documents
from minids3.data.tokenizer import Tokenizer

__all__ = ["VALIDATION_SEED", "FreshBatches", "stream_validation"]

VALIDATION_SEED = 2  # of the shipped split as well
ROWS_PER_CHUNK = 64


def stream_validation(
    tokenizer: Tokenizer,
    n: int = 900,
    probabilities: Mapping[str, float] = STREAM_PROBABILITIES,
    seed: int = VALIDATION_SEED,
) -> tuple[Split, frozenset[str]]:
    """Documents of the stream's mixture to validate on, and their texts, for ``held_out``."""
    rng = random.Random(f"stream validation:{seed}")
    documents = [corpora.draw(rng, probabilities) for _ in range(n)]
    split = as_split("validation", tokenize_documents(documents, tokenizer))
    return split, frozenset(document.text for document in documents)


class FreshBatches:
    """Endless batches of packed rows; a pure function of seed, row number and held-out texts.

    Args:
        tokenizer: turns documents into ids.
        batch_size: rows B of what ``batch`` gives.
        seq_len: predicted positions T of a row.
        seed: another seed, other documents.
        held_out: texts that must not occur.
        probabilities: of the domains, summing to one.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        batch_size: int,
        seq_len: int,
        seed: int = 0,
        held_out: Iterable[str] = (),
        probabilities: Mapping[str, float] = STREAM_PROBABILITIES,
    ) -> None:
        if batch_size < 1 or seq_len < 1:
            raise ValueError(
                f"batch_size and seq_len must be positive, got {batch_size}, {seq_len}"
            )
        total = math.fsum(probabilities.values())
        if abs(total - 1) > 1e-9 or min(probabilities.values()) <= 0:
            raise ValueError(f"probabilities must be positive and sum to 1, got {total}")
        self.tokenizer, self.batch_size, self.seq_len, self.seed = (
            tokenizer, batch_size, seq_len, seed,
        )  # fmt: skip
        self.probabilities = dict(probabilities)
        self.held_out = frozenset(held_out)
        self._chunk = lru_cache(maxsize=4)(self._make_chunk)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides the rows; of the generators, of the first rows they wrote."""
        first_rows = hashlib.sha256(self._chunk(0)[0].numpy().tobytes()).hexdigest()
        what = [first_rows, self.tokenizer.checksum, self.seq_len, self.seed, ROWS_PER_CHUNK]
        texts = sorted(hashlib.sha256(text.encode()).hexdigest() for text in self.held_out)
        return hashlib.sha256(repr((what, self.probabilities, texts)).encode()).hexdigest()

    def documents(self, chunk: int) -> Iterator[Document]:
        """The documents of a chunk, without end; those held out are left out."""
        rng = random.Random(f"fresh:{self.seed}:{chunk}")
        while True:
            document = corpora.draw(rng, self.probabilities)
            if document.text not in self.held_out:
                yield document

    def _make_chunk(self, chunk: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets ``[ROWS_PER_CHUNK, T]``; what is left of the last document goes."""
        wanted, parts, found = ROWS_PER_CHUNK * self.seq_len + 1, [], 0
        documents = self.documents(chunk)
        while found < wanted:
            some = [next(documents) for _ in range(64)]
            parts.append(
                torch.from_numpy(tokenize_documents(some, self.tokenizer).tokens.astype("int64"))
            )
            found += len(parts[-1])
        stream = torch.cat(parts)
        return (
            stream[: wanted - 1].view(ROWS_PER_CHUNK, self.seq_len),
            stream[1:wanted].view(ROWS_PER_CHUNK, self.seq_len),
        )

    def rows(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets int64 ``[count, T]`` of rows ``first`` to ``first + count - 1``."""
        if first < 0 or count < 1:
            raise ValueError(f"need first >= 0 and count >= 1, got {first}, {count}")
        picked = []
        for number in range(first, first + count):
            chunk, row = divmod(number, ROWS_PER_CHUNK)
            inputs, targets = self._chunk(chunk)
            picked.append((inputs[row], targets[row]))
        return torch.stack([row for row, _ in picked]), torch.stack([row for _, row in picked])

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets int64 ``[B, T]`` of a step."""
        return self.rows(step * self.batch_size, self.batch_size)

    def floor(self, n_chunks: int = 16) -> float:
        """Surprisal of the stream in nats per token, over the whole documents of some chunks.

        The held-out documents' share is given to the others, by their exact surprisals.
        """
        shift = math.log1p(-self.held_out_probability())
        nats, tokens = 0.0, 0
        for chunk in range(n_chunks):
            documents = self.documents(chunk)
            some = [next(documents) for _ in range(256)]
            nats += sum(d.bits * math.log(2) + shift for d in some)
            tokens += len(tokenize_documents(some, self.tokenizer).tokens)
        return nats / tokens

    def held_out_probability(self) -> float:
        """P(V), how likely the grammar is to write one of the held-out texts."""
        return math.fsum(self._probability(text) for text in self.held_out)

    def _probability(self, text: str) -> float:
        for domain, probability in self.probabilities.items():
            try:
                return probability * 2.0 ** -corpora.score(domain, text)
            except ValueError:
                continue
        return 0.0
