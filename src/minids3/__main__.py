"""The ``minids3`` command: what can be run, and the version. Grading is done here itself."""

from __future__ import annotations

import sys

import minids3
from minids3.command import fail

__all__ = ["COMMANDS", "main"]

# A command's name, how it is called, what it does.
COMMANDS = {
    "grade": ("minids3 grade", "grade submitted notebooks, or your own with --self"),
    "book": ("minids3 book", "one gradebook over the notebooks of a term"),
    "release": ("minids3 release", "make the bundle that students get"),
    "guide": ("minids3 guide", "for authors: rewrite the instructor guide"),
    "data": ("python -m minids3.data", "rebuild, verify or show the data"),
    "train": ("python -m minids3.train", "train a model that ships with the workbook"),
    "model": ("python -m minids3.model", "export a model for other programs"),
    "infer": ("python -m minids3.infer", "chat with a model, or serve it to any client"),
    "evals": ("python -m minids3.evals", "count how much of what a model writes is exactly right"),
    "course": ("python -m minids3.course", "for authors: build and check the notebooks"),
    "bench": ("python -m minids3.bench", "measure against peers"),
    "compile": ("python -m minids3.kernels.compile", "compile kernels for GPUs you do not own"),
}
GRADING = ("grade", "book", "release", "guide")


def main(argv: list[str] | None = None) -> int:
    """Answer ``--version`` and ``--help``, or hand over to grading; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    first = arguments[0] if arguments else "--help"
    if first in ("--version", "-V"):
        print(f"minids3 {minids3.__version__}")
        return 0
    if first in ("--help", "-h"):
        print(f"minids3 {minids3.__version__}: {(minids3.__doc__ or '').splitlines()[0]}\n")
        for call, what in COMMANDS.values():
            print(f"  {call:34} {what}")
        print("\nEach has --help. The workbook itself: notebooks/00_start_here.ipynb")
        return 0
    if first in GRADING:
        from minids3.grade.cli import main as grading

        return grading(arguments)
    if first in COMMANDS:
        return fail(f"{first!r} is called as '{COMMANDS[first][0]}'")
    return fail(f"there is no command {first!r}: {', '.join(COMMANDS)} (--help says more)")


if __name__ == "__main__":
    sys.exit(main())
