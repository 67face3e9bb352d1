"""The Bill's line 10 against a calculation by hand."""

import pytest

from minids3.sim import bill
from minids3.sim.bill.lines_10 import fp8_share, most_saved_hours, speedup


def test_share_by_hand():
    attention = 61 * (187_107_328 - 2_048)
    experts = 58 * 9 * 44_040_192
    dense = 3 * 396_361_728
    head, gates = 926_679_040, 58 * 1_835_008
    core = 61 * 128 * 320 * 2048
    fp8 = attention + experts + dense
    assert fp8_share() == pytest.approx(fp8 / (fp8 + head + gates + core), rel=1e-12)
    assert 0.85 < fp8_share() < 0.86


def test_amdahl():
    assert speedup(0) == 1
    assert speedup(1) == 2
    assert speedup(0.5, 4) == pytest.approx(1 / (0.5 + 0.125))
    for wrong in ((1.1, 2), (0.5, 0)):
        with pytest.raises(ValueError, match="must lie in"):
            speedup(*wrong)


def test_line_10():
    line = bill.line_10()
    share = fp8_share()
    assert line.value == pytest.approx(2.664e6 * (share / 2) / (1 - share / 2), rel=1e-12)
    assert line.value == most_saved_hours()
    assert line.saved_hours == pytest.approx(line.value)
    assert line.gpu_hours == 2.664e6
    assert "TR table 1" in line.source
