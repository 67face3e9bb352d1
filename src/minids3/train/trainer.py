"""The training loop: short enough to read, safe to interrupt, exact to resume.

Batches are a pure function of the step, the learning rate too, so a run is its model, its optimizer
and a step number. That is what a checkpoint holds and why a resumed run is the uninterrupted one,
bit for bit.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from tqdm.auto import tqdm

from minids3.model.transformer import Transformer
from minids3.nn import Routing, record_routing
from minids3.ref.loss import IGNORE_INDEX
from minids3.train.balance import (
    batch_balance_loss,
    max_violation,
    routing_loads,
    sequence_balance_loss,
    update_expert_biases,
)
from minids3.train.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from minids3.train.history import History
from minids3.train.optim import build_optimizer
from minids3.train.schedule import lr_at

__all__ = ["Batches", "TrainConfig", "Trainer", "evaluate"]


class Batches(Protocol):
    """Anything that has a batch for every step, the same one each time it is asked."""

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of ``step``, each ``[B, T]`` int64."""
        ...


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the defaults of optimizer, balancing and MTP are those of TR section 4.2.

    ``batch_size`` and ``seq_len`` describe the batches and are only recorded here. ``eval_every``
    and ``save_every`` are steps, 0 for never (the last step is evaluated in any case).

    Models with experts move their biases by ``bias_update_speed`` after each step, from step
    ``bias_update_until`` on no more; the two balance weights add the loss per sequence and the
    auxiliary loss over the batch. Models with MTP modules add their mean loss times ``mtp_weight``
    (lambda), from step ``mtp_late_from`` on ``mtp_weight_late``; at 0 the modules are not run.

    ``moments`` is how the optimizer stores its own.
    """

    steps: int
    lr: float = 2e-3
    batch_size: int = 16
    seq_len: int = 128
    warmup_steps: int = 0
    decay_start: int | None = None
    min_lr: float = 0.0
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    grad_clip: float = 1.0
    eval_every: int = 0
    eval_batches: int = 8
    save_every: int = 0
    seed: int = 0
    bias_update_speed: float = 0.001
    bias_update_until: int | None = None
    seq_balance_weight: float = 1e-4
    batch_balance_weight: float = 0.0
    mtp_weight: float = 0.3
    mtp_weight_late: float = 0.1
    mtp_late_from: int | None = None
    moments: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        """Reject settings that no run can have."""
        for name in ("steps", "lr", "grad_clip", "eval_batches", "batch_size", "seq_len"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)!r} must be greater than 0")
        weights = "seq_balance_weight batch_balance_weight mtp_weight mtp_weight_late"
        for name in ("bias_update_speed", *weights.split()):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)!r} must be 0 or more")
        self.lr_at(0)

    def lr_at(self, step: int) -> float:
        """Learning rate of ``step`` (0-based)."""
        return lr_at(
            step,
            steps=self.steps,
            lr=self.lr,
            warmup_steps=self.warmup_steps,
            decay_start=self.decay_start,
            min_lr=self.min_lr,
        )

    def bias_speed_at(self, step: int) -> float:
        """How far the experts' biases move after ``step`` (0-based)."""
        stopped = self.bias_update_until is not None and step >= self.bias_update_until
        return 0.0 if stopped else self.bias_update_speed

    def mtp_weight_at(self, step: int) -> float:
        """Lambda, the weight of the mean MTP loss, at ``step`` (0-based)."""
        late = self.mtp_late_from is not None and step >= self.mtp_late_from
        return self.mtp_weight_late if late else self.mtp_weight

    def replace(self, **changes: Any) -> TrainConfig:
        """Return a copy with some fields changed."""
        return replace(self, **changes)


@torch.inference_mode()
def evaluate(model: Transformer, batches: Batches, n_batches: int) -> float:
    """Mean loss in nats per target over the first ``n_batches`` batches, in evaluation mode."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    for step in range(n_batches):
        inputs, targets = batches.batch(step)
        counted = int((targets != IGNORE_INDEX).sum())
        total += model.loss(inputs.to(device), targets.to(device)).item() * counted
        count += counted
    model.train(was_training)
    return total / count


class Trainer:
    """Trains a model; ``fit`` can be interrupted and called again, or resumed from disk."""

    def __init__(
        self,
        model: Transformer,
        cfg: TrainConfig,
        train_batches: Batches,
        valid_batches: Batches | None = None,
        out_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        """Prepare a run.

        Args:
            model: on the device to train on.
            cfg: how.
            train_batches: a batch for each step.
            valid_batches: evaluated every ``cfg.eval_every`` steps and at the end.
            out_dir: where checkpoints go; none are written without it.
        """
        self.model, self.cfg = model, cfg
        self.train_batches, self.valid_batches = train_batches, valid_batches
        self.out_dir = None if out_dir is None else Path(out_dir)
        self.optimizer = build_optimizer(
            model, cfg.lr, cfg.betas, cfg.weight_decay, moments=cfg.moments
        )
        self.history = History()
        self.step = 0

    def train_step(self) -> tuple[float, float]:
        """Do one step; returns the loss in nats per token and the gradient's norm before clipping.

        The loss returned and recorded is the cross-entropy of the next token alone, so that runs
        with other objectives can be compared.

        Raises ``FloatingPointError`` if the loss is not finite, before the weights are touched.
        """
        device = next(self.model.parameters()).device
        inputs, targets = (t.to(device) for t in self.train_batches.batch(self.step))
        lr = self.cfg.lr_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)  # here, so that a failed step leaves no trace
        with record_routing(self.model) as routings:
            loss, mtp_losses = self._losses(inputs, targets)
        objective = self._objective(loss, mtp_losses, routings)
        if not math.isfinite(objective.item()):
            raise FloatingPointError(
                f"the loss is {objective.item()} at step {self.step}: lower lr={self.cfg.lr} or "
                "raise warmup_steps; the weights are those before this step"
            )
        objective.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.cfg.grad_clip)
        self.optimizer.step()
        loads = routing_loads(routings)
        update_expert_biases(self.model, loads, self.cfg.bias_speed_at(self.step))
        self.step += 1
        history = self.history
        history.steps.append(self.step)
        history.train_loss.append(loss.item())
        history.lr.append(lr)
        history.grad_norm.append(float(norm))
        history.tokens.append((history.tokens[-1] if history.tokens else 0) + inputs.numel())
        if mtp_losses:
            history.mtp_loss.append(torch.stack(mtp_losses).mean().item())
        if loads:
            worst = [float(max_violation(load)) for load in loads.values()]
            history.max_violation.append(sum(worst) / len(worst))
        return loss.item(), float(norm)

    def _losses(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Main loss, and those of the MTP modules if there are any and they count."""
        has_mtp = len(getattr(self.model, "mtp", ())) > 0
        if has_mtp and self.cfg.mtp_weight_at(self.step) > 0:
            return self.model.losses(inputs, targets)
        return self.model.loss(inputs, targets), []

    def _objective(
        self, loss: Tensor, mtp_losses: list[Tensor], routings: dict[str, Routing]
    ) -> Tensor:
        """What is minimised: TR eq. 25 and, per layer with experts, TR eq. 17."""
        cfg = self.cfg
        if mtp_losses:
            loss = loss + cfg.mtp_weight_at(self.step) * torch.stack(mtp_losses).mean()
        for routing in routings.values():
            top_k = routing.indices.shape[-1]
            if cfg.seq_balance_weight > 0:
                sequence = sequence_balance_loss(routing.scores, top_k)
                loss = loss + cfg.seq_balance_weight * sequence
            if cfg.batch_balance_weight > 0:
                batch = batch_balance_loss(routing.scores, routing.indices)
                loss = loss + cfg.batch_balance_weight * batch
        return loss

    def fit(self, until: int | None = None, progress: bool = True) -> History:
        """Train up to step ``until`` (default: all) and return the history.

        Interrupting (Ctrl-C, or the stop button of a notebook) ends it after the current step,
        since half a step cannot be resumed: a checkpoint is written if there is an ``out_dir``, and
        calling ``fit`` again goes on.
        """
        stop = self.cfg.steps if until is None else min(until, self.cfg.steps)
        # Twice a second: a notebook's bar sends three messages each time, and who tests a notebook
        # reads them only when the cell is done, by when more than some thousand would be lost.
        bar = tqdm(
            total=stop,
            initial=self.step,
            disable=not progress,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5,
        )
        self.model.train()
        try:
            self._evaluate_if_due()  # before the first step, or where an interruption cut it off
            while self.step < stop:
                with _interrupt_held_back():
                    loss, _ = self.train_step()
                bar.update()
                if self.step % 10 == 0:
                    bar.set_postfix(self._postfix(loss), refresh=False)
                self._evaluate_if_due()
                self._save_if_due(stop)
        except KeyboardInterrupt:
            if self.out_dir is not None:
                self.save()
            bar.write(f"stopped after step {self.step}; fit() goes on from here")
        finally:
            bar.close()
            self.model.eval()
        return self.history

    def _postfix(self, loss: float) -> dict[str, str]:
        valid = self.history.valid_loss
        shown = {"loss": f"{loss:.3f}"}
        return {**shown, "valid": f"{valid[-1]:.3f}"} if valid else shown

    def _evaluate_if_due(self) -> None:
        every = self.cfg.eval_every
        due = self.step == self.cfg.steps or (every and self.step % every == 0)
        if self.valid_batches is None or not due or self.step in self.history.valid_steps:
            return
        loss = evaluate(self.model, self.valid_batches, self.cfg.eval_batches)
        self.history.valid_steps.append(self.step)
        self.history.valid_loss.append(loss)

    def _save_if_due(self, stop: int) -> None:
        every = self.cfg.save_every
        if self.out_dir is not None and (self.step == stop or (every and self.step % every == 0)):
            self.save()

    def save(self) -> Path:
        """Write a checkpoint of the current step below ``out_dir``."""
        if self.out_dir is None:
            raise ValueError("this Trainer has no out_dir to save to; give it one")
        state = {
            "train_config": asdict(self.cfg),
            "model_config": self.model.config.to_dict(),
            "history": self.history.to_dict(),
        }
        return save_checkpoint(self.out_dir, self.step, self.model, self.optimizer, state)

    def resume(self, folder: str | os.PathLike[str]) -> None:
        """Go on from a checkpoint as if there had been no pause.

        Raises:
            CheckpointError: it is damaged, of another model, or of a run with other settings.
        """
        state = load_checkpoint(folder, self.model, self.optimizer)
        saved, own = state["train_config"], json_types(asdict(self.cfg))
        # What an older checkpoint does not mention had its default.
        saved = {**json_types(asdict(TrainConfig(steps=1))), **saved}
        changed = [name for name in own if saved[name] != own[name]]
        if changed:
            name = changed[0]
            raise CheckpointError(
                f"{folder} was trained with {name}={saved[name]!r}, this run has "
                f"{own[name]!r}: use the same settings, or start a new run from the model's weights"
            )
        self.step = state["step"]
        self.history = History(**state["history"])


@contextlib.contextmanager
def _interrupt_held_back() -> Iterator[None]:
    """Let an interrupt wait until the block is done; a second one comes through at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is ever interrupted
        return
    caught = []

    def remember(signum: int, frame: Any) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(signum)

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.default_int_handler)
    if caught:
        raise KeyboardInterrupt


def json_types(fields: dict[str, Any]) -> dict[str, Any]:
    """What ``fields`` are after a trip through JSON: tuples become lists."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}
