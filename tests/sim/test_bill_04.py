"""The Bill's line of notebook 04 against a hand calculation and the published hours."""

import pytest

from minids3.sim import bill


def test_line_04_by_hand():
    line = bill.line_04()
    expert = 3 * 7168 * 2048
    attention = 7168 * 1536 + 1536 * 24576 + 7168 * 576 + 512 * 32768 + 16384 * 7168
    weights = (
        61 * attention
        + 3 * 3 * 7168 * 18432
        + 58 * (9 * expert + 256 * 7168)
        + 129_280 * 7168  # the output head; the embedding is a lookup
    )
    scores = 61 * 128 * (192 + 128) * 4096 // 2
    by_hand = 6 * (weights + scores)
    assert line.value == pytest.approx(by_hand / 1e9, rel=1e-12)
    assert line.value == pytest.approx(250.4, abs=0.05)  # [C-flops]
    assert line.gpu_hours == pytest.approx(by_hand * 14.8e12 / 385e12 / 3600, rel=1e-12)
    assert line.dollars == 2 * line.gpu_hours


def test_line_04_is_near_the_published_pre_training_hours():
    line = bill.line_04()
    assert line.gpu_hours == pytest.approx(2_664_000, rel=0.01)
    assert line.without_hours == bill.line_02().gpu_hours
    assert line.saved_hours == pytest.approx(38.96e6, rel=1e-3)


def test_line_04_says_why_it_is_near():
    line = bill.line_04()
    assert "not a prediction" in line.leaves_out
    assert bill.lines(upto="04")[-1] == line
    assert max(map(len, repr(bill.show(upto="04")).splitlines())) <= 76
