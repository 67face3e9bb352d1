"""Texts side by side: a table whose cells keep their line breaks."""

from __future__ import annotations

import html
from collections.abc import Sequence

__all__ = ["TextTable", "text_table"]


class TextTable:
    """Shows itself as an HTML table, and as indented text elsewhere."""

    def __init__(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Keep the head and rows of equal width."""
        self.head = [str(h) for h in head]
        self.rows = [[str(cell) for cell in row] for row in rows]
        if any(len(row) != len(self.head) for row in self.rows):
            raise ValueError(f"each row needs {len(self.head)} cells, like the head")

    def __repr__(self) -> str:
        parts = []
        for row in self.rows:
            for name, cell in zip(self.head, row, strict=True):
                body = "\n".join(f"    {line}" for line in cell.splitlines())
                parts.append(f"{name}\n{body}")
        return "\n".join(parts)

    def _repr_html_(self) -> str:
        left = "text-align:left;vertical-align:top"
        wide = 88 // max(len(self.head), 2)
        head = "".join(f'<th style="{left}">{html.escape(h)}</th>' for h in self.head)
        body = ""
        longest = [max(map(_width, column)) for column in zip(*self.rows, strict=True)]
        wraps = ["pre" if width <= 16 else "pre-wrap" for width in longest]  # no word is cut in two
        for row in self.rows:
            cells = "".join(
                f'<td style="{left};max-width:{wide}em"><pre style="white-space:{wrap};margin:0;'
                "font-family:monospace;word-break:normal;overflow-wrap:anywhere;background:none;padding:0;"
                'font-size:.92em">'
                f"{html.escape(cell)}</pre></td>"
                for cell, wrap in zip(row, wraps, strict=True)
            )
            body += f"<tr>{cells}</tr>"
        page = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        return page.replace("$", "<span>$</span>")  # or MathJax reads two of them as a formula


def _width(cell: str) -> int:
    return max((len(line) for line in cell.splitlines()), default=0)


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> TextTable:
    """Show texts in columns.

    Args:
        head: one name per column.
        rows: of texts, one per column; line breaks are kept.

    Raises:
        ValueError: a row of another width.
    """
    return TextTable(head, rows)
