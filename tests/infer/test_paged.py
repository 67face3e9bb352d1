"""Decoding by the paged kernel from a plain cache of latents, as ``generate_ids`` does on a GPU."""

import importlib
from functools import partial

import pytest
import torch

from minids3.infer import generate_ids, make_cache, paged
from minids3.infer.paged import PagedDecoder
from minids3.infer.prepared import PreparedDecoder
from minids3.nn import record_routing
from small_models import grouped_model, latent_model

generate = importlib.import_module("minids3.infer.generate")
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [1], [2, 3, 4]]


@pytest.fixture
def gpu(monkeypatch):
    """``generate_ids`` as on a GPU; counts what the kernel, here in the interpreter, is asked."""
    calls, plain = [], paged.latent_decode

    def decode(*args, **settings):
        calls.append(args[2].shape)
        return plain(*args, **settings, backend="triton")

    monkeypatch.setattr(generate, "_on_gpu", lambda cache: True)
    monkeypatch.setattr(generate, "why_not_prepared", lambda model: "this is a GPU")
    monkeypatch.setattr(paged, "latent_decode", decode)
    return calls


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for machines without")
@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1], torch.tensor([[1, 2, 3], [4, 5, 6]])])
def test_on_a_gpu_generation_decodes_by_the_kernel(prompts, gpu):
    model = latent_model(torch.float32, num_hidden_layers=1, first_k_dense_replace=0)
    model.layers[0].self_attn.absorb = True
    got = generate_ids(model, prompts, 4)
    assert gpu == [(len(prompts), 1)] * 3  # one page a text; the first token is the prompt's
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "_on_gpu", lambda cache: False)
        want = generate_ids(model, prompts, 4)
    assert len(gpu) == 3
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("absorb", [True, None])
@pytest.mark.parametrize("side", ["left", "right", None])
@torch.inference_mode()
def test_logits_are_the_model_s_whatever_is_padded(side, absorb):
    model, plain = latent_model(), latent_model()  # the plain one takes no softmax in fp32
    lengths = [7, 1, 3] if side else [7, 7, 7]
    new = torch.tensor([[9, 8, 7, 6], [5, 4, 3, 2], [1, 0, 40, 39]])
    ids, real = torch.zeros(3, 7, dtype=torch.int64), torch.zeros(3, 7, dtype=torch.bool)
    texts = [torch.arange(n) + 3 * n for n in lengths]
    for i, text in enumerate(texts):
        place = slice(7 - len(text), 7) if side == "left" else slice(0, len(text))
        ids[i, place], real[i, place] = text, True
    cache = make_cache(model.config, 3, 11, torch.float64)
    model.hidden_states(ids, cache, real if side else None)
    decoder = PagedDecoder(model, cache)
    for layer, other in zip(model.layers, plain.layers, strict=True):
        layer.self_attn.absorb, other.self_attn.absorb = absorb, False
    for step in range(4):
        got = decoder(new[:, step])
        for i, text in enumerate(texts):
            want = plain(torch.cat((text, new[i, : step + 1]))[None])[0, -1]
            torch.testing.assert_close(got[i], want, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="holds 11 positions, all are taken"):
        decoder(new[:, 0])


def test_who_does_not_decode_by_the_kernel(monkeypatch):
    monkeypatch.setattr(generate, "_on_gpu", lambda cache: True)
    kind = partial(generate._decoder, steps=9, compile=False)

    def decoder(model):
        return kind(model, make_cache(model.config, 1, 8, model.lm_head.weight.dtype))

    assert isinstance(decoder(latent_model()), PagedDecoder)
    assert isinstance(decoder(latent_model(torch.float32)), PreparedDecoder)
    assert not isinstance(decoder(grouped_model()), PagedDecoder)  # keeps keys and values
    model = latent_model()
    with record_routing(model):
        assert isinstance(decoder(model), type(lambda: 0))  # somebody listens
    model.layers[0].self_attn.absorb = False
    assert not isinstance(decoder(model), PagedDecoder)
