"""The released model built on the meta device, and counts against PyTorch's own counter."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from minids3.config import get_config
from minids3.infer import LatentCache
from minids3.model import Transformer, activated_parameters, training_flops_per_token
from minids3.sim import flops, memory, parameters


@pytest.fixture(scope="module")
def v3():
    with torch.device("meta"):
        return Transformer(get_config("v3_671b"))


def test_parameters_of_the_released_model(v3):
    assert v3.num_parameters(mtp=False) == 671_026_404_352
    assert v3.num_parameters() - v3.num_parameters(mtp=False) == 11_610_067_968
    biases = [b for n, b in v3.named_buffers() if "expert_bias" in n and not n.startswith("mtp")]
    assert sum(b.numel() for b in biases) == 14_848
    assert sum(p.numel() for p in v3.layers[3].parameters()) == 11_507_286_016
    assert sum(p.numel() for p in v3.layers[2].parameters()) == 583_483_392


@pytest.mark.parametrize(
    ("embedding", "head", "billions"),
    [(True, True, 37.552), (False, True, 36.626), (False, False, 35.699)],
)
def test_activated_parameters(v3, embedding, head, billions):
    count = activated_parameters(v3, embedding, head)
    assert count / 1e9 == pytest.approx(billions, abs=5e-4)
    assert count == parameters.activated_parameters(v3.config, embedding, head)


def test_flops_of_the_released_model(v3):
    for attention, mtp, gigaflops in (
        ("causal", False, 250.4),
        ("full", False, 281.2),
        ("causal", True, 260.6),
    ):
        count = training_flops_per_token(v3, 4096, attention, mtp)
        assert count / 1e9 == pytest.approx(gigaflops, abs=0.05)
        assert count == flops.training_flops_per_token(v3.config, 4096, attention, mtp)


def test_cache_of_the_released_model():
    cfg = get_config("v3_671b")
    cache = LatentCache(cfg, capacity=3, dtype=torch.bfloat16, device="meta")
    assert cache.bytes_per_token == 70_272 == memory.kv_cache_bytes_per_token(cfg)


@pytest.mark.parametrize("preset", ["tiny", "mini_dense", "mini"])
def test_flops_equal_pytorchs_counter(preset):
    cfg = get_config(preset, num_hidden_layers=2, num_nextn_predict_layers=0)
    model = Transformer(cfg)
    ids = torch.zeros(2, 24, dtype=torch.int64)
    # The fused kernels of the CPU are unknown to the counter, plain products are not.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(ids)
    ours = training_flops_per_token(model, 24, "full") / 3 * ids.numel()
    # The weighted sum over the chosen experts is a product without weights: 2 K D per token.
    combine = 2 * ids.numel() * cfg.num_experts_per_tok * cfg.hidden_size * cfg.is_moe
    # Values are padded with zeros to the width of the keys: 2 (dk - dv) per head and pair.
    narrow = cfg.qk_head_dim - cfg.v_head_dim if cfg.attention == "mla" else 0
    padded = 2 * ids.numel() * 24 * cfg.num_attention_heads * narrow * cfg.num_hidden_layers
    assert counter.get_total_flops() == ours + combine + padded


@pytest.mark.parametrize("tied", [False, True])
def test_a_dense_model_activates_all_it_has(tied):
    model = Transformer(get_config("tiny", tie_word_embeddings=tied))
    assert activated_parameters(model) == model.num_parameters()
