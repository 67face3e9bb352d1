"""FP8 linear layers and experts, and the conversion of a model by a rule about its modules.

What becomes FP8 is a short list with reasons (TR section 3.3.1): every linear layer and expert of
the blocks. What does not: embedding and output head, the gate (choosing is a comparison of close
numbers), norms, the attention core, and the MTP modules' ``eh_proj``, which the released
checkpoints keep in BF16 too [HF-fp8-names].

Parameters keep their names and stay what they were, in fp32 when the model is: they are the master
weights. A converted model has the state of the plain one, so checkpoints go both ways.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minids3.nn.moe import Experts
from minids3.ops.gemm import Float8Recipe, fp8_grouped_linear, fp8_linear

__all__ = ["Conversion", "Float8Experts", "Float8Linear", "default_filter", "to_float8"]

HIGH_PRECISION = ("lm_head", "eh_proj", "gate")


class Float8Linear(nn.Linear):
    """A linear layer without bias whose three products take E4M3 operands."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        recipe: Float8Recipe | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias=False, device=device, dtype=dtype)
        self.recipe = recipe or Float8Recipe()
        self.backend = "auto"

    @classmethod
    def from_linear(cls, linear: nn.Linear, recipe: Float8Recipe | None = None) -> Float8Linear:
        """Take over the parameter of ``linear``; a bias raises ``ValueError``."""
        if linear.bias is not None:
            raise ValueError(f"{linear} has a bias, and Float8Linear has none: leave it out")
        new = cls(linear.in_features, linear.out_features, recipe, device="meta")
        new.weight = linear.weight
        return new.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x [..., K]`` to ``[..., N]``, in the dtype of ``x``."""
        return fp8_linear(x, self.weight, recipe=self.recipe, backend=self.backend)

    def extra_repr(self) -> str:
        """Sizes and operands for ``print(model)``."""
        return f"{self.in_features}, {self.out_features}, {self.recipe.operands}"


class Float8Experts(Experts):
    """Routed experts whose grouped products take E4M3 operands."""

    def __init__(self, experts: Experts, recipe: Float8Recipe | None = None) -> None:
        """Take over the parameters of ``experts``."""
        nn.Module.__init__(self)
        self.gate_up_proj, self.down_proj = experts.gate_up_proj, experts.down_proj
        self.recipe = recipe or Float8Recipe()
        self.backend = "auto"
        self.train(experts.training)

    def product(self, x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
        """Multiply each expert's rows of ``x [M, K]`` by its own matrix of ``[E, N, K]``.

        The rows that were dispatched have powers of two as scales (TR section 3.3.3).
        """
        dispatched = self.recipe.operands == "e4m3" and weight is self.gate_up_proj
        recipe = replace(self.recipe, power_of_two=True) if dispatched else self.recipe
        return fp8_grouped_linear(x, weight, counts, recipe=recipe, backend=self.backend)

    def extra_repr(self) -> str:
        """Sizes and operands for ``print(model)``."""
        return f"{super().extra_repr()}, {self.recipe.operands}"


class Conversion(NamedTuple):
    """What ``to_float8`` did: names of modules, and the share of matrix parameters that are FP8."""

    converted: list[str]
    kept: list[str]
    share: float

    def __str__(self) -> str:
        """Say it, layers of the same kind in one line."""
        lines = [f"{len(self.converted)} modules in FP8, {self.share:.1%} of the matrices' numbers"]
        lines += [f"  FP8   {kind}" for kind in _kinds(self.converted)]
        lines += [f"  kept  {kind}" for kind in _kinds(self.kept)]
        return "\n".join(lines)


def default_filter(name: str, module: nn.Module) -> bool:
    """DeepSeek-V3's choice: linear layers and experts, but no head, gate or ``eh_proj``."""
    return name.rpartition(".")[2] not in HIGH_PRECISION


def _after_attention(recipe: Float8Recipe) -> Float8Recipe:
    """``recipe`` for the layer that reads attention's output, unless it has no scales at all."""
    if recipe.operands != "e4m3" or not recipe.scaled:
        return recipe
    return replace(recipe, power_of_two=True, kept="e5m6")


def to_float8(
    model: nn.Module,
    recipe: Float8Recipe | None = None,
    filter: Callable[[str, nn.Module], bool] = default_filter,
) -> Conversion:
    """Replace linear layers and experts by FP8 ones that share their parameters, in place.

    Outputs of attention get powers of two as scales and wait for backward in E5M6 (``o_proj``; TR
    section 3.3.3).

    Args:
        model: any module with ``nn.Linear`` or ``Experts`` below it.
        recipe: default: DeepSeek-V3's.
        filter: called with the name and the module of every linear layer (without bias) and expert
            stack; those it returns True for are replaced.

    Returns:
        What was converted and what was kept.

    Raises:
        ValueError: the filter chose nothing.
    """
    recipe = recipe or Float8Recipe()
    converted, kept = [], []
    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear | Experts | nn.Embedding) and not _is_gate(module):
            continue
        fits = isinstance(module, Experts) or (
            isinstance(module, nn.Linear) and module.bias is None
        )
        if not (fits and name and filter(name, module)):
            kept.append(name)
            continue
        if isinstance(module, Experts):
            new: nn.Module = Float8Experts(module, recipe)
        else:
            last = name.rpartition(".")[2]
            new = Float8Linear.from_linear(
                module, _after_attention(recipe) if last == "o_proj" else recipe
            )
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, new)
        converted.append(name)
    if not converted:
        raise ValueError("the filter chose no module: it gets names such as 'layers.0.mlp.up_proj'")
    chosen = {p for n in converted for p in model.get_submodule(n).parameters()}
    matrices = {p for p in model.parameters() if p.ndim >= 2}
    share = sum(p.numel() for p in chosen) / sum(p.numel() for p in matrices)
    return Conversion(converted, kept, share)


def _is_gate(module: nn.Module) -> bool:
    return hasattr(module, "expert_bias")


def _kinds(names: list[str]) -> list[str]:
    """Names with their layers' numbers gathered: ``layers.*.mlp.up_proj (6)``."""
    found: dict[str, int] = {}
    for name in names:
        kind = ".".join("*" if part.isdigit() else part for part in name.split("."))
        found[kind] = found.get(kind, 0) + 1
    return [f"{kind} ({count})" for kind, count in found.items()]
