"""Real text: any file or folder, and the running Python's standard library (no download)."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import numpy as np

from minids3.data.files import DataError
from minids3.data.loading import Split, as_split
from minids3.data.shards import Arrays
from minids3.data.tokenizer import Tokenizer

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py", ".json", ".csv", ".html", ".tex", ".toml", ".yaml")


def load_text(path: str | Path, suffixes: tuple[str, ...] = TEXT_SUFFIXES) -> list[str]:
    """The documents of a text file (one) or a folder (one a file, by path, searched deeply).

    Raises:
        DataError: if there is no such path, no text file in it, or the file is not UTF-8.
    """
    path = Path(path)
    if path.is_file():
        try:
            return [path.read_text(encoding="utf-8")]
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path.name} is not UTF-8 text (byte {error.start}): convert it first"
            ) from None
    if not path.is_dir():
        raise DataError(f"no such file or folder: {path}")
    documents = []
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.suffix in suffixes:
            try:
                documents.append(file.read_text(encoding="utf-8"))
            except UnicodeDecodeError:
                continue  # in a folder, a stray file in another encoding is skipped
    if not documents:
        raise DataError(f"no text file ({', '.join(suffixes)}) in {path}")
    return documents


def standard_library(max_bytes: int = 1_000_000) -> list[str]:
    """Modules of the running Python's standard library, by name, up to `max_bytes` of UTF-8.

    Real code and real prose (docstrings, comments); differs between Python versions.
    """
    if max_bytes < 1:
        raise ValueError(f"max_bytes must be positive, got {max_bytes}")
    documents, total = [], 0
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        try:
            text = file.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        size = len(text.encode("utf-8"))
        if total + size <= max_bytes:
            documents.append(text)
            total += size
    if not documents:
        raise DataError(
            "no standard-library module fits: raise max_bytes, or this Python ships no sources"
        )
    return documents


def text_split(documents: list[str], tokenizer: Tokenizer, name: str = "text") -> Split:
    """Documents of real text as a split; their true surprisal is unknown, so bits are NaN."""
    if not documents:
        raise ValueError("no documents")
    encoded = [
        [tokenizer.bos_id, *ids, tokenizer.eos_id] for ids in tokenizer.encode_batch(documents)
    ]
    lengths = np.array([len(ids) for ids in encoded])
    arrays = Arrays(
        tokens=np.concatenate([np.array(ids, dtype=np.int32) for ids in encoded]),
        doc_starts=np.cumsum(lengths) - lengths,
        domain_ids=np.full(len(encoded), -1),
        bits=np.full(len(encoded), np.nan),
    )
    return as_split(name, arrays)
