"""What a call has changed in place is put back, so that later items rest on the check's numbers."""

import contextlib
import copy

import pytest
import torch

from minids3.course.checker import Checker, Stop
from minids3.course.compare import put_back, snapshot, unchanged


def clear(x):
    x.clear()


def nested(x):
    x["a"][0].zero_()
    x["b"].append(4)
    x["c"] = 5
    del x["d"]


@pytest.mark.parametrize(
    ("value", "change"),
    [
        (torch.arange(6.0).view(2, 3), torch.Tensor.zero_),
        (torch.arange(6.0).view(2, 3).T, torch.Tensor.zero_),
        (torch.arange(6.0)[::2], torch.Tensor.zero_),
        (torch.tensor([1.0, float("nan")]), torch.Tensor.zero_),
        ([1, [2, 3], torch.ones(2)], clear),
        ([1, 2], lambda x: x.append(3)),
        ({"a": (torch.ones(2),), "b": [1, 2], "d": 3}, nested),
    ],
)
def test_a_changed_argument_is_put_back(value, change):
    before = snapshot(value)
    change(value)
    assert not unchanged(before, value)
    put_back(value, before)
    assert unchanged(before, value)


def test_what_has_no_place_for_each_number_is_left():
    value = torch.ones(1).expand(3)
    put_back(value, torch.zeros(3))
    assert value.tolist() == [1, 1, 1]


def raising(x):
    x.zero_()
    raise ValueError("no")


@pytest.mark.parametrize(
    "use",
    [
        lambda c, x: c.call(x, label="runs"),
        lambda c, x: c.raises(ValueError, x, label="is refused"),
        lambda c, x: c.raises(TypeError, x, label="is refused"),
    ],
)
@pytest.mark.parametrize("fn", [raising, lambda x: x.zero_()])
def test_the_check_s_own_numbers_stay(use, fn):
    x = torch.arange(4.0)
    kept = copy.deepcopy(x)
    c = Checker("x", fn)
    with contextlib.suppress(Stop):
        use(c, x)
    assert torch.equal(x, kept)
