"""Notebook 15's entry: what the pipeline's bubbles cost, and what they would without DualPipe.

A step's parts are published (ISCA table 4): 2.06 of 19.926 seconds are the bubble. Divided by what
one rank of DualPipe does in a step they give the time of a forward, a backward and a pair
[C-bubble]; 1F1B with the same forwards and backwards, simulated, is what it is compared with.
"""

from __future__ import annotations

from minids3.sim.bill.ledger import Line, entry
from minids3.sim.bill.lines import DOLLARS_PER_HOUR, PRETRAINING_HOURS
from minids3.sim.pipeline import PUBLISHED_STEP, Costs, decode_step, make_schedule, simulate

__all__ = ["STAGES", "bubble_hours", "line_15", "longer_by_1f1b"]

STAGES, MICROBATCHES = 16, 120  # TR section 3.2; the micro-batches are inferred [C-bubble]


def bubble_hours() -> float:
    """Return the published bubble's share of the GPU-hours of pre-training."""
    return PRETRAINING_HOURS * PUBLISHED_STEP.bubble / PUBLISHED_STEP.step


def longer_by_1f1b() -> float:
    """Return by how many seconds a step is longer in 1F1B, both schedules simulated.

    The costs are those of ``decode_step``: a forward and a backward alone, and a pair.
    """
    decoded = decode_step()
    costs = decoded.costs
    alone = Costs(costs.forward, costs.input_grad, costs.weight_grad)
    plain = simulate(make_schedule("1f1b", STAGES, MICROBATCHES), alone)
    return plain.makespan - decoded.simulated.makespan


@entry("15")
def line_15() -> Line:
    """Price the idle time of the pipeline, and of 1F1B in its place."""
    hours, longer = bubble_hours(), longer_by_1f1b()
    saved = PRETRAINING_HOURS * longer / PUBLISHED_STEP.step
    decoded = decode_step()
    return Line(
        notebook="15",
        title="Waiting in the pipeline, with DualPipe",
        value=hours,
        unit="GPU-hours",
        formula=(
            f"{PUBLISHED_STEP.bubble} of {PUBLISHED_STEP.step} s of a step, "
            f"{100 * PUBLISHED_STEP.bubble / PUBLISHED_STEP.step:.1f} %; the formula accounts for "
            f"{decoded.formula.time:.2f} s. 1F1B with the same forwards and backwards: "
            f"{longer:.2f} s a step more"
        ),
        source="ISCA table 4 (seconds of a step); TR table 2 (formula); C, minids3.sim.pipeline",
        kind="computed",
        gpu_hours=PRETRAINING_HOURS,
        dollars=PRETRAINING_HOURS * DOLLARS_PER_HOUR,
        without_hours=PRETRAINING_HOURS + saved,
        leaves_out=(
            "whose seconds were published, which is not known: an outer rank's are assumed, and "
            "120 micro-batches; that a forward or a backward alone may hide some of its transfers, "
            "too; and the memory that 1F1B would leave for larger micro-batches"
        ),
    )
