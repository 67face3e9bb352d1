"""The command that trains shipped models, and the shipped model itself."""

import json
import math

import pytest
import torch

from minids3.data import PackedBatches, data_dir, load_split, load_tokenizer
from minids3.infer import generate
from minids3.model import load_model, load_shipped
from minids3.train import TrainConfig, Trainer, evaluate
from minids3.train import recipes as recipes_module
from minids3.train.__main__ import main
from minids3.train.recipes import RECIPES, Recipe


@pytest.fixture
def short(monkeypatch):
    cfg = TrainConfig(steps=4, lr=1e-3, batch_size=2, seq_len=16, eval_batches=1, save_every=2)
    recipe = Recipe("mini_dense", lambda tokens: cfg, "a test", fresh=False)
    monkeypatch.setitem(RECIPES, "dense_chat", recipe)


def run(tmp_path):
    return main(["dense_chat", "--out", str(tmp_path / "m"), "--work-dir", str(tmp_path / "w")])


def test_the_command_trains_and_says_how(tmp_path, short, capsys):
    assert run(tmp_path) == 0
    about = json.loads((tmp_path / "m" / "about.json").read_text())
    assert about["command"] == "python -m minids3.train dense_chat"
    assert about["steps"] == 4
    assert about["tokens"] == 4 * 2 * 16
    assert load_model(tmp_path / "m").num_parameters() == about["parameters"]
    assert "wrote" in capsys.readouterr().out


def test_the_command_resumes_after_an_interruption(tmp_path, short, monkeypatch, capsys):
    assert run(tmp_path / "whole") == 0
    original = Trainer.train_step

    def interrupted(self):
        if self.step == 2:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    assert run(tmp_path) == 130
    told = capsys.readouterr().err
    assert f"'python -m minids3.train dense_chat --out {tmp_path / 'm'}" in told
    assert not (tmp_path / "m").exists()
    monkeypatch.setattr(Trainer, "train_step", original)
    assert run(tmp_path) == 0
    whole, resumed = load_model(tmp_path / "whole" / "m"), load_model(tmp_path / "m")
    assert torch.equal(whole.lm_head.weight, resumed.lm_head.weight)


def test_missing_data_is_an_error_message_and_no_traceback(tmp_path, short, monkeypatch, capsys):
    monkeypatch.setenv("MINIDS3_DATA", str(tmp_path))
    assert run(tmp_path) == 2
    assert "error:" in capsys.readouterr().err


def test_the_shipped_model_is_what_its_notes_say():
    folder = data_dir() / "checkpoints" / "dense_chat"
    about = json.loads((folder / "about.json").read_text())
    recipe = recipes_module.RECIPES["dense_chat"]
    cfg = recipe.train(None)
    assert about["steps"] == cfg.steps
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 10 * 2**20
    model = load_shipped("dense_chat")
    valid = PackedBatches(load_split("validation"), cfg.batch_size, cfg.seq_len, seed=cfg.seed)
    loss = evaluate(model, valid, cfg.eval_batches)
    assert loss == pytest.approx(about["validation_loss_nats"], abs=2e-3)
    assert about["entropy_floor_nats"] < loss < math.log(2048) / 4
    text = generate(model, load_tokenizer(), "", 40, temperature=0.7, seed=1)
    assert text.strip()
