"""What a function computes, written down and done once more by somebody else.

A count of multiply-adds that a student's own process reports may be a lie. So that process only
writes down which operations of PyTorch the function makes (``Recorder``), and it does so for other
numbers than the check's. A fresh process, which never ran a line of the student's code, repeats
them on the check's numbers and counts (``repeat``). Its result is what the check goes on with: a
false list of operations gives wrong values, and a list of right values in it is of no use, since
they belong to other numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from minids3.grade.process import wire
from minids3.sim.counted import MultiplyAdds

__all__ = ["Recorder", "flat", "other_numbers", "repeat"]

_STEPS = 20_000
_NAMED = {
    str(v): v
    for v in (
        torch.strided, torch.contiguous_format, torch.preserve_format, torch.channels_last,
        torch.channels_last_3d,
    )
}  # fmt: skip


def other_numbers(form: Any, seed: int) -> Any:
    """Return the plain form of arguments of the same shapes; floating-point numbers are others."""
    generator = torch.Generator().manual_seed(seed)

    def make(tensor: dict[str, Any]) -> Tensor:
        t = wire.tensor_of(tensor)
        if not t.is_floating_point():
            return t
        other = torch.randn(t.shape, generator=generator).to(t.dtype)
        try:
            return t.copy_(other)  # strides and all
        except RuntimeError:  # several elements in one place
            return other

    return wire.encode(wire.decode(form, make))


class Recorder(TorchDispatchMode):
    """Writes operations down as plain data while they are made: ``steps``.

    A tensor is known by its number: first the arguments, in the order in which they were decoded,
    then what each step gives. A tensor from elsewhere is a step that gives its values.
    """

    def __init__(self, arguments: list[Tensor]) -> None:
        """Start with the arguments' tensors."""
        super().__init__()
        self.steps: list[dict[str, Any]] = []
        self._numbers: dict[int, int] = {}
        self._kept: list[Tensor] = []  # so that no id is used twice
        self._derived: set[int] = set()  # memory that holds something of the arguments
        for t in arguments:
            self._number(t)
            self._derived.add(_memory(t))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # as in ``MultiplyAdds``

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make one operation and write it down."""
        kwargs = kwargs or {}
        used: list[int] = []
        step = {
            "op": [str(func._schema.name), str(func._overloadname)],
            "args": self.form(args, used),
            "kwargs": self.form(kwargs, used),
        }
        out = func(*args, **kwargs)
        made = [t for t in flat(out) if isinstance(t, Tensor)]
        step["gives"] = [self._number(t) for t in made]
        self.steps.append(step)
        if self._any_derived(
            used
        ):  # in place of a view it is the whole tensor's memory that has it
            self._derived.update(map(_memory, [*made, *_written(func, args, kwargs)]))
        if len(self.steps) > _STEPS:
            raise RuntimeError(f"more than {_STEPS} operations")
        return out

    def result(self, value: Any) -> Any:
        """Return the plain form of what the function returned.

        Raises:
            TypeError: no tensor in it was computed from the arguments by PyTorch.
        """
        used: list[int] = []
        form = self.form(value, used)
        if used and not self._any_derived(used):
            raise TypeError(
                "the multiply-adds cannot be counted: compute the result from the arguments with "
                "PyTorch, not by way of NumPy or Python's numbers"
            )
        return form

    def form(self, value: Any, used: list[int]) -> Any:
        """Return ``value`` as plain data; the numbers of its tensors are added to ``used``."""
        if isinstance(value, Tensor):
            if id(value) not in self._numbers:
                constant = wire.encode(value.detach())
                self.steps.append({"constant": constant, "gives": [self._number(value)]})
            used.append(self._numbers[id(value)])
            return {"number": self._numbers[id(value)]}
        if isinstance(value, list | tuple):
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [self.form(v, used) for v in value]}
        if isinstance(value, dict):
            return {"dict": [[str(k), self.form(v, used)] for k, v in value.items()]}
        if isinstance(value, torch.device):
            return {"device": str(value)}
        if isinstance(value, torch.layout | torch.memory_format):
            return {"name": str(value)}
        return {"plain": wire.encode(value)}

    def _any_derived(self, numbers: list[int]) -> bool:
        return any(_memory(self._kept[n]) in self._derived for n in numbers)

    def _number(self, t: Tensor) -> int:
        if id(t) not in self._numbers:
            self._numbers[id(t)] = len(self._kept)
            self._kept.append(t)
        return self._numbers[id(t)]


def _memory(t: Tensor) -> int:
    """Return what tensors have in common that are views of one memory."""
    try:
        return t.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # a sparse one
        return id(t)


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Return the tensors that an operation writes into, such as ``out``."""
    found = []
    for number, spec in enumerate(func._schema.arguments):
        if spec.alias_info is not None and spec.alias_info.is_write:
            value = args[number] if number < len(args) else kwargs.get(spec.name)
            found += [t for t in flat(value) if isinstance(t, Tensor)]
    return found


def flat(value: Any) -> list[Any]:
    """Return what lists, tuples and dictionaries hold, one after another."""
    if isinstance(value, dict):
        value = list(value.values())
    return [v for part in value for v in flat(part)] if isinstance(value, list | tuple) else [value]


def _value_of(form: Any, tensors: dict[int, Tensor]) -> Any:
    ((kind, body),) = form.items()
    if kind == "number":
        return tensors[body]
    if kind in ("list", "tuple"):
        return {"list": list, "tuple": tuple}[kind](_value_of(v, tensors) for v in body)
    if kind == "dict":
        return {k: _value_of(v, tensors) for k, v in body}
    if kind == "device":
        return torch.device("cpu")
    return _NAMED[body] if kind == "name" else wire.decode(body)


def _operation(name: str, overload: str) -> Callable[..., Any]:
    space, _, plain = name.partition("::")
    if space != "aten":
        raise ValueError(f"{name} is no operation of PyTorch's own")
    return getattr(getattr(torch.ops.aten, plain), overload or "default")


def repeat(arguments: list[Any], steps: list[dict[str, Any]], result: Any) -> dict[str, Any]:
    """Make the operations in ``steps`` on ``arguments`` (plain forms); tell value and cost."""
    tensors: dict[int, Tensor] = {}

    def note(form: dict[str, Any]) -> Tensor:
        tensors[len(tensors)] = t = wire.tensor_of(form)
        return t

    wire.decode({"list": arguments}, note)
    with torch.no_grad(), MultiplyAdds() as counter:
        for step in steps[:_STEPS]:
            if "constant" in step:
                made: Any = wire.decode(step["constant"])
            else:
                call = _operation(*step["op"])
                kwargs = _value_of(step["kwargs"], tensors)
                made = call(*_value_of(step["args"], tensors), **kwargs)
            given = [t for t in flat(made) if isinstance(t, Tensor)]
            tensors.update(zip(step["gives"], given, strict=True))
    value = wire.encode(_value_of(result, tensors))
    return {"value": value, "multiply_adds": counter.total, "sums": counter.sums}
