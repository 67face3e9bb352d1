"""Telling a loss spike from a bad batch."""

from __future__ import annotations

import math
import statistics

import numpy as np
import torch

from minids3.course.registry import Alternative, Mutant, exercise


# fmt: off
def find_events(losses, window=50, factor=8.0):
    """Where a loss curve jumps up, and whether it comes back.

    losses: list of numbers, one per step. The line of step t: the median of
    the `window` losses before t, plus `factor` times the median of their
    distances from it. An event starts at a step above its line, and lasts
    as long as the losses stay above THAT line; then the search goes on. The
    first `window` steps have no line.
    returns a list of (start, length, kind): "bad batch" (one step), "spike"
    (longer), "open" (still above the line when the record ends)
    """
    losses = np.asarray(losses, dtype=float)
    events, t = [], window
    while t < len(losses):
        past = losses[t - window:t]
        level = np.median(past)
        line = level + factor * np.median(abs(past - level))
        start = t
        while t < len(losses) and losses[t] > line:
            t += 1
        if t > start:
            kind = "spike" if t - start > 1 else "bad batch"
            events.append((start, t - start,
                           "open" if t == len(losses) else kind))
        else:
            t += 1
    return events
# fmt: on


def _search(losses, window, factor, line_of, moving=False, kind_of=None, single=False):
    """The solution with another line, or another way to follow an event."""
    events, t, n = [], window, len(losses)
    while t < n:
        line, start = line_of(losses, t, window, factor), t
        while t < n and losses[t] > line:
            t += 1
            if single:
                break
            if moving and t < n:
                line = line_of(losses, t, window, factor)
        length = t - start
        if length:
            kind = "open" if t == n else "spike" if length > 1 else "bad batch"
            events.append((start, length, kind_of(start, length, kind) if kind_of else kind))
        t = max(t, start + 1)
    return events


def _robust(losses, t, window, factor):
    past = losses[t - window : t]
    level = statistics.median(past)
    return level + factor * statistics.median(abs(x - level) for x in past)


def _mean_and_deviation(losses, window=50, factor=8.0):
    def line(losses, t, window, factor):
        past = losses[t - window : t]
        return statistics.fmean(past) + factor * statistics.pstdev(past)

    return _search(losses, window, factor, line)


def _median_and_deviation(losses, window=50, factor=8.0):
    def line(losses, t, window, factor):
        past = losses[t - window : t]
        return statistics.median(past) + factor * statistics.pstdev(past)

    return _search(losses, window, factor, line)


def _mean_level(losses, window=50, factor=8.0):
    def line(losses, t, window, factor):
        past = losses[t - window : t]
        level = statistics.fmean(past)
        return level + factor * statistics.median(abs(x - level) for x in past)

    return _search(losses, window, factor, line)


def _line_moves_along(losses, window=50, factor=8.0):
    return _search(losses, window, factor, _robust, moving=True)


def _each_step_alone(losses, window=50, factor=8.0):
    return _search(losses, window, factor, _robust, single=True)


def _whole_curve(losses, window=50, factor=8.0):
    def line(losses, t, window, factor):
        level = statistics.median(losses)
        return level + factor * statistics.median(abs(x - level) for x in losses)

    return _search(losses, window, factor, line)


def _both_sides(losses, window=50, factor=8.0):
    mirrored = []
    for t, x in enumerate(losses):
        past = losses[max(t - window, 0) : t] or [x]
        level = statistics.median(past)
        mirrored.append(level + abs(x - level))
    return _search(mirrored, window, factor, _robust)


def _never_open(losses, window=50, factor=8.0):
    def kind(start, length, kind):
        return "spike" if length > 1 else "bad batch"

    return _search(losses, window, factor, _robust, kind_of=kind)


def _from_the_first_step(losses, window=50, factor=8.0):
    def line(losses, t, window, factor):
        past = losses[max(t - window, 0) : t] or losses[:1]
        return _robust(past, len(past), len(past), factor)

    padded = _search(losses, 0, factor, lambda x, t, w, f: line(x, t, window, f))
    return padded


def _level_only(losses, window=50, factor=8.0):
    def line(losses, t, window, factor):
        return factor * statistics.median(losses[t - window : t])

    return _search(losses, window, factor, line)


def _last_step(losses, window=50, factor=8.0):
    return [(start, start + n - 1, kind) for start, n, kind in find_events(losses, window, factor)]


def _pausing(losses, window, factor, pause):
    """The solution with a pause after each event."""
    events, t = [], window
    while t < len(losses):
        found = find_events(losses[t - window :], window, factor)
        if not found:
            break
        start, n, kind = found[0]
        events.append((start + t - window, n, kind))
        t += start - window + n + pause
    return events


def _skips_a_window(losses, window=50, factor=8.0):
    return _pausing(losses, window, factor, window)


def _skips_one(losses, window=50, factor=8.0):
    return _pausing(losses, window, factor, 1)


def _window_with_t(losses, window=50, factor=8.0):
    def line(losses, t, window, factor):
        return _robust(losses, t + 1, window, factor)

    return _search(losses, window, factor, line)


def _at_the_line(losses, window=50, factor=8.0):
    def line(losses, t, window, factor):
        return math.nextafter(_robust(losses, t, window, factor), -math.inf)

    return _search(losses, window, factor, line)


def _last_is_bad_batch(losses, window=50, factor=8.0):
    def kind(start, length, kind):
        return "bad batch" if length == 1 else kind

    return _search(losses, window, factor, _robust, kind_of=kind)


def _events_left_out(losses, window=50, factor=8.0):
    events, calm, t, n = [], list(losses[:window]), window, len(losses)
    while t < n:
        line, start = _robust(calm, len(calm), window, factor), t
        while t < n and losses[t] > line:
            t += 1
        if t > start:
            kind = "open" if t == n else "spike" if t - start > 1 else "bad batch"
            events.append((start, t - start, kind))
        else:
            calm.append(losses[t])
            t += 1
    return events


def _finds_nothing(losses, window=50, factor=8.0):
    return []


def _counts_from_one(losses, window=50, factor=8.0):
    return [(start + 1, n, kind) for start, n, kind in find_events(losses, window, factor)]


def _defaults_built_in(losses, window=50, factor=8.0):
    return find_events(losses, 50, 8.0)


def _two_are_no_spike(losses, window=50, factor=8.0):
    def kind(start, length, kind):
        return "bad batch" if kind == "spike" and length < 4 else kind

    return _search(losses, window, factor, _robust, kind_of=kind)


def _with_torch(losses, window=50, factor=8.0):
    x = torch.as_tensor(losses, dtype=torch.float64)
    events, line = [], None
    for t in range(window, len(x)):
        if line is None:
            past = x[t - window : t]
            level = past.median()
            limit = level + factor * (past - level).abs().median()
        else:
            limit = line
        if x[t] > limit:
            if line is None:
                line, start = limit, t
        elif line is not None:
            events.append((start, t - start, "bad batch" if t == start + 1 else "spike"))
            line = None
            # This step has been found to be below the old line; its own decides.
            past = x[t - window : t]
            level = past.median()
            limit = level + factor * (past - level).abs().median()
            if x[t] > limit:
                line, start = limit, t
    if line is not None:
        events.append((start, len(x) - start, "open"))
    return events


def _plain(losses, window=50, factor=8.0):
    return _search(list(losses), window, factor, _robust)


@exercise(
    "run-spikes",
    solution=find_events,
    notebook="12_training_run",
    title="One bad batch, or a broken model?",
    difficulty=4,
    importance=3,
    minutes=15,
    hints=(
        "Ten steps of a spike lie in the window of the step after it. What do they do to a mean "
        "and a standard deviation, and what to a median? And if the line were drawn anew at "
        "every step, what would a model that never comes back look like after half a window?",
        "t = window\n"
        "as long as t is inside the record:\n"
        "    line of t, from the window losses before it (two medians)\n"
        "    start = t; go on while the loss is above this one line\n"
        "    moved at all? an event: (start, how many steps, kind), open if the record is over\n"
        "    otherwise t + 1",
    ),
    mutants=[
        Mutant(
            "mean_and_deviation",
            _mean_and_deviation,
            "Your line is made of mean and standard deviation. One bad batch in the window lifts "
            "both, and hides the next event. Take medians.",
        ),
        Mutant(
            "median_and_deviation",
            _median_and_deviation,
            "You measure distance by the standard deviation. One bad batch in the window lifts "
            "it, and hides the next event. Take the median of the distances.",
        ),
        Mutant(
            "mean_level",
            _mean_level,
            "Your level is the mean. One bad batch in the window lifts it, and hides the next "
            "event. Take the median there, too.",
        ),
        Mutant(
            "line_moves_along",
            _line_moves_along,
            "Your line moves while an event lasts. A model that does not come back then becomes "
            "the new normal: keep the line of the event's first step.",
        ),
        Mutant(
            "each_step_alone",
            _each_step_alone,
            "You report every high step as an event of its own. Steps in a row are one event, "
            "and its length is what tells a spike from a bad batch.",
        ),
        Mutant(
            "whole_curve",
            _whole_curve,
            "Your line comes from the whole curve, future included. Losses fall while a model "
            "learns: compare with the window just before.",
        ),
        Mutant(
            "both_sides",
            _both_sides,
            "You also report losses that are too low. Those are easy batches; only a jump up is "
            "an event.",
        ),
        Mutant(
            "never_open",
            _never_open,
            "An event that has not ended when the record does is open: nobody knows yet whether "
            "the model comes back.",
        ),
        Mutant(
            "from_the_first_step",
            _from_the_first_step,
            "You judged steps that have fewer than `window` losses before them. Two or three "
            "losses make no line.",
        ),
        Mutant(
            "level_only",
            _level_only,
            "You multiplied the level by factor. The line lies factor times the usual distance "
            "ABOVE the level.",
        ),
        Mutant(
            "last_step",
            _last_step,
            "The second number is the event's length in steps, not the place of its last step.",
        ),
        Mutant(
            "skips_a_window",
            _skips_a_window,
            "After an event you wait for a whole new window. The search goes on at the next "
            "step: medians bear with an event in their window.",
        ),
        Mutant(
            "defaults_built_in",
            _defaults_built_in,
            "You built window 50 and factor 8 in. Use the arguments.",
        ),
        Mutant(
            "two_are_no_spike",
            _two_are_no_spike,
            "You call short events bad batches. One step is a batch; if the next batch is bad as "
            "well, it is the model.",
        ),
        Mutant(
            "skips_one",
            _skips_one,
            "You skip the step that ended an event. It may begin the next one: compare it "
            "with its own line.",
        ),
        Mutant(
            "window_with_t",
            _window_with_t,
            "Your window holds step t itself. It ends with the step before.",
        ),
        Mutant(
            "at_the_line",
            _at_the_line,
            "You count a loss that lies exactly on its line. Only one above it is an event: "
            "> and not >=.",
        ),
        Mutant(
            "last_is_bad_batch",
            _last_is_bad_batch,
            "You call a single high step at the very end a bad batch. Whether the next one is "
            "high, too, is not known yet: it is open.",
        ),
        Mutant(
            "events_left_out",
            _events_left_out,
            "You left the losses of an event out of later windows. A window is all the losses "
            "just before a step, the high ones included.",
        ),
        Mutant(
            "finds_nothing",
            _finds_nothing,
            "You reported nothing at all. Is an event appended, and is the loop entered?",
        ),
        Mutant(
            "counts_from_one",
            _counts_from_one,
            "Your starts are one too high. Steps count from 0.",
        ),
    ],
    alternatives=[
        Alternative("with_torch", _with_torch),
        Alternative("plain", _plain),
    ],
)
def check_spikes(c):
    """A falling curve with planted events: alone, close, low, open; other settings; by hand."""
    base = _curve(c, c.size(420, 460))
    calm = c.call(list(base), label="runs on a calm curve that falls")
    c.equal(_plain_list(calm), [], label="and finds no event in it")
    first, second = c.size(110, 130), c.size(150, 160)
    with c.part():
        one = _plant(base, (first, 1, 1.0))
        label = "a single high step is a bad batch"
        c.equal(_plain_list(c.call(one)), [(first, 1, "bad batch")], label=label)
    with c.part():
        length = c.size(5, 12)
        long = _plant(base, (second, length, 0.9))
        label = "several in a row are one spike, with its length"
        c.equal(_plain_list(c.call(long)), [(second, length, "spike")], label=label)
    with c.part():
        far = first + 25
        heights = ((first, 1, 2.0), (first + 9, 2, 0.8), (far, 1, 40.0), (far + 6, 2, 0.5))
        two = _plant(base, *heights, (300, 3, 0.8))
        wanted = [(first, 1, "bad batch"), (first + 9, 2, "spike"), (far, 1, "bad batch")]
        wanted += [(far + 6, 2, "spike"), (300, 3, "spike")]
        label = "an event in the window does not hide the next one"
        c.equal(_plain_list(c.call(two)), wanted, label=label)
    with c.part():
        low = _plant(base, (200, 2, -0.8))
        c.equal(_plain_list(c.call(low)), [], label="an easy batch is no event")
    with c.part():
        start = len(base) - c.size(90, 110)
        open_ = _plant(base, (first, 1, 1.0), (start, len(base) - start, 0.9))
        wanted = [(first, 1, "bad batch"), (start, len(base) - start, "open")]
        label = "a model that does not come back is an open event, however long"
        c.equal(_plain_list(c.call(open_)), wanted, label=label)
    with c.part():
        early = _plant(base, (c.size(8, 20), 1, 2.0))
        c.equal(_plain_list(c.call(early)), [], label="the first window has no line")
    with c.part():
        # Three values in turn: the median distance is one step, whichever median is taken.
        unit = c.choice([0.01, 0.02, 0.05])
        flat = [2.0 + unit * (t % 3 - 1) for t in range(160)]
        early, later = c.size(32, 44), c.size(120, 140)
        spiky = _plant(flat, (early, 1, 99 * unit), (90, 2, 15 * unit), (later, 3, 60 * unit))
        got = _plain_list(c.call(spiky, 30, 30.0))
        wanted = [(early, 1, "bad batch"), (later, 3, "spike")]
        c.equal(got, wanted, label="another window and another factor")
    with c.part():
        got = _plain_list(c.call([0.7] * 9 + [0.705] + [0.7] * 4, 5, 8.0))
        label = "a flat curve's line is its median: on it is not above it"
        c.equal(got, [(9, 1, "bad batch")], label=label)
        got = _plain_list(c.call([2.0, 3.0], 5))
        c.equal(got, [], label="a record shorter than the window has none")
    with c.part():
        got = _plain_list(c.call([1.0, 2.0, 5.0, 4.0, 6.0, 88.0, 19.0, 10.0, 10.0, 5.0], 5, 8.0))
        label = "the step that ends an event can begin the next one"
        c.equal(got, [(5, 1, "bad batch"), (6, 1, "bad batch")], label=label)
    with c.part():
        small = [7, 7, 3, 3, 2, 12, 4, 2, 2, 4, 7, 3, 9, 4, 9, 2, 5, 2, 4, 9]
        got = _plain_list(c.call([float(x) for x in small], 5, 2.0))
        wanted = [(5, 1, "bad batch"), (9, 6, "spike"), (19, 1, "open")]
        c.equal(got, wanted, label="a small curve that can be worked out by hand")
    with c.part():
        # Median 3, median distance 1: a line at 5. With a mean or a deviation it is at 8 to 20.
        unit = c.choice([0.25, 0.5, 2.0])
        curves = [[1, 2, 3, 4, 20, x, 2] for x in (4.5, 6.5, 10, 12.5, 15.5, 18.5)]
        got = [_plain_list(c.call([unit * x for x in curve], 5, 2.0)) for curve in curves]
        label = "after 1, 2, 3, 4, 20 the line of factor 2 is at 5: both are medians"
        c.equal(got, [[]] + [[(5, 1, "bad batch")]] * 5, label=label)


def _curve(c, n):
    """Falls slowly, with even noise that stays well inside 8 times its median."""
    noise = 0.06 * (c.rand(n) - 0.5)
    return [2.0 + 1.2 * 0.97**t + float(x) for t, x in enumerate(noise)]


def _plant(curve, *events):
    new = list(curve)
    for start, length, height in events:
        for t in range(start, start + length):
            new[t] += height
    return new


def _plain_list(events):
    return [tuple(event) for event in events]
