"""Rebuilding the shipped data, byte for byte: tokenizer, two shards, checksums."""

from __future__ import annotations

from pathlib import Path

from minids3.data import common_words, corpora
from minids3.data.files import (
    check_writable,
    read_checksums,
    verify_file,
    write_atomic,
    write_checksums,
)
from minids3.data.loading import TOKENIZER_FILE
from minids3.data.shards import shard_bytes, tokenize_documents
from minids3.data.tokenizer import Tokenizer, train_merges

__all__ = [
    "SPLIT_SIZES",
    "TOKENIZER_DOCUMENTS",
    "TOKENIZER_SEED",
    "VOCAB_SIZE",
    "build",
    "build_contents",
    "tokenizer_texts",
    "verify",
]

VOCAB_SIZE = 2048
TOKENIZER_DOCUMENTS = 12_000
# Split -> documents and seed; the tokenizer has a seed of its own.
SPLIT_SIZES = {"train": (17_000, 1), "validation": (900, 2)}
TOKENIZER_SEED = 3


def tokenizer_texts(n: int = TOKENIZER_DOCUMENTS) -> list[str]:
    """The texts the shipped tokenizer was trained on."""
    documents = corpora.mixture(n, TOKENIZER_SEED)
    return [document.text for document in documents] + common_words.texts()


def build_contents() -> dict[str, bytes]:
    """File name -> content of everything this command writes."""
    tokenizer = Tokenizer(train_merges(tokenizer_texts(), VOCAB_SIZE))
    contents = {TOKENIZER_FILE: tokenizer.to_json().encode()}
    for split, (n, seed) in SPLIT_SIZES.items():
        arrays = tokenize_documents(corpora.mixture(n, seed), tokenizer)
        contents[f"{split}.safetensors"] = shard_bytes(arrays, tokenizer, seed)
    return contents


def build(folder: Path) -> list[str]:
    """Write the data into a folder and return the names; other files there are kept.

    Raises:
        OSError: if it cannot be written; found out before the work where possible.
    """
    check_writable(folder)
    contents = build_contents()
    for name, content in contents.items():
        write_atomic(folder / name, content)
    write_checksums(folder, list(contents))
    return sorted(contents)


def verify(folder: Path) -> list[str]:
    """Check every listed file; its names, or DataError at the first that is missing or differs."""
    names = sorted(read_checksums(folder))
    for name in names:
        verify_file(folder, name)
    return names
