"""The training record: resumed where it stopped, thinned without losing an event."""

import json

import pytest
import torch

from minids3.bench import training
from minids3.bench.records import recorded
from minids3.bench.training import (
    MODEL,
    PLAN,
    SEEDS,
    VARIANTS,
    joined,
    main,
    model_config,
    thin,
)
from minids3.data import data_dir
from minids3.sim import flops
from minids3.viz.training import dashboard


def entry(n, time=None, **more):
    found = {"kind": "step", "step": n, "tokens": 100 * n, "loss": 2.0 - n / 1000, "lr": 1e-3}
    found |= {"time": float(n) if time is None else time, "run": "x"}
    found |= {"grad_norm": 0.5, "tokens_per_second": 50.0, "memory_mib": 9.0, "mtp_loss": 1.0}
    return found | {"max_violation": [0.5, 1.0]} | more


def test_dense_costs_what_the_experts_cost():
    moe = flops.training_flops_per_token(model_config("bf16"), 128)
    dense = flops.training_flops_per_token(model_config("dense"), 128)
    assert dense == pytest.approx(moe, rel=0.02)
    assert model_config("no MTP").num_nextn_predict_layers == 0
    assert model_config("dense").n_routed_experts == 0
    assert model_config("fp8").n_routed_experts == MODEL["n_routed_experts"]


def test_runs_of_a_seed_differ_in_one_thing():
    runs = [training.trainer(name, 1) for name in ("fp8", "no balancing", "dense")]
    first = runs[0].train_batches.rows(40, 3)
    for other in runs[1:]:
        assert all(map(torch.equal, first, other.train_batches.rows(40, 3)))
        assert other.floor == runs[0].floor
    assert not torch.equal(first[0], training.trainer("fp8", 2).train_batches.rows(40, 3)[0])
    weights = [run.model.embed_tokens.weight for run in runs[:2]]
    assert torch.equal(*weights)
    assert runs[0].cfg.replace(precision="bf16", bias_update_speed=0.0) == runs[1].cfg


def test_schedules_are_v3s_in_small():
    assert PLAN.batch_rows(0) * 5 == PLAN.batch_rows(PLAN.tokens)  # 3,072 to 15,360
    half, late = 0.4 * PLAN.tokens, 0.99 * PLAN.tokens
    assert PLAN.lr_at(0, half) == PLAN.lr.phases[0].value
    assert PLAN.lr_at(0, late) < PLAN.lr_at(0, 0.97 * PLAN.tokens) < PLAN.lr_at(0, half) / 9
    assert PLAN.mtp_weight_at(0, half) == 0.3
    assert PLAN.mtp_weight_at(0, late) == 0.1
    assert PLAN.bias_speed_at(0, half) > 0 == PLAN.bias_speed_at(0, late)


def test_an_interrupted_table_goes_on(tmp_path, monkeypatch):
    path, calls = tmp_path / "training.json", []

    def train_once(variant, seed):
        if len(calls) == 4:
            raise KeyboardInterrupt
        calls.append((variant, seed))
        return {"variant": variant, "seed": seed, "valid_loss": 1.0, "seconds": 1}

    monkeypatch.setattr(training, "train_once", train_once)
    monkeypatch.setattr(training, "data", lambda: (None, frozenset(), 0.4))
    monkeypatch.setattr(training, "text_fingerprint", lambda: "old text")
    monkeypatch.setattr(training, "record_path", lambda topic: path)
    read = lambda topic: json.loads(path.read_text()) if path.exists() else None  # noqa: E731
    monkeypatch.setattr(training, "recorded", read)
    with pytest.raises(KeyboardInterrupt):
        training.run()
    first = list(calls)
    calls.clear()
    monkeypatch.setattr(training, "train_once", lambda v, s: calls.append((v, s)) or {
        "variant": v, "seed": s, "valid_loss": 1.0, "seconds": 1})  # fmt: skip
    report = training.run()
    assert first + calls == [(v, s) for s in SEEDS for v in VARIANTS]
    assert len(report["runs"]) == len(SEEDS) * len(VARIANTS)
    # Other settings: nothing of the old record is taken over.
    monkeypatch.setattr(training, "VALIDATION", 99)
    calls.clear()
    training.run()
    assert len(calls) == len(SEEDS) * len(VARIANTS)
    # Nor of a record of other text.
    monkeypatch.setattr(training, "text_fingerprint", lambda: "new text")
    calls.clear()
    training.run()
    assert len(calls) == len(SEEDS) * len(VARIANTS)


def test_the_record_is_of_the_text_and_the_plan_of_today():
    """Else notebook 12 compares its own run with runs of something else."""
    found = recorded("training")
    assert found["settings"]["text"] == training.text_fingerprint()
    assert found["settings"]["model"] == json.loads(json.dumps(MODEL))
    assert found["settings"]["plan"] == json.loads(json.dumps(PLAN.flat()))
    assert found["floor"] == pytest.approx(training.data()[2], abs=1e-9)
    done = {(r["variant"], r["seed"]) for r in found["runs"]}
    assert done == {(variant, seed) for variant in VARIANTS for seed in SEEDS}


@pytest.mark.parametrize("name", ["mini_chat", "dense_chat"])
def test_the_record_of_a_long_run_is_of_the_shipped_model(name):
    found = recorded(name)
    about = json.loads((data_dir() / "checkpoints" / name / "about.json").read_text())
    assert found["command"].startswith(f"python -m minids3.train {name}, then ")
    assert found["stages"] == [about["first_stage"]["steps"], about["steps"]]
    assert found["tokens"] == about["first_stage"]["tokens"] + about["tokens"]
    last = found["evaluations"][-1]
    assert last["loss"] == pytest.approx(about["validation_loss_nats"], abs=1e-4)
    assert last["floor"] == pytest.approx(about["entropy_floor_nats"], abs=1e-4)


def test_the_fingerprint_follows_the_text(monkeypatch):
    before = training.text_fingerprint()
    assert before == training.text_fingerprint()
    valid, texts, floor = training.data()
    monkeypatch.setattr(training, "data", lambda: (valid, texts, floor + 0.01))
    assert training.text_fingerprint() != before


def test_only_the_cpus_emulation_is_recorded():
    with pytest.raises(ValueError, match="--device cpu"):
        training.run(device="cuda")


def test_thin_keeps_every_event_and_both_ends():
    steps = [entry(n, loss=2.0 + 0.01 * ((7 * n) % 5)) for n in range(1, 1001)]
    steps[500]["loss"] = 9.0
    for n in range(700, 705):
        steps[n]["loss"] = 5.0
    steps[998]["loss"] = None  # a batch without targets
    evaluations = [
        {"kind": "evaluation", "run": "x", "step": n, "tokens": 100 * n, "loss": 2.0, "floor": 0.4}
        for n in (0, 1000)
    ]
    found = thin([evaluations[0], *steps, evaluations[1]], points=50)
    assert found["total_steps"] == 1000
    assert found["tokens"] == 100_000
    assert found["floor"] == 0.4
    assert found["seconds"] == 999
    assert len(found["steps"]) == 50
    assert found["events"] == [
        {"step": 501, "length": 1, "kind": "bad batch"},
        {"step": 701, "length": 5, "kind": "spike"},
    ]
    assert max(e["largest_loss"] for e in found["steps"]) == 9.0
    assert found["steps"][-1]["step"] == 1000
    assert found["steps"][0]["max_violation"] == [0.5, 1.0]
    mean = sum(e["loss"] for e in steps[:20]) / 20
    assert found["steps"][0]["loss"] == pytest.approx(mean, abs=1e-4)
    assert [e["step"] for e in found["evaluations"]] == [0, 1000]
    dashboard([*found["steps"], *found["evaluations"]]).canvas.draw()


def test_pauses_between_sittings_do_not_count():
    times = [*range(10), *range(5000, 5010)]
    steps = [entry(n + 1, time=float(t)) for n, t in enumerate(times)]
    assert thin(steps)["seconds"] == 19


def test_the_stages_of_a_run_make_one_record(tmp_path):
    first = [entry(n, loss=2.0) for n in range(1, 101)]
    start = {"kind": "evaluation", "run": "y", "step": 0, "tokens": 0, "loss": 3.0, "floor": 0.4}
    second = [start, *(entry(n, loss=1.0) for n in range(1, 51))]
    whole = joined([first, second])
    assert [e["step"] for e in whole] == list(range(1, 151))
    assert [e["tokens"] for e in whole] == [100 * n for n in range(1, 151)]
    assert joined([second])[0] == start
    for logs in ([], [first, [start]]):
        with pytest.raises(ValueError, match=r"no step yet|no log"):
            joined(logs)
    paths = []
    for name, log in (("a", first), ("b", second)):
        paths.append(tmp_path / name)
        paths[-1].write_text("".join(json.dumps(e) + "\n" for e in log))
    assert main([*map(str, paths), "--json", str(tmp_path / "out.json")]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["stages"] == [100, 50]
    assert (found["total_steps"], found["tokens"]) == (150, 15_000)
    assert found["steps"][-1]["loss"] == 1.0


def test_no_step_no_record(tmp_path, capsys):
    with pytest.raises(ValueError, match="no step yet"):
        thin([])
    log = tmp_path / "log.jsonl"
    assert main([str(log)]) == 2
    assert "log.jsonl" in capsys.readouterr().err
    log.write_text(json.dumps(entry(1)) + "\n")
    assert main([str(log), "--json", str(tmp_path / "out.json")]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["total_steps"] == 1
