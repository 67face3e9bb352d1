"""Letters that can be read: large enough, and in inks that stand out from what is behind them.

The palette is made for lines and areas; as letters most of its colours are too pale. WCAG 2.2
(criterion 1.4.3) asks for a contrast of 4.5 to 1. So before a figure is saved, its texts get the
nearest darker ink, and on a coloured box dark or light letters, whichever can be read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from minids3.viz.style import CARD, INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CONTRAST", "SMALLEST", "contrast", "ink_of", "legible"]

CONTRAST = 4.5
SMALLEST = 11.0  # CSS pixels, the height of a font
_WIDEST = 800.0  # CSS pixels, of a figure that is enlarged for its letters


def _luminance(color: Any) -> float:
    from matplotlib.colors import to_rgb

    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: Any, b: Any) -> float:
    """The contrast of two colours of matplotlib, 1 to 21, as WCAG 2.2 defines it."""
    high, low = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def ink_of(color: Any, ground: Any = CARD) -> str:
    """The ink for letters of a colour: itself, or darker, so that it reads on ``ground``.

    Where no shade of it reads, as on a saturated box, it is ``INK``, white or black.
    """
    from matplotlib.colors import to_hex, to_rgb

    for share in np.linspace(1.0, 0.4, 121):
        shade = to_hex([share * c for c in to_rgb(color)])
        if contrast(shade, ground) >= CONTRAST:
            return shade
    fit = (ink for ink in (INK, "#ffffff", "#000000") if contrast(ink, ground) >= CONTRAST)
    return next(fit)  # white or black reads on anything


def legible(fig: Figure, dpi: float) -> float:
    """Give every text of a figure a size and an ink that can be read.

    A figure whose letters are small is enlarged as a whole, up to 800 CSS pixels wide; letters that
    are still smaller than 11 pixels then grow alone.

    Args:
        fig: changed in place.
        dpi: its dots per inch, in CSS pixels.

    Returns:
        the dots per inch to save it with, ``dpi`` or more.
    """
    from matplotlib.text import Text

    fig.canvas.draw()  # before that, ticks have no words
    texts = [t for t in fig.findobj(Text) if t.get_text().strip() and t.get_visible()]
    if not texts:
        return dpi
    needed = 72 * SMALLEST / min(t.get_fontsize() for t in texts)
    dpi = float(max(dpi, min(needed, _WIDEST / fig.get_figwidth())))
    smallest = 72 * SMALLEST / dpi
    for axis in (a for ax in fig.axes for a in (ax.xaxis, ax.yaxis)):  # ticks are made anew
        if any(label.get_fontsize() < smallest for label in axis.get_ticklabels()):
            axis.set_tick_params(labelsize=smallest)
    for text in texts:
        text.set_fontsize(max(text.get_fontsize(), smallest))
    grounds = {ax: _boxes(ax) for ax in fig.axes}
    for text in texts:
        ground = _ground(text, *grounds[text.axes]) if text.axes in grounds else CARD
        color = text.get_color()
        if ground is None or contrast(color, ground) >= CONTRAST:
            continue
        text.set_color(ink_of(color, ground))
    return dpi


def _boxes(ax: Any) -> tuple[np.ndarray, list[Any]]:
    """The extents of an axes' filled patches in the order they are drawn, and their colours."""
    filled = [p for p in ax.patches if p.get_visible() and p.get_facecolor()[3] > 0.9]
    filled.sort(key=lambda p: p.get_zorder())
    extents = np.array([p.get_window_extent().extents for p in filled]).reshape(-1, 4)
    return extents, [p.get_facecolor() for p in filled]


def _ground(text: Any, extents: np.ndarray, colors: list[Any]) -> Any:
    """What is behind a text; None where that is an image."""
    box = text.get_window_extent()
    x, y = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
    inside = (extents[:, 0] <= x) & (x <= extents[:, 2])
    inside &= (extents[:, 1] <= y) & (y <= extents[:, 3])
    if inside.any():
        return colors[int(np.flatnonzero(inside)[-1])]
    if any(image.get_window_extent().contains(x, y) for image in text.axes.images):
        return None
    return CARD
