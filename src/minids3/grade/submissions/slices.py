"""What a cell's statements define and need, and which of them an answer rests on.

A student's notebook is full of trials: plots, prints, long runs. Only what an answer needs is run
with it: the statements that define (or change) a name the answer uses, and those that these use in
turn. So a helper function in any earlier cell keeps working, and a forgotten training loop costs
nothing. Where a program looks its names up by string, everything is kept.
"""

from __future__ import annotations

import ast
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from minids3.course.names import names_of
from minids3.grade.lines import lines_of

__all__ = [
    "Statement",
    "dump",
    "needed",
    "newer",
    "packages",
    "python_of",
    "quiet",
    "readable",
    "statements",
]

_BROKEN = (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError)
_COURSE = {"check", "hint", "progress", "setup"}  # calls that only talk to the reader
_BY_STRING = {"globals", "eval", "exec", "vars", "locals"}
_MODULES = {"torch", "F", "np", "math", "plt", "random", "nn"}  # calls of theirs change no name,
_SETTINGS = ("manual_seed", "seed", "set_", "use_")  # but for these
_ELSEWHERE = re.compile(  # cell magics whose cell does not run in the notebook's own Python
    r"!|bash|cmd|script|sh|sx|system|python[23]?|pypy|perl|ruby|R|julia|rust|cython|writefile|file"
    r"|HTML|html|SVG|svg|javascript|js|latex|markdown|sql|bigquery"
)
_LINE_MAGIC = re.compile(r"^([ \t]*)[%!?].*$", re.MULTILINE)
_MANY = 60
_DEEPER = 200  # calls
_LONG_LINE = 10_000  # Python 3.12.1's tokenizer copies the line for each of its tokens
# Syntax by the version that brought it. A grader's Python may be older than a student's.
_NEWER = (
    ((3, 11), "except*", re.compile(r"^\s*except\s*\*", re.MULTILINE)),
    ((3, 11), "a starred index", re.compile(r"\w\[[^\]\n]*\*\w+[^\]\n]*\]")),
    ((3, 12), "type parameters", re.compile(r"^\s*(?:async\s+def|def|class)\s+\w+\s*\[", re.M)),
    ((3, 12), "a type statement", re.compile(r"^\s*type\s+\w+\s*[\[=]", re.MULTILINE)),
    ((3, 12), "an f-string", re.compile(r"\b(?:f|rf|fr)[\"']", re.IGNORECASE)),
    ((3, 14), "except without parentheses", re.compile(r"^\s*except\s+[\w.]+\s*,", re.MULTILINE)),
    ((3, 14), "a t-string", re.compile(r"\b(?:t|rt|tr)[\"']", re.IGNORECASE)),
)


@dataclass(frozen=True)
class Statement:
    """Some lines of a cell that belong together, with the comments before them."""

    text: str
    binds: frozenset[str]  # names that are defined or changed
    loads: frozenset[str]  # names taken from the surroundings
    dump: str = ""
    star: bool = False  # from x import *
    setting: bool = False  # a call such as torch.manual_seed(0)
    future: bool = False  # from __future__ import x, which holds for all later cells
    calls: bool = False  # running it calls something, which may change what is passed
    function: bool = False  # a definition: what it loads is used when it is called
    variables: frozenset[str] = frozenset()  # of ``binds`` what is no function, class or module
    fresh: frozenset[str] = frozenset()  # of ``binds`` what is new, and not an old value changed


def _transformed(source: str) -> str:
    """Return ``source`` with IPython's magics as calls of ``get_ipython()``."""
    from IPython.core.inputtransformer2 import TransformerManager

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return TransformerManager().transform_cell(source)


def _magic(node: ast.stmt) -> tuple[str, str] | None:
    """Return name and body of a cell magic, ("", "") for another call of IPython, else None."""
    value = getattr(node, "value", None)
    call = value
    if not (isinstance(node, ast.Expr | ast.Assign) and isinstance(call, ast.Call)):
        return None
    function = call.func
    if not (isinstance(function, ast.Attribute) and isinstance(function.value, ast.Call)):
        return None
    if getattr(function.value.func, "id", "") != "get_ipython":
        return None
    words = [a.value for a in call.args if isinstance(a, ast.Constant)]
    if function.attr == "run_cell_magic" and len(words) == 3:
        return str(words[0]), str(words[2])
    return "", ""


def _drop_magics(text: str, tree: ast.Module) -> str:
    """Return ``text`` with IPython's calls replaced by ``pass``."""
    lines = lines_of(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt) and _magic(node) is not None:
            indent = " " * node.col_offset
            for number in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[number] = ""
            lines[node.lineno - 1] = f"{indent}pass"
    return "\n".join(lines)


def python_of(source: str) -> str:
    """Return a cell's text as plain Python: magics and shell lines do nothing.

    A cell that is not Python at all (``%%bash``) becomes empty; one under a magic that times or
    watches it is what stands below. What cannot be parsed comes back as it is; running it will tell
    why.
    """
    try:
        ast.parse(source)
        return source
    except _BROKEN:
        pass
    if any(len(line) > _LONG_LINE for line in lines_of(source)):
        return source
    if len(_LINE_MAGIC.findall(source)) > _MANY:  # IPython's own way is quadratic in them
        return _LINE_MAGIC.sub(r"\1pass", source)
    try:
        text = _transformed(source)
        tree = ast.parse(text)
        if len(tree.body) == 1 and (magic := _magic(tree.body[0])) and magic[0]:
            body = "" if _ELSEWHERE.fullmatch(magic[0]) else python_of(magic[1])
            return body if dump(body) else ""
        return _drop_magics(text, tree)
    except Exception:  # IPython's tokenizer raises many things on what is not Python
        return source


def dump(source: str) -> str:
    """Return what ``source`` means, without comments and layout; "" if it is not Python."""
    try:
        return ast.dump(ast.parse(source))
    except _BROKEN:
        return ""


def newer(
    source: str, version: str = "", here: tuple[int, ...] = tuple(sys.version_info[:2])
) -> str:
    """Say why ``source``, which is not Python ``here``, may be that of a newer one, or return "".

    Args:
        source: a cell as plain Python (``python_of``).
        version: of the Python that the notebook says it was run with, if it does.
        here: version of this Python.
    """
    try:
        ast.parse(source)
        return ""
    except SyntaxError as error:
        numbers = re.match(r"(\d+)\.(\d+)", version)
        if numbers and (int(numbers[1]), int(numbers[2])) > here:
            return f"the notebook ran with Python {numbers[0]}"
        lines = lines_of(source)
        near = "\n".join(lines[max((error.lineno or 1) - 2, 0) : (error.lineno or 1) + 1])
        for since, what, pattern in _NEWER:
            if here < since and pattern.search(near):
                return f"{what} of Python {since[0]}.{since[1]}"
        return ""
    except _BROKEN:
        return ""


def readable(source: str) -> bool:
    """Whether ``source`` can be read here, or fails to be Python wherever it is run.

    Python's limits on nesting count from the present stack, so that what cannot be read in one
    place may run in another. What is readable here is so from any place of the grader's.
    """

    def read(deeper: int) -> None:
        if deeper:
            read(deeper - 1)
        else:
            names_of(ast.parse(source))

    try:
        read(_DEEPER)
    except (SyntaxError, ValueError):
        return True
    except (RecursionError, MemoryError, OverflowError):
        return False
    return True


def quiet(source: str) -> str:
    """Return ``source`` with its own calls of ``check`` and the like taken out."""
    try:
        nodes = [n for n in ast.parse(source).body if _talks(n)]
    except _BROKEN:
        return source
    lines = lines_of(source)
    for node in nodes:
        for number in range(node.lineno - 1, node.end_lineno or node.lineno):
            lines[number] = ""
    return "\n".join(lines).rstrip("\n") if nodes else source


def statements(source: str) -> list[Statement] | None:
    """Return the statements of a cell that is plain Python, or None if it is not.

    Calls of ``check``, ``hint``, ``progress`` and ``setup`` are left out.
    """
    try:
        tree = ast.parse(source)
        return list(_statements(source, tree))
    except _BROKEN:
        return None


def _statements(source: str, tree: ast.Module) -> Iterator[Statement]:
    lines = lines_of(source)
    end, group = 0, []
    for number, node in enumerate(tree.body):
        group.append(node)
        after = tree.body[number + 1] if number + 1 < len(tree.body) else None
        if after is not None and _first_line(after) <= (node.end_lineno or 0):
            continue  # joined by a semicolon
        kept = [n for n in group if not _talks(n)]
        text = "\n".join(lines[end : node.end_lineno]).strip("\n")
        end, group = node.end_lineno or end, []
        if kept:
            yield _statement(text, kept)


def _first_line(node: ast.stmt) -> int:
    decorators = getattr(node, "decorator_list", [])
    return min([node.lineno, *(d.lineno for d in decorators)])


def _talks(node: ast.stmt) -> bool:
    """Whether a statement is ``check(...)`` and the like, alone or as ``f = check("id", f)``."""
    value = getattr(node, "value", None)
    if not isinstance(node, ast.Expr | ast.Assign) or not isinstance(value, ast.Call):
        return False
    return isinstance(value.func, ast.Name) and value.func.id in _COURSE


def _statement(text: str, nodes: list[ast.stmt]) -> Statement:
    code = ast.Module(nodes, [])
    names = names_of(code)
    binds, loads = set(names.binds), set(names.loads)
    star = any(
        isinstance(node, ast.ImportFrom) and any(a.name == "*" for a in node.names)
        for node in ast.walk(code)
    )
    if not all(isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) for n in nodes):
        binds |= _changed(nodes)
    settings = {_setting(n) for n in nodes} - {""}
    return Statement(
        text,
        frozenset(binds | settings) - {""},
        frozenset(loads - {""}),
        ast.dump(code),
        star,
        bool(settings),
        any(isinstance(n, ast.ImportFrom) and n.module == "__future__" for n in nodes),
        any(_calls(n) for n in nodes),
        any(isinstance(n, _DEFINES) or _is_lambda(n) for n in nodes),
        frozenset(name for n in nodes for name in _variables(n)),
        frozenset(names.binds - names.loads),
    )


_DEFINES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def _calls(node: ast.stmt) -> bool:
    """Whether running a statement calls something; a definition does so by its decorators."""
    if isinstance(node, _DEFINES):
        return bool(node.decorator_list)
    return any(isinstance(n, ast.Call) for n in ast.walk(node))


def _is_lambda(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda)


def _variables(node: ast.stmt) -> frozenset[str]:
    """Return the names that a statement binds to something else than a function or a module."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return frozenset()
    own = {node.name} if isinstance(node, _DEFINES) else set()
    return names_of(node).binds - own  # of a definition: what it declares global


def _root(node: ast.AST) -> str:
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call | ast.Starred):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _changed(nodes: Iterable[ast.stmt]) -> set[str]:
    """Return names whose values are changed: ``a.b = ``, ``a[0] = ``, ``a.append(...)``."""
    found = set()
    for top in nodes:
        for node in ast.walk(top):
            if isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(
                node.ctx, ast.Load
            ):
                found.add(_root(node))
            elif (method := _method(node)) is not None and _root(method) not in _MODULES:
                found.add(_root(method))
    return found


def _method(node: ast.AST) -> ast.Attribute | None:
    """Return ``a.b`` of a statement ``a.b(...)``."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        function = node.value.func
        return function if isinstance(function, ast.Attribute) else None
    return None


def _setting(node: ast.stmt) -> str:
    """Return the module whose settings a statement changes, as ``torch.manual_seed(0)`` does."""
    method = _method(node)
    if method is not None and _root(method) in _MODULES and method.attr.startswith(_SETTINGS):
        return _root(method)
    return ""


def needed(
    pool: list[Statement], names: Iterable[str], own: Iterable[int] = (), *, calls: bool = False
) -> tuple[set[int], set[str]]:
    """Return which statements of ``pool`` those ``names`` rest on, and every name in use.

    Args:
        pool: statements in the order in which they run.
        names: what is needed.
        own: numbers of the student's statements: all kept where names are looked up by string.
        calls: keep also those of ``own`` whose calls may change a variable in use, as in
            ``heappush(HEAP, 2)``. A call may as well be a trial, or a long run.
    """
    own = set(own)
    wanted, chosen = set(names), {number for number in own if pool[number].future}
    touched = _touched(pool, own) if calls else {}
    while True:
        everything = bool(wanted & _BY_STRING)
        more = {
            number
            for number, s in enumerate(pool)
            if number not in chosen
            and (
                s.binds & wanted
                or (number in own and (everything or s.star))
                or touched.get(number, set()) & wanted
            )
        }
        if not more:
            return chosen, wanted
        chosen |= more
        for number in more:
            wanted |= pool[number].loads


def _touched(pool: list[Statement], own: set[int]) -> dict[int, set[str]]:
    """Return the variables that the calls in each of the statements ``own`` may change."""
    variables = {name for s in pool for name in s.variables}
    found = {}
    for number in own:
        if pool[number].calls:
            reached = _reached(pool, pool[number].loads)
            found[number] = reached if "setattr" in reached else reached & variables
    return found


def _reached(pool: list[Statement], names: Iterable[str]) -> set[str]:
    """Return ``names`` and what the functions among them load and change when called."""
    reached, left = set(names), [s for s in pool if s.function]
    while more := [s for s in left if s.binds & reached]:
        left = [s for s in left if s not in more]
        for s in more:
            reached |= s.loads | s.binds
    return reached


def packages(sources: Iterable[str]) -> set[str]:
    """Return the packages (``a`` of ``import a.b``) that some Python imports anywhere."""
    found = set()
    for source in sources:
        try:
            nodes = list(ast.walk(ast.parse(source)))
        except _BROKEN:
            continue
        for node in nodes:
            if isinstance(node, ast.Import):
                found |= {a.name.partition(".")[0] for a in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(str(node.module).partition(".")[0])
    return found
