"""The named runs: what is trained, on what, for how long. ``python -m minids3.train NAME``."""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minids3.config import get_config
from minids3.data import PackedBatches, entropy_floor, load_split, load_tokenizer
from minids3.data.fresh import FreshBatches, stream_validation
from minids3.model import Transformer, load_model, save_model
from minids3.train.checkpoint import CheckpointError, latest_checkpoint
from minids3.train.evaluation import Batches
from minids3.train.schedule import Schedule
from minids3.train.settings import TrainConfig
from minids3.train.trainer import Trainer

__all__ = [
    "RECIPES",
    "Recipe",
    "build_trainer",
    "describe_run",
    "first_stage",
    "recipe_settings",
    "require_writable",
    "set_aside",
    "train_recipe",
]

FIRST_STAGE = "first_stage"  # a folder in that of a run of two stages


@dataclass(frozen=True)
class Recipe:
    """A preset, how to train it, and what it is for.

    ``train`` gives the settings of a run of so many tokens; without a number, of the usual length.
    With ``start``, the name of another recipe, a run is the second of two stages: it goes on from
    the weights of that one, with a fresh optimizer and a schedule of its own.
    """

    preset: str
    train: Callable[[int | None], TrainConfig]
    purpose: str
    fresh: bool = True  # endless fresh documents, or the shipped shards
    start: str | None = None


def _like_v3(
    usual_tokens: int, lr: float, warmup: int, **settings: Any
) -> Callable[[int | None], TrainConfig]:
    """V3's schedules in small (TR section 4.2), for a run of any length.

    Warm-up of so many tokens (a tenth of a short run), a plateau up to two thirds, a cosine to a
    tenth, then a tenth and a thirtieth. Where the cosine begins, the weight of the MTP loss falls
    to a third; where it ends, biases rest.
    """

    def settings_for(tokens: int | None) -> TrainConfig:
        total = usual_tokens if tokens is None else tokens
        begin, end = 0.67 * total, 0.96 * total
        rates = Schedule(
            (
                (min(warmup, 0.1 * total), lr, "linear"),
                (begin, lr, "constant"),
                (end, 0.1 * lr, "cosine"),
                (0.99 * total, 0.1 * lr, "constant"),
                (total, 0.033 * lr, "constant"),
            )
        )
        return TrainConfig(
            tokens=total,
            lr=rates,
            bias_update_speed=Schedule(((end, 0.001), (total, 0.0))),
            mtp_weight=Schedule(((begin, 0.3), (total, 0.1))),
            eval_batches=16,
            **settings,
        )

    return settings_for


def _dense(tokens: int | None) -> TrainConfig:
    """A short run on the shipped shards, its schedule in steps."""
    steps = 800 if tokens is None else math.ceil(tokens / (16 * 128))
    return TrainConfig(
        steps=steps,
        lr=3e-3,
        batch_size=16,
        seq_len=128,
        warmup_steps=steps // 16,
        decay_start=steps // 2,
        min_lr=1e-4,
        eval_every=200,
        eval_batches=16,
        save_every=200,
    )


# A long stage at a high rate and, on other text, a shorter one at a lower rate.
_base = _like_v3(
    18_000_000, 3e-3, 240_000, batch_size=8, seq_len=256, ema=0.999, eval_every=500, save_every=500
)
_chat = _like_v3(
    6_000_000, 1e-3, 60_000, batch_size=8, seq_len=256, ema=0.999, eval_every=500, save_every=500,
    seed=1,
)  # fmt: skip

RECIPES: dict[str, Recipe] = {
    "mini_chat": Recipe(
        "mini_chat",
        _chat,
        "the small DeepSeek-V3 that ships with the workbook; its two stages take five hours of one "
        "CPU core",
        start="mini_chat_base",
    ),
    "mini_chat_base": Recipe("mini_chat", _base, "the first stage of mini_chat"),
    "mini": Recipe(
        "mini",
        _like_v3(
            8_000_000,
            3e-3,
            80_000,
            batch_size=16,
            seq_len=128,
            ema=0.998,
            eval_every=250,
            save_every=250,
        ),
        "the preset of the notebooks; about three hours of one CPU core",
    ),
    "dense_chat": Recipe(
        "dense_chat",
        _chat,
        "the dense baseline of mini_chat: the same text and schedules, as many FLOPs a token",
        start="dense_chat_base",
    ),
    "dense_chat_base": Recipe("dense_chat", _base, "the first stage of dense_chat"),
    "mini_dense": Recipe(
        "mini_dense",
        _dense,
        "a dense model in the middle of its training, which notebooks 08 and 10 round; minutes",
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


def recipe_settings(
    name: str, steps: int | None = None, tokens: int | None = None, **changes: Any
) -> TrainConfig:
    """The settings of a recipe with changes; errors and arguments as of ``build_trainer``."""
    recipe = RECIPES[name]
    if steps is not None:
        one = recipe.train(None).replace(**changes).replace(steps=steps)  # refuses what is no run
        tokens = steps * one.batch_rows(0) * one.seq_len
    return recipe.train(tokens).replace(**changes)


def _tokens(cfg: TrainConfig) -> int:
    """How many tokens a run sees by its settings, the padding of its last batch included."""
    *_, last = cfg.positions()
    return last.tokens


def first_stage(
    name: str, work_dir: Path, train: Callable[..., Path], options: dict[str, Any], **changes: Any
) -> Path | None:
    """Train what a recipe starts from, or go on with that; nothing to do if its run has begun.

    A run that is shorter than usual has a first stage that is shorter in proportion.

    Args:
        name: a key of ``RECIPES``.
        work_dir: of the recipe's own run; the first stage's is in it.
        train: ``train_recipe``, or what takes the same arguments.
        options: for ``train``.
        changes: settings of the recipe's own run.

    Returns:
        The folder of its model; None for a recipe without a first stage, or later in its run.

    Raises:
        As ``train``.
    """
    start = RECIPES[name].start
    if start is None or latest_checkpoint(work_dir) is not None:
        return None
    own = recipe_settings(name, **changes)
    if changes.pop("steps", None) is not None or changes.pop("tokens", None) is not None:
        share = _tokens(own) / _tokens(RECIPES[name].train(None))
        changes["tokens"] = max(1, round(share * _tokens(RECIPES[start].train(None))))
    if "seed" in changes:
        changes["seed"] ^= 1  # other text than the second stage's
    folder = work_dir / FIRST_STAGE
    return train(start, folder, folder, **options, **changes)


def build_trainer(
    name: str,
    work_dir: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    kind: Callable[..., Trainer] = Trainer,
    weights: Path | None = None,
    **changes: Any,
) -> Trainer:
    """The trainer of a recipe, ready to ``fit``.

    Args:
        name: a key of ``RECIPES``.
        work_dir: where checkpoints and the log go.
        device: where to train.
        kind: what makes the trainer.
        weights: folder of a model to go on from; without it, from random numbers.
        changes: settings that differ from the recipe's. ``tokens`` or ``steps`` change its length,
            and its schedules with it.

    Raises:
        KeyError: there is no such recipe.
        TypeError, ValueError: there is no such setting, or a value that no run can have.
    """
    recipe, cfg = RECIPES[name], recipe_settings(name, **changes)
    source, valid, floor = _data(recipe, cfg)
    torch.manual_seed(cfg.seed)
    model = Transformer(get_config(recipe.preset)).to(device)
    if weights is not None:
        model.load_state_dict(load_model(weights, device).state_dict())
    return kind(model, cfg, source, valid, out_dir=work_dir, floor=floor)


def train_recipe(
    name: str,
    out: str | os.PathLike[str],
    work_dir: str | os.PathLike[str],
    resume: bool = True,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> Path:
    """Train a named recipe and write the model with notes on how it came about.

    Args:
        name: a key of ``RECIPES``.
        out: the model's folder; written when the run is complete.
        work_dir: where checkpoints go; a run found there is resumed.
        resume: go on from the newest checkpoint in ``work_dir`` if there is one; without it the
            folder of an earlier run is renamed.
        device: where to train.
        dtype: of the weights that are written.
        changes: as ``build_trainer``.

    Returns:
        The model's folder.

    Raises:
        KeyError: there is no such recipe.
        CheckpointError: a folder cannot be written, or the run found there is another one.
        KeyboardInterrupt: the run was interrupted; its checkpoint is in ``work_dir``.
    """
    out, work_dir = Path(out), Path(work_dir)
    require_writable(out)
    recipe_settings(name, **changes)  # refuses what no run can have, before one is set aside
    if not resume:
        set_aside(work_dir)
    options = {"resume": resume, "device": device}
    weights = first_stage(name, work_dir, train_recipe, options, **changes)
    trainer = build_trainer(name, work_dir, device, weights=weights, **changes)
    checkpoint = latest_checkpoint(work_dir)
    if checkpoint is not None:
        trainer.resume(checkpoint)
    start, begun = time.perf_counter(), trainer.position.tokens
    trainer.fit()
    if trainer.step < trainer.cfg.total_steps():
        raise KeyboardInterrupt
    about = describe_run(name, trainer, time.perf_counter() - start, begun)
    return save_model(trainer.model.to("cpu", dtype), out, about)


def describe_run(name: str, trainer: Trainer, seconds: float, begun: int) -> dict[str, Any]:
    """Notes on a run that is complete: its last sitting took ``seconds``, from ``begun`` tokens."""
    history = trainer.history
    about = {
        "command": f"python -m minids3.train {name}",
        "purpose": RECIPES[name].purpose,
        "preset": RECIPES[name].preset,
        "settings": trainer.cfg.flat(),
        "steps": trainer.step,
        "tokens": history.tokens[-1],
        "parameters": trainer.n_parameters,
        "validation_loss_nats": round(history.valid_loss[-1], 4),
        "entropy_floor_nats": round(trainer.floor or 0.0, 4),
        "last_sitting": {
            "seconds": round(seconds),
            "tokens": trainer.position.tokens - begun,
        },
        "torch": torch.__version__,
    }
    if RECIPES[name].start is not None and trainer.out_dir is not None:
        earlier = trainer.out_dir / FIRST_STAGE / "about.json"
        if earlier.exists():  # somebody may have moved it away
            about["first_stage"] = json.loads(earlier.read_text("utf-8"))
    return about


def set_aside(work_dir: Path) -> None:
    """Rename the folder of an earlier run, so that a new one can begin and neither is lost."""
    if latest_checkpoint(work_dir) is None:
        return
    number = 1
    while (aside := work_dir.with_name(f"{work_dir.name}-{number}")).exists():
        number += 1
    os.rename(work_dir, aside)
    print(f"the earlier run is now in {aside}")


def require_writable(out: Path) -> None:
    """Find out before training, and not after, that the model cannot be written."""
    nearest = next(p for p in (out, *out.absolute().parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise CheckpointError(f"cannot write the model to {out} ({error})") from error
