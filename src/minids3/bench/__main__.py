"""Benchmarks by topic: ``python -m minids3.bench model``."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

import torch

from minids3.bench.records import record, record_path
from minids3.command import Parser, demand, positive, run
from minids3.data.files import check_writable

__all__ = ["main"]

# Topic -> the package it cannot do without, and how that is installed.
TOPICS: dict[str, tuple[str, str] | None] = {
    "experts": None,
    "fp8": None,
    "kernels": ("triton", "triton (on Linux)"),
    "long_context": None,
    "model": ("transformers", "-e '.[test]'"),
    "pipelines": None,
    "serve": ("transformers", "-e '.[test]'"),
    "training": None,
}


def main(argv: list[str] | None = None) -> int:
    """Run one topic; returns the exit status."""
    parser = Parser(prog="python -m minids3.bench", description=__doc__)
    parser.add_argument("topic", choices=TOPICS)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument("--rounds", type=positive, default=7, help="how often each side is timed")
    parser.add_argument(
        "--json",
        type=Path,
        nargs="?",
        const="",
        metavar="FILE",
        help="write the figures there too; without FILE to data/bench/TOPIC.json",
    )
    args = parser.parse_args(argv)
    return run(lambda: _measure(args))


def _measure(args: argparse.Namespace) -> int:
    needs = TOPICS[args.topic]
    if needs is not None:
        demand(needs[0], f"the topic {args.topic}", needs[1])
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("there is no GPU that this PyTorch can use: leave --device out")
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cpu" and "triton" not in sys.modules:
        os.environ.setdefault("TRITON_INTERPRET", "1")  # heard only before the first import
    path = None
    if args.json is not None:
        path = args.json if args.json.name else record_path(args.topic)
        if path.is_dir():
            raise IsADirectoryError(f"--json names the folder {path}: name a file")
        if not path.exists():
            check_writable(path.parent)  # before the work, not after
    report = importlib.import_module(f"minids3.bench.{args.topic}").run(
        device=device, rounds=args.rounds
    )
    if path is not None:
        record(report, path)
        print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
