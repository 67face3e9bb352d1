"""The named runs whose results ship with the workbook: what was trained, on what, for how long."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from minids3.config import get_config
from minids3.data import PackedBatches, entropy_floor, load_split
from minids3.model import Transformer, save_model
from minids3.train.checkpoint import latest_checkpoint
from minids3.train.trainer import TrainConfig, Trainer

__all__ = ["RECIPES", "Recipe", "train_recipe"]


@dataclass(frozen=True)
class Recipe:
    """A preset, how to train it, and what it is for."""

    preset: str
    train: TrainConfig
    purpose: str


RECIPES: dict[str, Recipe] = {
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
    ),
}


def train_recipe(
    name: str, out: str | os.PathLike[str], work_dir: str | os.PathLike[str], resume: bool = True
) -> Path:
    """Train a named recipe and write the model with notes on how it came about.

    Args:
        name: a key of ``RECIPES``.
        out: the model's folder; replaced when the run is complete.
        work_dir: where checkpoints go; a run found there is resumed.
        resume: go on from the newest checkpoint in ``work_dir`` if there is one.

    Returns:
        The model's folder.

    Raises:
        KeyError: there is no such recipe.
        KeyboardInterrupt: the run was interrupted; its checkpoint is in ``work_dir``.
    """
    recipe = RECIPES[name]
    cfg = recipe.train
    train, valid = load_split("train"), load_split("validation")
    torch.manual_seed(cfg.seed)
    model = Transformer(get_config(recipe.preset))
    trainer = Trainer(
        model,
        cfg,
        PackedBatches(train, cfg.batch_size, cfg.seq_len, seed=cfg.seed),
        PackedBatches(valid, cfg.batch_size, cfg.seq_len, seed=cfg.seed),
        out_dir=work_dir,
    )
    checkpoint = latest_checkpoint(work_dir) if resume else None
    if checkpoint is not None:
        trainer.resume(checkpoint)
    start = time.perf_counter()
    history = trainer.fit()
    if trainer.step < cfg.steps:
        raise KeyboardInterrupt
    about = {
        "command": f"python -m minids3.train {name}",
        "purpose": recipe.purpose,
        "preset": recipe.preset,
        "steps": trainer.step,
        "tokens": history.tokens[-1],
        "parameters": model.num_parameters(),
        "validation_loss_nats": round(history.valid_loss[-1], 4),
        "entropy_floor_nats": round(entropy_floor(valid), 4),
        "seconds_of_last_stretch": round(time.perf_counter() - start),
        "torch": torch.__version__,
    }
    return save_model(model, out, about)
