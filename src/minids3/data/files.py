"""Where the shipped data lies, its checksums, and writing files at once or not at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

CHECKSUMS = "SHA256SUMS"
REBUILD = "python -m minids3.data build"


class DataError(RuntimeError):
    """A data file is missing, damaged, or does not fit the others; the message says what to do."""


def data_dir() -> Path:
    """Folder of the shipped data: $MINIDS3_DATA, else the package's, else the repository's.

    Raises:
        DataError: if none of them exists.
    """
    override = os.environ.get("MINIDS3_DATA")
    if override:
        if not Path(override).is_dir():
            raise DataError(f"MINIDS3_DATA is set to {override}, which is not a folder")
        return Path(override)
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "_data", package.parents[1] / "data"):
        if (candidate / CHECKSUMS).is_file():
            return candidate
    raise DataError(
        f"the data folder was not found beside the package: run '{REBUILD} --out data' "
        "and set MINIDS3_DATA to that folder"
    )


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file; DataError if it is missing."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        raise DataError(
            f"data file {path.name} is missing from {path.parent}: run '{REBUILD}'"
        ) from None


def write_checksums(folder: Path, names: list[str]) -> None:
    """Write SHA256SUMS (the format of `sha256sum -c`) for the named files."""
    lines = [f"{sha256(folder / name)}  {name}\n" for name in sorted(names)]
    write_atomic(folder / CHECKSUMS, "".join(lines).encode())


def read_checksums(folder: Path) -> dict[str, str]:
    """File name -> checksum; DataError if SHA256SUMS is missing or malformed."""
    path = folder / CHECKSUMS
    if not path.is_file():
        raise DataError(f"{CHECKSUMS} is missing from {folder}: run '{REBUILD}'")
    sums = {}
    for line in path.read_text().splitlines():
        digest, _, name = line.partition("  ")
        if len(digest) != 64 or not name:
            raise DataError(f"{CHECKSUMS} has a malformed line {line!r}: run '{REBUILD}'")
        sums[name] = digest
    return sums


def verify_file(folder: Path, name: str) -> None:
    """Compare one file with its recorded checksum; DataError if it differs."""
    recorded = read_checksums(folder).get(name)
    if recorded is None:
        raise DataError(f"{CHECKSUMS} does not list {name}: run '{REBUILD}'")
    found = sha256(folder / name)
    if found != recorded:
        raise DataError(
            f"checksum mismatch for {name}: expected {recorded[:12]}..., found {found[:12]}...; "
            f"the file is damaged or was edited, run '{REBUILD}'"
        )
