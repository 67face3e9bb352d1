"""Loading what is shipped: tokenizer and splits, checked, and the floor of their loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minids3.data.corpora import ALL_DOMAINS
from minids3.data.files import data_dir, verify_file
from minids3.data.shards import Arrays, read_shard
from minids3.data.tokenizer import Tokenizer

__all__ = [
    "SPLITS",
    "TOKENIZER_FILE",
    "Split",
    "as_split",
    "entropy_floor",
    "load_split",
    "load_tokenizer",
]

SPLITS = ("train", "validation")
TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class Split:
    """Tokens int32 [N]; of M documents doc_starts int64, domain_ids int8, bits float64 [M]."""

    name: str
    tokens: Tensor
    doc_starts: Tensor
    domain_ids: Tensor
    bits: Tensor

    @property
    def n_documents(self) -> int:
        """Number of documents M."""
        return len(self.doc_starts)

    def document(self, index: int) -> Tensor:
        """Tokens of one document, <|bos|> and <|eos|> included; IndexError if there is none."""
        if not -self.n_documents <= index < self.n_documents:
            raise IndexError(f"document {index} of {self.n_documents}")
        index %= self.n_documents
        end = self.doc_starts[index + 1] if index + 1 < self.n_documents else len(self.tokens)
        return self.tokens[self.doc_starts[index] : end]

    def lengths(self) -> Tensor:
        """Tokens of each document, int64 [M]."""
        ends = torch.cat([self.doc_starts[1:], torch.tensor([len(self.tokens)])])
        return ends - self.doc_starts

    def only(self, domain: str) -> Split:
        """The documents of one domain."""
        if domain not in ALL_DOMAINS:
            raise ValueError(f"unknown domain {domain!r}: choose one of {', '.join(ALL_DOMAINS)}")
        keep = self.domain_ids == ALL_DOMAINS.index(domain)
        lengths = self.lengths()
        kept = lengths[keep]
        starts = torch.cumsum(kept, 0) - kept
        tokens = self.tokens[torch.repeat_interleave(keep, lengths)]
        return Split(
            f"{self.name}/{domain}", tokens, starts, self.domain_ids[keep], self.bits[keep]
        )


def as_split(name: str, arrays: Arrays) -> Split:
    """A shard's arrays as tensors."""
    return Split(
        name,
        torch.from_numpy(arrays.tokens.astype(np.int32)),
        torch.from_numpy(arrays.doc_starts.astype(np.int64)),
        torch.from_numpy(arrays.domain_ids.astype(np.int8)),
        torch.from_numpy(arrays.bits.astype(np.float64)),
    )


@lru_cache(maxsize=4)
def _tokenizer(path: Path, _checksum: str) -> Tokenizer:
    """One tokenizer for each content of a file: a rebuilt one is read anew."""
    return Tokenizer.load(path)


def load_tokenizer(folder: Path | str | None = None) -> Tokenizer:
    """The shipped tokenizer; DataError if its file is missing or damaged."""
    folder = Path(folder) if folder is not None else data_dir()
    checksum = verify_file(folder, TOKENIZER_FILE)
    return _tokenizer((folder / TOKENIZER_FILE).absolute(), checksum)


def load_split(
    name: str, folder: Path | str | None = None, tokenizer: Tokenizer | None = None
) -> Split:
    """Load "train" or "validation".

    Raises:
        ValueError: for another name.
        DataError: if the file is missing, its checksum is wrong, or it belongs to another
        tokenizer.
    """
    if name not in SPLITS:
        raise ValueError(f"unknown split {name!r}: choose one of {', '.join(SPLITS)}")
    folder = Path(folder) if folder is not None else data_dir()
    file = f"{name}.safetensors"
    verify_file(folder, file)
    arrays = read_shard(folder / file, tokenizer or load_tokenizer(folder))
    return as_split(name, arrays)


def entropy_floor(split: Split) -> float:
    """Surprisal of the split under the true grammar, in nats per predicted token.

    Every token but the first is predicted; <|bos|> and <|eos|> cost the grammar nothing. In
    expectation no model can have a lower mean loss on fresh documents; on one finite split a
    model may differ from it by chance only. A window that hides the beginning of a document can
    only raise a model's loss.

    Raises:
        ValueError: if the split has no token to predict.
    """
    if len(split.tokens) < 2:
        raise ValueError(f"split {split.name!r} has {len(split.tokens)} tokens: nothing to predict")
    return float(split.bits.sum()) * math.log(2) / (len(split.tokens) - 1)
