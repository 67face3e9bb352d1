"""The Bill's line 09 against a calculation by hand."""

import pytest

from minids3.sim import bill
from minids3.sim.bill.lines_09 import STEP_SECONDS, gemm_seconds

# [C-params]: matmul weights without head and router, the products of linear layers.
WEIGHTS = 36_624.6e6 - 926.679e6 - 106.4e6


def test_seconds_by_hand():
    by_hand = 6 * WEIGHTS * 15360 * 4096 / 2048 / 1979e12
    assert gemm_seconds("fp8") == pytest.approx(by_hand, rel=1e-4)
    assert gemm_seconds("bf16") == pytest.approx(by_hand * 1979 / 989.4, rel=1e-4)
    assert gemm_seconds("fp8", efficiency=0.5) == pytest.approx(2 * gemm_seconds("fp8"))
    assert gemm_seconds("bf16") < STEP_SECONDS


def test_line_09_is_a_bound_and_prices_no_run():
    line = bill.line_09()
    assert line.value == gemm_seconds("fp8")
    assert line.gpu_hours is None
    assert line.dollars is None
    assert "MEM" in line.source
    assert "19.926" in line.formula


def test_errors():
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        gemm_seconds("fp8", efficiency=0)
    with pytest.raises(ValueError, match="choose 'fp8' or 'bf16'"):
        gemm_seconds("fp16")
