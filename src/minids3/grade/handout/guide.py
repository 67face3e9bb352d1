"""The instructor guide's generated parts: what each notebook needs, and its common errors.

Both come from the exercises themselves, so that they cannot fall behind: an error is a mutant's
sentence, the same one that a student hears who makes it. ``python -m minids3.grade guide`` rewrites
them in ``notebooks/instructor_guide.md`` and builds the notebook beside it.
"""

from __future__ import annotations

import re
from pathlib import Path

from minids3.course.registry import exercises
from minids3.course.repository import root
from minids3.grade.files import write
from minids3.grade.submissions.pristine import Pristine
from minids3.grade.submissions.reading import cells_of

__all__ = ["page", "write_guide"]

_PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_FACTS = re.compile(r"\*\*Takes\*\* (.*?)\*\*Needs\*\* (.*?)\*\*Afterwards\*\* (.*)", re.DOTALL)


def _notebooks() -> list[Pristine]:
    folder = root() / "notebooks"
    return [Pristine.read(p) for p in sorted(folder.glob("[0-9][0-9]_*.ipynb"))]


def _facts(notebook: Pristine) -> tuple[str, str, str]:
    """Return what the notebook's first cell says it takes, needs and gives."""
    first = cells_of(notebook.notebook)[0].source.split("\n\n")
    for paragraph in first:
        found = _FACTS.search(" ".join(paragraph.split("\n")))
        if found:
            takes, needs, gives = (part.strip().rstrip(".") for part in found.groups())
            return takes, needs, gives
    return "", "", ""


def _plan(notebooks: list[Pristine]) -> str:
    lines = ["| notebook | exercises | points | minutes | of them writing | needs |"]
    lines.append("|---|---|---|---|---|---|")
    for n in notebooks:
        own = exercises(n.name)
        takes, needs, _ = _facts(n)
        points, minutes = sum(e.points for e in own), sum(e.minutes for e in own)
        whole = re.search(r"\d+(?= minutes)", takes)
        title = re.sub(r"^\d\d · ", "", n.title)
        lines.append(
            f"| {n.name[:2]} [{title}]({n.name}.ipynb) | {len(own)} | {points} "
            f"| {whole[0] if whole else ''} | {minutes} | {needs} |"
        )
    return "\n".join(lines)


def _errors(notebooks: list[Pristine]) -> str:
    parts = []
    for n in notebooks:
        parts.append(f"### {n.title}")
        for e in exercises(n.name):
            parts.append(f"**{e.title}** (`{e.id}`, {e.points} points)")
            parts.append("\n".join(f"- {m.diagnosis}" for m in e.mutants))
    return "\n\n".join(parts)


def page(text: str) -> str:
    """Return the guide's page with its generated parts as the exercises are now.

    Raises:
        KeyError: the page asks for a part that nobody generates.
    """
    makers = {"plan": _plan, "errors": _errors}
    notebooks = _notebooks()
    return _PART.sub(lambda m: f"{m[1]}\n{makers[m[2]](notebooks)}\n\n{m[3]}", text)


def write_guide(run: bool = True) -> list[Path]:
    """Rewrite the page, build the notebook (with ``run`` also execute it); return both."""
    from minids3.course.build import Source, build

    place = root() / "notebooks" / "instructor_guide.md"
    write(place, page(place.read_text(encoding="utf-8")))
    source = Source(root() / "notebooks" / "source" / "instructor_guide.py")
    build(source, run=run)
    return [place, source.student_path]
