"""The published pipeline schedules, generated: what each rank does, in which order.

Orders are equal, action for action, to those of PyTorch 2.13 (``torch.distributed.pipelining``)
and, for DualPipe and DualPipeV, to those of DP; ``tests/sim/oracles`` holds recordings of both.
"""

from __future__ import annotations

from collections.abc import Callable

from minids3.sim.pipeline.actions import Schedule
from minids3.sim.pipeline.one_stream import (
    gpipe,
    interleaved_1f1b,
    interleaved_zb,
    one_f_one_b,
    zb1p,
)
from minids3.sim.pipeline.two_streams import dualpipe, dualpipev, zbv

__all__ = ["SCHEDULES", "make_schedule"]

SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
    "interleaved_1f1b": interleaved_1f1b,
    "zb1p": zb1p,
    "interleaved_zb": interleaved_zb,
    "zbv": zbv,
    "dualpipe": dualpipe,
    "dualpipev": dualpipev,
}


def make_schedule(name: str, n_ranks: int, n_microbatches: int, **options: int) -> Schedule:
    """Generate the schedule called ``name``; the interleaved ones take ``stages_per_rank``.

    Raises:
        ValueError: no schedule has that name, or it cannot be had in these sizes.
    """
    if name not in SCHEDULES:
        raise ValueError(f"no schedule {name!r}; choose one of {', '.join(SCHEDULES)}")
    if options and not name.startswith("interleaved"):
        raise ValueError(f"{name} takes no {', '.join(options)}: its stages follow from its ranks")
    return SCHEDULES[name](n_ranks, n_microbatches, **options)
