"""What the pages share: one template, one style, and text that is always escaped.

A page is one file without scripts, fonts or pictures from elsewhere; whatever a student wrote is
shown as text.
"""

from __future__ import annotations

import html
from importlib import resources
from string import Template

from minids3.grade.records import ExerciseResult

__all__ = ["STATUS", "bar", "chip", "esc", "kind_of", "number", "page", "worth"]

# status -> how it is shown (a colour), in words, as one sign
STATUS = {
    "passed": ("ok", "passed", "✓"),
    "partial": ("some", "partly", "◐"),
    "failed": ("no", "not yet", "✗"),
    "stub": ("none", "not written", "–"),
    "missing": ("none", "missing", "–"),
    "forbidden": ("look", "needs a look", "?"),
    "grader error": ("look", "grader error", "!"),
    "needs a human": ("look", "needs a look", "?"),
    "decided": ("some", "decided by a person", "✎"),
    "excused": ("none", "excused", "–"),
}


def esc(text: object) -> str:
    """Return ``text`` safe for HTML."""
    return html.escape(str(text), quote=True)


def number(value: float) -> str:
    """Return points as people write them: 3, 2.5, 1.67."""
    return f"{round(value, 2):g}"


def chip(status: str) -> str:
    """Return a status as a coloured word."""
    kind, words, sign = STATUS[status]
    return f'<span class="chip {kind}"><span aria-hidden="true">{sign}</span> {words}</span>'


def bar(parts: list[tuple[str, float]], whole: float, label: str) -> str:
    """Return a bar of coloured lengths; ``label`` says it in words."""
    spans = "".join(
        f'<span class="f-{kind}" style="width:{100 * size / whole:.2f}%"></span>'
        for kind, size in parts
        if size > 0 and whole > 0
    )
    return f'<div class="bar" role="img" aria-label="{esc(label)}">{spans}</div>'


def kind_of(result: ExerciseResult) -> str:
    """Return the colour of an exercise."""
    if result.status == "decided":
        return "ok" if result.points >= result.max_points else "some" if result.points else "no"
    return STATUS[result.status][0]


def worth(result: ExerciseResult) -> str:
    """Return an exercise's points in words; what nobody has decided has none yet."""
    if result.status == "excused":
        return "does not count"
    if result.needs_human:
        return f"undecided, of {number(result.max_points)}"
    return f"{number(result.points)} of {number(result.max_points)}"


def page(title: str, body: str, shape: str = "") -> str:
    """Return a whole page."""
    folder = resources.files("minids3.grade.reports") / "templates"
    template = Template((folder / "page.html").read_text(encoding="utf-8"))
    style = (folder / "page.css").read_text(encoding="utf-8")
    return template.substitute(title=esc(title), style=style, body=body, shape=shape)
