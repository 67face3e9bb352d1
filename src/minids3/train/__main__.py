"""``python -m minids3.train NAME``: train one of the models that ship with the workbook."""

from __future__ import annotations

import argparse
import sys

from minids3.data import DataError, data_dir
from minids3.train.checkpoint import CheckpointError
from minids3.train.recipes import RECIPES, train_recipe


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and train; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m minids3.train", description=__doc__)
    parser.add_argument("name", choices=sorted(RECIPES), help="the recipe to train")
    parser.add_argument("--out", help="folder of the model (default: data/checkpoints/NAME)")
    parser.add_argument("--work-dir", help="folder of the run's checkpoints (default: runs/NAME)")
    parser.add_argument("--fresh", action="store_true", help="start over, ignoring checkpoints")
    args = parser.parse_args(argv)
    work_dir = args.work_dir or f"runs/{args.name}"
    try:
        out = args.out or data_dir() / "checkpoints" / args.name
        folder = train_recipe(args.name, out, work_dir, resume=not args.fresh)
    except KeyboardInterrupt:
        print(f"interrupted; the same command goes on from {work_dir}", file=sys.stderr)
        return 130
    except (CheckpointError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
