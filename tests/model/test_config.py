"""Configurations: presets, files, and clear refusals."""

import dataclasses
import math
import sys

import pytest

from minids3.config import PRESETS, ConfigError, ModelConfig, get_config


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_a_file(tmp_path, name):
    cfg = get_config(name)
    cfg.save(tmp_path / "config.json")
    assert ModelConfig.load(tmp_path / "config.json") == cfg


IMPOSSIBLE = [
    ("tiny", {"hidden_size": 0}, "hidden_size=0 must be a number greater than 0"),
    ("tiny", {"vocab_size": "many"}, "vocab_size='many' must be a number"),
    ("tiny", {"num_key_value_heads": 3}, "no multiple of num_key_value_heads=3"),
    ("tiny", {"head_dim": 7}, "head_dim=7 must be even"),
    ("tiny", {"attention": "linear"}, "choose one of gqa, mla"),
    ("tiny", {"attention": "mla"}, "kv_lora_rank=0 must be"),
    ("tiny", {"rope_factor": 0.5}, "rope_factor=0.5 must be 1"),
    ("tiny", {"n_heads": 3}, "unknown field 'n_heads'"),
    ("mini", {"qk_rope_head_dim": 15}, "must be even"),
    ("mini", {"q_lora_rank": 0}, "q_lora_rank=0 must be"),
    ("mini", {"n_group": 3}, "cannot be split into n_group=3"),
    ("mini", {"topk_group": 5}, "topk_group=5 exceeds n_group=4"),
    ("mini", {"num_experts_per_tok": 9}, "exceeds the 8 experts of topk_group=2"),
    ("mini", {"first_k_dense_replace": 7}, "between 0 and num_hidden_layers=6"),
    ("mini", {"n_shared_experts": -1}, "n_shared_experts must be 0 or more"),
    ("mini", {"num_nextn_predict_layers": -1}, "must be 0 or more"),
    ("mini", {"scoring_func": "tanh"}, "choose one of sigmoid, softmax"),
    ("tiny", {"rope_theta": math.nan}, "rope_theta=nan must be a number, and finite"),
    ("tiny", {"rope_theta": math.inf}, "rope_theta=inf must be a number, and finite"),
    ("tiny", {"rope_theta": 10**400}, "rope_theta must be a number, and finite"),
    ("tiny", {"rope_factor": None}, "rope_factor=None must be a number, and finite"),
    ("tiny", {"rope_factor": 2.0, "rope_theta": 1.0}, "YaRN cannot tell fast from slow"),
    ("tiny", {"attention_factor": 0.0}, "attention_factor=0.0 must be a number greater than 0"),
    ("tiny", {"beta_fast": -1.0}, "beta_fast=-1.0 must be"),
    ("tiny", {"mscale": -0.5}, "mscale must be 0 or more, not -0.5"),
    ("tiny", {"original_max_position_embeddings": 0}, "original_max_position_embeddings=0 must"),
    ("tiny", {"rope_truncate": 1}, "rope_truncate must be True or False"),
    ("tiny", {"rms_norm_eps": "1e-6"}, "rms_norm_eps='1e-6' must be a number"),
    ("tiny", {"hidden_size": 24.5}, "hidden_size=24.5 must be a number of type int"),
    ("tiny", {"hidden_size": 24.0}, "hidden_size=24.0 must be a number of type int"),
    ("tiny", {"hidden_size": True}, "hidden_size must be a number of type int"),
    ("tiny", {"hidden_size": None}, "hidden_size=None must be a number of type int"),
    ("tiny", {"hidden_size": 10**5000}, "hidden_size is larger than"),
    ("tiny", {"max_position_embeddings": 10**9}, "rotary tables would hold more than"),
    ("tiny", {"vocab_size": "many" * 1000}, "^.{0,150}$"),
    ("tiny", {"n_routed_experts": -4}, "n_routed_experts must be 0 or more, not -4"),
    ("tiny", {"tie_word_embeddings": "false"}, "tie_word_embeddings='false' must be True or"),
    ("tiny", {"attention": ["mla"]}, r"attention=\['mla'\] is unknown"),
    ("mini", {"q_lora_rank": 1.5}, "q_lora_rank=1.5 must be a number of type int"),
    ("mini", {"kv_lora_rank": -3}, "kv_lora_rank=-3 must be a number greater than 0"),
    ("mini", {"first_k_dense_replace": -1}, "between 0 and num_hidden_layers=6"),
    ("mini", {"num_experts_per_tok": "4"}, "num_experts_per_tok='4' must be a number"),
]


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(ModelConfig)])
def test_no_field_takes_a_wrong_type(name):
    kind = ModelConfig.__dataclass_fields__[name].type
    wrong = ["3", [3], {"a": 3}, (), object(), math.nan, -math.inf, 10**400]
    wrong += [] if "None" in kind else [None]
    wrong += [1, 0] if kind == "bool" else [True, False]
    wrong += [0.5] if "float" not in kind else []
    for value in wrong:
        with pytest.raises(ConfigError, match=name):
            get_config("mini", **{name: value})


@pytest.mark.parametrize(("preset", "changes", "message"), IMPOSSIBLE)
def test_impossible_configurations_are_refused(preset, changes, message):
    with pytest.raises(ConfigError, match=message):
        get_config(preset, **changes)


def test_files_and_names_that_are_wrong(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("[1]")
    with pytest.raises(ConfigError, match="holds a list"):
        ModelConfig.load(path)
    for content, message in (
        (b"{", "is not valid JSON"),
        (b"[" * 200_000, "is not valid JSON"),
        (b"9" * 5000, "is not valid JSON"),
        (b"\xff", "is not UTF-8"),
        (b"null", "holds a NoneType"),
        (b'{"n_heads": 3}', "unknown field 'n_heads'"),
        (b'{"hidden_size": NaN}', "hidden_size=nan must be"),
    ):
        if content[:1] == b"9" and sys.version_info < (3, 10, 7):
            continue  # older versions read numbers of any length
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=rf"config\.json.*{message}"):
            ModelConfig.load(path)
    with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
        ModelConfig.load(tmp_path / "nothing" / "config.json")
    with pytest.raises(ConfigError, match="a list is no configuration"):
        ModelConfig.from_dict([1])
    for name in ("huge", None, ["mini"]):
        with pytest.raises(ConfigError, match=r"no preset .*; the presets are tiny"):
            get_config(name)


def test_which_layers_have_experts():
    cfg = get_config("v3_671b")
    assert sum(cfg.is_moe_layer(i) for i in range(61)) == 58
    assert cfg.qk_head_dim == 192
    assert not get_config("tiny").is_moe_layer(1)
