"""The repository's address: one setting, in pyproject.toml, that notebooks and README follow."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

__all__ = ["address", "pages", "root", "set_address"]

_SETTING = re.compile(r'^(Repository = ")(https://github\.com/[^"]+)(")$', re.MULTILINE)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*/[A-Za-z0-9._-]+")


def root() -> Path:
    """Return the repository that this package runs from.

    Raises:
        FileNotFoundError: the package is installed elsewhere and the working folder is no clone.
    """
    for start in (Path(__file__).resolve(), Path.cwd().resolve() / "x"):
        for folder in start.parents:
            if (folder / "notebooks" / "source").is_dir() and (folder / "pyproject.toml").exists():
                return folder
    raise FileNotFoundError(
        "there is no notebooks/source here: run this inside a clone of the repository"
    )


def address() -> str:
    """Return the repository's address, from pyproject.toml or the installed package's metadata."""
    try:
        found = _SETTING.search((root() / "pyproject.toml").read_text(encoding="utf-8"))
        if found:
            return found.group(2).rstrip("/")
    except FileNotFoundError:
        pass
    urls = importlib.metadata.metadata("minids3").get_all("Project-URL") or []
    for entry in urls:
        label, _, url = entry.partition(",")
        if label.strip().lower() == "repository":
            return url.strip().rstrip("/")
    raise LookupError("pyproject.toml has no 'Repository' under [project.urls]")


def pages(address: str) -> str:
    """Where GitHub Pages shows the site of a repository's address."""
    owner, name = address.removeprefix("https://github.com/").split("/")
    return f"https://{owner.lower()}.github.io/{name}/"


def set_address(name: str) -> list[Path]:
    """Point pyproject.toml and README.md to ``OWNER/NAME`` and return the files that changed.

    Raises:
        ValueError: ``name`` is not ``OWNER/NAME``, or pyproject.toml has no such setting.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not OWNER/NAME, as in 'octocat/minids3'")
    from minids3.course.build import write

    old, new = address(), f"https://github.com/{name}"
    settings = root() / "pyproject.toml"
    text = settings.read_text(encoding="utf-8")
    if not _SETTING.search(text):
        raise ValueError("pyproject.toml has no line 'Repository = \"https://github.com/...\"'")
    changed = []
    if write(settings, _SETTING.sub(rf"\g<1>{new}\g<3>", text)):
        changed.append(settings)
    readme = root() / "README.md"
    if readme.exists():
        before = readme.read_text(encoding="utf-8")
        # The address itself, and the "github/OWNER/NAME" of Colab links; never a longer name.
        path = re.escape(old.removeprefix("https://github.com/"))
        link = rf"(github(?:\.com)?/){path}(?![\w-]|\.(?!git\b)\w)"
        after = re.sub(link, rf"\g<1>{name}", before).replace(pages(old), pages(new))
        if write(readme, after):
            changed.append(readme)
    return changed
