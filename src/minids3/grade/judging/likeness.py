"""Answers that are the same but for their names: shown to the instructor, and proving nothing.

Names of variables, functions and arguments are numbered in the order in which they appear, and
comments, docstrings and annotations are left out. Two answers that are then the same were written
from one another, or from a common source; or they are short, and right.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterable

from minids3.grade.records import SubmissionResult

__all__ = ["alike", "normal"]

_SHORT = 60  # nodes of a syntax tree: what is shorter looks alike when it is right
_KEPT = {*dir(builtins), "torch", "F", "np", "math", "tl", "triton"}


class _Names(ast.NodeTransformer):
    def __init__(self) -> None:
        self.known: dict[str, str] = {}

    def _of(self, name: str) -> str:
        return name if name in _KEPT else self.known.setdefault(name, f"v{len(self.known)}")

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name(self._of(node.id), node.ctx)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.arg(self._of(node.arg), None)

    def visit_keyword(self, node: ast.keyword) -> ast.AST:
        self.generic_visit(node)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.name, node.returns = self._of(node.name), None
        first = node.body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            node.body = node.body[1:] or [ast.Pass()]
        self.generic_visit(node)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is None:
            return ast.Pass()
        return self.visit(ast.Assign([node.target], node.value))


def normal(code: str) -> str:
    """Return what two copies of ``code`` have in common; "" where it is short, or no Python."""
    try:
        tree = ast.parse(code)
        if sum(1 for _ in ast.walk(tree)) < _SHORT:
            return ""
        return ast.dump(_Names().visit(tree))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""


def alike(results: Iterable[SubmissionResult]) -> list[tuple[str, list[str], bool]]:
    """Return exercise, students and whether the course's own solution is the same, group by group.

    A group has two students or more; the largest groups come first.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for r in results:
        for e in r.exercises:
            if e.status in ("stub", "missing") or not (text := normal(e.code)):
                continue
            groups.setdefault((e.id, text), []).append(r.student)
    own: dict[str, str] = {}
    found = []
    for (id, text), students in groups.items():
        if len(students) > 1:
            if id not in own:
                own[id] = normal(_solution(id))
            found.append((id, students, text == own[id]))
    return sorted(found, key=lambda g: (g[2], -len(g[1]), g[0]))


def _solution(id: str) -> str:
    from minids3.course.hints import source_of

    try:
        return source_of(id)
    except (KeyError, OSError, ImportError):
        return ""
