"""The notebooks' build: ``python -m minids3.course build|check|list|repository|seeds``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from minids3.command import Parser, demand, run

__all__ = ["main"]

AUTHORS = "-e '.[test]'"  # the extra with jupytext and its kin


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    parser = Parser(prog="python -m minids3.course", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("build", help="make the notebooks from their sources")
    make.add_argument("notebook", nargs="*", help="numbers, such as 02 (default: all)")
    make.add_argument("--no-execute", action="store_true", help="do not run the solved notebooks")
    drift = commands.add_parser("check", help="fail if a notebook differs from its source")
    drift.add_argument("notebook", nargs="*", help="numbers (default: all)")
    commands.add_parser("list", help="list notebooks and exercises")
    fork = commands.add_parser("repository", help="point badges and set-up cells to a fork")
    fork.add_argument("name", metavar="OWNER/NAME")
    many = commands.add_parser("seeds", help="try every known answer with many seeds")
    many.add_argument("exercise", nargs="*", help="ids, or numbers of notebooks (default: all)")
    many.add_argument("--count", type=int, default=1000, help="how many seeds (%(default)s)")
    many.add_argument("--mutants", action="store_true", help="the wrong ones, not the right ones")
    many.add_argument(
        "--progress", type=Path, default=Path(".cache/seeds.json"), help="what is done is kept here"
    )
    args = parser.parse_args(argv)
    return run(lambda: _COMMANDS[args.command](args))


def _build(args: argparse.Namespace) -> int:
    demand("jupytext", "making notebooks", AUTHORS)
    from minids3.course.build import build, sources

    for source in sources(args.notebook):
        start = time.perf_counter()
        try:
            changed = build(source, run=not args.no_execute)
        except Exception as error:
            if type(error).__name__ != "CellExecutionError":
                raise
            print(f"{source.name}: a cell failed\n{error}", file=sys.stderr)
            return 1
        names = ", ".join("/".join(p.parts[-2:]) for p in changed) or "nothing changed"
        print(f"{source.name}: {names} ({time.perf_counter() - start:.0f} s)", flush=True)
    return 0


def _check(args: argparse.Namespace) -> int:
    demand("jupytext", "making notebooks", AUTHORS)
    from minids3.course.build import check, sources

    found = [sentence for source in sources(args.notebook) for sentence in check(source)]
    for sentence in found:
        print(sentence)
    if not found:
        print("the notebooks are what their sources say")
    return 1 if found else 0


def _list(args: argparse.Namespace) -> int:
    from minids3.course.build import sources
    from minids3.course.registry import exercises

    for source in sources():
        print(source.name)
        for e in exercises(source.name):
            print(f"  {e.id:<24} {e.title} ({e.minutes} min, {e.points} points)")
    return 0


def _repository(args: argparse.Namespace) -> int:
    demand("jupytext", "making notebooks", AUTHORS)
    from minids3.course.build import build, sources
    from minids3.course.repository import root, set_address

    for path in [*set_address(args.name), *(p for s in sources() for p in build(s, run=False))]:
        print(f"changed {path.relative_to(root()).as_posix()}")
    return 0


def _seeds(args: argparse.Namespace) -> int:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # heard only before triton is imported
    from minids3.course import seeds
    from minids3.course.registry import exercises, get

    chosen = []
    for name in args.exercise or [""]:
        found = [e for e in exercises() if e.notebook.startswith(name)]
        chosen += found if found else [get(name)]
    faults = seeds.run(chosen, args.count, args.progress, args.mutants)
    for text in faults:
        print(text)
    return 1 if faults else 0


_COMMANDS = {
    "build": _build,
    "check": _check,
    "list": _list,
    "repository": _repository,
    "seeds": _seeds,
}

if __name__ == "__main__":
    sys.exit(main())
