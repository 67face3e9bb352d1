"""Facts: questions and answers about an invented world that never changes.

Eighteen towns, each with a river, a region, a ruler and a craft, drawn once from a fixed seed.
Which question is asked is random, the answer is not: a model has to remember the world. All names
are invented.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minids3.data.grammar import zipf

__all__ = [
    "CRAFTS",
    "FORMS",
    "MOST_QUESTIONS",
    "REGIONS",
    "RIVERS",
    "RULERS",
    "TOWNS",
    "WORLD",
    "Form",
    "Town",
    "program",
]

TOWNS = (
    "Velmora", "Drisk", "Ombrey", "Tarnlow", "Quessin", "Haldo", "Brunnet", "Sorvale", "Pellick",
    "Yarrum", "Corvane", "Nubbin", "Ashkell", "Feldra", "Zimmet", "Luthen", "Garrow", "Wexil",
)  # fmt: skip
RIVERS = (
    "Ossin", "Thrane", "Melk", "Ruvo", "Cindle", "Bray", "Noor", "Plessa", "Gavel", "Sissel",
    "Dorn", "Umber", "Hythe", "Larkin", "Ivo", "Skell", "Tamble", "Wode",
)  # fmt: skip
REGIONS = ("Nethmark", "Oriel", "Sulland", "Bexley", "Caldor", "Fenwick")
RULERS = (
    "Queen Idra", "King Bolm", "Duke Hesk", "Lady Orsa", "Queen Tavi", "King Rumo", "Duke Plin",
    "Lady Zuri", "Queen Nell", "King Ferro", "Duke Wim", "Lady Cass", "Queen Uma", "King Gorse",
    "Duke Yost", "Lady Embra", "Queen Fenn", "King Dask",
)  # fmt: skip
CRAFTS = ("glass", "rope", "boats", "bells", "paper", "carpets", "cheese", "knives", "honey")


@dataclass(frozen=True)
class Town:
    """One row of the invented world."""

    name: str
    river: str
    region: str
    ruler: str
    craft: str


def _draw_world(seed: str = "world 1") -> tuple[Town, ...]:
    rng = random.Random(seed)

    def shuffled(values: tuple[str, ...]) -> list[str]:
        return sorted(values, key=lambda _: rng.random())

    rivers, rulers = shuffled(RIVERS), shuffled(RULERS)
    regions = shuffled(REGIONS * 3)
    crafts = shuffled(CRAFTS * 2)
    return tuple(Town(*row) for row in zip(TOWNS, rivers, regions, rulers, crafts, strict=True))


WORLD = _draw_world()


@dataclass(frozen=True)
class Form:
    """A way to ask: text before the key, text after it with the answer; `key` names a column."""

    ask: str
    key: str
    reply: Callable[[Town], str]


FORMS = (
    Form("Which river runs through ", "name", lambda t: f"?\nThe {t.river} runs through {t.name}."),
    Form("What do people make in ", "name", lambda t: f"?\nThey make {t.craft} in {t.name}."),
    Form("Who rules ", "name", lambda t: f"?\n{t.ruler} rules {t.name}."),
    Form("In which region is ", "name", lambda t: f"?\n{t.name} is in {t.region}."),
    Form("Which town lies on the ", "river", lambda t: f"?\n{t.name} lies on the {t.river}."),
    Form("Where does ", "ruler", lambda t: f" rule?\n{t.ruler} rules {t.name}."),
    Form("Who governs on the ", "river", lambda t: f"?\n{t.ruler} governs {t.name}."),
    Form("What is made on the ", "river", lambda t: f"?\n{t.craft.capitalize()} from {t.name}."),
    Form("Tell me about ", "name", lambda t: (
        f".\n{t.name} is a town in {t.region}. The {t.river} runs through it. "
        f"Its people make {t.craft}, and {t.ruler} rules there.")),
)  # fmt: skip
MOST_QUESTIONS = 5


def program(d: Any) -> None:
    """Two to five questions with their answers."""
    d.emit("Ask: ")
    for number in range(1, MOST_QUESTIONS + 1):
        form = d.pick(FORMS, zipf(len(FORMS), 0.4), show=lambda form: form.ask)
        town = d.pick(
            WORLD, zipf(len(WORLD), 0.6), show=lambda town, key=form.key: getattr(town, key)
        )
        d.emit(form.reply(town))
        if number == 1:
            d.emit("\nAsk: ")
        elif number == MOST_QUESTIONS:
            d.emit("\nEnd.")
        elif not d.branch(
            (True, False), (0.65, 0.35), show=lambda more: "\nAsk: " if more else "\nEnd."
        ):
            return
