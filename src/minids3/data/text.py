"""Real text: any file or folder, and the running Python's standard library (no download)."""

from __future__ import annotations

import os
import stat
import sysconfig
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from minids3.data.files import DataError
from minids3.data.loading import Split, as_split
from minids3.data.shards import Arrays
from minids3.data.tokenizer import Tokenizer

__all__ = ["TEXT_SUFFIXES", "load_text", "standard_library", "text_split"]

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py", ".json", ".csv", ".html", ".tex", ".toml", ".yaml")


def load_text(path: str | Path, suffixes: Sequence[str] = TEXT_SUFFIXES) -> list[str]:
    """The documents of a text file (one) or a folder (one a file, by path, searched deeply).

    Line ends and all other bytes are kept. In a folder, files and folders that cannot be read and
    files that are not UTF-8 are left out, with a warning that names them; links to folders are not
    followed.

    Args:
        path: a file, whatever its name ends in, or a folder.
        suffixes: in a folder, only files whose names end so; capitals make no difference.

    Raises:
        DataError: if there is no such path, no text in it, or the file is not UTF-8.
        TypeError: if `suffixes` is a single string.
    """
    if isinstance(suffixes, str):
        raise TypeError(f"suffixes must be several, such as ({suffixes!r},), got a string")
    path = Path(path)
    if not os.path.isdir(path):
        text, trouble = _read(path)
        if text is None:
            raise DataError(f"{path} is unusable: {trouble}")
        return [text]
    wanted = {suffix.lower() for suffix in suffixes}
    skipped: list[str] = []

    def unreadable(error: OSError) -> None:
        skipped.append(f"{error.filename} ({error.strerror})")

    files = [
        Path(folder, name)
        for folder, _, names in os.walk(path, onerror=unreadable)
        for name in names
        if Path(name).suffix.lower() in wanted
    ]
    documents = []
    for file in sorted(files):
        text, trouble = _read(file)
        if text is None:
            skipped.append(f"{file.relative_to(path)} ({trouble})")
        else:
            documents.append(text)
    left_out = ", ".join(skipped[:5]) + (f" and {len(skipped) - 5} more" if skipped[5:] else "")
    if not documents:
        also = f"; left out: {left_out}" if skipped else ""
        raise DataError(f"no text file ({', '.join(suffixes)}) in {path}{also}")
    if skipped:
        warnings.warn(f"load_text left out {left_out}", stacklevel=2)
    return documents


def _read(file: Path) -> tuple[str | None, str]:
    """A file's text; or None, and why."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # reading a pipe would wait for ever
            return None, "neither a file nor a folder"
        return file.read_bytes().decode("utf-8"), ""
    except UnicodeDecodeError as error:
        return None, f"not UTF-8 text (byte {error.start}): convert it first"
    except FileNotFoundError:
        return None, "no such file or folder"
    except OSError as error:
        return None, f"cannot be read: {error.strerror or error}"
    except ValueError as error:  # a name with a zero byte
        return None, f"no such file or folder: {error}"


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


def text_split(documents: Sequence[str], tokenizer: Tokenizer, name: str = "text") -> Split:
    """Documents of real text as a split; their true surprisal is unknown, so bits are NaN.

    Raises:
        TypeError: if `documents` is a single string or holds something else.
        ValueError: if there are none, or one holds lone surrogates.
    """
    encoded = [
        [tokenizer.bos_id, *ids, tokenizer.eos_id] for ids in tokenizer.encode_batch(documents)
    ]
    if not encoded:
        raise ValueError("no documents")
    lengths = np.array([len(ids) for ids in encoded])
    arrays = Arrays(
        tokens=np.concatenate([np.array(ids, dtype=np.int32) for ids in encoded]),
        doc_starts=np.cumsum(lengths) - lengths,
        domain_ids=np.full(len(encoded), -1),
        bits=np.full(len(encoded), np.nan),
    )
    return as_split(name, arrays)
