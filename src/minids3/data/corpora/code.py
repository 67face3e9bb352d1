"""Code: small Python functions whose docstring fixes the body, and asserts that execute.

The name and the docstring are random; the body follows from them. The arguments of the asserts are
random; what they must equal follows by calculation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minids3.data.grammar import zipf

__all__ = ["KINDS", "LISTS", "NUMBERS", "SMALL", "TEXTS", "WORDS", "Kind", "program", "show_value"]

NUMBERS = ("n", "x", "value", "num")
LISTS = ("xs", "items", "numbers", "row")
TEXTS = ("s", "text", "word")
WORDS = ("moon", "tea", "bird", "sun", "leaf", "rain", "snow", "star", "bee", "corn")
SMALL = range(1, 10)


@dataclass(frozen=True)
class Kind:
    """A family of functions; `doc` and `body` may name the argument {v}, constants {k} and {c}."""

    name: str
    argument: str  # "number", "list" or "text"
    doc: tuple[str, ...]  # fixed pieces; between them stand the constants k and then c
    body: tuple[str, ...]
    run: Callable[[Any, int, int], Any]


KINDS = (
    Kind("scale", "number", ("{v} times ", " plus ", "."), ("return {v} * {k} + {c}",),
         lambda v, k, c: v * k + c),
    Kind("lower", "number", ("{v} minus ", "."), ("return {v} - {k}",), lambda v, k, c: v - k),
    Kind("count_above", "list", ("how many numbers in {v} are above ", "."),
         ("count = 0", "for i in {v}:", "    if i > {k}:", "        count += 1", "return count"),
         lambda v, k, c: sum(i > k for i in v)),
    Kind("sum_below", "list", ("the sum of the numbers in {v} below ", "."),
         ("total = 0", "for i in {v}:", "    if i < {k}:", "        total += i", "return total"),
         lambda v, k, c: sum(i for i in v if i < k)),
    Kind("keep_above", "list", ("the numbers in {v} above ", ", in order."),
         ("return [i for i in {v} if i > {k}]",), lambda v, k, c: [i for i in v if i > k]),
    Kind("add_to_each", "list", ("every number in {v} plus ", "."),
         ("return [i + {k} for i in {v}]",), lambda v, k, c: [i + k for i in v]),
    Kind("largest", "list", ("the largest of {v} plus ", "."), ("return max({v}) + {k}",),
         lambda v, k, c: max(v) + k),
    Kind("smallest", "list", ("the smallest of {v} times ", "."), ("return min({v}) * {k}",),
         lambda v, k, c: min(v) * k),
    Kind("repeat", "text", ("{v} repeated ", " times."), ("return {v} * {k}",), lambda v, k, c: v
    * k), Kind("at_least", "number", ("{v}, but never less than ", "."),
         ("if {v} < {k}:", "    return {k}", "return {v}"), lambda v, k, c: max(v, k)),
    Kind("is_multiple", "number", ("whether {v} is a multiple of ", "."),
         ("return {v} % {k} == 0",), lambda v, k, c: v % k == 0),
    Kind("longer_than", "text", ("whether {v} has more than ", " letters."),
         ("return len({v}) > {k}",), lambda v, k, c: len(v) > k),
)  # fmt: skip


def program(d: Any) -> None:
    """One function and its asserts."""
    d.emit("def ")
    kind = d.branch(KINDS, zipf(len(KINDS), 0.3), show=lambda kind: f"{kind.name}(")
    names = {"number": NUMBERS, "list": LISTS, "text": TEXTS}[kind.argument]
    variable = d.pick(names, zipf(len(names), 0.5), show=lambda name: f"{name}):\n")
    d.emit('    """Return ' + kind.doc[0].format(v=variable))
    k = d.pick(SMALL)
    c = 0
    d.emit(kind.doc[1])
    if len(kind.doc) == 3:
        c = d.pick(SMALL)
        d.emit(kind.doc[2])
    d.emit('"""\n')
    for line in kind.body:
        d.emit("    " + line.format(v=variable, k=k, c=c) + "\n")
    for _ in range(2):
        d.emit(f"\nassert {kind.name}(")
        value = _value(d, kind.argument)
        d.emit(f") == {show_value(kind.run(value, k, c))}")
    d.emit("\n")


def show_value(value: Any) -> str:
    """A Python literal, with double quotes round text."""
    return f'"{value}"' if isinstance(value, str) else str(value)


def _value(d: Any, argument: str) -> Any:
    """A random argument, written as a literal."""
    if argument == "number":
        return d.pick(range(10))
    if argument == "text":
        return d.pick(WORDS, zipf(len(WORDS), 0.5), show=show_value)
    d.emit("[")
    values = []
    for last in (False, False, True):
        values.append(d.pick(range(10)))
        d.emit("]" if last else ", ")
    return values
