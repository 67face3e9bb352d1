"""Show a figure as a small PNG that carries its alt text.

The output is an HTML image, not a bare PNG: JupyterLab 4 and nbconvert's default page drop the alt
text of an "image/png" output (no template reads it), and keep that of an HTML one.
"""

from __future__ import annotations

import base64
import html
import io
from typing import Any

from matplotlib.figure import Figure

__all__ = ["Picture", "picture", "show"]

_SHORTEST = 20


class Picture:
    """A PNG with alt text, shown as an HTML image; the alt text is in the metadata too."""

    def __init__(self, png: bytes, alt: str, width: int) -> None:
        """Keep the bytes, the alt text and the width in CSS pixels."""
        self.png = png
        self.alt = alt
        self.width = width

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict, dict]:
        """Return data and metadata."""
        source = base64.b64encode(self.png).decode("ascii")
        image = (
            f'<img alt="{html.escape(self.alt, quote=True)}" width="{self.width}" '
            f'style="max-width:100%;height:auto;border-radius:6px" '
            f'src="data:image/png;base64,{source}">'
        )
        data = {"text/html": image, "text/plain": f"Figure: {self.alt}"}
        return data, {"text/html": {"alt": self.alt}}

    def __repr__(self) -> str:
        return f"Figure: {self.alt}"


def picture(fig: Figure, alt: str, dpi: int = 110) -> Picture:
    """Draw ``fig`` into a palette PNG and close it.

    Raises:
        ValueError: ``alt`` is missing or too short to tell anything.
    """
    import matplotlib.pyplot as plt
    from PIL import Image

    alt = " ".join((alt or "").split())
    if len(alt) < _SHORTEST:
        raise ValueError(
            f"alt={alt!r} is too short: say in a sentence what a reader who cannot see the figure "
            "should know"
        )
    raw = io.BytesIO()
    fig.savefig(raw, format="png", dpi=dpi, bbox_inches="tight", pad_inches=0.14)
    plt.close(fig)
    image = Image.open(raw).convert("RGB")
    # Drawn figures have few colours: a palette makes the file three times smaller.
    small = image.quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    out = io.BytesIO()
    small.save(out, format="png", optimize=True)
    return Picture(out.getvalue(), alt, image.width)


def show(fig: Figure, *, alt: str, dpi: int = 110) -> None:
    """Display ``fig`` with alt text, and close it.

    Args:
        fig: a matplotlib figure.
        alt: what a reader who cannot see the figure should know; at least a sentence.
        dpi: dots per inch.

    Raises:
        ValueError: ``alt`` is missing or too short.
    """
    from IPython.display import display

    display(picture(fig, alt, dpi))
