"""Lines of source text as Python numbers them."""

from __future__ import annotations

import re

__all__ = ["lines_of"]


def lines_of(source: str) -> list[str]:
    """Return the lines of ``source``, without their ends.

    ``str.splitlines`` ends one at a form feed or a U+2028 as well, which a comment may hold and
    Python's tokenizer takes for an ordinary character.
    """
    return re.split(r"\r\n|\r|\n", source)
