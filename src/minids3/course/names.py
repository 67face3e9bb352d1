"""Which names a piece of Python binds and takes from its surroundings, read from its syntax tree.

``symtable`` answers the same question, but differently from version to version: since 3.12 the
variables of a comprehension are listed as the enclosing scope's own. What a grade rests on must not
depend on that, so scopes are followed here, by the rules of the language's reference, section 4.2.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["Names", "names_of"]


@dataclass(frozen=True)
class Names:
    """What a module's code does with names: ``binds`` at its top level, ``loads`` from there."""

    binds: frozenset[str]
    loads: frozenset[str]


@dataclass
class _Scope:
    kind: str  # "module", "class", "function" or "comprehension"
    outer: _Scope | None = None
    binds: set[str] = field(default_factory=set)
    loads: set[str] = field(default_factory=set)
    elsewhere: set[str] = field(default_factory=set)  # declared global
    outside: set[str] = field(default_factory=set)  # declared nonlocal
    inner: list[_Scope] = field(default_factory=list)

    def open(self, kind: str) -> _Scope:
        scope = _Scope(kind, self)
        self.inner.append(scope)
        return scope


def names_of(tree: ast.AST | Iterable[ast.AST]) -> Names:
    """Return the names of some statements at a module's top level.

    A name that a function binds by ``global`` counts as bound, since calling it does that.
    """
    top = _Scope("module")
    visitor = _Visitor(top)
    for node in [tree] if isinstance(tree, ast.AST) else tree:
        visitor.visit(node)
    loads: set[str] = set()
    _resolve(top, frozenset(), loads, top.binds)
    return Names(frozenset(top.binds), frozenset(loads))


def _resolve(scope: _Scope, around: frozenset[str], loads: set[str], globals_: set[str]) -> None:
    """Add what ``scope`` takes from the module; ``around`` are the enclosing functions' names."""
    own = scope.binds - scope.elsewhere - scope.outside
    globals_ |= scope.binds & scope.elsewhere
    if scope.kind == "module":
        loads |= scope.loads
        seen = around
    else:
        loads |= (scope.loads & scope.elsewhere) | (scope.loads - own - around)
        seen = around if scope.kind == "class" else (around | own) - scope.elsewhere
    for inner in scope.inner:
        _resolve(inner, seen, loads, globals_)


class _Visitor(ast.NodeVisitor):
    def __init__(self, scope: _Scope) -> None:
        self.scope = scope

    def _inside(self, scope: _Scope, nodes: Iterable[ast.AST | None]) -> None:
        before, self.scope = self.scope, scope
        for node in nodes:
            if node is not None:
                self.visit(node)
        self.scope = before

    # names -------------------------------------------------------------------------------------

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self.scope.loads.add(node.id)
        else:
            self.scope.binds.add(node.id)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):  # reads it, too
            self.scope.loads.add(node.target.id)
        self.generic_visit(node)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        home = self.scope
        while home.kind == "comprehension" and home.outer is not None:
            home = home.outer  # the walrus binds outside of the comprehension
        home.binds.add(node.target.id)
        self.visit(node.value)

    def visit_Global(self, node: ast.Global) -> None:
        if self.scope.kind != "module":
            self.scope.elsewhere |= set(node.names)

    def visit_Nonlocal(self, node: ast.Nonlocal) -> None:
        self.scope.outside |= set(node.names)

    def visit_alias(self, node: ast.alias) -> None:
        if node.name != "*":
            self.scope.binds.add(node.asname or node.name.partition(".")[0])

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        self.scope.binds |= {node.name} - {None}  # type: ignore[arg-type]
        self.generic_visit(node)

    def visit_MatchAs(self, node: ast.MatchAs | ast.MatchStar) -> None:
        self.scope.binds |= {node.name} - {None}  # type: ignore[arg-type]
        self.generic_visit(node)

    visit_MatchStar = visit_MatchAs

    def visit_MatchMapping(self, node: ast.MatchMapping) -> None:
        self.scope.binds |= {node.rest} - {None}  # type: ignore[arg-type]
        self.generic_visit(node)

    # scopes ------------------------------------------------------------------------------------

    def _parameters(self, args: ast.arguments) -> list[ast.arg]:
        found = [*args.posonlyargs, *args.args, *args.kwonlyargs]
        return found + [a for a in (args.vararg, args.kwarg) if a is not None]

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.scope.binds.add(node.name)
        self._inside(self.scope, [*node.decorator_list, *_defaults(node.args)])
        around = self._with_types(node)
        parameters = self._parameters(node.args)
        self._inside(around, [*(p.annotation for p in parameters), node.returns])
        body = around.open("function")
        body.binds |= {p.arg for p in parameters}
        self._inside(body, node.body)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._inside(self.scope, _defaults(node.args))
        body = self.scope.open("function")
        body.binds |= {p.arg for p in self._parameters(node.args)}
        self._inside(body, [node.body])

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.scope.binds.add(node.name)
        self._inside(self.scope, node.decorator_list)
        around = self._with_types(node)
        self._inside(around, [*node.bases, *node.keywords])
        self._inside(around.open("class"), node.body)

    def visit_TypeAlias(self, node: ast.AST) -> None:  # Python 3.12
        self.scope.binds.add(node.name.id)  # type: ignore[attr-defined]
        around = self._with_types(node)
        self._inside(around, [node.value])  # type: ignore[attr-defined]

    def _with_types(self, node: ast.AST) -> _Scope:
        """Return the scope of a definition's type parameters (3.12), or the present one."""
        parameters = getattr(node, "type_params", None)
        if not parameters:
            return self.scope
        scope = self.scope.open("function")
        scope.binds |= {p.name for p in parameters}
        for p in parameters:
            bounds = (getattr(p, "bound", None), getattr(p, "default_value", None))
            self._inside(scope, bounds)
        return scope

    def _comprehension(self, node: ast.AST, values: list[ast.expr]) -> None:
        first, *rest = node.generators  # type: ignore[attr-defined]
        self.visit(first.iter)  # the only part that the surroundings evaluate
        scope = self.scope.open("comprehension")
        self._inside(scope, [first.target, *first.ifs, *rest, *values])

    def visit_ListComp(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp) -> None:
        self._comprehension(node, [node.elt])

    visit_SetComp = visit_GeneratorExp = visit_ListComp

    def visit_DictComp(self, node: ast.DictComp) -> None:
        self._comprehension(node, [v for v in (node.key, node.value) if v is not None])


def _defaults(args: ast.arguments) -> list[ast.expr | None]:
    return [*args.defaults, *args.kw_defaults]
