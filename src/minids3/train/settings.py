"""How to train: the settings of a run, in groups, and what they say at every step.

Every setting has a name of its own, so ``TrainConfig(steps=60, lr=3e-3)``, ``cfg.replace(lr=1e-3)``
and ``cfg.lr`` need no group; ``cfg.schedule`` shows what belongs together. The defaults of
optimizer, balancing and MTP are those of TR section 4.2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

from minids3.train.schedule import Phase, Schedule, lr_at

__all__ = [
    "Balancing",
    "Batch",
    "Compute",
    "Mtp",
    "Optimizer",
    "Position",
    "Rates",
    "TrainConfig",
    "Upkeep",
]


@dataclass(frozen=True)
class Batch:
    """What one step sees.

    batch_size: rows; a ``Schedule`` (rows over tokens) makes the batch grow.
    seq_len: predicted positions of a row.
    micro_batch_size: rows of one pass; a batch is passed through in as many as it takes, and the
        step is that of the whole batch. None: all at once.
    """

    batch_size: int | Schedule = 16
    seq_len: int = 128
    micro_batch_size: int | None = None


@dataclass(frozen=True)
class Rates:
    """The learning rate: a ``Schedule`` over tokens, or a plateau in steps.

    lr: the plateau, or the whole ``Schedule`` (the three others then do not count).
    warmup_steps: length of the linear ramp before it.
    decay_start: first step of the cosine after it; default right after the ramp.
    min_lr: where the cosine ends.
    """

    lr: float | Schedule = 2e-3
    warmup_steps: int = 0
    decay_start: int | None = None
    min_lr: float = 0.0


@dataclass(frozen=True)
class Optimizer:
    """AdamW, and the average of the weights beside it.

    betas, weight_decay: of AdamW.
    grad_clip: largest norm of all gradients together.
    moments: how the optimizer stores its own.
    ema: decay of the exponential moving average of the weights (TR section 3.2.3), kept in the
        CPU's memory; 0 keeps none.
    """

    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    moments: Literal["fp32", "bf16"] = "fp32"
    ema: float = 0.0


@dataclass(frozen=True)
class Balancing:
    """Keeping experts evenly busy, for models that have some.

    bias_update_speed: how far the biases move after each step, a number or a ``Schedule``.
    bias_update_until: from this step on they rest; for a plain number.
    seq_balance_weight: of the loss per sequence.
    batch_balance_weight: of the auxiliary loss over the batch.
    """

    bias_update_speed: float | Schedule = 0.001
    bias_update_until: int | None = None
    seq_balance_weight: float = 1e-4
    batch_balance_weight: float = 0.0


@dataclass(frozen=True)
class Mtp:
    """The loss of the MTP modules, for models that have some.

    mtp_weight: lambda, by which their mean loss counts; a number or a ``Schedule``. At 0 they are
        not run.
    mtp_weight_late, mtp_late_from: lambda from that step on; for a plain number.
    """

    mtp_weight: float | Schedule = 0.3
    mtp_weight_late: float = 0.1
    mtp_late_from: int | None = None


@dataclass(frozen=True)
class Compute:
    """How a step is computed.

    precision: ``"bf16"`` and ``"fp8"`` are the GPU's own arithmetic there and an emulation on a
        CPU; weights stay fp32 masters in each.
    recompute: forget norms, MLA's up-projections and SwiGLU's output, and compute them again in
        the backward pass (TR section 3.2.3).
    """

    precision: Literal["fp32", "bf16", "fp8"] = "fp32"
    recompute: bool = False


@dataclass(frozen=True)
class Upkeep:
    """What happens between steps; steps of 0 mean never (the last step is evaluated in any case).

    eval_every, eval_batches: when, and on how many batches.
    save_every, keep: when checkpoints are written, and how many of the newest stay.
    """

    eval_every: int = 0
    eval_batches: int = 8
    save_every: int = 0
    keep: int = 2


class Position(NamedTuple):
    """Where a run stands: steps done, tokens seen, rows taken from the data."""

    step: int = 0
    tokens: int = 0
    rows: int = 0


GROUPS: dict[str, type] = {
    "batch": Batch,
    "schedule": Rates,
    "optimizer": Optimizer,
    "balance": Balancing,
    "mtp": Mtp,
    "compute": Compute,
    "upkeep": Upkeep,
}
_GROUP_OF = {f.name: group for group, kind in GROUPS.items() for f in fields(kind)}
# What may be changed in the middle of a run: when to look and save, and what changes no number but
# by rounding (another split of the batch adds in another order).
FREE = ("eval_every", "eval_batches", "save_every", "keep", "micro_batch_size", "recompute")


@dataclass(frozen=True, init=False)
class TrainConfig:
    """The settings of a run: its length, its seed, and seven groups.

    Args:
        steps: how long, in optimizer steps; or give ``tokens``.
        tokens: the run ends with the step that reaches so many.
        seed: of the data's order; the model is seeded where it is built.
        batch: and every other group by its name, or any setting of a group by its own.

    Raises:
        TypeError: there is no such setting.
        ValueError: a value that no run can have.
    """

    steps: int | None = None
    tokens: int | None = None
    seed: int = 0
    batch: Batch = field(default_factory=Batch)
    schedule: Rates = field(default_factory=Rates)
    optimizer: Optimizer = field(default_factory=Optimizer)
    balance: Balancing = field(default_factory=Balancing)
    mtp: Mtp = field(default_factory=Mtp)
    compute: Compute = field(default_factory=Compute)
    upkeep: Upkeep = field(default_factory=Upkeep)

    def __init__(
        self, steps: int | None = None, *, tokens: int | None = None, seed: int = 0, **settings: Any
    ) -> None:
        for name, value in (("steps", steps), ("tokens", tokens), ("seed", seed)):
            object.__setattr__(self, name, value)
        groups = {name: settings.pop(name, kind()) for name, kind in GROUPS.items()}
        for name, value in settings.items():
            if name not in _GROUP_OF:
                known = ", ".join(["steps", "tokens", "seed", *GROUPS, *_GROUP_OF])
                raise TypeError(f"no setting {name!r}; there are {known}")
            groups[_GROUP_OF[name]] = replace(groups[_GROUP_OF[name]], **{name: value})
        for name, group in groups.items():
            object.__setattr__(self, name, group)
        _validate(self)

    def __getattr__(self, name: str) -> Any:
        """A setting of a group by its own name."""
        if name not in _GROUP_OF:
            raise AttributeError(f"no setting {name!r}; there are {', '.join(_GROUP_OF)}")
        return getattr(object.__getattribute__(self, _GROUP_OF[name]), name)

    def replace(self, **changes: Any) -> TrainConfig:
        """Return a copy with some settings changed."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        if "tokens" in changes and "steps" not in changes:
            own["steps"] = None
        if "steps" in changes and "tokens" not in changes:
            own["tokens"] = None
        return TrainConfig(**{**own, **changes})

    def flat(self) -> dict[str, Any]:
        """Every setting by its own name, as plain JSON types."""
        own: dict[str, Any] = {"steps": self.steps, "tokens": self.tokens, "seed": self.seed}
        for group in GROUPS:
            own |= {f.name: getattr(getattr(self, group), f.name) for f in fields(GROUPS[group])}
        return {name: _plain(value) for name, value in own.items()}

    @classmethod
    def from_flat(cls, settings: dict[str, Any]) -> TrainConfig:
        """Build from what ``flat`` returned."""
        return cls(**{name: _rich(value) for name, value in settings.items()})

    def batch_rows(self, tokens: int) -> int:
        """Rows of the batch that follows ``tokens`` tokens."""
        size = self.batch.batch_size
        return round(size(tokens)) if isinstance(size, Schedule) else size

    def finished(self, at: Position) -> bool:
        """Whether the run is over."""
        if self.steps is not None:
            return at.step >= self.steps
        assert self.tokens is not None
        return at.tokens >= self.tokens

    def positions(self) -> Iterator[Position]:
        """Where every step of the run begins, and at last where it ends, by the settings alone."""
        at = Position()
        while not self.finished(at):
            yield at
            rows = self.batch_rows(at.tokens)
            at = Position(at.step + 1, at.tokens + rows * self.batch.seq_len, at.rows + rows)
        yield at

    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self._total_steps

    @cached_property
    def _total_steps(self) -> int:
        if self.steps is not None:
            return self.steps
        if not isinstance(self.batch.batch_size, Schedule):
            assert self.tokens is not None
            return math.ceil(self.tokens / (self.batch.batch_size * self.batch.seq_len))
        *_, last = self.positions()
        return last.step

    def lr_at(self, step: int, tokens: int = 0) -> float:
        """Learning rate of ``step`` (0-based), after which ``tokens`` will have been seen."""
        rates = self.schedule
        if isinstance(rates.lr, Schedule):
            return rates.lr(tokens)
        return lr_at(
            step,
            steps=self.total_steps(),
            lr=rates.lr,
            warmup_steps=rates.warmup_steps,
            decay_start=rates.decay_start,
            min_lr=rates.min_lr,
        )

    def bias_speed_at(self, step: int, tokens: int = 0) -> float:
        """How far the experts' biases move after ``step`` (0-based)."""
        own = self.balance
        if isinstance(own.bias_update_speed, Schedule):
            return own.bias_update_speed(tokens)
        stopped = own.bias_update_until is not None and step >= own.bias_update_until
        return 0.0 if stopped else own.bias_update_speed

    def mtp_weight_at(self, step: int, tokens: int = 0) -> float:
        """Lambda, the weight of the mean MTP loss, at ``step`` (0-based)."""
        own = self.mtp
        if isinstance(own.mtp_weight, Schedule):
            return own.mtp_weight(tokens)
        late = own.mtp_late_from is not None and step >= own.mtp_late_from
        return own.mtp_weight_late if late else own.mtp_weight

    def differs_before(self, other: TrainConfig, at: Position) -> str | None:
        """The first setting in which ``other`` would not have come to ``at`` by the same numbers.

        What lies ahead may differ: a run may be lengthened, its decay moved. What only says when to
        look or to save may differ, too.
        """
        mine, theirs = self.flat(), other.flat()
        for name in mine:
            if name in FREE or mine[name] == theirs[name]:
                continue
            if name not in _PLANNED or not self._same_past(other, at):
                return name
        return None

    def _same_past(self, other: TrainConfig, at: Position) -> bool:
        """Whether both plan the same steps up to ``at``."""
        for one, two in zip(self.positions(), other.positions(), strict=False):
            if one.step >= at.step:
                return True
            if one != two:
                return False
            after = one.tokens + self.batch_rows(one.tokens) * self.batch.seq_len
            for plan in ("lr_at", "bias_speed_at", "mtp_weight_at"):
                if getattr(self, plan)(one.step, after) != getattr(other, plan)(one.step, after):
                    return False
        return False


# Settings that say what happens when: two of them may differ and still agree so far.
_PLANNED = (
    *("steps", "tokens", "lr", "warmup_steps", "decay_start", "min_lr", "batch_size"),
    *("bias_update_speed", "bias_update_until", "mtp_weight", "mtp_weight_late", "mtp_late_from"),
)


def _plain(value: Any) -> Any:
    if isinstance(value, Schedule):
        return {"phases": [list(phase) for phase in value.phases], "start": value.start}
    return list(value) if isinstance(value, tuple) else value


def _rich(value: Any) -> Any:
    if isinstance(value, dict):
        return Schedule(tuple(Phase(*phase) for phase in value["phases"]), value["start"])
    return tuple(value) if isinstance(value, list) else value


def _validate(cfg: TrainConfig) -> None:
    """Reject settings that no run can have, naming the setting and what would be right."""
    if (cfg.steps is None) == (cfg.tokens is None):
        raise ValueError(f"give steps or tokens, got steps={cfg.steps!r}, tokens={cfg.tokens!r}")
    for name, group in GROUPS.items():
        if not isinstance(getattr(cfg, name), group):
            raise TypeError(f"{name} must be a {group.__name__}, got {getattr(cfg, name)!r}")
    flat = {f.name: getattr(getattr(cfg, g), f.name) for g in GROUPS for f in fields(GROUPS[g])}
    flat |= {"steps": cfg.steps, "tokens": cfg.tokens, "seed": cfg.seed}
    for names, least, whole, optional in _BOUNDS:
        for name in names.split():
            value = flat[name]
            if isinstance(value, Schedule) and name in _SCHEDULED:
                continue
            if value is None and optional:
                continue
            kinds = (int,) if whole else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
                kind = "a whole number" if whole else "a finite number"
                raise ValueError(f"{name}={value!r} must be {kind}")
            if value < least or (value == 0 and name in _ABOVE):
                bound = "greater than 0" if least == 1 or name in _ABOVE else f"{least} or more"
                raise ValueError(f"{name}={value!r} must be {bound}")
    if not (len(cfg.optimizer.betas) == 2 and all(0 <= beta < 1 for beta in cfg.optimizer.betas)):
        raise ValueError(f"betas={cfg.optimizer.betas!r} must be two numbers in [0, 1)")
    if not cfg.optimizer.ema < 1:
        raise ValueError(f"ema={cfg.optimizer.ema!r} must be below 1")
    for name, allowed in (("moments", ("fp32", "bf16")), ("precision", ("fp32", "bf16", "fp8"))):
        if flat[name] not in allowed:
            raise ValueError(f"{name}={flat[name]!r} is unknown; choose {', '.join(allowed)}")
    if not isinstance(cfg.compute.recompute, bool):
        raise ValueError(f"recompute={cfg.compute.recompute!r} must be True or False")
    cfg.lr_at(0)


# Names, the least value, whether whole, whether None is allowed.
_BOUNDS = (
    ("steps tokens micro_batch_size", 1, True, True),
    ("batch_size seq_len eval_batches keep", 1, True, False),
    ("warmup_steps eval_every save_every seed", 0, True, False),
    ("decay_start bias_update_until mtp_late_from", 0, True, True),
    ("lr grad_clip min_lr weight_decay ema", 0, False, False),
    ("bias_update_speed seq_balance_weight batch_balance_weight", 0, False, False),
    ("mtp_weight mtp_weight_late", 0, False, False),
)
_ABOVE = ("lr", "grad_clip")
_SCHEDULED = ("lr", "batch_size", "bias_update_speed", "mtp_weight")
