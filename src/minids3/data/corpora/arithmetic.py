"""Arithmetic: sums, differences and products, worked column by column.

Only the question is random; the working and the answer follow from it. So nearly all of a
document's entropy sits in its first line, and a model that has learned to calculate finds the
rest free.
"""

from __future__ import annotations

from typing import Any

from minids3.data.grammar import zipf

__all__ = ["GOODS", "WORDING", "answer", "program", "working"]

GOODS = (
    "pears",
    "coins",
    "shells",
    "beans",
    "stones",
    "ribbons",
    "candles",
    "nuts",
    "stamps",
    "eggs",
)
# Text after the first number, after the goods, and after the second number.
WORDING = {
    ("number", "Add"): (" + ", "", " = ?"),
    ("number", "Subtract"): (" - ", "", " = ?"),
    ("number", "Multiply"): (" * ", "", " = ?"),
    ("story", "Add"): (" ", " and ", " more."),
    ("story", "Subtract"): (" ", ", take away ", "."),
    ("story", "Multiply"): (" boxes of ", " each.", " "),
}


def program(d: Any) -> None:
    """One worked calculation."""
    sign = d.branch(("Add", "Subtract", "Multiply"), (0.4, 0.35, 0.25))
    d.emit(". ")
    form = d.branch(
        ("number", "story"), (0.6, 0.4), show=lambda f: "Q: " if f == "number" else "Word: "
    )
    words = WORDING[form, sign]
    if sign == "Multiply":
        a = d.pick(range(2, 100), show=lambda a: f"{a}{words[0]}")
    elif sign == "Add":
        a = d.pick(range(100), show=lambda a: f"{a}{words[0]}")
    else:  # the second number is at most the first, so the first decides how much is left to choose
        a = d.branch(range(1, 100), show=lambda a: f"{a}{words[0]}")
    if form == "story" and sign != "Multiply":
        d.pick(GOODS, zipf(len(GOODS), 0.6))
        d.emit(words[1])
    seconds = {"Multiply": range(2, 10), "Add": range(100), "Subtract": range(a + 1)}[sign]
    b = d.pick(seconds, show=lambda b: f"{b}{words[2]}")
    if form == "story" and sign == "Multiply":
        d.pick(GOODS, zipf(len(GOODS), 0.6))
        d.emit(words[1])
    for line in working(sign, a, b):
        d.emit("\n" + line)
    d.emit(f"\nA: {answer(sign, a, b)}")


def answer(sign: str, a: int, b: int) -> int:
    """The result of the calculation."""
    return {"Add": a + b, "Subtract": a - b, "Multiply": a * b}[sign]


def working(sign: str, a: int, b: int) -> list[str]:
    """The lines of a worked calculation, ones first, as on paper."""
    a_ones, a_tens, b_ones, b_tens = a % 10, a // 10, b % 10, b // 10
    if sign == "Add":
        ones = a_ones + b_ones
        carry = ones // 10
        return [
            f"ones: {a_ones} + {b_ones} = {ones}, write {ones % 10}, carry {carry}",
            f"tens: {a_tens} + {b_tens} + {carry} = {a_tens + b_tens + carry}",
            f"check: {a + b} - {b} = {a}",
        ]
    if sign == "Subtract":
        borrow = int(a_ones < b_ones)
        ones = a_ones + 10 * borrow
        return [
            f"ones: {ones} - {b_ones} = {ones - b_ones}, borrow {borrow}",
            f"tens: {a_tens} - {b_tens} - {borrow} = {a_tens - b_tens - borrow}",
            f"check: {a - b} + {b} = {a}",
        ]
    ones = a_ones * b
    carry = ones // 10
    return [
        f"ones: {a_ones} * {b} = {ones}, write {ones % 10}, carry {carry}",
        f"tens: {a_tens} * {b} + {carry} = {a_tens * b + carry}",
    ]
