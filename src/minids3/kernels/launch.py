"""What every launch asks: which machine is this, and are these tensors fit for a kernel?"""

from __future__ import annotations

import torch
from torch import Tensor

from minids3.kernels.language import tl

__all__ = ["cdiv", "check_fp8", "check_scale", "check_tensors", "fp8_mode", "interpreted"]


def interpreted() -> bool:
    """Whether kernels run in the interpreter, on CPU tensors."""
    return type(tl.sum).__name__ == "InterpretedFunction"


def fp8_mode(device: torch.device) -> str:
    """How a kernel should read E4M3: ``"native"`` or ``"software"``.

    Native needs compute capability 8.9 (Ada, Hopper and later). Elsewhere, and in the interpreter,
    whose casts round differently, kernels read bytes and decode them to FP16, which is exact.
    """
    if interpreted() or device.type != "cuda":
        return "software"
    return "native" if torch.cuda.get_device_capability(device) >= (8, 9) else "software"


def cdiv(a: int, b: int) -> int:
    """Blocks of size ``b`` that cover ``a``: the quotient rounded up."""
    return -(-a // b)


def check_tensors(**tensors: Tensor | None) -> None:
    """Refuse what a kernel would misread: tensors on different devices, off the GPU, or strided.

    Raises:
        ValueError: a tensor is not contiguous, or they lie on different devices.
        RuntimeError: CPU tensors without the interpreter.
    """
    given = {name: t for name, t in tensors.items() if t is not None}
    if not given:
        return
    first = next(iter(given))
    device = given[first].device
    for name, t in given.items():
        if t.device != device:
            raise ValueError(f"{name} is on {t.device}, {first} on {device}: move one of them")
        if not t.is_contiguous():
            raise ValueError(
                f"{name} is not contiguous (strides {t.stride()}), and the kernel reads rows one "
                "after the other: call .contiguous()"
            )
    if device.type != "cuda" and not interpreted():
        raise RuntimeError(
            f"{first} is on {device}: a compiled kernel needs CUDA tensors. To run on a CPU, set "
            "TRITON_INTERPRET=1 before triton is imported (the notebooks' set-up cell does)"
        )


def check_fp8(**tensors: Tensor) -> None:
    """Refuse operands that are not E4M3 with a ``ValueError`` that names them."""
    for name, t in tensors.items():
        if t.dtype != torch.float8_e4m3fn:
            raise ValueError(f"{name} is {t.dtype}, expected float8_e4m3fn: quantise it first")


def check_scale(name: str, scale: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse scales of another shape or dtype with a ``ValueError`` that names them."""
    if tuple(scale.shape) != shape or scale.dtype != torch.float32:
        raise ValueError(
            f"{name} is {list(scale.shape)} {scale.dtype}, expected {list(shape)} float32"
        )
