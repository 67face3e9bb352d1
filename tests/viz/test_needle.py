"""Needle maps: which cell an outcome falls into."""

import numpy as np
import pytest

from minids3.evals import Found
from minids3.viz.needle import needle_maps, needle_shares


def test_cells():
    found = [
        Found(200, 10, True, False),
        Found(195, 199 // 2, False, False),  # 195 and 200 are one row
        Found(400, 399, True, False),
        Found(400, 398, False, False),
    ]
    lengths, shares, count = needle_shares(found, n_bins=4)
    assert lengths == [200, 400]
    assert count.tolist() == [[1, 0, 1, 0], [0, 0, 0, 2]]
    expected = [[1, np.nan, 0, np.nan], [np.nan, np.nan, np.nan, 0.5]]
    np.testing.assert_array_equal(shares, expected)


def test_figure_has_a_map_each_and_a_line_at_the_trained_length():
    found = [Found(n, n // 3, n < 300, False) for n in (200, 400, 800)]
    fig = needle_maps({"before": found, "after": found}, {"before": 200, "after": 800})
    before, after = fig.axes[:2]
    assert [t.get_text() for t in before.texts] == ["100", "0", "0"]
    assert [line.get_ydata()[0] for line in before.lines] == [0.5]
    assert after.lines == [] or len(after.lines) == 0


def test_nothing_looked_for():
    with pytest.raises(ValueError, match="no needle"):
        needle_shares([])
