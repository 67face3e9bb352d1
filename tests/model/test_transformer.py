"""The dense decoder against Hugging Face's Llama, and its files."""

import json
import math

import pytest
import torch

from llama_twin import half_split_rows, llama_of
from minids3.config import ModelConfig, get_config
from minids3.model import ModelFileError, Transformer, load_model, load_shipped, save_model


def build(seed=0, **changes):
    torch.manual_seed(seed)
    return Transformer(get_config("tiny", **changes))


CONFIGS = {
    "grouped": {},
    "multi-head": {"num_key_value_heads": 4},
    "multi-query": {"num_key_value_heads": 1},
    "half-split": {"rope_interleave": False},
    "tied": {"tie_word_embeddings": True},
    "theta, eps": {"rope_theta": 123.0, "rms_norm_eps": 1e-3},
    "wide heads": {"head_dim": 14, "num_hidden_layers": 3},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_gradients_equal_llama(name):
    model = build(initializer_range=0.2, **CONFIGS[name])
    llama = llama_of(model)
    ids = torch.randint(0, 97, (2, 13), generator=torch.Generator().manual_seed(1))
    targets = ids.roll(-1, 1)
    targets[:, -1] = -100
    ours, theirs = model(ids), llama(ids).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    loss = model.loss(ids, targets)
    their_loss = llama(ids, labels=ids).loss
    torch.testing.assert_close(loss, their_loss, rtol=1e-5, atol=1e-6)
    loss.backward()
    their_loss.backward()
    expected = dict(llama.named_parameters())
    for parameter_name, parameter in model.named_parameters():
        grad = parameter.grad
        if model.config.rope_interleave and parameter_name.endswith(
            ("q_proj.weight", "k_proj.weight")
        ):
            grad = half_split_rows(grad, model.config.head_dim)
        key = parameter_name if parameter_name.startswith("lm_head") else f"model.{parameter_name}"
        reference = expected[key].grad
        error = (grad - reference).norm() / reference.norm()
        assert error < 1e-5, (parameter_name, error)


def test_future_tokens_change_nothing():
    model = build()
    ids = torch.randint(0, 97, (1, 9), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 97
    before, after = model(ids), model(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_loss_of_a_new_model_is_the_log_of_the_vocabulary():
    model = build(initializer_range=0.006)
    ids = torch.randint(0, 97, (4, 32), generator=torch.Generator().manual_seed(0))
    assert model.loss(ids, ids.roll(-1, 1)).item() == pytest.approx(math.log(97), abs=0.01)


def test_parameters_are_counted_once():
    tied, untied = build(tie_word_embeddings=True), build()
    assert untied.num_parameters() - tied.num_parameters() == 97 * 24
    assert untied.num_parameters() - untied.num_parameters(embeddings=False) == 97 * 24


def test_ids_that_cannot_be_right_are_refused():
    model = build()
    with pytest.raises(ValueError, match=r"span 0\.\.97.*another tokenizer"):
        model(torch.tensor([[0, 97]]))
    with pytest.raises(ValueError, match=r"must be \[B, T\]"):
        model(torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="max_position_embeddings=64"):
        model(torch.zeros(1, 65, dtype=torch.int64))


@pytest.mark.parametrize("tied", [False, True])
def test_save_and_load_bit_for_bit(tmp_path, tied):
    model = build(tie_word_embeddings=tied)
    save_model(build(seed=5, tie_word_embeddings=tied), tmp_path / "m")
    save_model(model, tmp_path / "m", about={"steps": 3})  # replaces the first
    again = load_model(tmp_path / "m")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert json.loads((tmp_path / "m" / "about.json").read_text()) == {"steps": 3}
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_an_interrupted_save_leaves_the_old_model(tmp_path, monkeypatch):
    save_model(build(), tmp_path / "m")
    monkeypatch.setattr(ModelConfig, "save", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_model(build(seed=1), tmp_path / "m")
    monkeypatch.undo()
    assert torch.equal(load_model(tmp_path / "m").lm_head.weight, build().lm_head.weight)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_damaged_model_folders_are_explained(tmp_path):
    with pytest.raises(ModelFileError, match=r"config\.json is missing"):
        load_model(tmp_path)
    folder = save_model(build(), tmp_path / "m")
    get_config("tiny", hidden_size=32).save(folder / "config.json")
    with pytest.raises(ModelFileError, match=r"has shape \[97, 24\].*needs \[97, 32\]"):
        load_model(folder)
    get_config("tiny", num_hidden_layers=3).save(folder / "config.json")
    with pytest.raises(ModelFileError, match=r"'layers\.2\..*' is missing"):
        load_model(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelFileError, match="damaged"):
        load_model(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelFileError, match="not valid JSON"):
        load_model(folder)
    with pytest.raises(ModelFileError, match="no shipped model 'nothing'"):
        load_shipped("nothing")
