"""Where a kernel's source is, or a file made for it when it lives in a notebook's cell."""

from __future__ import annotations

import inspect
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["locate"]


def locate(kernel: Any, folder: Path) -> dict[str, str]:
    """Module, attribute and search path under which another process can import ``kernel``.

    A kernel of a module is imported from there. One of a notebook's cell is written to a file in
    ``folder``, together with the kernels and constants of the notebook that it uses.
    """
    fn = getattr(kernel, "fn", kernel)
    module = sys.modules.get(fn.__module__)
    if fn.__module__ != "__main__" and getattr(module, fn.__name__, None) in (kernel, fn):
        return {"module": fn.__module__, "attribute": fn.__name__, "path": ""}
    name = f"notebook_kernel_{len(list(folder.iterdir()))}"
    lines = ["import triton", "import triton.language as tl", ""]
    _write(fn, lines, set())
    (folder / f"{name}.py").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"module": name, "attribute": fn.__name__, "path": str(folder)}


def _write(fn: Any, lines: list[str], done: set[str]) -> None:
    """Append the source of ``fn`` after that of what it uses."""
    done.add(fn.__name__)
    for name in sorted(_names(fn.__code__)):
        if name in done or name not in fn.__globals__ or name in ("triton", "tl"):
            continue
        value = fn.__globals__[name]
        inner = getattr(value, "fn", None)
        if isinstance(value, ModuleType):
            done.add(name)
            lines.append(f"import {value.__name__} as {name}")
        elif inner is not None and inner.__module__ not in ("__main__", fn.__module__):
            done.add(name)
            lines.append(f"from {inner.__module__} import {inner.__name__} as {name}")
        elif inner is not None:
            _write(inner, lines, done)
            if name != inner.__name__:  # the notebook calls it by another name
                done.add(name)
                lines.append(f"{name} = {inner.__name__}")
        elif isinstance(getattr(value, "value", value), bool | int | float | str):
            done.add(name)
            constant = repr(getattr(value, "value", value))
            lines.append(f"{name} = tl.constexpr({constant})")
    text = textwrap.dedent(inspect.getsource(fn))
    start = text.index("def ")
    lines += ["", "@triton.jit", text[start:], ""]


def _names(code: Any) -> set[str]:
    found = set(code.co_names)
    for constant in code.co_consts:
        if hasattr(constant, "co_names"):
            found |= _names(constant)
    return found
