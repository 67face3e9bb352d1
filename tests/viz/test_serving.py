"""Pages and places: what is drawn is what was given."""

import matplotlib.colors
import pytest
from matplotlib.patches import Rectangle

from minids3.viz.serving import Served, batches, in_places, page_map
from minids3.viz.show import picture
from minids3.viz.style import PALETTE


def test_every_row_has_its_texts_colour():
    fig = page_map([[2, 0], [3]], [5, 2], 5, 4)
    faces = [matplotlib.colors.to_hex(p.get_facecolor()).upper() for p in fig.axes[0].patches]
    assert faces.count(PALETTE[0].upper()) == 5
    assert faces.count(PALETTE[1].upper()) == 2
    assert faces.count("#EFEDE6") == 5 * 4 - 7
    assert sorted(t.get_text() for t in fig.axes[0].texts) == ["A", "A", "B"]
    assert picture(fig, "Five pages, of which two texts hold three").width > 100


@pytest.mark.parametrize(
    ("tables", "lengths", "message"),
    [([[0], [0]], [1, 1], "held twice"), ([[5]], [1], "not exist"), ([[0]], [5], "5 rows and 1")],
)
def test_memory_that_cannot_be(tables, lengths, message):
    with pytest.raises(ValueError, match=message):
        page_map(tables, lengths, 5, 4)


def test_a_place_is_used_again_as_soon_as_it_is_free():
    served = [Served(0, 0, 0, 5), Served(1, 0, 0, 2), Served(2, 1, 2, 4), Served(3, 1, 4, 6)]
    assert in_places(served) == [0, 1, 1, 1]


def test_bars_are_as_long_as_the_requests():
    served = [Served(0, 0, 0, 5), Served(1, 0, 0, 2), Served(2, 1, 2, 4)]
    fig = batches({"one": served, "two": served[:2]}, 2)
    widths = [[p.get_width() for p in ax.patches if isinstance(p, Rectangle)] for ax in fig.axes]
    assert widths == [[5, 5, 2, 2], [5, 5, 2]]
    titles = "".join(ax.get_title(loc=side) for ax in fig.axes for side in ("left", "center"))
    assert "one: 5 steps" in titles
    with pytest.raises(ValueError, match="2 requests at a time in 1"):
        batches({"one": served}, 1)
    with pytest.raises(ValueError, match="nothing was served"):
        batches({"one": []}, 2)
    with pytest.raises(ValueError, match="in this order"):
        Served(0, 3, 2, 5)
