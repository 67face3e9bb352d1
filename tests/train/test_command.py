"""``python -m minids3.train``: wrong arguments in one line, runs that are found again."""

import json

import pytest

from minids3.train.__main__ import main
from minids3.train.checkpoint import checkpoint_run, latest_checkpoint
from minids3.train.recipes import RECIPES, Recipe, build_trainer
from minids3.train.settings import TrainConfig


@pytest.fixture
def short(monkeypatch, tmp_path):
    def settings(tokens):
        steps = 4 if tokens is None else tokens // 32
        return TrainConfig(steps=steps, batch_size=2, seq_len=16, eval_batches=1, save_every=2)

    monkeypatch.setitem(RECIPES, "mini", Recipe("mini_dense", settings, "a test", fresh=False))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def one_line(capsys):
    told = capsys.readouterr().err
    lines = [
        line
        for line in told.splitlines()
        if "/step" not in line and "step/s" not in line and line.strip()
    ]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "invalid choice: 'nothing'"),
        (["mini", "--steps", "many"], "invalid int value"),
        (["mini", "--steps", "0"], "steps=0 must be"),
        (["mini", "--steps", "-3"], "steps=-3 must be"),
        (["mini", "--steps", "3", "--tokens", "3"], "not allowed with"),
        (["mini", "--resume", "--fresh"], "not allowed with"),
        (["mini", "--resume"], "no checkpoint in"),
        (["mini", "--precision", "int4"], "invalid choice: 'int4'"),
        (["mini", "--device", "abacus"], "--device abacus cannot be used here"),
        (["mini", "--set", "lr"], "write NAME=VALUE"),
        (["mini", "--set", "learning_rate=3"], "no setting 'learning_rate'"),
        (["mini", "--set", "lr=high"], "lr='high' must be"),
        (["mini", "--set", "lr=nan"], "must be"),
        (["mini", "--eval-every", "-1"], "eval_every=-1 must be"),
        (["mini", "--out", "/proc/minids3"], "cannot write the model to"),
        (["mini", "--work-dir", "/proc/minids3"], "cannot write a checkpoint"),
        ([], "required: name"),
    ],
)
def test_wrong_arguments(arguments, words, short, capsys):
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert words in one_line(capsys)
    assert list(short.glob("runs/*/step_*")) == []


def test_divergence_and_a_full_disk_end_in_one_line(short, capsys, monkeypatch):
    assert main(["mini", "--set", "lr=1e30", "--steps", "60"]) == 2
    assert "lower lr" in one_line(capsys)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minids3.train.checkpoint.save_file", full)
    assert main(["mini", "--out", "other"]) == 2
    assert "No space left on device" in one_line(capsys)


def test_everything_lies_in_one_folder(short, capsys):
    assert main(["mini", "--dtype", "bf16", "--eval-every", "2"]) == 0
    names = {p.name for p in (short / "runs/mini").iterdir()}
    assert names >= {"config.json", "model.safetensors", "about.json", "log.jsonl"}
    about = json.loads((short / "runs/mini/about.json").read_text())
    assert about["settings"]["eval_every"] == 2
    assert main(["mini", "--resume"]) == 0  # nothing left to do
    assert latest_checkpoint(short / "runs/mini").name == "step_00000004"


def test_a_fresh_start_keeps_the_earlier_run(short, capsys):
    assert main(["mini"]) == 0
    first = checkpoint_run(latest_checkpoint(short / "runs/mini"))
    assert main(["mini", "--fresh", "--set", "seed=1"]) == 0
    assert "the earlier run is now in runs/mini-1" in capsys.readouterr().out
    assert checkpoint_run(latest_checkpoint(short / "runs/mini-1")) == first
    assert checkpoint_run(latest_checkpoint(short / "runs/mini")) != first


def test_another_length_stretches_the_schedule():
    usual = RECIPES["mini_chat"].train(None)
    short = build_trainer("mini_chat", steps=100).cfg
    assert short.total_steps() == 100
    at = short.tokens * 3 // 4
    assert short.lr_at(0, at) == pytest.approx(usual.lr_at(0, usual.tokens * 3 // 4))
