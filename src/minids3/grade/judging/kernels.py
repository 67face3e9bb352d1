"""Triton kernels as answers: what of their cells runs, and what a kernel may be made of.

Interpreted, a kernel is ordinary Python, and Python can do everything: an object that looks like a
kernel, or a body that computes with PyTorch, would give right numbers and is not what is asked for.
So of a student's cells only imports, functions and constants run, and the kernel with all it calls
is read: its names must be Triton's, its parameters, or constants.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable

from minids3.course.names import names_of
from minids3.grade.judging.shortcuts import chain, imports
from minids3.grade.lines import lines_of
from minids3.grade.process.tripwire import resolve

__all__ = ["definitions", "strangers"]

_DECORATORS = {"jit", "autotune", "heuristics"}
_CONSTANT = (
    ast.Constant, ast.Name, ast.Attribute, ast.UnaryOp, ast.BinOp, ast.Tuple, ast.List, ast.Call,
    ast.operator, ast.unaryop, ast.expr_context, ast.keyword,
)  # fmt: skip
_BUILTINS = {
    "range", "min", "max", "abs", "len", "int", "float", "bool", "print", "tuple", "isinstance",
    "str", "slice", "None", "NotImplementedError", "AssertionError", "RuntimeError", "ValueError",
}  # fmt: skip
_HOMES = ("triton", "minids3.kernels", "math")
_INNER = {"handle", "numpy", "data_ptr", "core", "semantic", "runtime", "compiler", "interpreter"}


def _parse(code: str) -> list[ast.stmt]:
    try:
        return ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


def _plain(node: ast.expr | None) -> bool:
    """Whether an expression can do nothing but name or compute a constant."""
    for part in ast.walk(node) if node is not None else ():
        if not isinstance(part, _CONSTANT):
            return False
        called = chain(part.func) if isinstance(part, ast.Call) else "constexpr"
        if called.rpartition(".")[2] not in ("constexpr", "Config", "cdiv", "next_power_of_2"):
            return False
    return True


def _triton_s(decorator: ast.expr) -> bool:
    name = chain(decorator.func if isinstance(decorator, ast.Call) else decorator)
    return name.rpartition(".")[2] in _DECORATORS


def _defines(node: ast.stmt) -> bool:
    if isinstance(node, ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.FunctionDef):
        defaults = [*node.args.defaults, *node.args.kw_defaults]
        return all(map(_triton_s, node.decorator_list)) and all(map(_plain, defaults))
    if isinstance(node, ast.Assign):
        return _plain(node.value) and all(isinstance(t, ast.Name) for t in node.targets)
    return isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and _plain(
        node.value)  # fmt: skip


def definitions(code: str) -> str:
    """Return the imports, functions and constants of a cell, each on its own line as before."""
    body = _parse(code)
    if not body:
        return code  # running it tells why it is no Python
    lines = lines_of(code)
    kept: set[int] = set()
    for node in body:
        if _defines(node):
            first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
            kept.update(range(first, (node.end_lineno or first) + 1))
    return "\n".join(line if n in kept else "" for n, line in enumerate(lines, 1))


def strangers(name: str, codes: Iterable[str]) -> list[str]:
    """Return what the kernel ``name``, or a function that it calls, uses that is not Triton's."""
    codes = list(codes)
    bound = imports(codes)
    functions: dict[str, ast.FunctionDef] = {}
    constants: dict[str, ast.expr | None] = {}
    for stmt in (n for code in codes for n in _parse(code)):
        if isinstance(stmt, ast.FunctionDef):
            functions[stmt.name] = stmt
        elif isinstance(stmt, ast.Assign | ast.AnnAssign) and _defines(stmt):
            for target in stmt.targets if isinstance(stmt, ast.Assign) else [stmt.target]:
                constants[ast.unparse(target)] = stmt.value
    found: list[str] = []
    seen: set[str] = set()
    todo = [name]
    while todo:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        if current in functions:
            node = functions[current]
            todo += sorted(names_of(node.body).loads - _parameters(node))
            found += _inside(node)
        elif current in constants:
            todo += sorted(n.id for n in ast.walk(constants[current] or ast.Constant(0))
                           if isinstance(n, ast.Name))  # fmt: skip
        elif current in bound:
            if not _of_triton(bound[current]):
                found.append(bound[current])
        elif current not in _BUILTINS | {"tl", "triton", "jit", "math", name}:
            found.append(current)
    return list(dict.fromkeys(found))


def _parameters(node: ast.FunctionDef) -> set[str]:
    own = {a.arg for a in ast.walk(node.args) if isinstance(a, ast.arg)}
    return own | set(names_of(node.body).binds)


def _of_triton(where: str) -> bool:
    if where.split(".")[0] == "triton":
        return not set(where.split(".")) & _INNER
    if where.startswith(_HOMES):
        return True
    place = resolve(where)
    return place is not None and type(place[2]).__module__.startswith("triton.")


def _inside(node: ast.FunctionDef) -> list[str]:
    """Return the attributes in a kernel's body that lead out of Triton's language."""
    names = [n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)]
    odd = [n for n in names if n.startswith("_") or n in _INNER]
    inner = [n for n in ast.walk(node) if isinstance(n, ast.Import | ast.ImportFrom)]
    return [*(f".{n}" for n in odd), *(ast.unparse(n) for n in inner)]
