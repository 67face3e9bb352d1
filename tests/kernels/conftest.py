"""Outputs that notice whatever a kernel writes outside, or forgets to write."""

import math
import sys

import pytest
import torch
from launches import misfits

from minids3.kernels.compile import Spec

MARGIN = 256


class Guard:
    """Hands out poisoned tensors from the middle of larger buffers, and looks at the margins."""

    def __init__(self):
        self.buffers = []

    def make(self, shape, dtype, device):
        numel = math.prod(shape)
        poison = float("nan") if dtype.is_floating_point else 85
        buffer = torch.full((numel + 2 * MARGIN,), poison, dtype=dtype, device=device)
        self.buffers.append(buffer)
        return buffer[MARGIN : MARGIN + numel].view(shape)

    def intact(self):
        for buffer in self.buffers:
            margins = torch.cat((buffer[:MARGIN], buffer[buffer.numel() - MARGIN :])).cpu()
            same = margins.isnan() if margins.dtype.is_floating_point else margins == 85
            if not bool(same.all()):
                return False
        return bool(self.buffers)


@pytest.fixture
def guard(monkeypatch):
    """Guards every tensor that a file of this library makes by ``empty`` and its relatives."""
    guard = Guard()

    def replace(owner, name):
        plain = getattr(owner, name)

        def guarded(*args, **kwargs):
            out = plain(*args, **kwargs)
            caller = sys._getframe(1).f_globals.get("__name__", "")
            if not caller.startswith("minids3."):
                return out
            return guard.make(tuple(out.shape), out.dtype, out.device)

        monkeypatch.setattr(owner, name, guarded)

    replace(torch, "empty")
    replace(torch, "empty_like")
    replace(torch.Tensor, "new_empty")
    return guard


@pytest.fixture(autouse=True)
def launches_fit_their_specs(monkeypatch):
    """What a test launches from a Spec has the arguments for which the matrix compiles it."""
    plain = Spec.launch

    def launch(spec, grid, *args):
        assert misfits(spec, args) == []
        plain(spec, grid, *args)

    monkeypatch.setattr(Spec, "launch", launch)
