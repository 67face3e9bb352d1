"""The Bill's line 05 against a calculation by hand."""

import pytest

from minids3.sim import bill
from minids3.sim.bill.lines_05 import MAXVIO_LFB, expert_gpu_hours, imbalance_gpu_hours


def test_expert_hours_by_hand():
    hours, share = expert_gpu_hours()
    flops = 6 * 8 * 58 * 3 * 7168 * 2048
    assert hours == pytest.approx(flops * 14.8e12 / 385e12 / 3600, rel=1e-12)
    assert 0.485 < share < 0.495


def test_line_05_prices_the_difference_of_the_published_violations():
    line = bill.line_05()
    hours = 6 * 8 * 58 * 44_040_192 * 14.8e12 / 385e12 / 3600
    assert MAXVIO_LFB["1B"] == (0.72, 0.04)
    assert line.value == pytest.approx(hours * 0.68, rel=1e-9)
    assert line.saved_hours == pytest.approx(line.value, rel=1e-9)
    assert line.kind == "computed"
    assert line.gpu_hours == 2.664e6  # TR table 1: the run with the bias
    assert "LFB" in line.source


def test_imbalance():
    assert imbalance_gpu_hours(0.0) == 0
    assert imbalance_gpu_hours(1.0) == pytest.approx(expert_gpu_hours()[0])
    with pytest.raises(ValueError, match="0 or more"):
        imbalance_gpu_hours(-0.1)
