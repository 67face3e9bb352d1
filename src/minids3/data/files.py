"""Where the shipped data lies, its checksums, and reading and writing files without surprises.

Whatever is wrong with a file that is read, the error is a `DataError` that names it. A file is
written at once or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import tempfile
from pathlib import Path
from typing import Any

__all__ = [
    "CHECKSUMS",
    "REBUILD",
    "DataError",
    "check_writable",
    "data_dir",
    "own_data_dir",
    "read_checksums",
    "read_json",
    "sha256",
    "verify_file",
    "write_atomic",
    "write_checksums",
]

CHECKSUMS = "SHA256SUMS"
REBUILD = "python -m minids3.data build"
MAX_JSON = 1 << 28  # bytes; nothing of ours comes near it
PACKAGE = Path(__file__).resolve().parents[1]


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
    for candidate in (PACKAGE / "_data", PACKAGE.parents[1] / "data"):
        if (candidate / CHECKSUMS).is_file():
            return candidate
    raise DataError(
        f"the data folder was not found beside the package: run '{REBUILD} --out data' "
        "and set MINIDS3_DATA to that folder"
    )


def own_data_dir(option: str) -> Path:
    """`data_dir()` for a command that writes: never inside an installed package.

    Args:
        option: how the command is told another place, such as "--out".

    Raises:
        DataError: if the data lie in the package, or nowhere.
    """
    folder = data_dir()
    if PACKAGE in folder.resolve().parents:
        raise DataError(
            f"the data lie inside the installed package, which is not written to: say {option}"
        )
    return folder


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """Content of a file.

    Raises:
        DataError: if it is missing, is no file, is longer than `limit`, or cannot be read.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path} is not a file: move it away and run '{REBUILD}'")
        if limit is not None and status.st_size > limit:
            raise DataError(f"{path.name} is too large: {status.st_size:,} bytes")
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"data file {path.name} is missing from {path.parent}: run '{REBUILD}'"
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from None


def read_json(path: Path) -> Any:
    """What a JSON file holds; `DataError` if it is not one."""
    content = read_bytes(path, MAX_JSON)
    try:
        return json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is not UTF-8 text (byte {error.start})") from None
    except RecursionError:
        raise DataError(f"{path.name} is nested too deeply") from None
    except ValueError as error:  # no JSON, or a number of thousands of digits
        raise DataError(f"{path.name} is not JSON: {error}") from None


def check_writable(folder: Path) -> None:
    """Make a folder if need be, and find out before the work whether a file can be made there.

    Raises:
        OSError: if not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, then rename it; a link is followed.

    Raises:
        OSError: if it cannot be written; what stood there before is untouched.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        path.write_bytes(content)  # a device or a pipe, such as /dev/stdout
        return
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: a file of that name cannot be written")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:64]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file; DataError if it is missing or cannot be read."""
    return hashlib.sha256(read_bytes(path)).hexdigest()


def write_checksums(folder: Path, names: list[str]) -> None:
    """Write SHA256SUMS (the format of `sha256sum -c`) for the named files."""
    lines = [f"{sha256(folder / name)}  {name}\n" for name in sorted(names)]
    write_atomic(folder / CHECKSUMS, "".join(lines).encode())


def read_checksums(folder: Path) -> dict[str, str]:
    """File name -> checksum; DataError if SHA256SUMS is missing, malformed or empty."""
    content = read_bytes(folder / CHECKSUMS, MAX_JSON)
    sums: dict[str, str] = {}
    for line in content.decode("utf-8", errors="replace").splitlines():
        entry = re.fullmatch(r"([0-9a-f]{64})  ([^/\\\ufffd]+)", line)
        if entry is None or entry[2] in (".", ".."):
            raise DataError(f"{CHECKSUMS} has a malformed line {line[:100]!r}: run '{REBUILD}'")
        if sums.setdefault(entry[2], entry[1]) != entry[1]:
            raise DataError(f"{CHECKSUMS} lists {entry[2]} twice: run '{REBUILD}'")
    if not sums:
        raise DataError(f"{CHECKSUMS} lists no file: run '{REBUILD}'")
    return sums


def verify_file(folder: Path, name: str) -> str:
    """Compare one file with its recorded checksum and return that; DataError if it differs."""
    recorded = read_checksums(folder).get(name)
    if recorded is None:
        raise DataError(f"{CHECKSUMS} does not list {name}: run '{REBUILD}'")
    content = read_bytes(folder / name)
    found = hashlib.sha256(content).hexdigest()
    if found == recorded:
        return recorded
    why = f"the file is damaged or was edited, run '{REBUILD}'"
    if hashlib.sha256(content.replace(b"\r\n", b"\n")).hexdigest() == recorded:
        why = (
            "Git has changed its line ends (core.autocrlf): delete the file and fetch it again "
            f"with 'git checkout {folder / name}', or run '{REBUILD}'"
        )
    raise DataError(
        f"checksum mismatch for {name}: expected {recorded[:12]}..., found {found[:12]}...; {why}"
    )
