"""What is disarmed, and what is left alone."""

import dataclasses
import typing

from minids3.grade.process import tripwire
from minids3.train.trainer import Batches


class Layer:
    def forward(self):
        return 1

    @classmethod
    def build(cls):
        return cls()

    borrowed = dataclasses.replace


@dataclasses.dataclass
class Record:
    x: int


def test_only_a_class_s_own_functions_are_disarmed():
    assert [f.__name__ for f in tripwire._functions(Layer)] == ["forward", "build"]
    assert "__init__" in {f.__name__ for f in tripwire._functions(Record)}
    own = list(tripwire._functions(Batches))  # a Protocol: its __init__ is every Protocol's
    assert all(f.__module__ == Batches.__module__ for f in own)
    shared = {f for f in vars(typing).values() if callable(f)}
    assert not shared & set(own)
