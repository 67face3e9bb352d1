"""Training on several processes: the run of one, resumed by any number, and what a failure says."""

import json

import pytest
import torch

from minids3.config import ModelConfig
from minids3.model import Transformer
from minids3.model.hf import load_hf, save_hf
from minids3.parallel.checkpoint import load_whole, read_state
from minids3.parallel.data import make_layout
from minids3.parallel.launch import run
from minids3.parallel.training import ParallelTrainer
from minids3.train import TrainConfig
from minids3.train.checkpoint import CheckpointError
from minids3.train.log import read_log
from minids3.train.trainer import Trainer

LAYOUTS = {"ep 2, dp 2": (1, 2, 2, ""), "pp 2, ep 2": (2, 1, 2, "dualpipev"), "dp 4": (1, 4, 1, "")}


class Rows:
    """Random rows, some without a target, the same whenever they are asked for."""

    def batch(self, step):
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randint(0, 37, (6, 8), generator=generator)
        targets = torch.randint(0, 37, (6, 8), generator=generator)
        targets[0] = -100
        targets[2, 3:] = -100
        return inputs, targets


def config():
    return ModelConfig(
        vocab_size=37,
        hidden_size=24,
        intermediate_size=20,
        num_hidden_layers=4,
        max_position_embeddings=16,
        attention="mla",
        num_attention_heads=2,
        num_key_value_heads=2,
        q_lora_rank=8,
        kv_lora_rank=12,
        qk_nope_head_dim=6,
        qk_rope_head_dim=4,
        v_head_dim=6,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        moe_intermediate_size=10,
        first_k_dense_replace=1,
        num_nextn_predict_layers=1,
        initializer_range=0.1,
    )


def settings(**changes):
    how = {"steps": 6, "lr": 3e-3, "batch_size": 6, "seq_len": 8, "seq_balance_weight": 0.01}
    upkeep = {"eval_every": 3, "eval_batches": 2, "save_every": 3, "ema": 0.9, "keep": 5}
    return TrainConfig(**{**how, **upkeep, "bias_update_speed": 0.01, **changes})


def model():
    torch.manual_seed(1)
    return Transformer(config())


def trained(folder, sizes, schedule, until=None, resume=None, **changes):
    """A run of this layout, gone on with from ``resume`` if there is one."""
    trainer = ParallelTrainer(
        model(),
        settings(**changes),
        Rows(),
        Rows(),
        out_dir=folder,
        layout=make_layout(*sizes),
        schedule=schedule or "1f1b",
    )
    if resume is not None:
        trainer.resume(resume)
    trainer.fit(until, progress=False)
    return trainer


def histories(root, cases):
    """What every layout recorded; each leaves checkpoints of steps 3 and 6."""
    found = {}
    for name, (pp, dp, ep, schedule) in cases.items():
        folder = f"{root}/{name.replace(', ', '-').replace(' ', '')}"
        found[name] = trained(folder, (pp, dp, ep), schedule).history.to_dict()
        micro = trained(None, (pp, dp, ep), schedule, micro_batch_size=1)
        found[f"{name}, micro"] = micro.history.to_dict()
        middle = f"{folder}/step_00000003"
        again = trained(f"{folder}-again", (pp, dp, ep), schedule, resume=middle)
        found[f"{name}, again"] = again.history.to_dict()
    diverged = settings(lr=1e30, grad_clip=1e30)
    wild = ParallelTrainer(model(), diverged, Rows(), layout=make_layout(1, 2, 2))
    try:
        wild.fit(progress=False)
    except FloatingPointError as error:
        found["diverged"] = str(error)
    return found


def resumed(root, sizes, schedule, n):
    """From the middle of another layout's run."""
    middle = f"{root}/ep2-dp2/step_00000003"
    return trained(f"{root}/on{n}", sizes, schedule, resume=middle).history.to_dict()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def four(root):
    return run(histories, 4, args=(str(root), LAYOUTS), timeout=500).results


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    trainer = Trainer(model(), settings(), Rows(), Rows(), out_dir=folder)
    trainer.fit(progress=False)
    return trainer, folder


def apart(found, expected):
    """Largest relative difference of two histories."""
    assert found.keys() == expected.keys()
    worst = 0.0
    for name, values in expected.items():
        mine, theirs = torch.tensor(found[name]).double(), torch.tensor(values).double()
        assert mine.shape == theirs.shape, name
        if theirs.numel():
            worst = max(worst, float(((mine - theirs).abs() / theirs.abs().clamp(min=1)).max()))
    return worst


def test_the_run_is_that_of_one_process(four, alone):
    expected = alone[0].history.to_dict()
    assert len(expected["valid_acceptance"]) == len(expected["valid_ema_loss"]) == 3
    for found in four:
        for name in LAYOUTS:
            assert apart(found[name], expected) < 2e-5, name
            assert apart(found[f"{name}, micro"], expected) < 2e-5, name
    assert "norm of the gradient is" in four[1]["diverged"]


def test_going_on_in_the_same_layout_is_exact(four):
    for found in four:
        for name in LAYOUTS:
            assert found[f"{name}, again"] == found[name]


def test_the_log_is_that_of_one_process(root, four, alone):
    expected = read_log(alone[1] / "log.jsonl")
    found = read_log(root / "ep2-dp2" / "log.jsonl")
    assert [e.keys() for e in found] == [e.keys() for e in expected]
    for mine, theirs in zip(found, expected, strict=True):
        assert abs(mine["loss"] - theirs["loss"]) < 1e-4
        assert mine["tokens"] == theirs["tokens"]


def whole_state(folder):
    return load_whole(folder).state_dict()


def test_saved_on_four_read_on_two_on_one_and_as_files(root, four, alone):
    expected = alone[0]
    on_two = run(resumed, 2, args=(str(root), (2, 1, 1), "zb1p", 2), timeout=300).results
    on_one = run(resumed, 1, args=(str(root), (1, 1, 1), "", 1), timeout=300).results
    for found in (*on_two, *on_one):
        assert apart(found, expected.history.to_dict()) < 2e-5
    own = expected.model.state_dict()
    for folder in ("ep2-dp2", "pp2-ep2", "dp4", "on2", "on1", "ep2-dp2-again"):
        state = whole_state(root / folder / "step_00000006")
        assert state.keys() == own.keys()
        for name, tensor in state.items():
            assert torch.allclose(tensor, own[name], atol=2e-5), (folder, name)
        averaged = load_whole(root / folder / "step_00000006", averaged=True)
        for name, tensor in averaged.named_parameters():
            assert torch.allclose(tensor, expected.average.tensors[name], atol=2e-5)
    read = load_whole(root / "pp2-ep2" / "step_00000006")
    save_hf(read, root / "hf")
    again = load_hf(root / "hf").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in read.state_dict().items())


def test_damage_and_other_kinds_are_told(root, four, alone):
    _, folder = alone
    with pytest.raises(CheckpointError, match="was not written by several processes"):
        read_state(folder / "step_00000006")
    other = Trainer(model(), settings(), Rows())
    with pytest.raises(CheckpointError, match="several processes: go on with 'torchrun"):
        other.resume(root / "dp4" / "step_00000006")
    state = json.loads((root / "dp4" / "step_00000003" / "state.json").read_text())
    name = next(n for n in state["files"] if n.endswith(".distcp"))
    path = root / "dp4" / "step_00000003" / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"{name} is missing or damaged; delete this folder"):
        load_whole(root / "dp4" / "step_00000003")
