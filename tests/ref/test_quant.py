"""Scaled E4M3: against loops, at the edges, and what outliers do."""

import math

import pytest
import torch

from minids3.numerics import E4M3, E5M6, decode, relative_error, round_to
from minids3.ref.quant import (
    TILE,
    WEIGHT_BLOCK,
    block_quantize_ref,
    cache_quantize_ref,
    dequantize_ref,
    quantize_ref,
)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("block", [None, TILE, WEIGHT_BLOCK, (2, 3), (1, 1 << 40)])
@pytest.mark.parametrize("shape", [(1, 1), (5, 300), (130, 257), (0, 4)])
def test_equals_a_loop_over_blocks(shape, block, power_of_two):
    x = 30 * randn(*shape)
    quantized, scale = quantize_ref(x, block, power_of_two)
    height, width = block or (max(shape[0], 1), max(shape[1], 1))
    assert scale.shape == (-(-shape[0] // height), -(-shape[1] // width))
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            rows = slice(i * height, (i + 1) * height)
            columns = slice(j * width, (j + 1) * width)
            part = x[rows, columns]
            expected = part.abs().max() / 448
            if power_of_two:
                expected = torch.tensor(2.0 ** math.ceil(math.log2(float(expected))))
            assert scale[i, j] == expected
            rounded = round_to(part / expected, E4M3, saturate=True)
            assert torch.equal(quantized[rows, columns].float(), rounded)
    back = dequantize_ref(quantized, scale, block)
    assert back.shape == x.shape
    # half a step of three mantissa bits, or of the subnormals' spacing
    spread = scale.repeat_interleave(height, 0)[: shape[0]]
    spread = spread.repeat_interleave(min(width, shape[1]), 1)[:, : shape[1]]
    assert bool(((back - x).abs() <= x.abs() / 16 + spread * 2**-10).all())


def test_power_of_two_scales_lose_nothing_that_was_exact():
    codes = torch.arange(127).to(torch.uint8).view(torch.float8_e4m3fn).float()
    x = torch.cat((codes, codes[-1:])).view(1, 128) * 2**-5
    quantized, scale = quantize_ref(x, TILE, power_of_two=True)
    assert scale.item() == 2**-5
    assert torch.equal(dequantize_ref(quantized, scale), x)


def test_zeros_infinities_and_nan():
    x = torch.zeros(4, 128)
    x[1, :3] = torch.tensor([2.0, math.inf, -math.inf])
    x[2, :2] = torch.tensor([math.nan, 3.0])
    x[3, 0] = math.inf
    quantized, scale = quantize_ref(x)
    assert scale.flatten().tolist() == pytest.approx([1, 2 / 448, 3 / 448, 1])
    values = quantized.float()
    assert values[0].abs().max() == 0
    assert values[1, :3].tolist() == [448, 448, -448]
    assert math.isnan(values[2, 0])
    assert values[2, 1] == 448
    assert values[3, 0] == 448
    assert int(torch.isnan(values).sum()) == 1


def test_what_is_kept_in_e5m6_are_the_nearest_of_its_numbers():
    x = randn(40, 300) * torch.exp(6 * randn(40, 300, seed=1))
    codes = decode(torch.arange(1 << 11), E5M6)
    codes = codes[codes.isfinite()].float().sort().values
    middles = (codes[1:] + codes[:-1]) / 2
    x[0, :128] = torch.cat((middles[:127], codes[-1:]))  # ties, among subnormals
    x[1, :128] = torch.cat((-middles[900:1027], codes[-1:]))
    kept, scale = cache_quantize_ref(x)
    assert kept.dtype == torch.float16
    assert scale.shape == (40, 3)
    wide = scale.repeat_interleave(128, 1)[:, :300]
    assert torch.equal(torch.frexp(scale).mantissa, torch.full_like(scale, 0.5))
    assert torch.equal(kept.float(), round_to(x / wide, E5M6, saturate=True))
    assert relative_error(dequantize_ref(kept, scale), x) < 0.005
    tops = (x / wide).abs().unfold(1, 128, 128).amax(-1)
    assert bool(((tops <= 65024) & (tops > 32512)).all())


def test_zeros_infinities_and_nan_in_e5m6():
    x = torch.zeros(3, 130)
    x[1, :3] = torch.tensor([math.inf, -math.inf, 1.0])
    x[2, :2] = torch.tensor([math.nan, -2.0])
    kept, scale = cache_quantize_ref(x)
    assert scale[0].tolist() == [1, 1]
    assert not bool(kept[0].any())
    assert kept[1, :2].tolist() == [65024, -65024]
    assert dequantize_ref(kept, scale)[1, 2] == 1
    assert math.isnan(kept[2, 0])
    assert dequantize_ref(kept, scale)[2, 1] == -2


def test_numbers_too_small_for_a_scale_are_zero_and_not_nan():
    tiny = torch.full((1, 128), 1e-45)
    for power_of_two in (False, True):
        quantized, scale = quantize_ref(tiny, TILE, power_of_two)
        assert scale.item() > 0
        assert torch.isfinite(dequantize_ref(quantized, scale)).all()


def test_an_outlier_ruins_its_tile_and_not_the_tensor():
    x = randn(64, 1024)
    x[3, 5] = 3e5
    others = torch.ones_like(x, dtype=torch.bool)
    others[3, :128] = False
    errors = {}
    for name, block in (("tensor", None), ("tile", TILE)):
        back = dequantize_ref(*quantize_ref(x, block), block)
        errors[name] = relative_error(back[others], x[others])
    assert errors["tile"] < 0.04
    assert errors["tensor"] > 10 * errors["tile"]


def test_what_is_no_matrix_is_refused():
    with pytest.raises(ValueError, match=r"only matrices.*\[2, 3, 4\]"):
        quantize_ref(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="at least one row"):
        quantize_ref(torch.zeros(2, 3), (0, 128))
    with pytest.raises(ValueError, match=r"blocks of 1 x 128: expected \[2, 1\]"):
        dequantize_ref(*quantize_ref(torch.ones(2, 3), None))
    with pytest.raises(ValueError, match="NaN"):
        block_quantize_ref(torch.full((2, 2), math.nan))


def test_scales_in_bytes_are_exponents():
    """UE8M0 (OCP MX): byte b is 2^(b - 127), 255 is NaN; torch's own float8_e8m0fnu agrees."""
    exponents = torch.arange(256, dtype=torch.uint8)[None]
    ones = torch.ones(1, 256).to(torch.float8_e4m3fn)
    read = dequantize_ref(ones, exponents, (1, 1))
    assert [float(x) for x in read[0, :255]] == [2.0 ** (b - 127) for b in range(255)]
    assert read[0, 255].isnan()
    if hasattr(torch, "float8_e8m0fnu"):
        other = dequantize_ref(ones, exponents.view(torch.float8_e8m0fnu), (1, 1))
        assert torch.equal(read[:, :255], other[:, :255])
    for dtype in (torch.int8, torch.int32, torch.bool):
        with pytest.raises(ValueError, match="neither numbers nor UE8M0 bytes"):
            dequantize_ref(ones, torch.ones(1, 256).to(dtype), (1, 1))
