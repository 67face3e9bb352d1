"""Pipeline parallelism on paper: schedules, a check, a simulator, and formulas for idle time.

    schedule = make_schedule("dualpipev", n_ranks=4, n_microbatches=10)
    timeline = simulate(schedule, Costs(overlapped=2.2))
    timeline.idle, peak_activations(schedule), bubble("dualpipev", 4)

``viz.pipeline`` draws timelines.
"""

from minids3.sim.pipeline.actions import Action, Schedule
from minids3.sim.pipeline.bubbles import (
    PUBLISHED_STEP,
    Bubble,
    DecodedStep,
    PublishedStep,
    bubble,
    decode_step,
)
from minids3.sim.pipeline.checking import check_schedule, schedule_problems
from minids3.sim.pipeline.one_stream import (
    gpipe,
    interleaved_1f1b,
    interleaved_zb,
    one_f_one_b,
    zb1p,
)
from minids3.sim.pipeline.schedules import SCHEDULES, make_schedule
from minids3.sim.pipeline.simulate import Costs, Span, Timeline, peak_activations, simulate
from minids3.sim.pipeline.two_streams import dualpipe, dualpipev, zbv

__all__ = [
    "PUBLISHED_STEP",
    "SCHEDULES",
    "Action",
    "Bubble",
    "Costs",
    "DecodedStep",
    "PublishedStep",
    "Schedule",
    "Span",
    "Timeline",
    "bubble",
    "check_schedule",
    "decode_step",
    "dualpipe",
    "dualpipev",
    "gpipe",
    "interleaved_1f1b",
    "interleaved_zb",
    "make_schedule",
    "one_f_one_b",
    "peak_activations",
    "schedule_problems",
    "simulate",
    "zb1p",
    "zbv",
]
