"""The named runs: what is trained, on what, for how long. ``python -m minids3.train NAME``."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from minids3.config import get_config
from minids3.data import PackedBatches, entropy_floor, load_split, load_tokenizer
from minids3.data.fresh import FreshBatches, stream_validation
from minids3.model import Transformer, save_model
from minids3.train.checkpoint import CheckpointError, latest_checkpoint
from minids3.train.schedule import Schedule
from minids3.train.settings import TrainConfig
from minids3.train.trainer import Batches, Trainer

__all__ = ["RECIPES", "Recipe", "build_trainer", "train_recipe"]


@dataclass(frozen=True)
class Recipe:
    """A preset, how to train it, and what it is for."""

    preset: str
    train: TrainConfig
    purpose: str
    changes: Mapping[str, Any] = field(default_factory=dict)  # of the preset
    fresh: bool = True  # endless fresh documents, or the shipped shards


MTOK = 1_000_000


def _long_run(
    tokens: int, lr: float, batch_size: int, seq_len: int, **settings: Any
) -> TrainConfig:
    """V3's schedule in small: warm-up, a plateau of two thirds, a cosine to a tenth, two ends."""
    rates = Schedule(
        (
            (0.01 * tokens, lr, "linear"),
            (0.66 * tokens, lr, "constant"),
            (0.96 * tokens, 0.1 * lr, "cosine"),
            (0.99 * tokens, 0.1 * lr, "constant"),
            (1.0 * tokens, 0.033 * lr, "constant"),
        )
    )
    return TrainConfig(
        tokens=tokens,
        lr=rates,
        batch_size=batch_size,
        seq_len=seq_len,
        bias_update_speed=Schedule(((0.96 * tokens, 0.001), (tokens, 0.0))),
        mtp_weight=Schedule(((0.66 * tokens, 0.3), (tokens, 0.1))),
        eval_batches=16,
        **settings,
    )


RECIPES: dict[str, Recipe] = {
    "mini_chat": Recipe(
        preset="mini_chat",
        train=_long_run(
            24 * MTOK, 3e-3, batch_size=8, seq_len=256, ema=0.999, eval_every=500, save_every=500
        ),
        purpose="the small DeepSeek-V3 that ships with the workbook",
    ),
    "mini": Recipe(
        preset="mini",
        train=_long_run(
            8 * MTOK, 3e-3, batch_size=16, seq_len=128, ema=0.998, eval_every=250, save_every=250
        ),
        purpose="the preset of the notebooks, trained by one command",
    ),
    "dense_chat": Recipe(
        preset="mini_dense",
        train=TrainConfig(
            steps=800,
            lr=3e-3,
            batch_size=16,
            seq_len=128,
            warmup_steps=50,
            decay_start=400,
            min_lr=1e-4,
            eval_every=200,
            eval_batches=16,
            save_every=200,
        ),
        purpose="the model that notebook 00 talks to",
        fresh=False,
    ),
}


def _data(recipe: Recipe, cfg: TrainConfig) -> tuple[Batches, PackedBatches, float]:
    """Training rows, validation rows, and the validation's floor in nats per token."""
    size = cfg.batch_rows(0)
    if not recipe.fresh:
        train, valid = load_split("train"), load_split("validation")
        source: Batches = PackedBatches(train, size, cfg.batch.seq_len, seed=cfg.seed)
    else:
        tokenizer, shipped = load_tokenizer(), load_split("validation")
        valid, texts = stream_validation(tokenizer)
        texts |= {
            tokenizer.decode(shipped.document(i).tolist()) for i in range(shipped.n_documents)
        }
        source = FreshBatches(tokenizer, size, cfg.batch.seq_len, seed=cfg.seed, held_out=texts)
    shuffle = not recipe.fresh
    held_out = PackedBatches(valid, size, cfg.batch.seq_len, seed=cfg.seed, shuffle=shuffle)
    return source, held_out, entropy_floor(valid)


def build_trainer(
    name: str,
    work_dir: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    **changes: Any,
) -> Trainer:
    """The trainer of a recipe, ready to ``fit``.

    Args:
        name: a key of ``RECIPES``.
        work_dir: where checkpoints and the log go.
        device: where to train.
        changes: settings that differ from the recipe's.

    Raises:
        KeyError: there is no such recipe.
    """
    recipe = RECIPES[name]
    cfg = recipe.train.replace(**changes)
    source, valid, floor = _data(recipe, cfg)
    torch.manual_seed(cfg.seed)
    model = Transformer(get_config(recipe.preset, **recipe.changes)).to(device)
    return Trainer(model, cfg, source, valid, out_dir=work_dir, floor=floor)


def train_recipe(
    name: str,
    out: str | os.PathLike[str],
    work_dir: str | os.PathLike[str],
    resume: bool = True,
    device: str = "cpu",
    **changes: Any,
) -> Path:
    """Train a named recipe and write the model with notes on how it came about.

    Args:
        name: a key of ``RECIPES``.
        out: the model's folder; written when the run is complete.
        work_dir: where checkpoints go; a run found there is resumed.
        resume: go on from the newest checkpoint in ``work_dir`` if there is one.
        device: where to train.
        changes: settings that differ from the recipe's.

    Returns:
        The model's folder.

    Raises:
        KeyError: there is no such recipe.
        CheckpointError: a folder cannot be written, or the run found there is another one.
        KeyboardInterrupt: the run was interrupted; its checkpoint is in ``work_dir``.
    """
    trainer = build_trainer(name, work_dir, device, **changes)
    _require_writable(Path(out))
    checkpoint = latest_checkpoint(work_dir) if resume else None
    if checkpoint is not None:
        trainer.resume(checkpoint)
    elif not resume:
        _set_aside(Path(work_dir))
    start, begun = time.perf_counter(), trainer.position.tokens
    history = trainer.fit()
    if trainer.step < trainer.cfg.total_steps():
        raise KeyboardInterrupt
    about = {
        "command": f"python -m minids3.train {name}",
        "purpose": RECIPES[name].purpose,
        "preset": RECIPES[name].preset,
        "steps": trainer.step,
        "tokens": history.tokens[-1],
        "parameters": trainer.model.num_parameters(),
        "validation_loss_nats": round(history.valid_loss[-1], 4),
        "entropy_floor_nats": round(trainer.floor or 0.0, 4),
        "last_sitting": {
            "seconds": round(time.perf_counter() - start),
            "tokens": trainer.position.tokens - begun,
        },
        "torch": torch.__version__,
    }
    return save_model(trainer.model, out, about)


def _set_aside(work_dir: Path) -> None:
    """Rename the folder of an earlier run, so that a new one can begin and neither is lost."""
    if latest_checkpoint(work_dir) is None:
        return
    number = 1
    while (aside := work_dir.with_name(f"{work_dir.name}-{number}")).exists():
        number += 1
    os.rename(work_dir, aside)
    print(f"the earlier run is now in {aside}")


def _require_writable(out: Path) -> None:
    """Find out before training, and not after, that the model cannot be written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        probe = out.parent / f".{out.name}-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise CheckpointError(
            f"cannot write the model to {out} ({error}): choose another folder"
        ) from error
