"""Line 15 against hand calculations."""

import pytest

from minids3.sim import bill
from minids3.sim.bill import lines_15


def test_bubble_hours():
    assert lines_15.bubble_hours() == pytest.approx(2.664e6 * 2.06 / 19.926, rel=1e-12)
    assert 275e3 < lines_15.bubble_hours() < 276e3


def test_1f1b_with_the_same_actions():
    # 23 F, 23 B and I, 15 W and 97 pairs of an outer rank; 1F1B does (120 + 15) (F + B).
    forward, backward = 1.13 / 23, (1.99 + 0.48) / 23
    assert 135 * (forward + backward) == pytest.approx(21.13, abs=0.005)
    assert lines_15.longer_by_1f1b() == pytest.approx(21.13 - 18.51, abs=0.01)


def test_line_15():
    line = bill.line_15()
    assert line.gpu_hours == 2.664e6
    assert line.saved_hours == pytest.approx(2.664e6 * 2.62 / 19.926, rel=0.005)
    for figure in ("2.06 of 19.926 s", "10.3 %", "1.09 s", "2.62 s"):
        assert figure in line.formula
    assert bill.lines(upto="15")[-1] == line
    assert max(map(len, repr(bill.show(upto="15")).splitlines())) <= 76
