"""Notebooks where there is no Triton: a cell that needs it is skipped in one line, the rest runs.

'Run all' stops at the first exception, so each cell is wrapped before it runs: what raises for want
of Triton, or for want of a name that a skipped cell would have defined, ends the cell quietly. Any
other exception is the reader's, and comes out as always.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from minids3.course.names import names_of

__all__ = ["SKIPPED", "Skipping", "install"]

SKIPPED = "skipped, no Triton"
_NAME = "__minids3_cell__"


class Skipping(ast.NodeTransformer):
    """An AST transformer of IPython; its instance is also the context that cells run in.

    A cell ``a; b; c`` becomes ``with cell: a; b`` and ``cell.last(lambda: c)``, so that the value
    of a last expression is still shown.
    """

    def __init__(self, variables: dict[str, Any]) -> None:
        """Keep the notebook's variables."""
        self.lost: set[str] = set()  # names that skipped cells would have bound
        self._variables = variables
        self._binds: set[str] = set()
        self._skip = False

    def visit_Module(self, tree: ast.Module) -> ast.Module:
        """Wrap a cell."""
        self._binds, self._skip = set(names_of(tree).binds - self._variables.keys()), False
        head = []
        while tree.body and isinstance(tree.body[0], ast.ImportFrom):
            if tree.body[0].module != "__future__":
                break
            head.append(tree.body.pop(0))
        body, last = tree.body, []
        unfit = (ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr)  # to stand in a lambda
        shown = bool(body) and isinstance(body[-1], ast.Expr)
        if shown and not any(isinstance(node, unfit) for node in ast.walk(body[-1])):
            last = [body.pop()]
        wrapped: list[ast.stmt] = [*head]
        if body:
            with_ = ast.parse(f"with {_NAME}:\n    pass").body[0]
            assert isinstance(with_, ast.With)
            with_.body = body
            wrapped.append(ast.copy_location(with_, body[0]))
        for statement in last:
            call = ast.parse(f"{_NAME}.last(lambda: 0)").body[0]
            call.value.args[0].body = statement.value  # type: ignore[attr-defined]
            wrapped.append(ast.copy_location(call, statement))
        tree.body = wrapped
        return ast.fix_missing_locations(tree)

    def __enter__(self) -> None:
        """Begin the statements of a cell."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        """Swallow what is raised for want of Triton."""
        if error is None or not self._wants_triton(error):
            return False
        self._skip = True
        self.lost |= self._binds
        for name in self._binds:
            self._variables.pop(name, None)  # half of what was meant, such as an empty table
        print(f"{SKIPPED}.")
        return True

    def last(self, value: Callable[[], Any]) -> Any:
        """Return the value of a cell's last expression, or None if the cell is skipped."""
        if self._skip:
            return None
        with self:
            return value()

    def _wants_triton(self, error: BaseException) -> bool:
        if isinstance(error, ImportError):
            return (error.name or "").split(".")[0] == "triton"
        return isinstance(error, NameError) and error.name in self.lost


def install(shell: Any = None) -> Skipping | None:
    """Have the cells of this IPython skip what needs Triton; None where there is no IPython.

    Args:
        shell: an ``InteractiveShell``, by default the running one.
    """
    if shell is None:
        from IPython import get_ipython

        shell = get_ipython()
    if shell is None:
        return None
    cell = next((t for t in shell.ast_transformers if isinstance(t, Skipping)), None)
    if cell is None:
        cell = Skipping(shell.user_ns)
        shell.ast_transformers.append(cell)
    cell.lost.clear()
    shell.user_ns[_NAME] = cell
    return cell
