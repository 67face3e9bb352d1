"""The reference operations against PyTorch's and Hugging Face's own."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    apply_rotary_pos_emb_interleave,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from minids3.nn import RMSNorm, apply_rope
from minids3.nn.attention import causal_sdpa
from minids3.ops.norm import rms_norm
from minids3.ref.activation import swiglu_ref
from minids3.ref.attention import causal_attention_ref
from minids3.ref.loss import cross_entropy_ref
from minids3.ref.norm import rms_norm_ref
from minids3.ref.rope import apply_rope_ref, rope_tables


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 5, 24)])
def test_rms_norm_equals_hugging_face_and_torch(shape, dtype):
    x, weight = 3 * randn(*shape, dtype=dtype), randn(shape[-1], seed=1, dtype=dtype)
    theirs = LlamaRMSNorm(shape[-1], eps=1e-6).to(dtype)
    theirs.weight.data.copy_(weight)
    ours = rms_norm_ref(x, weight)
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(ours, theirs(x), rtol=tolerance, atol=tolerance)
    layer = RMSNorm(shape[-1]).to(dtype)
    layer.weight.data.copy_(weight)
    torch.testing.assert_close(layer(x), ours, rtol=tolerance, atol=tolerance)


def test_rms_norm_of_zero_is_zero_and_bad_weight_is_refused():
    assert rms_norm_ref(torch.zeros(2, 4), torch.ones(4)).abs().max() == 0
    with pytest.raises(ValueError, match=r"weight has shape \[3\], x needs \[4\]"):
        rms_norm_ref(torch.zeros(2, 4), torch.ones(3))


@pytest.mark.parametrize("shape", [(1, 1), (4, 3, 24), (0, 8)])
@pytest.mark.parametrize("strided", [False, True])
def test_rms_norm_has_the_gradients_of_the_formula(shape, strided):
    width = shape[-1] + 3 * strided  # a latent norm reads a slice of a wider product
    whole = 3 * randn(*shape[:-1], width, dtype=torch.float64)
    x = whole[..., : shape[-1]].requires_grad_()
    weight = randn(shape[-1], seed=1, dtype=torch.float64).requires_grad_()
    grad = randn(*shape, seed=2, dtype=torch.float64)
    expected = torch.autograd.grad(rms_norm_ref64(x, weight), (x, weight), grad)
    y = rms_norm(x, weight)
    torch.testing.assert_close(y, rms_norm_ref64(x, weight))
    torch.testing.assert_close(torch.autograd.grad(y, (x, weight), grad), expected)
    assert x.numel() == 0 or gradcheck(rms_norm, (x, weight))
    with torch.inference_mode():
        assert torch.equal(rms_norm(x, weight), y)


def rms_norm_ref64(x, weight):
    """The reference takes its statistics in fp32; a gradient in fp64 wants them in fp64."""
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight


def test_rms_norm_of_rows_of_any_size():
    for size in (0.0, 1e-30, 1e-4, 1e15):
        x, weight = (size * randn(5, 16)).requires_grad_(), randn(16, seed=1).requires_grad_()
        grad = randn(5, 16, seed=2)
        y, expected = rms_norm(x, weight), rms_norm_ref(x, weight)
        torch.testing.assert_close(y, expected)
        ours = torch.autograd.grad(y, (x, weight), grad)
        theirs = torch.autograd.grad(expected, (x, weight), grad)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 / max(size, 1e-3))
    with pytest.raises(ValueError, match=r"weight has shape \[3\], x needs \[4\]"):
        rms_norm(torch.zeros(2, 4), torch.ones(3))


@pytest.mark.parametrize("steps", [1, 9])
@pytest.mark.parametrize("dim", [2, 16])
def test_rope_equals_hugging_face_in_both_layouts(steps, dim):
    q, k = randn(2, 3, steps, dim), randn(2, 1, steps, dim, seed=1)
    cos, sin = rope_tables(steps, dim, theta=500.0)
    twice = [torch.cat([t, t], -1)[None] for t in (cos, sin)]
    their_q, their_k = apply_rotary_pos_emb(q, k, *twice)
    torch.testing.assert_close(apply_rope_ref(q, cos, sin, interleaved=False), their_q)
    torch.testing.assert_close(apply_rope(k, cos, sin, interleaved=False), their_k)
    # HF's interleaved version returns the rotated pairs half-split: bring ours to that order.
    their_q, _ = apply_rotary_pos_emb_interleave(q, k, *twice)
    ours = apply_rope_ref(q, cos, sin, interleaved=True)
    reordered = torch.cat([ours[..., 0::2], ours[..., 1::2]], -1)
    torch.testing.assert_close(reordered, their_q)
    torch.testing.assert_close(apply_rope(q, cos, sin), ours)


def test_rope_scores_depend_on_distance_only():
    q, k = randn(1, 16), randn(1, 16, seed=1)
    score = {}
    for start in (0, 5, 1000):
        tables = [rope_tables(torch.tensor([p]), 16) for p in (start + 7, start)]
        turned = [apply_rope_ref(x, *t) for x, t in zip((q, k), tables, strict=True)]
        score[start] = (turned[0] @ turned[1].T).item()
    assert score[5] == pytest.approx(score[0], abs=1e-4)
    assert score[1000] == pytest.approx(score[0], abs=1e-3)


def test_rope_refuses_odd_sizes_and_wrong_tables():
    with pytest.raises(ValueError, match="even"):
        rope_tables(4, 5)
    with pytest.raises(ValueError, match=r"both must be \[4, 4\]"):
        apply_rope_ref(randn(2, 4, 8), *rope_tables(3, 8))


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (6, 6), (1, 7), (3, 8)])
def test_attention_equals_sdpa_in_values_and_gradients(heads, kv_heads, queries, keys):
    q = randn(2, heads, queries, 8).requires_grad_()
    k = randn(2, kv_heads, keys, 8, seed=1).requires_grad_()
    v = randn(2, kv_heads, keys, 5, seed=2).requires_grad_()
    mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    theirs = F.scaled_dot_product_attention(
        q,
        k.repeat_interleave(heads // kv_heads, 1),
        v.repeat_interleave(heads // kv_heads, 1),
        attn_mask=mask,
    )
    weight = randn(*theirs.shape, seed=3)
    expected = torch.autograd.grad((theirs * weight).sum(), (q, k, v))
    for ours in (causal_attention_ref(q, k, v), causal_sdpa(q, k, v)):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        got = torch.autograd.grad((ours * weight).sum(), (q, k, v))
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_attention_refuses_uneven_groups_and_missing_keys():
    with pytest.raises(ValueError, match="cannot share"):
        causal_attention_ref(randn(1, 3, 2, 4), randn(1, 2, 2, 4), randn(1, 2, 2, 4))
    with pytest.raises(ValueError, match="a query is one of the positions"):
        causal_attention_ref(randn(1, 1, 3, 4), randn(1, 1, 2, 4), randn(1, 1, 2, 4))


def test_swiglu_and_loss_equal_torch():
    gate, up = randn(3, 8), randn(3, 8, seed=1)
    torch.testing.assert_close(swiglu_ref(gate, up), F.silu(gate) * up)
    with pytest.raises(ValueError, match="one shape"):
        swiglu_ref(gate, up[:, :4])
    logits, targets = 50 * randn(2, 5, 11), torch.tensor([[1, -100, 3, 10, 0], [-100, 2, 2, 2, 7]])
    theirs = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(cross_entropy_ref(logits, targets), theirs)
    total = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    torch.testing.assert_close(cross_entropy_ref(logits, targets, reduction="sum"), total)
    with pytest.raises(ValueError, match="do not fit"):
        cross_entropy_ref(logits, targets[:, :4])
