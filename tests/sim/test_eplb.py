"""Placement of experts against DeepSeek's own program, brute force, and what must hold for all."""

import gzip
import hashlib
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from minids3.sim import eplb

ORACLE = json.loads(gzip.decompress((Path(__file__).parent / "oracles/eplb.json.gz").read_bytes()))
CASES = {case["name"]: case for case in ORACLE["cases"]}
SIZES = ("num_replicas", "num_groups", "num_nodes", "num_gpus")


def placed(case, **options):
    return eplb.place(case["weight"], *(case[size] for size in SIZES), **options)


def test_the_oracle_has_both_policies_ties_and_v3s_sizes():
    assert len(CASES) == 40
    assert {case["policy"] for case in CASES.values()} == {"hierarchical", "global"}
    assert {case["num_gpus"] for case in CASES.values()} >= {32, 144, 320}


@pytest.mark.parametrize("name", CASES)
def test_equal_to_the_original_program(name):
    case = CASES[name]
    ours = placed(case)
    assert ours.policy == case["policy"]
    assert ours.phy2log.tolist() == case["phy2log"]
    assert ours.logcnt.tolist() == case["logcnt"]
    assert ours.log2phy.shape[2] == ours.logcnt.max()
    assert ours.max_over_mean(case["weight"]).tolist() == pytest.approx(
        case["gpu_max_over_mean"], abs=6e-7
    )
    if "log2phy_sha256" in case:
        text = json.dumps(ours.log2phy.tolist(), separators=(",", ":"))
        assert hashlib.sha256(text.encode()).hexdigest() == case["log2phy_sha256"]
        assert int(ours.wasted_replicas().sum()) == case["same_gpu_duplicates"]


def draws(seed, count):
    """Random sizes that hold together, and loads with ties, zeros and one hot expert."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        nodes, per_node, groups, size = rng.integers(1, 4, 4).tolist()
        groups *= nodes if rng.random() < 0.5 else 1
        experts, gpus = groups * size, nodes * per_node
        places = -(-experts // gpus) + int(rng.integers(0, 3))
        load = rng.integers(0, 5, (2, experts)).astype(float)
        load[0, rng.integers(experts)] = 400
        load[1, 0] += 1
        yield load, places * gpus, groups, nodes, gpus


def test_every_expert_is_placed_and_the_tables_agree():
    policies = set()
    for load, replicas, groups, nodes, gpus in draws(0, 60):
        ours = eplb.place(load, replicas, groups, nodes, gpus)
        policies.add(ours.policy)
        assert ours.policy == ("global" if groups % nodes else "hierarchical")
        assert (ours.logcnt >= 1).all()
        assert ours.logcnt.sum(1).tolist() == [replicas] * 2
        for layer, expert in itertools.product(range(2), range(load.shape[1])):
            at = ours.log2phy[layer, expert]
            held = (ours.phy2log[layer] == expert).nonzero()[:, 0].tolist()
            assert sorted(at[at >= 0].tolist()) == held
            assert (at[len(held) :] == -1).all()
        assert torch.allclose(ours.gpu_load(load).sum(1), torch.tensor(load).sum(1))
        assert (ours.max_over_mean(load) >= 1 - 1e-9).all()
    assert policies == {"global", "hierarchical"}


def test_hierarchical_keeps_a_group_on_one_node_and_global_does_not():
    load = torch.rand(3, 32, generator=torch.Generator().manual_seed(0))
    node = torch.arange(40) // 10

    def nodes_of_group(placement, layer, group):
        return set(node[placement.phy2log[layer] // 4 == group].tolist())

    near = eplb.place(load, 40, 8, 4, 8)
    far = eplb.place(load, 40, 8, 4, 8, policy="global")
    spread = [(layer, group) for layer in range(3) for group in range(8)]
    assert near.policy == "hierarchical"
    assert all(len(nodes_of_group(near, *at)) == 1 for at in spread)
    assert (far.policy, far.reason) == ("global", "asked for")
    assert sum(len(nodes_of_group(far, *at)) > 1 for at in spread) > 12


def compositions(total, parts):
    """Every way to write ``total`` as ``parts`` positive numbers."""
    for cuts in itertools.combinations(range(1, total), parts - 1):
        yield [b - a for a, b in itertools.pairwise((0, *cuts, total))]


def test_greedy_replication_is_optimal():
    rng = np.random.default_rng(1)
    for experts, replicas in [(2, 5), (3, 7), (4, 9), (5, 8), (6, 10)]:
        for load in rng.integers(0, 40, (20, experts)).astype(float):
            expert_of, count = eplb.replicate(load, replicas)
            assert count == [expert_of.count(e) for e in range(experts)]
            assert expert_of[:experts] == list(range(experts))
            best = min(
                max(w / c for w, c in zip(load, some, strict=True))
                for some in compositions(replicas, experts)
            )
            assert max(load / count) == pytest.approx(best)


def test_packing_by_hand_and_where_the_heuristic_falls_short():
    # 9 to pack 0, 7 to 1, 6 to 1 (13, full), 5 to 0 (14).
    assert eplb.pack([5.0, 9.0, 7.0, 6.0], 2) == [[1, 0], [2, 3]]
    assert eplb.pack([1.0, 1.0, 1.0, 1.0], 2) == [[0, 2], [1, 3]]  # ties: the first item and pack
    assert eplb.pack([1.0, 9.0, 5.0], 3) == [[0], [1], [2]]  # room for one: nothing to choose
    load = [3.0, 3.0, 2.0, 2.0, 2.0, 0.0]
    heaviest = max(sum(load[i] for i in one) for one in eplb.pack(load, 2))
    assert heaviest == 7  # 3 + 3 + 0 against 2 + 2 + 2 would be 6


def test_no_load_puts_every_additional_replica_on_expert_0():
    ours = eplb.place([[0] * 8] * 2, 12, 4, 3, 6)
    assert ours.logcnt.tolist() == [[5, 1, 1, 1, 1, 1, 1, 1]] * 2
    assert ours.max_over_mean([[0] * 8] * 2).tolist() == [0, 0]


def test_one_place_per_gpu_keeps_the_order():
    load = torch.tensor([[1.0, 8.0, 2.0, 3.0]])
    ours = eplb.place(load, 6, 1, 1, 6)
    assert ours.phy2log.tolist() == [[0, 1, 2, 3, 1, 1]]  # 8, then 4: still more than 3
    assert ours.gpu_load(load).tolist() == [[1, 8 / 3, 2, 3, 8 / 3, 8 / 3]]


def test_replicas_that_share_a_gpu_are_counted():
    # Expert 0 gets three of four places: two of them are on one GPU, and one of those is wasted.
    ours = eplb.place([[9, 1]], 4, 1, 1, 2)
    assert ours.phy2log.tolist() == [[0, 0, 0, 1]]
    assert ours.wasted_replicas().tolist() == [1]
    assert ours.gpu_load([[9, 1]]).tolist() == [[6, 4]]
    wasteful = sum(bool(placed(case).wasted_replicas().any()) for case in CASES.values())
    assert wasteful == 24  # 25 with the sort of the program as published


def test_what_is_global_without_being_asked_says_so():
    load = [[1.0] * 256]
    prefill = eplb.place(load, 288, 8, 4, 32)
    assert (prefill.policy, prefill.reason) == ("hierarchical", "8 groups of experts on 4 nodes")
    for replicas, nodes, gpus in ((288, 18, 144), (320, 40, 320)):
        ours = eplb.place(load, replicas, 8, nodes, gpus)
        assert ours.policy == "global"
        assert f"8 groups cannot be divided among {nodes} nodes" in ours.reason


def test_before_and_after_on_a_skewed_load():
    case = CASES["v3_prefill32_hier_zipf"]
    before = eplb.in_order(len(case["weight"]), 256, 32)
    assert before.policy == "in order"
    assert before.phy2log[0].tolist() == list(range(256))
    by_hand = [np.array(w).reshape(32, 8).sum(1) for w in case["weight"]]
    assert before.max_over_mean(case["weight"]).tolist() == pytest.approx(
        [g.max() / g.mean() for g in by_hand]
    )
    assert (
        before.max_over_mean(case["weight"]) > 3 * placed(case).max_over_mean(case["weight"])
    ).all()


def test_a_placement_may_be_judged_by_other_loads():
    ours = eplb.place([[9, 1, 1, 1]], 6, 1, 1, 2)
    later = [[1, 9, 1, 1]]
    assert math.isclose(float(ours.gpu_load(later).sum()), 12)
    assert ours.max_over_mean(later) > ours.max_over_mean([[9, 1, 1, 1]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"load": [[1, -1, 0, 0]]}, "0 or more: -1.0 at layer 0, expert 1"),
        ({"load": [[1, 2, 3, 4], [1, 1, float("nan"), 1]]}, "nan at layer 1, expert 2"),
        ({"load": [[1e39, 0, 0, 0]]}, "inf at layer 0, expert 0"),
        ({"load": [[3e38, 3e38, 0, 0]]}, "too large to be added up"),
        ({"load": [1, 2, 3, 4]}, r"shape \[layers, experts\].*of shape \[4\]"),
        ({"load": []}, "at least one"),
        ({"load": [[1j, 0, 0, 0]]}, "real numbers"),
        ({"load": "loads"}, "must be numbers"),
        ({"load": [[1, 2], [1]]}, "must be numbers"),
        ({"num_replicas": 3}, "less than the 4 experts"),
        ({"num_replicas": 9}, "9 replicas cannot be divided equally among 4 GPUs"),
        ({"num_gpus": 0}, "num_gpus=0 must be a whole number, 1 or more"),
        ({"num_nodes": 2.0}, "num_nodes=2.0 must be"),
        ({"num_groups": True}, "num_groups=True must be"),
        ({"num_groups": 8}, "4 experts cannot be divided equally among 8 groups"),
        ({"num_groups": 3, "policy": "hierarchical"}, "3 groups cannot be divided .* 2 nodes"),
        ({"num_groups": 3, "num_nodes": 3}, "4 experts cannot be divided equally among 3 groups"),
        ({"num_nodes": 4, "num_gpus": 2, "num_groups": 4}, "2 GPUs cannot be divided .* 4 nodes"),
        ({"policy": "local"}, "choose 'auto', 'hierarchical' or 'global'"),
    ],
)
def test_bad_input(change, message):
    good = {"load": [[1, 2, 3, 4]], "num_replicas": 8, "num_groups": 2, "num_nodes": 2}
    with pytest.raises(ValueError, match=message):
        eplb.place(**(good | {"num_gpus": 4} | change))


def test_bad_input_elsewhere():
    ours = eplb.place([[1, 2, 3, 4]], 8, 2, 2, 4)
    with pytest.raises(ValueError, match="do not fit this placement of 1 layers with 4 experts"):
        ours.max_over_mean([[1, 2, 3]])
    with pytest.raises(ValueError, match="3 items cannot be divided equally among 2 packs"):
        eplb.pack([1.0, 2.0, 3.0], 2)
    with pytest.raises(ValueError, match=r"shape \[experts\]"):
        eplb.replicate([[1.0, 2.0]], 3)
    with pytest.raises(ValueError, match="6 experts cannot be divided equally among 4 GPUs"):
        eplb.in_order(1, 6, 4)
