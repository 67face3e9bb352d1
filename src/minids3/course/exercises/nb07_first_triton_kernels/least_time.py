"""The roofline in seconds: the least time of kernels that run one after the other."""

from __future__ import annotations

import numpy as np
import torch

from minids3.course.registry import Alternative, Mutant, exercise
from minids3.sim import hardware


# fmt: off
def least_time(kernels, peak, bandwidth):
    """The least time of kernels that run one after the other.

    kernels: a list of (operations, bytes), a pair for each kernel; a copy
      has no operations
    peak: operations per second; bandwidth: bytes per second
    While a kernel computes, it can load and store: the longer of the two
    counts. The next kernel begins when it has ended.
    returns two numbers: the seconds of all, and what share of them passes
    in kernels whose transfers take longer than their arithmetic
    """
    total = waiting = 0.0
    for operations, moved in kernels:
        arithmetic, memory = operations / peak, moved / bandwidth
        total += max(arithmetic, memory)
        if memory > arithmetic:
            waiting += memory
    return total, waiting / total
# fmt: on


def _times(kernels, peak, bandwidth):
    return [(work / peak, moved / bandwidth) for work, moved in kernels]


def _share(times, total):
    return sum(m for a, m in times if m > a) / total


def _max_of_sums(kernels, peak, bandwidth):
    times = _times(kernels, peak, bandwidth)
    total = max(sum(a for a, _ in times), sum(m for _, m in times))
    return total, _share(times, total)


def _added(kernels, peak, bandwidth):
    times = _times(kernels, peak, bandwidth)
    total = sum(a + m for a, m in times)
    return total, sum(a + m for a, m in times if m > a) / total


def _shorter(kernels, peak, bandwidth):
    times = _times(kernels, peak, bandwidth)
    total = sum(min(a, m) for a, m in times)
    return total, sum(a for a, m in times if m > a) / (total or 1.0)


def _memory_only(kernels, peak, bandwidth):
    times = _times(kernels, peak, bandwidth)
    total = sum(m for _, m in times)
    return total, _share(times, total)


def _arithmetic_only(kernels, peak, bandwidth):
    times = _times(kernels, peak, bandwidth)
    total = sum(a for a, _ in times)
    return total, sum(a for a, m in times if m > a) / (total or 1.0)


def _of_kernels(kernels, peak, bandwidth):
    total, _ = least_time(kernels, peak, bandwidth)
    times = _times(kernels, peak, bandwidth)
    return total, sum(m > a for a, m in times) / len(times)


def _idle_arithmetic(kernels, peak, bandwidth):
    total, _ = least_time(kernels, peak, bandwidth)
    return total, 1 - sum(a for a, _ in _times(kernels, peak, bandwidth)) / total


def _all_transfers(kernels, peak, bandwidth):
    total, _ = least_time(kernels, peak, bandwidth)
    return total, sum(m for _, m in _times(kernels, peak, bandwidth)) / total


def _other_side(kernels, peak, bandwidth):
    times = _times(kernels, peak, bandwidth)
    total = sum(max(t) for t in times)
    return total, sum(a for a, m in times if a > m) / total


def _rounded(kernels, peak, bandwidth):
    total, share = least_time(kernels, peak, bandwidth)
    return round(total, 3), share


def _seconds_waiting(kernels, peak, bandwidth):
    total, share = least_time(kernels, peak, bandwidth)
    return total, share * total


def _percent(kernels, peak, bandwidth):
    total, share = least_time(kernels, peak, bandwidth)
    return total, 100 * share


def _turned(kernels, peak, bandwidth):
    return least_time(kernels, peak, bandwidth)[::-1]


def _by_rate(kernels, peak, bandwidth):
    total = waiting = 0.0
    for work, moved in kernels:
        seconds = work / min(peak, work / moved * bandwidth)
        total += seconds
        waiting += seconds if work / moved < peak / bandwidth else 0.0
    return total, waiting / total


def _rates_swapped(kernels, peak, bandwidth):
    return least_time(kernels, bandwidth, peak)


def _last_only(kernels, peak, bandwidth):
    return least_time(kernels[-1:], peak, bandwidth)


def _h100(kernels, peak, bandwidth):
    return least_time(kernels, 989.4e12, 3.35e12)


def _ties(kernels, peak, bandwidth):
    total, _ = least_time(kernels, peak, bandwidth)
    return total, sum(m for a, m in _times(kernels, peak, bandwidth) if m >= a) / total


def _unique(kernels, peak, bandwidth):
    return least_time(sorted(set(kernels)), peak, bandwidth)


def _by_balance(kernels, peak, bandwidth):
    slope = [moved / bandwidth for work, moved in kernels if work < moved * (peak / bandwidth)]
    flat = [work / peak for work, moved in kernels if work >= moved * (peak / bandwidth)]
    return [sum(slope) + sum(flat), sum(slope) / (sum(slope) + sum(flat))]


def _roof(kernels, peak, bandwidth):
    seconds = []
    for work, moved in kernels:
        rate = min(work / moved * bandwidth, peak)
        seconds.append(work / rate if rate else moved / bandwidth)
    waits = [s for s, (w, b) in zip(seconds, kernels, strict=True) if w / b < peak / bandwidth]
    return sum(seconds), sum(waits) / sum(seconds)


def _arrays(kernels, peak, bandwidth):
    times = np.array(kernels, dtype=float) / np.array([peak, bandwidth])
    longest = times.max(1)
    return longest.sum(), longest[times[:, 1] > times[:, 0]].sum() / longest.sum()


def _tensors(kernels, peak, bandwidth):
    work, moved = torch.tensor(kernels, dtype=torch.float64).unbind(1)
    total = torch.maximum(work / peak, moved / bandwidth)
    waits = total * (moved / bandwidth > work / peak)
    return total.sum().item(), (waits.sum() / total.sum()).item()


@exercise(
    "roof-time",
    solution=least_time,
    library=hardware.least_time,
    notebook="07_first_triton_kernels",
    title="The least time of one kernel after another",
    difficulty=2,
    importance=3,
    minutes=6,
    hints=(
        "A kernel of 200 operations and 50 bytes, at 100 operations and 10 bytes a second: how "
        "long would its arithmetic take alone, how long its transfers, and how long both at "
        "once? Does the answer for two kernels follow from their sums?",
        "for each kernel:\n"
        "    arithmetic = operations / peak, memory = bytes / bandwidth\n"
        "    add the longer one to total\n"
        "    if memory is longer, add it to waiting, too\n"
        "return total and waiting / total",
    ),
    mutants=[
        Mutant(
            "max_of_sums",
            _max_of_sums,
            "You took the longer of two sums. That lets one kernel's transfers hide behind "
            "another's arithmetic, but they run one after the other: take the longer time of "
            "each kernel, then add.",
        ),
        Mutant(
            "added",
            _added,
            "You added arithmetic and transfers of one kernel. Both go on at once, so the longer "
            "of the two is the least time.",
        ),
        Mutant(
            "shorter",
            _shorter,
            "You took the shorter of the two times. A kernel has ended when both are done.",
        ),
        Mutant(
            "memory_only",
            _memory_only,
            "You counted transfers alone. A large product takes longer to compute than to load.",
        ),
        Mutant(
            "arithmetic_only",
            _arithmetic_only,
            "You counted arithmetic alone. What memory makes a kernel wait is the point here.",
        ),
        Mutant(
            "of_kernels",
            _of_kernels,
            "Your share counts kernels. It should count their seconds: one long kernel weighs "
            "more than many short ones.",
        ),
        Mutant(
            "idle_arithmetic",
            _idle_arithmetic,
            "Your share is the time without arithmetic. A kernel that waits for memory counts "
            "with all of its time, though some arithmetic goes on meanwhile.",
        ),
        Mutant(
            "all_transfers",
            _all_transfers,
            "You counted the transfers of every kernel as waiting. In a kernel whose arithmetic "
            "takes longer, nobody waits for them.",
        ),
        Mutant(
            "other_side",
            _other_side,
            "That is the share of the kernels that wait for arithmetic. Asked is the other one.",
        ),
        Mutant(
            "seconds_waiting",
            _seconds_waiting,
            "Your second number is in seconds. Divide it by the first: it is a share of it.",
        ),
        Mutant(
            "percent",
            _percent,
            "Your share is in percent. It should be a number from 0 to 1.",
        ),
        Mutant(
            "turned",
            _turned,
            "You returned the share first. The seconds come first, then the share.",
        ),
        Mutant(
            "by_rate",
            _by_rate,
            "A copy has no operations, so its rate is 0, and you divide by it. Divide operations "
            "and bytes by a speed each and compare the times.",
        ),
        Mutant(
            "rates_swapped",
            _rates_swapped,
            "You divided operations by the bandwidth and bytes by the peak.",
        ),
        Mutant(
            "last_only",
            _last_only,
            "Only the last kernel was counted. Add up all of them.",
        ),
        Mutant(
            "h100",
            _h100,
            "You built an H100 in. Use `peak` and `bandwidth`: the next machine has others.",
        ),
        Mutant(
            "ties",
            _ties,
            "You counted a kernel whose two times are equal. Its transfers do not take longer than "
            "its arithmetic.",
        ),
        Mutant(
            "rounded",
            _rounded,
            "You rounded the seconds. A kernel takes microseconds, and nothing is left of them.",
        ),
        Mutant(
            "unique",
            _unique,
            "You dropped a kernel that occurs twice in the list. It runs twice, so count it twice.",
        ),
    ],
    alternatives=[
        Alternative("by_balance", _by_balance),
        Alternative("roof", _roof),
        Alternative("arrays", _arrays),
        Alternative("tensors", _tensors),
    ],
)
def check_least_time(c):
    """One kernel of each kind, both, many; a copy; one list on two machines."""
    peak, bandwidth = 1e12 * c.choice([125, 312, 660]), 1e9 * c.choice([300, 2000, 4800])

    def made(times):
        """Kernels whose arithmetic and transfers take so many seconds."""
        return [(a * peak, m * bandwidth) for a, m in times]

    # Times are drawn first and kernels made of them, so what is expected is added up by hand.
    short, long, more = c.size(2, 9) / 8, c.size(20, 60) / 8, c.size(70, 110) / 8 + 1 / 16
    got = c.call(made([(short, long)]), peak, bandwidth, label="runs on one kernel", returns=2)
    c.close(got[0], long, label="a kernel that waits for memory: its transfers' time")
    c.close(got[1], 1.0, label="and all of it is waiting")
    with c.part():
        got = c.call(made([(more, long)]), peak, bandwidth, returns=2)
        c.close(got[0], more, label="a kernel that waits for arithmetic: its arithmetic's time")
        c.close(got[1], 0.0, label="and none of it is waiting for memory")
    with c.part():
        got = c.call([(200, 50), (400, 10)], 100, 10, returns=2)
        c.close(list(got), [9.0, 5 / 9], label="the example: 9 seconds, a share of 0.556")
    with c.part():
        got = c.call([(500, 50)], 100, 10, returns=2)
        c.close(list(got), [5.0, 0.0], label="both times are equal: its transfers are not longer")
    with c.part():
        got = c.call([(200, 50), (200, 50)], 100, 10, returns=2)
        c.close(list(got), [10.0, 1.0], label="the same kernel twice takes twice as long")
    with c.part():
        got = c.call([(73, 10)], 15, 2, returns=2)
        label = "7.3 operations a byte, on a machine that can do 7.5"
        c.close(list(got), [5.0, 1.0], label=label)
    with c.part():
        got = c.call(made([(short, long), (more, short)]), peak, bandwidth, returns=2)
        c.close(got[0], long + more, label="one of each: their times add up")
        c.close(got[1], long / (long + more), label="and the share is one of time")
    with c.part():
        times = [(c.size(1, 40) / 8, c.size(41, 80) / 8) for _ in range(c.size(3, 5))]
        others = [(c.size(41, 80) / 8, c.size(1, 40) / 8) for _ in range(2)]
        got = c.call(made([*times[1:], *others, times[0]]), peak, bandwidth, returns=2)
        memory, arithmetic = sum(m for _, m in times), sum(a for a, _ in others)
        c.close(got[0], memory + arithmetic, label="many kernels: the seconds")
        c.close(got[1], memory / (memory + arithmetic), label="many kernels: the share")
    with c.part():
        got = c.call(made([(0, short), (more, long)]), peak, bandwidth, returns=2)
        c.close(got[0], short + more, label="with a copy, which computes nothing")
        c.close(got[1], short / (short + more), label="the copy's share")
    with c.part():
        rows = c.size(3, 9)  # of RMSNorm: 7,168 numbers read and written, in BF16
        kernel = (4 * rows * 7168, 4 * rows * 7168)
        got = c.call([kernel], 989e12, 3.35e12, returns=2)
        label = "RMSNorm of a few rows, which takes nanoseconds"
        c.close(list(got), [kernel[1] / 3.35e12, 1.0], label=label, atol=0)
    with c.part():
        kernels = made([(short, long), (more, long)])
        got = c.call(kernels, 4 * peak, bandwidth, returns=2)
        late = max(more / 4, long)
        c.close(got[0], long + late, label="the same kernels at four times the peak")
        share = 1.0 if long > more / 4 else long / (long + late)
        c.close(got[1], share, label="and the share then")
