"""Line 14 against hand calculations."""

import pytest

from minids3.sim import bill
from minids3.sim.bill import lines_14


def test_exposed_and_hidden():
    pairs = 2.664e6 * 13.95 / 19.926
    assert lines_14.exposed_hours() == pytest.approx(pairs * 10.8 / 129.0, rel=1e-9)
    assert lines_14.hidden_hours() == pytest.approx(pairs * 103.7 / 129.0, rel=1e-9)
    assert 156e3 < lines_14.exposed_hours() < 157e3


def test_line_14():
    line = bill.line_14()
    assert line.saved_hours == pytest.approx(1.499e6, rel=1e-3)
    for figure in ("13.95 of 19.926 s", "129.0 ms", "10.8 are not", "232.7"):
        assert figure in line.formula
    assert bill.lines(upto="14")[-1] == line
    assert max(map(len, repr(bill.show(upto="14")).splitlines())) <= 76
