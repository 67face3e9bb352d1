"""What every launch asks: which machine is this, and are these tensors fit for a kernel?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minids3.kernels.language import TensorDescriptor, tl

__all__ = [
    "ALIGNMENT",
    "aligned",
    "capability",
    "cdiv",
    "check_fp8",
    "check_scale",
    "check_tensors",
    "copy_engine",
    "fp8_mode",
    "in_tiles",
    "interpreted",
]

ALIGNMENT = 16  # bytes of the widest load


def interpreted() -> bool:
    """Whether kernels run in the interpreter, on CPU tensors."""
    return type(tl.sum).__name__ == "InterpretedFunction"


def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability of a GPU; the interpreter is taken for an A100, (8, 0)."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (8, 0)


def fp8_mode(device: torch.device) -> str:
    """How a kernel should read E4M3: ``"native"`` or ``"software"``.

    Native needs compute capability 8.9 (Ada, Hopper and later). Elsewhere, and in the interpreter,
    whose casts round differently, kernels read bytes and decode them to FP16, which is exact.
    """
    if interpreted() or device.type != "cuda":
        return "software"
    return "native" if capability(device) >= (8, 9) else "software"


def copy_engine(*tensors: Tensor) -> bool:
    """Whether the GPU can fetch tiles of these by itself (TMA: Hopper and later).

    One thread names a tile, and the copy engine computes the addresses, fills in zeros beyond an
    edge and reports when the tile has arrived in shared memory. Rows must be multiples of 16 bytes
    and begin at such multiples.
    """
    return (
        TensorDescriptor is not None
        and capability(tensors[0].device) >= (9, 0)
        and all(aligned(t) for t in tensors)
    )


def aligned(x: Tensor) -> bool:
    """Whether the rows of a contiguous tensor begin at multiples of 16 bytes."""
    return (x.shape[-1] * x.element_size()) % ALIGNMENT == 0 and x.data_ptr() % ALIGNMENT == 0


def in_tiles(x: Tensor, rows: int, columns: int) -> Any:
    """``x [..., D]`` as a matrix that a kernel loads in tiles of ``rows`` by ``columns``."""
    return TensorDescriptor.from_tensor(x.view(-1, x.shape[-1]), [rows, columns])


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
