"""What a run meets in practice: divergence, masks, other models and data, kills, full disks."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch

from minids3.config import get_config
from minids3.data import PackedBatches, load_split
from minids3.model import Transformer
from minids3.ref.loss import IGNORE_INDEX
from minids3.train import CheckpointError, TrainConfig, Trainer, evaluate, latest_checkpoint
from minids3.train import checkpoint as checkpoint_module
from minids3.train.balance import routing_loads
from minids3.train.ema import WeightAverage
from minids3.train.log import read_log
from minids3.train.schedule import Schedule

MODEL = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "moe_intermediate_size": 24, "num_attention_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


class Rows:
    """Rows of random ids; ``masked`` rows have no target, ``ragged`` ones fewer and fewer."""

    def __init__(self, rows=6, length=12, masked=(), ragged=False, seed=0):
        self.n, self.length, self.masked, self.ragged, self.seed = (
            rows,
            length,
            masked,
            ragged,
            seed,
        )

    def rows(self, first, count):
        found = [self._row(first + i, i) for i in range(count)]
        inputs, targets = zip(*found, strict=True)
        return torch.stack(inputs), torch.stack(targets)

    def _row(self, number, place):
        generator = torch.Generator().manual_seed(1000 * self.seed + number)
        ids = torch.randint(0, 97, (self.length + 1,), generator=generator)
        targets = ids[1:].clone()
        if self.ragged:
            targets[: place % self.length] = IGNORE_INDEX
        if place in self.masked:
            targets[:] = IGNORE_INDEX
        return ids[:-1], targets

    def batch(self, step):
        return self.rows(step * self.n, self.n)


def build(data=None, out_dir=None, seed=0, model=None, **settings):
    torch.manual_seed(seed)
    cfg = TrainConfig(**{"steps": 6, "lr": 1e-2, **settings})
    network = Transformer(get_config("mini", **{**MODEL, **(model or {})}))
    return Trainer(network, cfg, Rows() if data is None else data, out_dir=out_dir)


def state(trainer):
    """Everything a step may move."""
    found = {n: t.clone() for n, t in trainer.model.state_dict().items()}
    for name, p in trainer.model.named_parameters():
        found |= {f"{s} {name}": t.clone() for s, t in trainer.optimizer.state[p].items()}
    return found


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


# Divergence.


@pytest.mark.parametrize("where", ["embed_tokens.weight", "layers.1.mlp.gate.weight"])
def test_a_gradient_that_is_not_finite_touches_nothing(where):
    run = build(ema=0.9)
    run.train_step()
    before, average = state(run), {n: t.clone() for n, t in run.average.tensors.items()}
    parameter = run.model.get_parameter(where)
    hook = parameter.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(FloatingPointError, match=r"norm of the gradient is (inf|nan) at step 1"):
        run.train_step()
    assert same(before, state(run))
    assert same(average, run.average.tensors)
    assert run.step == 1
    assert all(p.grad is None for p in run.model.parameters())
    hook.remove()
    assert run.train_step()[0] > 0


@pytest.mark.parametrize("lr", [1e2, 1e5, 1e30])
def test_a_run_that_diverges_leaves_finite_weights(lr, tmp_path):
    run = build(out_dir=tmp_path, lr=lr, steps=60, save_every=1)
    with pytest.raises(FloatingPointError, match="lower lr"):
        run.fit(progress=False)
    assert all(t.isfinite().all() for t in run.model.state_dict().values())
    fresh = build(out_dir=tmp_path, lr=lr, steps=60, save_every=1, seed=5)
    fresh.resume(latest_checkpoint(tmp_path))
    assert all(t.isfinite().all() for t in fresh.model.state_dict().values())


# Masks and micro-batches.


@pytest.mark.parametrize("size", [1, 2, 4, 5])
@pytest.mark.parametrize("masked", [(), (2, 3), (0, 5)])
def test_micro_batches_are_the_large_batch(size, masked):
    data = Rows(ragged=True, masked=masked)
    whole, parts = build(data), build(data, micro_batch_size=size)
    for _ in range(3):
        assert parts.train_step() == pytest.approx(whole.train_step(), rel=2e-5)
    for (name, one), two in zip(
        whole.model.state_dict().items(), parts.model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(two, one, rtol=0, atol=3e-4, msg=lambda m, n=name: f"{n}: {m}")
        if name.endswith("expert_bias"):  # counted over all passes, moved once
            assert torch.equal(one, two)
            assert one.abs().max() <= 3 * 0.001 + 1e-9
    assert parts.history.max_violation == pytest.approx(whole.history.max_violation)


def test_the_gradient_of_micro_batches_is_the_large_batch_s():
    data = Rows(ragged=True)
    grads = []
    for size in (None, 1, 4):
        run = build(data, micro_batch_size=size)
        run.model.double()
        inputs, targets = data.batch(0)
        run._backward(inputs, targets, inputs.numel())
        grads.append({n: p.grad for n, p in run.model.named_parameters()})
    for other in grads[1:]:
        for name, grad in grads[0].items():
            # The gate scores in fp32, so not to the last digit of fp64.
            torch.testing.assert_close(other[name], grad, rtol=1e-4, atol=1e-9)


def test_a_readers_model_needs_only_the_plain_mean():
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = build(model={"num_nextn_predict_layers": 0}).model

        def loss(self, ids, targets):
            return self.inner.loss(ids, targets)

    torch.manual_seed(0)
    own = Trainer(Own(), TrainConfig(steps=6, lr=1e-2), Rows())
    expected = build(model={"num_nextn_predict_layers": 0})
    assert own.train_step() == expected.train_step()


def test_rows_without_a_target_weigh_nothing():
    """Not in the loss, not in its gradient, not in the balance of the experts."""
    inputs, targets = Rows(4).batch(0)

    class Padded:
        def batch(self, step):
            extra = torch.full_like(targets[:2], IGNORE_INDEX)
            return torch.cat((inputs, inputs[:2])), torch.cat((targets, extra))

    class Plain:
        def batch(self, step):
            return inputs, targets

    runs = [build(data) for data in (Plain(), Padded())]
    told = [run.train_step() for run in runs]
    assert told[0] == told[1]
    assert same(state(runs[0]), state(runs[1]))


def test_a_batch_without_any_target_changes_nothing():
    run = build(Rows(masked=range(6)))
    before = state(run)
    loss, norm = run.train_step()
    assert loss != loss
    assert norm == 0
    assert same(before, state(run))
    assert run.position == (1, 72, 6)


def test_evaluation_weighs_batches_by_their_targets():
    class Mixed:
        def batch(self, step):
            return Rows(masked=range(6) if step == 1 else (0, 1) if step == 2 else ()).batch(step)

    model = build().model.eval()
    total, count = 0.0, 0
    for step in (0, 2):
        inputs, targets = Mixed().batch(step)
        logits = model(inputs).double().log_softmax(-1)
        kept = targets != IGNORE_INDEX
        total -= logits[kept].gather(1, targets[kept][:, None]).sum().item()
        count += int(kept.sum())
    assert evaluate(model, Mixed(), 3) == pytest.approx(total / count, rel=1e-5)
    with pytest.raises(ValueError, match="no target in the first 2 batches"):
        evaluate(model, Rows(masked=range(6)), 2)


def test_a_batch_loss_is_not_split():
    run = build(micro_batch_size=2, batch_balance_weight=0.01)
    with pytest.raises(ValueError, match="leave micro_batch_size out"):
        run.train_step()


def test_a_growing_batch_takes_every_row_once():
    taken = []

    class Watched(Rows):
        def rows(self, first, count):
            taken.extend(range(first, first + count))
            return super().rows(first, count)

    plan = Schedule(((200, 8, "linear"), (400, 8)), start=2)
    run = build(Watched(), steps=None, tokens=400, batch_size=plan, seq_len=12)
    history = run.fit(progress=False)
    sizes = [b - a for a, b in zip([0, *history.tokens], history.tokens, strict=False)]
    assert sizes[0] == 24
    assert sizes == sorted(sizes)
    assert sizes[-1] == 96
    assert taken == list(range(len(taken)))
    assert run.step == run.cfg.total_steps()
    with pytest.raises(ValueError, match="needs a source with rows"):
        Trainer(run.model, run.cfg, build.__class__)


def test_acceptance_is_measured_from_where_the_mtp_loss_counts():
    late = Schedule(((100, 0.0), (216, 0.3)))
    run = build(mtp_weight=late, steps=3, eval_every=1, eval_batches=1)
    run.valid_batches = run.train_batches
    history = run.fit(progress=False)
    assert history.tokens == [72, 144, 216]
    assert len(history.valid_loss) == 4
    assert len(history.valid_acceptance) == len(history.mtp_loss) == 2


def test_an_average_of_the_weights():
    run = build(ema=0.9)
    expected = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    for n in range(5):
        run.train_step()
        keep = min(0.9, (1 + n) / (10 + n))
        for name, p in run.model.named_parameters():
            expected[name] = keep * expected[name] + (1 - keep) * p.detach()
    for name, tensor in run.average.tensors.items():
        torch.testing.assert_close(tensor, expected[name])
    own = run.model.lm_head.weight.clone()
    with run.average.applied(run.model):
        assert torch.equal(run.model.lm_head.weight, run.average.tensors["lm_head.weight"])
    assert torch.equal(run.model.lm_head.weight, own)
    with pytest.raises(ValueError, match="between 0 and 1"):
        WeightAverage(run.model, 1.0)


# Resuming something else.

OTHER_MODELS = {
    "rms_norm_eps": 1e-5, "rope_theta": 5e4, "rope_interleave": False, "rope_factor": 4.0,
    "routed_scaling_factor": 1.0, "topk_group": 3, "num_experts_per_tok": 3,
    "norm_topk_prob": False, "scoring_func": "softmax", "max_position_embeddings": 128,
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_another_model_of_the_same_shapes_is_refused_untouched(name, tmp_path):
    run = build(out_dir=tmp_path)
    run.fit(until=2, progress=False)
    other = build(model={name: OTHER_MODELS[name]}, seed=3)
    before = state(other)
    with pytest.raises(CheckpointError, match=f"of another model: {name} is"):
        other.resume(latest_checkpoint(tmp_path))
    assert same(before, state(other))
    assert other.step == 0


def test_other_data_is_refused(tmp_path):
    split = load_split("validation")

    def batches(seed=1, size=2, length=8, part=split):
        return PackedBatches(part, size, length, seed=seed)

    def trainer(data, **more):
        torch.manual_seed(0)
        model = Transformer(get_config("mini_dense", num_hidden_layers=1))
        return Trainer(model, TrainConfig(steps=3), data, **more)

    trainer(batches(), out_dir=tmp_path).fit(until=1, progress=False)
    folder = latest_checkpoint(tmp_path)
    trainer(batches()).resume(folder)
    others = [batches(seed=2), batches(size=4), batches(length=7), batches(part=split.only("code"))]
    for data in others:
        with pytest.raises(CheckpointError, match="trained on other data"):
            trainer(data).resume(folder)


def test_data_that_differ_late_are_other_data():
    split = load_split("validation")
    changed = dataclasses.replace(split, tokens=split.tokens.clone())
    changed.tokens[-2] += 1
    same_again = dataclasses.replace(split, tokens=split.tokens.clone())
    prints = [PackedBatches(s, 2, 8).fingerprint for s in (split, changed, same_again)]
    assert prints[0] == prints[2] != prints[1]


def test_a_folder_is_one_run_s(tmp_path):
    first = build(out_dir=tmp_path)
    first.fit(until=4, progress=False)
    names = sorted(p.name for p in tmp_path.iterdir())
    second = build(out_dir=tmp_path, seed=1)
    with pytest.raises(CheckpointError, match="holds another run"):
        second.fit(progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    second.train_step()
    second.save()  # without fit: beside, not instead
    assert set(names) < {p.name for p in tmp_path.iterdir()}
    first.fit(progress=False)  # prunes its own alone
    runs = {checkpoint_module.checkpoint_run(p) for p in tmp_path.glob("step_*")}
    assert runs == {first.run, second.run}


# The disk.


def test_what_is_wrong_with_a_folder_is_found_before_training(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", "/proc/minids3"):
        run = build(out_dir=folder)
        with pytest.raises(CheckpointError, match="cannot write a checkpoint"):
            run.fit(progress=False)
        assert run.step == 0
    assert (tmp_path / "file").read_text() == "mine"
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(checkpoint_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match="MiB left and a checkpoint takes"):
        build(out_dir=tmp_path / "full").fit(progress=False)


def test_left_overs_of_dead_runs_are_swept_up(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host = checkpoint_module._host()
    for name in (f".partial-{gone.pid}-{host}-abc", f".partial-{os.getpid()}-{host}-abc"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    build(out_dir=tmp_path).fit(until=1, progress=False)
    left = [p.name for p in tmp_path.glob(".partial-*")]
    assert left == [f".partial-{os.getpid()}-{host}-abc"]


@pytest.mark.parametrize(
    "content",
    [
        "[]", "3", "null", "{", "\udcff", "{}", '{"format": 2}', '{"format": 1, "step": 3}',
        "[" * 100_000, '{"format": 99}',
    ],
)  # fmt: skip
def test_damaged_states(content, tmp_path):
    build(out_dir=tmp_path).fit(until=1, progress=False)
    path = latest_checkpoint(tmp_path) / "state.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    run = build()
    before = state(run)
    with pytest.raises(CheckpointError, match="step_00000001"):
        run.resume(path.parent)
    assert same(before, state(run))


@pytest.mark.parametrize("name", ["step", "tokens", "rows", "settings", "history", "sha256", "run"])
@pytest.mark.parametrize("value", [None, [], "x", {"a": 1}, -1.5])
def test_damaged_fields_of_a_state(name, value, tmp_path):
    build(out_dir=tmp_path).fit(until=1, progress=False)
    path = latest_checkpoint(tmp_path) / "state.json"
    content = json.loads(path.read_text())
    if name == "run" and value == "x":  # any text names a run
        value = 7
    path.write_text(json.dumps({**content, name: value}))
    with pytest.raises(CheckpointError):
        build().resume(path.parent)


def test_a_log_survives_a_cut_and_goes_on_where_the_run_does(tmp_path):
    run = build(out_dir=tmp_path, save_every=2)
    run.fit(until=4, progress=False)
    path = tmp_path / "log.jsonl"
    assert [e["step"] for e in read_log(path)] == [1, 2, 3, 4]
    with path.open("a") as file:
        file.write('{"kind": "step", "step": 5, "tokens": 1}\n{"kind": "st')
    again = build(out_dir=tmp_path, save_every=2)
    again.resume(latest_checkpoint(tmp_path))
    again.fit(progress=False)
    entries = read_log(path)
    assert [e["step"] for e in entries] == [1, 2, 3, 4, 5, 6]
    assert len(entries[-1]["max_violation"]) == 3
    path.write_text("nonsense\n{}\n")
    with pytest.raises(ValueError, match="line 1 is no entry"):
        read_log(path)


# Kills.

SCRIPT = """
import sys, torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from test_unkind import build, latest_checkpoint
run = build(out_dir={folder!r}, steps=30, save_every=1, ema=0.9)
newest = latest_checkpoint({folder!r})
if newest is not None:
    run.resume(newest)
print("ready", flush=True)
run.fit(progress=False)
"""


def start(folder):
    tests = os.path.dirname(__file__)
    script = textwrap.dedent(SCRIPT).format(tests=tests, folder=str(folder))
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


def wait_for_step(folder, step):
    for _ in range(3000):
        newest = latest_checkpoint(folder)
        if newest is not None and int(newest.name[5:13]) >= step:
            return
        time.sleep(0.01)
    raise AssertionError("the run made no checkpoint")


def test_kills_change_no_bit(tmp_path):
    torch.set_num_threads(1)
    whole = build(steps=30, ema=0.9)
    whole.fit(progress=False)
    for step in (3, 9):
        process = start(tmp_path)
        wait_for_step(tmp_path, step)
        process.send_signal(signal.SIGKILL)
        process.wait()
    process = start(tmp_path)
    wait_for_step(tmp_path, 15)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    last = build(out_dir=tmp_path, steps=30, save_every=1, ema=0.9, seed=9)
    last.resume(latest_checkpoint(tmp_path))
    last.fit(progress=False)
    assert same(state(whole), state(last))
    assert same(whole.average.tensors, last.average.tensors)
    assert last.history.train_loss == whole.history.train_loss
    assert not list(tmp_path.glob(".partial-*"))


def test_loads_are_counted_over_all_passes():
    from minids3.nn import record_routing

    run = build(micro_batch_size=2)
    inputs, targets = run.train_batches.batch(0)
    with record_routing(run.model) as routings, torch.no_grad():
        run.model.losses(inputs, targets)
    sums = run._backward(inputs, targets, inputs.numel())
    for name, load in routing_loads(routings).items():
        assert torch.equal(sums.loads[name], load)
