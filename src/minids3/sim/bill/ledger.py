"""The ledger's book-keeping: a line, the register of entries, and a table of them."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

__all__ = ["DOLLARS_PER_HOUR", "ENTRIES", "Ledger", "Line", "entry", "lines", "quantity", "show"]

Kind = Literal["published", "computed", "measured"]
KINDS: tuple[str, ...] = ("published", "computed", "measured")
DOLLARS_PER_HOUR = 2.0
"""What the report assumes for an H800 (TR table 1)."""


@dataclass(frozen=True)
class Line:
    """One line of the Bill: a value, how it was got, and what it leaves out.

    ``gpu_hours`` is set where the line prices a whole training run, and only then is it drawn;
    ``without_hours`` is what that run would have taken without this line's idea.
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
    without_hours: float | None = None

    def __post_init__(self) -> None:
        """Refuse a kind the legend does not know, and a saving from no run."""
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r}; choose one of {', '.join(KINDS)}")
        if self.without_hours is not None and self.gpu_hours is None:
            raise ValueError(f"without_hours={self.without_hours} needs gpu_hours to compare with")

    @property
    def saved_hours(self) -> float | None:
        """GPU-hours that the idea saves at most, of the whole run."""
        if self.without_hours is None or self.gpu_hours is None:
            return None
        return self.without_hours - self.gpu_hours

    def __str__(self) -> str:
        """Return the line as a few plain sentences, wrapped at 76 columns."""
        head = f"{self.notebook}  {self.title}: {quantity(self.value)} {self.unit} ({self.kind})"
        if self.gpu_hours is None and self.dollars is not None:
            head += f", ${quantity(self.dollars)}"
        rows = [head, f"    = {self.formula}", f"    source: {self.source}"]
        if self.gpu_hours is not None:
            run = f"    whole run: {quantity(self.gpu_hours)} GPU-hours, {money(self.gpu_hours)}"
            if self.saved_hours is not None:
                run += (
                    f"; without this idea {quantity(self.without_hours or 0)}; "
                    f"saved, at most: {quantity(self.saved_hours)}, {money(self.saved_hours)}"
                )
            rows.insert(1, run)
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


def show(upto: str | None = None, all: bool = False) -> Ledger:
    """Return the Bill up to a notebook; a notebook renders it as a table, a terminal as text.

    Shown are the line of notebook ``upto`` and a summary; with ``all``, or without ``upto``, every
    line.
    """
    return Ledger(tuple(lines(upto)), full=all or upto is None)


@dataclass(frozen=True, repr=False)
class Ledger:
    """Lines of the Bill that know how to show themselves, as text and as HTML."""

    lines: tuple[Line, ...]
    full: bool = True

    @property
    def shown(self) -> tuple[Line, ...]:
        """The lines that are printed: the last, or all."""
        return self.lines if self.full else self.lines[-1:]

    def summary(self) -> str:
        """Return the Bill so far in a sentence or two."""
        from minids3.sim.bill.lines import PUBLISHED

        first, end = self.lines[0].gpu_hours or 0.0, PUBLISHED.gpu_hours or 0.0
        text = (
            f"The Bill so far: dense in BF16 {quantity(first)} GPU-hours ({money(first)}), "
            f"published {quantity(end)} ({money(end)}), {first / end:.1f} times fewer."
        )
        saved = [
            f"{line.notebook} {quantity(line.saved_hours)}"
            for line in self.lines
            if line.saved_hours is not None
        ]
        if saved:
            text += f" Saved by one idea alone, at most (not to be added up): {', '.join(saved)}."
        return text

    def __repr__(self) -> str:
        """Return lines and summary as plain text, one paragraph each."""
        return "\n".join([*map(str, self.shown), textwrap.fill(self.summary(), 76)])

    def _repr_html_(self) -> str:
        rows = "".join(_row(line) for line in self.shown)
        head = "".join(
            f"<th scope='col' style='padding:0.3em 0.8em;text-align:{side}'>{name}</th>"
            for name, side in (
                ("Notebook", "left"),
                ("Line", "left"),
                ("Value", "right"),
                ("Whole run,<br>GPU-hours", "right"),
                ("Without<br>this idea", "right"),
                ("Saved,<br>at most", "right"),
            )
        )
        page = (
            f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
            f"<p>{html.escape(self.summary())}</p>"
        )
        # JupyterLab makes a formula of what stands between two dollars of one run of text.
        return page.replace("$", "<span>$</span>")


def _row(line: Line) -> str:
    how = f"{html.escape(line.formula)}<br><small>{line.kind} &middot; {html.escape(line.source)}"
    if line.leaves_out:
        how += f"<br>Leaves out: {html.escape(line.leaves_out)}"
    how += "</small>"
    left = [line.notebook, html.escape(line.title)]
    right = [f"{quantity(line.value)} {html.escape(line.unit)}"]
    for hours in (line.gpu_hours, line.without_hours, line.saved_hours):
        right.append("" if hours is None else f"{quantity(hours)}<br>{money(hours)}")
    style = "vertical-align:top;padding:0.3em 0.8em;text-align:"
    cells = [f"<td style='{style}left'>{c}</td>" for c in left]
    cells += [f"<td style='{style}right;white-space:nowrap'>{c}</td>" for c in right]
    words = f"<td colspan='5' style='{style}left;max-width:44em'>{how}</td>"
    return f"<tr>{''.join(cells)}</tr><tr><td></td>{words}</tr>"


def money(hours: float) -> str:
    """Return the price of GPU-hours in dollars, at the report's assumption."""
    return f"${quantity(hours * DOLLARS_PER_HOUR)}"


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
