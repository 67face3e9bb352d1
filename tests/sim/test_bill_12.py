"""The Bill's line 12 against calculations by hand and the published figures."""

import pytest

from minids3.sim import bill
from minids3.sim.bill.lines_12 import (
    hours_by_steps,
    mfu,
    published_mfu,
    tokens_per_second_per_gpu,
)


def test_mfu_by_hand():
    assert mfu(10, 5, 100) == 0.5
    for wrong in ((0, 5, 100), (10, -1, 100), (10, 5, 0)):
        with pytest.raises(ValueError, match="greater than 0"):
            mfu(*wrong)


def test_published_run():
    assert tokens_per_second_per_gpu() == pytest.approx(14.8e12 / 2.664e6 / 3600, rel=1e-12)
    assert round(tokens_per_second_per_gpu()) == 1543
    weights = 36.6246e9  # that a token is multiplied by, see C-flops
    by_hand = 1543.2 * 6 * (weights + 61 * 128 * 320 * 2048) / 989.4e12
    assert published_mfu() == pytest.approx(by_hand, rel=1e-4)
    assert published_mfu() == pytest.approx(0.391, abs=5e-4)
    # ISCA table 4 measured 38.94 % with a peak of about 988.
    assert published_mfu() == pytest.approx(0.3894, rel=0.01)


def test_hours_by_steps():
    # ISCA's 272.80B tokens a day, on 2,048 GPUs.
    assert hours_by_steps() == pytest.approx(14.8e12 / 272.80e9 * 24 * 2048, rel=1e-3)
    assert hours_by_steps() == pytest.approx(2.664e6, rel=2e-3)


def test_line_12():
    line = bill.line_12()
    assert line.value == line.gpu_hours == 2.664e6
    assert line.dollars == pytest.approx(5.328e6)
    assert "2,667K" in line.formula
    assert "39.1 %" in line.formula
    assert "TR table 1" in line.source
    assert [e.notebook for e in bill.lines("12")][-1] == "12"
