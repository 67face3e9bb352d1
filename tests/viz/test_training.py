"""The dashboard: events by hand, panels with what the log holds, and a watch on a growing log."""

import json

import pytest

from minids3.course.exercises.nb12_training_run.spikes import find_events
from minids3.viz.training import Watch, dashboard, describe_run, loss_events


def noisy(n):
    return [1.0 + 0.01 * ((7 * t) % 5 - 2) for t in range(n)]


def step(n, **more):
    entry = {"kind": "step", "step": n, "tokens": 256 * n, "loss": 3.0 / n, "lr": 1e-3}
    return entry | {"grad_norm": 0.5, "tokens_per_second": 100.0, "memory_mib": 10.0} | more


def evaluation(n, **more):
    entry = {"kind": "evaluation", "step": n, "tokens": 256 * n, "loss": 2.5, "floor": 0.4}
    return entry | {"ema_loss": None, "acceptance": None} | more


def test_events_by_hand():
    losses = noisy(200)
    losses[80] = 2.0
    losses[120:124] = [1.5] * 4
    losses[190:] = [1.4] * 10
    found = loss_events(losses)
    assert found == [(80, 1, "bad batch"), (120, 4, "spike"), (190, 10, "open")]
    assert loss_events(losses, factor=100) == []
    assert loss_events(losses, window=195) == [(195, 5, "open")]
    assert loss_events([]) == loss_events([1.0] * 60) == []
    with pytest.raises(ValueError, match="window=0"):
        loss_events(losses, window=0)


def test_the_exercise_finds_the_same_events():
    losses = noisy(300)
    for at, length, height in ((60, 1, 0.3), (64, 3, 0.5), (200, 20, 0.2), (299, 1, 1.0)):
        for t in range(at, at + length):
            losses[t] += height
    assert [tuple(e) for e in find_events(losses)] == loss_events(losses)
    assert len(loss_events(losses)) == 4


def test_every_panel_draws_what_the_log_holds():
    steps = [step(n, mtp_loss=2.0, max_violation=[0.1 * n, 0.2]) for n in range(1, 9)]
    last = evaluation(8, ema_loss=2.4, acceptance=0.8)
    fig = dashboard([*steps, last], "a run")
    loss, rate, balance, mtp, norm, speed = fig.axes[:6]
    assert loss.get_yscale() == "log"
    above = loss.lines[0].get_ydata()
    assert above == pytest.approx([3.0 / n - 0.4 for n in range(1, 9)])
    assert loss.lines[1].get_ydata() == pytest.approx([2.1])
    assert loss.lines[2].get_ydata() == pytest.approx([2.0])
    assert rate.lines[0].get_ydata() == pytest.approx([1e-3] * 8)
    assert balance.collections[0].get_array().shape == (2, 8)
    assert balance.collections[0].get_array()[0, 3] == pytest.approx(0.4)
    assert mtp.lines[0].get_ydata() == pytest.approx([2.0] * 8)
    assert norm.lines[0].get_ydata() == pytest.approx([0.5] * 8)
    assert speed.lines[0].get_ydata() == pytest.approx([100.0] * 8)
    assert all("tokens seen" in ax.get_xlabel() and ax.get_ylabel() for ax in fig.axes[:6])
    fig.canvas.draw()


def test_a_growing_batch_is_drawn():
    steps = [step(1), step(2), step(3, tokens=2000)]
    fig = dashboard(steps)
    twins = [ax for ax in fig.axes if "tokens a batch" in ax.get_ylabel()]
    assert twins[0].lines[0].get_ydata() == pytest.approx([256, 2000 - 512])


def test_a_plain_run_says_what_it_lacks():
    fig = dashboard([step(1), step(2, loss=None)])
    words = [t.get_text() for ax in fig.axes for t in ax.texts]
    assert "no experts in this model" in words
    assert "no MTP module in this model" in words
    fig.canvas.draw()


def test_nothing_to_draw():
    for draw in (dashboard, describe_run):
        with pytest.raises(ValueError, match="no step yet"):
            draw([evaluation(0)])


def test_words_for_readers_without_the_picture():
    words = describe_run([step(1), step(2, grad_norm=3.0), evaluation(2)])
    assert "from 3.00 to 1.50 nats" in words
    assert "2.500 on held-out text with a floor of 0.400" in words
    assert "at most 3.0" in words


def test_watch_draws_only_what_is_new(tmp_path):
    path = tmp_path / "log.jsonl"
    watch = Watch(tmp_path)
    watch._redraw()  # no log yet
    assert watch.drawn == 0
    path.write_text(json.dumps(evaluation(0)) + "\n")
    watch._redraw()
    assert watch.drawn == 0

    class Widget:
        value = b""

    watch._widget = Widget()
    path.write_text("".join(json.dumps(step(n)) + "\n" for n in (1, 2)))
    watch._redraw()
    assert watch.drawn == 2
    assert watch._widget.value.startswith(b"\x89PNG")
    watch._widget.value = b"old"
    watch._redraw()
    assert watch._widget.value == b"old"


def test_watch_outside_a_notebook_is_nothing(tmp_path):
    with Watch(tmp_path) as watch:
        pass
    assert watch._thread is None
