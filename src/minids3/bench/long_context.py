"""Notebook 13's two stages over several seeds, and its controls: what is found in long texts.

Every variant has the same steps on the same rows; only the rotary tables and the softmax scale
differ. A run takes some minutes of one CPU core; outcomes are kept in a file in the folder for
temporary files until all are there, so that an interrupted benchmark goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minids3.bench.timing import environment
from minids3.data import PackedBatches, entropy_floor, load_tokenizer
from minids3.data.files import write_atomic
from minids3.data.fresh import stream_validation
from minids3.evals import Found, LongRows, recall_by_length
from minids3.model import Transformer, load_shipped
from minids3.nn.mla import LatentAttention
from minids3.ref.rope import rope_frequencies, rope_tables, yarn_frequencies, yarn_mscale
from minids3.train import TrainConfig, Trainer, evaluate

__all__ = ["BASE", "LENGTHS", "STAGES", "VARIANTS", "run", "stretched"]

BASE = "mini_chat"
SHORT, LONG, FACTOR = 256, 2048, 10.0
STAGES = ((12, 4, 1024), (12, 2, 2048))  # steps, rows, positions
LENGTHS = (128, 250, 500, 1000, 1500, 2000)
LR, TEXTS = 5e-4, 6
# Variant -> seeds. The first is the method, the others are its controls.
VARIANTS: dict[str, int] = {
    "YaRN": 3,
    "no change": 3,
    "all / s": 3,
    "YaRN, softmax factor dropped": 1,
    "YaRN, softmax factor on the tables": 1,
    "YaRN, betas 32 and 1": 1,
}


def stretched(base: Transformer, variant: str) -> Transformer:
    """A copy of ``base`` for ``LONG`` positions, its tables and scale those of ``variant``.

    Raises ``KeyError`` for an unknown variant.
    """
    if variant not in VARIANTS:
        raise KeyError(f"no variant {variant!r}; there are {', '.join(VARIANTS)}")
    cfg = base.config
    fast = 32.0 if "32" in variant else 4.0
    squared = yarn_mscale(FACTOR) ** 2
    plain = rope_frequencies(cfg.rope_dim, cfg.rope_theta)
    frequencies: dict[str, Tensor] = {"no change": plain, "all / s": plain / FACTOR}
    slow = yarn_frequencies(cfg.rope_dim, cfg.rope_theta, FACTOR, SHORT, fast, 1.0)
    tables = squared if "on the tables" in variant else 1.0
    scale = cfg.qk_head_dim**-0.5
    if variant in ("YaRN", "YaRN, betas 32 and 1"):
        scale *= squared
    model = Transformer(cfg.replace(max_position_embeddings=LONG))
    model.load_state_dict(base.state_dict())
    cos, sin = rope_tables(LONG, cfg.rope_dim, frequencies=frequencies.get(variant, slow))
    model.rope_cos, model.rope_sin = cos * tables, sin * tables
    for module in model.modules():
        if isinstance(module, LatentAttention):
            module.scale = scale
    return model.eval()


def _train(model: Transformer, stage: tuple[int, int, int], seed: int, held_out: Any) -> None:
    steps, rows, length = stage
    torch.manual_seed(seed)
    plan = TrainConfig(
        steps=steps,
        batch_size=rows,
        seq_len=length,
        lr=LR,
        warmup_steps=2,
        decay_start=steps,
        seed=seed,
        mtp_weight=0.1,
        bias_update_speed=0.0,
    )
    data = LongRows(load_tokenizer(), rows, length, seed=seed, held_out=held_out)
    Trainer(model, plan, data).fit(progress=False)
    model.eval()


def _shares(found: Sequence[Found]) -> dict[str, dict[str, float]]:
    """By length of the text: share found, share of absent keys 'found', needles."""
    rows: dict[int, list[Found]] = {}
    for one in found:
        rows.setdefault(min(LENGTHS, key=lambda n: abs(n - one.length)), []).append(one)
    return {
        str(n): {
            "found": sum(f.right for f in some) / len(some),
            "lucky": sum(f.lucky for f in some) / len(some),
            "needles": len(some),
        }
        for n, some in sorted(rows.items())
    }


def _outcome(base: Transformer, variant: str, seed: int) -> dict[str, Any]:
    """Everything that one run tells: after no step, after stage 1, after stage 2."""
    tokenizer = load_tokenizer()
    valid, held_out = stream_validation(tokenizer, n=200)
    short = PackedBatches(valid, 4, SHORT, shuffle=False)
    model, started, rows = stretched(base, variant), time.perf_counter(), []
    for stage in (None, *STAGES):
        if stage is not None:
            _train(model, stage, seed, held_out)
        found = recall_by_length(model, tokenizer, LENGTHS, TEXTS, seed=1000 + seed)
        rows.append(
            {
                "positions": SHORT if stage is None else stage[2],
                "by_length": _shares(found),
                "short_loss": evaluate(model, short, 8),
            }
        )
    return {
        "variant": variant,
        "seed": seed,
        "stages": rows,
        "seconds": round(time.perf_counter() - started),
    }


def _kept_file(base: Transformer) -> Path:
    """Where outcomes wait; another model or other settings have another file."""
    digest = hashlib.sha256(repr((STAGES, LENGTHS, LR, TEXTS, FACTOR, VARIANTS)).encode())
    for name, tensor in sorted(base.state_dict().items()):
        digest.update(name.encode() + tensor.double().sum().numpy().tobytes())
    return Path(tempfile.gettempdir()) / f"minids3-long-context-{digest.hexdigest()[:12]}.json"


def run(device: str = "cpu", rounds: int = 7) -> dict[str, Any]:
    """Run every variant and seed that is not there yet, print a table, return plain JSON types.

    ``rounds`` is not used: seeds stand in ``VARIANTS``.
    """
    base = load_shipped(BASE).eval()
    kept = _kept_file(base)
    outcomes = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else []
    done = {(o["variant"], o["seed"]) for o in outcomes}
    valid, _ = stream_validation(load_tokenizer(), n=200)
    print(f"{'':38} found (%) in texts of {', '.join(f'{n:,}' for n in LENGTHS)}; short loss")
    for variant, seeds in VARIANTS.items():
        for seed in range(seeds):
            if (variant, seed) not in done:
                outcomes.append(_outcome(base, variant, seed))
                write_atomic(kept, (json.dumps(outcomes) + "\n").encode())
            one = next(o for o in outcomes if (o["variant"], o["seed"]) == (variant, seed))
            for stage in one["stages"]:
                cells = " ".join(f"{100 * v['found']:4.0f}" for v in stage["by_length"].values())
                name = f"{variant}, seed {seed}, {stage['positions']:,}"
                print(f"{name:46} {cells}   {stage['short_loss']:.3f}", flush=True)
    return {
        "about": {**environment("cpu"), "base": BASE, "lr": LR, "texts": TEXTS},
        "stages": STAGES,
        "factor": FACTOR,
        "mscale": yarn_mscale(FACTOR),
        "softmax_factor": math.pow(yarn_mscale(FACTOR), 2),
        "floor": entropy_floor(valid),
        "outcomes": outcomes,
    }
