"""Tokens of a text, one box each, coloured by a value."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from minids3.viz.style import CARD, COLORS, INK, PALETTE

__all__ = ["TokenStrip", "token_strip"]

_CYCLE = ("#CFE3F2", "#F9E3B8", "#C9E9DE", "#F3D9E6")


def _visible(token: str) -> str:
    return token.replace(" ", "·").replace("\n", "⏎").replace("\t", "→") or "∅"


def _shade(share: float) -> str:
    """Mix the card's white with orange; text stays readable at both ends."""
    low, high = (255, 253, 247), tuple(int(PALETTE[1][i : i + 2], 16) for i in (1, 3, 5))
    mixed = [round(a + (b - a) * min(max(share, 0.0), 1.0)) for a, b in zip(low, high, strict=True)]
    return "#" + "".join(f"{m:02X}" for m in mixed)


class TokenStrip:
    """Shows itself as HTML; ``figure()`` draws the same, for ``viz.show``."""

    def __init__(
        self, tokens: Sequence[str], values: Sequence[float] | None, unit: str, high: float | None
    ) -> None:
        """Keep tokens and values; ``high`` is the value with the strongest colour."""
        self.tokens = [str(t) for t in tokens]
        self.values = None if values is None else [float(v) for v in values]
        if self.values is not None and len(self.values) != len(self.tokens):
            raise ValueError(f"{len(self.tokens)} tokens and {len(self.values)} values")
        self.unit = unit
        self.high = high if high is not None else max(self.values or [1.0], default=1.0) or 1.0

    def _colours(self) -> list[str]:
        if self.values is None:
            return [_CYCLE[i % len(_CYCLE)] for i in range(len(self.tokens))]
        return [_shade(v / self.high) for v in self.values]

    def __repr__(self) -> str:
        if self.values is None:
            return "|".join(_visible(t) for t in self.tokens)
        pairs = zip(self.tokens, self.values, strict=True)
        return " ".join(f"{_visible(t)}({v:.2g})" for t, v in pairs)

    def _repr_html_(self) -> str:
        boxes = []
        for i, (token, colour) in enumerate(zip(self.tokens, self._colours(), strict=True)):
            title = f"{i}: {token!r}"
            if self.values is not None:
                title += f", {self.values[i]:.3g} {self.unit}"
            boxes.append(
                f'<span title="{html.escape(title, quote=True)}" style="background:{colour};'
                f"color:{INK};border-radius:3px;padding:1px 3px;margin:1px;"
                f'display:inline-block;white-space:pre">{html.escape(_visible(token))}</span>'
                + ("<br>" if token.endswith("\n") else "")
            )
        return (
            f'<div style="font-family:monospace;line-height:1.7;background:{CARD};padding:6px;'
            f'border-radius:4px;max-width:56em">{"".join(boxes)}</div>'
        )

    def figure(self, columns: int = 84, title: str = "") -> Any:
        """Draw the strip, ``columns`` characters wide, and return the figure."""
        import matplotlib.pyplot as plt
        from matplotlib.patches import FancyBboxPatch

        places, x, y = [], 0.0, 0
        for token, colour in zip(self.tokens, self._colours(), strict=True):
            text = _visible(token)
            width = len(text) + 0.9
            if x and x + width > columns:
                x, y = 0.0, y + 1
            places.append((x, y, width, text, colour))
            x = x + width + 0.25
            if token.endswith("\n"):
                x, y = 0.0, y + 1
        rows = max(p[1] for p in places) + 1 if places else 1
        fig, ax = plt.subplots(figsize=(7.6, 0.3 * rows + (0.75 if title else 0.3)))
        for x, row, width, text, colour in places:
            box = FancyBboxPatch(
                (x, -row - 0.4),
                width,
                0.8,
                boxstyle="round,pad=0,rounding_size=0.25",
                facecolor=colour,
                edgecolor="#D8D4C8",
                linewidth=0.6,
            )
            ax.add_patch(box)
            ax.text(
                x + width / 2,
                -row,
                text,
                ha="center",
                va="center_baseline",
                family="DejaVu Sans Mono",
                fontsize=7.8,
                color=COLORS["ink"],
            )
        ax.set(xlim=(-0.5, columns + 1), ylim=(-rows + 0.4, 0.6))
        ax.axis("off")
        if title:
            ax.set_title(title)
        return fig


def token_strip(
    tokens: Sequence[str],
    values: Sequence[float] | None = None,
    *,
    unit: str = "nats",
    high: float | None = None,
) -> TokenStrip:
    """Show tokens side by side, coloured by ``values`` (e.g. surprisal) or in turn.

    Args:
        tokens: their texts; a space is drawn as a dot, a line break as an arrow.
        values: one number per token, 0 the palest.
        unit: of the values, told on hovering.
        high: the value of the strongest colour, by default the largest.

    Raises:
        ValueError: the numbers of tokens and values differ.
    """
    return TokenStrip(tokens, values, unit, high)
