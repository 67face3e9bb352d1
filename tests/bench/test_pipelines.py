"""Schedules in real processes: what ranks are told, the clock's readings, the record."""

import itertools

import pytest

from minids3.bench import pipelines
from minids3.bench.records import recorded
from minids3.sim.pipeline import Costs, dualpipe, dualpipev, one_f_one_b, zb1p


def test_a_ranks_steps_are_its_order_and_a_pair_is_two_that_take_its_time():
    costs = Costs(0.5, 0.5, 0.5, overlapped=1.1)
    order = dualpipev(2, 4).orders[0]
    steps = pipelines._steps(order, costs, 0.1)
    parts = [part for action in order for part in action.parts]
    assert [step[:3] for step in steps] == [(p.kind, p.stage, p.microbatch) for p in parts]
    total = sum(costs.of(action) for action in order)
    assert sum(step[3] for step in steps) == pytest.approx(0.1 * total)
    assert min(step[3] for step in steps) == pytest.approx(0.1 * (1.1 - 1.0))


def test_the_clock_is_read_by_action():
    schedule = dualpipev(1, 2)
    n = [len(action.parts) for action in schedule.orders[0]]
    readings = [(5 + 0.2 * i, 5.1 + 0.2 * i) for i in range(sum(n))]
    line = pipelines._timeline("V", schedule, [readings], 0.1)
    assert [span.action for span in line.spans[0]] == list(schedule.orders[0])
    assert line.spans[0][0].start == 0
    lengths = [round(span.end - span.start, 6) for span in line.spans[0]]
    assert lengths == [1.0 if parts == 1 else 3.0 for parts in n]
    assert line.makespan == pytest.approx(2 * sum(n) - 1)


def test_schedules_that_cannot_run_together():
    costs = {"a": Costs(), "b": Costs()}
    with pytest.raises(ValueError, match="equally many ranks"):
        pipelines.run_schedules({"a": zb1p(2, 4), "b": zb1p(4, 8)}, costs)
    with pytest.raises(ValueError, match="one direction"):
        pipelines.run_schedules({"a": dualpipe(2, 4)}, costs)


def test_two_processes_follow_an_order_and_compute_the_gradients_of_one():
    schedules = {"1F1B": one_f_one_b(2, 3), "ZB1P": zb1p(2, 3), "V": dualpipev(2, 4)}
    costs = {"1F1B": Costs(), "ZB1P": Costs(), "V": Costs(0.5, 0.5, 0.5, overlapped=1.1)}
    measured = pipelines.run_schedules(schedules, costs, seconds=0.02)
    assert measured.keys() == schedules.keys()
    for name, step in measured.items():
        assert step.gradient_error < 1e-12
        assert step.loss_error < 1e-12
        # Sleeping takes at least as long as asked; how much longer is the machine's affair.
        assert step.timeline.makespan > 0.99 * step.simulated
        for spans, order in zip(step.timeline.spans, schedules[name].orders, strict=True):
            assert [span.action for span in spans] == list(order)
            assert all(a.end <= b.start for a, b in itertools.pairwise(spans))


def test_the_record_is_that_of_the_notebooks_schedules():
    about = recorded("pipelines")
    assert about is not None
    measured = pipelines.read_record(about)
    assert list(measured) == list(pipelines.PLANS)
    for step in measured.values():
        assert step.gradient_error < 1e-12
        assert step.simulated < step.timeline.makespan < 1.2 * step.simulated
    lengths = {name: step.timeline.makespan for name, step in measured.items()}
    assert max(lengths, key=lengths.__getitem__) == "1F1B"
    assert min(lengths, key=lengths.__getitem__) == "DualPipeV, pairs overlapped"


def test_the_record_of_experts_agrees_with_the_formulas():
    from minids3.bench import experts
    from minids3.course.exercises.nb14_experts_across_slow_links.copies import count_rows
    from minids3.course.exercises.nb14_experts_across_slow_links.sent_bytes import layer_bytes

    about = recorded("experts")
    assert about is not None
    assert max(about["differences"].values()) < 1e-12
    import torch

    home = torch.repeat_interleave(torch.arange(4), torch.tensor(experts.SHARES))
    rows = count_rows(experts.everything()[1], home, experts.EXPERTS, 4, 2)
    sent = about["sent"]
    assert [layer_bytes(n, experts.WIDTH) for n in rows] == [
        a + b for a, b in zip(sent["dispatch"], sent["combine"], strict=True)
    ]
