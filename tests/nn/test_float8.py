"""FP8 layers: gradients against the written-out recipe, kernels, conversion, checkpoints."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from fp8_cores import sum_error

from minids3.config import get_config
from minids3.model import Transformer
from minids3.model.hf import load_hf, save_hf
from minids3.nn import Experts, Float8Experts, Float8Linear, to_float8
from minids3.numerics import relative_error
from minids3.ops.gemm import BF16_BASELINE, Float8Recipe, fp8_grouped_linear, fp8_linear
from minids3.ref.gemm import (
    fp8_dgrad_ref,
    fp8_fprop_ref,
    fp8_wgrad_ref,
    requantize_transposed_ref,
)
from minids3.ref.quant import WEIGHT_BLOCK, cache_quantize_ref, dequantize_ref, quantize_ref

RECIPES = {
    "v3": Float8Recipe(),
    "powers": Float8Recipe(power_of_two=True),
    "e5m6": Float8Recipe(power_of_two=True, kept="e5m6"),
    "tensor": Float8Recipe(activation=None, gradient=None, weight=None),
    "blocks": Float8Recipe(gradient=(128, 128)),
    "short": Float8Recipe(fraction_bits=13),
    "bf16": BF16_BASELINE,
}
FP32_OUT = Float8Recipe(output=torch.float32)  # the interpreter rounds to BF16 in its own way


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradients(function, x, weight, grad):
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = function(x, weight)
    y.backward(grad)
    return y.detach(), x.grad, weight.grad


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1), (130, 200, 70), (256, 128, 384)])
def test_equals_the_three_reference_products(shape, power_of_two):
    m, k, n = shape
    x, weight, grad = randn(m, k), randn(n, k, seed=1), randn(m, n, seed=2)
    recipe = Float8Recipe(power_of_two=power_of_two)
    y, dx, dw = gradients(lambda x, w: fp8_linear(x, w, recipe=recipe), x, weight, grad)
    x_q, w_q = quantize_ref(x, power_of_two=power_of_two), quantize_ref(weight, WEIGHT_BLOCK)
    x_t = requantize_transposed_ref(*x_q, power_of_two=power_of_two)
    assert torch.equal(y, fp8_fprop_ref(*x_q, *w_q).float())
    torch.testing.assert_close(
        dx, fp8_dgrad_ref(*quantize_ref(grad), *w_q).float(), rtol=1e-2, atol=0
    )
    expected = fp8_wgrad_ref(*quantize_ref(grad.T.contiguous()), *x_t)
    torch.testing.assert_close(dw, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", RECIPES)
def test_near_the_exact_layer_and_three_dimensional(name):
    x, weight, grad = randn(2, 70, 150), randn(90, 150, seed=1), randn(2, 70, 90, seed=2)
    found = gradients(lambda x, w: fp8_linear(x, w, recipe=RECIPES[name]), x, weight, grad)
    exact = gradients(F.linear, x, weight, grad)
    for a, b in zip(found, exact, strict=True):
        assert a.shape == b.shape
        assert a.dtype == torch.float32
        assert relative_error(a, b) < (0.005 if name == "bf16" else 0.06)
    assert torch.equal(found[0], found[0].bfloat16().float())  # outputs are BF16 numbers


def test_bf16_baseline_equals_pytorchs_bf16():
    x, weight, grad = randn(64, 64), randn(32, 64, seed=1), randn(64, 32, seed=2)
    found = gradients(lambda x, w: fp8_linear(x, w, recipe=BF16_BASELINE), x, weight, grad)
    parts = (t.bfloat16() for t in (x, weight, grad))
    for a, b in zip(found, gradients(F.linear, *parts), strict=True):
        assert relative_error(a, b.float()) < 3e-3  # one rounding of the result


def test_without_scales_small_gradients_vanish():
    x, weight, grad = randn(8, 128), randn(4, 128, seed=1), 1e-5 * randn(8, 4, seed=2)
    recipe = Float8Recipe(scaled=False)
    _, dx, _ = gradients(lambda x, w: fp8_linear(x, w, recipe=recipe), x, weight, grad)
    assert not dx.any()
    _, dx, _ = gradients(fp8_linear, x, weight, grad)
    assert relative_error(dx, grad @ weight) < 0.06


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("counts", [[5, 0, 130, 1], [0, 0, 7, 0], [0, 0, 0, 0]])
def test_experts_equal_a_loop_over_linear_layers(name, counts):
    m = sum(counts)
    x, weight, grad = randn(m, 140), randn(4, 150, 140, seed=1), randn(m, 150, seed=2)
    recipe = RECIPES[name]
    if name == "tensor":  # one scale for all experts: another number, close to it
        pytest.skip("the scale joins experts")
    y, dx, dw = gradients(
        lambda x, w: fp8_grouped_linear(x, w, torch.tensor(counts), recipe=recipe), x, weight, grad
    )
    start = 0
    for e, n in enumerate(counts):
        rows = slice(start, start + n)
        start += n
        if n == 0:
            assert not dw[e].any()
            continue
        one = gradients(
            lambda x, w: fp8_linear(x, w, recipe=recipe), x[rows], weight[e], grad[rows]
        )
        # the order of fp32 additions may differ, and with it the last bit of a BF16 number
        for a, b in zip((y[rows], dx[rows], dw[e]), one, strict=True):
            assert relative_error(a, b) < 1e-3


@pytest.mark.parametrize("shape", [(5, 40, 30), (130, 128, 136)])
def test_kernels_equal_the_reference(shape, device):
    pytest.importorskip("triton")
    m, k, n = shape
    parts = [t.to(device) for t in (randn(m, k), randn(n, k, seed=1), randn(m, n, seed=2))]
    by = {}
    for backend in ("ref", "triton"):
        by[backend] = gradients(
            lambda x, w, b=backend: fp8_linear(x, w, recipe=FP32_OUT, backend=b), *parts
        )
    for a, b in zip(by["triton"], by["ref"], strict=True):
        assert a.dtype == b.dtype
        assert relative_error(a, b) < max(1e-5, sum_error(device))


def test_e5m6_is_rounded_once_more_for_the_weight_gradient(device):
    pytest.importorskip("triton")
    x, weight, grad = randn(150, 256), randn(40, 256, seed=1), randn(150, 40, seed=2)
    parts = [t.to(device) for t in (x, weight, grad)]
    recipe = replace(FP32_OUT, power_of_two=True, kept="e5m6")
    by = {}
    for backend in ("ref", "triton"):
        by[backend] = gradients(
            lambda x, w, b=backend: fp8_linear(x, w, recipe=recipe, backend=b), *parts
        )
    kept = dequantize_ref(*cache_quantize_ref(x))
    across = quantize_ref(kept.T.contiguous(), power_of_two=True)
    want = fp8_wgrad_ref(*quantize_ref(grad.T.contiguous()), *across)
    torch.testing.assert_close(by["ref"][2].cpu(), want, rtol=1e-4, atol=1e-4)
    for a, b in zip(by["triton"], by["ref"], strict=True):
        assert relative_error(a, b) < max(1e-5, sum_error(device))
    counts = torch.tensor([100, 50], device=device)
    with pytest.raises(ValueError, match="no kernels for"):
        fp8_grouped_linear(
            parts[0], torch.stack([parts[1]] * 2), counts, recipe=recipe, backend="triton"
        )


@pytest.mark.parametrize("n", [40, 128])
def test_grouped_kernels_equal_the_reference(n, device):
    pytest.importorskip("triton")
    counts = torch.tensor([3, 0, 130], device=device)
    x, weight, grad = randn(133, 72), randn(3, n, 72, seed=1), randn(133, n, seed=2)
    parts = [t.to(device) for t in (x, weight, grad)]
    by = {}
    for backend in ("ref", "triton"):
        by[backend] = gradients(
            lambda x, w, b=backend: fp8_grouped_linear(x, w, counts, recipe=FP32_OUT, backend=b),
            *parts,
        )
    for a, b in zip(by["triton"], by["ref"], strict=True):
        assert relative_error(a, b) < max(1e-5, sum_error(device))
    assert not by["triton"][2][1].any()


def test_refusals():
    with pytest.raises(ValueError, match="does not fit"):
        fp8_linear(randn(2, 3), randn(4, 5))
    with pytest.raises(ValueError, match="no kernels for"):
        fp8_linear(randn(2, 3), randn(4, 3), recipe=BF16_BASELINE, backend="triton")
    with pytest.raises(ValueError, match="is unknown"):
        fp8_linear(randn(2, 3), randn(4, 3), backend="cuda")
    with pytest.raises(ValueError, match="has a bias"):
        Float8Linear.from_linear(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="chose no module"):
        to_float8(torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False)), filter=lambda n, m: False)


def small(seed=0, **changes):
    torch.manual_seed(seed)
    sizes = {"num_hidden_layers": 2, "hidden_size": 128, "n_routed_experts": 8}
    return Transformer(get_config("mini", **{**sizes, **changes}))


def test_conversion_keeps_what_the_paper_keeps():
    model = small()
    before = dict(model.named_parameters())
    done = to_float8(model)
    after = dict(model.named_parameters())
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)  # the masters themselves
    kept = {name.rpartition(".")[2] for name in done.kept}
    assert kept == {"embed_tokens", "lm_head", "eh_proj", "gate"}
    for name, module in model.named_modules():
        if isinstance(module, Float8Linear):
            after_attention = name.endswith("o_proj")
            assert module.recipe.power_of_two == after_attention
            assert module.recipe.kept == ("e5m6" if after_attention else "operand")
    assert isinstance(model.layers[1].mlp.experts, Float8Experts)
    assert not any(type(m) is Experts for m in model.modules())
    text = str(done)
    assert "kept  lm_head (1)" in text
    assert "FP8   layers.*.self_attn.o_proj (2)" in text
    attention_only = to_float8(small(), filter=lambda name, module: "self_attn" in name)
    assert all("self_attn" in name for name in attention_only.converted)
    assert 0 < attention_only.share < done.share < 1


def test_a_converted_model_trains_and_its_loss_is_near():
    plain = small()
    model = copy.deepcopy(plain)
    to_float8(model)
    ids = torch.randint(0, 2048, (2, 33), generator=torch.Generator().manual_seed(0))
    losses = []
    for m in (plain, model):
        main, extra = m.losses(ids[:, :-1], ids[:, 1:].contiguous())
        (main + 0.3 * extra[0]).backward()
        losses.append(main.item())
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
    for (name, a), b in zip(plain.named_parameters(), model.parameters(), strict=True):
        if a.grad is not None and a.grad.any():
            assert relative_error(b.grad, a.grad) < 0.35, name


def test_fp8_checkpoint_holds_the_numbers_that_the_layers_multiply(tmp_path):
    model = small(seed=3)
    done = to_float8(model)
    save_hf(model, tmp_path / "m", fp8=True)
    loaded = load_hf(tmp_path / "m", dtype=torch.float32)
    to_float8(loaded)
    own, read = (
        {n: p for n, p in m.named_parameters() if n.rpartition(".")[0] in done.converted}
        for m in (model, loaded)
    )

    def matrices(weight):
        return weight if weight.ndim == 3 else (weight,)

    for name, weight in own.items():
        for a, b in zip(*map(matrices, (weight, read[name])), strict=True):
            (q, scale), (again, scale_again) = (quantize_ref(t, WEIGHT_BLOCK) for t in (a, b))
            assert torch.equal(q.view(torch.uint8), again.view(torch.uint8)), name
            torch.testing.assert_close(scale, scale_again, rtol=1e-6, atol=0)
    for name in ("embed_tokens.weight", "lm_head.weight", "mtp.0.eh_proj.weight"):
        assert torch.equal(model.get_parameter(name), loaded.get_parameter(name))


def test_state_goes_both_ways():
    model, plain = small(seed=1), small(seed=2)
    to_float8(model)
    plain.load_state_dict(model.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True)
    )
