"""The roofline in seconds."""

import pytest

from minids3.sim.hardware import H100, least_time


def test_each_kernel_takes_the_longer_of_its_two_times():
    kernels = [(200, 50), (400, 10), (0, 30)]  # 2 and 5 s, 4 and 1 s, a copy of 3 s
    assert least_time(kernels, peak=100, bandwidth=10) == pytest.approx((12, 8 / 12))
    assert least_time(kernels[1:2], 100, 10) == (4.0, 0.0)
    assert least_time(kernels[:1], 100, 10) == (5.0, 1.0)
    assert least_time(iter(kernels), 50, 10)[0] == pytest.approx(5 + 8 + 3)


def test_a_square_product_leaves_the_slope_where_the_balance_says():
    """A product of n x n BF16 matrices has n / 3 operations a byte."""
    balance = H100.bf16_flops / H100.memory_bandwidth
    for n, share in ((int(3 * balance), 1.0), (int(3 * balance) + 1, 0.0)):
        found = least_time([(2 * n**3, 6 * n * n)], H100.bf16_flops, H100.memory_bandwidth)
        assert found[1] == share


@pytest.mark.parametrize(
    ("kernels", "peak", "bandwidth", "said"),
    [
        ([], 1, 1, "there is no kernel"),
        ([(1, 1), (0, 0)], 1, 1, "one of them has to be positive"),
        ([(-1, 5)], 1, 1, "neither may be negative"),
        ([(1, float("nan"))], 1, 1, "neither may be negative"),
        ([(1, 1)], 0, 1, "must be positive"),
        ([(1, 1)], 1, -2, "must be positive"),
    ],
)
def test_bad_input_is_refused(kernels, peak, bandwidth, said):
    with pytest.raises(ValueError, match=said):
        least_time(kernels, peak, bandwidth)
