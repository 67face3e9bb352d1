"""Triton itself, or a stand-in that says what to do where it cannot be installed.

Everything in ``minids3.kernels`` takes ``triton``, ``tl`` and ``jit`` from here, and
``TensorDescriptor``, which is None where Triton has none. On macOS and Windows there is no Triton:
modules that only *mention* ``tl`` in a function still import there, and what needs it raises
``NoTriton``. Triton keeps what it compiled in the user's home; where that cannot be written, in a
temporary folder.

Without a GPU a kernel runs in Triton's interpreter, which must be chosen by TRITON_INTERPRET=1
before Triton is imported for the first time. Chosen later it half works, so that is refused here.
"""

from __future__ import annotations

import getpass
import inspect
import os
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["NoTriton", "TensorDescriptor", "jit", "tl", "triton"]


class NoTriton(ImportError):
    """Something needs Triton, and Triton is not installed."""

    def __init__(self) -> None:
        super().__init__(
            "Triton is not installed, so its kernels cannot run or be compiled here. There are "
            "packages for Linux, on x86-64 and on ARM: pip install triton. On Windows use WSL, "
            "on a Mac Colab",
            name="triton",
        )


class _Missing:
    """Stands for a module that is not installed; any use of it says so."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NoTriton


class _MissingKernel:
    """Stands for a kernel where there is no Triton; launching or calling it says so."""

    def __init__(self, fn: Any) -> None:
        self.fn = fn
        self.__name__ = fn.__name__
        self.__doc__ = fn.__doc__
        self.arg_names = list(inspect.signature(fn).parameters)

    def __getitem__(self, grid: Any) -> Any:
        raise NoTriton

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NoTriton


def _choose_cache() -> None:
    """Have Triton keep its files where they can be written, unless a place was chosen already."""
    if os.environ.get("TRITON_CACHE_DIR"):
        return
    home = Path(os.environ.get("TRITON_HOME") or Path.home()) / ".triton" / "cache"
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home) as file:
            file.write(bytes(1 << 16))  # a full disk lets an empty file be made
    except OSError:
        try:
            user = getpass.getuser()
        except (OSError, KeyError, ImportError):  # a number without a name
            user = str(os.getuid()) if hasattr(os, "getuid") else "user"
        place = Path(tempfile.gettempdir()) / f"minids3-triton-{user}"
        os.environ["TRITON_CACHE_DIR"] = str(place)


def _mend_products() -> None:
    """Let the interpreter multiply matrices of BF16.

    It keeps them as 16-bit integers and multiplies these (Triton's issue 11584, closed as not
    supported). Sums and products of single BF16 numbers stay wrong in it.
    """
    from triton.runtime.interpreter import TensorHandle, interpreter_builder

    original = type(interpreter_builder).create_dot

    def wide(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        bits = handle.data.astype("uint32") << 16
        return TensorHandle(bits.view("float32"), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any, **more: Any) -> Any:
        return original(self, wide(a), wide(b), *rest, **more)

    if not hasattr(original, "mended"):
        create_dot.mended = True  # type: ignore[attr-defined]
        type(interpreter_builder).create_dot = create_dot


_choose_cache()
try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = _Missing()  # type: ignore[assignment]
    TensorDescriptor = None
else:
    try:
        from triton.tools.tensor_descriptor import TensorDescriptor
    except ImportError:  # before Triton 3.4
        TensorDescriptor = None
    _asked = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
    # tl.sum is itself written in Triton and was made either way when triton was imported.
    if _asked != (type(tl.sum).__name__ == "InterpretedFunction"):
        raise RuntimeError(
            "TRITON_INTERPRET was changed after Triton had been imported, and half of it would not "
            "notice. Restart the kernel and run the set-up cell first, before anything that "
            "imports triton"
        )
    if _asked:
        _mend_products()


def jit(fn: Any) -> Any:
    """``triton.jit``: compile for the GPU, or interpret if TRITON_INTERPRET=1.

    Without Triton the result can be imported and looked at, and says what to do when used.
    """
    if isinstance(triton, _Missing):
        return _MissingKernel(fn)
    return triton.jit(fn)
