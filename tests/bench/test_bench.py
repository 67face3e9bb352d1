"""The arithmetic of benchmarks and their command; nothing here looks at a measured time."""

import importlib.util
import json

import pytest
import torch

from minids3.bench import Comparison, alternate, environment, recorded
from minids3.bench import model as model_bench
from minids3.bench.__main__ import main
from minids3.data import DataError


def test_ratio_is_the_median_of_the_rounds():
    compared = Comparison("x", "tokens/s", 100, ours=[1.0, 2.0, 4.0], peer=[3.0, 2.0, 20.0])
    assert compared.ratio == 3.0
    assert compared.rates == (50.0, 100 / 3.0)
    assert "3.00x  (1.00 to 5.00)" in compared.row()
    assert compared.to_dict()["rounds"] == 3


def test_both_sides_run_by_turns_and_the_first_round_is_not_counted():
    calls = []
    done = alternate(
        "x", lambda: calls.append("o"), lambda: calls.append("p"), work=1, unit="calls/s", rounds=3
    )
    assert calls == ["o", "p"] * 4
    assert len(done.ours) == len(done.peer) == 3


def test_environment_names_what_a_figure_depends_on():
    found = environment()
    assert {"date", "device", "threads", "python", "torch"} <= set(found)


needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="needs transformers, the peer"
)


@needs_transformers
def test_both_sides_of_the_model_benchmark_do_the_same_work():
    model, hf = model_bench.build("cpu", torch.float32)
    inputs, targets = model_bench._batch("cpu")
    inputs, targets = inputs[:2, :40], targets[:2, :40].contiguous()
    ours = model.loss(inputs, targets)
    theirs = hf(inputs, labels=inputs, shift_labels=targets).loss
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    ours, theirs = (run() for run in model_bench.decoders(model.eval(), hf.eval(), 2, "cpu"))
    assert ours.shape == theirs.shape
    # Random weights: two experts' scores can agree to the last digit, and then rounding chooses.
    assert (ours == theirs).float().mean() > 0.9


@needs_transformers
def test_command_writes_json_and_explains_a_missing_peer(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(model_bench, "run", lambda device, rounds: {"rounds": rounds})
    assert main(["model", "--rounds", "2", "--json", str(tmp_path / "r.json")]) == 0
    assert json.loads((tmp_path / "r.json").read_text()) == {"rounds": 2}

    def missing(device, rounds):
        raise ImportError("No module named 'transformers'")

    monkeypatch.setattr(model_bench, "run", missing)
    assert main(["model"]) == 2
    assert "No module named 'transformers'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["nothing"])


@needs_transformers
def test_records_go_where_notebooks_look(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIDS3_DATA", str(tmp_path))
    monkeypatch.setattr(model_bench, "run", lambda device, rounds: {"rounds": rounds})
    assert recorded("model") is None
    assert main(["model", "--rounds", "5", "--json"]) == 0
    assert recorded("model") == {"rounds": 5}
    for damage in ("[1]", "{", "[" * 100_000, "\udcff"):
        (tmp_path / "bench" / "model.json").write_text(damage, errors="surrogateescape")
        with pytest.raises(DataError, match=r"model\.json"):
            recorded("model")
