"""Counting the multiply-adds that a piece of PyTorch makes, whatever it calls them.

PyTorch's own counter sees matrix products, convolutions and fused attention. The same sums can be
had from a matrix times a vector, from a product by elements that is summed afterwards, from a
division, or from logarithms, and it takes those for nothing. Here each number that such a call
multiplies counts as one multiply-add, and an operation that is not known to multiply nothing counts
as if it did.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop, shape_wrapper

__all__ = ["MultiplyAdds"]

_OTHERS = (
    "mul", "mul_", "mv", "dot", "vdot", "addr", "addmv", "addmv_", "addcmul", "addcmul_",
)  # fmt: skip


def _by_elements(*shapes: Any, out_shape: Any = (), **_: Any) -> int:
    """Return 2 FLOPs for each number of the largest tensor; by a single number nothing counts."""
    sizes = [math.prod(s) for s in shapes if isinstance(s, torch.Size)]
    if sum(size > 1 for size in sizes) < 2:
        return 0
    return 2 * max(*sizes, math.prod(out_shape))


def _of_three(*args: Any, out_shape: Any = (), **_: Any) -> int:
    """Return the FLOPs of ``_trilinear`` (``F.bilinear``): two products for each place."""
    shapes = []
    for shape, missing in zip(args[:3], args[3:6], strict=True):
        sides = list(shape)
        for axis in missing:
            sides.insert(axis, 1)
        shapes.append(sides)
    return 4 * math.prod(torch.broadcast_shapes(*shapes))


# Operations that multiply no two numbers: views, copies, choices, comparisons, sums.
_FREE = frozenset((
    "view", "reshape", "unsafe_view", "transpose", "t", "permute", "expand", "squeeze",
    "unsqueeze", "select", "slice", "as_strided", "unfold", "split", "split_with_sizes",
    "unsafe_split", "unsafe_chunk", "chunk", "narrow", "unbind", "diagonal", "alias", "detach",
    "view_as_real", "view_as_complex", "movedim", "flatten", "unflatten", "lift", "lift_fresh",
    "lift_fresh_copy", "clone", "copy", "to", "to_copy", "contiguous", "cat", "stack", "repeat",
    "repeat_interleave", "roll", "flip", "constant_pad_nd", "index", "index_select", "gather",
    "take", "scatter", "scatter_add", "index_put", "index_put_impl", "index_add", "index_copy",
    "index_fill", "masked_select", "masked_fill", "masked_scatter", "where", "tril", "triu",
    "tril_indices", "triu_indices", "fill", "zero", "zeros", "ones", "full", "empty",
    "empty_strided", "new_empty", "new_zeros", "new_ones", "new_full", "zeros_like", "ones_like",
    "full_like", "empty_like", "new_empty_strided", "arange", "eye", "scalar_tensor", "linspace",
    "rand", "randn", "randint", "randperm", "normal", "uniform", "bernoulli", "rand_like",
    "randn_like", "local_scalar_dense", "item", "threshold_backward",
    "select_scatter", "slice_scatter",
    "diagonal_scatter", "select_copy", "expand_copy", "view_copy", "add", "sub", "rsub", "neg",
    "abs", "sum", "nansum", "mean", "cumsum", "amax", "amin", "aminmax", "max", "min", "argmax",
    "argmin", "topk", "sort", "argsort", "cummax", "cummin", "median", "kthvalue", "mode",
    "logical_and", "logical_or", "logical_not", "logical_xor", "bitwise_and", "bitwise_or",
    "bitwise_not", "eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "isfinite", "any", "all",
    "clamp", "clamp_min", "clamp_max", "maximum", "minimum", "relu", "sign", "round", "floor",
    "ceil", "trunc", "nan_to_num", "unique", "unique2", "bincount", "nonzero", "one_hot", "equal",
    "is_same_size", "sym_size", "sym_numel", "embedding", "count_nonzero", "searchsorted",
    "bucketize", "histc", "diff", "set", "resize", "record_stream", "is_nonzero",
    "broadcast_tensors",
))  # fmt: skip


_SUMS = frozenset((
    "add", "sub", "rsub", "sum", "nansum", "mean", "cumsum", "scatter_add", "index_add", "diff",
    "where", "masked_fill", "masked_scatter", "maximum", "minimum", "bitwise_and", "bitwise_or",
    "bitwise_xor", "embedding", "index_put", "index_put_impl",
))  # fmt: skip


def _unknown(name: str, args: Any, out: Any) -> int:
    """Return the FLOPs of an operation that may multiply, in a way that is not known here.

    By elements where it can be no more than that; a product of two tensors' sizes where it may be a
    contraction, which is an upper bound.
    """
    sizes = sorted((t.numel() for t in _tensors(args)), reverse=True)
    made = max((t.numel() for t in _tensors(out)), default=0)
    if len(sizes) > 1 and sizes[1] == 1 and not name.startswith("linalg"):
        sizes = sizes[:1]
    if name.partition("_backward")[0] in _BY_ELEMENTS or len(sizes) < 2:
        single = name in _BY_NUMBERS and len(sizes) < 2
        return 0 if single or not sizes else 2 * max(sizes[0], made)
    return 2 * max(sizes[0] * sizes[1], made)


_BY_NUMBERS = {"mul", "div"}  # with a single number these cost nothing
_BY_ELEMENTS = frozenset((
    "mul", "div", "lerp", "addcdiv", "pow", "float_power", "exp", "exp2", "expm1", "log", "log2",
    "log10", "log1p", "sqrt", "rsqrt", "reciprocal", "square", "softmax", "log_softmax",
    "logsumexp", "logaddexp", "logaddexp2", "sigmoid", "tanh", "silu", "gelu", "softplus", "erf",
    "sin", "cos", "tan", "atan2", "hypot", "ldexp", "xlogy", "xlog1py", "remainder", "fmod",
    "floor_divide", "true_divide", "prod", "cumprod", "native_layer_norm", "native_group_norm",
    "rms_norm", "fused_rms_norm", "glu", "std", "var", "std_mean", "var_mean", "special_xlog1py",
    "bitwise_left_shift", "bitwise_right_shift", "polar", "complex", "conj", "real", "imag",
))  # fmt: skip


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for v in value for t in _tensors(v)] if isinstance(value, list | tuple) else []


_FLOPS = {
    **flop_registry,
    torch.ops.aten._trilinear: shape_wrapper(_of_three),
    **{getattr(torch.ops.aten, name): shape_wrapper(_by_elements) for name in _OTHERS},
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
}


class MultiplyAdds(TorchDispatchMode):
    """Counts in a ``with`` block; ``total`` are the multiply-adds so far.

    A product can be put together from sums of shifted numbers, too: ``sums`` are the numbers that
    were added or chosen beside them.
    """

    def __init__(self) -> None:
        """Begin at zero."""
        super().__init__()
        self.total = 0
        self.sums = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or the first use imports PyTorch's compiler, most of a second

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make one operation and count it, or the ones that it is made of."""
        kwargs = kwargs or {}
        flops = _FLOPS.get(getattr(func, "_overloadpacket", func))
        if flops is None and hasattr(func, "decompose"):
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if flops is not None:
            self.total += flops(*args, **kwargs, out_val=out) // 2
        else:
            name = str(getattr(func, "_opname", "")).strip("_")
            if name not in _FREE:
                self.total += _unknown(name, (args, kwargs), out) // 2
            elif name in _SUMS:
                self.sums += max((t.numel() for t in _tensors((args, kwargs, out))), default=0)
        return out
