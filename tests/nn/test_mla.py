"""Latent attention: naive = absorbed = the oracle's equations; cached = uncached."""

import itertools

import pytest
import torch

from deepseek_twin import BASE, CONFIGS, build
from minids3.config import get_config
from minids3.infer import KVCache, LatentCache, make_cache
from minids3.nn import LatentAttention
from minids3.nn.rope import attention_scale, model_rope_tables
from minids3.ref.attention import latent_attention_ref
from minids3.ref.rope import rope_frequencies, yarn_frequencies, yarn_mscale


def setting(name="base", steps=11, seed=0):
    cfg = BASE.replace(**CONFIGS[name])
    torch.manual_seed(seed)
    layer = LatentAttention(cfg, 0)
    with torch.no_grad():
        for n, p in layer.named_parameters():
            if "norm" in n:
                p.uniform_(0.5, 1.5)
    cos, sin = (t[:steps] for t in model_rope_tables(cfg))
    return cfg, layer, torch.randn(2, steps, cfg.hidden_size), cos, sin


def oracle(cfg, layer, x, cos, sin):
    p = dict(layer.named_parameters())
    compressed = cfg.q_lora_rank is not None
    return latent_attention_ref(
        x,
        cos,
        sin,
        w_q=p["q_b_proj.weight" if compressed else "q_proj.weight"],
        w_q_a=p["q_a_proj.weight"] if compressed else None,
        q_norm=p["q_a_layernorm.weight"] if compressed else None,
        w_kv_a=p["kv_a_proj_with_mqa.weight"],
        kv_norm=p["kv_a_layernorm.weight"],
        w_kv_b=p["kv_b_proj.weight"],
        w_o=p["o_proj.weight"],
        v_head_dim=cfg.v_head_dim,
        scale=layer.scale,
        interleaved=cfg.rope_interleave,
    )


@pytest.mark.parametrize("steps", [1, 11])
@pytest.mark.parametrize(
    "name", ["base", "plain queries", "half-split rope", "yarn", "odd head widths"]
)
def test_both_paths_equal_the_oracle_with_gradients(name, steps):
    cfg, layer, x, cos, sin = setting(name, steps)
    x.requires_grad_()
    results = []
    for run in ("oracle", False, True):
        layer.absorb = run if run != "oracle" else None
        out = oracle(cfg, layer, x, cos, sin) if run == "oracle" else layer(x, cos, sin)
        grads = torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])
        results.append((out, *grads))
    for other in results[1:]:
        for expected, got in zip(results[0], other, strict=True):
            # One position attends to itself alone: scores have no gradient, only rounding has.
            scale = expected.norm() if expected.norm() > 0 else results[0][1].norm()
            assert (got - expected).norm() <= 1e-5 * scale


@pytest.mark.parametrize("absorb", [None, False, True])
def test_any_split_into_prefill_and_decode_gives_the_same(absorb):
    cfg, layer, x, cos, sin = setting(steps=6)
    layer.absorb = absorb
    expected = layer(x, cos, sin)
    for cuts in itertools.chain.from_iterable(
        itertools.combinations(range(1, 6), n) for n in range(6)
    ):
        cache = LatentCache(cfg, batch_size=2, capacity=6)
        parts = []
        for start, stop in itertools.pairwise((0, *cuts, 6)):
            chunk = slice(start, stop)
            parts.append(layer(x[:, chunk], cos[chunk], sin[chunk], cache))
            cache.advance(stop - start)
        torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=1e-5, atol=1e-5)


def test_whole_model_cached_equals_uncached():
    model = build().eval()
    ids = torch.randint(0, 101, (3, 14), generator=torch.Generator().manual_seed(0))
    expected = model(ids)
    cache = make_cache(model.config, 3, 14)
    parts = [model(ids[:, a:b], cache) for a, b in ((0, 5), (5, 6), (6, 7), (7, 14))]
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=1e-5, atol=1e-5)
    assert cache.length == 14


def test_the_cache_holds_latents_and_nothing_else():
    cfg = BASE
    cache = LatentCache(cfg, batch_size=2, capacity=9, dtype=torch.bfloat16)
    assert cache.latent.shape == (3, 2, 9, cfg.kv_lora_rank + cfg.qk_rope_head_dim)
    assert cache.bytes_per_token == 2 * 3 * 28
    with pytest.raises(ValueError, match="9 positions, 10 are needed"):
        cache.update(0, torch.zeros(2, 10, 28))
    with pytest.raises(ValueError, match="batch of 2, got 1"):
        cache.update(0, torch.zeros(1, 3, 28))
    with pytest.raises(ValueError, match="keeps others"):
        KVCache(cfg)
    with pytest.raises(ValueError, match="has none"):
        LatentCache(get_config("tiny"))


def test_the_cheaper_path_by_counting():
    v3 = get_config("v3_671b")
    with torch.device("meta"):
        layer = LatentAttention(v3, 0)
    assert layer.absorbing_is_cheaper(1, 1) is False  # equal work to expand, dearer pairs
    assert all(layer.absorbing_is_cheaper(1, n) for n in (2, 4096, 131072))
    assert not layer.absorbing_is_cheaper(4096, 4096)


def test_the_rotary_key_is_not_normalised():
    _, layer, x, cos, sin = setting()
    once, ten = layer.compress(x, cos, sin), layer.compress(10 * x, cos, sin)
    rank = layer.rank
    torch.testing.assert_close(once[..., :rank], ten[..., :rank], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(10 * once[..., rank:], ten[..., rank:])


def test_published_yarn_numbers():
    """TR section 4.3 and [C-scale]: mscale, softmax scale, ends of the ramp."""
    assert yarn_mscale(40) == pytest.approx(1.36889, abs=1e-5)
    assert attention_scale(get_config("v3_671b", rope_factor=1.0)) == pytest.approx(
        0.07217, abs=1e-5
    )
    assert attention_scale(get_config("v3_671b")) == pytest.approx(0.13523, abs=1e-5)
    ratio = yarn_frequencies(64) / rope_frequencies(64)
    assert torch.equal(ratio[:11], torch.ones(11, dtype=torch.float64))
    assert bool((ratio[11:23] < 1).all())
    assert bool((ratio[11:23] > 1 / 40).all())
    torch.testing.assert_close(ratio[23:], torch.full((9,), 1 / 40, dtype=torch.float64))


def test_bfloat16_runs_in_both_paths():
    _, layer, x, cos, sin = setting()
    layer, x = layer.bfloat16(), x.bfloat16()
    layer.absorb = False
    naive = layer(x, cos, sin)
    layer.absorb = True
    absorbed = layer(x, cos, sin)
    assert naive.dtype == absorbed.dtype == torch.bfloat16
    assert (naive - absorbed).float().norm() < 0.03 * naive.float().norm()
