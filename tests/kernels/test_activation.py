"""SwiGLU: two tensors or a joint one, values and gradients."""

import pytest
import torch

from minids3.bench import kernel_shapes
from minids3.kernels.activation import swiglu_bwd, swiglu_fwd
from minids3.ops.activation import swiglu
from minids3.ref.activation import swiglu_ref


def case(shape, device, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(*shape, generator=generator) * 3).to(device, dtype) for _ in range(3)]


def truth(gate, up, grad):
    gate, up = gate.double().requires_grad_(), up.double().requires_grad_()
    out = gate * torch.sigmoid(gate) * up
    out.backward(grad.double())
    return out.detach(), gate.grad, up.grad


@pytest.mark.parametrize("shape", [*kernel_shapes.SWIGLU.checked, (1025,)])
def test_kernels(device, guard, shape):
    gate, up, grad = case(shape, device)
    want = truth(gate, up, grad)
    got = (swiglu_fwd(gate, up), *swiglu_bwd(grad, gate, up))
    assert guard.intact()
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", kernel_shapes.SWIGLU.checked)
def test_joint_tensor(device, guard, shape):
    gate, up, grad = case(shape, device)
    joint = torch.cat((gate, up), -1)
    out, (dgate, dup) = swiglu_fwd(joint), swiglu_bwd(grad, gate, up)
    djoint, nothing = swiglu_bwd(grad, joint)
    assert guard.intact()
    assert nothing is None
    assert torch.equal(out, swiglu_fwd(gate, up))
    assert torch.equal(djoint, torch.cat((dgate, dup), -1))


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("backend", ["ref", "triton", "auto"])
def test_the_operation(device, backend, joint):
    gate, up, grad = case((4, 40), device)
    want = truth(gate, up, grad)
    if joint:
        both = torch.cat((gate, up), -1).requires_grad_()
        out = swiglu(both, backend=backend)
        out.backward(grad)
        got = out, *both.grad.chunk(2, -1)
    else:
        gate, up = gate.requires_grad_(), up.requires_grad_()
        out = swiglu(gate, up, backend=backend)
        out.backward(grad)
        got = out, gate.grad, up.grad
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6)


def test_halves_of_a_wider_tensor_and_strided_gradients(device):
    gate, up, grad = case((4, 40), device)
    both = torch.cat((gate, up), -1).requires_grad_()
    swiglu(*both.chunk(2, -1), backend="triton").backward(grad.T.contiguous().T)
    want = torch.cat(truth(gate, up, grad)[1:], -1)
    torch.testing.assert_close(both.grad.double(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:overflow")
def test_half_precision_and_large_gates(device):
    gate, up, grad = case((4, 100), device, torch.float16)
    gate[0] = torch.linspace(-200, 200, 100)
    out = swiglu_fwd(gate, up)
    torch.testing.assert_close(out, swiglu_ref(gate, up), rtol=2e-3, atol=1e-6)
    dgate, dup = swiglu_bwd(grad, gate, up)
    for a, b in zip((dgate, dup), truth(gate, up, grad)[1:], strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-3, atol=1e-4)


def test_empty_and_errors(device):
    gate, up, grad = case((3, 8), device)
    assert swiglu_fwd(gate[:0], up[:0]).shape == (0, 8)
    assert swiglu_fwd(gate[:0]).shape == (0, 4)
    with pytest.raises(ValueError, match="must agree"):
        swiglu_fwd(gate, up.half())
    with pytest.raises(ValueError, match=r"even width, not \[3, 7\]"):
        swiglu_fwd(gate[:, :7].contiguous())
    with pytest.raises(ValueError, match="up is not contiguous"):
        swiglu_fwd(gate, torch.randn(8, 3, device=device).T)
    with pytest.raises(ValueError, match=r"grad is \[3, 8\], the output \[3, 4\]"):
        swiglu_bwd(grad, gate)
