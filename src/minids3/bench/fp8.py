"""Training in FP8 against training in BF16, and what happens without parts of the recipe.

The 11M model is trained for 200 steps without any rounding. From there every recipe goes on for 80
steps while the learning rate falls to nearly nothing: the model still learns, and no longer so
steeply that two runs drift apart over any difference at all. The runs of a seed have the same start
and the same batches and differ in rounding alone. ``fp32`` rounds nothing: its distance from
``bf16`` says how much of a gap means nothing.

Every finished run is written at once to ``data/bench/fp8.json``; the command goes on from there if
the settings are the same. Somewhat over half an hour on one CPU core.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from minids3.bench.records import record, record_path, recorded
from minids3.bench.timing import alternate, environment
from minids3.config import get_config
from minids3.data import PackedBatches, entropy_floor, load_split
from minids3.data.files import check_writable
from minids3.model import Transformer
from minids3.nn.linear import Float8Experts, Float8Linear, to_float8
from minids3.ops.gemm import BF16_BASELINE, Float8Recipe
from minids3.ref.quant import block_dequantize_ref, block_quantize_ref
from minids3.train import TrainConfig, Trainer, evaluate

__all__ = ["BASE", "BRANCH", "RECIPES", "SEEDS", "gaps", "run", "start", "train_once"]

SEEDS = (1, 2, 3, 4, 5, 6)  # of the branches' batches
MODEL = {"num_nextn_predict_layers": 0}  # changes to "mini"
BASE = TrainConfig(steps=200, lr=1e-3, batch_size=8, warmup_steps=30)
BRANCH = TrainConfig(  # near the best rate: half and twice of it end higher
    steps=80, lr=5e-4, batch_size=8, warmup_steps=5, decay_start=25, min_lr=1e-5
)
VALIDATION = (16, 128, 12)  # rows, positions, batches
LAST = 20  # training steps that are averaged

RECIPES: dict[str, Float8Recipe | None] = {
    "bf16": BF16_BASELINE,
    "fp8": Float8Recipe(),
    "per tensor": Float8Recipe(activation=None, gradient=None, weight=None),
    "no scales": Float8Recipe(scaled=False),
    "block gradients": Float8Recipe(gradient=(128, 128)),
    "no promotion": Float8Recipe(fraction_bits=13),
    "fp32": None,
    "no master": Float8Recipe(),  # weights are rounded to E4M3 after every step
}
ORDER = (  # recipes, and how many seeds of each
    (("bf16", "fp8", "fp32"), 6),
    (("no master", "no scales", "per tensor"), 3),
    (("block gradients", "no promotion"), 3),
)


def round_weights(model: Transformer) -> None:
    """Store converted weights as E4M3 in blocks of 128 x 128, as if there were no masters."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Float8Linear | Float8Experts):
                for weight in module.parameters(recurse=False):
                    for matrix in weight if weight.ndim == 3 else (weight,):
                        matrix.copy_(block_dequantize_ref(*block_quantize_ref(matrix)))


@functools.cache
def _base() -> dict[str, Tensor]:
    """Weights after the steps that all runs share, trained anew by each process."""
    torch.manual_seed(BASE.seed)
    model = Transformer(get_config("mini", **MODEL)).train()
    trainer = Trainer(model, BASE, _batches(BASE, BASE.seed))
    for _ in tqdm(range(BASE.steps), desc="base", leave=False):
        trainer.train_step()
    return model.state_dict()


def start(name: str) -> Transformer:
    """The trained base, rounding from now on by a recipe of ``RECIPES``."""
    model = Transformer(get_config("mini", **MODEL))
    model.load_state_dict(_base())
    if RECIPES[name] is not None:
        to_float8(model, RECIPES[name])
    return model.train()


def train_once(name: str, seed: int) -> dict[str, Any]:
    """Train one recipe of ``RECIPES`` on; returns its losses in nats per token."""
    model = start(name)
    trainer = Trainer(model, BRANCH.replace(seed=seed), _batches(BRANCH, 100 + seed))
    found: dict[str, Any] = {"recipe": name, "seed": seed}
    clock = time.perf_counter()
    try:
        for _ in tqdm(range(BRANCH.steps), desc=f"{name}, seed {seed}", leave=False):
            trainer.train_step()
            if name == "no master":
                round_weights(model)
    except FloatingPointError as error:
        return {**found, "failed": str(error), "step": trainer.step}
    losses = trainer.history.train_loss
    return {
        **found,
        "valid_loss": _validate(model),
        "last_train_loss": statistics.fmean(losses[-LAST:]),
        "train_loss": [round(x, 4) for x in losses],
        "seconds": round(time.perf_counter() - clock),
    }


def _batches(cfg: TrainConfig, seed: int) -> PackedBatches:
    return PackedBatches(load_split("train"), cfg.batch_size, cfg.seq_len, seed=seed)


def _validate(model: Transformer) -> float:
    rows, positions, count = VALIDATION
    valid = PackedBatches(load_split("validation"), rows, positions, shuffle=False)
    return evaluate(model, valid, count)


def gaps(
    runs: list[dict[str, Any]], of: str, to: str = "bf16", key: str = "valid_loss"
) -> list[float]:
    """Relative differences in percent, (of - to) / to, for the seeds that have both runs."""
    found = {(r["recipe"], r["seed"]): r[key] for r in runs if key in r}
    seeds = sorted(s for name, s in found if name == of and (to, s) in found)
    return [100 * (found[of, s] - found[to, s]) / found[to, s] for s in seeds]


def run(device: str = "cpu", rounds: int = 7) -> dict[str, Any]:
    """Train what is not recorded yet, then time a step; prints a table and returns the report.

    The runs themselves are of a CPU's emulation; ``device`` other than ``"cpu"`` is refused with
    ``ValueError``.
    """
    if device != "cpu":
        raise ValueError("this topic measures the CPU's emulation: add --device cpu")
    path = record_path("fp8")
    check_writable(path.parent)
    settings: dict[str, Any] = {
        "model": {"name": "mini", "changes": MODEL},
        "base": _plain(BASE),
        "branch": _plain(BRANCH),
        "validation": list(VALIDATION),
        "last": LAST,
    }
    old = recorded("fp8")
    runs = old["runs"] if old and _agrees(old.get("settings"), settings) else []
    report: dict[str, Any] = {
        "command": "python -m minids3.bench fp8 --device cpu --json",
        "about": environment(device),
        "settings": settings,
        "floor": entropy_floor(load_split("validation")),
        "start": _validate(start("fp32")),
        "runs": runs,
    }
    print(f"all start from a validation loss of {report['start']:.4f}", flush=True)
    done = {(r["recipe"], r["seed"]) for r in runs}
    for names, n_seeds in ORDER:
        for seed in SEEDS[:n_seeds]:
            for name in names:
                if (name, seed) not in done:
                    runs.append(train_once(name, seed))
                    record(report, path)
                    print(_row(runs[-1]), flush=True)
    for name in RECIPES:
        print(f"{name:16}", "  ".join(f"{gap:+.3f} %" for gap in gaps(runs, name)))
    report["overhead"] = [
        alternate(
            f"{name} step against {peer}",
            _stepper(name),
            _stepper(peer),
            work=8 * 128,
            unit="tokens/s",
            rounds=min(rounds, 5),
        ).to_dict()
        for name, peer in (("fp8", "fp32"), ("bf16", "fp32"), ("fp8", "bf16"))
    ]
    for entry in report["overhead"]:
        print(f"{entry['name']}: {1 / entry['ratio']:.2f} times the seconds")
    return report


def _plain(cfg: TrainConfig) -> dict[str, Any]:
    return cfg.flat()


def _agrees(recorded: Any, now: Any) -> bool:
    """Whether a record's settings are today's; those that it does not name came later."""
    if isinstance(recorded, dict) and isinstance(now, dict):
        return all(name in now and _agrees(recorded[name], now[name]) for name in recorded)
    return recorded == now


def _row(found: dict[str, Any]) -> str:
    head = f"{found['recipe']:16} seed {found['seed']}  "
    if "failed" in found:
        return head + f"failed at step {found['step']}"
    return (
        f"{head}validation {found['valid_loss']:.4f}  "
        f"training {found['last_train_loss']:.4f}  {found['seconds']} s"
    )


def _stepper(name: str) -> Callable[[], object]:
    """A function that does one training step of 8 x 128 tokens."""
    torch.manual_seed(0)
    model = Transformer(get_config("mini", **MODEL))
    if RECIPES[name] is not None:
        to_float8(model, RECIPES[name])
    return Trainer(model, BASE, _batches(BASE, 0)).train_step
