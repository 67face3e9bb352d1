"""RMSNorm: kernels and the operation on top, values and both gradients."""

import pytest
import torch

from minids3.bench import kernel_shapes
from minids3.kernels.norm import WIDEST_ROW, rms_norm_bwd, rms_norm_fwd
from minids3.nn import RMSNorm
from minids3.ops.norm import rms_norm
from minids3.ref.norm import rms_norm_ref


def case(shape, device, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator) * 3
    weight = torch.randn(shape[-1], generator=generator)
    grad = torch.randn(*shape, generator=generator)
    return [t.to(device, dtype) for t in (x, weight, grad)]


def truth(x, weight, grad, eps):
    """Values and gradients in fp64, by autograd through the formula."""
    x, weight = x.double().requires_grad_(), weight.double().requires_grad_()
    y = x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight
    y.backward(grad.double())
    return y.detach(), x.grad, weight.grad


@pytest.mark.parametrize("shape", kernel_shapes.RMS_NORM.checked)
def test_kernels(device, guard, shape):
    x, weight, grad = case(shape, device)
    want = truth(x, weight, grad, 1e-5)
    y, rstd = rms_norm_fwd(x, weight, 1e-5)
    got = (y, *rms_norm_bwd(grad, x, weight, rstd))
    assert guard.intact()
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["ref", "triton", "auto"])
def test_the_operation_has_the_gradients_of_the_formula(device, backend):
    x, weight, grad = case((4, 9, 48), device)
    want = truth(x, weight, grad, 1e-6)
    x, weight = x.requires_grad_(), weight.requires_grad_()
    y = rms_norm(x, weight, backend=backend)
    y.backward(grad)
    for a, b in zip((y, x.grad, weight.grad), want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


def test_half_precision_is_as_good_as_the_reference(device):
    x, weight, grad = case((6, 300), device, torch.float16)
    want = truth(x, weight, grad, 1e-6)
    x, weight = x.requires_grad_(), weight.requires_grad_()
    y = rms_norm(x, weight, backend="triton")
    assert y.dtype == torch.float16
    torch.testing.assert_close(y, rms_norm_ref(x, weight), rtol=2e-3, atol=1e-6)
    y.backward(grad)
    for a, b in zip((y, x.grad, weight.grad), want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-3, atol=2e-3)


def test_weight_and_input_may_differ_in_dtype(device):
    x, weight, grad = case((5, 40), device, torch.float16)
    y, rstd = rms_norm_fwd(x, weight.float())
    dx, dweight = rms_norm_bwd(grad, x, weight.float(), rstd)
    dtypes = y.dtype, dx.dtype, dweight.dtype
    assert dtypes == (torch.float16, torch.float16, torch.float32)


def test_zero_rows_stay_zero_and_views_are_read_right(device):
    x, weight, grad = case((6, 20), device)
    x[2] = 0
    wide = torch.cat((x, x + 1), -1).requires_grad_()
    y = rms_norm(wide[:, :20], weight, backend="triton")
    torch.testing.assert_close(y, rms_norm_ref(x, weight))
    assert bool((y[2] == 0).all())
    y.backward(grad.T.contiguous().T)
    torch.testing.assert_close(
        wide.grad[:, :20].double(), truth(x, weight, grad, 1e-6)[1], rtol=1e-5, atol=1e-3
    )


def test_the_gradient_of_the_weight_is_the_same_in_every_run(device):
    x, weight, grad = case((300, 24), device)
    _, rstd = rms_norm_fwd(x, weight)
    first = rms_norm_bwd(grad, x, weight, rstd)[1]
    assert all(torch.equal(first, rms_norm_bwd(grad, x, weight, rstd)[1]) for _ in range(3))


def test_no_rows(device):
    x, weight, grad = case((0, 16), device)
    y, rstd = rms_norm_fwd(x, weight)
    dx, dweight = rms_norm_bwd(grad, x, weight, rstd)
    assert y.shape == dx.shape == (0, 16)
    assert bool((dweight == 0).all())


def test_errors_say_what_is_wrong(device):
    x, weight, grad = case((3, 8), device)
    with pytest.raises(ValueError, match=r"weight \[8\] must be the last axis of x \[3, 4\]"):
        rms_norm_fwd(x[:, :4].contiguous(), weight)
    wide = WIDEST_ROW + 1
    with pytest.raises(ValueError, match="too wide: at most 16384"):
        rms_norm_fwd(torch.zeros(1, wide, device=device), torch.zeros(wide, device=device))
    with pytest.raises(ValueError, match="x is not contiguous"):
        rms_norm_fwd(torch.randn(8, 3, device=device).T, weight)
    with pytest.raises(ValueError, match="without its last axis"):
        rms_norm_bwd(grad, x, weight, torch.ones(4, device=device))
    with pytest.raises(ValueError, match="backend='cuda' must be"):
        rms_norm(x, weight, backend="cuda")


def test_the_layer_on_a_cpu_is_pytorch_s_norm():
    """In fp32 with a gradient written out by hand, hence to rounding; in bf16 the very same."""
    layer, x = RMSNorm(32), torch.randn(4, 32)
    want = torch.nn.functional.rms_norm(x, (32,), layer.weight, 1e-6)
    torch.testing.assert_close(layer(x), want, rtol=1e-6, atol=1e-6)
    layer, x = layer.bfloat16(), x.bfloat16()
    want = torch.nn.functional.rms_norm(x, (32,), layer.weight, 1e-6)
    assert torch.equal(layer(x), want)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", kernel_shapes.RMS_NORM.large)
def test_widths_of_v3_in_bf16(shape):
    x, weight, grad = case(shape, "cuda", torch.bfloat16)
    want = truth(x, weight, grad, 1e-6)
    y, rstd = rms_norm_fwd(x, weight)
    for a, b in zip((y, *rms_norm_bwd(grad, x, weight, rstd)), want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1.6e-2, atol=1.6e-2)
