"""Rotary tables and router biases go where the model goes and lose no bit."""

import copy
import pickle

import pytest
import torch

from deepseek_twin import build
from minids3.config import get_config
from minids3.model import Transformer
from minids3.nn.rope import apply_rope, model_rope_tables
from minids3.ref.rope import apply_rope_ref

IDS = (torch.arange(40) * 7 % 101)[None]


def model_with_biases():
    model = build(max_position_embeddings=4096)
    with torch.no_grad():
        for layer in model.layers[1:]:
            layer.mlp.gate.expert_bias.uniform_(-0.5, 0.5)
    return model


def to_empty(model):
    return model.to_empty(device="cpu")


CASTS = {
    "bf16": lambda m: m.bfloat16(),
    "half": lambda m: m.half(),
    "double": lambda m: m.double(),
    "to(dtype)": lambda m: m.to(torch.float16),
    "to(device, dtype)": lambda m: m.to("cpu", torch.bfloat16),
    "type": lambda m: m.type(torch.bfloat16),
    "copy": lambda m: copy.deepcopy(m.bfloat16()),
    "pickle": lambda m: pickle.loads(pickle.dumps(m.bfloat16())),
    "to_empty": to_empty,
    "there and back": lambda m: m.bfloat16().half().float(),
    "shared": lambda m: m.share_memory(),
}


@pytest.mark.parametrize("name", CASTS)
def test_no_cast_rounds_them(name):
    model = model_with_biases()
    want = {n: b.clone() for n, b in model.named_buffers()}
    assert set(want) == {
        "rope_cos",
        "rope_sin",
        *(f"layers.{i}.mlp.gate.expert_bias" for i in range(1, len(model.layers))),
    }
    cast = CASTS[name](model)
    for n, buffer in cast.named_buffers():
        assert buffer.dtype == torch.float32, n
        assert torch.equal(buffer, want[n]), n


def test_the_same_weights_give_the_same_logits_after_bf16_and_back():
    model = model_with_biases()
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    ids = (torch.arange(3000) * 7 % 101)[None]
    with torch.no_grad():
        before = model(ids)
        model.bfloat16().float()
        model.load_state_dict(weights)
        assert torch.equal(model(ids), before)


def test_from_the_meta_device_they_are_made_anew():
    with torch.device("meta"):
        model = Transformer(get_config("mini"))
    for made in (model.to_empty(device="cpu"), model.to("meta").to_empty(device="cpu")):
        for buffer, want in zip(
            (made.rope_cos, made.rope_sin), model_rope_tables(made.config), strict=True
        ):
            assert torch.equal(buffer, want)
        assert not bool(made.layers[1].mlp.gate.expert_bias.any())
        assert "rope_cos" not in made.state_dict()


def test_a_bf16_state_that_is_assigned_leaves_an_fp32_bias():
    model = model_with_biases()
    state = {k: v.bfloat16() for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    bias = model.layers[1].mlp.gate.expert_bias
    assert bias.dtype == torch.float32
    assert torch.equal(bias, state["layers.1.mlp.gate.expert_bias"].float())


def test_the_default_dtype_does_not_reach_them():
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = build()
    finally:
        torch.set_default_dtype(torch.float32)
    assert {b.dtype for b in model.buffers()} == {torch.float32}
    assert torch.equal(model.rope_cos, model_rope_tables(model.config)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_model_computes_in_its_own_dtype(dtype):
    model = build(initializer_range=0.05).to(dtype)
    with torch.no_grad():
        logits = model(IDS)
        want = model.float()(IDS)
    assert logits.dtype == dtype
    assert (logits.float() - want).norm() / want.norm() < 0.05


ODD = {
    "odd offset": lambda: torch.randn(31)[1:].view(1, 1, 3, 10)[:, :, :1],
    "odd offset, longer": lambda: torch.randn(31)[1:].view(1, 1, 3, 10),
    "odd stride": lambda: torch.randn(2, 3, 11)[..., :10],
    "odd stride and offset": lambda: torch.randn(2, 3, 11)[..., 1:],
    "channels apart": lambda: torch.randn(2, 10, 3).transpose(1, 2),
    "every second channel": lambda: torch.randn(2, 3, 20)[..., ::2],
    "expanded": lambda: torch.randn(1, 3, 10).expand(4, 3, 10),
    "empty": lambda: torch.randn(0, 3, 10),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("interleaved", [True, False])
def test_rope_wherever_its_input_lies_in_memory(name, interleaved):
    torch.manual_seed(0)
    x = ODD[name]()
    angles = torch.randn(x.shape[-2], 5)
    got = apply_rope(x, angles.cos(), angles.sin(), interleaved)
    want = apply_rope_ref(x.double().float(), angles.cos(), angles.sin(), interleaved)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rope_with_positions_of_every_row(dtype):
    torch.manual_seed(0)
    x, angles = torch.randn(3, 2, 4, 6).to(dtype), torch.randn(3, 1, 4, 3)
    got = apply_rope(x, angles.cos(), angles.sin())
    for row in range(3):
        want = apply_rope_ref(x[row], angles[row, 0].cos(), angles[row, 0].sin())
        torch.testing.assert_close(got[row], want)
    for tables in (angles[:2], angles[:, :, :3], angles[..., :2], angles[None, :, :, :, :]):
        with pytest.raises(ValueError, match="do not fit"):
            apply_rope(x, tables.cos(), tables.sin())
