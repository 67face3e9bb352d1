"""Notebook 17's line: one draft lowers the price with few users and not with many."""

import pytest

from minids3.sim import bill
from minids3.sim.bill import lines_17


def test_price_with_and_without_a_draft():
    assert lines_17.decode_price(1) == pytest.approx(2 / 3600 / 143.4937250150792 * 1e6)
    assert lines_17.decode_price(1, 0.85) < 0.6 * lines_17.decode_price(1)


def test_full_links_carry_both_columns_and_earn_only_the_accepted():
    """Where links alone decide, a step of two columns takes twice as long and makes 1 + p."""
    for batch in (128, 256):
        ratio = lines_17.decode_price(batch, 0.85) / lines_17.decode_price(batch)
        assert ratio == pytest.approx(2 / 1.85)


def test_line_says_both():
    line = bill.line_17()
    assert line.value == pytest.approx(lines_17.decode_price(32, 0.85))
    assert "1.64 times as much" in line.formula
    assert "(0.92 times)" in line.formula
