"""Schedules over tokens, the published ones among them, and what the settings make of them."""

import math

import pytest

from minids3.train.schedule import Schedule
from minids3.train.settings import Position, TrainConfig

T = 10**12
# TR section 4.2. Batches of 3,072 sequences grow to 15,360 over the first 469B tokens; the report
# does not say how, linear is assumed. Warm-up is 2,000 steps: 2,000 x 3,072 x 4,096 tokens and the
# little by which the batch has grown by then.
WARM_UP = 2000 * 3072 * 4096
V3 = {
    "lr": Schedule(
        (
            (WARM_UP, 2.2e-4, "linear"),
            (10 * T, 2.2e-4, "constant"),
            (14.3 * T, 2.2e-5, "cosine"),
            (14.633 * T, 2.2e-5, "constant"),
            (14.8 * T, 7.3e-6, "constant"),
        )
    ),
    "batch_size": Schedule(((469e9, 15360, "linear"), (14.8 * T, 15360, "constant")), start=3072),
    "mtp_weight": Schedule(((10 * T, 0.3), (14.8 * T, 0.1))),
    "bias_update_speed": Schedule(((14.3 * T, 0.001), (14.8 * T, 0.0))),
}


def test_the_published_schedule():
    cfg = TrainConfig(tokens=int(14.8 * T), seq_len=4096, **V3)
    at = {when: cfg.lr_at(0, int(when * T)) for when in (5, 12.15, 14.4, 14.7)}
    assert at[5] == 2.2e-4
    assert at[12.15] == pytest.approx((2.2e-4 + 2.2e-5) / 2)  # half of the cosine
    assert (at[14.4], at[14.7]) == (2.2e-5, 7.3e-6)
    assert [cfg.mtp_weight_at(0, int(t * T)) for t in (9.999, 10)] == [0.3, 0.1]
    assert [cfg.bias_speed_at(0, int(t * T)) for t in (14.2, 14.3)] == [0.001, 0.0]
    assert (cfg.batch_rows(0), cfg.batch_rows(469 * 10**9)) == (3072, 15360)
    assert cfg.batch_rows(int(234.5e9)) == (3072 + 15360) // 2
    # facts: about 15.0K steps of ramp and 227.8K at full size, 242.8K in all.
    assert cfg.total_steps() == pytest.approx(242_800, rel=1e-3)
    ramp = next(p.step for p in cfg.positions() if p.tokens >= 469e9)
    assert ramp == pytest.approx(15_000, rel=2e-3)


def test_shapes_meet_where_phases_meet():
    plan = Schedule(((10, 1.0, "linear"), (20, 1.0, "constant"), (40, 0.2, "cosine"), (50, 0.1)))
    assert [plan(t) for t in (0, 5, 10, 15, 20)] == [0, 0.5, 1, 1, 1]
    assert plan(30) == pytest.approx(0.6)
    assert plan(25) == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2)
    assert plan(39.999) == pytest.approx(0.2, abs=1e-6)
    assert [plan(t) for t in (40, 49, 50, 1e9)] == [0.1] * 4
    assert Schedule(((4, 3.0),))(0) == 3.0


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ((), "at least one"),
        (((0, 1.0),), "one after the other"),
        (((5, 1.0), (5, 2.0)), "one after the other"),
        (((5, 1.0, "exponential"),), "unknown"),
        (((5, float("nan")),), "must be a number"),
        (((5, -1.0),), "must be a number"),
        (((float("nan"), 1.0),), "one after the other"),
    ],
)
def test_impossible_schedules(phases, message):
    with pytest.raises(ValueError, match=message):
        Schedule(phases)


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 2.5}, {"steps": True}, {"steps": 0}, {}, {"steps": 5, "tokens": 10},
        {"steps": 5, "lr": 0}, {"steps": 5, "lr": float("nan")}, {"steps": 5, "lr": "high"},
        {"steps": 5, "moments": "fp8"}, {"steps": 5, "save_every": -5}, {"steps": 5, "keep": 0},
        {"steps": 5, "betas": (0.9,)}, {"steps": 5, "betas": (0.9, 1.0)}, {"steps": 5, "ema": 1.0},
        {"steps": 5, "batch_size": 0}, {"steps": 5, "batch_size": 1.5}, {"steps": 5, "seed": None},
        {"steps": 5, "precision": "int4"}, {"steps": 5, "recompute": "yes"},
        {"steps": 5, "grad_clip": 0}, {"steps": 5, "mtp_weight": -1},
        {"steps": 5, "micro_batch_size": 0}, {"steps": 5, "weight_decay": float("inf")},
        {"tokens": 100, "warmup_steps": 10, "decay_start": 5},
    ],
)  # fmt: skip
def test_impossible_settings(settings):
    with pytest.raises(ValueError, match=r"must be|unknown|give steps|need 0"):
        TrainConfig(**settings)


def test_settings_by_name_and_by_group():
    cfg = TrainConfig(steps=5, lr=1e-3, seed=3)
    assert cfg.lr == cfg.schedule.lr == 1e-3
    assert cfg.replace(lr=2e-3, keep=7).flat() == {**cfg.flat(), "lr": 2e-3, "keep": 7}
    assert TrainConfig.from_flat(cfg.flat()) == cfg
    grown = cfg.replace(
        tokens=1000, batch_size=Schedule(((500, 8, "linear"),), start=2), seq_len=10
    )
    assert (grown.steps, grown.tokens) == (None, 1000)
    assert TrainConfig.from_flat(grown.flat()) == grown
    with pytest.raises(TypeError, match="no setting 'learning_rate'"):
        TrainConfig(steps=5, learning_rate=1.0)
    with pytest.raises(AttributeError, match="no setting 'learning_rate'"):
        _ = cfg.learning_rate
    with pytest.raises(TypeError, match="must be a Rates"):
        TrainConfig(steps=5, schedule=3)


def test_only_the_past_must_agree():
    at = Position(10, 10 * 16 * 128, 160)
    cfg = TrainConfig(steps=100, lr=1e-3, warmup_steps=5, decay_start=50)
    assert cfg.differs_before(cfg.replace(steps=200, eval_every=3, keep=9), at) is None
    assert cfg.differs_before(cfg.replace(decay_start=20), at) is None
    assert cfg.differs_before(cfg.replace(decay_start=8), at) in ("steps", "decay_start")
    assert cfg.differs_before(cfg.replace(warmup_steps=6), at) == "warmup_steps"
    assert cfg.differs_before(cfg.replace(mtp_late_from=10), at) is None
    assert cfg.differs_before(cfg.replace(mtp_late_from=9), at) == "mtp_late_from"
    assert cfg.differs_before(cfg.replace(seed=1), at) == "seed"
    assert cfg.differs_before(cfg.replace(weight_decay=0.0), at) == "weight_decay"
