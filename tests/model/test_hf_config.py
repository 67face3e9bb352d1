"""Fields of Hugging Face's config.json: read, known to change nothing, or refused by name."""

import json
import math

import pytest
import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from deepseek_twin import YARN, build
from minids3.config import ConfigError, get_config
from minids3.model.hf import from_hf_config, load_hf, save_hf, to_hf_config
from minids3.model.hf.config import _SAME
from minids3.nn.rope import attention_scale, model_rope_tables
from minids3.ref.rope import yarn_frequencies

MINI = to_hf_config(get_config("mini"))
del MINI["num_key_value_heads"]
ROPE = {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32}


def yarn(**changes):
    """Fields with YaRN, some of its values changed; ... removes one."""
    rope = {**ROPE, **changes}
    return {**MINI, "rope_scaling": {k: v for k, v in rope.items() if v is not ...}}


def theirs(fields):
    return DeepseekV3Config(**json.loads(json.dumps(fields)))


def assert_same_fields(cfg, hf):
    for name in _SAME:
        other = hf.rope_parameters["rope_theta"] if name == "rope_theta" else getattr(hf, name)
        assert getattr(cfg, name) == other, name


def test_every_absent_field_is_hugging_faces_default():
    cfg = from_hf_config({"model_type": "deepseek_v3"})
    assert_same_fields(cfg, DeepseekV3Config())
    assert (cfg.topk_group, cfg.routed_scaling_factor, cfg.rope_factor) == (4, 2.5, 1.0)


@pytest.mark.parametrize("name", _SAME)
def test_one_absent_field(name):
    fields = {k: v for k, v in MINI.items() if k != name}
    assert_same_fields(from_hf_config(fields), theirs(fields))


def test_every_field_that_transformers_writes_is_known(tmp_path):
    for fields in (MINI, yarn(), yarn(truncate=False, attention_factor=1.5)):
        hf = theirs(fields)
        hf.num_key_value_heads = hf.num_attention_heads
        hf.save_pretrained(tmp_path)
        assert from_hf_config(json.loads((tmp_path / "config.json").read_text())) == from_hf_config(
            fields
        )
    every = {**hf.to_dict(), "rope_parameters": hf.rope_parameters}
    assert {"head_dim", "num_key_value_heads", "use_cache"} <= every.keys()
    assert from_hf_config(json.loads(json.dumps(every, default=str))) == from_hf_config(fields)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("attention_dropout", 0.1),
        ("scoring_func", "softmax"),
        ("topk_method", "greedy"),
        ("moe_layer_freq", 2),
        ("num_key_value_heads", 1),
        ("head_dim", 32),
        ("qk_head_dim", 64),
        ("partial_rotary_factor", 0.5),
        ("is_encoder_decoder", True),
        ("sliding_window", 4096),
        ("mlp_bias", True),
        ("layer_types", ["full_attention"]),
        ("per_layer_config", {"0": {}}),
        ("num_local_experts", 8),
        ("num_mtp_layers", 2),
        ("index_topk", 2048),
        ("rope_scaling", "yarn"),
        ("rope_scaling", [8.0]),
        ("quantization_config", "fp8"),
        ("n_group", None),
        ("norm_topk_prob", None),
        ("rms_norm_eps", None),
        ("rope_interleave", 1),
        ("rope_theta", math.nan),
        ("rope_theta", -1.0),
        ("rms_norm_eps", math.inf),
        ("n_routed_experts", -12),
        ("n_routed_experts", "16"),
        ("hidden_size", 24.5),
        ("hidden_size", True),
        ("hidden_size", 10**400),
        ("num_hidden_layers", [3]),
        ("first_k_dense_replace", "1"),
        ("tie_word_embeddings", "false"),
        ("max_position_embeddings", 10**8),
    ],
)
def test_what_is_not_built_or_impossible_is_refused_by_name(name, value):
    from_hf_config(MINI)
    with pytest.raises(ConfigError, match=name):
        from_hf_config({**MINI, name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "linear"}, "'linear'"),
        ({"type": "dynamic"}, "'dynamic'"),
        ({"type": "llama3", "low_freq_factor": 1.0}, "'llama3'"),
        ({"rope_type": "longrope"}, "'longrope' and type='yarn' disagree"),
        ({"rope_type": "default"}, "disagree"),
        ({"type": ["yarn"]}, "yarn"),
        ({"type": "default"}, "type default has factor"),
        ({"type": ...}, "type default has factor"),
        ({"factor": ...}, "yarn needs factor"),
        ({"factor": "8"}, "factor"),
        ({"factor": 0.5}, "factor"),
        ({"factor": math.nan}, "factor"),
        ({"factor": True}, "factor"),
        ({"attention_factor": "1"}, "attention_factor"),
        ({"attention_factor": -1.0}, "attention_factor"),
        ({"attention_factor": math.inf}, "attention_factor"),
        ({"truncate": None}, "truncate"),
        ({"truncate": "yes"}, "truncate"),
        ({"beta_fast": "32"}, "beta_fast"),
        ({"beta_slow": -1}, "beta_slow"),
        ({"mscale": math.inf}, "mscale"),
        ({"mscale_all_dim": [1]}, "mscale_all_dim"),
        ({"original_max_position_embeddings": 32.5}, "original_max_position_embeddings"),
        ({"original_max_position_embeddings": None}, "original_max_position_embeddings"),
        ({"original_max_position_embeddings": 0}, "original_max_position_embeddings"),
        ({"factor": None, "original_max_position_embeddings": "32"}, "original_max_position"),
        ({"short_factor": [1.0]}, "short_factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_theta": 1.0}, "rope_theta"),
        ({"rope_theta": None}, "rope_theta"),
        ({"full_attention": {}}, "full_attention"),
    ],
)
def test_rotary_fields_are_refused_by_name(change, message):
    from_hf_config(yarn())
    with pytest.raises(ConfigError, match=message):
        from_hf_config(yarn(**change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quant_method": "gptq"}, "quant_method='gptq'"),
        ({"quant_method": None}, "does not say quant_method"),
        ({"fmt": "e5m2"}, "fmt='e5m2'"),
        ({"activation_scheme": "static"}, "activation_scheme='static'"),
        ({"weight_block_size": None}, "weight_block_size=None"),
        ({"weight_block_size": [128]}, "weight_block_size"),
        ({"weight_block_size": [128, 0]}, "weight_block_size"),
        ({"weight_block_size": [128, 128.0]}, "weight_block_size"),
        ({"weight_block_size": [True, 128]}, "weight_block_size"),
        ({"weight_block_size": 128}, "weight_block_size"),
        ({"expert_dtype": "fp4"}, "expert_dtype='fp4'"),
        ({"kv_cache_scheme": "fp8"}, "kv_cache_scheme='fp8'"),
    ],
)
def test_quantisation_fields_are_refused_by_name(change, message):
    fields = to_hf_config(get_config("mini"), "bfloat16", fp8=True)
    quant = fields["quantization_config"]
    harmless = {"modules_to_not_convert": ["lm_head"], "scale_fmt": "ue8m0", "expert_dtype": "fp8"}
    from_hf_config({**fields, "quantization_config": {**quant, **harmless}})
    with pytest.raises(ConfigError, match=message):
        from_hf_config({**fields, "quantization_config": {**quant, **change}})


def test_files_that_hold_no_object():
    for content in ([1], 3, None, "deepseek_v3", True):
        with pytest.raises(ConfigError, match="not an object"):
            from_hf_config(content)


def test_both_spellings_of_rope_and_their_order():
    new = {"rope_theta": 500.0, "rope_type": "yarn", "factor": 8.0, "mscale": 0.7}
    new |= {"original_max_position_embeddings": 32, "mscale_all_dim": 1.3, "beta_fast": 4.0}
    old = {k: v for k, v in new.items() if k != "rope_type"} | {"type": "yarn"}
    fields = {k: v for k, v in MINI.items() if k != "rope_theta"}
    cfg = from_hf_config({**fields, "rope_parameters": new})
    assert cfg.rope_theta == 500.0
    assert cfg.rope_factor == 8.0
    assert cfg == from_hf_config({**fields, "rope_scaling": old})
    assert cfg == from_hf_config({**fields, "rope_scaling": new, "rope_parameters": new})
    assert cfg == from_hf_config({**fields, "rope_parameters": new, "rope_theta": 7.0})
    assert from_hf_config({**MINI, "rope_parameters": {"rope_theta": 77.0}}).rope_theta == 77.0
    assert from_hf_config({**MINI, "rope_scaling": None, "rope_theta": 77}).rope_theta == 77
    with pytest.raises(ConfigError, match="rope_scaling and rope_parameters disagree"):
        from_hf_config({**fields, "rope_parameters": new, "rope_scaling": {**new, "factor": 4.0}})


def test_nulls_where_they_mean_something():
    cfg = from_hf_config({**MINI, "q_lora_rank": None, "num_key_value_heads": None})
    assert cfg.q_lora_rank is None
    dense = from_hf_config({**MINI, "n_routed_experts": None, "n_shared_experts": None})
    assert not dense.is_moe
    assert from_hf_config({**MINI, "sliding_window": None}) == from_hf_config(MINI)


YARNS = [
    {},
    {"beta_fast": None, "beta_slow": None, "mscale": None, "mscale_all_dim": None},
    {"beta_fast": 0, "mscale": 0.7, "mscale_all_dim": 1.3},
    {"mscale": 0.7},
    {"factor": 1.0},
    {"factor": 1.0, "attention_factor": 0.5},
    {"factor": 1.0001},
    {"factor": None},
    {"factor": None, "original_max_position_embeddings": 512},
    {"original_max_position_embeddings": ...},
    {"attention_factor": 1.0},
    {"attention_factor": 2.0, "mscale": 1.0, "mscale_all_dim": 1.0},
    {"attention_factor": None, "truncate": True},
    {"truncate": False},
    {"truncate": False, "beta_fast": 3.3, "beta_slow": 0.4},
    {"beta_fast": 1.0, "beta_slow": 32.0},  # exchanged: the ramp falls
    {"beta_fast": 2.0, "beta_slow": 2.0},
    {"rope_theta": 10.0, "original_max_position_embeddings": 65536},
    {"rope_theta": 10.0, "original_max_position_embeddings": 65536, "truncate": False},
    {"original_max_position_embeddings": 2},
    {"original_max_position_embeddings": 1, "truncate": False},
]


@pytest.mark.parametrize("change", YARNS)
def test_yarn_is_hugging_faces(change):
    fields = yarn(**change)
    cfg, hf = from_hf_config(fields), theirs(fields)
    inverse, factor = ROPE_INIT_FUNCTIONS["yarn"](hf)
    ours = yarn_frequencies(
        cfg.qk_rope_head_dim,
        cfg.rope_theta,
        cfg.rope_factor,
        cfg.original_max_position_embeddings,
        cfg.beta_fast,
        cfg.beta_slow,
        cfg.rope_truncate,
    )
    torch.testing.assert_close(ours.float(), inverse, rtol=1e-5, atol=1e-9)
    cos, sin = model_rope_tables(cfg)
    angles = 5 * ours
    torch.testing.assert_close(cos[5], (angles.cos() * factor).float(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(sin[5], (angles.sin() * factor).float(), rtol=1e-6, atol=1e-6)
    if fields["rope_scaling"]["factor"] is not None:  # Hugging Face's scale cannot compute with it
        from transformers.models.deepseek_v3.modeling_deepseek_v3 import yarn_apply_mscale

        scale = yarn_apply_mscale(hf.rope_parameters, cfg.qk_head_dim**-0.5)
        assert attention_scale(cfg) == pytest.approx(scale, rel=1e-12)


@pytest.mark.parametrize(
    "change",
    [
        {"attention_factor": 1.3, "rope_truncate": False},
        {"rope_factor": 1.0, "attention_factor": 0.8},
        {"beta_fast": 0.5, "beta_slow": 4.0},
    ],
)
def test_logits_under_the_rarer_fields(tmp_path, change):
    model = build(**{**YARN, **change}).eval()
    save_hf(model, tmp_path)
    hf = DeepseekV3ForCausalLM.from_pretrained(tmp_path, experts_implementation="eager").eval()
    ids = torch.randint(0, 101, (1, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), hf(ids).logits, rtol=1e-5, atol=2e-5)
    assert load_hf(tmp_path).config == model.config
