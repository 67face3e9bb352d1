"""The training run of notebook 12, over several seeds, beside the same run with a part taken out.

A model of every idea of DeepSeek-V3 (latent attention, experts balanced by biases, an MTP module)
is trained on fresh documents by V3's schedules in small. The runs of a seed see the same text; they
differ in one thing each from ``bf16``, or from each other. Every finished run is written at once to
``data/bench/training.json``, and the command goes on from there if the settings are the same. About
fifteen minutes on one CPU core.

``python -m minids3.bench.training LOG ...`` makes the record of a long run from its ``log.jsonl``,
or from those of its stages one after the other: some hundred points of every curve, and all events
of the loss.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from minids3.bench.records import record, record_path, recorded
from minids3.bench.timing import environment
from minids3.command import Parser
from minids3.command import run as run_command
from minids3.config import ModelConfig, get_config
from minids3.data import PackedBatches, entropy_floor, load_tokenizer
from minids3.data.files import check_writable
from minids3.data.fresh import FreshBatches, stream_validation
from minids3.data.loading import Split
from minids3.model import Transformer
from minids3.train import TrainConfig, Trainer
from minids3.train.log import read_log
from minids3.train.schedule import Schedule
from minids3.viz.training import loss_events

__all__ = [
    "MODEL",
    "PLAN",
    "SEEDS",
    "TOKENS",
    "VARIANTS",
    "data",
    "joined",
    "model_config",
    "run",
    "text_fingerprint",
    "thin",
    "train_once",
    "trainer",
]

SEEDS = (0, 1, 2)
TOKENS = 120_000
LR = 5e-3
PLAN = TrainConfig(
    tokens=TOKENS,
    lr=Schedule(
        (
            (0.06 * TOKENS, LR, "linear"),
            (0.5 * TOKENS, LR, "constant"),
            (0.95 * TOKENS, 0.1 * LR, "cosine"),
            (0.98 * TOKENS, 0.1 * LR, "constant"),
            (1.0 * TOKENS, 0.033 * LR, "constant"),
        )
    ),
    batch_size=Schedule(((0.2 * TOKENS, 5, "linear"),), start=1),
    seq_len=128,
    mtp_weight=Schedule(((0.5 * TOKENS, 0.3), (TOKENS, 0.1))),
    bias_update_speed=Schedule(((0.95 * TOKENS, 0.01), (TOKENS, 0.0))),
    ema=0.95,
)
MODEL = {  # changes to "mini": the same architecture, small enough for a notebook
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "max_position_embeddings": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 24,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
}
VALIDATION = 8  # batches of 8 rows

# What each run changes: of the model, and of the plan.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fp8": ({}, {"precision": "fp8"}),
    "bf16": ({}, {"precision": "bf16"}),
    "no balancing": ({}, {"precision": "bf16", "bias_update_speed": 0.0}),
    "no MTP": ({"num_nextn_predict_layers": 0}, {"precision": "bf16"}),
    "dense": ({"num_nextn_predict_layers": 0, "n_routed_experts": 0}, {"precision": "bf16"}),
}


@functools.cache
def data() -> tuple[Split, frozenset[str], float]:
    """The validation split, its texts, and its floor in nats per token."""
    valid, texts = stream_validation(load_tokenizer())
    return valid, texts, entropy_floor(valid)


def text_fingerprint() -> str:
    """Of what the first seed trains on and what is held out: a record of other text is no start."""
    valid, texts, floor = data()
    rows = FreshBatches(load_tokenizer(), 8, PLAN.batch.seq_len, held_out=texts).rows(0, 8)[0]
    digest = hashlib.sha256(rows.numpy().tobytes())
    digest.update(_held_out(valid).batch(0)[0].numpy().tobytes())
    digest.update(f"{floor:.9f}".encode())
    return digest.hexdigest()


def model_config(variant: str) -> ModelConfig:
    """The configuration of a variant's model; ``KeyError`` if there is no such variant."""
    return get_config("mini", **{**MODEL, **VARIANTS[variant][0]})


def trainer(variant: str, seed: int = 0, out_dir: Any = None, **changes: Any) -> Trainer:
    """The run of a variant of ``VARIANTS``, before its first step.

    Args:
        variant: what is changed.
        seed: of the weights and of the text.
        out_dir: for checkpoints and the log.
        changes: settings that differ from the variant's plan.
    """
    valid, texts, floor = data()
    cfg = PLAN.replace(seed=seed, **{**VARIANTS[variant][1], **changes})
    source = FreshBatches(load_tokenizer(), 8, cfg.batch.seq_len, seed=seed, held_out=texts)
    torch.manual_seed(seed)
    model = Transformer(model_config(variant))
    return Trainer(model, cfg, source, _held_out(valid), out_dir=out_dir, floor=floor)


def _held_out(valid: Split) -> PackedBatches:
    return PackedBatches(valid, 8, PLAN.batch.seq_len, shuffle=False)


def train_once(variant: str, seed: int) -> dict[str, Any]:
    """Train one variant; returns what it came to, losses in nats per token."""
    run = trainer(variant, seed, eval_batches=VALIDATION)
    clock = time.perf_counter()
    try:
        history = run.fit(progress=False)
    except FloatingPointError as error:
        return {"variant": variant, "seed": seed, "failed": str(error), "step": run.step}
    found: dict[str, Any] = {
        "variant": variant,
        "seed": seed,
        "steps": run.step,
        "tokens": run.position.tokens,
        "valid_loss": round(history.valid_loss[-1], 4),
        "ema_loss": round(history.valid_ema_loss[-1], 4),
        "train_loss": [round(x, 3) for x in history.train_loss],
        "grad_norm": [round(x, 3) for x in history.grad_norm],
        "seconds": round(time.perf_counter() - clock),
    }
    if history.valid_acceptance:
        found["acceptance"] = round(history.valid_acceptance[-1], 4)
    if history.max_violation:
        found["max_violation"] = round(statistics.fmean(history.max_violation[-20:]), 3)
    return found


def run(device: str = "cpu", rounds: int = 7) -> dict[str, Any]:
    """Train what is not recorded yet; prints a table and returns the report.

    ``rounds`` is not used. The runs are of a CPU's emulation; ``device`` other than ``"cpu"`` is
    refused with ``ValueError``.
    """
    if device != "cpu":
        raise ValueError("this topic measures the CPU's emulation: add --device cpu")
    path = record_path("training")
    check_writable(path.parent)
    floor = data()[2]
    settings: dict[str, Any] = {
        "model": MODEL,
        "plan": PLAN.flat(),
        "variants": {name: list(changes) for name, changes in VARIANTS.items()},
        "validation": VALIDATION,
        "text": text_fingerprint(),
    }
    old = recorded("training")
    runs = old["runs"] if old and old.get("settings") == settings else []
    report: dict[str, Any] = {
        "command": "python -m minids3.bench training --device cpu --json",
        "about": environment(device),
        "settings": settings,
        "floor": floor,
        "runs": runs,
    }
    done = {(r["variant"], r["seed"]) for r in runs}
    for seed in SEEDS:
        for variant in VARIANTS:
            if (variant, seed) not in done:
                runs.append(train_once(variant, seed))
                record(report, path)
                print(_row(runs[-1], floor), flush=True)
    for variant in VARIANTS:
        above = sorted(r["valid_loss"] - floor for r in runs if _is(r, variant))
        if above:
            print(f"{variant:14}{above[0]:.3f} to {above[-1]:.3f} nats above the floor")
    return report


def _is(run: dict[str, Any], variant: str) -> bool:
    return run["variant"] == variant and "failed" not in run


def _row(found: dict[str, Any], floor: float) -> str:
    head = f"{found['variant']:14}seed {found['seed']}  "
    if "failed" in found:
        return head + f"failed at step {found['step']}"
    above = found["valid_loss"] - floor
    return f"{head}{above:.3f} nats above the floor  {found['seconds']} s"


# the record of a long run -------------------------------------------------------------------------


def thin(entries: list[dict[str, Any]], points: int = 300) -> dict[str, Any]:
    """A few hundred points of every curve of a log, and every event of its loss.

    Args:
        entries: what ``read_log`` returned.
        points: how many stretches of steps are told apart at most.

    Returns:
        ``steps``: one entry per stretch, in the form of a log's own (the last step's position and
        rate; means of losses and MaxVio; the largest norm and loss), so that
        ``viz.training.dashboard`` draws it; ``evaluations`` as they are; ``events`` of the loss,
        found in all steps; ``total_steps``, ``tokens``, ``floor``; ``seconds``, without pauses.

    Raises:
        ValueError: the log holds no step.
    """
    steps = [e for e in entries if e["kind"] == "step" and e["loss"] is not None]
    if not steps:
        raise ValueError("the log holds no step yet: wait for the run's first")
    evaluations = [
        {k: v for k, v in e.items() if k != "run"} for e in entries if e["kind"] == "evaluation"
    ]
    size = math.ceil(len(steps) / points)
    stretches = [steps[i : i + size] for i in range(0, len(steps), size)]
    floors = [e["floor"] for e in evaluations if e.get("floor") is not None]
    return {
        "total_steps": steps[-1]["step"],
        "tokens": steps[-1]["tokens"],
        "floor": floors[-1] if floors else None,
        "seconds": round(_seconds(steps)),
        "events": [
            {"step": steps[start]["step"], "length": length, "kind": kind}
            for start, length, kind in loss_events([e["loss"] for e in steps])
        ],
        "steps": [_merged(stretch) for stretch in stretches],
        "evaluations": evaluations,
    }


def joined(logs: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The logs of a run's stages as that of one run: steps and tokens are counted on.

    What a later stage measured before its first step is left out: it is the model that the stage
    before it ended with.

    Raises:
        ValueError: there is no log, or one holds no step.
    """
    entries: list[dict[str, Any]] = []
    step = tokens = 0
    for log in logs:
        for entry in log:
            if not step or entry["step"] > 0:
                place = {"step": entry["step"] + step, "tokens": entry["tokens"] + tokens}
                entries.append(entry | place)
        last = next((e for e in reversed(entries) if e["kind"] == "step"), None)
        if last is None or last["step"] == step:
            raise ValueError("the log holds no step yet: wait for the run's first")
        step, tokens = last["step"], last["tokens"]
    if not entries:
        raise ValueError("no log was given")
    return entries


def _seconds(steps: list[dict[str, Any]]) -> float:
    """How long the steps took: a gap ten times the usual one is a pause between two sittings."""
    times = [e["time"] for e in steps if "time" in e]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    usual = statistics.median(gaps) if gaps else 0.0
    return sum(usual if gap < 0 or gap > 10 * max(usual, 1e-3) else gap for gap in gaps)


def _merged(stretch: list[dict[str, Any]]) -> dict[str, Any]:
    last = stretch[-1]
    merged: dict[str, Any] = {"kind": "step", "step": last["step"], "tokens": last["tokens"]}
    merged["loss"] = round(statistics.fmean(e["loss"] for e in stretch), 4)
    merged["largest_loss"] = round(max(e["loss"] for e in stretch), 4)
    merged["lr"] = float(f"{last['lr']:.4g}")
    merged["grad_norm"] = round(max(e["grad_norm"] for e in stretch), 3)
    merged["tokens_per_second"] = last["tokens_per_second"]
    merged["memory_mib"] = max(e["memory_mib"] for e in stretch)
    mtp = [e["mtp_loss"] for e in stretch if "mtp_loss" in e]
    if mtp:
        merged["mtp_loss"] = round(statistics.fmean(mtp), 4)
    loads = [e["max_violation"] for e in stretch if "max_violation" in e]
    if loads:
        layers = zip(*loads, strict=True)
        merged["max_violation"] = [round(statistics.fmean(layer), 3) for layer in layers]
    return merged


MODULE = "python -m minids3.bench.training"


def main(argv: list[str] | None = None) -> int:
    """Make the record of a long run; returns the exit status."""
    parser = Parser(prog=MODULE, description=__doc__)
    parser.add_argument(
        "log", type=Path, nargs="+", help="log.jsonl of the run, or of each of its stages"
    )
    parser.add_argument(
        "--json", type=Path, help="default: data/bench/mini_chat.json; its name is the recipe's"
    )
    args = parser.parse_args(argv)
    return run_command(_recorder(args))


def _recorder(args: argparse.Namespace) -> Callable[[], int]:
    def make() -> int:
        path = args.json or record_path("mini_chat")
        logs = [read_log(path) for path in args.log]
        entries = joined(logs)
        report = {
            "command": f"python -m minids3.train {path.stem}, then {MODULE}",
            "about": environment("cpu"),
            "stages": [max(e["step"] for e in log) for log in logs],
            **thin(entries),
        }
        record(report, path)
        print(f"{report['total_steps']} steps, {len(report['events'])} events: {path}")
        return 0

    return make


if __name__ == "__main__":
    sys.exit(main())
