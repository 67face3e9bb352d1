"""The Bill's line of notebook 03 against hand calculations."""

from minids3.sim import bill


def test_line_03_by_hand():
    line = bill.line_03()
    assert line.value == 61 * (512 + 64) * 2 == 70_272  # ISCA: 70.272 KB
    plain = 61 * 128 * (192 + 128) * 2
    assert f"{plain:,} (71.1x)" in line.formula
    fits = 40_000_000_000 // (70_272 * 4096), 40_000_000_000 // (plain * 4096)
    assert fits == (138, 1)
    assert "138 contexts of 4,096 tokens instead of 1" in line.formula


def test_line_03_prices_nothing():
    line = bill.line_03()
    assert line.kind == "computed"
    assert line.gpu_hours is None
    assert line.dollars is None
    assert "any price" in line.leaves_out
    assert bill.lines(upto="03")[-1] == line
    assert max(map(len, repr(bill.show(upto="03")).splitlines())) <= 76
