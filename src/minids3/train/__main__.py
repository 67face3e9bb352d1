"""``python -m minids3.train NAME``: train a model of the workbook, or go on with its training."""

from __future__ import annotations

import argparse
import ast
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from minids3.command import Parser, run
from minids3.train.allocator import keep_freed_memory
from minids3.train.checkpoint import CheckpointError, latest_checkpoint
from minids3.train.recipes import RECIPES, train_recipe

__all__ = ["main"]


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    found = Parser(
        prog="python -m minids3.train",
        description=f"{__doc__} A run found in its folder is gone on with.",
        epilog="recipes: " + "; ".join(f"{n}: {r.purpose}" for n, r in sorted(RECIPES.items())),
    )
    add = found.add_argument
    add("name", choices=sorted(RECIPES), help="the recipe to train")
    add("--out", help="folder of the run: checkpoints, log, and the model (default: runs/NAME)")
    add("--work-dir", help="folder of checkpoints and log, if not --out")
    going = found.add_mutually_exclusive_group()
    going.add_argument(
        "--resume", action="store_true", help="fail if there is no run to go on with"
    )
    going.add_argument(
        "--fresh", action="store_true", help="start over; an earlier run is renamed, not lost"
    )
    length = found.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="length of the run, its schedules with it")
    length.add_argument("--tokens", type=int, help="the same in tokens")
    add("--precision", choices=("fp32", "bf16", "fp8"), help="arithmetic (default: the recipe's)")
    add("--device", default="cpu", help="cpu, cuda, cuda:1 ... (default: cpu)")
    add("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the model that is written")
    add("--eval-every", type=int, help="steps between evaluations, 0: only at the end")
    add("--save-every", type=int, help="steps between checkpoints, 0: only at the end")
    add(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other setting of TrainConfig, such as lr=1e-3 or recompute=True",
    )
    return found


def _changes(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that the command line changes; ``ValueError`` for one it cannot read."""
    changes: dict[str, Any] = {}
    for text in args.set:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set {text}: write NAME=VALUE")
        try:
            changes[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            changes[name] = value
    named = ("steps", "tokens", "precision", "eval_every", "save_every")
    return changes | {n: getattr(args, n) for n in named if getattr(args, n) is not None}


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and train; returns the exit status."""
    return run(partial(_train, sys.argv[1:] if argv is None else argv))


def _train(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    out = Path(args.out or f"runs/{args.name}")
    work_dir = Path(args.work_dir or out)
    keep_freed_memory()
    _require_device(args.device)
    if args.resume and latest_checkpoint(work_dir) is None:
        raise CheckpointError(f"there is no checkpoint in {work_dir}: leave --resume out")
    try:
        folder = train_recipe(
            args.name,
            out,
            work_dir,
            resume=not args.fresh,
            device=args.device,
            dtype=torch.float32 if args.dtype == "fp32" else torch.bfloat16,
            **_changes(args),
        )
    except TypeError as error:  # a setting that there is not
        raise ValueError(error) from error
    except FloatingPointError as error:
        raise RuntimeError(error) from error
    except KeyboardInterrupt:
        command = shlex.join(
            ["python", "-m", "minids3.train", *(a for a in argv if a != "--fresh")]
        )
        print(f"interrupted; '{command}' goes on from {work_dir}", file=sys.stderr)
        return 130
    print(f"wrote {folder}")
    return 0


def _require_device(name: str) -> None:
    """Raise ``ValueError`` for a device that this machine does not have."""
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"--device {name} cannot be used here: {first}") from error


if __name__ == "__main__":
    sys.exit(main())
