"""Training in FP8 against training in BF16, and what happens without parts of the recipe.

Two experiments. ``"scratch"``: a small MLA + MoE model from its first step, where the loss falls
steeply and two runs drift apart over any difference at all. ``"continued"``: the shipped model
trained on, where the loss is flat and small differences can be seen. Within an experiment, the runs
of a seed have the same start and the same batches and differ in rounding alone. ``fp32`` rounds
nothing: its distance from ``bf16`` says how much of a gap means nothing.

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
from minids3.model import Transformer, load_shipped
from minids3.nn.linear import Float8Experts, Float8Linear, to_float8
from minids3.ops.gemm import BF16_BASELINE, Float8Recipe
from minids3.ref.quant import block_dequantize_ref, block_quantize_ref
from minids3.train import TrainConfig, Trainer, evaluate

__all__ = ["EXPERIMENTS", "RECIPES", "SEEDS", "gaps", "run", "start", "train_once"]

SEEDS = (1, 2, 3)  # the shipped model was trained with 0
SMALL = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 64,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "num_nextn_predict_layers": 0,
}
EXPERIMENTS = {
    "continued": TrainConfig(
        steps=50, lr=1e-4, batch_size=4, warmup_steps=3, decay_start=10, min_lr=1e-6
    ),
    "scratch": TrainConfig(
        steps=120, lr=4e-3, batch_size=4, warmup_steps=10, decay_start=40, min_lr=1e-4
    ),
}
VALIDATION = (16, 128, 12)  # rows, positions, batches
LAST = 40  # training steps that are averaged

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
ORDER = (
    ("continued", ("bf16", "fp8", "fp32")),
    ("continued", ("per tensor", "no scales", "block gradients")),
    ("continued", ("no promotion", "no master")),
    ("scratch", ("bf16", "fp8", "fp32")),
)


def round_weights(model: Transformer) -> None:
    """Store converted weights as E4M3 in blocks of 128 x 128, as if there were no masters."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Float8Linear | Float8Experts):
                for weight in module.parameters(recurse=False):
                    for matrix in weight if weight.ndim == 3 else (weight,):
                        matrix.copy_(block_dequantize_ref(*block_quantize_ref(matrix)))


def start(experiment: str, name: str, seed: int) -> Transformer:
    """The model of an experiment before its first step, rounding by a recipe of ``RECIPES``."""
    if experiment == "continued":
        model = load_shipped("dense_chat")
    else:
        torch.manual_seed(seed)
        model = Transformer(get_config("mini", **SMALL))
    if RECIPES[name] is not None:
        to_float8(model, RECIPES[name])
    return model.train()


def train_once(experiment: str, name: str, seed: int) -> dict[str, Any]:
    """Train one recipe of ``RECIPES``; returns its losses in nats per token."""
    model, cfg = start(experiment, name, seed), EXPERIMENTS[experiment].replace(seed=seed)
    batches = PackedBatches(load_split("train"), cfg.batch_size, cfg.seq_len, seed=seed)
    trainer = Trainer(model, cfg, batches)
    found: dict[str, Any] = {"experiment": experiment, "recipe": name, "seed": seed}
    clock = time.perf_counter()
    try:
        for _ in tqdm(range(cfg.steps), desc=f"{experiment}, {name}, seed {seed}", leave=False):
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


def _validate(model: Transformer) -> float:
    rows, positions, count = VALIDATION
    valid = PackedBatches(load_split("validation"), rows, positions, shuffle=False)
    return evaluate(model, valid, count)


def gaps(
    runs: list[dict[str, Any]], experiment: str, of: str, to: str = "bf16", key: str = "valid_loss"
) -> list[float]:
    """Relative differences in percent, (of - to) / to, for the seeds that have both runs."""
    found = {
        (r["recipe"], r["seed"]): r[key] for r in runs if r["experiment"] == experiment and key in r
    }
    seeds = sorted(s for name, s in found if name == of and (to, s) in found)
    return [100 * (found[of, s] - found[to, s]) / found[to, s] for s in seeds]


def run(device: str = "cpu", rounds: int = 7) -> dict[str, Any]:
    """Train what is not recorded yet, then time a step; prints a table and returns the report.

    The runs themselves are of a CPU's emulation; ``device`` other than ``"cpu"`` is refused with
    ``ValueError``.
    """
    if device != "cpu":
        raise ValueError("this topic measures the CPU's emulation: leave --device out")
    settings: dict[str, Any] = {
        "continued": {"model": "dense_chat, as shipped"},
        "scratch": {"model": "mini", "changes": SMALL},
        "validation": list(VALIDATION),
        "last": LAST,
    }
    for name, cfg in EXPERIMENTS.items():
        settings[name]["train"] = {**dataclasses.asdict(cfg), "betas": list(cfg.betas)}
    old = recorded("fp8")
    runs = old["runs"] if old and old["settings"] == settings else []
    report: dict[str, Any] = {
        "command": "python -m minids3.bench fp8 --json",
        "about": environment(device),
        "settings": settings,
        "floor": entropy_floor(load_split("validation")),
        "start": _validate(start("continued", "bf16", 0)),
        "runs": runs,
    }
    done = {(r["experiment"], r["recipe"], r["seed"]) for r in runs}
    for experiment, names in ORDER:
        for seed in SEEDS:
            for name in names:
                if (experiment, name, seed) not in done:
                    runs.append(train_once(experiment, name, seed))
                    record(report, record_path("fp8"))
                    print(_row(runs[-1]), flush=True)
    for experiment in EXPERIMENTS:
        for name in RECIPES:
            row = "  ".join(f"{gap:+.3f} %" for gap in gaps(runs, experiment, name))
            print(f"{experiment:10} {name:16}", row)
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


def _row(found: dict[str, Any]) -> str:
    head = f"{found['experiment']:10} {found['recipe']:16} seed {found['seed']}  "
    if "failed" in found:
        return head + f"failed at step {found['step']}"
    return (
        f"{head}validation {found['valid_loss']:.4f}  "
        f"training {found['last_train_loss']:.4f}  {found['seconds']} s"
    )


def _stepper(name: str) -> Callable[[], object]:
    """A function that does one training step of 8 x 128 tokens with the 11M model."""
    torch.manual_seed(0)
    model = Transformer(get_config("mini", num_nextn_predict_layers=0))
    if RECIPES[name] is not None:
        to_float8(model, RECIPES[name])
    batches = PackedBatches(load_split("train"), 8, 128)
    return Trainer(model, EXPERIMENTS["scratch"], batches).train_step
