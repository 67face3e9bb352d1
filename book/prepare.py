"""Lay out the sources of the site: the solved notebooks with folds, and the pages beside them.

    python book/prepare.py TARGET

Nothing is executed. In a notebook, set-up, drawing cells and worked solutions are folded, and so is
each exercise's checklist; links to files go to the repository.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"instructor_guide.md": "Instructor guide", "sources.md": "Sources", "ERRATA.md": "Errata"}
_LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)\s#]+)(#[^)\s]*)?\)")


def repository() -> str:
    """The repository's address, from the one place where it is set."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^Repository = "(https://github\.com/[^"]+)"$', text, re.MULTILINE)
    if not found:
        raise SystemExit("pyproject.toml has no 'Repository' under [project.urls]")
    return found.group(1).rstrip("/")


def tags_of(cell: dict[str, Any]) -> list[str]:
    """What of a cell is folded on the page."""
    id, tags = cell.get("id", ""), cell["metadata"].get("tags", [])
    if id.startswith("check-"):
        return ["hide-output"]
    if id == "setup" or id.startswith("answer-") or "fold" in tags:
        return ["hide-input"]
    return []


def relink(text: str, folder: Path, pages: set[str], address: str) -> str:
    """Point the links of a text in ``folder`` to pages of the site, or to the repository's files.

    Raises:
        SystemExit: a link to a file that does not exist.
    """

    def one(match: re.Match[str]) -> str:
        path, anchor = match.group(1), match.group(2) or ""
        if Path(path).name in pages and "/" not in path.replace("solutions/", ""):
            return f"]({Path(path).name}{anchor})"
        if not (folder / path).exists():
            raise SystemExit(f"{folder.name}: a text links {path}, which does not exist")
        return f"]({address}/blob/main/{(folder / path).resolve().relative_to(ROOT)}{anchor})"

    return _LINK.sub(one, text)


def links_of(name: str, address: str) -> str:
    """The line below a notebook's title: where to open it, and the file."""
    colab = address.replace("https://github.com/", "https://colab.research.google.com/github/")
    return (
        f"[Open in Colab]({colab}/blob/main/notebooks/{name}.ipynb) · "
        f"<a href='files/{name}.ipynb' download>To solve: {name}.ipynb</a> · "
        f"<a href='files/solved/{name}.ipynb' download>Solved, as on this page</a>"
    )


def notebook(path: Path, pages: set[str], address: str) -> dict[str, Any]:
    """A solved notebook as the site shows it."""
    book = json.loads(path.read_text(encoding="utf-8"))
    badge = re.compile(r"\[Open in Colab\]\([^)]*\)(?: · \[[^]]*\]\([^)]*\))?")
    linked = False
    for cell in book["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            source, count = badge.subn("{{links}}", source, count=1)
            linked |= bool(count)
            source = relink(source, path.parents[1], pages, address)
            source = source.replace("{{links}}", links_of(path.stem, address))
        elif tags := tags_of(cell):
            cell["metadata"]["tags"] = tags
        cell["source"] = source
    if not linked:
        raise SystemExit(f"{path.name} has no line with 'Open in Colab': build it again")
    return book


def prepare(target: Path) -> list[str]:
    """Fill ``target`` and return the names of the notebooks, in order."""
    solved = sorted((ROOT / "notebooks" / "solutions").glob("[0-9][0-9]_*.ipynb"))
    pages, address = {p.name for p in solved} | set(PAGES), repository()
    shutil.rmtree(target, ignore_errors=True)
    (target / "extra" / "files" / "solved").mkdir(parents=True)
    for path in solved:
        text = json.dumps(notebook(path, pages, address), indent=1, ensure_ascii=False)
        (target / path.name).write_text(text, encoding="utf-8")
        shutil.copy(path, target / "extra" / "files" / "solved")
        shutil.copy(ROOT / "notebooks" / path.name, target / "extra" / "files")
    for name in PAGES:
        text = (ROOT / "notebooks" / name).read_text(encoding="utf-8")
        text = relink(text, ROOT / "notebooks", pages, address)
        (target / name).write_text(text, encoding="utf-8")
    names = [p.stem for p in solved]
    shutil.copy(ROOT / "notebooks" / "images" / "training.png", target)
    index = (ROOT / "book" / "index.md").read_text(encoding="utf-8")
    others = [Path(p).stem for p in PAGES]
    index = index.replace("{{notebooks}}", "\n".join(names)).replace("{{pages}}", "\n".join(others))
    (target / "index.md").write_text(index.replace("{{address}}", address), encoding="utf-8")
    shutil.copy(ROOT / "book" / "conf.py", target)
    shutil.copytree(ROOT / "book" / "static", target / "static")
    return names


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(f"{len(prepare(Path(sys.argv[1])))} notebooks laid out in {sys.argv[1]}")
