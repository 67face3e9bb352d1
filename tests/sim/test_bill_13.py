"""Line 13 against hand calculations."""

import pytest

from minids3.sim import bill
from minids3.sim.bill import lines_13


def test_tokens_of_the_two_stages():
    # 1,920 x 32,768 = 480 x 131,072 = 62,914,560 tokens a step.
    assert lines_13.extension_tokens() == 2 * 1000 * 62_914_560


def test_flops_count_the_longer_attention():
    # Per token: 6 x (36.6246B weights + 61 layers x 128 heads x 320 x S / 2).
    by_hand = [6 * (36.6246e9 + 61 * 128 * 320 * s / 2) for s in (32_768, 131_072)]
    assert by_hand == pytest.approx([465e9, 1202e9], rel=0.01)
    per_token = lines_13.extension_flops() / lines_13.extension_tokens()
    assert per_token == pytest.approx(sum(by_hand) / 2, rel=1e-4)


def test_line_13():
    line = bill.line_13()
    assert (line.value, line.dollars, line.gpu_hours) == (119e3, 238e3, None)
    for figure in ("125.8B", "946K", "5.3 times", "3.3 times", "76K hours"):
        assert figure in line.formula
    assert bill.lines(upto="13")[-1] == line
    assert max(map(len, repr(bill.show(upto="13")).splitlines())) <= 76
