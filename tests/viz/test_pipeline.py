"""Timelines: a box for each action where it belongs, and what the alt text says."""

import pytest

from minids3.sim.pipeline import Costs, Timeline, dualpipe, dualpipev, one_f_one_b, simulate, zb1p
from minids3.viz.pipeline import (
    ACTION_COLORS,
    describe_streams,
    describe_timelines,
    streams,
    timelines,
)
from minids3.viz.show import picture


def boxes(ax):
    """(left, right, top, bottom, colour) of each box."""
    from matplotlib.colors import to_hex

    found = []
    for bar in ax.collections:
        (x0, y0), (x1, y1) = bar.get_paths()[0].get_extents().get_points()
        color = to_hex(bar.get_facecolor()[0]).upper()
        found.append((x0, x1, min(y0, y1), max(y0, y1), color))
    return found


def test_a_box_for_each_action():
    timeline = simulate(one_f_one_b(2, 2), Costs(2, 3, 1))
    ax = timelines(timeline).axes[0]
    found = [(x0, x1, round((y0 + y1) / 2), color) for x0, x1, y0, y1, color in boxes(ax)]
    expected = [
        (span.start, span.end, rank, ACTION_COLORS[span.action.kind])
        for rank, spans in enumerate(timeline.spans)
        for span in spans
    ]
    assert found == expected
    assert [text.get_text() for text in ax.texts] == ["0", "1", "0", "1", "0", "0", "1", "1"]
    assert ax.get_xlabel() == "time"
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # rank 0 on top
    assert ax.lines[0].get_xdata()[0] == timeline.makespan
    assert ax.get_title(loc="center") + ax.get_title(loc="left") == "1F1B: 18, idle 33 %"


def test_pairs_are_halved_and_the_other_stage_is_paler():
    timeline = simulate(dualpipev(1, 3), Costs(overlapped=2))
    found = boxes(timelines(timeline).axes[0])
    label = timelines(timeline, "ms").axes[-1].get_xlabel()
    assert label == "time (ms)\npaler: a rank's other stage; one above the other: both together"
    both = [(part, span) for span in timeline.spans[0] for part in span.action.parts]
    assert {part.kind for part, _ in both} == set(ACTION_COLORS)
    for (part, span), (x0, x1, top, bottom, color) in zip(both, found, strict=True):
        assert (x0, x1) == (span.start, span.end)
        assert bottom - top == pytest.approx(0.86 / len(span.action.parts))
        full = int(ACTION_COLORS[part.kind][1:], 16)
        assert (int(color[1:], 16) > full) == (part.stage == 1)
        assert (color == ACTION_COLORS[part.kind]) == (part.stage == 0)


def test_one_direction_of_dualpipe_is_paler_on_all_ranks():
    timeline = simulate(dualpipe(2, 4))
    found = boxes(timelines(timeline).axes[0])
    parts = [part for rank in timeline.spans for span in rank for part in span.action.parts]
    pale = [color != ACTION_COLORS[p.kind] for p, (*_, color) in zip(parts, found, strict=True)]
    assert pale == [part.direction == 1 for part in parts]


def test_panels_share_one_scale_and_large_ones_have_no_numbers():
    panels = {"small": simulate(zb1p(2, 4)), "large": simulate(one_f_one_b(8, 24))}
    fig = timelines(panels, unit="ms")
    small, large = fig.axes
    assert small.get_xlim() == large.get_xlim()
    assert small.get_xlim()[1] > panels["large"].makespan
    assert len(small.texts) == sum(map(len, panels["small"].spans))
    assert len(large.texts) == 0
    assert large.get_xlabel() == "time (ms)"
    names = [text.get_text() for text in fig.legends[0].get_texts()]
    assert names == ["forward", "backward", "input gradient", "weight gradient"]


def test_alt_text():
    panels = {
        "1F1B": simulate(one_f_one_b(4, 8)),
        "DualPipeV": simulate(dualpipev(4, 8), Costs(overlapped=2.5)),
    }
    text = describe_timelines(panels)
    assert "1F1B: 4 ranks take 33 and are idle for 9 of it, 27 %." in text
    assert "are idle for 3.5 to 4.5 of it" in text
    assert "take 33 ms and" in describe_timelines(panels, unit="ms")
    assert picture(timelines(panels), alt=text).alt == text


def test_nothing_to_draw():
    for nothing in ({}, Timeline("empty", ((), ()))):
        with pytest.raises(ValueError, match="nothing to draw"):
            timelines(nothing)
        with pytest.raises(ValueError, match="nothing to draw"):
            describe_timelines(nothing)


TWO = {
    "compute": {"mlp F 0": (0.0, 2.0), "mlp W 1": (2.0, 5.0)},
    "links": {"send F 0": (2.0, 2.5), "send B 1": (3.0, 7.0)},
}


def test_streams_have_a_row_each_and_a_box_for_each_task():
    ax = streams({"both": TWO}, "ms").axes[0]
    found = [(x0, x1, round((y0 + y1) / 2)) for x0, x1, y0, y1, _ in boxes(ax)]
    assert found == [(0, 2, 0), (2, 5, 0), (2, 2.5, 1), (3, 7, 1)]
    colors = [color for *_, color in boxes(ax)]
    assert colors[0] == ACTION_COLORS["F"] == colors[2]
    assert colors[1] != ACTION_COLORS["W"]  # layer 1 is paler
    assert [text.get_text() for text in ax.get_yticklabels()] == ["compute", "links"]
    assert ax.lines[0].get_xdata()[0] == 7
    assert ax.get_title(loc="center") + ax.get_title(loc="left") == "both: 7 ms"
    words = describe_streams({"both": TWO}, "ms")
    assert "both: takes 7 ms; compute is busy for 5, links is busy for 4.5." in words


@pytest.mark.parametrize("wrong", ["send", "send X 1", "send F one"])
def test_tasks_of_streams_have_a_kind_and_a_layer(wrong):
    with pytest.raises(ValueError, match="expected what"):
        streams({"a": {"links": {wrong: (0.0, 1.0)}}})


def test_no_streams():
    with pytest.raises(ValueError, match="nothing to draw"):
        streams({})
    with pytest.raises(ValueError, match="nothing to draw"):
        streams({"a": {"links": {}}})
    with pytest.raises(ValueError, match="nothing to describe"):
        describe_streams({})
