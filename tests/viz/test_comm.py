"""Copies of a token: the arrows are those that counting finds."""

import numpy as np
import pytest
from matplotlib.patches import FancyArrowPatch

from minids3.sim.comm import count_copies, random_routing
from minids3.viz.comm import copies_map, describe_copies, token_copies
from minids3.viz.show import picture

WAYS = {"a row for each choice": False, "a copy for each node": True}


def test_copies_are_those_of_the_simulation():
    for seed in range(20):
        experts = random_routing(1, limit=4, seed=seed)
        home = seed * 3
        counted = count_copies(experts, np.array([home]))
        row = experts[0].tolist()
        infiniband, nvlink = token_copies(row, home, 4, 8, True)
        assert (len(infiniband), len(nvlink)) == (counted.remote_nodes, counted.nvlink)
        infiniband, nvlink = token_copies(row, home, 4, 8, False)
        assert (len(infiniband), len(nvlink)) == (counted.remote_experts, counted.local_experts)


def test_a_copy_enters_at_the_number_of_home_and_is_forwarded():
    # 2 experts a GPU, 4 GPUs a node: experts 2, 3 on GPU 1, 9 on 4, 10 on 5, 16 on 8; home 5.
    infiniband, nvlink = token_copies([2, 3, 9, 10, 16], 5, 2, 4, True)
    assert infiniband == [(5, 1), (5, 9)]
    assert nvlink == [(5, 4), (9, 8)]
    infiniband, nvlink = token_copies([2, 3, 9, 10, 16], 5, 2, 4, False)
    assert infiniband == [(5, 1), (5, 1), (5, 8)]
    assert nvlink == [(5, 4)]


def test_an_arrow_for_each_copy_and_a_title_that_counts_them():
    fig = copies_map(WAYS, [2, 3, 9, 10, 16], 5, 24, 12, 4)
    arrows = [sum(isinstance(p, FancyArrowPatch) for p in ax.patches) for ax in fig.axes]
    assert arrows == [4, 4]
    assert "3 over InfiniBand, 1 over NVLink" in fig.axes[0].get_title(loc="left") + fig.axes[
        0
    ].get_title(loc="center")
    assert [t.get_text() for t in fig.axes[1].texts] == ["2", "1", "1", "1"]
    words = describe_copies(WAYS, [2, 3, 9, 10, 16], 5, 24, 12, 4)
    assert "chose 5 experts on 3 nodes" in words
    assert "a copy for each node: 2 arrows over InfiniBand, 2 over NVLink." in words
    assert picture(fig, words).alt == words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([24], 0, 24, 12, 4), "between 0 and 23"),
        (([], 0, 24, 12, 4), "between 0 and 23"),
        (([1], 12, 24, 12, 4), "home=12"),
        (([1], 0, 25, 12, 4), "must divide"),
        (([1], 0, 24, 12, 5), "must divide"),
    ],
)
def test_tokens_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        copies_map(WAYS, *arguments)
    with pytest.raises(ValueError, match=message):
        describe_copies(WAYS, *arguments)
