"""Names that code binds and loads: the same answer from every version of Python."""

import ast
import inspect
import symtable
import sys

import pytest

from minids3.course.names import names_of
from minids3.course.registry import exercises

CASES = [
    # Inlined since Python 3.12: the variables of a comprehension stay its own.
    ("texts = [tok.decode(row[i]) for i in range(9)]", "texts", "tok row range"),
    ("a = {k: v for k, v in rows if k for w in v}", "a", "rows"),
    ("g = (x for x in xs)", "g", "xs"),
    ("s = {x + y for x in xs for y in x}", "s", "xs"),
    ("x = [x for x in x]", "x", "x"),
    ("f = lambda q, *a, k=d, **z: (q, a, k, z, other)", "f", "d other"),
    ("if (n := len(a)) > 3: pass", "n", "len a"),
    ("t = [last := y for y in ys]; u = last", "t last u", "ys last"),
    ("def f():\n    return [last := y for y in ys], last", "f", "ys"),
    # A function's own variables are no business of the module's.
    ("def f(a):\n    i = 0\n    i += a\n    return i", "f", ""),
    ("def f():\n    for i in range(3):\n        i += 1", "f", "range"),
    ("def f():\n    global n\n    n += 1", "f n", "n"),
    ("def f():\n    n = 0\n    def g():\n        nonlocal n\n        n += 1", "f", ""),
    ("def f():\n    def g():\n        return later\n    later = 1\n    return g", "f", ""),
    ("def f():\n    global n\n    def g():\n        return n\n    return g", "f", "n"),
    ("def f(x=a, *, y: b = c) -> d:\n    return f(x)", "f", "a b c d f"),
    ("@wrap(arg)\ndef f():\n    pass", "f", "wrap arg"),
    ("class A(B, metaclass=M):\n    n = 3\n    def f(self):\n        return n", "A", "B M n"),
    ("class A:\n    n = 3\n    rows = [n for _ in range(n)]", "A", "range n"),
    ("async def f():\n    async with a as b:\n        return [c async for c in b]", "f", "a"),
    ("i += 1", "i", "i"),
    ("a[i] += 1; b.c = 2", "", "a i b"),
    ("a: int = 3", "a", "int"),
    ("del a", "a", ""),
    ("import a.b, c as d\nfrom e import f, g as h", "a d f h", ""),
    ("try:\n    pass\nexcept E as e:\n    use(e)", "e", "E use e"),
    ("for i, (j, *k) in z: pass", "i j k", "z"),
    ("with a as (b, c): pass", "b c", "a"),
    ("match v:\n    case [x, *y]: pass\n    case {'a': z, **r}: pass\n    case K(w) as q: pass",
     "x y z r w q", "v K"),
    ("print(f'{a!r:>{w}} {[i for i in b]}')", "", "print a w b"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "binds", "loads"), CASES, ids=range(len(CASES)))
def test_names(code, binds, loads):
    names = names_of(ast.parse(code))
    assert names.binds == set(binds.split())
    assert names.loads == set(loads.split())


class TypeAlias(ast.stmt):  # as Python 3.12 has it
    _fields = ("name", "type_params", "value")


class TypeVar(ast.AST):
    _fields = ("name", "bound", "default_value")


def value(text):
    return ast.parse(text, mode="eval").body


def test_type_parameters_are_their_definition_s_own():
    parameter = TypeVar(name="T", bound=value("Limit"), default_value=value("Usual"))
    function = ast.parse("def f(x: T, y: Kind = T0) -> T:\n    z: T = x\n    return z").body[0]
    function.type_params = [parameter]
    names = names_of([function])
    assert (names.binds, names.loads) == ({"f"}, {"Kind", "Limit", "Usual", "T0"})
    cls = ast.parse("class A(Base[T]):\n    def f(self, x: T):\n        return g(x)").body[0]
    cls.type_params = [parameter]
    names = names_of([cls])
    assert (names.binds, names.loads) == ({"A"}, {"Base", "Limit", "Usual", "g"})
    alias = TypeAlias(name=ast.Name("Pair", ast.Store()), type_params=[parameter],
                      value=value("tuple[T, Other]"))  # fmt: skip
    names = names_of([alias])
    assert (names.binds, names.loads) == ({"Pair"}, {"tuple", "Other", "Limit", "Usual"})


def by_symtable(code):
    """What ``symtable`` says; before 3.12 it and the language's reference agree."""
    top = symtable.symtable(code, "<cell>", "exec")
    binds = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported()}

    def taken(table, first):
        found = {s.get_name() for s in table.get_symbols()
                 if s.is_referenced() and (first or s.is_global())}  # fmt: skip
        return found.union(*(taken(child, False) for child in table.get_children()))

    return binds, taken(top, True)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="symtable inlines comprehensions")
def test_the_package_s_own_code_against_symtable():
    modules = {sys.modules[e.solution.__module__] for e in exercises()}
    modules |= {m for n, m in sys.modules.items() if n.startswith("minids3.") and m is not None}
    seen = 0
    for module in modules:
        try:
            code = inspect.getsource(module)
        except (OSError, TypeError):
            continue
        for node in ast.parse(code).body:
            text = ast.unparse(node)
            binds, loads = by_symtable(text)
            names = names_of([node])
            targets = [n.target for n in ast.walk(node) if isinstance(n, ast.AugAssign)]
            extra = {t.id for t in targets if isinstance(t, ast.Name)}
            declared = {x for n in ast.walk(node) if isinstance(n, ast.Global) for x in n.names}
            assert names.binds - declared == binds - declared, text
            assert names.loads - extra == {n for n in loads - extra if not n.startswith("_A__")}, (
                text
            )
            seen += 1
    assert seen > 1000
