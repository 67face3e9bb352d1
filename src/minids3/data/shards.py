"""Shards: tokenised documents in one safetensors file, where they begin, what they are worth.

Layout, N tokens and M documents; every document is <|bos|> text <|eos|>:
    tokens      uint16 [N] (int32 where the vocabulary is larger)
    doc_starts  int32 [M]   offset of each <|bos|>
    domain_ids  uint8 [M]   index into ALL_DOMAINS
    bits        float64 [M] exact surprisal of the document, its domain's choice included
Metadata: generator and tokenizer versions, so that a shard read with another vocabulary is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from minids3.data import corpora
from minids3.data.corpora import ALL_DOMAINS, Document
from minids3.data.files import REBUILD, DataError, write_atomic
from minids3.data.tokenizer import Tokenizer

__all__ = ["FORMAT", "Arrays", "read_shard", "shard_bytes", "tokenize_documents", "write_shard"]

FORMAT = "minids3-shard-1"
# Array -> the dtypes it may have.
LAYOUT = {
    "tokens": (np.uint16, np.int32),
    "doc_starts": (np.int32,),
    "domain_ids": (np.uint8,),
    "bits": (np.float64,),
}


@dataclass(frozen=True)
class Arrays:
    """The arrays of a shard, see the module's docstring."""

    tokens: np.ndarray
    doc_starts: np.ndarray
    domain_ids: np.ndarray
    bits: np.ndarray


def tokenize_documents(documents: Iterable[Document], tokenizer: Tokenizer) -> Arrays:
    """Encode documents as <|bos|> text <|eos|>, one after the other."""
    documents = list(documents)
    if not documents:
        raise ValueError("a shard needs at least one document")
    encoded = tokenizer.encode_batch([document.text for document in documents])
    lengths = np.array([len(ids) + 2 for ids in encoded])
    flat = np.fromiter(
        (i for ids in encoded for i in (tokenizer.bos_id, *ids, tokenizer.eos_id)),
        dtype=np.int64,
        count=int(lengths.sum()),
    )
    narrow = np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32
    return Arrays(
        tokens=flat.astype(narrow),
        doc_starts=np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int32),
        domain_ids=np.array([ALL_DOMAINS.index(d.domain) for d in documents], dtype=np.uint8),
        bits=np.array([d.bits for d in documents], dtype=np.float64),
    )


def shard_bytes(arrays: Arrays, tokenizer: Tokenizer, seed: int) -> bytes:
    """The file's content."""
    # One key only: safetensors writes several in an order that changes from run to run.
    note = f"{FORMAT};generator={corpora.VERSION};seed={seed};tokenizer={tokenizer.checksum}"
    return save(
        {
            "tokens": arrays.tokens,
            "doc_starts": arrays.doc_starts,
            "domain_ids": arrays.domain_ids,
            "bits": arrays.bits,
        },
        metadata={"minids3": note},
    )


def write_shard(path: Path, arrays: Arrays, tokenizer: Tokenizer, seed: int) -> None:
    """Write a shard, at once or not at all."""
    write_atomic(path, shard_bytes(arrays, tokenizer, seed))


def read_shard(path: Path, tokenizer: Tokenizer) -> Arrays:
    """Read a shard.

    Raises:
        DataError: if it is missing, not a shard, damaged, or was made with another tokenizer.
    """
    if not path.is_file():
        raise DataError(f"data file {path.name} is missing from {path.parent}: run '{REBUILD}'")
    try:
        with safe_open(path, framework="np") as file:
            note = (file.metadata() or {}).get("minids3", "")
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # the package raises a dozen kinds for files it cannot read
        raise DataError(f"{path.name} cannot be read ({error}): run '{REBUILD}'") from None
    made_with = re.fullmatch(rf"{FORMAT};(?:[^;]*;)*tokenizer=([0-9a-f]{{64}})", note)
    if made_with is None:
        raise DataError(f"{path.name} is not a shard of format {FORMAT}: run '{REBUILD}'")
    if made_with[1] != tokenizer.checksum:
        raise DataError(
            f"wrong vocabulary: {path.name} was made with tokenizer {made_with[1][:12]}..., but "
            f"the one given is {tokenizer.checksum[:12]}...; use the tokenizer.json beside it or "
            f"run '{REBUILD}'"
        )
    wrong = _fault(found, tokenizer)
    if wrong:
        raise DataError(f"{path.name} is damaged, {wrong}: run '{REBUILD}'")
    return Arrays(**found)


def _fault(found: dict[str, np.ndarray], tokenizer: Tokenizer) -> str:
    """What contradicts the layout in the module's docstring; empty if nothing does."""
    if set(found) != set(LAYOUT):
        return f"it holds {', '.join(sorted(found)) or 'nothing'} instead of {', '.join(LAYOUT)}"
    for name, dtypes in LAYOUT.items():
        array = found[name]
        if array.ndim != 1 or array.dtype not in dtypes or len(array) == 0:
            return f"{name} is {array.dtype} {list(array.shape)}"
    tokens, starts = found["tokens"], found["doc_starts"].astype(np.int64)
    if not len(starts) == len(found["domain_ids"]) == len(found["bits"]):
        return "its arrays differ in their number of documents"
    if starts[0] != 0 or np.any(np.diff(starts) < 2) or starts[-1] > len(tokens) - 2:
        return "doc_starts do not cut the tokens into documents"
    if tokens.min() < 0 or tokens.max() >= tokenizer.vocab_size:
        return f"tokens lie outside the vocabulary of {tokenizer.vocab_size}"
    if np.any(tokens[starts] != tokenizer.bos_id) or np.any(
        tokens[np.append(starts[1:], len(tokens)) - 1] != tokenizer.eos_id
    ):
        return "a document does not begin with <|bos|> and end with <|eos|>"
    if found["domain_ids"].max() >= len(ALL_DOMAINS):
        return "domain_ids name a domain that does not exist"
    if not np.all(np.isfinite(found["bits"]) & (found["bits"] >= 0)):
        return "bits hold what is no surprisal"
    return ""
