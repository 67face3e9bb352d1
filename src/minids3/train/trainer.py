"""The training loop: short enough to read, safe to interrupt, exact to resume.

The data is a pure function of the row number, every rate a pure function of the tokens seen. So a
run is its model, its optimizer and a position, which is what a checkpoint holds and why a resumed
run is the uninterrupted one, bit for bit.

One step, in order: take the batch's rows and drop those without a target; pass them through in
micro-batches, adding up gradients, losses and loads; look once at loss and gradient norm; only if
both are finite, move the weights, their average and the experts' biases.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from minids3.model.transformer import Transformer
from minids3.nn import Routing, record_routing, to_float8
from minids3.ops.gemm import Float8Recipe
from minids3.ops.recompute import recomputation
from minids3.ref.loss import IGNORE_INDEX
from minids3.train.balance import (
    batch_balance_loss,
    max_violation,
    routing_loads,
    sequence_balance_loss,
    update_expert_biases,
)
from minids3.train.checkpoint import (
    Checkpoint,
    CheckpointError,
    prepare_folder,
    save_checkpoint,
)
from minids3.train.ema import WeightAverage
from minids3.train.evaluation import Batches, evaluate, mtp_acceptance
from minids3.train.history import History
from minids3.train.interrupts import Interrupts
from minids3.train.log import StepLog
from minids3.train.optim import build_optimizer
from minids3.train.schedule import Schedule
from minids3.train.settings import Position, TrainConfig

__all__ = ["Sums", "Trainer"]


class Sums(NamedTuple):
    """What the micro-batches of a step add up to."""

    loss: Tensor
    mtp: list[Tensor]
    objective: Tensor
    loads: dict[str, Tensor]


class Trainer:
    """Trains a model; ``fit`` can be interrupted and called again, or resumed from disk."""

    def __init__(
        self,
        model: Transformer,
        cfg: TrainConfig,
        train_batches: Batches,
        valid_batches: Batches | None = None,
        out_dir: str | os.PathLike[str] | None = None,
        floor: float | None = None,
    ) -> None:
        """Prepare a run.

        Args:
            model: on the device to train on.
            cfg: how.
            train_batches: a batch for each step.
            valid_batches: evaluated every ``eval_every`` steps and at the end.
            out_dir: where checkpoints and the log go; none are written without it.
            floor: the loss that no model beats, in nats, for the progress bar to compare with.

        Raises:
            ValueError: the batch grows, and the source has no ``rows``.
        """
        self.model, self.cfg, self.floor = model, cfg, floor
        self.train_batches, self.valid_batches = train_batches, valid_batches
        self.out_dir = None if out_dir is None else Path(out_dir)
        self.run = uuid.uuid4().hex[:8]
        self.device = next(model.parameters()).device
        self.n_parameters = sum(p.numel() for p in model.parameters())
        growing = isinstance(cfg.batch.batch_size, Schedule)
        if growing and not hasattr(train_batches, "rows"):
            raise ValueError("a batch that grows needs a source with rows(first, count)")
        if cfg.compute.precision == "fp8":
            to_float8(model)
        elif cfg.compute.precision == "bf16" and self.device.type == "cpu":
            to_float8(model, Float8Recipe(operands="bf16"))
        self._arrange()
        own = cfg.optimizer
        self.optimizer = build_optimizer(
            model, cfg.lr_at(0), own.betas, own.weight_decay, moments=own.moments
        )
        self.average = WeightAverage(model, own.ema) if own.ema else None
        self.history = History()
        self.position = Position()
        self._data: str | None = None
        self._clock = (time.perf_counter(), 0)

    @property
    def step(self) -> int:
        """Steps done."""
        return self.position.step

    def train_step(self) -> tuple[float, float]:
        """Do one step; returns the loss in nats per token and the gradient's norm before clipping.

        The loss returned and recorded is the cross-entropy of the next token alone, so that runs
        with other objectives can be compared. A batch without any target changes nothing: its loss
        is NaN, its norm 0.

        Raises ``FloatingPointError`` if the loss or the norm is not finite, before anything is
        touched: weights, moments, biases and averages are those before this step.
        """
        at, cfg = self.position, self.cfg
        inputs, targets = self._batch(at)
        after = Position(at.step + 1, at.tokens + inputs.numel(), at.rows + len(inputs))
        lr = cfg.lr_at(at.step, after.tokens)
        self.optimizer.zero_grad(set_to_none=True)  # here, so that a failed step leaves no trace
        counted = (targets != IGNORE_INDEX).any(1)
        if not counted.any():
            return self._finish(after, lr, math.nan, 0.0, [], {})
        sums = self._backward(inputs[counted], targets[counted], after.tokens)
        norm = self._gradient_norm()
        violations = {name: max_violation(load) for name, load in sums.loads.items()}
        # The one look at the device in a step.
        wanted = [sums.objective, norm, sums.loss, *sums.mtp, *violations.values()]
        told: list[float] = torch.stack([t.detach().double() for t in wanted]).tolist()
        objective, size, loss, *rest = told
        for what, value in (("loss", objective), ("norm of the gradient", size)):
            if not math.isfinite(value):
                self.optimizer.zero_grad(set_to_none=True)
                raise FloatingPointError(
                    f"the {what} is {value} at step {at.step}: lower lr={lr:g} or raise "
                    "warmup_steps; the weights are those before this step"
                )
        self._clip_gradients(norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self._update_biases(sums.loads, cfg.bias_speed_at(at.step, after.tokens))
        if self.average is not None:
            self.average.update(self.model)
        mtp, worst = rest[: len(sums.mtp)], rest[len(sums.mtp) :]
        return self._finish(after, lr, loss, size, mtp, dict(zip(violations, worst, strict=True)))

    # What a trainer of many processes does in another way (minids3.parallel.training).

    @property
    def speaks(self) -> bool:
        """Whether this process shows progress and writes the log: one does."""
        return True

    def _arrange(self) -> None:
        """Spread the model over processes, before the optimizer is made."""

    def _gradient_norm(self) -> Tensor:
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        return torch.nn.utils.get_total_norm(grads)

    def _clip_gradients(self, norm: Tensor) -> None:
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        torch.nn.utils.clip_grads_with_norm_(parameters, self.cfg.optimizer.grad_clip, norm)

    def _update_biases(self, loads: dict[str, Tensor], speed: float) -> None:
        update_expert_biases(self.model, loads, speed)

    def _heed(self, interrupts: Interrupts) -> None:
        """Stop if somebody asked to."""
        interrupts.check()

    def _measure(self) -> tuple[float, float | None, float | None]:
        """Validation loss, that of the averaged weights, and MTP acceptance."""
        batches, count = self.valid_batches, self.cfg.upkeep.eval_batches
        assert batches is not None
        loss, ema, acceptance = evaluate(self.model, batches, count), None, None
        if self.average is not None:
            with self.average.applied(self.model):
                ema = evaluate(self.model, batches, count)
        if self._has_mtp(self.position.tokens):
            acceptance = mtp_acceptance(self.model, batches, count)
        return loss, ema, acceptance

    def _batch(self, at: Position) -> tuple[Tensor, Tensor]:
        if isinstance(self.cfg.batch.batch_size, Schedule):
            return self.train_batches.rows(at.rows, self.cfg.batch_rows(at.tokens))  # type: ignore[attr-defined]
        return self.train_batches.batch(at.step)

    def _backward(self, inputs: Tensor, targets: Tensor, tokens: int) -> Sums:
        """Gradients of the whole batch, by as many passes as it takes, each row with a target.

        Sums over the passes are divided by the targets of the whole batch; a mean per pass would
        let a pass with few targets weigh as much as one with many.
        """
        n_rows, size = len(inputs), self.cfg.batch.micro_batch_size or len(inputs)
        if n_rows > size and self.cfg.balance.batch_balance_weight > 0:
            raise ValueError(
                "batch_balance_weight needs the whole batch in one pass: leave micro_batch_size out"
            )
        counted, whole = int((targets != IGNORE_INDEX).sum()), n_rows <= size
        found: list[Sums] = []
        for part, wanted in zip(inputs.split(size), targets.split(size), strict=True):
            share = len(part) / n_rows
            found.append(self._pass(part, wanted, tokens, None if whole else counted, share))
        return self._total(found)

    def _pass(
        self, inputs: Tensor, targets: Tensor, tokens: int, counted: int | None, share: float
    ) -> Sums:
        """Forward and backward of some rows, which are ``share`` of the batch's."""
        inputs, targets = inputs.to(self.device), targets.to(self.device)
        with self._arithmetic(), record_routing(self.model) as routings:
            loss, mtp = self._losses(inputs, targets, tokens, counted)
        objective = self._objective(loss, mtp, routings, tokens, share)
        objective.backward()
        detached, loads = [m.detach() for m in mtp], routing_loads(routings)
        return Sums(loss.detach(), detached, objective.detach(), loads)

    @staticmethod
    def _total(found: list[Sums]) -> Sums:
        if len(found) == 1:
            return found[0]
        return Sums(
            torch.stack([f.loss for f in found]).sum(),
            [torch.stack(losses).sum() for losses in zip(*(f.mtp for f in found), strict=True)],
            torch.stack([f.objective for f in found]).sum(),
            {name: sum(f.loads[name] for f in found) for name in found[0].loads},  # type: ignore[misc]
        )

    @contextlib.contextmanager
    def _arithmetic(self) -> Iterator[None]:
        """BF16 on a GPU where the settings say so, and forgetting what is cheap to do again."""
        compute = self.cfg.compute
        real = compute.precision != "fp32" and self.device.type == "cuda"
        with (
            torch.autocast("cuda", torch.bfloat16, enabled=real),
            recomputation() if compute.recompute else contextlib.nullcontext(),
        ):
            yield

    def _losses(
        self, inputs: Tensor, targets: Tensor, tokens: int, counted: int | None
    ) -> tuple[Tensor, list[Tensor]]:
        """The main loss, and the MTP modules' if they count.

        Of an undivided batch (``counted`` None) the plain means, which is all that a reader's own
        model has to know; of a pass its sums, as a share of the ``counted`` targets of the batch.
        """
        how: dict[str, Any] = {} if counted is None else {"reduction": "sum"}
        if self._has_mtp(tokens):
            loss, mtp = self.model.losses(inputs, targets, **how)
        else:
            loss, mtp = self.model.loss(inputs, targets, **how), []
        if counted is None:
            return loss, mtp
        return loss / counted, [m / counted for m in mtp]

    def _has_mtp(self, tokens: int) -> bool:
        """Whether there are MTP modules, and their loss counts after ``tokens`` tokens."""
        modules = getattr(self.model, "mtp", ())
        return len(modules) > 0 and self.cfg.mtp_weight_at(self.step, tokens) > 0

    def _objective(
        self,
        loss: Tensor,
        mtp_losses: list[Tensor],
        routings: dict[str, Routing],
        tokens: int,
        share: float,
    ) -> Tensor:
        """What is minimised: TR eq. 25 and, per layer with experts, TR eq. 17."""
        cfg = self.cfg
        if mtp_losses:
            weight = cfg.mtp_weight_at(self.step, tokens)
            loss = loss + weight * torch.stack(mtp_losses).mean()
        for routing in routings.values():
            top_k = routing.indices.shape[-1]
            if cfg.balance.seq_balance_weight > 0 and share > 0:
                sequence = sequence_balance_loss(routing.scores, top_k)
                loss = loss + cfg.balance.seq_balance_weight * share * sequence
            if cfg.balance.batch_balance_weight > 0:
                batch = batch_balance_loss(routing.scores, routing.indices)
                loss = loss + cfg.balance.batch_balance_weight * batch
        return loss

    def _finish(
        self,
        after: Position,
        lr: float,
        loss: float,
        norm: float,
        mtp: list[float],
        violations: dict[str, float],
    ) -> tuple[float, float]:
        """Move the position and write the step down."""
        self.position = after
        history = self.history
        history.steps.append(after.step)
        history.train_loss.append(loss)
        history.lr.append(lr)
        history.grad_norm.append(norm)
        history.tokens.append(after.tokens)
        if mtp:
            history.mtp_loss.append(sum(mtp) / len(mtp))
        if violations:
            history.max_violation.append(sum(violations.values()) / len(violations))
            history.layer_violation.append(list(violations.values()))
        return loss, norm

    def fit(self, until: int | None = None, progress: bool = True) -> History:
        """Train up to step ``until`` (default: all) and return the history.

        Interrupting (Ctrl-C, SIGTERM, or the stop button of a notebook) ends it after the current
        step, since half a step cannot be resumed: a checkpoint is written if there is an
        ``out_dir``, and calling ``fit`` again goes on.

        Raises:
            CheckpointError: ``out_dir`` cannot be written, or is another run's.
            FloatingPointError: the run diverged; see ``train_step``.
        """
        total = self.cfg.total_steps()
        stop = total if until is None else min(until, total)
        log = self._open_log()
        # Twice a second: a notebook's bar sends three messages each time, and who tests a notebook
        # reads them only when the cell is done, by when more than some thousand would be lost.
        bar = tqdm(
            total=stop,
            initial=self.step,
            disable=not (progress and self.speaks),
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5,
        )
        self.model.train()
        self._clock = (time.perf_counter(), self.position.tokens)
        interrupts = Interrupts()
        try:
            with interrupts.held_back():
                self._evaluate_if_due(log)  # before the first step, or where it was cut off
                while self.step < stop:
                    self._heed(interrupts)
                    loss, _ = self.train_step()
                    log.step(self.history, self._speed())
                    bar.update()
                    if self.step % 10 == 0:
                        bar.set_postfix(self._postfix(loss), refresh=False)
                    self._evaluate_if_due(log)
                    self._save_if_due(stop)
                self._heed(interrupts)
        except KeyboardInterrupt:
            if self.out_dir is not None:
                self.save()
            if self.speaks:
                bar.write(f"stopped after step {self.step}; fit() goes on from here")
            if interrupts.caught == signal.SIGTERM:  # who sends it wants the process to end
                raise SystemExit(128 + signal.SIGTERM) from None
        finally:
            bar.close()
            log.close()
            self.model.eval()
        return self.history

    def _open_log(self) -> StepLog:
        """Before the first step: a folder that can hold the run, and its log up to here."""
        if self.out_dir is None:
            return StepLog(None)
        tensors = sum(p.numel() * p.element_size() for p in self.model.parameters())
        prepare_folder(self.out_dir, self.run, 4 * tensors + 2**20)
        return StepLog(self.out_dir / "log.jsonl", self.run, self.step)

    def _speed(self) -> float:
        """Tokens per second since ``fit`` began."""
        start, tokens = self._clock
        return (self.position.tokens - tokens) / max(time.perf_counter() - start, 1e-9)

    def _postfix(self, loss: float) -> dict[str, str]:
        shown = {"loss": f"{loss:.3f}"}
        if self.history.valid_loss:
            valid = self.history.valid_loss[-1]
            shown["valid"] = f"{valid:.3f}"
            if self.floor is not None:
                shown["above floor"] = f"{valid - self.floor:.3f}"
        return {**shown, "tokens/s": f"{self._speed():.0f}"}

    def _evaluate_if_due(self, log: StepLog) -> None:
        every, batches = self.cfg.upkeep.eval_every, self.valid_batches
        due = self.step == self.cfg.total_steps() or (every and self.step % every == 0)
        if batches is None or not due or self.step in self.history.valid_steps:
            return
        history = self.history
        loss, ema, acceptance = self._measure()
        history.valid_steps.append(self.step)
        history.valid_loss.append(loss)
        if ema is not None:
            history.valid_ema_loss.append(ema)
        if acceptance is not None:
            history.valid_acceptance.append(acceptance)
        log.evaluation(self.position, loss, ema, acceptance, self.floor)

    def _save_if_due(self, stop: int) -> None:
        every = self.cfg.upkeep.save_every
        if self.out_dir is not None and (self.step == stop or (every and self.step % every == 0)):
            self.save()

    def save(self) -> Path:
        """Write a checkpoint of the current step below ``out_dir``.

        Raises:
            ValueError: there is no ``out_dir``.
            CheckpointError: it cannot be written; the ones before are untouched.
        """
        if self.out_dir is None:
            raise ValueError("this Trainer has no out_dir to save to; give it one")
        averaged = self.average.tensors if self.average is not None else None
        return save_checkpoint(
            self.out_dir,
            self.step,
            self.model,
            self.optimizer,
            self._state(),
            keep=self.cfg.upkeep.keep,
            ema=averaged,
        )

    def _state(self) -> dict[str, Any]:
        """All of a checkpoint but its tensors."""
        return {
            "run": self.run,
            **self.position._asdict(),
            "settings": self.cfg.flat(),
            "model_config": self.model.config.to_dict(),
            "data": self._fingerprint(),
            "averaged": self.average is not None,
            "ema_updates": self.average.updates if self.average is not None else 0,
            "history": self.history.to_dict(),
        }

    def _fingerprint(self) -> str:
        """Of the training data: the source's own, or that of its first two batches."""
        own = getattr(self.train_batches, "fingerprint", None)
        if isinstance(own, str):
            return own
        if self._data is None:
            digest = hashlib.sha256()
            for step in (0, 1):
                for tensor in self.train_batches.batch(step):
                    digest.update(repr(tuple(tensor.shape)).encode())
                    digest.update(tensor.contiguous().numpy().tobytes())
            self._data = digest.hexdigest()
        return self._data

    def resume(self, folder: str | os.PathLike[str]) -> None:
        """Go on from a checkpoint as if there had been no pause.

        The settings may differ in what lies ahead (a longer run, another decay) and in what changes
        no number (when to evaluate and save).

        Raises:
            CheckpointError: it is damaged, of another model, of other data, or of a run with other
                settings; nothing was changed.
        """
        checkpoint = Checkpoint(folder)
        state = checkpoint.state
        position, history = self._check_state(folder, state)
        checkpoint.check(self.model)
        if (self.average is None) != (checkpoint.ema is None):
            raise CheckpointError(f"{folder} and this run disagree on whether there is an average")
        checkpoint.restore(self.model, self.optimizer)
        if self.average is not None and checkpoint.ema is not None:
            self.average.restore(checkpoint.ema, state["ema_updates"])
        self.position, self.history, self.run = position, history, state["run"]

    def _check_state(
        self, folder: str | os.PathLike[str], state: dict[str, Any]
    ) -> tuple[Position, History]:
        """Where a checkpoint stands, and its history; ``CheckpointError`` unless it is this run's.

        Another model, other data and other settings before that position are refused.
        """
        position = Position(state["step"], state["tokens"], state["rows"])
        self._compare_model(folder, state)
        if state["data"] != self._fingerprint():
            raise CheckpointError(
                f"{folder} was trained on other data (another source, order or batch): give it the "
                "same, or start a new run from the model's weights"
            )
        try:
            saved = TrainConfig.from_flat(state["settings"])
            history = History.from_dict(state["history"])
        except (TypeError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{folder}: {error}; was it written by a newer version?"
            ) from error
        name = self.cfg.differs_before(saved, position)
        if name is not None:
            raise CheckpointError(
                f"{folder} was trained with {name}={saved.flat()[name]!r}, this run has "
                f"{self.cfg.flat()[name]!r}: use the same settings, or start a new run from the "
                "model's weights"
            )
        return position, history

    def _compare_model(self, folder: str | os.PathLike[str], state: dict[str, Any]) -> None:
        saved, own = state["model_config"], self.model.config.to_dict()
        for name in sorted(saved.keys() | own.keys()):
            if saved.get(name) != own.get(name):
                raise CheckpointError(
                    f"{folder} is of another model: {name} is {saved.get(name)!r} there "
                    f"and {own.get(name)!r} here"
                )
