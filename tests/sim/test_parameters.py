"""Parameter counts against published and independently counted numbers."""

import pytest
import torch
import transformers

from llama_twin import llama
from minids3.config import PRESETS, ModelConfig, get_config
from minids3.model import Transformer
from minids3.sim import parameters as p

V3 = get_config("v3_671b")
HF_NAMES = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "q_lora_rank",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "n_routed_experts",
    "n_shared_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "first_k_dense_replace",
    "n_group",
    "topk_group",
]


def test_v3_components_equal_the_released_model():
    by_name = {c.name: c for c in p.components(V3)}
    assert by_name["embedding"].each == by_name["output head"].each == 926_679_040
    assert (by_name["attention"].each, by_name["attention"].count) == (187_107_328, 61)
    assert (by_name["dense feed-forward"].each, by_name["dense feed-forward"].count) == (
        396_361_728,
        3,
    )
    assert by_name["routed expert"].each == by_name["shared expert"].each == 44_040_192
    assert by_name["routed expert"].count == 58 * 256
    assert round(by_name["routed expert"].total / 1e9, 3) == 653.909
    assert (by_name["router weight"].each, by_name["router weight"].count) == (1_835_008, 58)
    assert by_name["block and final norms"].total == 881_664


def test_v3_totals():
    assert p.total_parameters(V3) == 671_026_404_352
    assert p.router_bias_parameters(V3) == 14_848
    assert p.mtp_parameters(V3) == 11_610_067_968
    assert p.layer_parameters(V3, moe=True) == 11_507_286_016
    assert p.layer_parameters(V3, moe=False) == 583_483_392


def test_v3_activated():
    assert round(p.activated_parameters(V3) / 1e9, 3) == 37.552
    assert round(p.activated_parameters(V3, embedding=False) / 1e9, 3) == 36.626
    assert round(p.activated_parameters(V3, embedding=False, head=False) / 1e9, 3) == 35.699
    assert round(p.matmul_parameters(V3) / 1e9, 4) == 36.6246


def _v3_shapes_by_name(layers: int, dense: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the released checkpoint's tensors [HF-names], written out by name."""
    shapes: dict[str, tuple[int, ...]] = {
        "embed": (129280, 7168),
        "head": (129280, 7168),
        "norm": (7168,),
    }
    for i in range(layers):
        shapes |= {
            f"{i}.in_norm": (7168,),
            f"{i}.post_norm": (7168,),
            f"{i}.q_a": (1536, 7168),
            f"{i}.q_a_norm": (1536,),
            f"{i}.q_b": (24576, 1536),
            f"{i}.kv_a": (576, 7168),
            f"{i}.kv_a_norm": (512,),
            f"{i}.kv_b": (32768, 512),
            f"{i}.o": (7168, 16384),
        }
        if i < dense:
            shapes |= {f"{i}.gate_up": (2 * 18432, 7168), f"{i}.down": (7168, 18432)}
        else:
            shapes |= {
                f"{i}.router": (256, 7168),
                f"{i}.gate_up": (257, 2 * 2048, 7168),
                f"{i}.down": (257, 7168, 2048),
            }
    return shapes


def test_v3_total_equals_the_checkpoints_shapes():
    numel = sum(torch.empty(s, device="meta").numel() for s in _v3_shapes_by_name(61, 3).values())
    assert p.total_parameters(V3) == numel


@pytest.mark.parametrize("name", ["tiny", "mini_dense"])
@pytest.mark.parametrize("tied", [False, True])
def test_dense_total_equals_the_library_model(name, tied):
    cfg = get_config(name, tie_word_embeddings=tied)
    with torch.device("meta"):
        model = Transformer(cfg)
    unique = {id(w): w.numel() for w in model.parameters()}
    assert p.total_parameters(cfg) == sum(unique.values())


def test_dense_total_equals_a_hugging_face_llama():
    cfg = get_config("tiny")
    with torch.device("meta"):
        model = llama(cfg)
    assert p.total_parameters(cfg) == sum(w.numel() for w in model.parameters())


@pytest.mark.parametrize("q_rank", [None, 24])
def test_small_mixture_equals_hugging_face_deepseek_v3(q_rank):
    cfg = get_config("mini", q_lora_rank=q_rank, n_shared_experts=2)
    hf = transformers.DeepseekV3Config(**{n: cfg.to_dict()[n] for n in HF_NAMES})
    with torch.device("meta"):
        model = transformers.DeepseekV3ForCausalLM(hf)
    assert p.total_parameters(cfg) == sum(w.numel() for w in model.parameters())


def test_tied_head_is_stored_once_and_still_multiplied():
    cfg = get_config("tiny")
    tied = cfg.replace(tie_word_embeddings=True)
    table = cfg.vocab_size * cfg.hidden_size
    assert p.total_parameters(cfg) - p.total_parameters(tied) == table
    assert p.matmul_parameters(cfg) == p.matmul_parameters(tied)


def test_dense_model_activates_everything():
    for cfg in (PRESETS["tiny"], PRESETS["mini_dense"]):
        assert p.activated_parameters(cfg) == p.total_parameters(cfg)
        assert p.router_bias_parameters(cfg) == p.mtp_parameters(cfg) == 0


def test_dense_twin_has_the_same_size():
    twin = p.dense_twin(V3)
    assert isinstance(twin, ModelConfig)
    assert not twin.is_moe
    half_a_column = 3 * 7168 * 61 / 2
    assert abs(p.total_parameters(twin) - p.total_parameters(V3)) <= half_a_column
