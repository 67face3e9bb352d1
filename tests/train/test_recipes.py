"""The command that trains shipped models, and the shipped model itself."""

import json
import math

import pytest
import torch

from minids3.config import get_config
from minids3.data import PackedBatches, data_dir, entropy_floor, load_split, load_tokenizer
from minids3.data.fresh import stream_validation
from minids3.infer import generate
from minids3.model import Transformer, load_model, load_shipped
from minids3.model.count import training_flops_per_token
from minids3.train import TrainConfig, Trainer, evaluate
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


@pytest.fixture
def staged(monkeypatch):
    def settings(tokens):
        length = 4 * 32 if tokens is None else tokens
        return TrainConfig(
            tokens=length, lr=1e-2, batch_size=2, seq_len=16, eval_batches=1, save_every=2, seed=1
        )

    def longer(tokens):
        return settings(8 * 32 if tokens is None else tokens).replace(seed=0)

    first = Recipe("mini_dense", longer, "first", fresh=False)
    monkeypatch.setitem(RECIPES, "dense_chat_base", first)
    second = Recipe("mini_dense", settings, "second", fresh=False, start="dense_chat_base")
    monkeypatch.setitem(RECIPES, "dense_chat", second)


def notes_of(folder):
    return json.loads((folder / "about.json").read_text())


def test_a_second_stage_begins_with_the_weights_of_the_first(tmp_path, staged):
    out = tmp_path / "m"
    assert main(["dense_chat", "--out", str(out), "--set", "lr=1e-30"]) == 0
    first, second = load_model(out / "first_stage"), load_model(out)
    assert torch.equal(first.lm_head.weight, second.lm_head.weight)  # nothing was learned since
    about = notes_of(out)
    assert (about["steps"], about["first_stage"]["steps"]) == (4, 8)
    assert about["first_stage"] == notes_of(out / "first_stage")
    assert about["settings"]["seed"] != about["first_stage"]["settings"]["seed"]


def test_a_shorter_run_has_a_shorter_first_stage_on_other_text(tmp_path, staged):
    out = tmp_path / "m"
    assert main(["dense_chat", "--out", str(out), "--steps", "2", "--set", "seed=6"]) == 0
    about = notes_of(out)
    assert (about["steps"], about["first_stage"]["steps"]) == (2, 4)
    assert about["settings"]["seed"] != about["first_stage"]["settings"]["seed"]


def test_steps_are_of_the_batch_that_the_run_has(tmp_path, staged):
    """Of a smaller batch, too; and the first stage's share is that of the tokens."""
    out = tmp_path / "m"
    assert main(["dense_chat", "--out", str(out), "--steps", "2", "--set", "seq_len=8"]) == 0
    about = notes_of(out)
    assert (about["steps"], about["tokens"]) == (2, 2 * 2 * 8)
    assert about["first_stage"]["tokens"] == 8 * 32 // 4


@pytest.mark.parametrize("stage", [0, 1])
def test_a_run_of_two_stages_resumes_in_either(tmp_path, staged, monkeypatch, stage):
    command = ["dense_chat", "--out"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    original, runs = Trainer.fit, []

    def killed(self, *args, **options):
        runs.append(self)
        if len(runs) == stage + 1:
            original(self, 3)
            raise KeyboardInterrupt
        return original(self, *args, **options)

    out = tmp_path / "m"
    monkeypatch.setattr(Trainer, "fit", killed)
    assert main([*command, str(out)]) == 130
    monkeypatch.setattr(Trainer, "fit", original)
    assert main([*command, str(out)]) == 0
    whole, resumed = load_model(tmp_path / "whole"), load_model(out)
    assert torch.equal(whole.lm_head.weight, resumed.lm_head.weight)


def test_a_fresh_start_is_one_of_both_stages(tmp_path, staged):
    out = tmp_path / "m"
    assert main(["dense_chat", "--out", str(out)]) == 0
    assert main(["dense_chat", "--out", str(out), "--fresh", "--set", "lr=0.5"]) == 0
    assert notes_of(out)["first_stage"]["settings"]["lr"] == 0.5
    assert notes_of(tmp_path / "m-1")["first_stage"]["settings"]["lr"] == 0.01


def test_missing_data_is_an_error_message_and_no_traceback(tmp_path, short, monkeypatch, capsys):
    monkeypatch.setenv("MINIDS3_DATA", str(tmp_path))
    assert run(tmp_path) == 2
    assert "error:" in capsys.readouterr().err


def shipped(name):
    folder = data_dir() / "checkpoints" / name
    return folder, notes_of(folder), load_shipped(name).eval()


@pytest.mark.parametrize(
    ("name", "most", "above"), [("mini_chat", 16e6, 0.1), ("dense_chat", 10e6, 0.15)]
)
def test_a_shipped_model_is_what_its_notes_say(name, most, above):
    """Stored in few bits, it is as good as the one trained, to two thousandths of a nat."""
    folder, about, model = shipped(name)
    cfg = RECIPES[name].train(None)
    assert about["steps"] == cfg.total_steps()
    assert about["first_stage"]["steps"] == RECIPES[f"{name}_base"].train(None).total_steps()
    assert about["settings"] == json.loads(json.dumps(cfg.flat()))
    assert model.num_parameters() == about["parameters"]
    assert sum(p.stat().st_size for p in folder.iterdir()) <= most
    valid, _ = stream_validation(load_tokenizer())
    rows = PackedBatches(valid, cfg.batch_size, cfg.seq_len, seed=cfg.seed, shuffle=False)
    loss = evaluate(model, rows, cfg.eval_batches)
    assert loss == pytest.approx(about["validation_loss_nats"], abs=2e-3)
    assert about["entropy_floor_nats"] == pytest.approx(entropy_floor(valid), abs=1e-4)
    assert loss < about["entropy_floor_nats"] + above
    assert generate(model, load_tokenizer(), "", 40, temperature=0.7, seed=1).strip()


def test_the_model_stopped_early_is_what_its_notes_say():
    folder, about, model = shipped("mini_dense")
    cfg = RECIPES["mini_dense"].train(None)
    assert about["command"] == "python -m minids3.train mini_dense"
    assert about["purpose"] == RECIPES["mini_dense"].purpose
    assert about["steps"] == cfg.steps
    assert model.num_parameters() == about["parameters"]
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 10 * 2**20
    valid = PackedBatches(load_split("validation"), cfg.batch_size, cfg.seq_len, seed=cfg.seed)
    loss = evaluate(model, valid, cfg.eval_batches)
    assert loss == pytest.approx(about["validation_loss_nats"], abs=2e-3)
    assert about["entropy_floor_nats"] < loss < math.log(2048) / 4
    assert generate(model, load_tokenizer(), "", 40, temperature=0.7, seed=1).strip()


def test_the_baseline_costs_as_many_flops_a_token_and_sees_the_same_text():
    models = [Transformer(get_config(RECIPES[n].preset)) for n in ("mini_chat", "dense_chat")]
    ours, dense = (training_flops_per_token(model, 256) for model in models)
    assert dense == pytest.approx(ours, rel=0.01)
    for ours, dense in (("mini_chat", "dense_chat"), ("mini_chat_base", "dense_chat_base")):
        assert RECIPES[ours].train(None) == RECIPES[dense].train(None)
        assert RECIPES[ours].fresh
        assert RECIPES[dense].fresh
