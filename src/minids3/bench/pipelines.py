"""Pipeline schedules run for real: processes that follow an order through PyTorch's pipelining.

Each rank is a process. Its stages do real arithmetic, small enough to take no time, and then sleep
as long as a GPU would compute: so four ranks can be watched on a machine with one core. Forward,
backward, transfers and waiting are PyTorch's own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from minids3.bench.timing import environment
from minids3.sim.pipeline import (
    Action,
    Costs,
    Schedule,
    Span,
    Timeline,
    make_schedule,
    simulate,
)

__all__ = ["PLANS", "SECONDS", "MeasuredStep", "read_record", "run", "run_schedules"]

_WIDTH, _HIDDEN, _ROWS = 12, 24, 4
_KINDS = {"F": "FORWARD", "B": "FULL_BACKWARD", "I": "BACKWARD_INPUT", "W": "BACKWARD_WEIGHT"}

Step = tuple[str, int, int, float]
"""What a rank does: kind, stage, micro-batch, and seconds that it is to take."""


@dataclass(frozen=True)
class MeasuredStep:
    """One schedule's step as four processes did it.

    Attributes:
        timeline: measured, in units of ``seconds`` of ``run_schedules``.
        simulated: how long the step takes on paper, in the same unit.
        gradient_error: largest difference of any gradient from one process's, over the largest
            gradient.
        loss_error: the same of the loss.
    """

    timeline: Timeline
    simulated: float
    gradient_error: float
    loss_error: float


def run_schedules(
    schedules: Mapping[str, Schedule],
    costs: Mapping[str, Costs],
    seconds: float = 0.1,
    timeout: float = 240.0,
) -> dict[str, MeasuredStep]:
    """Run schedules of one direction and equal ranks, one after the other, in real processes.

    Args:
        schedules: title -> valid schedule; two stages for every rank, or one.
        costs: title -> times of its actions, plain numbers in units of ``seconds``.
        seconds: of one unit.
        timeout: of all together.

    Raises:
        ValueError: schedules of several directions, or of unlike numbers of ranks.
        LaunchError: as ``parallel.launch.run``, which starts the processes.
    """
    from minids3.parallel import launch

    ranks = {schedule.n_ranks for schedule in schedules.values()}
    if len(ranks) != 1 or any(len(schedule.placement) > 1 for schedule in schedules.values()):
        raise ValueError("schedules must have one direction, and equally many ranks")
    (n_ranks,) = ranks
    jobs = [
        (
            [[_told(action) for action in order] for order in schedule.orders],
            [_steps(order, costs[name], seconds) for order in schedule.orders],
            schedule.n_stages,
            schedule.n_microbatches,
        )
        for name, schedule in schedules.items()
    ]
    results = launch.run(pipeline_steps, n_ranks, args=(jobs,), timeout=timeout, echo=False).results
    measured = {}
    for i, (name, schedule) in enumerate(schedules.items()):
        clocks = [result[i]["clock"] for result in results]
        measured[name] = MeasuredStep(
            _timeline(name, schedule, clocks, seconds),
            simulate(schedule, costs[name]).makespan,
            max(result[i]["gradient_error"] for result in results),
            max(result[i]["loss_error"] for result in results),
        )
    return measured


def _told(action: Action) -> list[Any]:
    """An action as plain data: kind, stage, micro-batch, and the parts of a pair."""
    parts = [_told(part) for part in action.parts] if action.kind == "FB" else []
    return [action.kind, action.stage, action.microbatch, parts]


def _steps(order: Sequence[Action], costs: Costs, seconds: float) -> list[Step]:
    """What a rank does one after the other; a pair's forward takes what its B leaves of it."""
    steps: list[Step] = []
    for action in order:
        took = [costs.of(part) for part in action.parts]
        if len(took) == 2:
            took[0] = costs.of(action) - took[1]
        for part, time_ in zip(action.parts, took, strict=True):
            steps.append((part.kind, part.stage, part.microbatch, time_ * seconds))
    return steps


def _timeline(
    name: str, schedule: Schedule, clocks: list[list[tuple[float, float]]], seconds: float
) -> Timeline:
    """The clock's readings beside the actions they belong to; the step begins at the first."""
    begin = min(clock[0][0] for clock in clocks)
    spans = []
    for order, clock in zip(schedule.orders, clocks, strict=True):
        left, rank = list(clock), []
        for action in order:
            mine, left = left[: len(action.parts)], left[len(action.parts) :]
            start, end = ((at - begin) / seconds for at in (mine[0][0], mine[-1][1]))
            rank.append(Span(action, start, end))
        spans.append(tuple(rank))
    return Timeline(name, tuple(spans))


# in the processes ---------------------------------------------------------------------------------


class Stage(nn.Module):
    """Some layers ``x + silu(x w1.T) w2.T`` in a row, the same ones wherever they run."""

    def __init__(self, first: int, n_layers: int) -> None:
        super().__init__()
        self.layers = nn.ParameterList()
        for layer in range(first, first + n_layers):
            draw = torch.Generator().manual_seed(layer)
            for shape in ((_HIDDEN, _WIDTH), (_WIDTH, _HIDDEN)):
                weight = torch.randn(shape, generator=draw, dtype=torch.float64)
                self.layers.append(nn.Parameter(weight / shape[1] ** 0.5))

    def forward(self, x: Tensor) -> Tensor:
        """Map x [N, D] to [N, D]."""
        for w1, w2 in zip(self.layers[::2], self.layers[1::2], strict=True):
            x = x + nn.functional.silu(x @ w1.T) @ w2.T
        return x


def pipeline_steps(jobs: list[Any]) -> list[dict[str, Any]]:
    """Do one step of each schedule on this rank, in turn, and say when each action ran."""
    return [_one_step(*job) for job in jobs]


def _one_step(
    orders: list[list[Any]], steps: list[list[Step]], n_stages: int, n_microbatches: int
) -> dict[str, Any]:
    from torch.distributed.pipelining import PipelineStage
    from torch.distributed.pipelining import schedules as pipelining

    from minids3.parallel.pipeline import greet_nobody

    rank = dist.get_rank()
    mine = sorted({stage for _, stage, _, _ in steps[rank]})
    depth = 2 * len(orders) // n_stages  # the same layers in all, however they are cut
    modules = [Stage(stage * depth, depth) for stage in mine]
    stages = [
        PipelineStage(module, stage, n_stages, torch.device("cpu"))
        for stage, module in zip(mine, modules, strict=True)
    ]
    for stage in stages:
        greet_nobody(stage)
    runtime = pipelining._PipelineScheduleRuntime(
        stages, n_microbatches, loss_fn=_loss, scale_grads=False
    )
    actions = {r: [_torch_action(pipelining, *a) for a in order] for r, order in enumerate(orders)}
    lower = getattr(runtime, "_prepare_schedule_with_comms", None) or runtime._load_actions
    lower(actions)

    inputs, targets = _batch(n_microbatches)
    clock = _Clock(stages)
    clock.wanted = None
    _step(runtime, inputs, targets, n_stages, mine)  # shapes are told and connections made
    for module in modules:
        module.zero_grad()
    clock.wanted = list(steps[rank])
    dist.barrier()
    losses = _step(runtime, inputs, targets, n_stages, mine)
    clock.check_done()

    whole = Stage(0, 2 * len(orders))
    pieces = zip(inputs.chunk(n_microbatches), targets.chunk(n_microbatches), strict=True)
    loss = sum((_loss(whole(x), y) for x, y in pieces), torch.zeros((), dtype=torch.float64))
    loss.backward()
    truth = torch.cat([p.grad.flatten() for p in whole.parameters() if p.grad is not None])
    error = 0.0
    for stage, module in zip(mine, modules, strict=True):
        theirs = list(whole.parameters())[2 * depth * stage :]
        for ours, other in zip(module.parameters(), theirs, strict=False):
            assert ours.grad is not None
            assert other.grad is not None
            error = max(error, float((ours.grad - other.grad).abs().max()))
    loss_error = abs(sum(float(x) for x in losses) / loss.item() - 1) if losses else 0.0
    dist.barrier()
    return {
        "clock": clock.times,
        "gradient_error": error / float(truth.abs().max()),
        "loss_error": loss_error,
    }


def _batch(n_microbatches: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(99)
    shape = (_ROWS * n_microbatches, _WIDTH)
    x, y = (torch.randn(shape, generator=draw, dtype=torch.float64) for _ in range(2))
    return x, y


def _loss(output: Tensor, target: Tensor) -> Tensor:
    return ((output - target) ** 2).sum()


def _step(
    runtime: Any, inputs: Tensor, targets: Tensor, n_stages: int, mine: list[int]
) -> list[Tensor]:
    """One step; only the first stage's rank is given inputs, the last one's targets."""
    losses: list[Tensor] = []
    last = n_stages - 1 in mine
    runtime.step(
        *([inputs] if 0 in mine else []),
        target=targets if last else None,
        losses=losses if last else None,
    )
    return losses


def _torch_action(pipelining: Any, kind: str, stage: int, microbatch: int, parts: list[Any]) -> Any:
    """The same action in PyTorch's words."""
    if kind == "FB":
        both = tuple(_torch_action(pipelining, *part) for part in parts)
        return pipelining._Action(-1, pipelining.OVERLAP_F_B, None, both)
    return pipelining._Action(stage, getattr(pipelining, _KINDS[kind]), microbatch)


class _Clock:
    """Notes when each of a rank's actions began and ended, and makes it last as long as asked."""

    def __init__(self, stages: Sequence[Any]) -> None:
        self.wanted: list[Step] | None = None
        self.times: list[tuple[float, float]] = []
        for stage in stages:
            for name in ("forward_one_chunk", "backward_one_chunk", "backward_weight_one_chunk"):
                setattr(stage, name, self._timed(getattr(stage, name), stage.stage_index))

    def _timed(self, work: Any, stage: int) -> Any:
        def timed(microbatch: int, *args: Any, **kwargs: Any) -> Any:
            if self.wanted is None:
                return work(microbatch, *args, **kwargs)
            kind, at, number, seconds = self.wanted[len(self.times)]
            if (at, number) != (stage, microbatch):
                raise RuntimeError(
                    f"stage {stage}, micro-batch {microbatch} ran; the order has {at}{kind}{number}"
                )
            start = time.time()
            result = work(microbatch, *args, **kwargs)
            time.sleep(max(0.0, start + seconds - time.time()))
            self.times.append((start, time.time()))
            return result

        return timed

    def check_done(self) -> None:
        """Raise ``RuntimeError`` unless every action has run."""
        if self.wanted is None or len(self.times) != len(self.wanted):
            raise RuntimeError("PyTorch did not run every action of the order")


# the record ---------------------------------------------------------------------------------------

RANKS, MICROBATCHES, SECONDS = 4, 8, 0.1
_WHOLE, _HALF = Costs(1.0, 1.0, 1.0), Costs(0.5, 0.5, 0.5)
PLANS: dict[str, tuple[str, Costs]] = {
    "1F1B": ("1f1b", _WHOLE),
    "ZB1P": ("zb1p", _WHOLE),
    "ZBV": ("zbv", _HALF),
    "DualPipeV, nothing hidden": ("dualpipev", _HALF),
    "DualPipeV, pairs overlapped": ("dualpipev", Costs(0.5, 0.5, 0.5, overlapped=1.1)),
}
"""Title -> schedule and costs. A stage is a quarter of the model in the first two, else an eighth;
the unit is F, I or W of a quarter."""


def run(device: torch.device | str, rounds: int) -> dict[str, Any]:
    """Run the schedules of notebook 15 and return when each action began and ended.

    ``device`` and ``rounds`` change nothing: it is the CPU, once.
    """
    del device, rounds
    schedules = {t: make_schedule(name, RANKS, MICROBATCHES) for t, (name, _) in PLANS.items()}
    costs = {title: costs for title, (_, costs) in PLANS.items()}
    rows = []
    for title, step in run_schedules(schedules, costs, SECONDS).items():
        spans = [
            [[round(s.start, 3), round(s.end, 3)] for s in rank] for rank in step.timeline.spans
        ]
        errors = {"gradient_error": step.gradient_error, "loss_error": step.loss_error}
        rows.append({"title": title, "spans": spans, **errors})
        print(
            f"{title}: {step.timeline.makespan:.1f} units of {SECONDS} s, {step.simulated:g} on "
            f"paper; gradients equal to {step.gradient_error:.0e}"
        )
    return {"about": environment(), "seconds": SECONDS, "steps": rows}


def read_record(report: Mapping[str, Any]) -> dict[str, MeasuredStep]:
    """What ``run`` measured, from its record.

    Raises:
        ValueError: the record does not fit the schedules.
    """
    measured = {}
    for row in report["steps"]:
        name, costs = PLANS[row["title"]]
        schedule = make_schedule(name, RANKS, MICROBATCHES)
        spans = []
        for order, times in zip(schedule.orders, row["spans"], strict=True):
            pairs = zip(order, times, strict=True)
            spans.append(tuple(Span(action, start, end) for action, (start, end) in pairs))
        measured[row["title"]] = MeasuredStep(
            Timeline(row["title"], tuple(spans)),
            simulate(schedule, costs).makespan,
            row["gradient_error"],
            row["loss_error"],
        )
    return measured
