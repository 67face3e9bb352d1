"""Training on many processes: the trainer of one, its sums taken over all of them.

Every process reads the same settings and holds the same history; the first one reads the data,
shows progress and writes the log. A step is that of one process on the whole batch, but for the
order in which numbers are added.

Without a pipeline weights are sharded by FSDP2. With one they are whole on every process of a
stage, because schedules that split the backward pass go past FSDP's hooks; their gradients are
added once a step.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from minids3.model import Transformer, save_model
from minids3.nn import Gate
from minids3.parallel.checkpoint import load_parallel, load_whole, newest, read_state, save_parallel
from minids3.parallel.data import (
    Layout,
    gradient_norm,
    make_layout,
    scale_gradients,
    shard_model,
    share_of_rows,
    sum_gradients,
)
from minids3.parallel.expert import Wire, distribute_experts
from minids3.parallel.pipeline import Objective, Pipeline, ScheduleName, least_microbatches
from minids3.ref.loss import IGNORE_INDEX
from minids3.train.balance import update_expert_biases
from minids3.train.checkpoint import CheckpointError, latest_checkpoint, prepare_folder
from minids3.train.interrupts import Interrupts
from minids3.train.log import StepLog
from minids3.train.recipes import (
    build_trainer,
    describe_run,
    first_stage,
    recipe_settings,
    require_writable,
    set_aside,
)
from minids3.train.settings import Position, TrainConfig
from minids3.train.trainer import Sums, Trainer

__all__ = ["ParallelTrainer", "process_group", "train_parallel"]


class ParallelTrainer(Trainer):
    """A ``Trainer`` whose model and batches are spread over processes; all call it alike."""

    def __init__(
        self,
        model: Transformer,
        cfg: TrainConfig,
        *sources: Any,
        layout: Layout,
        schedule: ScheduleName = "1f1b",
        wire: Wire = Wire(),  # noqa: B008
        **options: Any,
    ) -> None:
        """Prepare a run; the model must be the same on all processes.

        Args:
            model: whole; it is taken apart.
            cfg: how; ``micro_batch_size`` is per process.
            sources: training and validation batches.
            layout: how the processes are arranged.
            schedule: of the pipeline, if there is one.
            wire: in what format tokens travel to experts.
            options: as ``Trainer``.

        Raises:
            ValueError: the auxiliary loss over the batch is asked for, or as the parts.
        """
        if cfg.balance.batch_balance_weight > 0:
            raise ValueError(
                "batch_balance_weight needs the whole batch in one process: leave it out"
            )
        self.layout, self._schedule, self._wire = layout, schedule, wire
        self.pipeline: Pipeline | None = None
        super().__init__(model, cfg, *sources, **options)
        name = [self.run]
        dist.broadcast_object_list(name, src=0)
        self.run = name[0]

    @property
    def speaks(self) -> bool:
        """The first process does."""
        return dist.get_rank() == 0

    def _arrange(self) -> None:
        model, layout = self.model, self.layout
        self._gates = [n for n, m in model.named_modules() if isinstance(m, Gate)]
        self._n_experts = model.config.n_routed_experts
        if self._gates:
            distribute_experts(model, layout.experts, self._wire)
        elif layout.sizes[2] > 1:
            raise ValueError("ep needs a model with routed experts: use dp")
        if layout.sizes[0] > 1:
            self.pipeline = Pipeline(model, layout.stages, self._schedule)
        elif layout.data.size() > 1:
            shard_model(model, layout.data)
        self._own_gates = [n for n, m in model.named_modules() if isinstance(m, Gate)]

    # A step ---------------------------------------------------------------------------------------

    def _batch(self, at: Position) -> tuple[Tensor, Tensor]:
        """The whole batch, read by the first process alone and sent to all."""
        rows, length = self.cfg.batch_rows(at.tokens), self.cfg.batch.seq_len
        if self.speaks:
            both = torch.stack(super()._batch(at)).to(self.device)
        else:
            both = torch.empty(2, rows, length, dtype=torch.int64, device=self.device)
        dist.broadcast(both, src=0)
        return both[0], both[1]

    @property
    def _places(self) -> tuple[int, int]:
        """This process's number among those with rows of their own, and how many there are."""
        return self.layout.data.get_local_rank(), self.layout.data.size()

    def _backward(self, inputs: Tensor, targets: Tensor, tokens: int) -> Sums:
        counted, n_rows = int((targets != IGNORE_INDEX).sum()), len(inputs)
        place, places = self._places
        mine = share_of_rows(n_rows, place, places)
        inputs, targets = inputs[mine], targets[mine]
        most = -(-n_rows // places)
        size = self.cfg.batch.micro_batch_size or most
        if self.pipeline is not None:
            return self._pipelined(inputs, targets, tokens, counted, n_rows)
        passes = -(-most // size)
        found = []
        for number in range(passes):
            rows = share_of_rows(len(inputs), number, passes)
            share = len(inputs[rows]) / n_rows
            found.append(self._pass(inputs[rows], targets[rows], tokens, counted, share))
        sums = self._total(found)
        data = self.layout.data.get_group()
        sum_gradients(self.model, data, self.layout.replicas)
        table = self._load_table(sums.loads)
        return self._over_all(sums.loss, sums.objective, sums.mtp, table)

    def _pipelined(
        self, inputs: Tensor, targets: Tensor, tokens: int, counted: int, n_rows: int
    ) -> Sums:
        assert self.pipeline is not None
        pp, _, _ = self.layout.sizes
        cfg, most = self.cfg, -(-n_rows // self._places[1])
        micro = cfg.batch.micro_batch_size
        n = max(least_microbatches(self._schedule, pp), -(-most // micro) if micro else 2 * pp)
        weight = cfg.mtp_weight_at(self.step, tokens) if self._has_mtp(tokens) else 0.0
        objective = Objective(counted, n_rows, weight, cfg.balance.seq_balance_weight)
        losses, balance, loads = self.pipeline.step(inputs, targets, objective, n)
        sum_gradients(self.model, self.layout.data.get_group(), self.layout.replicas)
        self.pipeline.sum_shared()
        loss, *mtp = (losses / counted).unbind()
        whole = loss + balance + (weight * torch.stack(mtp).mean() if mtp else 0)
        return self._over_all(loss, whole, mtp, self._load_table(loads))

    def _load_table(self, loads: dict[str, Tensor]) -> Tensor:
        """Loads of this process's tokens, a row for every gate of the whole model."""
        table = torch.zeros(
            len(self._gates), self._n_experts, dtype=torch.int64, device=self.device
        )
        for name, load in loads.items():
            table[self._gates.index(name)] = load
        return table

    def _over_all(self, loss: Tensor, objective: Tensor, mtp: list[Tensor], table: Tensor) -> Sums:
        """Sums over the processes; each number is on one place of a row's way alone."""
        told = torch.stack([loss, objective, *mtp])
        dist.all_reduce(told)
        loss, objective, *mtp = told.unbind()
        loads = {}
        if len(table):
            dist.all_reduce(table)
            loads = {n: r for n, r in zip(self._gates, table, strict=True) if int(r.sum())}
        return Sums(loss, list(mtp), objective, loads)

    def _has_mtp(self, tokens: int) -> bool:
        """Whether MTP counts; a stage may have no module of it and yet take part."""
        modules = self.model.config.num_nextn_predict_layers
        return modules > 0 and self.cfg.mtp_weight_at(self.step, tokens) > 0

    def _gradient_norm(self) -> Tensor:
        shared = self.pipeline.shared if self.pipeline is not None else ()
        return gradient_norm(self.model, self.layout, shared)

    def _clip_gradients(self, norm: Tensor) -> None:
        factor = (self.cfg.optimizer.grad_clip / (norm + 1e-6)).clamp(max=1.0)
        scale_gradients(self.model, factor)

    def _update_biases(self, loads: dict[str, Tensor], speed: float) -> None:
        own = {name: loads[name] for name in self._own_gates if name in loads}
        update_expert_biases(self.model, own, speed)

    def _heed(self, interrupts: Interrupts) -> None:
        """All stop after the same step, whichever of them was told to."""
        asked = torch.tensor([interrupts.caught or 0], device=self.device)
        dist.all_reduce(asked, dist.ReduceOp.MAX)
        if int(asked):
            interrupts.caught = int(asked)
        interrupts.check()

    # Looking and saving ---------------------------------------------------------------------------

    def _measure(self) -> tuple[float, float | None, float | None]:
        loss, acceptance = self._evaluated()
        ema = None
        if self.average is not None:
            with self.average.applied(self.model):
                ema, _ = self._evaluated()
        return loss, ema, acceptance if self._has_mtp(self.position.tokens) else None

    @torch.no_grad()
    def _evaluated(self) -> tuple[float, float]:
        """Mean loss over the validation's targets, and how often MTP's draft is accepted."""
        assert self.valid_batches is not None
        self.model.eval()
        sums = torch.zeros(4, dtype=torch.float64, device=self.device)
        for step in range(self.cfg.upkeep.eval_batches):
            inputs, targets = (t.to(self.device) for t in self.valid_batches.batch(step))
            mine = share_of_rows(len(inputs), *self._places)
            if self.pipeline is not None:
                sums += self.pipeline.evaluate(inputs[mine], targets[mine])
            else:
                sums += self._sums_of(inputs[mine], targets[mine])
        self.model.train()
        dist.all_reduce(sums)
        loss, counted, agreed, drafts = sums.tolist()
        if not counted:
            raise ValueError("nothing to evaluate: there is no target in the validation batches")
        return loss / counted, agreed / max(drafts, 1)

    def _sums_of(self, inputs: Tensor, targets: Tensor) -> Tensor:
        loss = self.model.loss(inputs, targets, reduction="sum")
        found = [loss, (targets != IGNORE_INDEX).sum(), *[torch.zeros_like(loss)] * 2]
        if len(self.model.mtp):
            draft = self.model.mtp_logits(inputs)[0].argmax(-1)
            agreed = draft == self.model(inputs)[:, 1:].argmax(-1)
            found[2:] = [agreed.sum(), torch.tensor(agreed.numel(), device=inputs.device)]
        return torch.stack([f.double() for f in found])

    def _open_log(self) -> StepLog:
        """The first process makes sure of the folder and opens the log; the others write none."""
        told: list[str | None] = [None]
        log = StepLog(None)
        if self.speaks:
            try:
                if self.out_dir is not None:
                    prepare_folder(self.out_dir, self.run, 16 * self.n_parameters + 2**20)
                    log = StepLog(self.out_dir / "log.jsonl", self.run, self.step)
            except CheckpointError as error:
                told = [str(error)]
        dist.broadcast_object_list(told, src=0)
        if told[0] is not None:
            raise CheckpointError(told[0])
        return log

    def save(self) -> Path:
        """Write a checkpoint of the current step, all processes together; as ``Trainer.save``."""
        if self.out_dir is None:
            raise ValueError("this Trainer has no out_dir to save to; give it one")
        keep = self.cfg.upkeep.keep
        return save_parallel(
            self.out_dir,
            self.model,
            self.optimizer,
            self.layout,
            self._state(),
            self.average,
            keep,
        )

    def resume(self, folder: str | os.PathLike[str]) -> None:
        """Go on from a checkpoint, of whatever layout; as ``Trainer.resume``."""
        state = read_state(folder)
        position, history = self._check_state(folder, state)
        if (self.average is not None) != state["averaged"]:
            raise CheckpointError(f"{folder} and this run disagree on whether there is an average")
        updates = state["ema_updates"]
        load_parallel(folder, self.model, self.optimizer, self.layout, self.average, updates)
        self.position, self.history, self.run = position, history, state["run"]


@contextlib.contextmanager
def process_group(options: dict[str, Any], timeout: int, work_dir: Path) -> Iterator[None]:
    """Join the processes that torchrun started, and say clearly if one of them is lost.

    Args:
        options: of ``train_parallel``; "cuda" as its device becomes this process's own GPU.
        timeout: seconds to wait for another process.
        work_dir: where the run's checkpoints are.

    Raises:
        RuntimeError: another process ended, or did not answer in time.
    """
    if options["device"] == "cuda":
        options["device"] = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(options["device"])
    if os.environ.get("MASTER_ADDR") in ("127.0.0.1", "localhost") and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    backend = "nccl" if options["device"].startswith("cuda") else "gloo"
    _join(backend, datetime.timedelta(seconds=timeout))
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, getattr(dist, "DistError", ())) or "gloo" in str(error)
        if not lost:
            raise
        newest_here = latest_checkpoint(work_dir)
        after = f"from {newest_here}" if newest_here else "from the beginning"
        raise RuntimeError(
            f"rank {os.environ['RANK']} lost another process, which ended or did not answer within "
            f"{timeout} s; the same command goes on {after} "
            f"({str(error).splitlines()[0][:200]})"
        ) from error
    dist.destroy_process_group()


def _join(backend: str, timeout: datetime.timedelta) -> None:
    """Join the group by torchrun's store, in a part of it that is this attempt's.

    Where torchrun has a fixed address, its default, its store outlives a restart, and processes of
    the new attempt would find the addresses of the old ones.
    """
    told = os.environ
    if told.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        dist.init_process_group(backend, timeout=timeout)
        return
    rank, size = int(told["RANK"]), int(told["WORLD_SIZE"])
    address, port = told["MASTER_ADDR"], int(told["MASTER_PORT"])
    attempt = told.get("TORCHELASTIC_RESTART_COUNT", 0)
    store = dist.TCPStore(address, port, size, is_master=False, timeout=timeout)  # type: ignore[attr-defined]
    own = dist.PrefixStore(f"attempt_{attempt}", store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=timeout)


def train_parallel(
    name: str,
    out: str | os.PathLike[str],
    work_dir: str | os.PathLike[str],
    *,
    pp: int = 1,
    dp: int | None = None,
    ep: int = 1,
    schedule: ScheduleName = "1f1b",
    fp8_dispatch: bool = False,
    resume: bool = True,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> Path:
    """Train a recipe on all processes of the group; each calls it alike.

    Args:
        name: as in ``train_recipe``, and so are ``out``, ``work_dir``, ``resume``, ``device``,
            ``dtype`` and ``changes``.
        out: folder of the model.
        work_dir: folder of checkpoints and log, which every process sees.
        pp: stages of the pipeline.
        dp: copies of the experts; default: what the other two leave.
        ep: processes that share the experts of a layer.
        schedule: of the pipeline.
        fp8_dispatch: send tokens to experts in FP8 and results back in BF16, as V3 does.
        resume: go on with a run that is found.
        device: "cpu" or "cuda".
        dtype: of the weights that are written.
        changes: settings.

    Returns:
        The model's folder.

    Raises:
        As ``train_recipe``, and ``ValueError`` if the processes are not ``pp * dp * ep``.
    """
    out, work_dir = Path(out), Path(work_dir)
    if dp is None:
        dp = max(dist.get_world_size() // (pp * ep), 1)
    layout = make_layout(pp, dp, ep, torch.device(device).type)
    if dist.get_rank() == 0:
        require_writable(out)
    wire = Wire("fp8", "bf16") if fp8_dispatch else Wire()

    def make(*args: Any, **options: Any) -> ParallelTrainer:
        return ParallelTrainer(*args, layout=layout, schedule=schedule, wire=wire, **options)

    recipe_settings(name, **changes)  # refuses what no run can have, before one is set aside
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
    if not resume and not restarted and dist.get_rank() == 0:
        set_aside(work_dir)
    found, weights = newest(work_dir), None
    if found is None:
        options = {"pp": pp, "dp": dp, "ep": ep, "schedule": schedule, "device": device}
        options |= {"fp8_dispatch": fp8_dispatch, "resume": resume}
        weights = first_stage(name, work_dir, train_parallel, options, **changes)
    trainer = build_trainer(name, work_dir, device, kind=make, weights=weights, **changes)
    if found is not None:
        trainer.resume(found)
        if trainer.speaks and restarted:
            print(f"started again after a failure, from {found}", file=sys.stderr)
    start, begun = time.perf_counter(), trainer.position.tokens
    trainer.fit()
    if trainer.step < trainer.cfg.total_steps():
        raise KeyboardInterrupt
    if trainer.speaks:
        about = describe_run(name, trainer, time.perf_counter() - start, begun)
        about["processes"] = {"pp": pp, "dp": dp, "ep": ep}
        last = work_dir / f"step_{trainer.step:08d}"
        save_model(load_whole(last).to("cpu", dtype), out, about)
    dist.barrier()
    return out
