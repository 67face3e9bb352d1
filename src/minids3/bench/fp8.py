"""Training in FP8 against training in BF16, and what happens without parts of the recipe.

The 11M model ``mini`` without its MTP module, the same start and the same batches for every recipe
of a seed, so that runs of a seed differ in rounding alone. ``fp32`` rounds nothing; its distance
from ``bf16`` says how far two runs drift apart over a difference that nobody worries about.

Every finished run is written at once to ``data/bench/fp8.json``; the command goes on from there if
the settings are the same. About 40 minutes on one CPU core.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from tqdm.auto import tqdm

from minids3.bench.records import record, record_path, recorded
from minids3.bench.timing import alternate, environment
from minids3.config import get_config
from minids3.data import PackedBatches, entropy_floor, load_split
from minids3.model import Transformer
from minids3.nn.linear import Float8Experts, Float8Linear, to_float8
from minids3.ops.gemm import BF16_BASELINE, Float8Recipe
from minids3.ref.quant import block_dequantize_ref, block_quantize_ref
from minids3.train import TrainConfig, Trainer, evaluate

__all__ = ["RECIPES", "SEEDS", "TRAIN", "gaps", "run", "train_once"]

SEEDS = (0, 1, 2)
TRAIN = TrainConfig(
    steps=100, lr=2e-3, batch_size=4, seq_len=128, warmup_steps=10, decay_start=50, min_lr=1e-4
)
VALIDATION = (8, 128, 8)  # rows, positions, batches
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
ORDER = (("bf16", "fp8"), tuple(RECIPES)[2:6], tuple(RECIPES)[6:])


def round_weights(model: Transformer) -> None:
    """Store converted weights as E4M3 in blocks of 128 x 128, as if there were no masters."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Float8Linear | Float8Experts):
                for weight in module.parameters(recurse=False):
                    for matrix in weight if weight.ndim == 3 else (weight,):
                        matrix.copy_(block_dequantize_ref(*block_quantize_ref(matrix)))


def train_once(name: str, seed: int) -> dict[str, Any]:
    """Train one recipe of ``RECIPES``; returns its losses in nats per token."""
    torch.manual_seed(seed)
    model = Transformer(get_config("mini", num_nextn_predict_layers=0))
    if RECIPES[name] is not None:
        to_float8(model, RECIPES[name])
    cfg = TRAIN.replace(seed=seed)
    batches = PackedBatches(load_split("train"), cfg.batch_size, cfg.seq_len, seed=seed)
    trainer = Trainer(model, cfg, batches)
    start = time.perf_counter()
    try:
        for _ in tqdm(range(cfg.steps), desc=f"{name}, seed {seed}", leave=False):
            trainer.train_step()
            if name == "no master":
                round_weights(model)
    except FloatingPointError as error:
        return {"recipe": name, "seed": seed, "failed": str(error), "step": trainer.step}
    rows, positions, count = VALIDATION
    valid = PackedBatches(load_split("validation"), rows, positions, shuffle=False)
    losses = trainer.history.train_loss
    return {
        "recipe": name,
        "seed": seed,
        "valid_loss": evaluate(model, valid, count),
        "last_train_loss": statistics.fmean(losses[-LAST:]),
        "train_loss": [round(x, 4) for x in losses],
        "seconds": round(time.perf_counter() - start),
    }


def gaps(runs: list[dict[str, Any]], of: str, to: str = "bf16", key: str = "valid_loss") -> list:
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
        raise ValueError("this topic measures the CPU's emulation: leave --device out")
    settings = {
        "model": "mini, num_nextn_predict_layers=0",
        "train": dataclasses.asdict(TRAIN),
        "validation": list(VALIDATION),
        "last": LAST,
    }
    settings["train"]["betas"] = list(TRAIN.betas)
    old = recorded("fp8")
    runs = old["runs"] if old and old["settings"] == settings else []
    report: dict[str, Any] = {
        "command": "python -m minids3.bench fp8 --json",
        "about": environment(device),
        "settings": settings,
        "floor": entropy_floor(load_split("validation")),
        "runs": runs,
    }
    done = {(r["recipe"], r["seed"]) for r in runs}
    for group in ORDER:
        for seed in SEEDS:
            for name in group:
                if (name, seed) not in done:
                    runs.append(train_once(name, seed))
                    record(report, record_path("fp8"))
                    print(_row(runs[-1]), flush=True)
    for name in RECIPES:
        print(f"{name:16}", "  ".join(f"{gap:+.3f} %" for gap in gaps(runs, name)))
    report["overhead"] = [
        alternate(
            f"{name} step against {peer}",
            _stepper(name),
            _stepper(peer),
            work=TRAIN.batch_size * TRAIN.seq_len,
            unit="tokens/s",
            rounds=rounds,
        ).to_dict()
        for name, peer in (("fp8", "fp32"), ("bf16", "fp32"), ("fp8", "bf16"))
    ]
    for entry in report["overhead"]:
        print(f"{entry['name']}: {1 / entry['ratio']:.2f} times the seconds")
    return report


def _row(found: dict[str, Any]) -> str:
    if "failed" in found:
        return f"{found['recipe']:16} seed {found['seed']}  failed at step {found['step']}"
    return (
        f"{found['recipe']:16} seed {found['seed']}  validation {found['valid_loss']:.4f}  "
        f"training {found['last_train_loss']:.4f}  {found['seconds']} s"
    )


def _stepper(name: str) -> Callable[[], object]:
    """A function that does one training step."""
    torch.manual_seed(0)
    model = Transformer(get_config("mini", num_nextn_predict_layers=0))
    if RECIPES[name] is not None:
        to_float8(model, RECIPES[name])
    batches = PackedBatches(load_split("train"), TRAIN.batch_size, TRAIN.seq_len)
    return Trainer(model, TRAIN, batches).train_step
