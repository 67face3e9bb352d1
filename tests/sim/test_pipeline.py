"""Schedules against PyTorch's and DeepSeek's own, the checker, the simulator, the formulas."""

import gzip
import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minids3.sim.pipeline import (
    PUBLISHED_STEP,
    SCHEDULES,
    Action,
    Costs,
    Schedule,
    bubble,
    check_schedule,
    decode_step,
    dualpipe,
    dualpipev,
    gpipe,
    interleaved_1f1b,
    make_schedule,
    one_f_one_b,
    peak_activations,
    schedule_problems,
    simulate,
    zb1p,
    zbv,
)


def oracle(name):
    """Recorded orders; the file's first lines say from which program and in which notation."""
    path = Path(__file__).parent / f"oracles/{name}.json.gz"
    return json.loads(gzip.decompress(path.read_bytes()))["cases"]


TORCH = {
    "ScheduleGPipe": "gpipe",
    "Schedule1F1B": "1f1b",
    "ScheduleInterleaved1F1B": "interleaved_1f1b",
    "ScheduleZBVZeroBubble": "zbv",
    "ScheduleDualPipeV": "dualpipev",
}


def generate(case):
    name, ranks = case["schedule"], case["num_ranks"]
    each = case["num_stages"] // ranks
    if name == "ScheduleInterleavedZeroBubble":
        name = "zb1p" if each == 1 else "interleaved_zb"
    name = TORCH.get(name, name)
    options = {"stages_per_rank": each} if name.startswith("interleaved") else {}
    return make_schedule(name, ranks, case["num_microbatches"], **options)


@pytest.mark.parametrize("case", oracle("torch_schedules"), ids=lambda case: case["name"])
def test_orders_are_those_of_torch(case):
    if "raises" in case:
        with pytest.raises(ValueError, match=rf"n_microbatches={case['num_microbatches']} is less"):
            generate(case)
        return
    schedule = generate(case)
    assert [" ".join(map(str, order)) for order in schedule.orders] == case["order"]
    assert schedule.n_stages == case["num_stages"]


def in_words_of_dualpipe(schedule):
    """Orders in the oracle's notation: op, stream, chunk."""

    def one(action, letter):
        stream = action.direction
        if schedule.name == "DualPipeV":
            stream = int(action.stage >= schedule.n_ranks)
        return f"{letter}{stream}.{action.microbatch}"

    def words(action):
        forward = one(action, "F" if action.backward else action.kind)
        return forward + "+" + one(action.backward, "B") if action.backward else forward

    return [" ".join(map(words, order)) for order in schedule.orders]


@pytest.mark.parametrize("case", oracle("dualpipe"), ids=lambda case: case["name"])
def test_orders_are_those_of_deepseek(case):
    schedule = make_schedule(case["schedule"], case["num_ranks"], case["num_chunks"])
    assert in_words_of_dualpipe(schedule) == case["order"]


def test_all_recorded_cases_are_there():
    torch, deepseek = oracle("torch_schedules"), oracle("dualpipe")
    assert (len(torch), len(deepseek)) == (64, 24)
    assert sum("raises" in case for case in torch) == 6
    assert {case["schedule"] for case in torch} == {*TORCH, "ScheduleInterleavedZeroBubble"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: one_f_one_b(4, 3), "n_microbatches=3 is less than 4"),
        (lambda: dualpipev(2, 3), "n_microbatches=3 is less than 4"),
        (lambda: dualpipe(3, 6), "even number of ranks"),
        (lambda: dualpipe(4, 9), "n_microbatches=9"),
        (lambda: dualpipe(4, 6), "at least two a rank"),
        (lambda: interleaved_1f1b(4, 9), "n_microbatches=9 cannot; take 8"),
        (lambda: zb1p(2, 5), "take 4"),
        (lambda: gpipe(0, 4), "n_ranks=0"),
        (lambda: zbv(2, 0), "n_microbatches=0"),
        (lambda: interleaved_1f1b(2, 4, 0), "stages_per_rank=0"),
        (lambda: gpipe(2, 4.0), r"n_microbatches=4\.0 must be an integer"),
        (lambda: make_schedule("2f2b", 2, 4), "choose one of gpipe, 1f1b"),
        (lambda: make_schedule("zbv", 2, 4, stages_per_rank=3), "zbv takes no stages_per_rank"),
    ],
)
def test_what_cannot_be_had(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def some_schedules():
    for name, n_ranks, n_microbatches in itertools.product(SCHEDULES, (1, 2, 3, 12), (1, 5, 24)):
        options = {"stages_per_rank": 3} if name.startswith("interleaved") else {}
        try:
            yield make_schedule(name, n_ranks, n_microbatches, **options)
        except ValueError:  # too few or odd: see above
            continue


def test_generated_schedules_are_valid_in_other_sizes():
    schedules = list(some_schedules())
    assert len(schedules) > 50
    assert {s.name for s in schedules} == {s.name for s in map(small, SCHEDULES)}
    for schedule in schedules:
        assert schedule_problems(schedule) == [], schedule


def small(name):
    return make_schedule(name, 2, 4)


# the checker --------------------------------------------------------------------------------------


def edited(schedule, rank, edit):
    """The schedule with one rank's list of actions changed by ``edit``."""
    order = list(schedule.orders[rank])
    edit(order)
    orders = [*schedule.orders[:rank], tuple(order), *schedule.orders[rank + 1 :]]
    return replace(schedule, orders=tuple(orders))


def swap(i, j):
    def edit(order):
        order[i], order[j] = order[j], order[i]

    return edit


# 1F1B on two ranks: 0F0 0F1 0B0 0F2 0B1 0B2 and 1F0 1B0 1F1 1B1 1F2 1B2.
BROKEN = {
    "missing": (0, lambda order: order.pop(0), "0F0, a forward of rank 0, is missing"),
    "missing backward": (1, lambda order: order.pop(), "1W2, a weight gradient of rank 1, is miss"),
    "twice": (
        0,
        lambda o: o.append(Action("F", 0, 1)),
        "0F1, a forward of rank 0, is done 2 times",
    ),
    "W twice": (0, lambda o: o.append(Action("W", 0, 1)), "0W1, a weight gradient .* 2 times"),
    "wrong rank": (0, lambda o: o.append(Action("F", 1, 0)), "1F0: stage 1 is on rank 1, not here"),
    "no such stage": (0, lambda o: o.append(Action("F", 2, 0)), "no stage 2, only 0 to 1"),
    "no such micro-batch": (0, lambda o: o.append(Action("F", 0, 3)), "micro-batch 3, only 0 to 2"),
    "no such direction": (0, lambda o: o.append(Action("F", 0, 0, 1)), "no direction 1"),
    "backward first": (1, swap(0, 1), "action 0, 1B0, comes before action 1, 1F0, whose 1F0"),
    "deadlock": (0, swap(1, 4), None),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_schedules_are_found(kind):
    rank, edit, message = BROKEN[kind]
    schedule = one_f_one_b(2, 3)
    check_schedule(schedule)
    broken = edited(schedule, rank, edit)
    message = message or "0B1, comes before action 4, 0F1"
    with pytest.raises(ValueError, match=message):
        check_schedule(broken)
    with pytest.raises(ValueError, match=message):
        simulate(broken)


def test_ranks_that_wait_for_each_other():
    # Rank 0 wants the gradient of micro-batch 1 first, rank 1 begins with micro-batch 0: each order
    # is possible by itself, and neither rank gets on.
    zero = tuple(Action(k, 0, m) for k, m in (("F", 0), ("B", 0), ("F", 1), ("B", 1)))
    one = tuple(Action(k, 1, m) for k, m in (("F", 1), ("B", 1), ("F", 0), ("B", 0)))
    problems = schedule_problems(Schedule("mine", ((0, 1),), 2, (zero, one)))
    assert problems == [
        "rank 0 stops at action 1, 0B0: it needs 1I0, but rank 1 stops before it",
        "rank 1 stops at action 0, 1F1: it needs 0F1, but rank 0 stops before it",
    ]


def test_a_pair_may_not_need_itself():
    def pair(order):
        order[:2] = [Action("FB", 1, 0, backward=Action("B", 1, 0))]

    problems = schedule_problems(edited(one_f_one_b(2, 3), 1, pair))
    assert problems[1].startswith(
        "rank 1 stops at action 0, (1F0;1B0)OVERLAP_F_B: it needs 0F0"
    ) or ("part of the same action" in " ".join(problems))
    assert "rank 1 stops at action 0" in problems[-1]


def test_weights_before_inputs_and_a_foreign_w():
    schedule = zb1p(2, 3)
    where = [str(action) for action in schedule.orders[0]].index("0I0")
    problems = schedule_problems(edited(schedule, 0, swap(where, where + 1)))
    assert len(problems) == 1
    assert f"action {where}, 0W0, comes before action {where + 1}, 0I0" in problems[0]


def test_every_single_omission_and_swap_that_breaks_is_found():
    """Dropping any action, or doing any twice, is always an error, in all schedules."""
    for schedule in map(small, SCHEDULES):
        for rank, order in enumerate(schedule.orders):
            for i, action in enumerate(order):
                assert schedule_problems(edited(schedule, rank, lambda o, i=i: o.pop(i)))
                assert schedule_problems(edited(schedule, rank, lambda o, a=action: o.append(a)))


def test_messages_are_cut_short():
    empty = replace(gpipe(2, 9), orders=((), ()))
    with pytest.raises(ValueError, match="and 44 more") as error:
        check_schedule(empty)
    assert len(str(error.value).splitlines()) == 12


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Action("X", 0, 0), "choose one of F, B, I, W, FB"),
        (lambda: Action("FB", 0, 0), "an FB needs backward"),
        (lambda: Action("FB", 0, 0, backward=Action("I", 0, 0)), "an FB needs backward"),
        (lambda: Action("F", 0, 0, backward=Action("B", 0, 0)), "F takes no backward"),
        (lambda: Schedule("mine", ((0, 1),), 2, ((),)), r"placement names ranks \[1\]"),
        (lambda: Schedule("mine", ((0, 1), (1, 0)), 3, ((), ())), "shared equally by 2"),
        (lambda: Schedule("mine", ((0, 1), (1,)), 2, ((), ())), "the same stages"),
        (lambda: Schedule("mine", ((),), 2, ((), ())), "the same stages"),
    ],
)
def test_what_is_no_action_and_no_schedule(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# the simulator ------------------------------------------------------------------------------------


def test_a_small_case_by_hand():
    # Two ranks, two micro-batches, F = 2, I = 3, W = 1, a transfer takes 0.5.
    timeline = simulate(one_f_one_b(2, 2), Costs(2, 3, 1, communication=0.5))
    times = [[(str(s.action), s.start, s.end) for s in rank] for rank in timeline.spans]
    assert times == [
        [("0F0", 0, 2), ("0F1", 2, 4), ("0B0", 9, 13), ("0B1", 15, 19)],
        [("1F0", 2.5, 4.5), ("1B0", 4.5, 8.5), ("1F1", 8.5, 10.5), ("1B1", 10.5, 14.5)],
    ]
    assert timeline.makespan == 19
    assert timeline.idle == [19 - 12, 19 - 12]
    assert timeline.bubble_share == 14 / 38


@pytest.mark.parametrize("name", SCHEDULES)
def test_no_result_is_used_before_it_has_arrived(name):
    """Start and end of every action against the dependencies, written out once more."""
    schedule = make_schedule(name, 4, 8)
    costs = Costs(1.0, 1.75, 0.5, communication=0.25, overlapped=2.5)
    timeline = simulate(schedule, costs)
    ready = {}
    for rank, spans in enumerate(timeline.spans):
        assert [span.action for span in spans] == list(schedule.orders[rank])
        for span in spans:
            assert span.end - span.start == costs.of(span.action)
            for part in span.action.parts:
                for letter in {"F": "F", "B": "IW", "I": "I", "W": "W"}[part.kind]:
                    key = (letter, part.direction, part.stage, part.microbatch)
                    assert key not in ready
                    ready[key] = (rank, span.start, span.end)
    last = schedule.n_stages - 1
    assert len(ready) == 3 * 8 * schedule.n_stages
    free = 0
    for (letter, direction, stage, microbatch), (rank, start, _) in ready.items():
        before = []
        if letter == "F" and stage > 0:
            before.append(("F", stage - 1))
        if letter == "I":
            before.append(("F", stage))
            if stage < last:
                before.append(("I", stage + 1))
        for other_letter, other_stage in before:
            other, _, end = ready[other_letter, direction, other_stage, microbatch]
            arrival = end + (0.25 if other != rank else 0)
            assert arrival <= start
            free += arrival == start
    assert free >= 2 * last  # and some begin just then: nobody waits for nothing
    for spans in timeline.spans:
        assert all(a.end <= b.start for a, b in itertools.pairwise(spans))


@pytest.mark.parametrize(
    ("schedule", "idle"),
    [
        (gpipe(4, 8), 9),
        (one_f_one_b(4, 8), 9),
        (zb1p(4, 8), 3),
        (zb1p(8, 16), 7),
        (interleaved_1f1b(4, 8), 9),  # a stage is half as long
        (zbv(4, 8), 3),
        (dualpipe(4, 8), 2),
        (dualpipe(8, 16), 6),
        (dualpipe(16, 32), 14),
        (dualpipev(2, 4), 2),
        (dualpipev(4, 8), 6),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_idle_time_for_equal_costs(schedule, idle):
    """Recorded with another simulator, on the oracles' orders."""
    assert simulate(schedule).idle == [idle] * schedule.n_ranks


@pytest.mark.parametrize(
    ("schedule", "freed", "peaks"),
    [
        (gpipe(4, 8), "input", [8, 8, 8, 8]),
        (one_f_one_b(4, 8), "input", [4, 3, 2, 1]),
        (zb1p(4, 8), "input", [4, 3, 2, 1]),
        (zb1p(4, 8), "weight", [4, 4, 4, 4]),
        (interleaved_1f1b(4, 8), "input", [11, 9, 7, 5]),
        (zbv(4, 8), "input", [8] * 4),
        (dualpipe(4, 8), "input", [5] * 4),
        (dualpipe(8, 20), "weight", [9] * 8),
        (dualpipev(4, 8), "input", [9] * 4),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_peak_activations(schedule, freed, peaks):
    assert peak_activations(schedule, freed) == peaks
    with pytest.raises(ValueError, match="'input' or 'weight'"):
        peak_activations(schedule, "never")


def test_without_overlap_dualpipev_idles_twice_as_long_as_zbv():
    plain, hidden = Costs(), Costs(overlapped=2)
    assert simulate(zbv(4, 8), plain).idle == [3] * 4
    assert simulate(dualpipev(4, 8), plain).idle == [6] * 4
    # What it gains is time: each hidden pair is a third shorter.
    assert simulate(dualpipev(4, 8), plain).makespan == 54
    assert simulate(dualpipev(4, 8), hidden).makespan < 51 == simulate(zbv(4, 8)).makespan


def test_costs_per_stage():
    # A head that takes twice as long on the last of four stages holds all others up.
    even = simulate(one_f_one_b(4, 8))
    heavy = simulate(one_f_one_b(4, 8), Costs(forward=np.array([1, 1, 1, 2.0])))
    assert heavy.makespan == even.makespan + 8
    assert heavy.idle == [17, 17, 17, 9]
    with pytest.raises(ValueError, match="forward has 3 times for 4 stages"):
        simulate(one_f_one_b(4, 8), Costs(forward=[1, 1, 2]))


@pytest.mark.parametrize("time", [-1, float("nan"), float("inf"), [1, -1]])
def test_impossible_times(time):
    with pytest.raises(ValueError, match=r"weight_grad=.* must be finite and not negative"):
        Costs(weight_grad=time)


def test_a_pair_takes_as_long_as_its_longer_part():
    Costs(0.1, 0.1, 0.2, overlapped=0.3)  # 0.1 + 0.2 is a little more than 0.3
    with pytest.raises(ValueError, match=r"less than the longer of them alone, 2"):
        Costs(overlapped=1.9)
    with pytest.raises(ValueError, match=r"longer of them alone, 3"):
        Costs(forward=[3, 4], overlapped=2.9)


# formulas -----------------------------------------------------------------------------------------

EQUAL = [Costs(t, t, t) for t in (1, 2.5)]
COSTS = [Costs(*map(float, times)) for times in itertools.product((1, 2, 3), repeat=3)]


@pytest.mark.parametrize("name", SCHEDULES)
def test_formulas_at_equal_costs(name):
    for costs in EQUAL:
        found = bubble(name, 4, costs)
        assert found.relation == "exact"
        assert simulate(make_schedule(name, 4, 8), costs).idle == pytest.approx([found.time] * 4)


def idlest(schedule, costs):
    return max(simulate(schedule, costs).idle)


@pytest.mark.parametrize("name", SCHEDULES)
def test_formulas_elsewhere_are_bounds(name):
    """Over 27 costs, with and without overlap: exact, at most and at least are what they say."""
    schedule = make_schedule(name, 4, 8)
    seen = set()
    for plain in COSTS:
        backward = plain.input_grad + plain.weight_grad
        hidden = min(plain.forward, backward)
        half = replace(plain, overlapped=plain.forward + backward - hidden / 2)
        for costs in (plain, half) if name.startswith("dualpipe") else (plain,):
            formula, idle = bubble(name, 4, costs), idlest(schedule, costs)
            seen.add(formula.relation)
            if formula.relation == "exact":
                assert idle == pytest.approx(formula.time)
            elif formula.relation == "at most":
                assert idle < formula.time
            else:
                assert idle > formula.time - 1e-9
    expected = {"exact"} if "1f1b" in name or name == "gpipe" else {"exact", "at least"}
    assert seen == expected | ({"at most"} if name.startswith("dualpipe") else set())


def test_1f1b_and_zb1p_in_other_sizes():
    for n_ranks, n_microbatches in ((2, 2), (3, 7), (8, 16), (4, 10)):
        costs = Costs(1, 2, 0.5)
        for name in ("gpipe", "1f1b"):
            want = (n_ranks - 1) * 3.5
            assert bubble(name, n_ranks, costs).time == want
            assert (
                simulate(make_schedule(name, n_ranks, n_microbatches), costs).idle
                == [pytest.approx(want)] * n_ranks
            )
    for n_ranks, n_microbatches in ((2, 2), (3, 6), (8, 16), (4, 10)):
        want = (n_ranks - 1) * (1 + 2.5 - 2 * 0.5)
        assert (
            simulate(zb1p(n_ranks, n_microbatches), costs).idle == [pytest.approx(want)] * n_ranks
        )


def test_overlap_leaves_the_middle_ranks_idlest():
    # S = 8, F = I = W = 1, FB = 2.5: the formula's 4.5 is the inner ranks' idle time.
    costs = Costs(overlapped=2.5)
    assert bubble("dualpipe", 8, costs).time == 4.5
    assert simulate(dualpipe(8, 16), costs).idle == [3.5, 4, 4.5, 4.5, 4.5, 4.5, 4, 3.5]
    assert bubble("dualpipev", 4, costs).time == 4.5
    assert simulate(dualpipev(4, 8), costs).idle == [3.5, 4, 4.5, 4.5]


def test_published_disagreements_with_the_formula():
    # F = 1, B = 3, W = 1: 3 against 4 on 4 stages, 11 against 12 on 8.
    costs = Costs(1, 2, 1)
    for ranks, idle, formula in ((4, 3, 4), (8, 11, 12)):
        assert idlest(dualpipe(ranks, 2 * ranks), costs) == idle
        assert bubble("dualpipe", ranks, costs).time == formula
    # A long W does not fit where ZB1P puts it, and the formula promises too much.
    assert bubble("zb1p", 4, Costs(1, 1, 3)).time == -3
    assert idlest(zb1p(4, 8), Costs(1, 1, 3)) == 3
    for costs in COSTS:
        f, i, w = costs.forward, costs.input_grad, costs.weight_grad
        assert idlest(zb1p(4, 8), costs) == 3 * (f + i - min(f, i, w))


def test_formulas_do_not_know_everything():
    with pytest.raises(ValueError, match="use simulate"):
        bubble("1f1b", 4, Costs(communication=1))
    with pytest.raises(ValueError, match="use simulate"):
        bubble("1f1b", 4, Costs(forward=[1, 1, 1, 2]))
    with pytest.raises(ValueError, match="choose one of"):
        bubble("1F1B", 4)
    with pytest.raises(ValueError, match="n_ranks=0"):
        bubble("1f1b", 0)


# the published step -------------------------------------------------------------------------------


def test_published_step_by_hand():
    decoded = decode_step()
    assert decoded.counts == {"F": 23, "B": 8, "I": 15, "W": 15, "FB": 97}
    # By hand: FB 13.95 / 97, B (1.99 + 0.48) / 23, W 0.48 / 15; 7 (FB + B - 3W).
    pair, backward, weight = 13.95 / 97, 2.47 / 23, 0.48 / 15
    assert decoded.costs.overlapped == pytest.approx(pair)
    assert decoded.costs.forward == pytest.approx(1.13 / 23)
    assert decoded.formula.time == pytest.approx(7 * (pair + backward - 3 * weight))
    assert round(decoded.formula.time, 2) == 1.09
    assert (decoded.measured, round(decoded.unexplained, 2)) == (2.06, 0.97)
    with pytest.raises(
        ValueError, match=r"rank 7's: with 103 pairs each takes 0\.1354 s.* 0\.1453 s"
    ):
        decode_step(7)
    assert decode_step(4).counts["FB"] == 101


def test_published_step_simulated():
    decoded = decode_step()
    # I is longer than F here, so the formula is a bound, and the simulation stays below it.
    assert decoded.formula.relation == "at most"
    assert 0.95 < min(decoded.simulated.idle) < max(decoded.simulated.idle) < decoded.formula.time
    # On rank 0 the parts are the published ones again.
    assert decoded.simulated.busy[0] == pytest.approx(1.13 + 1.99 + 0.48 + 13.95)
    assert PUBLISHED_STEP.total == pytest.approx(19.90)
    with pytest.raises(ValueError, match="ranks 0 to 15"):
        decode_step(16)
