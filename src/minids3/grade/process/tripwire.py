"""Inside the sandbox: functions that an exercise forbids lose their code and tell who called.

A Python function gets another code object, so that every name it is known by trips, and nothing in
the process holds what it did before. A function of torch's C++ part is replaced where it is found.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
from collections.abc import Iterator
from typing import Any

__all__ = ["ForbiddenCall", "install", "taken"]

_TRIPPED: list[str] = []


class ForbiddenCall(RuntimeError):
    """A student's code called what the exercise asks to write."""


def report(name: str) -> None:
    """Note the call and refuse it."""
    if name not in _TRIPPED:
        _TRIPPED.append(name)
    raise ForbiddenCall(f"this exercise asks you to write what {name} does")


def taken() -> list[str]:
    """Return what was called since the last time, and forget it."""
    names, _TRIPPED[:] = list(_TRIPPED), []
    return names


def _trap(name: str) -> types.FunctionType:
    space: dict[str, Any] = {}
    source = (
        "def trap(*args, **kwargs):\n"
        f"    import sys; sys.modules['minids3.grade.process.tripwire'].report({name!r})\n"
    )
    exec(compile(source, "<forbidden>", "exec"), space)
    return space["trap"]


def resolve(name: str) -> tuple[Any, str, Any] | None:
    """Return (owner, attribute, object) of a dotted name, or None if there is none."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        module = sys.modules.get(".".join(parts[:cut]))
        if module is None and parts[0] != "minids3":
            with contextlib.suppress(Exception):
                module = importlib.import_module(".".join(parts[:cut]))
        if module is None:
            continue
        owner: Any = module
        for part in parts[cut:-1]:
            owner = getattr(owner, part, None)
        found = getattr(owner, parts[-1], None)
        return None if found is None else (owner, parts[-1], found)
    return None


def _functions(cls: type) -> Iterator[types.FunctionType]:
    """Yield a class's own functions; what it only borrowed, others need (``typing.Protocol``)."""
    for value in vars(cls).values():
        inner = getattr(value, "__func__", value)
        if not isinstance(inner, types.FunctionType) or inner.__module__ != cls.__module__:
            continue
        if inner.__qualname__.startswith(f"{cls.__qualname__}."):
            yield inner


def _everywhere(found: Any, trap: Any) -> None:
    """Replace an object in all modules of torch and minids3 that name it."""
    for module in list(sys.modules.values()):
        if not isinstance(module, types.ModuleType):
            continue
        if module.__name__.split(".")[0] not in ("torch", "minids3"):
            continue
        for key, value in list(vars(module).items()):
            if value is found:
                with contextlib.suppress(Exception):
                    setattr(module, key, trap)


# A ready-made function has twins: PyTorch's operators, its functions, its layers and optimizers.
TWINS = {
    "scaled_dot_product_attention": ("scaled_dot_product", "multi_head_attention",
                                     "multiheadattention", "flex_attention", "flash_attention"),
    "cross_entropy": ("cross_entropy", "crossentropy", "nll_loss", "nllloss", "kl_div"),
    "AdamW": ("adam",),
    "clip_grad_norm_": ("clip_grad", "get_total_norm"),
}  # fmt: skip
_GRAPHS = ("parse_ir", "_create_function_from_graph")  # they make functions of text


def _operators(name: str) -> Iterator[tuple[Any, str]]:
    """Yield owner and name of PyTorch's operators that do a forbidden function's work."""
    import torch
    import torch._decomp.decompositions
    import torch._refs.nn.functional

    end = name.rpartition(".")[2]
    last = end.strip("_").lower()
    parts = TWINS.get(end, ()) + ((last,) if len(last) > 5 else ())
    if not name.startswith("torch.") or not parts:
        return

    def alike(key: str) -> bool:
        return any(part in key.lower() for part in parts)

    owners = (torch, torch._C._nn, torch._C._VariableFunctions, torch.nn.functional, torch._refs,
              torch._refs.nn.functional, torch._decomp.decompositions)  # fmt: skip
    for owner in owners:
        yield from ((owner, key) for key in dir(owner) if alike(key))
    for key in torch._C._dispatch_get_all_op_names():
        space, _, plain = key.partition("::")
        plain = plain.partition(".")[0]
        if space in ("aten", "prims") and alike(plain) and "backward" not in plain:
            yield getattr(torch.ops, space), plain


def install(names: list[str]) -> None:
    """Disarm what ``names`` (dotted) stand for; unknown names are passed over."""
    import torch

    for name in names:
        for owner, key in list(_operators(name)):
            found = getattr(owner, key, None)
            if owner is torch.nn.functional and isinstance(found, types.FunctionType):
                continue  # others rest on it; a forbidden one is disarmed below
            if callable(found) and not isinstance(found, type):
                with contextlib.suppress(Exception):
                    setattr(owner, key, _trap(name))
    for key in _GRAPHS:
        with contextlib.suppress(AttributeError):
            delattr(torch._C, key)
    for name in names:
        place = resolve(name)
        if place is None:
            continue
        owner, key, found = place
        trap = _trap(name)
        targets = list(_functions(found)) if isinstance(found, type) else [found]
        for target in targets:
            target = getattr(target, "__wrapped__", target)
            if isinstance(getattr(target, "fn", None), types.FunctionType):
                target = target.fn  # a Triton kernel, wherever else it is held
            if isinstance(target, types.FunctionType) and not target.__code__.co_freevars:
                target.__code__ = trap.__code__
                target.__defaults__ = target.__kwdefaults__ = None
            elif not isinstance(found, type):
                _everywhere(found, trap)
                with contextlib.suppress(Exception):
                    setattr(owner, key, trap)
