"""``python -m minids3.bench model``: benchmarks by topic."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

import torch

from minids3.bench.records import record, record_path

TOPICS = ("fp8", "kernels", "model")


def main(argv: list[str] | None = None) -> int:
    """Run one topic; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m minids3.bench", description=__doc__)
    parser.add_argument("topic", choices=TOPICS)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument("--rounds", type=int, default=7, help="how often each side is timed")
    parser.add_argument(
        "--json",
        type=Path,
        nargs="?",
        const="",
        metavar="FILE",
        help="write the figures there too; without FILE to data/bench/TOPIC.json",
    )
    args = parser.parse_args(argv)
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.device == "cpu" and "triton" not in sys.modules:
        os.environ.setdefault("TRITON_INTERPRET", "1")  # heard only before the first import
    try:
        topic = importlib.import_module(f"minids3.bench.{args.topic}")
        report = topic.run(device=args.device, rounds=args.rounds)
    except ImportError as error:
        print(f"{error}\nThe peers come with the test extra: pip install -e '.[test]'")
        return 1
    if args.json is not None:
        path = args.json if args.json.name else record_path(args.topic)
        record(report, path)
        print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
