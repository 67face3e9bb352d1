"""Pipeline parallelism: the model cut into stages, run by PyTorch's own schedules.

The first stage has the embedding, the last one the final norm, the head and the MTP modules. These
need the embedding again. In a V (ZBV, DualPipeV) the first and the last stage are on one process
and share it, as in V3 (TR section 3.2.2); else the last stage has a copy, and ``sum_shared`` adds
the gradients of both.

A loss that arises inside, such as that which balances experts within a sequence, never reaches the
loss of the last stage. Its gradient is put in where it arises (``_AddGradient``).
"""

from __future__ import annotations

import itertools
import time
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from minids3.model import Transformer
from minids3.nn import record_routing
from minids3.ref.loss import IGNORE_INDEX
from minids3.train.balance import expert_load, sequence_balance_loss

__all__ = [
    "Objective",
    "Pipeline",
    "ScheduleName",
    "Stage",
    "cut_layers",
    "greet_nobody",
    "least_microbatches",
]

ScheduleName = Literal["1f1b", "zb1p", "zbv", "dualpipev"]
_V = ("zbv", "dualpipev")


class Objective(NamedTuple):
    """What a step minimises, for the whole batch on all processes.

    targets: that count in the whole batch.
    rows: of the whole batch.
    mtp_weight: lambda; at 0 MTP modules are not run.
    seq_balance_weight: of the balance loss per sequence.
    """

    targets: int
    rows: int
    mtp_weight: float = 0.0
    seq_balance_weight: float = 0.0


class Span(NamedTuple):
    """When this process did one action: seconds since the step began."""

    kind: str
    stage: int
    microbatch: int
    start: float
    stop: float


def cut_layers(n_layers: int, n_stages: int) -> list[range]:
    """Consecutive layers of every stage, as equal as can be.

    Raises:
        ValueError: there are more stages than layers.
    """
    if not 1 <= n_stages <= n_layers:
        raise ValueError(f"{n_layers} layers cannot be cut into {n_stages} stages")
    marks = [n_layers * i // n_stages for i in range(n_stages + 1)]
    return [range(a, b) for a, b in itertools.pairwise(marks)]


def least_microbatches(schedule: ScheduleName, n_ranks: int) -> int:
    """The fewest micro-batches that PyTorch's schedule runs without a hole."""
    return 2 * n_ranks if schedule in _V else n_ranks


def greet_nobody(part: Any) -> None:
    """Have a ``PipelineStage`` send its neighbours no greeting before the first step.

    It makes NCCL's connections. Gloo has them already, and in a V a rank is its own neighbour: up
    to PyTorch 2.11 it greets itself, and fails.
    """
    if dist.get_backend(part.group) == "gloo":
        part._get_init_p2p_neighbors_ops = list


class _AddGradient(torch.autograd.Function):
    """A copy of ``x``, whose backward also gives ``loss`` a gradient of one.

    A copy, since the schedules detach what a stage gives in place, and a view cannot be.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor) -> Tensor:
        ctx.save_for_backward(loss)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        (loss,) = ctx.saved_tensors
        return grad, torch.ones_like(loss)


class Stage(nn.Module):
    """Consecutive layers of a model, sharing its modules.

    Called with what the stage before gives, and with ``ids``, ``targets`` and ``real`` of the
    micro-batch. Gives hidden vectors ``[B, T, D]``; the last stage gives sums over targets, main
    loss and MTP modules', ``[1 + len(mtp)]``.
    """

    def __init__(self, model: Transformer, layers: range, first: bool, last: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(model.layers[i] for i in layers)
        self.names = [f"layers.{i}." for i in layers]
        self.first, self.last = first, last
        if first or (last and _head_needs_embedding(model)):
            self.embed_tokens = model.embed_tokens
        if last:
            self.norm, self.lm_head, self.mtp = model.norm, model.lm_head, model.mtp
        # The model does what it does with its own methods; it is no submodule of a part of itself.
        self._model = [model]
        self.objective = Objective(1, 1)
        self.loads: dict[str, Tensor] = {}
        self.losses: list[Tensor] = []
        self.balance: list[Tensor] = []

    def forward(self, x: Tensor, ids: Tensor, targets: Tensor, real: Tensor) -> Tensor:
        """Pass a micro-batch through.

        Args:
            x: ``[B, T, D]`` hidden vectors; of the first stage ``[B, T]`` token ids.
            ids: ``[B, T]`` int64.
            targets: ``[B, T]`` int64, ``IGNORE_INDEX`` where nothing counts.
            real: ``[B]`` bool; other rows are there to fill up, and count for nothing.
        """
        with record_routing(self) as routings:
            x = self.hidden(x)
            if self.last:
                x = self._sums(x, ids, targets)
        balance = []
        for name, routing in routings.items():
            kept = expert_load(routing.indices[real], routing.scores.shape[-1])
            name = self._global_name(name)
            self.loads[name] = self.loads.get(name, torch.zeros_like(kept)) + kept
            weight = self.objective.seq_balance_weight * int(real.sum()) / self.objective.rows
            if weight > 0:
                top_k = routing.indices.shape[-1]
                balance.append(weight * sequence_balance_loss(routing.scores[real], top_k))
        if not balance:
            return x
        total = torch.stack(balance).sum()
        self.balance.append(total.detach())
        return _AddGradient.apply(x, total)

    def hidden(self, x: Tensor) -> Tensor:
        """The stage's hidden vectors ``[B, T, D]``, after the final norm if it is the last."""
        (model,) = self._model
        cos, sin, _ = model._places(None, 0, x.shape[1])
        if self.first:
            x = model._embed(x)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return model.norm(x) if self.last else x

    def _sums(self, hidden: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
        """Losses of the micro-batch, added over its targets: ``[1 + len(mtp)]``."""
        (model,) = self._model
        sums = [model._cross_entropy(hidden, targets, "sum")]
        if self.objective.mtp_weight > 0:
            for k, ahead in enumerate(model._mtp_hidden(hidden, ids, None), start=1):
                sums.append(model._cross_entropy(ahead, targets[:, k:], "sum"))
        found = torch.stack(sums)
        self.losses.append(found.detach())
        return found

    def _global_name(self, name: str) -> str:
        head, _, rest = name.partition(".")
        if head != "layers":
            return name
        number, _, rest = rest.partition(".")
        return self.names[int(number)] + rest


class Pipeline:
    """One process's stages of a model, and the schedule that runs them."""

    def __init__(
        self,
        model: Transformer,
        group: Any,
        schedule: ScheduleName = "1f1b",
        record: bool = False,
    ) -> None:
        """Cut ``model`` for the processes of ``group``, in place.

        Afterwards ``model`` has only what is this process's; names stay as they were.

        Args:
            model: the same on every process.
            group: the processes that a row passes through; each has one stage, or two in a V.
            schedule: ``"1f1b"``, ``"zb1p"``, ``"zbv"`` or ``"dualpipev"``.
            record: keep ``spans`` of what each step did when.

        Raises:
            ValueError: there is no such schedule, or there are fewer layers than stages.
            RuntimeError: this PyTorch does not have the schedule.
        """
        if schedule not in get_args(ScheduleName):
            raise ValueError(f"schedule={schedule!r}; choose {', '.join(get_args(ScheduleName))}")
        self.model, self.group, self.schedule, self.record = model, group, schedule, record
        self.rank, self.n_ranks = dist.get_rank(group), dist.get_world_size(group)
        self.n_stages = self.n_ranks * (2 if schedule in _V else 1)
        mine = [self.rank, self.n_stages - 1 - self.rank] if schedule in _V else [self.rank]
        layers = cut_layers(len(model.layers), self.n_stages)
        self.stages = {
            i: Stage(model, layers[i], first=i == 0, last=i == self.n_stages - 1) for i in mine
        }
        kept = {i for s in mine for i in layers[s]}
        for i in range(len(model.layers)):
            if i not in kept:
                model.layers[i] = nn.Identity()
        self.has_first, self.has_last = 0 in mine, self.n_stages - 1 in mine
        twice = self.has_first != self.has_last and _head_needs_embedding(model)
        self.shared: list[nn.Parameter] = []
        if twice:
            assert isinstance(model.embed_tokens.weight, nn.Parameter)
            self.shared.append(model.embed_tokens.weight)
        if not (self.has_first or twice):
            model.embed_tokens = nn.Identity()  # type: ignore[assignment]
        if not self.has_last:
            model.norm = nn.Identity()  # type: ignore[assignment]
            model.lm_head = nn.Identity()  # type: ignore[assignment]
            model.mtp = nn.ModuleList()
        self.spans: list[Span] = []
        self._ready: tuple[Any, ...] = ()
        self._runner: Any = None

    def step(
        self, inputs: Tensor, targets: Tensor, objective: Objective, n_microbatches: int
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Add the gradients of this process's rows; ``inputs`` are the same along the pipeline.

        Rows that do not fill the last micro-batches are filled up with rows that count for nothing.

        Args:
            inputs: ``[B, T]`` int64, B may be 0.
            targets: ``[B, T]`` int64.
            objective: of the whole batch.
            n_microbatches: at least ``least_microbatches``.

        Returns:
            Sums of main and MTP losses over the targets (zeros unless the last stage is here),
            the balance losses of the layers here, and the load ``[E]`` of every gate here.

        Raises:
            ValueError: there are too few micro-batches for the schedule.
        """
        least = least_microbatches(self.schedule, self.n_ranks)
        if n_microbatches < least:
            raise ValueError(
                f"{self.schedule} on {self.n_ranks} processes needs {least} micro-batches or more, "
                f"not {n_microbatches}"
            )
        size = max(-(-len(inputs) // n_microbatches), 1)
        missing = size * n_microbatches - len(inputs)
        real = torch.arange(size * n_microbatches, device=inputs.device) < len(inputs)
        ids = torch.cat((inputs, inputs.new_zeros(missing, inputs.shape[1])))
        none = torch.full((missing, inputs.shape[1]), IGNORE_INDEX, device=targets.device)
        targets = torch.cat((targets, none))
        self._prepare(size, inputs.shape[1], n_microbatches, objective)
        self.spans.clear()
        self._begun = time.perf_counter()
        known = {"ids": ids, "targets": targets, "real": real}
        args = (ids,) if self.has_first else ()
        if self.has_last:
            self._runner.step(*args, target=real, losses=[], return_outputs=False, **known)
        else:
            self._runner.step(*args, return_outputs=False, **known)
        return self._found(objective)

    def _found(self, objective: Objective) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        device = next(self.model.parameters()).device
        n_losses = 1 + self.model.config.num_nextn_predict_layers * (objective.mtp_weight > 0)
        losses = torch.zeros(n_losses, device=device)
        balance = torch.zeros((), device=device)
        loads: dict[str, Tensor] = {}
        for stage in self.stages.values():
            losses += sum(stage.losses)
            balance += sum(stage.balance)
            loads |= stage.loads
        return losses, balance, loads

    def _prepare(self, rows: int, length: int, n_microbatches: int, objective: Objective) -> None:
        """A schedule for micro-batches of this shape: PyTorch's are made for one shape."""
        for stage in self.stages.values():
            stage.objective = objective
            stage.loads, stage.losses, stage.balance = {}, [], []
        wanted = (rows, length, n_microbatches, objective.mtp_weight > 0)
        if wanted == self._ready:
            return
        from torch.distributed.pipelining import PipelineStage, schedules

        kind = _schedule_class(schedules, self.schedule)
        parts = []
        for number, stage in self.stages.items():
            given, gives = self._shapes(stage, rows, length, objective)
            device = next(stage.parameters()).device
            part = PipelineStage(
                stage,
                number,
                self.n_stages,
                device,
                input_args=given,
                output_args=gives,
                group=self.group,
                dw_builder=_backward_at_once if self._cannot_split(stage) else None,
            )
            greet_nobody(part)
            if self.record:
                _record_spans(part, self)
            parts.append(part)
        single = self.schedule == "1f1b"
        self._runner = kind(
            parts[0] if single else parts, n_microbatches, loss_fn=self._loss, scale_grads=False
        )
        self._ready = wanted

    def _cannot_split(self, stage: Stage) -> bool:
        """Whether a stage has to do its W together with its I.

        The last one uses the head's weight once for itself and once for each MTP module. Splitting
        the backward pass of a weight with several uses fails if one is the embedding's, and counts
        it twice in PyTorch before 2.13 (pytorch#180952). Before 2.13 the nodes of functions written
        in Python, as ours are, do not always live until the W that needs them, either.
        """
        tied = stage.last and self.model.config.tie_word_embeddings
        return tied or _torch_version() < (2, 13)

    def _shapes(
        self, stage: Stage, rows: int, length: int, objective: Objective
    ) -> tuple[Tensor, Tensor]:
        """What a stage takes and gives, on the meta device."""
        width, dtype = self.model.config.hidden_size, next(stage.parameters()).dtype
        hidden = torch.empty(rows, length, width, device="meta", dtype=dtype, requires_grad=True)
        ids = torch.empty(rows, length, device="meta", dtype=torch.int64)
        n_losses = 1 + self.model.config.num_nextn_predict_layers * (objective.mtp_weight > 0)
        sums = torch.empty(n_losses, device="meta", requires_grad=True)
        return (ids if stage.first else hidden), (sums if stage.last else hidden)

    def _loss(self, sums: Tensor, _target: Tensor) -> Tensor:
        """A micro-batch's share of TR eq. 25."""
        objective = self.stages[self.n_stages - 1].objective
        loss = sums[0]
        if len(sums) > 1:
            loss = loss + objective.mtp_weight * sums[1:].mean()
        return loss / objective.targets

    def sum_shared(self) -> None:
        """Add the gradients of both copies of the embedding, so that they stay copies."""
        for parameter in self.shared:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            other = dist.get_global_rank(self.group, self.n_ranks - 1 if self.has_first else 0)
            theirs = torch.empty_like(parameter.grad)
            swap = [
                dist.P2POp(dist.isend, parameter.grad, other, self.group),
                dist.P2POp(dist.irecv, theirs, other, self.group),
            ]
            for work in dist.batch_isend_irecv(swap):
                work.wait()
            parameter.grad += theirs

    @torch.no_grad()
    def evaluate(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Pass rows through once, one stage after another.

        Returns:
            ``[4]``, zeros unless the last stage is here: the sum of the main loss over the
            targets, the targets, and of the first MTP module's drafts how many agree with the main
            model and how many there are.
        """
        x = inputs
        for number in range(self.n_stages):
            if number not in self.stages:
                continue
            before, after = self._owner(number - 1), self._owner(number + 1)
            if before not in (None, self.rank):
                width = self.model.config.hidden_size
                x = torch.empty(*inputs.shape, width, device=inputs.device, dtype=self._dtype)
                dist.recv(x, dist.get_global_rank(self.group, before), self.group)
            x = self.stages[number].hidden(x)
            if after not in (None, self.rank):
                dist.send(x.contiguous(), dist.get_global_rank(self.group, after), self.group)
        if not self.has_last:
            return torch.zeros(4, device=inputs.device)
        model, counted = self.model, (targets != IGNORE_INDEX).sum()
        found = [model._cross_entropy(x, targets, "sum"), counted]
        if len(model.mtp):
            ahead = model._mtp_hidden(x, inputs, None)[0]
            agreed = model.lm_head(ahead).argmax(-1) == model.lm_head(x)[:, 1:].argmax(-1)
            found += [agreed.sum(), torch.tensor(agreed.numel(), device=inputs.device)]
        else:
            found += [torch.zeros_like(counted)] * 2
        return torch.stack([f.float() for f in found])

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def _owner(self, stage: int) -> int | None:
        """The rank that has ``stage``; None if there is no such stage."""
        if not 0 <= stage < self.n_stages:
            return None
        return min(stage, self.n_stages - 1 - stage) if self.schedule in _V else stage


def _head_needs_embedding(model: Transformer) -> bool:
    """Whether the last stage uses the embedding: for MTP modules, or as its head."""
    return len(model.mtp) > 0 or model.config.tie_word_embeddings


def _schedule_class(schedules: Any, name: ScheduleName) -> Any:
    names = {
        "1f1b": "Schedule1F1B",
        "zb1p": "ScheduleInterleavedZeroBubble",
        "zbv": "ScheduleZBVZeroBubble",
        "dualpipev": "ScheduleDualPipeV",
    }
    found = getattr(schedules, names[name], None)
    if found is None:
        raise RuntimeError(f"this PyTorch has no {names[name]}: install a newer one")
    return found


def _torch_version() -> tuple[int, ...]:
    return tuple(int(part) for part in torch.__version__.split(".")[:2])


def _backward_at_once() -> Any:
    """For PyTorch's stage: it has done the whole backward pass, and nothing is left for W."""
    return lambda: None


def _record_spans(part: Any, pipeline: Pipeline) -> None:
    """Note when a stage's actions begin and end."""

    def watched(method: str, kind: Any) -> None:
        original = getattr(part, method)

        def timed(chunk: int, *args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter() - pipeline._begun
            result = original(chunk, *args, **kwargs)
            stop = time.perf_counter() - pipeline._begun
            name = kind(kwargs) if callable(kind) else kind
            pipeline.spans.append(Span(name, part.stage_index, chunk, start, stop))
            return result

        setattr(part, method, timed)

    watched("forward_one_chunk", "F")
    watched("backward_one_chunk", lambda kwargs: "B" if kwargs.get("full_backward", True) else "I")
    watched("backward_weight_one_chunk", "W")
