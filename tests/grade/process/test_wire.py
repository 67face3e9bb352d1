"""Plain data between processes: what goes in comes out, and nothing else does."""

import math
import socket
from collections import Counter, namedtuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minids3.course.compare import same
from minids3.grade.process import wire

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**100), 2**100) | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.integers() | st.text() | st.tuples(st.integers(), st.text()), inner)
    ),
    max_leaves=20,
)


def through(value):
    a, b = socket.socketpair()
    with a, b:
        wire.send(a, {"value": wire.encode(value)})
        return wire.decode(wire.receive(b)["value"])


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(PLAIN)
def test_plain_values_survive(value):
    assert same(through(value), value, 0, 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64", "int64", "bool",
                                   "uint8", "complex64", "float8_e4m3fn"])  # fmt: skip
def test_tensors_survive(dtype):
    x = torch.arange(24).reshape(2, 3, 4).to(getattr(torch, dtype))
    for t in (x, x[0, 0, 0], x[:, :0], x.transpose(0, 2), x[:, :1].expand(2, 5, 4), x[..., ::2]):
        got = through(t)
        assert got.dtype == t.dtype
        assert got.shape == t.shape
        assert bool((got.to(torch.complex64) == t.to(torch.complex64)).all())
        assert got.is_contiguous() == t.is_contiguous()


def test_special_numbers():
    x = torch.tensor([math.nan, math.inf, -0.0])
    assert torch.equal(through(x).view(torch.int32), x.view(torch.int32))
    assert through(3 + 4j) == 3 + 4j
    assert isinstance(through(np.float32(2)), np.float32)
    assert through(np.arange(6).reshape(2, 3)).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_near_relatives_arrive_as_what_they_are_like():
    pair = namedtuple("pair", "a b")
    assert through(pair(1, 2)) == (1, 2)
    assert through(Counter("aab")) == {"a": 2, "b": 1}
    assert type(through(torch.nn.Parameter(torch.ones(2)))) is torch.Tensor


@pytest.mark.parametrize("value", [object(), 10**1000, lambda: 0, torch.nn.Linear(2, 2)])
def test_everything_else_has_only_a_name(value):
    got = through(value)
    assert isinstance(got, wire.Opaque)
    assert type(got).__name__ in (type(value).__name__, "object")


def test_a_list_in_itself_ends():
    loop = []
    loop.append(loop)
    through(loop)


@pytest.mark.parametrize("form", [
    [], {"tensor": {}}, {"tensor": {"dtype": "float32", "shape": [2], "bytes": ""}},
    {"tensor": {"dtype": "os", "shape": [], "bytes": ""}}, {"a": 1, "b": 2}, {"evil": 1},
    {"tensor": {"dtype": "float32", "shape": [1 << 39, 0, 1 << 39], "bytes": "A"}},
    {"tensor": {"dtype": "float32", "shape": [-1], "bytes": ""}}, {"dict": [[{"list": []}, 1]]},
    {"array": {"dtype": "O", "shape": [1], "bytes": ""}}, {"float": "x"}, {"dict": 3},
    {"torch": "os"}, {"complex": []},
])  # fmt: skip
def test_malformed_forms_are_refused(form):
    with pytest.raises(wire.Broken):
        wire.decode(form)


def test_deep_forms_are_refused():
    form = 1
    for _ in range(500):
        form = {"list": [form]}
    with pytest.raises(wire.Broken):
        wire.decode(form)


@pytest.mark.parametrize("data", [b"", b"\0" * 8, b"\0" * 7 + b"\2hi", b"\xff" * 9,
                                  b"\0" * 7 + b"\2[]"])  # fmt: skip
def test_malformed_messages_are_refused(data):
    a, b = socket.socketpair()
    with b:
        a.sendall(data)
        a.close()
        with pytest.raises(wire.Broken):
            wire.receive(b)


def forms(values):
    return [wire.encode(v) for v in values]


def test_a_set_built_to_be_slow_is_refused():
    colliding = [k * (2**61 - 1) for k in range(5000)]  # one hash
    with pytest.raises(wire.Broken, match="slow"):
        wire.decode({"set": forms(colliding)})
    with pytest.raises(wire.Broken, match="slow"):
        wire.decode({"dict": [[wire.encode(k), None] for k in colliding]})
    many = list(range(100_000))
    assert wire.decode({"set": forms(many)}) == set(many)
    assert wire.decode({"set": [1] * 1000}) == {1}


def test_a_tensor_swells_little():
    big = wire.encode(torch.zeros(1 << 16))
    big["tensor"]["strides"] = [60]
    assert wire.decode(big).untyped_storage().nbytes() <= 4 * (1 << 18)
    small = wire.encode(torch.zeros(1))
    small["tensor"]["strides"] = [4000]
    assert wire.decode(small).untyped_storage().nbytes() <= 4096
    x = torch.zeros(4, 6)[:, ::2]
    assert through(x).stride() == x.stride()


def test_numbers_that_were_forged_are_opaque():
    assert isinstance(wire.decode(10**100), wire.Opaque)
    assert wire.decode(2**100) == 2**100
