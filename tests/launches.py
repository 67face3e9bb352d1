"""Whether the arguments of a launch are those for which its Spec is compiled."""

import torch


def misfits(spec, args):
    """Arguments that are not of the kind for which the Spec is compiled, and any left out."""
    names = [name for name in spec.kernel.arg_names if name not in spec.constexprs]
    kinds = {torch.Tensor: "*", int: "i", float: "fp"}
    wrong = [
        f"{name}: {type(given).__name__} for {spec.signature[name]}"
        for name, given in zip(names, args, strict=False)
        if not spec.signature[name].startswith(kinds.get(type(given), "tensordesc"))
    ]
    return wrong + names[len(args) :] + [f"one more: {given!r}" for given in args[len(names) :]]
