"""Two streams of one GPU: what hides behind what."""

from __future__ import annotations

import itertools

from minids3.course.registry import Alternative, Mutant, exercise


# fmt: off
def run_streams(streams, needs):
    """When each task of a GPU begins and ends.

    streams: {stream: [(task, seconds), ...]}; a stream does its tasks in
      this order, one after the other, all streams at the same time
    needs: {task: [tasks that must have ended before]}; a task may be
      missing here, and may need tasks of its own stream and of others
    returns {task: (start, end)}, each task as early as possible from 0 on;
    raises ValueError if a task can never begin
    """
    times = {}
    free = {stream: 0.0 for stream in streams}
    left = {stream: list(tasks) for stream, tasks in streams.items()}
    while any(left.values()):
        moved = False
        for stream, tasks in left.items():
            while tasks and all(n in times for n in needs.get(tasks[0][0], [])):
                task, seconds = tasks.pop(0)
                start = max([free[stream]]
                            + [times[n][1] for n in needs.get(task, [])])
                times[task] = (start, start + seconds)
                free[stream] = start + seconds
                moved = True
        if not moved:
            raise ValueError(f"nobody can go on: {left}")
    return times
# fmt: on


def _run(streams, needs, begin=None, endless=False, halves=False):
    """The solution with another rule for the start of a task."""
    times, free = {}, dict.fromkeys(streams, 0.0)
    left = {stream: list(tasks) for stream, tasks in streams.items()}
    begin = begin or (lambda free, ends: max([free, *ends]))
    while any(left.values()):
        moved = False
        for stream, tasks in left.items():
            while tasks and all(need in times for need in needs.get(tasks[0][0], [])):
                task, seconds = tasks.pop(0)
                start = begin(free[stream], [times[n][1] for n in needs.get(task, [])])
                times[task] = (start, start + seconds)
                free[stream] = start + seconds
                moved = True
        if not moved:
            if endless or (halves and not all(left.values())):
                return times
            raise ValueError("nobody can go on")
    return times


def _no_needs(streams, needs):
    return _run(streams, {})


def _one_at_a_time(streams, needs):
    order = sorted(run_streams(streams, needs).items(), key=lambda item: item[1])
    seconds = {task: took for tasks in streams.values() for task, took in tasks}
    times, now = {}, 0.0
    for task, _ in order:
        times[task] = (now, now + seconds[task])
        now += seconds[task]
    return times


def _first_need(streams, needs):
    times = run_streams(streams, needs)  # raises where it should
    del times
    return _run(streams, needs, lambda free, ends: max(free, *ends[:1]) if ends else free)


def _last_need(streams, needs):
    return _run(streams, needs, lambda free, ends: max(free, *ends[-1:]) if ends else free)


def _first_ended(streams, needs):
    return _run(streams, needs, lambda free, ends: max(free, min(ends, default=0.0)))


def _never_busy(streams, needs):
    return _run(streams, needs, lambda free, ends: max(ends, default=0.0))


def _need_or_stream(streams, needs):
    return _run(streams, needs, lambda free, ends: max(ends) if ends else free)


def _sum_of_needs(streams, needs):
    return _run(streams, needs, lambda free, ends: max(free, sum(ends)))


def _last_later(streams, needs):
    def begin(free, ends):
        start = free
        for end in ends:
            if end > free:
                start = end
        return start

    return _run(streams, needs, begin)


def _waits_added(streams, needs):
    return _run(streams, needs, lambda free, ends: free + sum(max(0.0, e - free) for e in ends))


def _starts_with_need(streams, needs):
    times, free = {}, dict.fromkeys(streams, 0.0)
    run_streams(streams, needs)
    left = {stream: list(tasks) for stream, tasks in streams.items()}
    while any(left.values()):
        for stream, tasks in left.items():
            while tasks and all(need in times for need in needs.get(tasks[0][0], [])):
                task, seconds = tasks.pop(0)
                start = max([free[stream], *(times[n][0] for n in needs.get(task, []))])
                times[task] = (start, start + seconds)
                free[stream] = start + seconds
    return times


def _overtakes(streams, needs):
    run_streams(streams, needs)
    times, free = {}, dict.fromkeys(streams, 0.0)
    left = {stream: list(tasks) for stream, tasks in streams.items()}
    while any(left.values()):
        ready = [
            (max([free[s], *(times[n][1] for n in needs.get(t, []))]), s, t, took)
            for s, tasks in left.items()
            for t, took in tasks
            if all(n in times for n in needs.get(t, []))
        ]
        start, stream, task, took = min(ready)
        times[task] = (start, start + took)
        free[stream] = start + took
        left[stream].remove((task, took))
    return times


def _no_error(streams, needs):
    return _run(streams, needs, endless=True)


def _all_stuck(streams, needs):
    return _run(streams, needs, halves=True)


def _durations(streams, needs):
    times = run_streams(streams, needs)
    return {task: (start, end - start) for task, (start, end) in times.items()}


def _recursion(streams, needs):
    before, seconds = {}, {}
    for tasks in streams.values():
        for i, (task, took) in enumerate(tasks):
            before[task] = [tasks[i - 1][0]] if i else []
            seconds[task] = took
    times, asked = {}, set()

    def end(task):
        if task not in times:
            if task in asked or task not in seconds:
                raise ValueError(f"{task} can never begin")
            asked.add(task)
            start = max([0.0] + [end(n) for n in before[task] + list(needs.get(task, []))])
            times[task] = (start, start + seconds[task])
        return times[task][1]

    for task in seconds:
        end(task)
    return times


def _relaxation(streams, needs):
    edges, seconds = [], {}
    for tasks in streams.values():
        for i, (task, took) in enumerate(tasks):
            seconds[task] = took
            edges += [(tasks[i - 1][0], task)] if i else []
    edges += [(need, task) for task, found in needs.items() if task in seconds for need in found]
    if any(need not in seconds for need, _ in edges):
        raise ValueError("a task needs one that does not exist")
    start = dict.fromkeys(seconds, 0.0)
    for _ in range(len(seconds) + 1):
        late = [(n, t) for n, t in edges if start[n] + seconds[n] > start[t]]
        if not late:
            return {task: (s, s + seconds[task]) for task, s in start.items()}
        for need, task in late:
            start[task] = max(start[task], start[need] + seconds[need])
    raise ValueError("the tasks wait for each other in a circle")


@exercise(
    "pipe-overlap",
    solution=run_streams,
    notebook="15_pipelines_and_dualpipe",
    title="A forward and a backward at the same time",
    difficulty=4,
    importance=4,
    minutes=18,
    hints=(
        "For one task two things must be over: what its own stream did before it, and whatever "
        "it needs. If you know when those end, when does it begin? In which order can you go "
        "through the tasks, so that you always know? And how do you notice that you cannot go on?",
        "repeat as long as tasks are left:\n"
        "    for each stream: as long as all that its next task needs has ended:\n"
        "        start = the latest of: end of the stream's last task, ends of what it needs\n"
        "        note (start, start + seconds)\n"
        "    no stream moved: ValueError",
    ),
    mutants=[
        Mutant(
            "no_needs",
            _no_needs,
            "You did not look at `needs`: an expert would compute on tokens that have not "
            "arrived yet.",
        ),
        Mutant(
            "one_at_a_time",
            _one_at_a_time,
            "You do one task at a time. Streams run side by side: that is what hides a transfer.",
        ),
        Mutant(
            "first_need",
            _first_need,
            "You waited for the first task of the list only. All of them must have ended.",
        ),
        Mutant(
            "last_need",
            _last_need,
            "You waited for the last task of the list only. The list is in no order of time: "
            "take the latest end.",
        ),
        Mutant(
            "first_ended",
            _first_ended,
            "You waited until one of the needs has ended. All of them must have: take the latest "
            "end.",
        ),
        Mutant(
            "need_or_stream",
            _need_or_stream,
            "A task with needs begins as soon as they have ended, even if its own stream is "
            "still busy. It has to wait for both.",
        ),
        Mutant(
            "never_busy",
            _never_busy,
            "Your streams are never busy: a task waits for its needs alone. It also waits for the "
            "task before it on its stream.",
        ),
        Mutant(
            "sum_of_needs",
            _sum_of_needs,
            "You added the ends up. Tasks that end at 3 and at 5 have both ended at 5, not at 8.",
        ),
        Mutant(
            "last_later",
            _last_later,
            "Every need that ends after the stream became free replaces the one before it in the "
            "list, so that the last of these counts. The latest end does.",
        ),
        Mutant(
            "waits_added",
            _waits_added,
            "You added up how long each need has to be waited for. One waits for all of them at "
            "the same time: take the latest end.",
        ),
        Mutant(
            "starts_with_need",
            _starts_with_need,
            "Your task begins when what it needs begins. It has to wait for the end.",
        ),
        Mutant(
            "overtakes",
            _overtakes,
            "You let a task overtake another on its stream because it was ready sooner. A stream "
            "keeps the order in which its tasks were launched.",
        ),
        Mutant(
            "no_error",
            _no_error,
            "Tasks that wait for each other in a circle are left out silently. On a GPU this is a "
            "hang: raise ValueError.",
        ),
        Mutant(
            "all_stuck",
            _all_stuck,
            "You raise only if every stream is stuck. If one gets to its end and another does not, "
            "tasks are left out silently: look at whether any is left.",
        ),
        Mutant(
            "durations",
            _durations,
            "The second number is the task's end, not how long it takes.",
        ),
    ],
    alternatives=[
        Alternative("recursion", _recursion),
        Alternative("relaxation", _relaxation),
    ],
)
def check_run_streams(c):
    """One layer, a blocked stream, three needs, no length, and tasks that wait for each other."""
    a, b, d = (0.37 * c.size(low, high) for low, high in ((4, 7), (9, 13), (16, 21)))
    streams = {
        "compute": [("attention", a), ("experts", b)],
        "communication": [("dispatch", d), ("combine", a)],
    }
    needs = {"dispatch": ["attention"], "experts": ["dispatch"], "combine": ["experts"]}
    got = c.call(streams, needs, label="runs on one layer going forward, returns a dict")
    names = sorted(task for tasks in streams.values() for task, _ in tasks)
    c.equal(sorted(got), names, label="every task has its times")
    ends = [a, a + d, a + d + b, a + d + b + a]
    wanted = dict(
        zip(("attention", "dispatch", "experts", "combine"), zip([0, *ends[:3]], ends, strict=True),
            strict=True)
    )  # fmt: skip
    label = "one after the other, since each needs the one before"
    c.close(_pairs(got), _pairs(wanted), label=label)
    with c.part():
        free = {"x": [("p", d), ("q", b)], "y": [("r", a), ("s", b)]}
        got = _pairs(c.call(free, {}))
        wanted = {"p": (0, d), "q": (d, d + b), "r": (0, a), "s": (a, a + b)}
        c.close(got, _pairs(wanted), label="streams that need nothing of each other run together")
    with c.part():
        # r is ready at once, but stands after q, which waits for the long p.
        queue = {"x": [("p", d)], "y": [("q", a), ("r", b)], "z": [("s", a)]}
        got = _pairs(c.call(queue, {"q": ["p"], "s": ["r"]}))
        wanted = {"p": (0, d), "q": (d, d + a), "r": (d + a, d + a + b)}
        wanted["s"] = (d + a + b, d + a + b + a)
        label = "a stream keeps its order, though a later task is ready"
        c.close(got, _pairs(wanted), label=label)
    with c.part():
        for late, early in ((d, a), (a, d)):
            several = {"x": [("p", late)], "y": [("q", early)], "z": [("r", b), ("s", b)]}
            got = _pairs(c.call(several, {"s": ["p", "q"]}))
            begin = max(a, b, d)
            wanted = {"p": (0, late), "q": (0, early), "r": (0, b), "s": (begin, begin + b)}
            label = f"needs of {late:g} and {early:g}: the later one counts"
            c.close(got, _pairs(wanted), label=label)
    with c.part():
        for at, name in enumerate(("first", "second", "last")):
            took = [a, b]
            took.insert(at, d)
            three = {"w": [("p", took[0])], "x": [("q", took[1])], "y": [("r", took[2])]}
            got = _pairs(c.call({**three, "z": [("s", b)]}, {"s": ["p", "q", "r"]}))
            wanted = {"p": (0, took[0]), "q": (0, took[1]), "r": (0, took[2]), "s": (d, d + b)}
            label = f"a stream at rest waits for three, of which the {name} takes longest"
            c.close(got, _pairs(wanted), label=label)
    with c.part():
        busy = {"x": [("p", a)], "y": [("q", d), ("r", b)]}
        got = _pairs(c.call(busy, {"r": ["p"]}))
        wanted = {"p": (0, a), "q": (0, d), "r": (d, d + b)}
        c.close(got, _pairs(wanted), label="a busy stream has to become free first")
    with c.part():
        layers, tasks, need = c.size(6, 8), {"compute": [], "communication": []}, {}
        for n in range(layers):
            tasks["compute"] += [(f"A{n}", a / 7), (f"B{n}", b / 7)]
            tasks["communication"] += [(f"send A{n}", b / 7), (f"send B{n}", a / 7)]
            need[f"send A{n}"], need[f"send B{n}"] = [f"A{n}"], [f"B{n}"]
            if n:
                need[f"A{n}"], need[f"B{n}"] = [f"send A{n - 1}"], [f"send B{n - 1}"]
        got = _pairs(c.call(tasks, need))
        label = f"{layers} layers of two micro-batches that take turns"
        c.close(got, _pairs(_truth(tasks, need)), label=label)
    with c.part():
        queue = [("r", 0.0), ("s", a), ("o", 0.0), ("t", a)]
        own = {"x": [("p", a), ("q", b)], "y": queue, "z": []}
        got = _pairs(c.call(own, {"q": ["p", "r"], "t": ["q", "p", "r"]}))
        wanted = {"p": (0, a), "q": (a, a + b), "r": (0, 0), "s": (0, a), "t": (a + b, 2 * a + b)}
        wanted["o"] = (a, a)
        label = "a need on its own stream, tasks of no length, a stream without tasks"
        c.close(got, _pairs(wanted), label=label)
    with c.part():
        label = "an error: p needs q, which comes after it on its own stream"
        stuck = {"x": [("o", a), ("p", a), ("q", b)], "y": [("r", d)]}
        c.raises(ValueError, stuck, {"p": ["q"]}, label=label)
    with c.part():
        label = "an error: p needs a task that is in no stream"
        stuck = {"y": [("r", d)], "x": [("o", a), ("p", a)]}
        c.raises(ValueError, stuck, {"p": ["nobody"]}, label=label)
    circle = {"x": [("o", b), ("p", a), ("q", b)], "y": [("r", d)]}
    with c.part():
        label = "a circle is an error: p needs r, r needs q, q comes after p"
        c.raises(ValueError, circle, {"p": ["r"], "r": ["q"]}, label=label)


def _truth(streams, needs):
    """Longest paths: the start of a task is the latest end among all that precede it."""
    seconds = {task: took for tasks in streams.values() for task, took in tasks}
    edges = [(need, task) for task, found in needs.items() for need in found]
    for tasks in streams.values():
        edges += [(x[0], y[0]) for x, y in itertools.pairwise(tasks)]
    ends = dict.fromkeys(seconds, 0.0)
    for _ in seconds:
        starts = {t: max([0.0, *(ends[n] for n, m in edges if m == t)]) for t in seconds}
        ends = {t: starts[t] + seconds[t] for t in seconds}
    return {task: (end - seconds[task], end) for task, end in ends.items()}


def _pairs(times):
    return {task: [float(x) for x in pair] for task, pair in sorted(times.items())}
