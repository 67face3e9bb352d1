"""The FP8 products' reference: against a loop over blocks, against fp64, and at the edges."""

import pytest
import torch

from minids3.numerics import limited_matmul, relative_error
from minids3.ref.gemm import (
    fp8_dgrad_ref,
    fp8_fprop_ref,
    fp8_gemm_nt_ref,
    fp8_wgrad_ref,
    requantize_transposed_ref,
    truncated_mm_ref,
)
from minids3.ref.quant import WEIGHT_BLOCK, dequantize_ref, quantize_ref


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_blocks(a, a_scale, b, b_scale):
    """Every block of K multiplied, scaled and added to an fp64 sum, as the equation says."""
    rows = torch.arange(b.shape[0])
    rows = rows if b_scale.shape[0] == b.shape[0] else rows // 128
    out = torch.zeros(a.shape[0], b.shape[0], dtype=torch.float64)
    for k in range(a_scale.shape[1]):
        part = slice(128 * k, 128 * k + 128)
        product = a.double()[:, part] @ b.double()[:, part].T
        out += product * a_scale[:, k, None].double() * b_scale[rows, k][None].double()
    return out


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 300, 130), (128, 128, 128), (200, 257, 129)])
@pytest.mark.parametrize("block", [WEIGHT_BLOCK, (1, 128)])
def test_one_product_in_fp32_equals_the_sum_over_blocks(shape, block):
    m, k, n = shape
    a, a_scale = quantize_ref(randn(m, k) * torch.logspace(-3, 3, k))
    b, b_scale = quantize_ref(randn(n, k, seed=1), block)
    out = fp8_gemm_nt_ref(a, a_scale, b, b_scale, torch.float32)
    expected = by_blocks(a, a_scale, b, b_scale)
    assert relative_error(out, expected) < 3e-7
    assert fp8_gemm_nt_ref(a, a_scale, b, b_scale).dtype == torch.bfloat16


@pytest.mark.parametrize("size", [(130, 200, 70), (256, 128, 384)])
def test_three_products_of_a_layer_against_fp64(size):
    m, k, n = size
    x, weight, grad = randn(m, k), randn(n, k, seed=1), randn(m, n, seed=2)
    x_q, w_q, g_q = quantize_ref(x), quantize_ref(weight, WEIGHT_BLOCK), quantize_ref(grad)
    y = fp8_fprop_ref(*x_q, *w_q, torch.float32)
    dx = fp8_dgrad_ref(*g_q, *w_q, torch.float32)
    x_t, g_t = requantize_transposed_ref(*x_q), quantize_ref(grad.T.contiguous())
    dw = fp8_wgrad_ref(*g_t, *x_t)
    assert dw.dtype == torch.float32
    truth = {"y": x.double() @ weight.double().T, "dx": grad.double() @ weight.double()}
    truth["dw"] = grad.double().T @ x.double()
    for name, found in {"y": y, "dx": dx, "dw": dw}.items():
        assert found.shape == truth[name].shape
        # two operands with three mantissa bits each, and x twice in dw
        assert 0.01 < relative_error(found, truth[name]) < 0.06, name


def test_requantising_across_tiles_is_free_with_powers_of_two_only():
    x = randn(256, 256) * torch.logspace(-1, 1, 256)
    for power_of_two in (True, False):
        q, scale = quantize_ref(x, power_of_two=power_of_two)
        once = dequantize_ref(q, scale)
        again = requantize_transposed_ref(q, scale, power_of_two=power_of_two)
        assert again[1].shape == (256, 2)
        error = relative_error(dequantize_ref(*again).T, once)
        assert error < 1e-3 if power_of_two else 0.01 < error < 0.04


def test_scales_that_fit_nothing_are_refused():
    q, scale = quantize_ref(randn(130, 256))
    with pytest.raises(ValueError, match="cannot have scales"):
        fp8_gemm_nt_ref(q, scale[:7], q, scale)
    with pytest.raises(ValueError, match="cannot multiply"):
        fp8_gemm_nt_ref(q, scale, q[:, :5], scale)


def test_nothing_in_nothing_out():
    q, scale = quantize_ref(torch.zeros(0, 128))
    w, w_scale = quantize_ref(randn(3, 128), WEIGHT_BLOCK)
    assert fp8_gemm_nt_ref(q, scale, w, w_scale).shape == (0, 3)


@pytest.mark.parametrize("k", [128, 1024, 1000, 4096])
def test_truncated_sum_against_the_limited_accumulator(k):
    a, b = (quantize_ref(randn(16, k, seed=s))[0].float() for s in (0, 1))
    truth = a.double() @ b.double().T
    ours = relative_error(truncated_mm_ref(a, b), truth)
    strict = relative_error(limited_matmul(a, b.T), truth)
    assert 0.6 * strict < ours < 3 * strict
    assert relative_error(truncated_mm_ref(a, b, fraction_bits=23), truth) < 1e-6
    a, b = a.abs(), b.abs()
    truth, found = a.double() @ b.double().T, truncated_mm_ref(a, b)
    assert bool((found <= truth * (1 + 1e-6)).all())  # towards zero
    strict = relative_error(limited_matmul(a, b.T), truth)
    assert strict / 40 < relative_error(found, truth) < strict


def test_promotion_caps_the_truncation_error():
    a, b = (quantize_ref(randn(16, 4096, seed=s).abs())[0].float() for s in (0, 1))
    truth = a.double() @ b.double().T
    without = relative_error(truncated_mm_ref(a, b), truth)
    promoted = relative_error(truncated_mm_ref(a, b, promote_every=128), truth)
    assert promoted < without / 4
    with pytest.raises(ValueError, match="multiple of step"):
        truncated_mm_ref(a, b, promote_every=33)
