"""The Bill's line on multi-token prediction against hand calculations."""

import pytest

from minids3.sim import bill


def test_line_06_is_one_plus_the_published_acceptance():
    line = bill.line_06()
    assert line.notebook == "06"
    assert line.value == pytest.approx(1.85)
    assert "1.85 at p = 85%" in line.formula
    assert "1.90 at 90%" in line.formula
    assert line.kind == "computed"
    assert line.gpu_hours is None


def test_line_06_counts_the_module_in_training():
    # One attention, nine experts of 3 x 7168 x 2048, the router, eh_proj and the shared head; the
    # attention's two latent norms are no products. Scores and values: 128 heads x 320 x 4096 / 2.
    weights = 187_107_328 - 2048 + 9 * 44_040_192 + 1_835_008 + 2 * 7168**2 + 129_280 * 7168
    extra = 6 * (weights + 128 * 320 * 2048) / 1e9
    formula = bill.line_06().formula
    assert "260.6 instead of 250.4 GFLOP" in formula
    assert abs(extra - (260.6 - 250.4)) < 0.06
    assert "+4.1 %" in formula


def test_the_bill_shows_it():
    text = repr(bill.show(upto="06"))
    assert "1.85 tokens per step" in text
    assert max(map(len, text.splitlines())) <= 76
