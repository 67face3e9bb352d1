"""Show a figure as a small, sharp image that carries its alt text.

The output is an HTML image, not a bare PNG: JupyterLab 4 and nbconvert's default page drop the alt
text of an "image/png" output (no template reads it), and keep that of an HTML one. The image has
two dots for every CSS pixel, as HiDPI screens do; as lossless WebP it is no larger than a PNG with
half the resolution.

GitHub's preview is only sure to show a bare PNG, without an HTML twin that it might prefer. Such a
PNG is 1.3 to 1.5 times the size of the WebP, and readers of JupyterLab would lose the alt text: so
the site is the place to read notebooks with their figures (README).
"""

from __future__ import annotations

import base64
import html
import io
from typing import Any

from matplotlib.figure import Figure

from minids3.viz.legible import legible

__all__ = ["Picture", "picture", "show"]

_SHORTEST = 20
_SHARP = 2  # dots of the image per CSS pixel


class Picture:
    """An image with alt text, shown as an HTML image; the alt text is in the metadata too."""

    def __init__(self, image: bytes, alt: str, width: int, kind: str = "webp") -> None:
        """Keep the bytes, the alt text, the width in CSS pixels, and "webp" or "png"."""
        self.image = image
        self.alt = alt
        self.width = width
        self.kind = kind

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict, dict]:
        """Return data and metadata."""
        source = base64.b64encode(self.image).decode("ascii")
        image = (
            f'<img alt="{html.escape(self.alt, quote=True)}" width="{self.width}" '
            f'style="max-width:100%;height:auto;border-radius:6px" '
            f'src="data:image/{self.kind};base64,{source}">'
        )
        data = {"text/html": image, "text/plain": f"Figure: {self.alt}"}
        return data, {"text/html": {"alt": self.alt}}

    def __repr__(self) -> str:
        return f"Figure: {self.alt}"


def picture(fig: Figure, alt: str, dpi: float = 110) -> Picture:
    """Draw ``fig`` with few colours at twice ``dpi``, and close it.

    ``dpi`` is dots per inch in CSS pixels; a figure with smaller letters than 11 pixels gets more.

    Raises:
        ValueError: ``alt`` is missing or too short to tell anything.
    """
    import matplotlib.pyplot as plt
    from PIL import Image, features

    alt = " ".join((alt or "").split())
    if len(alt) < _SHORTEST:
        raise ValueError(
            f"alt={alt!r} is too short: say in a sentence what a reader who cannot see the figure "
            "should know"
        )
    dpi = legible(fig, dpi)
    raw = io.BytesIO()
    fig.savefig(raw, format="png", dpi=_SHARP * dpi, bbox_inches="tight", pad_inches=0.14)
    plt.close(fig)
    image = Image.open(raw).convert("RGB")
    # Drawn figures have few colours: a palette makes the file several times smaller.
    small = image.quantize(64, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    out = io.BytesIO()
    if features.check("webp"):
        small.convert("RGB").save(out, format="webp", lossless=True, quality=100)
        kind = "webp"
    else:
        small.save(out, format="png", optimize=True)
        kind = "png"
    return Picture(out.getvalue(), alt, round(image.width / _SHARP), kind)


def show(fig: Figure, *, alt: str, dpi: float = 110) -> None:
    """Display ``fig`` with alt text, and close it.

    Args:
        fig: a matplotlib figure.
        alt: what a reader who cannot see the figure should know; at least a sentence.
        dpi: dots per inch, in CSS pixels; the image has twice as many.

    Raises:
        ValueError: ``alt`` is missing or too short.
    """
    from IPython.display import display

    display(picture(fig, alt, dpi))
