"""The ledger's book-keeping: a line, the register of entries, and a table of them."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

__all__ = ["ENTRIES", "Ledger", "Line", "entry", "lines", "quantity", "show"]

Kind = Literal["published", "computed", "measured"]
KINDS: tuple[str, ...] = ("published", "computed", "measured")


@dataclass(frozen=True)
class Line:
    """One line of the Bill: a value, how it was got, and what it leaves out.

    ``gpu_hours`` is set where the line prices a whole training run, and only then is it drawn.
    """

    notebook: str
    title: str
    value: float
    unit: str
    formula: str
    source: str
    kind: Kind
    gpu_hours: float | None = None
    dollars: float | None = None
    leaves_out: str = ""

    def __post_init__(self) -> None:
        """Refuse a kind the legend does not know."""
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r}; choose one of {', '.join(KINDS)}")

    def __str__(self) -> str:
        """Return the line as a few plain sentences, wrapped at 76 columns."""
        head = f"{self.notebook}  {self.title}: {quantity(self.value)} {self.unit} ({self.kind})"
        if self.gpu_hours is not None and self.unit != "GPU-hours":
            head += f", {quantity(self.gpu_hours)} GPU-hours"
        if self.dollars is not None:
            head += f", ${quantity(self.dollars)}"
        rows = [head, f"    = {self.formula}", f"    source: {self.source}"]
        if self.leaves_out:
            rows.append(f"    leaves out: {self.leaves_out}")
        wrapped = (textwrap.fill(r, 76, subsequent_indent="      ") for r in rows)
        return "\n".join(wrapped)


ENTRIES: dict[str, Callable[[], Line]] = {}


def entry(notebook: str) -> Callable[[Callable[[], Line]], Callable[[], Line]]:
    """Register a function that computes the line of ``notebook`` (two digits)."""

    def register(compute: Callable[[], Line]) -> Callable[[], Line]:
        if notebook in ENTRIES:
            raise ValueError(f"notebook {notebook!r} already has a line in the Bill")
        ENTRIES[notebook] = compute
        return compute

    return register


def lines(upto: str | None = None) -> list[Line]:
    """Return the lines in order, up to and including notebook ``upto`` (all of them by default)."""
    if upto is not None and upto not in ENTRIES:
        known = ", ".join(sorted(ENTRIES))
        raise ValueError(f"the Bill has no line of notebook {upto!r}; it has {known}")
    return [ENTRIES[n]() for n in sorted(ENTRIES) if upto is None or n <= upto]


def show(upto: str | None = None) -> Ledger:
    """Return the Bill so far; a notebook renders it as a table, a terminal as text."""
    return Ledger(tuple(lines(upto)))


@dataclass(frozen=True, repr=False)
class Ledger:
    """Lines of the Bill that know how to show themselves, as text and as HTML."""

    lines: tuple[Line, ...]

    def __repr__(self) -> str:
        """Return the lines as plain text, one paragraph each."""
        return "The Bill so far\n" + "\n".join(str(line) for line in self.lines)

    def _repr_html_(self) -> str:
        rows = "".join(_row(line) for line in self.lines)
        head = "".join(
            f"<th scope='col' style='padding:0.3em 0.8em;text-align:{side}'>{name}</th>"
            for name, side in (
                ("Notebook", "left"),
                ("Line", "left"),
                ("Value", "right"),
                ("GPU-hours", "right"),
                ("US dollars", "right"),
                ("How", "left"),
            )
        )
        return (
            "<table><caption style='caption-side:top;text-align:left'><b>The Bill so far</b>"
            f"</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        )


def _row(line: Line) -> str:
    hours = "" if line.gpu_hours is None else quantity(line.gpu_hours)
    dollars = "" if line.dollars is None else "$" + quantity(line.dollars)
    how = f"{html.escape(line.formula)}<br><small>{line.kind} &middot; {html.escape(line.source)}"
    if line.leaves_out:
        how += f"<br>Leaves out: {html.escape(line.leaves_out)}"
    how += "</small>"
    left = [line.notebook, html.escape(line.title)]
    right = [f"{quantity(line.value)} {html.escape(line.unit)}", hours, dollars]
    style = "vertical-align:top;padding:0.3em 0.8em;text-align:"
    cells = [f"<td style='{style}left'>{c}</td>" for c in left]
    cells += [f"<td style='{style}right;white-space:nowrap'>{c}</td>" for c in right]
    cells.append(f"<td style='{style}left;max-width:34em'>{how}</td>")
    return f"<tr>{''.join(cells)}</tr>"


def quantity(value: float) -> str:
    """Format a number with four significant digits and a letter: 43.02M, 14.8T, 5.959e+25."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e16:
        return f"{value:.4g}"
    for factor, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if size >= factor:
            return f"{value / factor:.4g}{letter}"
    return f"{value:.4g}"
