"""Softmax of whole rows and in blocks, against float64."""

import pytest
import torch

from minids3.bench import kernel_shapes
from minids3.kernels.softmax import LONGEST_WHOLE_ROW, softmax


def rows(device, *shape, scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * scale).to(device)


@pytest.mark.parametrize("block", [None, 16, 64])
@pytest.mark.parametrize("shape", kernel_shapes.SOFTMAX.checked)
def test_values(device, guard, shape, block):
    x = rows(device, *shape)
    got = softmax(x, block)
    want = x.double().softmax(-1)
    assert guard.intact()
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(got.sum(-1), torch.ones_like(got[..., 0]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("block", [None, 16])
def test_large_numbers_and_minus_infinity(device, block):
    x = rows(device, 4, 50, scale=1e4)
    x[0, :20] = -torch.inf  # the first block holds nothing finite
    x[1] = 88.9  # exp alone is near the end of fp32
    x[2, 7] = 3e38
    got = softmax(x, block)
    torch.testing.assert_close(got.double(), x.double().softmax(-1), rtol=1e-4, atol=1e-7)
    assert bool((got[0, :20] == 0).all())


@pytest.mark.parametrize("block", [None, 16])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_rows_without_a_finite_number_are_nan_as_in_torch(device, block):
    x = torch.full((2, 40), -torch.inf, device=device)
    x[1] = 0.0
    got = softmax(x, block)
    assert bool(got[0].isnan().all())
    torch.testing.assert_close(got[1], torch.full_like(got[1], 1 / 40))


def test_half_precision_is_computed_in_fp32(device):
    x = rows(device, 3, 200).half()
    want = x.double().softmax(-1)
    torch.testing.assert_close(softmax(x).double(), want, rtol=1e-3, atol=1e-7)


def test_long_rows_take_the_online_way(device):
    x = rows(device, 1, LONGEST_WHOLE_ROW + 5)
    torch.testing.assert_close(softmax(x).double(), x.double().softmax(-1), rtol=1e-5, atol=1e-10)


def test_empty_and_errors(device):
    assert softmax(torch.randn(0, 5, device=device)).shape == (0, 5)
    assert softmax(torch.randn(5, 0, device=device)).shape == (5, 0)
    with pytest.raises(ValueError, match="block=48 must be a power of two"):
        softmax(torch.randn(2, 5, device=device), block=48)
    with pytest.raises(ValueError, match="not contiguous"):
        softmax(torch.randn(5, 6, device=device).T)
