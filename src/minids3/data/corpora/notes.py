"""Notes: numbers of things, written down once among other lines, and said again at the end.

The only way to say them again is to look back: which number belongs to which thing is drawn anew in
every document, so nothing can be remembered from training. That is what a test of long context
needs (a needle in a haystack), and what is said again follows from the text, so the entropy stays
exact.

Small models learn to look back only from a dense signal. So most notes are short, everything is
said again several times, and a line that is said again begins as the first one did.

The documents of the shipped shards do not hold this domain; the endless stream (`data.fresh`) does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from minids3.data.corpora.stories import LOOKS, NAMES, PASTIMES, THINGS
from minids3.data.grammar import Program, zipf

__all__ = ["AGAIN", "FEWEST", "GAPS", "MOST", "needle", "program", "question", "with_gaps"]

FEWEST, MOST = 1, 4  # numbers to remember
GAPS = {0: 0.6, 1: 0.15, 2: 0.1, 4: 0.1, 8: 0.05}  # lines about something else after each
AGAIN = "Again\n"  # what follows was all said before
LINES = tuple(f"{name} {pastime}.\n" for name in NAMES for pastime in PASTIMES)
LINE_WEIGHTS = tuple(a * b for a in zipf(len(NAMES), 0.6) for b in zipf(len(PASTIMES), 0.4))
KEYS = tuple(f"{look} {thing}" for look in LOOKS for thing in THINGS)
NUMBERS = tuple(range(100, 1000))


def needle(key: str, number: int) -> str:
    """The line that binds a number to a thing."""
    return f"{question(key)}{number}.\n"


def question(key: str) -> str:
    """The same line up to where the number stands."""
    return f"The {key} has "


def with_gaps(
    gaps: Mapping[int, float],
    fewest: int = FEWEST,
    most: int = MOST,
    questions: int | None = None,
) -> Program:
    """The program whose numbers stand ``gaps`` lines apart: longer gaps, longer documents.

    Args:
        gaps: how many lines about something else may follow a number, and how likely each is.
        fewest: numbers to remember,
        most: and how many at the most.
        questions: how many are said again; None: three times as many as there are, drawn anew
            each time, so that some are said again and again.
    """

    def program(d: Any) -> None:
        d.emit("Notes\n")
        count = d.branch(range(fewest, most + 1), show=_numbered("thing"))
        found: dict[str, int] = {}
        for _ in range(count):
            key = d.pick([k for k in KEYS if k not in found], show=question)
            found[key] = d.pick(NUMBERS, show=lambda n: f"{n}.\n")
            for _ in range(d.branch(tuple(gaps), tuple(gaps.values()), _numbered("line"))):
                d.pick(LINES, LINE_WEIGHTS)
        d.emit(AGAIN)
        for _ in range(3 * count if questions is None else questions):
            again = d.pick(tuple(found), show=question)
            d.emit(f"{found[again]}.\n")

    return program


def _numbered(what: str) -> Callable[[int], str]:
    """How a count is written, so that a reader knows at once how much is to come."""
    return lambda n: f"{n} {what}{'' if n == 1 else 's'}\n"


program = with_gaps(GAPS)
