"""Environments to try the workbook in: Pythons of this machine, and what is installed into them."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ROOT", "SUPPORTED", "Environment", "colab", "lower_bounds", "matrix", "pythons"]

ROOT = Path(__file__).resolve().parents[1]
SUPPORTED = ("3.10", "3.11", "3.12", "3.13")
COLAB = ROOT / "constraints-colab.txt"
# What runs tests and notebooks; Colab has most of it.
RUNNERS = ("pytest", "pytest-xdist", "nbval", "nbclient", "nbconvert", "nbformat", "hypothesis")


@dataclass(frozen=True)
class Environment:
    """A Python with packages of its own, in a folder of its own.

    name: such as "3.12-newest". python: the interpreter that it is made with. constraints: lines
    for pip, without which the newest versions are taken. wants: what pip is asked for.
    """

    name: str
    python: str
    constraints: tuple[str, ...]
    wants: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Where it lies; git ignores it."""
        return ROOT / f".venv-{self.name}"

    @property
    def bin(self) -> Path:
        """Its Python."""
        where = ("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")
        return self.folder.joinpath(*where)

    @property
    def mark(self) -> str:
        """Changes when the environment would be another."""
        text = "\n".join((self.python, *self.constraints, *self.wants, _pyproject()))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def pythons() -> dict[str, str]:
    """Return the supported Pythons of this machine by version: on the path, or kept by pyenv."""
    found = {}
    for version in SUPPORTED:
        for place in _places(version):
            code = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
            done = subprocess.run([place, "-c", code], capture_output=True, text=True)
            if done.stdout.strip() == version:
                found[version] = place
                break
    return found


def _places(version: str) -> Iterator[str]:
    if sys.version_info[:2] == tuple(map(int, version.split("."))) and sys.prefix == (
        sys.base_prefix
    ):
        yield sys.executable
    if on_path := shutil.which(f"python{version}"):
        yield on_path
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    kept = (root / "versions").glob(f"{version}.*/bin/python")
    yield from map(str, sorted(kept, key=lambda p: [int(n) for n in re.findall(r"\d+", str(p))]))


def _pyproject() -> str:
    return (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def lower_bounds(pyproject: str) -> tuple[str, ...]:
    """Return the lower bounds of pyproject.toml's text as constraints: each bound exactly.

    Raises:
        ValueError: a package that has two bounds under one condition, or no bound.
    """
    found: dict[str, str] = {}
    project = pyproject.partition("\n[project]\n")[2].partition("\n[project.urls]")[0]
    lists = re.findall(r"(?ms)^(?!keywords|classifiers|license)[\w-]+ = \[(.*?)\]$", project)
    for entry in re.findall(r'"([^"]+)"', "\n".join(lists)):
        if "[" in entry:  # our own extras
            continue
        parts = re.fullmatch(r"([\w.-]+)>=([\w.]+)((?:; .*)?)", entry)
        if parts is None:
            raise ValueError(f"pyproject.toml: {entry!r} has no plain lower bound, 'name>=version'")
        name, version, condition = parts.groups()
        if found.setdefault(name + condition, version) != version:
            raise ValueError(f"pyproject.toml: {name} has two lower bounds")
    return tuple(
        f"{key.partition(';')[0]}=={version}{''.join(key.partition(';')[1:])}"
        for key, version in sorted(found.items())
    )


def matrix(given: Sequence[str] = ()) -> list[Environment]:
    """Return one environment for each Python found: the lower bounds on the oldest, newest else.

    With the lower bounds there is no transformers: those of its versions that the tests compare
    with need newer packages than minids3 does.

    Args:
        given: versions for all of them instead, such as "torch==2.13.0"; the rest is the newest.

    Raises:
        ValueError: one of ``given`` is no "name==version".
    """
    found = pythons()
    wants = ("-e", f"{ROOT}[test]")
    for text in given:
        if not re.fullmatch(r"[\w.-]+==[\w.+]+", text):
            raise ValueError(f"{text!r} is no version of a package: write name==version")
    if given:
        end = "-".join(text.replace("==", "-") for text in given)
        return [
            Environment(f"{version}-{end}", place, tuple(given), wants)
            for version, place in found.items()
        ]
    fewer = ("-e", f"{ROOT}[tools]")
    return [
        Environment(f"{version}-lower", place, lower_bounds(_pyproject()), fewer)
        if version == min(found, key=SUPPORTED.index)
        else Environment(f"{version}-newest", place, (), wants)
        for version, place in found.items()
    ]


def colab() -> Environment:
    """Return Colab's environment: what constraints-colab.txt names, and what runs tests.

    Raises:
        RuntimeError: this machine has not the Python that Colab has.
    """
    text = COLAB.read_text(encoding="utf-8")
    version = re.search(r"Python (\d+\.\d+)", text)
    assert version is not None
    place = pythons().get(version[1])
    if place is None:
        raise RuntimeError(
            f"Colab has Python {version[1]}, and there is none on the path or in pyenv: "
            f"install it, for example with 'pyenv install {version[1]}'"
        )
    lines = tuple(line for line in text.splitlines() if line and not line.startswith("#"))
    names = tuple(re.split(r"[=;<> ]", line)[0] for line in lines)
    return Environment("colab", place, lines, (*names, *RUNNERS))
