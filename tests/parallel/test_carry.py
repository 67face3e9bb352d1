"""Functions carried by their source, and plain data that travels."""

import linecache
import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minids3.parallel.carry import carry_functions
from minids3.parallel.plain import read_plain, write_plain

SCALE, SIZES, HALF = 3.0, (2, "three"), torch.float16
TABLE = torch.ones(2)


class Doubled(nn.Module):
    """Uses a constant and a function of the file."""

    def forward(self, x: Tensor) -> Tensor:
        return scaled(x) * 2


def scaled(x):
    return F.relu(x) * SCALE


def recursive(n):
    return 1 if n < 1 else n * recursive(n - 1) + other(n - 1)


def other(n):
    return 0 if n < 1 else recursive(n - 1)


@torch.no_grad()
def entry(x: "Unknown", halves=SIZES) -> Tensor:  # noqa: F821
    local = [scaled(y) for y in x]
    return Doubled()(torch.stack(local)).to(HALF), math.pi, np.pi, halves, nested(), recursive(3)


def nested():
    def inner(n):
        return n + len(SIZES)

    return inner(1)


alias = scaled


def with_alias(x):
    return alias(x)


def with_table():
    return TABLE


def shadows(TABLE):
    return TABLE + 1


def defined(source):
    scope = {"__name__": "elsewhere"}
    exec(compile(source, "work.py", "exec"), scope)
    return scope


def test_all_that_a_function_uses_comes_along():
    found = defined(carry_functions([entry]))["entry"](torch.tensor([[1.0, -1.0]]))
    expected = entry(torch.tensor([[1.0, -1.0]]))
    assert torch.equal(found[0], expected[0])
    assert found[0].tolist() == [[18.0, 0.0]]
    assert found[1:] == expected[1:]


def test_names_and_closures():
    limit = 7

    def closed(x):
        return x + limit

    assert defined(carry_functions([closed]))["closed"](1) == 8
    assert defined(carry_functions([with_alias]))["with_alias"](torch.ones(1)).item() == 3
    assert defined(carry_functions([shadows]))["shadows"](1) == 2


def test_what_cannot_be_carried_is_named():
    with pytest.raises(TypeError, match=r"with_table uses TABLE, a Tensor.*pass it as an argument"):
        carry_functions([with_table])
    with pytest.raises(TypeError, match="def name"):
        carry_functions([lambda x: x])
    with pytest.raises(TypeError, match="def name"):
        carry_functions([partial(scaled)])
    exec("def made():\n    return 1", scope := {"__name__": "__main__"})
    with pytest.raises(TypeError, match="source of made"):
        carry_functions([scope["made"]])


def test_functions_of_the_library_are_imported():
    from minids3.numerics.metrics import relative_error  # noqa: F401  (used below by name)

    scope = {"__name__": "__main__"}
    source = (
        "from minids3.sim.comm import row_bytes\n\ndef work():\n    return row_bytes(256, 'fp8')"
    )

    linecache.cache["<cell>"] = (len(source), None, source.splitlines(True), "<cell>")
    exec(compile(source, "<cell>", "exec"), scope)
    text = carry_functions([scope["work"]])
    assert "from minids3.sim.comm import row_bytes as row_bytes" in text
    assert defined(text)["work"]() == 264


def test_plain_data_comes_back_as_it_was(tmp_path):
    value = {
        "a": [1, 2.5, None, True, "é", float("inf")],
        ("k", 1): (torch.arange(6).view(2, 3).T, np.float32(1.5)),
        3: {"empty": [], "none": torch.zeros(0, 4), "scalar": torch.tensor(2.0)},
        "wide": torch.ones(2, dtype=torch.bfloat16),
        "fp8": torch.ones(2).to(torch.float8_e4m3fn),
        "array": np.arange(3),
    }
    write_plain(value, tmp_path / "x")
    found = read_plain(tmp_path / "x")
    assert found["a"] == value["a"]
    assert torch.equal(found["k", 1][0], value["k", 1][0])
    assert found["k", 1][1] == 1.5
    assert found[3]["none"].shape == (0, 4)
    assert found[3]["scalar"].item() == 2
    assert found["wide"].dtype == torch.bfloat16
    assert found["fp8"].dtype == torch.float8_e4m3fn
    assert found["array"].tolist() == [0, 1, 2]
    shared = torch.ones(3)
    write_plain([shared, shared], tmp_path / "y")
    assert [t.tolist() for t in read_plain(tmp_path / "y")] == [[1.0] * 3] * 2
    with pytest.raises(TypeError, match=r"the value\['m'\]\[0\] is a Linear"):
        write_plain({"m": [nn.Linear(1, 1)]}, tmp_path / "z")
