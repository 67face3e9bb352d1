"""Figures and widgets of the notebooks: one style, alt text on every picture."""

from __future__ import annotations

from minids3.viz import style
from minids3.viz.show import show
from minids3.viz.style import COLORS, PALETTE
from minids3.viz.texts import text_table
from minids3.viz.tokens import token_strip
from minids3.viz.widgets import play
from minids3.viz.workbook import workbook_map

__all__ = [
    "COLORS",
    "PALETTE",
    "play",
    "show",
    "style",
    "text_table",
    "token_strip",
    "workbook_map",
]
