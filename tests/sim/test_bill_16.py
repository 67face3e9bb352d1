"""Line 16 against hand calculations."""

import pytest

from minids3.sim import bill


def test_line_16():
    line = bill.line_16()
    assert line.value == pytest.approx(16 / (14.8e3 * 3600) * 1e6)  # $16 a node and hour
    assert (line.gpu_hours, line.dollars) == (None, None)
    # 608e9 / 73.7e3 / 86,400 + 168e9 / 14.8e3 / 86,400 = 95.48 + 131.38 nodes;
    # 342e3 x 0.014 + 266e3 x 0.14 + 168e3 x 0.28 = $89,068; 226.75 x 8 x 24 x 2 = $87,072.
    for figure in ("$0.060", "$0.138", "226.9 nodes", "226.75", "$89.1K", "$87.1K", "+2.3 %"):
        assert figure in line.formula
    assert bill.lines(upto="16")[-1] == line
    assert max(map(len, repr(bill.show(upto="16")).splitlines())) <= 76
