"""Configurations: presets, files, and clear refusals."""

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
]


@pytest.mark.parametrize(("preset", "changes", "message"), IMPOSSIBLE)
def test_impossible_configurations_are_refused(preset, changes, message):
    with pytest.raises(ConfigError, match=message):
        get_config(preset, **changes)


def test_files_and_names_that_are_wrong(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("[1]")
    with pytest.raises(ConfigError, match="holds a list"):
        ModelConfig.load(path)
    with pytest.raises(ConfigError, match="no preset 'huge'; the presets are tiny"):
        get_config("huge")


def test_which_layers_have_experts():
    cfg = get_config("v3_671b")
    assert sum(cfg.is_moe_layer(i) for i in range(61)) == 58
    assert cfg.qk_head_dim == 192
    assert not get_config("tiny").is_moe_layer(1)
