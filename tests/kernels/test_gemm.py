"""The FP8 product: tight against the quantised reference, bounded against the truth."""

import pytest
import torch
from fp8_cores import sum_error

from minids3.bench import kernel_shapes
from minids3.kernels import gemm
from minids3.kernels.gemm import fp8_gemm_nt
from minids3.kernels.launch import aligned
from minids3.kernels.quant import act_quant, act_quant_transposed, requantize_transposed
from minids3.numerics.metrics import relative_error
from minids3.ref.gemm import fp8_dgrad_ref, fp8_gemm_nt_ref, fp8_wgrad_ref
from minids3.ref.quant import TILE, WEIGHT_BLOCK, dequantize_ref, quantize_ref

SHAPES = kernel_shapes.FP8_GEMM.checked


def operands(m, n, k, device, block=WEIGHT_BLOCK, seed=0):
    """Rows and blocks of very different sizes, so that a scale taken from elsewhere shows."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(m, k, generator=generator)
    b = torch.randn(n, k, generator=generator)
    for x in (a, b):
        x *= torch.exp(2 * torch.randn(-(-k // 128), generator=generator)).repeat_interleave(128)[
            :k
        ]
        x *= torch.exp(torch.randn(len(x), 1, generator=generator))
    a, b = a.to(device), b.to(device)
    return a, b, quantize_ref(a), quantize_ref(b, block)


@pytest.mark.parametrize("block", [WEIGHT_BLOCK, TILE], ids=["blocks", "tiles"])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_reference(device, guard, shape, block):
    _, _, a, b = operands(*shape, device, block)
    got = fp8_gemm_nt(*a, *b, out_dtype=torch.float32)
    assert guard.intact()
    want = dequantize_ref(*a).double() @ dequantize_ref(*b, block).double().T
    ref = fp8_gemm_nt_ref(*a, *b, out_dtype=torch.float32)
    size = dequantize_ref(*a).double().abs() @ dequantize_ref(*b, block).double().abs().T
    bound = sum_error(device)
    assert bool(((got.double() - want).abs() <= bound * size + 1e-30).all())
    assert bool(((got - ref).abs() <= 2 * bound * size + 1e-30).all())


@pytest.mark.parametrize("block", [WEIGHT_BLOCK, TILE], ids=["blocks", "tiles"])
@pytest.mark.parametrize("shape", SHAPES)
def test_whole_tiles_give_the_same_as_addresses(device, guard, monkeypatch, shape, block):
    _, _, a, b = operands(*shape, device, block)
    monkeypatch.setattr(gemm, "copy_engine", lambda *operands: False)
    by_address = fp8_gemm_nt(*a, *b, out_dtype=torch.float32)
    fetched = []
    monkeypatch.setattr(
        gemm, "copy_engine", lambda *operands: fetched.append(all(map(aligned, operands))) or True
    )
    got = fp8_gemm_nt(*a, *b, out_dtype=torch.float32)
    assert fetched == [True]
    assert guard.intact()
    assert torch.equal(got, by_address)


def test_rows_that_begin_anywhere(device):
    _, _, (a, a_scale), b = operands(9, 70, 160, device)
    bytes_ = torch.empty(a.numel() + 1, dtype=torch.uint8, device=device)
    moved = bytes_[1:].view(a.shape).view(torch.float8_e4m3fn)
    moved.view(torch.uint8).copy_(a.view(torch.uint8))
    assert torch.equal(fp8_gemm_nt(moved, a_scale, *b), fp8_gemm_nt(a, a_scale, *b))


@pytest.mark.parametrize("block", [WEIGHT_BLOCK, TILE], ids=["blocks", "tiles"])
def test_error_against_the_truth_is_that_of_the_operands(device, block):
    a, b, qa, qb = operands(96, 80, 640, device, block)
    got = fp8_gemm_nt(*qa, *qb, out_dtype=torch.float32)
    truth = a.double() @ b.double().T
    error = relative_error(got, truth)
    # Rounding to 3 mantissa bits leaves 0.026 of an operand on average; two of them, root of sum.
    assert 0.02 < error < 0.05


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_output_dtypes(device, dtype, tolerance):
    generator = torch.Generator().manual_seed(1)
    a = quantize_ref(torch.randn(40, 256, generator=generator).to(device))
    b = quantize_ref(torch.randn(50, 256, generator=generator).to(device), WEIGHT_BLOCK)
    got = fp8_gemm_nt(*a, *b, out_dtype=dtype)
    assert got.dtype == dtype
    want = fp8_gemm_nt_ref(*a, *b, out_dtype=torch.float32)
    size = dequantize_ref(*a).abs() @ dequantize_ref(*b, WEIGHT_BLOCK).abs().T
    bound = torch.maximum(tolerance * (1 + want.abs()), sum_error(device) * size)
    assert bool(((got.float() - want).abs() <= bound).all())
    assert fp8_gemm_nt(*a, *b).dtype == torch.bfloat16


def test_the_three_products_of_a_linear_layer(device):
    m, n, k = 150, 200, 260
    x, weight, qx, qw = operands(m, n, k, device)
    grad = torch.randn(m, n, generator=torch.Generator().manual_seed(9)).to(device)
    qg = act_quant(grad)
    dx = fp8_gemm_nt(*qg, qw[0].T.contiguous(), qw[1].T.contiguous(), out_dtype=torch.float32)
    want = fp8_dgrad_ref(*qg, *qw, out_dtype=torch.float32)
    assert relative_error(dx, want) < sum_error(device)
    assert relative_error(dx, grad.double() @ weight.double()) < 0.05
    across, kept = act_quant_transposed(grad), requantize_transposed(*qx)
    dw = fp8_gemm_nt(*across, *kept, out_dtype=torch.float32)
    assert relative_error(dw, fp8_wgrad_ref(*across, *kept)) < sum_error(device)
    assert relative_error(dw, grad.double().T @ x.double()) < 0.07


def test_nan_stays_in_its_row_and_column(device):
    _, _, a, b = operands(70, 70, 300, device)
    a[0].view(torch.uint8)[3, 299] = 0x7F
    b[0].view(torch.uint8)[68, 0] = 0xFF
    got = fp8_gemm_nt(*a, *b, out_dtype=torch.float32).isnan()
    assert bool(got[3].all())
    assert bool(got[:, 68].all())
    assert int(got.sum()) == 70 + 70 - 1


def test_empty(device):
    def fp8(*shape):
        return torch.zeros(shape, device=device).to(torch.float8_e4m3fn)

    def ones(*shape):
        return torch.ones(shape, device=device)

    assert fp8_gemm_nt(fp8(0, 128), ones(0, 1), fp8(5, 128), ones(1, 1)).shape == (0, 5)
    assert fp8_gemm_nt(fp8(4, 128), ones(4, 1), fp8(0, 128), ones(0, 1)).shape == (4, 0)
    out = fp8_gemm_nt(fp8(4, 0), ones(4, 0), fp8(5, 0), ones(1, 0))
    assert torch.equal(out, torch.zeros(4, 5, device=device, dtype=torch.bfloat16))


def test_errors_say_what_is_wrong(device):
    _, _, (a, a_scale), (b, b_scale) = operands(6, 130, 260, device)
    with pytest.raises(ValueError, match=r"a is torch\.float32, expected float8_e4m3fn"):
        fp8_gemm_nt(a.float(), a_scale, b, b_scale)
    with pytest.raises(ValueError, match=r"expected \[M, K\] and \[N, K\]"):
        fp8_gemm_nt(a, a_scale, b[:, :256].contiguous(), b_scale)
    with pytest.raises(ValueError, match=r"a_scale is \[6, 2\] torch.float32, expected \[6, 3\]"):
        fp8_gemm_nt(a, a_scale[:, :2].contiguous(), b, b_scale)
    with pytest.raises(ValueError, match=r"b_scale is \[1, 3\] torch.float32, expected \[130, 3\]"):
        fp8_gemm_nt(a, a_scale, b, b_scale[:1])
    with pytest.raises(ValueError, match="b is not contiguous"):
        fp8_gemm_nt(a, a_scale, b.T.contiguous().T, b_scale)


@pytest.mark.gpu
@pytest.mark.parametrize("block", [WEIGHT_BLOCK, TILE], ids=["blocks", "tiles"])
@pytest.mark.parametrize("shape", kernel_shapes.FP8_GEMM.large)
def test_large_products(shape, block):
    _, _, a, b = operands(*shape, "cuda", block)
    got = fp8_gemm_nt(*a, *b, out_dtype=torch.float32)
    want = dequantize_ref(*a).double() @ dequantize_ref(*b, block).double().T
    assert relative_error(got, want) < sum_error("cuda")
