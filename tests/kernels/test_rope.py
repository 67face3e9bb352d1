"""RoPE: kernel and operation, both layouts, strided inputs, the gradient."""

import pytest
import torch

from minids3.bench import kernel_shapes
from minids3.kernels.rope import rope
from minids3.ops.rope import apply_rope
from minids3.ref.rope import apply_rope_ref, rope_tables


def case(shape, device, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator).to(device)
    cos, sin = rope_tables(shape[-2], shape[-1])
    return x, cos.to(device), sin.to(device)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("shape", kernel_shapes.ROPE.checked)
def test_values_and_the_way_back(device, guard, shape, interleaved):
    x, cos, sin = case(shape, device)
    y = rope(x, cos, sin, interleaved)
    back = rope(y, cos, sin, interleaved, inverse=True)
    assert guard.intact()
    torch.testing.assert_close(y, apply_rope_ref(x, cos, sin, interleaved))
    torch.testing.assert_close(back, x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("backend", ["ref", "triton", "auto"])
def test_gradient(device, backend, interleaved):
    x, cos, sin = case((2, 3, 5, 8), device)
    grad = torch.randn_like(x)
    want = torch.autograd.functional.vjp(
        lambda x: apply_rope_ref(x, cos, sin, interleaved), x, grad
    )
    x = x.requires_grad_()
    y = apply_rope(x, cos, sin, interleaved, backend=backend)
    y.backward(grad)
    torch.testing.assert_close(y, want[0])
    torch.testing.assert_close(x.grad, want[1])


def test_the_rotary_part_of_transposed_queries_is_read_without_a_copy(device):
    wide = torch.randn(2, 7, 3, 24, device=device)  # [B, T, H, nope + R]
    x = wide.transpose(1, 2)[..., 16:]
    _, cos, sin = case((7, 8), device)
    y = rope(x, cos, sin)
    assert y.is_contiguous()
    torch.testing.assert_close(y, apply_rope_ref(x, cos, sin))


def test_gradients_may_have_any_strides(device):
    x, cos, sin = case((4, 6, 8), device)
    for grad in (
        torch.ones(1, 1, 1, device=device).expand(4, 6, 8),
        torch.randn(8, 6, 4, device=device).permute(2, 1, 0),
    ):
        x = x.detach().requires_grad_()
        apply_rope(x, cos, sin, backend="triton").backward(grad)
        want = apply_rope_ref(grad, cos, -sin)
        torch.testing.assert_close(x.grad, want)


def test_half_precision_and_late_positions(device):
    cos, sin = rope_tables(torch.arange(100_000, 100_005), 64)
    x = torch.randn(2, 5, 64).half().to(device)
    y = rope(x, cos.to(device), sin.to(device))
    assert y.dtype == torch.float16
    want = apply_rope_ref(x.cpu(), cos, sin)
    torch.testing.assert_close(y.cpu(), want, rtol=1e-3, atol=1e-5)


def test_empty_and_errors(device):
    x, cos, sin = case((4, 8), device)
    assert rope(x.new_zeros(0, 4, 8), cos, sin).shape == (0, 4, 8)
    with pytest.raises(ValueError, match=r"tables \[4, 4\] do not fit x \[3, 8\]"):
        rope(x[:3], cos, sin)
    with pytest.raises(ValueError, match="must be fp32"):
        rope(x, cos.half(), sin)
    with pytest.raises(ValueError, match="channels of a position must lie together"):
        rope(torch.randn(8, 4, device=device).T, cos, sin)
