"""Answers as students would hand them in: cells made of the workbook's own functions."""

import ast
import inspect
import re
import sys
import textwrap
import types

from minids3.grade.records import Piece, Program


def names_in(fn):
    """Return the names that a function's source uses, its default values' included."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(fn)))
    return sorted({n.id for n in ast.walk(tree) if isinstance(n, ast.Name)})


def cell_of(exercise, fn):
    """Return a cell that defines ``fn``, all it rests on, and the exercise's name for it."""
    lines, seen = [], {}

    def need(name, value, space):
        if name in seen or name in vars(__import__("builtins")):
            return
        seen[name] = True
        inner = getattr(value, "fn", None)
        if isinstance(value, types.ModuleType):
            lines.append(f"import {value.__name__} as {name}")
        elif isinstance(inner, types.FunctionType):  # a Triton function of the library
            lines.append(f"from {inner.__module__} import {inner.__name__} as {name}")
        elif type(value).__name__ == "constexpr":
            lines.append(
                f"import triton.language\n{name} = triton.language.constexpr({value.value!r})"
            )
        elif isinstance(value, types.FunctionType | type):
            if not value.__module__.startswith("minids3.course.exercises"):
                lines.append(f"from {value.__module__} import {value.__name__} as {name}")
                return
            if isinstance(value, types.FunctionType):
                for used in names_in(value):
                    if used in value.__globals__:
                        need(used, value.__globals__[used], value.__globals__)
            lines.append(textwrap.dedent(inspect.getsource(value)))
            if value.__name__ != name:
                lines.append(f"{name} = {value.__name__}")
        elif getattr(sys.modules[type(value).__module__], name, None) is value:  # of the library
            lines.append(f"from {type(value).__module__} import {name}")
        else:
            lines.append(f"{name} = {value!r}")

    need(fn.__name__, fn, fn.__globals__)
    code = "\n".join(lines)
    if fn.__name__ != exercise.name:  # it may call the worked solution
        code = re.sub(rf"(?<![\w.]){exercise.name}\b", f"_worked_{exercise.name}", code)
        code += f"\n{exercise.name} = {fn.__name__}"
    return f"# EXERCISE {exercise.id}\n{code}"


def program_of(exercise, code, helpers=()):
    """Return the program of one answer that needs nothing of its notebook."""
    pieces = [Piece("helper", h, f"helper {n}") for n, h in enumerate(helpers, 1)]
    return Program(exercise.id, exercise.name, (*pieces, Piece("answer", code, "cell 1")))
