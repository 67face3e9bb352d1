"""Idle time of a pipeline by formula."""

from __future__ import annotations

from minids3.course.registry import Alternative, Mutant, exercise
from minids3.sim.pipeline import Costs, bubble


# fmt: off
def idle_time(schedule, n_stages, forward, input_grad, weight_grad, pair):
    """How long each GPU of a pipeline is idle in one step.

    schedule: "1f1b", "zb1p" or "dualpipe"
    n_stages: how many stages, and as many GPUs; even for DualPipe
    forward, input_grad, weight_grad: time of F, I and W of one micro-batch
    pair: time of a forward and a whole backward that run together
    returns a time in the same unit
    """
    backward = input_grad + weight_grad
    if schedule == "dualpipe":
        once = pair + backward - 3 * weight_grad
        return (n_stages / 2 - 1) * once
    if schedule == "zb1p":
        return (n_stages - 1) * (forward + backward - 2 * weight_grad)
    return (n_stages - 1) * (forward + backward)
# fmt: on


def _idle(schedule, times, one, zb, dual):
    return (
        times["dualpipe" if schedule == "dualpipe" else "other"]
        * {
            "1f1b": one,
            "zb1p": zb,
            "dualpipe": dual,
        }[schedule]
    )


def _formula(schedule, n, f, i, w, pair, **changes):
    b = changes.get("b", i + w)
    times = {"other": n - 1, "dualpipe": n / 2 - 1, **changes.get("times", {})}
    values = {
        "one": f + b,
        "zb": f + b - 2 * w,
        "dual": pair + b - 3 * w,
        **changes.get("values", {}),
    }
    return _idle(schedule, times, **values)


def _zero_bubbles_b(schedule, n, f, i, w, pair):
    return _formula(schedule, n, f, i, w, pair, b=i)


def _all_stages(schedule, n, f, i, w, pair):
    return _formula(schedule, n, f, i, w, pair, times={"other": n, "dualpipe": n / 2})


def _everybody(schedule, n, f, i, w, pair):
    return n * _formula(schedule, n, f, i, w, pair)


def _w_once(schedule, n, f, i, w, pair):
    return _formula(schedule, n, f, i, w, pair, values={"zb": f + i})


def _not_halved(schedule, n, f, i, w, pair):
    return _formula(schedule, n, f, i, w, pair, times={"dualpipe": n - 1})


def _halved_wrongly(schedule, n, f, i, w, pair):
    return _formula(schedule, n, f, i, w, pair, times={"dualpipe": (n - 1) / 2})


def _nothing_hidden(schedule, n, f, i, w, pair):
    return _formula(schedule, n, f, i, w, pair, values={"dual": f + 2 * (i + w) - 3 * w})


def _pair_alone(schedule, n, f, i, w, pair):
    return _formula(schedule, n, f, i, w, pair, values={"dual": pair - 2 * w})


def _dual_two_w(schedule, n, f, i, w, pair):
    return _formula(schedule, n, f, i, w, pair, values={"dual": pair + i + w - 2 * w})


def _forward_alone(schedule, n, f, i, w, pair):
    return _formula(schedule, n, f, i, w, pair, values={"one": f})


def _table(schedule, n_stages, forward, input_grad, weight_grad, pair):
    rounds, waits = {
        "1f1b": (n_stages - 1, forward + input_grad + weight_grad),
        "zb1p": (n_stages - 1, forward + input_grad - weight_grad),
        "dualpipe": ((n_stages - 2) / 2, pair + input_grad - 2 * weight_grad),
    }[schedule]
    return rounds * waits


def _library(schedule, n_stages, forward, input_grad, weight_grad, pair):
    costs = Costs(forward, input_grad, weight_grad, overlapped=pair)
    return bubble(schedule, n_stages, costs).time


def _added_up(schedule, n_stages, forward, input_grad, weight_grad, pair):
    total = 0.0
    for _ in range(n_stages // 2 - 1 if schedule == "dualpipe" else n_stages - 1):
        total += forward + input_grad + weight_grad if schedule == "1f1b" else 0.0
        total += forward + input_grad - weight_grad if schedule == "zb1p" else 0.0
        total += pair + input_grad - 2 * weight_grad if schedule == "dualpipe" else 0.0
    return total


@exercise(
    "pipe-idle",
    solution=idle_time,
    notebook="15_pipelines_and_dualpipe",
    title="Idle time by formula",
    difficulty=1,
    importance=4,
    minutes=6,
    hints=(
        "The report's B is a whole backward. Which two of the function's arguments make it up? "
        "DualPipe's micro-batches enter at both ends: how many stages lie between an end and "
        "the middle?",
        "backward = input_grad + weight_grad\n"
        "1f1b:     (stages - 1) * (forward + backward)\n"
        "zb1p:     (stages - 1) * (forward + backward - 2 weight_grad)\n"
        "dualpipe: (stages / 2 - 1) * (pair + backward - 3 weight_grad)",
    ),
    mutants=[
        Mutant(
            "zero_bubbles_b",
            _zero_bubbles_b,
            "You took the input gradient for B. That is the Zero Bubble paper's B; the report's "
            "formulas mean the whole backward, I + W.",
        ),
        Mutant(
            "all_stages",
            _all_stages,
            "You counted a stage too many. A pipeline of one stage is never idle: P - 1, and "
            "P / 2 - 1 for DualPipe.",
        ),
        Mutant(
            "everybody",
            _everybody,
            "That is the idle time of all GPUs together. Asked is that of one.",
        ),
        Mutant(
            "w_once",
            _w_once,
            "ZB1P's formula takes W off twice: once because it no longer holds up the next rank, "
            "once because it fills what is left.",
        ),
        Mutant(
            "not_halved",
            _not_halved,
            "DualPipe fills from both ends: half the stages have to be waited for, P / 2 - 1.",
        ),
        Mutant(
            "halved_wrongly",
            _halved_wrongly,
            "You halved P - 1. It is P halved, less 1: with two stages each GPU is at once an "
            "end and the middle, and nothing has to be waited for.",
        ),
        Mutant(
            "nothing_hidden",
            _nothing_hidden,
            "You put F + B where DualPipe's formula has the pair. How long the pair takes is "
            "what overlapping changes: use the argument.",
        ),
        Mutant(
            "pair_alone",
            _pair_alone,
            "DualPipe's formula has a whole backward beside the pair. You left it out.",
        ),
        Mutant(
            "dual_two_w",
            _dual_two_w,
            "DualPipe's formula takes W off three times; two is ZB1P's.",
        ),
        Mutant(
            "forward_alone",
            _forward_alone,
            "1F1B waits on the way there and on the way back: F + B, not F.",
        ),
    ],
    alternatives=[
        Alternative("table", _table),
        Alternative("library", _library),
        Alternative("added_up", _added_up),
    ],
)
def check_idle_time(c):
    """Times of unlike size, equal times, a long W, a slow pair, the shortest pipelines."""
    stages = 2 * c.size(3, 8)
    unit = c.choice([0.013, 0.017, 0.023])
    f, i, w, pair = 5 * unit, 7 * unit, 4 * unit, 13 * unit
    got = c.call("1f1b", stages, f, i, w, pair, label=f"runs for 1F1B with {stages} stages")
    # In units of `unit`, counted out: 5 + 7 + 3, less 3 twice; 13 + 10, less 3 three times.
    with c.part():
        label = "1F1B: F + B for every other stage"
        c.close(got, 16 * unit * (stages - 1), label=label)
    with c.part():
        got = c.call("zb1p", stages, f, i, w, pair)
        c.close(got, 8 * unit * (stages - 1), label="ZB1P: two Ws less")
    with c.part():
        got = c.call("dualpipe", stages, f, i, w, pair)
        c.close(got, 12 * unit * (stages // 2 - 1), label="DualPipe: from both ends, with pairs")
    for name, wanted in (("1f1b", 9.0), ("zb1p", 3.0)):
        with c.part():
            got = c.call(name, 4, 1.0, 1.0, 1.0, 3.0)
            c.close(got, wanted, label=f"{name}, 4 stages, F = I = W = 1: {wanted:g}")
    with c.part():
        got = c.call("dualpipe", 8, 1.0, 1.0, 1.0, 3.0)
        c.close(got, 6.0, label="dualpipe, 8 stages, nothing hidden: 6")
        got = c.call("dualpipe", 8, 1.0, 1.0, 1.0, 2.0)
        c.close(got, 3.0, label="dualpipe, 8 stages, the forward hidden: 3")
    with c.part():
        slow = (4 * unit, 3 * unit, 5 * unit, 14 * unit)  # F, I, W, and more than F + B
        got = c.call("zb1p", stages, *slow)
        c.close(got, 2 * unit * (stages - 1), label="ZB1P, where W takes longer than I")
        got = c.call("dualpipe", stages, *slow)
        label = "DualPipe, where a pair takes longer than its halves"
        c.close(got, 7 * unit * (stages // 2 - 1), label=label)
    for name, shortest in (("1f1b", 1), ("dualpipe", 2)):
        with c.part():
            got = c.call(name, shortest, f, i, w, pair)
            c.close(got, 0.0, label=f"{name} with {shortest} stages is never idle")
