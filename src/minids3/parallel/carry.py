"""Functions carried to other processes by their source.

A function of a notebook's cell cannot be pickled for another process: its module exists in the
kernel alone. Its source can be written to a file, together with what it uses: other functions and
classes of the notebook (by source, too), modules and what comes from modules (by an import), and
plain constants (by value).
"""

from __future__ import annotations

import ast
import inspect
import linecache
import symtable
import sys
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

__all__ = ["carry_functions"]


def carry_functions(functions: Sequence[Callable[..., Any]]) -> str:
    """The text of a module that defines ``functions`` and all they use.

    Raises:
        TypeError: one has no source or uses what cannot be carried; the message says which.
    """
    carrier = _Carrier()
    for function in functions:
        carrier.add_definition(function)
    return "from __future__ import annotations\n\n" + "\n\n".join(carrier.lines.values()) + "\n"


class _Carrier:
    """Collects definitions by name, those that are needed first before the others."""

    def __init__(self) -> None:
        self.lines: dict[str, str] = {}
        self._under_way: dict[str, Any] = {}

    def add_definition(self, thing: Any) -> None:
        """Add a function or class, and before it whatever it uses."""
        name = getattr(thing, "__name__", "")
        if not name.isidentifier():
            raise TypeError(f"{thing!r} cannot be carried: write it as 'def name(...)'")
        if name in self._under_way:
            if self._under_way[name] is not thing:
                raise TypeError(f"two different things are called {name}: rename one of them")
            return
        self._under_way[name] = thing
        source = _source(thing)
        known = _names_known_to(thing)
        for used in _free_names(source):
            if used != name and used in known:
                self._add(used, known[used], thing)
        self.lines[name] = source

    def _add(self, name: str, value: Any, user: Any) -> None:
        if name in self.lines or (name in self._under_way and self._under_way[name] is value):
            return
        if isinstance(value, types.ModuleType):
            self.lines[name] = f"import {value.__name__} as {name}"
            return
        module, own = getattr(value, "__module__", None), getattr(value, "__name__", None)
        at_home = isinstance(own, str) and getattr(sys.modules.get(module or ""), own, None)
        if isinstance(value, types.FunctionType | type) and _is_local(value, user):
            self.add_definition(value)
            if own != name:
                self.lines[name] = f"{name} = {own}"
        elif at_home is value:
            self.lines[name] = f"from {module} import {own} as {name}"
        elif _is_constant(value):
            self.lines[name] = f"{name} = {value!r}"
        else:
            found = _where_importable(value)
            if found is None:
                raise TypeError(
                    f"{user.__name__} uses {name}, a {type(value).__name__}, which cannot be "
                    "carried to another process: pass it as an argument"
                )
            self.lines[name] = f"from {found[0]} import {found[1]} as {name}"


def _is_local(value: Any, user: Any) -> bool:
    """Whether a process of its own could not import it."""
    if value.__module__ == "__main__":
        return True
    return value.__module__ == user.__module__ and not value.__module__.startswith("minids3.")


def _where_importable(value: Any) -> tuple[str, str] | None:
    """Objects such as dtypes and ``torch.ops``: an attribute of a well-known module."""
    import math

    import numpy as np
    import torch
    import torch.distributed as dist

    for module in (torch, dist, np, math):
        for name, found in vars(module).items():
            if found is value and name.isidentifier():
                return module.__name__, name
    return None


def _is_constant(value: Any) -> bool:
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False


def _names_known_to(thing: Any) -> Mapping[str, Any]:
    """Globals and enclosing variables of a function, or of a class's methods."""
    known: dict[str, Any] = {}
    for function in _functions_of(thing):
        known |= function.__globals__
        for name, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        ):
            try:
                known[name] = cell.cell_contents
            except ValueError:  # not assigned yet
                continue
    return known


def _functions_of(thing: Any) -> Iterator[types.FunctionType]:
    thing = inspect.unwrap(thing) if callable(thing) and not isinstance(thing, type) else thing
    if isinstance(thing, types.FunctionType):
        yield thing
        return
    for value in vars(thing).values():
        value = getattr(value, "__func__", getattr(value, "fget", value))
        if isinstance(value, types.FunctionType):
            yield value


def _source(thing: Any) -> str:
    try:
        if isinstance(thing, type):
            return _class_source(thing)
        source = textwrap.dedent(inspect.getsource(thing))
        ast.parse(source)
    except (OSError, TypeError, SyntaxError) as error:
        raise TypeError(
            f"the source of {thing.__name__} is not to be found ({error}): define it with 'def' "
            "in a cell or a file"
        ) from error
    if source.lstrip().startswith(("def ", "async ", "@")):
        return source.rstrip()
    raise TypeError(f"{thing.__name__} cannot be carried: write it as 'def name(...)'")


def _class_source(thing: type) -> str:
    """Source of a class, found through a method's file: cells have no module's file."""
    for function in _functions_of(thing):
        lines = linecache.getlines(function.__code__.co_filename)
        for node in ast.walk(ast.parse("".join(lines))):
            if isinstance(node, ast.ClassDef) and node.name == thing.__name__:
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                text = "".join(lines[first - 1 : node.end_lineno])
                return textwrap.dedent(text).rstrip()
    return textwrap.dedent(inspect.getsource(thing)).rstrip()


def _free_names(source: str) -> list[str]:
    """Names that a definition takes from outside, in any scope inside it."""
    found: dict[str, None] = {}
    future = "from __future__ import annotations\n"  # annotations are not evaluated
    tables = [symtable.symtable(future + source, "<carried>", "exec")]
    while tables:
        table = tables.pop()
        top = table.get_type() == "module"
        for symbol in table.get_symbols():
            free = (
                symbol.is_referenced() and not symbol.is_assigned() if top else symbol.is_global()
            )
            if free:
                found[symbol.get_name()] = None
        tables += table.get_children()
    return list(found)
