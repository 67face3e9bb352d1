"""The set-up line of a notebook: what this machine can run, what is emulated, and why.

Triton must not be imported before TRITON_INTERPRET is decided, so it is looked at through the
package metadata only.
"""

from __future__ import annotations

import html
import importlib.metadata
import importlib.util
import os
import platform
import sys
from dataclasses import dataclass

__all__ = ["DeviceMatrix", "device_matrix", "setup"]

# What the kernels are compiled for in the tests (kernels.compile.TARGETS), in a GPU's own name.
KNOWN = {
    "sm_75": "T4",
    "sm_80": "A100",
    "sm_89": "L4",
    "sm_90": "H100",
    "sm_100": "B200",
    "sm_120": "RTX PRO 6000, Colab's G4",
}


@dataclass(frozen=True)
class Row:
    """One line of the matrix; ``state`` is "yes", "emulated" or "no"."""

    what: str
    state: str
    reason: str


@dataclass(frozen=True, repr=False)
class DeviceMatrix:
    """What runs here, as HTML in a notebook and as text elsewhere."""

    title: str
    rows: tuple[Row, ...]

    def __repr__(self) -> str:
        width = max(len(r.what) for r in self.rows)
        body = [f"  {r.what:<{width}}  {r.state:<8}  {r.reason}" for r in self.rows]
        return "\n".join([self.title, *body])

    def _repr_html_(self) -> str:
        marks = {"yes": ("#009E73", "●"), "emulated": ("#E69F00", "◐"), "no": ("#888888", "○")}
        left = 'style="text-align:left"'
        body = "".join(
            f"<tr><td {left}><b>{html.escape(r.what)}</b></td>"
            f'<td {left}><span style="color:{marks[r.state][0]}">{marks[r.state][1]}</span> '
            f"{r.state}</td><td {left}>{html.escape(r.reason)}</td></tr>"
            for r in self.rows
        )
        return f"<p>{html.escape(self.title)}</p><table><tbody>{body}</tbody></table>"


def _version(package: str) -> str | None:
    if importlib.util.find_spec(package) is None:
        return None
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def device_matrix(title: str = "This machine") -> DeviceMatrix:
    """Look at CPU, MPS, CUDA, BF16, FP8 and Triton, each with the reason for its state."""
    import torch

    cuda = torch.cuda.is_available()
    capability = torch.cuda.get_device_capability() if cuda else (0, 0)
    sm = f"sm_{capability[0]}{capability[1]}"
    threads = torch.get_num_threads()
    cpu = f"{platform.machine()}, {threads} thread{'s' if threads > 1 else ''}"
    rows = [Row("CPU", "yes", cpu)]

    if torch.backends.mps.is_available():
        rows.append(Row("MPS", "yes", "Apple GPU; the workbook's kernels do not run on it"))
    elif platform.system() == "Darwin":
        rows.append(Row("MPS", "no", "this torch or this macOS has no Metal support"))
    else:
        rows.append(Row("MPS", "no", "only on a Mac"))

    if cuda:
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        rows.append(Row("CUDA", "yes", f"{torch.cuda.get_device_name(0)}, {sm}, {memory:.0f} GiB"))
    elif torch.version.cuda is None:
        rows.append(Row("CUDA", "no", "this torch is built without CUDA"))
    else:
        rows.append(Row("CUDA", "no", "no NVIDIA GPU is visible"))

    if cuda and capability >= (8, 0):
        rows.append(Row("BF16", "yes", f"tensor cores of {sm}"))
    else:
        why = f"{sm} has no BF16 tensor cores" if cuda else "correct on a CPU, not faster than FP32"
        rows.append(Row("BF16", "emulated", why))

    if cuda and capability >= (8, 9):
        rows.append(Row("FP8", "yes", f"E4M3 and E5M2 products on {sm}"))
    else:
        why = f"{sm} has no FP8 units" if cuda else "no GPU"
        rows.append(Row("FP8", "emulated", f"{why}: rounded exactly, multiplied in FP32"))

    rows.append(_triton(cuda, sm))
    return DeviceMatrix(title, tuple(rows))


def _triton(cuda: bool, sm: str) -> Row:
    version = _version("triton")
    interpret = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
    if version is None:
        return Row("Triton", "no", _why_no_triton())
    if cuda and not interpret:
        known = f"{KNOWN[sm]}: " if sm in KNOWN else ""
        tried = "kernels are tested to compile" if known else "kernels were never compiled for it"
        return Row("Triton", "yes", f"{version}, {sm} ({known}{tried})")
    if interpret:
        return Row("Triton", "emulated", f"{version} in the interpreter (TRITON_INTERPRET=1)")
    return Row("Triton", "emulated", f"{version}; without a GPU the kernel notebooks interpret it")


def _why_no_triton() -> str:
    if platform.system() == "Linux":
        return "not installed: pip install triton"
    return f"there is none for {platform.system()}"


def setup(notebook: str) -> DeviceMatrix:
    """Prepare a notebook: figure style, a stand-in for each exercise, and the device matrix.

    Args:
        notebook: ``"NN_name"``.

    Returns:
        The device matrix; as the last value of a cell it is shown.
    """
    import torch

    from minids3 import viz
    from minids3.course import without_triton
    from minids3.course.check import namespace, placeholder
    from minids3.course.registry import exercises

    if not torch.cuda.is_available() and "triton" not in sys.modules:
        os.environ.setdefault("TRITON_INTERPRET", "1")  # heard only before the first import
    viz.style.apply()
    variables = namespace()
    for exercise in exercises(notebook):
        variables.setdefault(exercise.name, placeholder(exercise))
    ready = f"Notebook {notebook[:2]} is ready."
    if _version("triton") is None:
        without_triton.install()
        if any(e.kernel for e in exercises(notebook)):
            ready = (
                f"Notebook {notebook[:2]} writes Triton, and there is none here "
                f"({_why_no_triton()}). Cells that need it are skipped: read what they show in "
                f"notebooks/solutions/{notebook}.ipynb, or open this notebook on Colab."
            )
    return device_matrix(f"{ready} What this machine can do:")
