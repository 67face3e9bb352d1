"""Stories: two animals, two things, and the places the things are moved to.

The state is two locations. Every event changes it (carry, hide, put beside, swap), reports it
(look for) or leaves it alone; the last line asks where one thing is, and the answer follows from
the text.
"""

from __future__ import annotations

import operator
from functools import reduce
from typing import Any

from minids3.data.grammar import zipf

__all__ = [
    "ANIMALS",
    "ENDINGS",
    "HE",
    "LINKS",
    "LOOKS",
    "NAMES",
    "OPENINGS",
    "PASTIMES",
    "PLACES",
    "REASONS",
    "SHE",
    "THINGS",
    "possessive",
    "program",
]

SHE = ("Mira", "Rosa", "Lena", "Tilly", "Nora", "Ada", "Ivy", "Wren")
HE = ("Otto", "Pip", "Felix", "Hugo", "Bruno", "Sam", "Jasper", "Gus")
NAMES = tuple(name for pair in zip(SHE, HE, strict=True) for name in pair)
ANIMALS = (
    "fox",
    "owl",
    "hare",
    "bear",
    "mouse",
    "goose",
    "badger",
    "otter",
    "hedgehog",
    "frog",
    "cat",
    "mole",
)
THINGS = (
    "lantern",
    "cup",
    "kite",
    "drum",
    "scarf",
    "clock",
    "basket",
    "violin",
    "umbrella",
    "map",
    "spoon",
    "blanket",
    "trumpet",
    "button",
)
LOOKS = (
    "red",
    "tiny",
    "shiny",
    "blue",
    "golden",
    "dusty",
    "round",
    "striped",
    "wooden",
    "crooked",
    "green",
    "silver",
    "squeaky",
    "painted",
)
PLACES = (
    "in the kitchen",
    "in the garden",
    "under the bridge",
    "in the attic",
    "behind the barn",
    "by the well",
    "on the porch",
    "in the cellar",
    "under the oak",
    "on the roof",
    "by the mill",
    "in the boat",
    "behind the stove",
    "at the market",
)
OPENINGS = (
    "One morning",
    "Long ago",
    "On a windy day",
    "In the first snow",
    "Last summer",
    "One quiet evening",
    "Early in spring",
    "On market day",
)
LINKS = ("Then", "Later", "Soon", "After lunch", "At dusk", "Before long", "Next", "At noon")
REASONS = (
    "the wind was strong",
    "it looked like rain",
    "nobody was watching",
    "the day was so bright",
    "a guest was coming",
    "the fire had gone out",
    "it seemed safer there",
    "the floor was wet",
    "the geese were noisy",
    "a song needed it",
)
PASTIMES = (
    "baked a plum cake",
    "took a long nap",
    "sang an old song",
    "counted the clouds",
    "wrote a letter to the moon",
    "danced in the rain",
    "told a story about the sea",
    "swept the stairs",
    "picked a bowl of berries",
    "watched the stars",
    "made warm soup",
    "learned a new whistle",
)
ENDINGS = (
    "Everyone slept well that night.",
    "It had been a good day.",
    "The moon came up over the hill.",
    "They laughed all the way home.",
    "Then they shared some bread.",
    "The kettle began to sing.",
)
FEWEST_EVENTS, MOST_EVENTS = 2, 4


def possessive(name: str) -> str:
    """Her or His, fixed by the name."""
    return "Her" if name in SHE else "His"


def program(d: Any) -> None:
    """One story."""
    d.pick(OPENINGS, zipf(len(OPENINGS), 0.7))
    d.emit(", ")
    first = d.pick(NAMES, zipf(len(NAMES), 0.8))
    d.emit(" the ")
    animal = d.pick(ANIMALS, zipf(len(ANIMALS), 0.5))
    d.emit(" left a ")
    look = d.pick(LOOKS, zipf(len(LOOKS), 0.6))
    d.emit(" ")
    thing = d.pick(THINGS)
    d.emit(" ")
    where = {thing: d.pick(PLACES, zipf(len(PLACES), 0.5))}
    d.emit(f". {possessive(first)} friend ")
    second = d.pick([name for name in NAMES if name != first])
    d.emit(" the ")
    d.pick([other for other in ANIMALS if other != animal])
    d.emit(" had a ")
    d.pick([other for other in LOOKS if other != look])
    d.emit(" ")
    other_thing = d.pick([other for other in THINGS if other != thing])
    d.emit(" and kept it ")
    where[other_thing] = d.pick([place for place in PLACES if place != where[thing]])
    d.emit(".")
    things = (thing, other_thing)
    for event in range(MOST_EVENTS):
        if event >= FEWEST_EVENTS and not d.branch(
            (True, False), (0.6, 0.4), show=lambda more: " " if more else "\n"
        ):
            break
        if event < FEWEST_EVENTS:
            d.emit(" ")
        _event(d, (first, second), things, where)
    else:
        d.emit("\n")
    d.pick(ENDINGS, zipf(len(ENDINGS), 0.7))
    d.emit("\nWhere is the ")
    asked = d.pick(things)
    d.emit(f" now? The {asked} is {where[asked]}.")


def _event(d: Any, people: tuple[str, str], things: tuple[str, str], where: dict[str, str]) -> None:
    """One sentence, and what it does to `where`."""
    d.pick(LINKS, zipf(len(LINKS), 0.8))
    d.emit(" ")
    d.pick(people)
    kind = d.branch(
        (" carried", " hid", " put", " swapped", " looked", " quietly"),
        (0.24, 0.2, 0.14, 0.1, 0.16, 0.16),
    )
    if kind == " swapped":
        d.emit(f" the {things[0]} and the {things[1]}.")
        where[things[0]], where[things[1]] = where[things[1]], where[things[0]]
        return
    if kind == " quietly":
        d.emit(" ")
        d.pick(PASTIMES, zipf(len(PASTIMES), 0.6))
        d.emit(".")
        return
    d.emit(" for the " if kind == " looked" else " the ")
    thing = d.pick(things)
    other = things[1] if thing == things[0] else things[0]
    if kind == " put":
        d.emit(f" next to the {other}.")
        where[thing] = where[other]
    elif kind == " looked":
        d.emit(f" and found it {where[thing]}.")
    else:
        d.emit(" away and left it " if kind == " carried" else " ")
        where[thing] = d.pick([place for place in PLACES if place != where[thing]])
        _reason(d)


def _reason(d: Any) -> None:
    """A full stop, or a reason and a full stop: one choice among all, hence symmetric."""
    weights = zipf(len(REASONS), 0.7)
    # One after the other: since Python 3.12 'sum' rounds sums of floats differently.
    scale = 0.35 / 0.65 / reduce(operator.add, weights)
    d.pick(
        (None, *REASONS),
        (1.0, *(w * scale for w in weights)),
        show=lambda reason: "." if reason is None else f", because {reason}.",
    )
