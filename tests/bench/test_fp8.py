"""The FP8 table: gaps by hand, and a run that goes on where it was interrupted."""

import json

import pytest
import torch

from minids3.bench import fp8
from minids3.bench.records import recorded
from minids3.config import get_config
from minids3.data import entropy_floor, load_split
from minids3.model import Transformer
from minids3.nn import to_float8
from minids3.ref.quant import WEIGHT_BLOCK, dequantize_ref, quantize_ref
from minids3.train import TrainConfig


def result(recipe, seed, loss):
    return {"recipe": recipe, "seed": seed, "valid_loss": loss}


def test_gaps_are_paired_by_seed():
    runs = [
        result("bf16", 1, 2.0),
        result("bf16", 2, 4.0),
        result("fp8", 2, 4.02),
        result("fp8", 1, 2.0),
        result("fp8", 3, 9.0),
        {"recipe": "no scales", "seed": 1, "failed": "nan"},
    ]
    assert fp8.gaps(runs, "fp8") == pytest.approx([0.0, 0.5])
    assert fp8.gaps(runs, "no scales") == []
    assert fp8.gaps([], "fp8") == []


def test_the_record_is_of_the_text_of_today():
    assert recorded("fp8")["floor"] == pytest.approx(entropy_floor(load_split("validation")))


def test_an_interrupted_table_goes_on(tmp_path, monkeypatch):
    path, calls = tmp_path / "fp8.json", []

    def train_once(name, seed):
        if len(calls) == 5:
            raise KeyboardInterrupt
        calls.append((name, seed))
        loss = {**result(name, seed, 1.0), "last_train_loss": 1.0, "seconds": 1}
        return loss

    class Ratio:
        def to_dict(self):
            return {"name": "a against b", "ratio": 0.5}

    monkeypatch.setattr(fp8, "train_once", train_once)
    monkeypatch.setattr(fp8, "alternate", lambda *a, **k: Ratio())
    monkeypatch.setattr(fp8, "_stepper", lambda name: None)
    monkeypatch.setattr(fp8, "_validate", lambda model: 1.5)
    monkeypatch.setattr(fp8, "start", lambda name: None)
    monkeypatch.setattr(fp8, "record_path", lambda topic: path)
    monkeypatch.setattr(
        fp8, "recorded", lambda topic: json.loads(path.read_text()) if path.exists() else None
    )
    with pytest.raises(KeyboardInterrupt):
        fp8.run()
    assert len(json.loads(path.read_text())["runs"]) == 5
    calls.clear()
    monkeypatch.setattr(
        fp8, "train_once", lambda *a: calls.append(a) or {**result(*a, 1.0), **TIME}
    )
    report = fp8.run()
    wanted = sum(len(names) * n_seeds for names, n_seeds in fp8.ORDER)
    assert len(calls) == wanted - 5
    assert len(report["runs"]) == wanted
    with pytest.raises(ValueError, match="add --device cpu"):
        fp8.run(device="cuda")


TIME = {"last_train_loss": 1.0, "seconds": 1}


@pytest.fixture
def tiny(monkeypatch):
    """Two steps of a small model instead of an hour."""
    plan = TrainConfig(steps=2, lr=1e-3, batch_size=2, seq_len=16)
    sides = {"num_hidden_layers": 2, "hidden_size": 64, "num_nextn_predict_layers": 0}
    for name, value in (("BASE", plan), ("BRANCH", plan), ("MODEL", sides)):
        monkeypatch.setattr(fp8, name, value)
    monkeypatch.setattr(fp8, "VALIDATION", (2, 16, 1))
    fp8._base.cache_clear()
    yield
    fp8._base.cache_clear()


def test_runs_of_a_seed_differ_in_rounding_alone(tiny):
    plain, again = (fp8.train_once("fp32", 1) for _ in range(2))
    assert plain["train_loss"] == again["train_loss"]
    assert plain["valid_loss"] == again["valid_loss"]
    rounded, other = fp8.train_once("bf16", 1), fp8.train_once("fp32", 2)
    assert rounded["valid_loss"] != plain["valid_loss"]
    assert rounded["valid_loss"] == pytest.approx(plain["valid_loss"], rel=0.01)
    assert other["train_loss"] != plain["train_loss"]
    assert fp8.start("fp8").layers[1].self_attn.o_proj.recipe.kept == "e5m6"


def test_without_masters_weights_are_e4m3_numbers():
    torch.manual_seed(0)
    model = Transformer(get_config("mini", num_hidden_layers=2, hidden_size=128))
    done = to_float8(model)
    fp8.round_weights(model)
    weight = model.layers[0].mlp.up_proj.weight
    again = dequantize_ref(*quantize_ref(weight, WEIGHT_BLOCK), WEIGHT_BLOCK)
    torch.testing.assert_close(again, weight.data, rtol=1e-6, atol=0)
    assert "lm_head" in done.kept
