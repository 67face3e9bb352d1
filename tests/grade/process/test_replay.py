"""Operations written down in one place and repeated on other numbers in another."""

import json

import pytest
import torch

from minids3.grade.process import wire
from minids3.grade.process.replay import Recorder, other_numbers, repeat


def again(fn, *args):
    """Record ``fn`` on other numbers, repeat it on ``args``; return value and cost."""
    forms = wire.encode(list(args))["list"]
    tensors = []

    def note(form):
        tensors.append(wire.tensor_of(form))
        return tensors[-1]

    others = wire.decode(other_numbers({"list": forms}, 1), note)
    with Recorder(tensors) as recorder:
        out = fn(*others)
    told = json.loads(json.dumps([recorder.steps, recorder.result(out)]))
    reply = repeat(forms, *told)
    return wire.decode(reply["value"]), reply["multiply_adds"]


def in_place(x, y):
    out = torch.zeros(x.shape[0], y.shape[1], dtype=torch.float64)
    out += x.double() @ y.double()
    out[0].fill_(3)
    out.masked_fill_(out > 5, float("-inf"))
    return out.float()


def with_constants(x, y):
    table = torch.tensor([[1.0, 2.0, 3.0]]) * torch.arange(3)
    return {"sum": x.sum() + table.sum(), "pair": (x + table, [y.T, 4, None, "word"])}


def views(x, y):
    a, b = x.unflatten(0, (2, -1)).split(1, dim=1)
    values, index = y.topk(2, dim=0)
    return torch.cat((a, b), dim=1).transpose(0, 1).contiguous(), values, y.gather(0, index)


@pytest.mark.parametrize("fn", [in_place, with_constants, views])
def test_the_same_on_other_numbers(fn):
    x, y = torch.randn(4, 3), torch.randn(3, 5)
    got, _ = again(fn, x, y)
    assert wire.encode(got) == wire.encode(fn(x, y))


def test_strides_and_shared_elements():
    x = torch.randn(3, 4).T
    wide = torch.randn(1, 3).expand(5, 3)
    got, spent = again(lambda a, b: (a @ b.T).permute(1, 0), x, wide)
    assert torch.equal(got, (x @ wide.T).T)
    assert spent == 4 * 3 * 5


def test_the_recorder_sees_no_number_of_the_check():
    x = torch.randn(100)
    other = wire.decode(other_numbers(wire.encode([x, torch.arange(3), True]), 4))
    assert not torch.isclose(other[0], x).any()
    assert other[0].shape == x.shape
    assert other[1].tolist() == [0, 1, 2]
    assert other[2] is True


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: torch.tensor(x.tolist()) * 2,
        lambda x: torch.from_numpy(x.numpy() * 2),
        lambda x: torch.ones(3),
    ],
)
def test_a_result_that_is_not_computed_from_the_arguments_cannot_be_counted(fn):
    with pytest.raises(TypeError, match="cannot be counted"):
        again(fn, torch.randn(3))


def test_numbers_without_tensors_are_told_as_they_are():
    assert again(lambda x: (len(x), "three"), torch.randn(3)) == ((3, "three"), 0)


@pytest.mark.parametrize(
    "step",
    [
        {"op": ["os::system", ""], "args": {"list": []}, "kwargs": {"dict": []}, "gives": [1]},
        {"op": ["aten::nothing", ""], "args": {"list": []}, "kwargs": {"dict": []}, "gives": [1]},
        {"op": ["aten::sin", ""], "args": {"list": []}, "kwargs": {"dict": []}, "gives": [1]},
        {"constant": {"opaque": "Tensor"}, "gives": [1]},
        {},
        None,
    ],
)
def test_steps_that_are_none(step):
    with pytest.raises((ValueError, AttributeError, RuntimeError, KeyError, TypeError)):
        repeat([], [step], {"number": 1})


def by_head(x):
    out = torch.zeros(2, 3)
    for h in range(2):
        out[h] = x * (h + 1)
    return out


def into(x):
    out = torch.empty(2, 3)
    torch.mul(x, 2, out=out[0])
    out[1].copy_(x).add_(x)
    return out


def by_index(x):
    out = torch.zeros(2, 3)
    out[torch.tensor([0, 1])] = x
    return out[:, 1:].T


@pytest.mark.parametrize("fn", [by_head, into, by_index])
def test_an_output_that_was_made_first_and_written_later(fn):
    x = torch.randn(3)
    value, _ = again(fn, x)
    assert torch.equal(value, fn(x))
