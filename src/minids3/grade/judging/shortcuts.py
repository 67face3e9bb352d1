"""What an exercise forbids to call, and where a student's code does.

Forbidden are the library's function for the exercise, what its check compares with, the functions
that the exercise names in ``forbids``, and every function of the package that neither the worked
solution uses nor a cell of the notebook in front of the answer has imported. What such a cell
imports by name may be used: only ``forbids`` can take it back, by that very name. Names are looked
up as objects, so that an alias hides nothing; in the sandbox the same list is disarmed
(``tripwire``), so that what the reading of the source misses does not work when called.
"""

from __future__ import annotations

import ast
import inspect
import pkgutil
import re
import sys
import types
from collections.abc import Iterable, Iterator
from functools import _lru_cache_wrapper as _Cached
from functools import lru_cache
from typing import Any

from minids3.course.registry import Exercise
from minids3.grade.process.tripwire import TWINS, resolve

__all__ = [
    "INSIDE",
    "chain",
    "codes",
    "dotted",
    "forbidden",
    "imports",
    "load_package",
    "named",
    "unusual",
    "uses",
]

_OPEN = (
    "minids3.kernels.language",
    "minids3.kernels.launch",
    "minids3.kernels.watch",
    "minids3.config",
    "minids3.viz",
    "minids3.course",
    "minids3.grade",
    "minids3.isolation",
    "minids3.bench",
)
_OURS = "minids3.course.exercises"
INSIDE = "at work inside what the notebook gives"  # so it must go on working there
_LOOKUPS = {"getattr", "__import__", "import_module", "eval", "exec", "resolve_name", "attrgetter"}
_UNUSUAL = {
    "ctypes", "gc", "inspect", "os", "socket", "subprocess", "sys", "importlib", "pickle",
    "marshal", "signal", "threading", "multiprocessing", "builtins", "linecache", "resource",
    "pathlib", "IPython", "atexit", "cffi", "numba", "scipy", "sklearn", "tensorflow", "jax",
    "transformers", "flash_attn", "xformers",
}  # fmt: skip
_UNUSUAL_NAMES = {
    "eval", "exec", "open", "__import__", "compile", "globals", "vars", "_getframe", "__globals__",
    "__code__", "__subclasses__", "__torch_function__", "__torch_dispatch__", "__builtins__",
    "_C", "ops", "_jit_get_operation", "_dispatch_call_boxed", "get_objects", "rewritten_fn",
    "_disable_current_modes", "FlopCounterMode", "ast_transformers", "input_transformers_post",
    "__dict__", "__self__", "__func__", "__getattribute__", "__mro__", "__bases__", "gi_frame",
    "f_builtins", "f_globals", "f_locals", "f_back", "parse_ir", "CompilationUnit", "_refs",
    "_decomp", "_prims", "_inductor",
}  # fmt: skip


_INNER = _UNUSUAL_NAMES - {"compile", "eval", "exec", "open"}  # after a dot or in an import


def dotted(found: Any) -> str:
    """Return where a function or class of ours is defined, or an empty string."""
    module, name = getattr(found, "__module__", ""), getattr(found, "__qualname__", "")
    known = isinstance(found, types.FunctionType | type | _Cached) or hasattr(found, "fn")
    found = getattr(found, "fn", found)  # a Triton kernel
    if not known or not isinstance(module, str) or not module.startswith("minids3."):
        return ""
    return f"{module}.{name or getattr(found, '__qualname__', '')}"


def codes(fn: Any) -> Iterator[types.CodeType]:
    """Yield the code of a function and of the functions inside it."""
    code = getattr(fn, "__code__", fn)
    yield code
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from codes(const)


def _callees(fn: Any) -> Iterator[Any]:
    """Yield functions and classes that a function names in its code, also as ``module.name``."""
    fn = inspect.unwrap(getattr(fn, "fn", fn)) if callable(fn) else fn
    if isinstance(fn, type):
        for value in vars(fn).values():
            inner = getattr(value, "__func__", value)
            if isinstance(inner, types.FunctionType):
                yield from _callees(inner)
        yield from (b for b in fn.__mro__[1:] if b.__module__.startswith("minids3."))
        return
    if not isinstance(fn, types.FunctionType):
        return
    for code in codes(fn):
        for name in code.co_names:
            value = fn.__globals__.get(name)
            if value is None and name.startswith("minids3."):
                value = sys.modules.get(name)  # imported inside the function
            if isinstance(value, types.ModuleType):
                if value.__name__.startswith("minids3."):
                    yield from (vars(value)[n] for n in code.co_names if n in vars(value))
            elif value is not None:
                yield value


def _used(fns: Iterable[Any], inside: str | None = None) -> set[str]:
    """Return dotted names reached from ``fns``; only by way of modules in ``inside``, if given."""
    seen: set[int] = set()
    names: set[str] = set()
    todo = list(fns)
    while todo:
        fn = todo.pop()
        if id(fn) in seen:
            continue
        seen.add(id(fn))
        name = dotted(fn)
        if name and not name.startswith(_OURS):
            names.add(name)
            if inside is not None:
                continue
        todo.extend(c for c in _callees(fn) if dotted(c))
    return names


@lru_cache(maxsize=1)
def _everything() -> frozenset[str]:
    """Return dotted names of all functions and classes of the package that could be a shortcut."""
    import minids3

    names = set()
    for found in pkgutil.walk_packages(minids3.__path__, "minids3."):
        if found.name.startswith(_OPEN) or found.name not in sys.modules:
            continue
        for value in vars(sys.modules[found.name]).values():
            name = dotted(value)
            if name.startswith(f"{found.name}."):
                names.add(name)
    return frozenset(names)


def load_package(kernels: bool) -> None:
    """Import what the sandbox imports, so that names mean the same here and there."""
    from minids3.grade.process import worker

    worker.import_package(kernels)
    _everything.cache_clear()


def imports(codes: Iterable[str]) -> dict[str, str]:
    """Return what the code's imports bind: local name to dotted name."""
    bound: dict[str, str] = {}
    for code in codes:
        for node in ast.walk(_parse(code)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    top = alias.name if alias.asname else alias.name.split(".")[0]
                    bound[alias.asname or top] = top
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    bound[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return bound


def _handed(given: Iterable[str], kept: set[str]) -> tuple[set[str], list[Any]]:
    """Return what cells import: dotted names that they name, and all objects that come along.

    Of a module that is imported as a whole, everything comes along, but nothing is named. ``kept``
    are names that no cell hands out.
    """
    handed: set[str] = set()
    around: list[Any] = []
    for name in (n for code in given for n in imports([code]).values()):
        place = resolve(name)
        if place is None:
            continue
        found = place[2]
        if isinstance(found, types.ModuleType):
            around += [v for v in vars(found).values() if dotted(v)]
        elif dotted(found) not in kept:
            handed.add(dotted(found))
            around.append(found)
    return handed, around


# What an optimizer's class calls, and what nobody can disarm by the class alone.
_FUNCTIONAL = {
    "torch.optim.AdamW": (
        "torch.optim.adam.adam",
        "torch.optim.adam._single_tensor_adam",
        "torch.optim.adam._multi_tensor_adam",
        "torch.optim.NAdam",
        "torch.optim.RAdam",
    )
}


def forbidden(exercise: Exercise, given: Iterable[str] = ()) -> dict[str, str]:
    """Return dotted names that an answer may not call, each with where the rule comes from.

    ``given`` are the codes of the notebook's own cells that run before the answer.
    """
    fns = [exercise.solution, *(a.fn for a in exercise.alternatives)]
    ours = _used(fns, _OURS)
    compared = _used([exercise.library, exercise.check], _OURS) - ours
    exact = {n for n in exercise.forbids if not n.endswith(".*")}
    exact |= {also for n in exact for also in _FUNCTIONAL.get(n, ())}
    modules = {n.removesuffix(".*") for n in exercise.forbids if n.endswith(".*")}
    handed, around = _handed(given, exact)
    named = exact | {n for n in _everything() if n.rpartition(".")[0] in modules} - handed
    banned = named | compared - handed
    around = [v for v in around if dotted(v) not in banned]
    usable = ours | {dotted(v) for v in around}
    inside = _used([*fns, *around]) - usable
    rules = dict.fromkeys(_everything() - usable - inside, "not given by the notebook")
    rules |= dict.fromkeys(_everything() & inside, INSIDE)
    rules |= dict.fromkeys(banned - named, "what the check compares with")
    rules |= dict.fromkeys(named, "named by the exercise")
    return rules


def uses(exercise: Exercise) -> set[str]:
    """Return the names that the worked solution, or an alternative, takes from its notebook."""
    fns = [exercise.solution, *(a.fn for a in exercise.alternatives)]
    return {name for fn in fns for code in codes(getattr(fn, "fn", fn)) for name in code.co_names}


def _twins(names: Iterable[str]) -> dict[str, str]:
    """Return parts of names that are as good as forbidden ones of PyTorch's, with those."""
    last = {n.rpartition(".")[2]: n for n in names if n.startswith("torch.")}
    return {part: last[n] for n, parts in TWINS.items() if n in last for part in parts}


# reading a student's code -------------------------------------------------------------------------


def _parse(code: str) -> ast.AST:
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.Module(body=[], type_ignores=[])


def chain(node: ast.AST) -> str:
    """Return the dotted name that an expression is, or an empty string."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def _mentions(tree: ast.AST, bound: dict[str, str]) -> Iterator[str]:
    """Yield dotted names that the code mentions, aliases resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            first, _, rest = chain(node).partition(".")
            if first in bound:
                yield f"{bound[first]}.{rest}" if rest else bound[first]
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{a.name}" for a in node.names)


def named(own: Iterable[str], given: Iterable[str], rules: dict[str, str]) -> list[str]:
    """Return the forbidden names that a student's code mentions, read from its source."""
    objects = {}
    for name in rules:
        place = resolve(name)
        if place is not None:
            objects[id(place[2])] = name
    strict = {n for n, why in rules.items() if "check" in why or "exercise" in why}
    tails = {n.rpartition(".")[2]: n for n in strict}
    twins = _twins(strict)
    own = list(own)
    bound = imports([*given, *own])
    found: list[str] = []

    def add(name: str) -> None:
        if name not in found:
            found.append(name)

    for code in own:
        tree = _parse(code)
        for name in _mentions(tree, bound):
            place = resolve(name)
            if place is not None and id(place[2]) in objects:
                add(objects[id(place[2])])
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = chain(node.func).rpartition(".")[2]
                for arg in [*node.args, *(k.value for k in node.keywords)]:
                    if called in _LOOKUPS and isinstance(arg, ast.Constant):
                        for word in re.findall(r"\w+", str(arg.value)):
                            if word in tails:
                                add(tails[word])
                            for name in _twin(word, twins):
                                add(name)
            elif chain(node).startswith("torch.") and getattr(node, "attr", "") in tails:
                add(tails[node.attr])  # type: ignore[attr-defined]  # torch.ops.aten.name
        for name in _mentions(tree, bound):
            if name.startswith("torch."):
                for twin in _twin(name, twins):
                    add(twin)
    return found


def _twin(name: str, twins: dict[str, str]) -> list[str]:
    """Return the forbidden functions that one of this name does the work of."""
    return [n for part, n in twins.items() if part in name.lower()]


def _by_name(node: ast.Call) -> bool:
    """Whether a call looks an attribute up by a name that does not stand there."""
    if chain(node.func).rpartition(".")[2] not in ("getattr", "attrgetter", "methodcaller"):
        return False
    return any(not isinstance(a, ast.Constant) for a in node.args[1:2] or node.args[:1])


def unusual(own: Iterable[str]) -> list[str]:
    """Return what in a student's code is no arithmetic: for a human's eyes, worth no points."""
    found: set[str] = set()
    for code in own:
        for node in ast.walk(_parse(code)):
            if isinstance(node, ast.Import):
                found |= {a.name.split(".")[0] for a in node.names} & _UNUSUAL
            elif isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module.split(".")[0]} & _UNUSUAL
                found |= {*node.module.split("."), *(a.name for a in node.names)} & _INNER
            elif isinstance(node, ast.Call) and _by_name(node):
                found.add("getattr with a name that it computes")
            elif isinstance(node, ast.Attribute) and node.attr in _INNER:
                found.add(node.attr)
            elif isinstance(node, ast.Name) and node.id in _UNUSUAL_NAMES:
                found.add(node.id)
    return sorted(found)
