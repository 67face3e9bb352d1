"""Notes: numbers of things, written down once among other lines, and asked for at the end.

The only way to answer is to look back: which number belongs to which thing is drawn anew in every
document, so nothing can be remembered from training. That is what a test of long context needs (a
needle in a haystack), and the answers follow from the text, so the entropy stays exact.

The documents of the shipped shards do not hold this domain; the endless stream (`data.fresh`) does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from minids3.data.corpora.stories import LOOKS, NAMES, PASTIMES, THINGS
from minids3.data.grammar import Program, zipf

__all__ = ["FEWEST", "GAPS", "MOST", "needle", "program", "question", "with_gaps"]

FEWEST, MOST = 1, 4  # numbers to remember
GAPS = (0, 1, 2, 4, 8)  # lines about something else after each
LINES = tuple(f"{name} {pastime}.\n" for name in NAMES for pastime in PASTIMES)
LINE_WEIGHTS = tuple(a * b for a in zipf(len(NAMES), 0.6) for b in zipf(len(PASTIMES), 0.4))
KEYS = tuple(f"{look} {thing}" for look in LOOKS for thing in THINGS)
NUMBERS = tuple(range(100, 1000))


def needle(key: str, number: int) -> str:
    """The line that binds a number to a thing."""
    return f"The number of the {key} is {number}.\n"


def question(key: str) -> str:
    """The line that asks for it, up to where the number stands."""
    return f"Which number has the {key}? "


def with_gaps(
    gaps: Sequence[int], fewest: int = FEWEST, most: int = MOST, questions: int | None = None
) -> Program:
    """The program whose numbers stand ``gaps`` lines apart: longer gaps, longer documents.

    Args:
        gaps: how many lines about something else may follow a number, each as likely.
        fewest: numbers to remember,
        most: and how many at the most.
        questions: how many of them are asked for; None: all, in an order of its own.
    """

    def program(d: Any) -> None:
        d.emit("Notes\n")
        count = d.branch(range(fewest, most + 1), show=_numbered("thing"))
        found: dict[str, int] = {}
        for _ in range(count):
            key = d.pick(
                [k for k in KEYS if k not in found], show=lambda k: f"The number of the {k}"
            )
            found[key] = d.pick(NUMBERS, show=lambda n: f" is {n}.\n")
            for _ in range(d.branch(gaps, show=_numbered("line"))):
                d.pick(LINES, LINE_WEIGHTS)
        asked: list[str] = []
        for _ in range(count if questions is None else min(questions, count)):
            asked.append(d.pick([k for k in found if k not in asked], show=question))
            d.emit(f"{found[asked[-1]]}\n")

    return program


def _numbered(what: str) -> Callable[[int], str]:
    """How a count is written, so that a reader knows at once how much is to come."""
    return lambda n: f"{n} {what}{'' if n == 1 else 's'}\n"


program = with_gaps(GAPS)
