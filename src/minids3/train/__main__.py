"""``python -m minids3.train NAME``: train a model of the workbook, or go on with its training."""
# Under torchrun the same command trains on many processes (``minids3.parallel.training``), which
# is why this file, a command, may import what stands above its package.

from __future__ import annotations

import argparse
import ast
import math
import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from minids3.command import Parser, positive, run
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
    for name, what in (
        ("--ep", "processes that share the experts of a layer"),
        ("--dp", "copies of the experts; each copy's processes have rows of their own"),
        ("--pp", "stages of a pipeline"),
    ):
        add(name, type=positive, metavar="N", help=f"under torchrun: {what}")
    add(
        "--schedule",
        choices=("1f1b", "zb1p", "zbv", "dualpipev"),
        help="of the pipeline (default: 1f1b)",
    )
    add("--fp8-dispatch", action="store_true", help="tokens travel to experts in FP8")
    add("--timeout", type=positive, default=300, help="seconds to wait for another process")
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
    if args.resume and latest_checkpoint(work_dir) is None:
        raise CheckpointError(f"there is no checkpoint in {work_dir}: leave --resume out")
    options: dict[str, Any] = {
        "resume": not args.fresh,
        "device": args.device,
        "dtype": torch.float32 if args.dtype == "fp32" else torch.bfloat16,
        **_changes(args),
    }
    parallel = {n: getattr(args, n) for n in ("ep", "dp", "pp", "schedule") if getattr(args, n)}
    if args.fp8_dispatch:
        parallel["fp8_dispatch"] = True
    try:
        if "WORLD_SIZE" in os.environ:
            from minids3.parallel.training import process_group, train_parallel

            with process_group(options, args.timeout, work_dir):
                _require_device(options["device"])
                folder = train_parallel(args.name, out, work_dir, **parallel, **options)
            if int(os.environ["RANK"]):
                return 0
        elif parallel:
            raise ValueError(_under_torchrun(parallel, argv))
        else:
            _require_device(args.device)
            folder = train_recipe(args.name, out, work_dir, **options)
    except TypeError as error:  # a setting that there is not
        raise ValueError(error) from error
    except FloatingPointError as error:
        raise RuntimeError(error) from error
    except KeyboardInterrupt:
        if int(os.environ.get("RANK", 0)) == 0:
            python = "torchrun ..." if "WORLD_SIZE" in os.environ else "python"
            command = shlex.join(["-m", "minids3.train", *(a for a in argv if a != "--fresh")])
            print(f"interrupted; '{python} {command}' goes on from {work_dir}", file=sys.stderr)
        return 130
    print(f"wrote {folder}")
    return 0


def _under_torchrun(parallel: dict[str, Any], argv: list[str]) -> str:
    """What to say to options that need torchrun."""
    sizes = [parallel.get(name, 1) for name in ("ep", "dp", "pp")]
    command = shlex.join(["-m", "minids3.train", *argv])
    names = ", ".join(f"--{name}" for name in parallel).replace("_", "-")
    return (
        f"{names}: for many processes, "
        f"started by 'torchrun --nproc-per-node {math.prod(sizes)} {command}'"
    )


def _require_device(name: str) -> None:
    """Raise ``ValueError`` for a device that this machine does not have."""
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"--device {name} cannot be used here: {first}") from error


if __name__ == "__main__":
    sys.exit(main())
