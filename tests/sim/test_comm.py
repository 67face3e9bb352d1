"""Bytes, copies and times of expert parallelism, against hand counts and published figures."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from minids3.sim.comm import (
    CONVENTIONS,
    DEEPEP,
    DEEPEP_LOW_LATENCY,
    INFINIBAND,
    ISCA_BOUND,
    NVLINK_H100,
    NVLINK_H800,
    PUBLISHED_TRACE,
    LayerLoad,
    count_copies,
    decode_bound,
    expected_nodes,
    expert_layer,
    most_nodes,
    random_routing,
    row_bytes,
)


def test_links():
    assert (NVLINK_H800.nominal, NVLINK_H800.effective) == (200e9, 160e9)
    assert (INFINIBAND.nominal, INFINIBAND.effective) == (50e9, 40e9)
    assert (NVLINK_H100.nominal, NVLINK_H100.effective) == (450e9, 360e9)
    assert INFINIBAND.seconds(80e9) == 2
    assert INFINIBAND.seconds(80e9, nominal=True) == 1.6


def test_bytes_of_a_row():
    assert row_bytes(7168, "fp8") == 7168 * 2 * (1 + 4 / 128) / 2 == 7392
    assert row_bytes(7168, "fp8", scale_block=None) == 7168
    assert row_bytes(7168, "bf16") == 14_336
    assert (DEEPEP.dispatch, DEEPEP.combine, DEEPEP.counted) == (7392, 14_336, "node")
    low = DEEPEP_LOW_LATENCY
    assert (low.dispatch, low.combine, low.counted) == (7168 + 56 * 4 + 16, 14_336, "expert")
    assert low.dispatch == 7408
    assert DEEPEP.token_bytes(4) == 4 * 21_728
    assert len({convention.source for convention in CONVENTIONS}) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((7168, "fp16"), "choose 'fp8' or 'bf16'"),
        ((100, "fp8"), "width=100 is no multiple of scale_block=128"),
        ((128, "fp8", 0), "scale_block=0"),
        ((0, "bf16"), "width=0"),
    ],
)
def test_rows_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        row_bytes(*arguments)


def test_bound_on_decoding():
    layer, token = decode_bound()
    assert layer == pytest.approx(120.96e-6)  # (1 + 2) x 32 x 9 x 7,000 / 50 GB/s
    assert token == pytest.approx(14.757e-3, abs=1e-6)
    assert int(1 / token) == 67
    assert ISCA_BOUND.token_bytes(9) == 189_000


# copies -------------------------------------------------------------------------------------------


def test_expected_nodes_is_exact():
    """Against all choices of 3 of 8 experts on 4 nodes, one by one."""
    choices = list(itertools.combinations(range(8), 3))
    mean = sum(len({e // 2 for e in choice}) for choice in choices) / len(choices)
    assert expected_nodes(8, 4, 3) == pytest.approx(mean, rel=1e-12)
    assert expected_nodes() == pytest.approx(5.295, abs=5e-4)
    assert expected_nodes(256, 8, 1) == pytest.approx(1)
    assert expected_nodes(256, 8, 256) == 8
    assert expected_nodes(256, 1, 8) == 1


@pytest.mark.parametrize(("limit", "mean"), [(0, 5.295), (4, 3.965), (3, 2.999), (2, 2.0)])
def test_nodes_of_random_tokens(limit, mean):
    experts = random_routing(40_000, limit=limit, seed=3)
    assert experts.shape == (40_000, 8)
    assert (np.diff(np.sort(experts, axis=1)) > 0).all()  # eight different ones
    nodes = np.array([len(set(row)) for row in (experts // 32).tolist()])
    assert nodes.max() <= most_nodes(limit=limit)
    error = nodes.std() / len(nodes) ** 0.5  # 0.0045 without a limit, at most 0.001 with one
    assert nodes.mean() == pytest.approx(mean, abs=3 * error + 5e-4)
    assert error < (0.001 if limit else 0.005)
    assert count_copies(experts).nodes_per_token == nodes.mean()


def test_the_limit_takes_the_best_nodes():
    """A few tokens routed with plain loops, from the same scores."""
    n_experts, n_nodes, top_k, limit = 16, 4, 3, 2
    experts = random_routing(50, n_experts, n_nodes, top_k, limit, seed=7)
    logits = np.random.default_rng(7).standard_normal((50, n_experts))
    for row, chosen in zip(1 / (1 + np.exp(-logits)), experts, strict=True):
        sums = [sum(sorted(row[4 * n : 4 * n + 4])[-2:]) for n in range(n_nodes)]
        best = sorted(range(n_nodes), key=sums.__getitem__)[-limit:]
        allowed = [e for e in range(n_experts) if e // 4 in best]
        assert set(chosen) == set(sorted(allowed, key=row.__getitem__)[-top_k:])


def test_worst_case():
    assert most_nodes() == 8
    assert [most_nodes(limit=m) for m in (4, 3, 2, 1)] == [4, 3, 2, 1]
    assert most_nodes(n_nodes=4, limit=4) == most_nodes(n_nodes=4) == 4  # EP32: it cannot bind
    assert most_nodes(top_k=2, limit=4) == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: expected_nodes(256, 7), "256 experts cannot be shared equally by 7"),
        (lambda: expected_nodes(256, 8, 0), "top_k=0"),
        (lambda: most_nodes(limit=9), "limit=9 must be between 0 .no limit. and 8"),
        (lambda: random_routing(1, 16, 8, 8, 2), "limit=2 nodes hold fewer than top_k=8"),
        (lambda: count_copies(np.zeros(3, int)), r"shape \(3,\)"),
        (lambda: count_copies(np.full((2, 2), 256)), "between 0 and 255"),
        (lambda: count_copies(np.zeros((2, 1), int), home=[0, 64]), "between 0 and 63"),
        (lambda: count_copies(np.zeros((2, 1), int), home=[0]), "each of 2 tokens"),
        (lambda: count_copies(np.zeros((2, 1), int), n_experts=100), "100 experts .* 64"),
    ],
)
def test_sizes_that_do_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_copies_by_hand():
    # 2 nodes of 2 GPUs, one expert a GPU. A token of GPU 0 wants experts 0, 1 and 3: it stays on
    # GPU 0, goes to GPU 1 over NVLink, and to node 1, where it enters at GPU 2 and is forwarded.
    copies = count_copies(np.array([[0, 1, 3]]), [0], n_experts=4, n_nodes=2, gpus_per_node=2)
    assert (copies.nodes, copies.remote_nodes) == (2, 1)
    assert (copies.gpus, copies.nvlink) == (3, 2)
    assert (copies.experts, copies.remote_experts, copies.local_experts) == (3, 1, 1)
    assert copies.by_gpu.tolist() == [1, 1, 0, 1]
    assert (copies.rows(DEEPEP), copies.rows(DEEPEP_LOW_LATENCY)) == (2, 3)
    # From GPU 1 the same experts: to GPU 0, and straight to GPU 3, its peer.
    copies = count_copies(np.array([[0, 1, 3]]), [1], n_experts=4, n_nodes=2, gpus_per_node=2)
    assert (copies.remote_nodes, copies.nvlink) == (1, 1)


def test_copies_with_plain_loops():
    experts = random_routing(300, 64, 4, 6, seed=5)
    home = np.random.default_rng(0).integers(0, 16, 300)
    copies = count_copies(experts, home, n_experts=64, n_nodes=4, gpus_per_node=4)
    nodes = remote = gpus = nvlink = far = near = 0
    for row, own in zip(experts.tolist(), home.tolist(), strict=True):
        on = {e // 4 for e in row}
        nodes += len({g // 4 for g in on})
        remote += len({g // 4 for g in on} - {own // 4})
        gpus += len(on)
        nvlink += sum(g % 4 != own % 4 for g in on)
        far += sum(e // 16 != own // 4 for e in row)
        near += sum(e // 16 == own // 4 and e // 4 != own for e in row)
    found = (copies.nodes, copies.remote_nodes, copies.gpus, copies.nvlink)
    assert found == (nodes, remote, gpus, nvlink)
    assert (copies.remote_experts, copies.local_experts) == (far, near)
    assert copies.by_gpu.sum() == gpus


def test_one_hot_expert_makes_one_gpu_wait():
    even = random_routing(2000, limit=4)
    hot = even.copy()
    hot[:, 0] = np.where((hot == 0).any(1), hot[:, 0], 0)  # expert 0 takes part everywhere
    assert count_copies(even).imbalance < 1.2
    copies = count_copies(hot)
    assert copies.by_gpu.argmax() == 0
    assert copies.by_gpu[0] == 2000
    assert copies.imbalance > 7


# time ---------------------------------------------------------------------------------------------


def test_time_of_a_layer_by_hand():
    load = LayerLoad(infiniband=4e9, nvlink=8e9, compute=0.1)
    assert load.communication(40e9, 160e9) == 0.1
    assert load.communication(40e9, 40e9) == 0.2
    assert load.nvlink_enough(40e9) == 80e9
    assert load.communication(40e9, 80e9) == 0.1
    assert load.seconds(40e9, 40e9, hidden=True) == 0.2
    assert load.seconds(40e9, 40e9, hidden=False) == pytest.approx(0.3)
    assert load.seconds(80e9, 320e9, hidden=True) == 0.1
    assert (load.infiniband_hidden, load.nvlink_hidden) == (40e9, 80e9)
    with pytest.raises(ValueError, match="greater than 0"):
        load.communication(0, 1)


def test_load_of_a_layer_is_rows_times_bytes():
    copies = count_copies(random_routing(4096, limit=4))
    load = expert_layer(copies, tokens=4096)
    assert load.infiniband == 2 * copies.remote_nodes * 21_728
    assert load.nvlink == 2 * copies.nvlink * 21_728
    assert load.compute == pytest.approx(118.2e-3 / 4)
    # Half the tokens are half the bytes; computing is given.
    half = expert_layer(copies, tokens=2048, compute=1.0)
    assert half == LayerLoad(load.infiniband / 2, load.nvlink / 2, 1.0)
    direct = expert_layer(copies, convention=DEEPEP_LOW_LATENCY)
    assert direct.infiniband == 2 * copies.remote_experts * (7408 + 14_336)


def test_why_the_cut_nvlink_was_enough():
    """With V3's routing InfiniBand decides on both machines, and it hides behind computing."""
    load = expert_layer(count_copies(random_routing(20_000, limit=4)))
    on = {
        link.name: load.communication(40e9, link.effective) for link in (NVLINK_H800, NVLINK_H100)
    }
    assert len(set(on.values())) == 1
    assert load.nvlink_enough(40e9) == pytest.approx(75.7e9, rel=0.01)
    assert load.infiniband_hidden == pytest.approx(20.9e9, rel=0.01)
    # Controls: no limit costs a third more InfiniBand; BF16 dispatch another third.
    free = expert_layer(count_copies(random_routing(20_000)))
    assert free.infiniband / load.infiniband == pytest.approx(5.295 / 3.965, rel=0.01)
    bf16 = replace(DEEPEP, dispatch=row_bytes(7168, "bf16"))
    wide = expert_layer(count_copies(random_routing(20_000, limit=4)), convention=bf16)
    assert wide.infiniband / load.infiniband == pytest.approx(28_672 / 21_728)
    # Without forwarding a row crosses for each expert, not for each node.
    direct = replace(DEEPEP, counted="expert")
    far = expert_layer(count_copies(random_routing(20_000, limit=4)), convention=direct)
    assert far.infiniband / load.infiniband == pytest.approx(8 / 3.965, rel=0.01)
    assert far.communication(40e9, 160e9) > load.compute


def test_published_trace():
    trace = PUBLISHED_TRACE
    assert trace.exposed == pytest.approx(10.8e-3)
    assert trace.exposed / trace.layers == pytest.approx(2.7e-3)
    assert trace.hidden_share == pytest.approx(1 - 10.8 / 114.5)
    assert round(trace.ratio, 2) == 0.88
    assert round(trace.transfer_ratio, 2) == 0.62
    parts = trace.dispatch + trace.combine + trace.waiting
    assert math.isclose(trace.communication - parts, 1.5e-3, rel_tol=1e-6)


def test_published_combine_ran_at_33_of_40_gb_a_second():
    call = PUBLISHED_TRACE.combine / PUBLISHED_TRACE.calls
    assert 4096 * 3.5 * DEEPEP.combine / call / 1e9 == pytest.approx(33.3, abs=0.1)
