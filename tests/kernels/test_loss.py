"""Cross-entropy: loss and gradient from one launch, against fp64."""

import pytest
import torch
import torch.nn.functional as F

from minids3.bench import kernel_shapes
from minids3.kernels import loss as kernels
from minids3.kernels.loss import cross_entropy_fwd_bwd, scale_
from minids3.ops.loss import cross_entropy

IGNORE = -100


def case(n, v, device, seed=0, ignored=1):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, v, generator=generator) * 4
    targets = torch.randint(v, (n,), generator=generator)
    targets[: min(ignored, n - 1)] = IGNORE
    return logits.to(device), targets.to(device)


def truth(logits, targets):
    logits = logits.double().requires_grad_()
    loss = F.cross_entropy(logits, targets, ignore_index=IGNORE)
    loss.backward()
    return loss.detach(), logits.grad


@pytest.fixture
def short_blocks(monkeypatch):
    """Blocks so short that small rows need several."""
    monkeypatch.setattr(kernels, "_LONGEST_BLOCK", 16)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(("n", "v"), kernel_shapes.CROSS_ENTROPY.checked)
def test_loss_and_gradient(device, guard, short_blocks, n, v, in_place):
    logits, targets = case(n, v, device)
    want = truth(logits, targets)
    given = guard.make(logits.shape, logits.dtype, device).copy_(logits)
    loss, grad = cross_entropy_fwd_bwd(given, targets, IGNORE, in_place=in_place)
    assert guard.intact()
    assert (grad.data_ptr() == given.data_ptr()) == in_place
    assert in_place or torch.equal(given, logits)
    torch.testing.assert_close(loss.double(), want[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad.double(), want[1], rtol=1e-5, atol=1e-7)


def test_one_block_gives_the_same(device):
    logits, targets = case(6, 100, device)
    loss, grad = cross_entropy_fwd_bwd(logits, targets, IGNORE)
    want = truth(logits, targets)
    torch.testing.assert_close(loss.double(), want[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad.double(), want[1], rtol=1e-5, atol=1e-7)


def test_logits_of_any_size(device, short_blocks):
    logits, targets = case(4, 50, device)
    logits[1] *= 1e4
    logits[2, :30] = -torch.inf  # whole blocks without a finite number
    targets[2] = 40
    loss, grad = cross_entropy_fwd_bwd(logits, targets, IGNORE)
    want = truth(logits, targets)
    torch.testing.assert_close(loss.double(), want[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad.double(), want[1], rtol=1e-4, atol=1e-7)


def test_no_target_counts_or_one_is_outside(device):
    logits, targets = case(3, 20, device)
    loss, grad = cross_entropy_fwd_bwd(logits, torch.full_like(targets, IGNORE), IGNORE)
    assert float(loss) == 0
    assert not bool(grad.any())
    for wrong in (20, -1, 2**40):
        targets[1] = wrong
        loss, grad = cross_entropy_fwd_bwd(logits, targets, IGNORE)
        assert bool(loss.isnan())
        assert bool(grad[1].isnan().all())
        assert not bool(grad[2].isnan().any())


@pytest.mark.parametrize("backend", ["ref", "triton", "auto"])
def test_the_operation(device, backend):
    logits, targets = case(6, 33, device, ignored=2)
    want = truth(logits, targets)
    logits = logits.unflatten(0, (2, 3)).requires_grad_()
    loss = cross_entropy(logits, targets.view(2, 3), backend=backend)
    (3 * loss).backward()
    torch.testing.assert_close(loss.double(), want[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        logits.grad.flatten(0, 1).double(), 3 * want[1], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("backend", ["ref", "triton", "auto"])
def test_the_sum_and_nothing_to_learn(device, backend):
    logits, targets = case(6, 33, device, ignored=2)
    logits.requires_grad_()
    total = cross_entropy(logits, targets, reduction="sum", backend=backend)
    (total / 2).backward()
    want = truth(logits.detach(), targets)
    torch.testing.assert_close(total.double(), 4 * want[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits.grad.double(), 2 * want[1], rtol=1e-5, atol=1e-6)
    for reduction in ("mean", "sum"):
        logits.grad = None
        nothing = torch.full_like(targets, IGNORE)
        loss = cross_entropy(logits, nothing, reduction=reduction, backend=backend)
        loss.backward()
        assert float(loss) == 0
        assert float(logits.grad.abs().sum()) == 0
    with pytest.raises(ValueError, match="reduction='none' must be"):
        cross_entropy(logits, targets, reduction="none", backend=backend)


def test_in_place_through_a_head(device):
    """What the model does: nobody reads the logits again, so they become their gradient."""
    _, targets = case(5, 24, device)
    x = torch.randn(5, 8, device=device, requires_grad=True)
    weight = torch.randn(24, 8, device=device, requires_grad=True)
    F.cross_entropy(x @ weight.T, targets).backward()
    want = x.grad.clone(), weight.grad.clone()
    x.grad = weight.grad = None
    cross_entropy(x @ weight.T, targets, in_place=True, backend="triton").backward()
    for a, b in zip((x.grad, weight.grad), want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_without_a_gradient_the_logits_are_left_alone(device):
    logits, targets = case(4, 20, device)
    before = logits.clone()
    with torch.no_grad():
        cross_entropy(logits.requires_grad_(), targets, in_place=True, backend="triton")
    assert torch.equal(logits, before)
    cross_entropy(logits.detach(), targets, in_place=True, backend="triton")
    assert torch.equal(logits, before)


def test_a_second_backward_is_refused(device):
    logits, targets = case(4, 20, device)
    loss = cross_entropy(logits.requires_grad_(), targets, backend="triton")
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward works once"):
        loss.backward()


def test_half_precision(device):
    logits, targets = case(5, 300, device)
    logits = logits.half()
    loss, grad = cross_entropy_fwd_bwd(logits, targets, IGNORE)
    want = truth(logits, targets)
    assert (loss.dtype, grad.dtype) == (torch.float32, torch.float16)
    torch.testing.assert_close(loss.double(), want[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad.double(), want[1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_scale(device, guard, factor):
    x = torch.randn(4099, device=device)
    given = guard.make(x.shape, x.dtype, device).copy_(x)
    scale_(given, torch.tensor(factor, device=device))
    assert guard.intact()
    assert torch.equal(given, x * factor)


def test_errors_say_what_is_wrong(device):
    logits, targets = case(4, 20, device)
    with pytest.raises(ValueError, match=r"targets \[N\] int64, not \[4\] torch.int32"):
        cross_entropy_fwd_bwd(logits, targets.int(), IGNORE)
    with pytest.raises(ValueError, match=r"targets \[3\] do not fit logits \[4, 20\]"):
        cross_entropy(logits, targets[:3])
    with pytest.raises(ValueError, match="logits is not contiguous"):
        cross_entropy_fwd_bwd(logits.T.contiguous().T, targets, IGNORE)
    assert cross_entropy_fwd_bwd(logits[:0], targets[:0], IGNORE)[1].shape == (0, 20)


@pytest.mark.gpu
@pytest.mark.parametrize(("n", "v"), kernel_shapes.CROSS_ENTROPY.large)
def test_a_vocabulary_like_v3s_in_bf16(n, v):
    logits, targets = case(n, v, "cuda")
    logits = logits.bfloat16()
    want = truth(logits, targets)
    loss, grad = cross_entropy_fwd_bwd(logits, targets, IGNORE, in_place=True)
    torch.testing.assert_close(loss.double(), want[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad.double(), want[1], rtol=1e-2, atol=1e-6)
