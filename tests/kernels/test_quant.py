"""Quantise kernels: the reference's bits, for every kind of input and edge."""

import pytest
import torch

from minids3.bench import kernel_shapes
from minids3.kernels.quant import (
    act_quant,
    act_quant_transposed,
    cache_quant,
    requantize_transposed,
    weight_dequant,
    weight_quant,
)
from minids3.ref.gemm import requantize_transposed_ref
from minids3.ref.quant import WEIGHT_BLOCK, cache_quantize_ref, dequantize_ref, quantize_ref

SHAPES = kernel_shapes.QUANT.checked


def numbers(shape, device, seed=0, spread=3.0):
    """Numbers over many orders of magnitude, so that subnormal codes and ties occur."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    return (x * torch.exp(spread * torch.randn(shape, generator=generator))).to(device)


def same_bits(got, want):
    (q, scale), (q_want, scale_want) = got, want
    assert q.dtype == torch.float8_e4m3fn
    assert q.shape == q_want.shape
    codes, codes_want = q.view(torch.uint8).int(), q_want.view(torch.uint8).int()
    nan = (codes_want & 0x7F) == 0x7F
    assert bool(((codes & 0x7F) == 0x7F)[nan].all())
    assert torch.equal(codes[~nan], codes_want[~nan])
    assert scale.dtype == torch.float32
    assert torch.equal(scale.contiguous().view(torch.int32), scale_want.view(torch.int32))


def transposed(x, power_of_two):
    return quantize_ref(x.T.contiguous(), power_of_two=power_of_two)


KERNELS = {
    "act": (act_quant, lambda x, p: quantize_ref(x, power_of_two=p)),
    "act_transposed": (act_quant_transposed, transposed),
    "weight": (weight_quant, lambda x, p: quantize_ref(x, WEIGHT_BLOCK, p)),
}


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", KERNELS)
def test_bits_of_the_reference(device, guard, name, shape, power_of_two):
    kernel, reference = KERNELS[name]
    x = numbers(shape, device)
    got = kernel(x, power_of_two=power_of_two)
    assert guard.intact()
    same_bits(got, reference(x, power_of_two))


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_requantize_has_the_bits_of_the_reference(device, guard, shape, power_of_two):
    q, scale = quantize_ref(numbers(shape, device), power_of_two=power_of_two)
    got = requantize_transposed(q, scale, power_of_two=power_of_two)
    assert guard.intact()
    same_bits(got, requantize_transposed_ref(q, scale, power_of_two=power_of_two))


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("name", KERNELS)
def test_zeros_infinities_nan_and_the_smallest_numbers(device, name, power_of_two):
    kernel, reference = KERNELS[name]
    x = numbers((130, 390), device)
    x[:, 5] = 0
    x[0] = 0
    x[2, :128] = float("nan")
    x[3, 7], x[3, 200], x[4, 300] = float("inf"), -float("inf"), float("nan")
    x[6] = 1e-45
    x[7, :256] = 3e-38
    x[8, 128:] *= 1e33
    same_bits(kernel(x, power_of_two=power_of_two), reference(x, power_of_two))
    nothing = torch.zeros(130, 129, device=device)
    q, scale = kernel(nothing, power_of_two=power_of_two)
    assert not bool(q.view(torch.uint8).any())
    assert bool((scale == 1).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", KERNELS)
def test_sixteen_bit_inputs(device, name, dtype):
    kernel, reference = KERNELS[name]
    x = numbers((70, 200), device, spread=1.0).to(dtype)
    same_bits(kernel(x), reference(x, False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_weight_dequant(device, guard, shape, dtype):
    w = numbers(shape, device, spread=1.0)
    q, scale = quantize_ref(w, WEIGHT_BLOCK)
    got = weight_dequant(q, scale, dtype)
    assert guard.intact()
    torch.testing.assert_close(
        got, dequantize_ref(q, scale, WEIGHT_BLOCK).to(dtype), rtol=0, atol=0, equal_nan=True
    )


def test_every_code_is_read(device):
    q = torch.arange(256, device=device, dtype=torch.uint8).view(2, 128).view(torch.float8_e4m3fn)
    got = weight_dequant(q, torch.full((1, 1), 0.5, device=device), torch.float32)
    torch.testing.assert_close(got, q.float() * 0.5, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", [(0, 128), (5, 0), (0, 0)])
def test_nothing_to_do(device, shape):
    x = torch.zeros(shape, device=device)
    for kernel in (act_quant, act_quant_transposed, weight_quant):
        q, scale = kernel(x)
        assert q.numel() == scale.numel() == 0
    q, scale = act_quant(x)
    assert requantize_transposed(q, scale)[0].shape == (shape[1], shape[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_e5m6_has_the_bits_of_the_reference(device, guard, shape, dtype):
    x = numbers(shape, device).to(dtype)
    if x.numel() > 3:
        x.view(-1)[:4] = torch.tensor([float("inf"), -float("inf"), float("nan"), -0.0])
    kept, scale = cache_quant(x)
    assert guard.intact()
    want, want_scale = cache_quantize_ref(x)
    assert kept.dtype == torch.float16
    assert torch.equal(scale, want_scale)
    assert torch.equal(kept.isnan(), want.isnan())
    numbers_ = ~want.isnan()
    assert torch.equal(kept[numbers_].view(torch.int16), want[numbers_].view(torch.int16))


@pytest.mark.parametrize("shape", SHAPES)
def test_what_was_kept_in_e5m6_is_requantised(device, guard, shape):
    kept, scale = cache_quantize_ref(numbers(shape, device))
    got = requantize_transposed(kept, scale, power_of_two=True)
    assert guard.intact()
    same_bits(got, transposed(dequantize_ref(kept, scale), True))


def test_errors_say_what_is_wrong(device):
    x = torch.randn(4, 200, device=device)
    q, scale = act_quant(x)
    with pytest.raises(ValueError, match="not contiguous"):
        act_quant(x.T)
    with pytest.raises(ValueError, match="only matrices"):
        act_quant(x[None])
    with pytest.raises(ValueError, match=r"cannot quantise torch\.float8_e4m3fn"):
        act_quant(q)
    with pytest.raises(ValueError, match=r"scale is \[4, 2\] torch.float32, expected \[1, 2\]"):
        weight_dequant(q, scale)
    with pytest.raises(ValueError, match="expected float8_e4m3fn or float16"):
        requantize_transposed(x, scale)
    with pytest.raises(ValueError, match="expected float8_e4m3fn: quantise"):
        weight_dequant(*cache_quant(x))


@pytest.mark.gpu
@pytest.mark.parametrize("shape", kernel_shapes.QUANT.large)
@pytest.mark.parametrize("name", KERNELS)
def test_large_bf16_matrices(name, shape):
    kernel, reference = KERNELS[name]
    x = numbers(shape, "cuda", spread=1.0).bfloat16()
    same_bits(kernel(x), reference(x, False))
