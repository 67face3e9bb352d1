"""Vector addition, and that the guard of these tests catches a kernel without a mask."""

import pytest
import torch

from minids3.bench import kernel_shapes
from minids3.kernels.language import jit, tl
from minids3.kernels.vector import add


@jit
def _unmasked_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.load(x_ptr + i))


@pytest.mark.parametrize("shape", kernel_shapes.ADD.checked)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int32])
def test_sum(device, guard, shape, dtype):
    x = (torch.randn(shape, device=device) * 100).to(dtype)
    y = (torch.randn(shape, device=device) * 100).to(dtype)
    assert torch.equal(add(x, y), x + y)
    assert guard.intact()


def test_shapes_are_kept_and_empty_tensors_allowed(device):
    x = torch.randn(3, 5, 7, device=device)
    assert torch.equal(add(x, x), 2 * x)
    assert add(x[:0], x[:0]).shape == (0, 5, 7)


def test_errors_say_what_is_wrong(device):
    x = torch.randn(4, 6, device=device)
    with pytest.raises(ValueError, match="both must agree"):
        add(x, x[:3])
    with pytest.raises(ValueError, match="both must agree"):
        add(x, x.half())
    with pytest.raises(ValueError, match=r"y is not contiguous .* call .contiguous"):
        add(x, x.T.contiguous().T)


def test_the_guard_catches_a_kernel_without_a_mask(device, guard):
    x = torch.randn(64, device=device)
    out = guard.make((50,), x.dtype, device)
    assert guard.intact()
    _unmasked_kernel[(1,)](x, out, BLOCK=64)
    assert torch.equal(out, x[:50])  # the numbers are right, and yet
    assert not guard.intact()
