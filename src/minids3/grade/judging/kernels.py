"""Triton kernels as answers: what of their cells runs, and what a kernel may be made of.

Interpreted, a kernel is ordinary Python, and Python can do everything: an object that looks like a
kernel, or a body that computes with PyTorch, would give right numbers and is not what is asked for.
So of a student's cells only imports, functions and constants run, and the kernel with all it calls
is read. What may stand there is listed, and everything else is refused: decorators, names and
attributes must be Triton's, and of Python's statements those remain that Triton compiles.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

from minids3.course.names import names_of
from minids3.grade.judging.shortcuts import chain, imports
from minids3.grade.lines import lines_of
from minids3.grade.process.tripwire import resolve

__all__ = ["definitions", "strangers"]

_GIVEN = {"triton": "triton", "tl": "triton.language", "jit": "triton.jit", "math": "math"}
_FIELDS = (  # of tensors, types and descriptors, which their classes do not list
    "T", "address_space", "block_shape", "const", "dtype", "element_ty", "fp_mantissa_width",
    "int_bitwidth", "int_signedness", "itemsize", "name", "numel", "primitive_bitwidth", "scalar",
    "shape", "start", "step", "stop", "strides", "type", "value",
)  # fmt: skip
_DECORATORS = {"jit", "autotune"}
_HOOKS = {"pre_hook", "post_hook", "prune_configs_by", "do_bench"}  # they run on the host
_MAKERS = {"constexpr", "Config", "cdiv", "next_power_of_2"}
_CONSTANT = (
    ast.Constant, ast.Name, ast.Attribute, ast.UnaryOp, ast.BinOp, ast.BoolOp, ast.Compare,
    ast.IfExp, ast.Subscript, ast.Slice, ast.Tuple, ast.List, ast.Dict, ast.Set, ast.ListComp,
    ast.GeneratorExp, ast.comprehension, ast.Call, ast.operator, ast.unaryop, ast.boolop,
    ast.cmpop, ast.expr_context, ast.keyword,
)  # fmt: skip
_NOT_COMPILED = (
    ast.AsyncFor, ast.AsyncFunctionDef, ast.AsyncWith, ast.Await, ast.ClassDef, ast.Delete,
    ast.DictComp, ast.FunctionDef, ast.GeneratorExp, ast.Global, ast.Import, ast.ImportFrom,
    ast.Lambda, ast.Match, ast.Nonlocal, ast.SetComp, ast.Try, ast.With, ast.Yield, ast.YieldFrom,
)  # fmt: skip
_BUILTINS = {
    "range", "min", "max", "abs", "len", "int", "float", "bool", "print", "tuple", "isinstance",
    "str", "slice", "None", "NotImplementedError", "AssertionError", "RuntimeError", "ValueError",
}  # fmt: skip
_INNER = {"handle", "numpy", "data_ptr", "core", "semantic", "runtime", "compiler", "interpreter"}


def _parse(code: str) -> list[ast.stmt]:
    try:
        return ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


class _Names:
    """Which names a student's cells bind, and which stand for Triton's own."""

    def __init__(self, own: Iterable[str], given: Iterable[str] = ()) -> None:
        own = list(own)
        self.bound = {**_GIVEN, **imports(given), **imports(own)}
        statements = [s for code in own for s in _parse(code)]
        plain = [s for s in statements if not isinstance(s, ast.Import | ast.ImportFrom)]
        self.own = {name for s in plain for name in names_of(s).binds}

    def triton_s(self, name: str) -> bool:
        """Whether a dotted name is something of Triton's, whatever the cells have renamed."""
        first, _, rest = name.partition(".")
        if first in self.own or first not in self.bound:
            return False
        return _of_triton(f"{self.bound[first]}.{rest}" if rest else self.bound[first])

    def plain(self, node: ast.AST | None) -> bool:
        """Whether an expression can do nothing but name or compute a constant."""
        for part in ast.walk(node) if node is not None else ():
            if not isinstance(part, _CONSTANT):
                return False
            if isinstance(part, ast.Attribute) and part.attr not in _attributes():
                return False
            if isinstance(part, ast.keyword) and part.arg in {None, *_HOOKS}:
                return False
            if isinstance(part, ast.Call):
                called = chain(part.func)
                if called.rpartition(".")[2] not in _MAKERS or not self.triton_s(called):
                    return False
        return True

    def decorates(self, node: ast.expr) -> bool:
        """Whether a decorator is Triton's ``jit``, or ``autotune`` over plain configurations."""
        name = chain(node.func if isinstance(node, ast.Call) else node)
        if name.rpartition(".")[2] not in _DECORATORS or not self.triton_s(name):
            return False
        if not isinstance(node, ast.Call):
            return True
        hooks = any(k.arg in {None, *_HOOKS} for k in node.keywords)
        return not hooks and all(map(self.plain, [*node.args, *(k.value for k in node.keywords)]))

    def defines(self, node: ast.stmt) -> bool:
        """Whether a statement imports, defines a function or names a constant, and no more."""
        if isinstance(node, ast.Import | ast.ImportFrom):
            return True
        if isinstance(node, ast.FunctionDef):
            around = [*node.args.defaults, *node.args.kw_defaults, node.returns]
            around += [a.annotation for a in ast.walk(node.args) if isinstance(a, ast.arg)]
            return all(map(self.decorates, node.decorator_list)) and all(map(self.plain, around))
        if isinstance(node, ast.Assign):
            return self.plain(node.value) and all(isinstance(t, ast.Name) for t in node.targets)
        if isinstance(node, ast.AnnAssign):
            return isinstance(node.target, ast.Name) and all(
                map(self.plain, (node.annotation, node.value))
            )
        return False


@lru_cache(maxsize=1)
def _attributes() -> frozenset[str]:
    """Return the names after a dot that lead to something of Triton's language."""
    from minids3.kernels.language import tl

    found = {"language", "extra", "libdevice", "cdiv", "next_power_of_2", "Config", "constexpr"}
    found |= {*dir(math), "jit", "autotune", *_FIELDS}
    homes: list[Any] = [tl, tl.math, tl.dtype, tl.pointer_type, tl.block_type, tl.constexpr]
    homes += [tl.tensor, getattr(tl, "tensor_descriptor", tl)]
    homes += [getattr(tl.core, name) for name in dir(tl.core) if "tensor_descriptor" in name]
    for home in homes:
        found |= set(dir(home))
    return frozenset(n for n in found if not n.startswith("_") and n not in _INNER)


def definitions(code: str, own: Iterable[str] = (), given: Iterable[str] = ()) -> str:
    """Return the imports, functions and constants of a cell, each on its own line as before.

    Args:
        code: the cell.
        own: all cells of the student's that run, for what they bind.
        given: the notebook's cells, for what they import.
    """
    body = _parse(code)
    if not body:
        return code  # running it tells why it is no Python
    names = _Names([*own, code], given)
    lines = lines_of(code)
    for node in reversed(body):
        if not names.defines(node):
            _blank(lines, node)
    kept = "\n".join(lines)
    if all(isinstance(n, ast.Pass) or names.defines(n) for n in _parse(kept)):
        return kept
    return "\n".join(ast.unparse(n) for n in body if names.defines(n))


def _blank(lines: list[str], node: ast.stmt) -> None:
    """Put ``pass`` in a statement's place; lines keep their numbers."""
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) - 1
    last = (node.end_lineno or node.lineno) - 1
    begin = 0 if first < node.lineno - 1 else node.col_offset  # columns count bytes
    head = lines[first].encode()[:begin].decode()
    tail = lines[last].encode()[node.end_col_offset or 0 :].decode()
    inside = head.strip() or tail.strip(" \t;")
    lines[first : last + 1] = [""] * (last - first + 1)
    lines[first] = f"{head}pass{tail}" if inside else ""


def strangers(name: str, own: Iterable[str], given: Iterable[str] = ()) -> list[str]:
    """Return what the kernel ``name``, or a function that it calls, uses that is not Triton's.

    Args:
        name: the kernel.
        own: the student's cells.
        given: the notebook's own.
    """
    own, given = list(own), list(given)
    names = _Names(own, given)
    functions: dict[str, list[ast.FunctionDef]] = {}
    constants: dict[str, list[ast.expr | None]] = {}
    for stmt in (n for code in [*given, *own] for n in _parse(code) if names.defines(n)):
        if isinstance(stmt, ast.FunctionDef):
            functions.setdefault(stmt.name, []).append(stmt)
        elif isinstance(stmt, ast.Assign | ast.AnnAssign):
            for target in stmt.targets if isinstance(stmt, ast.Assign) else [stmt.target]:
                constants.setdefault(ast.unparse(target), []).append(stmt.value)
    found: list[str] = []
    seen: set[str] = set()
    todo = [name]
    while todo:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        for node in functions.get(current, ()):
            todo += sorted(names_of(node).loads - {current})
            found += _inside(node)
        for value in constants.get(current, ()):
            todo += sorted(n.id for n in ast.walk(value or ast.Constant(0))
                           if isinstance(n, ast.Name))  # fmt: skip
        if current in functions or current in constants:
            continue
        if current in names.bound:
            if not _of_triton(names.bound[current]):
                found.append(names.bound[current])
        elif current not in _BUILTINS | {name}:
            found.append(current)
    return list(dict.fromkeys(found))


def _of_triton(where: str) -> bool:
    parts = where.split(".")
    if parts[0] == "triton":
        return not set(parts) & _INNER
    if parts[0] == "math" or parts[:2] == ["minids3", "kernels"]:
        return True
    place = resolve(where)
    return place is not None and type(place[2]).__module__.startswith("triton.")


def _inside(node: ast.FunctionDef) -> Iterator[str]:
    """Yield what stands in a kernel's body that is not Triton's language."""
    for part in (n for stmt in node.body for n in ast.walk(stmt)):
        if isinstance(part, ast.Import | ast.ImportFrom):
            yield ast.unparse(part)
        elif isinstance(part, _NOT_COMPILED):
            yield _WORDS.get(type(part).__name__, type(part).__name__.lower())
        elif isinstance(part, ast.Attribute) and part.attr not in _attributes():
            yield f".{part.attr}"
        elif isinstance(part, ast.Call) and not isinstance(part.func, ast.Name | ast.Attribute):
            yield f"a call of {ast.unparse(part.func)[:40]}"


_WORDS = {
    "FunctionDef": "a function inside of it", "GeneratorExp": "a generator", "Match": "match",
    "ClassDef": "a class", "DictComp": "a comprehension", "SetComp": "a comprehension",
}  # fmt: skip
