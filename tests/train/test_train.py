"""Schedule, optimizer, trainer and checkpoints."""

import json
import os
import signal
from itertools import pairwise

import pytest
import torch
from tqdm import tqdm

from minids3.config import get_config
from minids3.model import Transformer
from minids3.nn import to_float8
from minids3.train import (
    CheckpointError,
    TrainConfig,
    Trainer,
    build_optimizer,
    evaluate,
    latest_checkpoint,
    lr_at,
)
from minids3.train.history import History
from minids3.train.optim import Bf16AdamW


class CountingTask:
    """Sequences that count upwards modulo 97: learnable, and a pure function of the step."""

    def batch(self, step):
        generator = torch.Generator().manual_seed(step)
        start = torch.randint(0, 97, (4, 1), generator=generator)
        ids = (start + torch.arange(13)) % 97
        return ids[:, :-1], ids[:, 1:]


def trainer(out_dir=None, seed=0, **changes):
    torch.manual_seed(seed)
    settings = {"steps": 12, "lr": 1e-2, "warmup_steps": 2, "eval_every": 5, "eval_batches": 2}
    cfg = TrainConfig(**{**settings, **changes})
    task = CountingTask()
    return Trainer(Transformer(get_config("tiny")), cfg, task, task, out_dir)


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_schedule_has_three_phases():
    kwargs = {"steps": 100, "lr": 1.0, "warmup_steps": 10, "decay_start": 50, "min_lr": 0.1}
    rates = [lr_at(s, **kwargs) for s in range(120)]
    assert rates[0] == 0.1
    assert rates[9] == rates[49] == 1.0
    assert rates[75] == pytest.approx(0.55)
    assert rates[100] == rates[119] == 0.1
    assert all(a > b for a, b in pairwise(rates[50:101]))
    assert lr_at(0, steps=1, lr=1.0) == 1.0
    with pytest.raises(ValueError, match="warmup_steps <= decay_start"):
        lr_at(0, steps=10, lr=1.0, warmup_steps=5, decay_start=3)


def test_only_matrices_decay_and_every_parameter_is_trained_once():
    model = Transformer(get_config("tiny", tie_word_embeddings=True))
    decayed, kept = build_optimizer(model, 1e-3).param_groups
    assert {p.ndim for p in decayed["params"]} == {2}
    assert decayed["weight_decay"] == 0.1
    assert {p.ndim for p in kept["params"]} == {1}
    assert kept["weight_decay"] == 0.0
    assert len(decayed["params"]) + len(kept["params"]) == len(list(model.parameters()))


def test_training_learns_and_records():
    run = trainer(steps=150, decay_start=50)
    history = run.fit(progress=False)
    assert history.valid_loss[0] > 4.4  # ln 97 = 4.57
    assert history.valid_loss[-1] < 0.5
    assert history.steps == list(range(1, 151))
    assert history.tokens[-1] == 150 * 4 * 12
    assert history.lr[1] == run.cfg.lr
    assert not run.model.training
    assert History(**json.loads(json.dumps(history.to_dict()))) == history


def test_plot_draws_both_curves_and_the_lines():
    history = trainer(steps=2).fit(progress=False)
    ax = history.plot(lines={"floor": 0.0}, label="dense")
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["dense training", "dense validation", "floor: 0.00"]
    assert ax.get_xlabel() == "training step"


def test_resume_is_bit_for_bit(tmp_path):
    whole = trainer()
    expected = whole.fit(progress=False)
    first = trainer(tmp_path)
    first.fit(until=7, progress=False)
    second = trainer(tmp_path, seed=99)  # other weights at first: all must come from the file
    second.resume(latest_checkpoint(tmp_path))
    assert second.step == 7
    assert second.fit(progress=False) == expected
    assert same_weights(whole.model, second.model)
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        slots, resumed = whole.optimizer.state[a], second.optimizer.state[b]
        assert slots.keys() == resumed.keys() >= {"exp_avg", "exp_avg_sq", "step"}
        assert all(torch.equal(slots[key], resumed[key]) for key in slots)


def test_an_interrupted_fit_goes_on(tmp_path, monkeypatch):
    expected = trainer().fit(progress=False)
    run = trainer(tmp_path)
    original = run.train_step

    def interrupted():
        if run.step == 4:
            monkeypatch.undo()
            raise KeyboardInterrupt
        return original()

    monkeypatch.setattr(run, "train_step", interrupted)
    run.fit(progress=False)
    assert run.step == 4
    assert latest_checkpoint(tmp_path).name == "step_00000004"
    assert run.fit(progress=False) == expected


def test_an_interrupt_inside_a_step_waits_for_its_end(tmp_path):
    expected = trainer().fit(progress=False)
    run = trainer(tmp_path)
    optimizer_step = run.optimizer.step

    def interrupted_while_weights_change():
        optimizer_step()
        if run.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    run.optimizer.step = interrupted_while_weights_change
    before = signal.getsignal(signal.SIGINT)
    run.fit(progress=False)
    assert run.step == 4
    assert signal.getsignal(signal.SIGINT) is before
    resumed = trainer(tmp_path, seed=99)
    resumed.resume(latest_checkpoint(tmp_path))
    assert resumed.fit(progress=False) == expected
    run.optimizer.step = optimizer_step
    assert run.fit(progress=False) == expected
    assert same_weights(run.model, resumed.model)


def test_an_interrupted_evaluation_is_made_up_for(monkeypatch):
    expected = trainer().fit(progress=False)
    run = trainer()
    original = run._evaluate_if_due

    def interrupted(log):
        if run.step == 5:
            monkeypatch.undo()
            raise KeyboardInterrupt
        original(log)

    monkeypatch.setattr(run, "_evaluate_if_due", interrupted)
    run.fit(progress=False)
    assert run.step == 5
    assert run.fit(progress=False) == expected


def test_a_failed_step_leaves_no_gradient_behind(monkeypatch):
    expected = trainer().fit(progress=False)
    run = trainer()

    def out_of_memory(*args):
        monkeypatch.undo()
        raise MemoryError

    monkeypatch.setattr(torch.nn.utils, "get_total_norm", out_of_memory)
    with pytest.raises(MemoryError):
        run.fit(progress=False)
    assert run.fit(progress=False) == expected


def test_old_checkpoints_are_dropped_and_none_is_half_written(tmp_path, monkeypatch):
    run = trainer(tmp_path, save_every=3)
    run.fit(progress=False)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["log.jsonl", "step_00000009", "step_00000012"]
    monkeypatch.setattr(json, "dumps", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(CheckpointError, match=r"disk full.*still there"):
        run.save()
    assert sorted(p.name for p in tmp_path.iterdir()) == names


def test_damaged_and_foreign_checkpoints_are_explained(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    run = trainer(tmp_path)
    run.fit(until=2, progress=False)
    folder = latest_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"trained with lr=0\.01, this run has 0\.5"):
        trainer(lr=0.5).resume(folder)
    other = trainer()
    other.model = Transformer(get_config("tiny", hidden_size=32))
    with pytest.raises(CheckpointError, match="of another model"):
        other.resume(folder)
    weights = folder / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(CheckpointError, match="damaged"):
        trainer().resume(folder)
    (folder / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"state\.json cannot be read"):
        trainer().resume(folder)


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_hurt():
    run = trainer()
    with torch.no_grad():
        run.model.lm_head.weight[0, 0] = torch.inf
    before = run.model.layers[0].mlp.gate_proj.weight.clone()
    with pytest.raises(FloatingPointError, match="at step 0: lower lr"):
        run.fit(progress=False)
    assert torch.equal(before, run.model.layers[0].mlp.gate_proj.weight)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="steps=0 must be greater"):
        TrainConfig(steps=0)
    with pytest.raises(ValueError, match="decay_start"):
        TrainConfig(steps=10, warmup_steps=20)


def test_evaluate_weighs_batches_by_their_targets():
    model = trainer().model
    task = CountingTask()

    class Uneven:
        def batch(self, step):
            inputs, targets = task.batch(step)
            return inputs, targets.masked_fill(torch.arange(12) > 3 * step, -100)

    inputs, targets = (
        torch.cat(t) for t in zip(*(Uneven().batch(s) for s in range(3)), strict=True)
    )
    assert evaluate(model, Uneven(), 3) == pytest.approx(
        model.loss(inputs, targets).item(), rel=1e-5
    )


def test_the_progress_bar_does_not_flood_a_notebook(monkeypatch):
    """nbval reads a cell's messages when it is done; ten updates a second lost its end."""
    seen = {}

    class Bar(tqdm):
        def __init__(self, *args, **options):
            seen.update(options)
            super().__init__(*args, **options)

    monkeypatch.setattr("minids3.train.trainer.tqdm", Bar)
    torch.manual_seed(0)
    model = Transformer(get_config("tiny"))
    Trainer(model, TrainConfig(steps=1, lr=1e-3), CountingTask()).fit()
    assert seen["mininterval"] >= 0.5


def test_bf16_moments_follow_pytorchs_adamw():
    runs = {}
    for moments in ("fp32", "bf16"):
        torch.manual_seed(0)
        model = Transformer(get_config("tiny"))
        optimizer = build_optimizer(model, 1e-3, moments=moments)
        for step in range(20):
            optimizer.zero_grad()
            model.loss(*CountingTask().batch(step)).backward()
            optimizer.step()
        runs[moments] = model, optimizer
    torch.manual_seed(0)
    start = Transformer(get_config("tiny"))
    for p, a, b in zip(
        start.parameters(), runs["fp32"][0].parameters(), runs["bf16"][0].parameters(), strict=True
    ):
        assert b.dtype == torch.float32
        assert (a - b).norm() < 0.02 * (a - p).norm()  # of the way that was gone
        assert not torch.equal(a, b)
    for slots in runs["bf16"][1].state.values():
        assert slots["exp_avg"].dtype == slots["exp_avg_sq"].dtype == torch.bfloat16


def test_bf16_adamw_without_rounding_is_pytorchs():
    """Steps from zero moments whose values BF16 holds exactly: the arithmetic is the same."""
    weight = torch.linspace(-1, 1, 8).view(2, 4)
    grad = torch.tensor([[1.0, -2.0, 0.5, 4.0], [0.0, 8.0, -0.25, 1.0]])
    found = []
    for kind in (torch.optim.AdamW, Bf16AdamW):
        p = torch.nn.Parameter(weight.clone())
        optimizer = kind([p], lr=0.1, betas=(0.5, 0.5), eps=1e-8, weight_decay=0.3)
        for _ in range(3):  # halves of small powers of two stay exact
            p.grad = grad.clone()
            optimizer.step()
        found.append(p.detach())
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match="lr=-1"):
        Bf16AdamW([torch.nn.Parameter(weight)], lr=-1)
    with pytest.raises(ValueError, match="unknown; choose fp32 or bf16"):
        build_optimizer(Transformer(get_config("tiny")), 1e-3, moments="fp8")


def test_bf16_moments_resume_bit_for_bit_and_are_half_as_large(tmp_path):
    whole = trainer(moments="bf16")
    whole.fit(progress=False)
    trainer(tmp_path, moments="bf16").fit(until=6, progress=False)
    second = trainer(seed=9, moments="bf16")
    second.resume(latest_checkpoint(tmp_path))
    assert (
        second.optimizer.state[next(second.model.parameters())]["exp_avg"].dtype == torch.bfloat16
    )
    second.fit(progress=False)
    assert same_weights(whole.model, second.model)
    with pytest.raises(CheckpointError, match="moments"):
        trainer().resume(latest_checkpoint(tmp_path))


def test_fp8_training_resumes_bit_for_bit_from_fp32_masters(tmp_path):
    def fp8_run(out_dir=None, seed=0):
        run = trainer(out_dir, seed)
        to_float8(run.model)  # parameters stay the same objects: the optimizer goes on with them
        return run

    whole = fp8_run()
    whole.fit(progress=False)
    fp8_run(tmp_path).fit(until=6, progress=False)
    folder = latest_checkpoint(tmp_path)
    second = fp8_run(seed=7)
    second.resume(folder)
    second.fit(progress=False)
    assert same_weights(whole.model, second.model)
    assert all(t.dtype == torch.float32 for t in second.model.parameters())
    plain = trainer(seed=8)
    plain.resume(folder)  # and the checkpoint is that of a plain model
