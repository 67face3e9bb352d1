"""The Bill's line of notebook 08 against hand calculations."""

import pytest

from minids3.config import get_config
from minids3.sim import bill
from minids3.sim.bill.lines_08 import bytes_per_number, fp8_share, speed_limit


def test_share_by_hand():
    attention = 7168 * 1536 + 1536 * 24576 + 7168 * 576 + 512 * 32768 + 16384 * 7168
    expert = 3 * 7168 * 2048
    linear = 61 * attention + 3 * 3 * 7168 * 18432 + 58 * 9 * expert
    other = 58 * 256 * 7168 + 129_280 * 7168 + 61 * 128 * (192 + 128) * 4096 // 2
    share = fp8_share(get_config("v3_671b"))
    assert share == pytest.approx(linear / (linear + other), rel=1e-12)
    assert 0.85 < share < 0.86


def test_line_08_is_amdahls_bound():
    line = bill.line_08()
    share, rate = fp8_share(get_config("v3_671b")), 1979 / 989.4
    assert line.value == pytest.approx(1 / (1 - share + share / rate), rel=1e-12)
    assert 1.7 < line.value < 1.8
    assert line.kind == "computed"
    assert line.gpu_hours is None
    assert "MEM" in line.source
    assert "1.031 (activations) and 1.0002 (weights)" in line.formula


def test_helpers():
    assert bytes_per_number((1, 128)) == 1 + 4 / 128
    assert bytes_per_number((128, 128)) == 1 + 4 / 16384
    assert speed_limit(0.0, 2) == 1
    assert speed_limit(1.0, 2) == 2
    with pytest.raises(ValueError, match="at least one row"):
        bytes_per_number((0, 128))
    with pytest.raises(ValueError, match="share="):
        speed_limit(1.5, 2)


def test_the_bill_shows_it():
    text = repr(bill.show(upto="08"))
    assert "times (computed)" in text
    assert max(map(len, text.splitlines())) <= 76
