"""Notebook 14's entry: what communication between experts costs, and what hiding it saves.

In the published trace of a forward and backward pair (PD) the GPU computes for 118.2 ms and
communicates for 114.5 ms, and the pair is over after 129.0 ms. Pairs take 13.95 of the 19.926
seconds of a step (ISCA table 4).
"""

from __future__ import annotations

from minids3.sim.bill.ledger import Line, entry
from minids3.sim.bill.lines import DOLLARS_PER_HOUR, PRETRAINING_HOURS
from minids3.sim.comm import PUBLISHED_TRACE
from minids3.sim.pipeline import PUBLISHED_STEP

__all__ = ["exposed_hours", "hidden_hours", "line_14"]


def _pairs_hours() -> float:
    return PRETRAINING_HOURS * PUBLISHED_STEP.pairs / PUBLISHED_STEP.step


def exposed_hours() -> float:
    """Return the GPU-hours in which pairs wait for communication: what hiding leaves over."""
    trace = PUBLISHED_TRACE
    return _pairs_hours() * (trace.wall - trace.compute) / trace.wall


def hidden_hours() -> float:
    """Return by how many GPU-hours pairs would take longer if nothing were hidden in them."""
    trace = PUBLISHED_TRACE
    return _pairs_hours() * (trace.compute + trace.communication - trace.wall) / trace.wall


@entry("14")
def line_14() -> Line:
    """Price the communication that is not hidden, and the one that is."""
    trace, exposed, hidden = PUBLISHED_TRACE, exposed_hours(), hidden_hours()
    waiting = 1e3 * (trace.wall - trace.compute)
    return Line(
        notebook="14",
        title="Waiting for experts on other GPUs, most of it hidden",
        value=exposed,
        unit="GPU-hours",
        formula=(
            f"pairs take {PUBLISHED_STEP.pairs} of {PUBLISHED_STEP.step} s; of a pair's "
            f"{1e3 * trace.wall:.1f} ms {waiting:.1f} are not computing. "
            f"With nothing hidden it would take {1e3 * (trace.compute + trace.communication):.1f}"
        ),
        source="PD (trace of 4 layers, 64 H800); ISCA table 4 (seconds of a step); C",
        kind="computed",
        gpu_hours=PRETRAINING_HOURS,
        dollars=PRETRAINING_HOURS * DOLLARS_PER_HOUR,
        without_hours=PRETRAINING_HOURS + hidden,
        leaves_out=(
            "forwards and backwards that run alone; that the trace's routing is even, and 28 % "
            "of its communication is counting and waiting for others; and the 20 of 132 "
            "multiprocessors that communicate instead of computing"
        ),
    )
