"""The benchmark of the kernels runs everywhere; only a GPU times it."""

import pytest
import torch

from minids3.bench import kernel_shapes, kernels
from minids3.bench.kernel_cases import Case, Setting, cases


def test_every_case_is_right_and_every_peer_agrees(device):
    torch.manual_seed(0)
    with torch.no_grad():
        for case in cases(Setting(device, torch.float32, full=False)):
            result = kernels.measure(case, timed=False, rounds=1)
            assert result["correct"], kernels.row(result)
            for name, peer in case.peers.items():
                if name == "device copy" or case.name.startswith("FP8"):  # peers without FP8
                    continue
                value = case.value(peer())
                assert kernels._worst(value, case.truth()) <= 2 * case.bound, (case.name, name)


def test_measured_counts_are_a_gates():
    for counts, *_ in kernel_shapes.GROUPED.measured:
        mean = 8192 / len(counts)
        assert sum(counts) == 8192
        assert counts.count(0) == 1
        assert mean / 3 < min(c for c in counts if c) < mean < max(counts) < 2 * mean


def test_a_wrong_kernel_and_a_failing_one_are_reported():
    wrong = Case("w", "2", "memory", 8, lambda: torch.ones(2), lambda: torch.zeros(2) + 2, 1e-5)
    result = kernels.measure(wrong, timed=False, rounds=1)
    assert not result["correct"]
    assert "WRONG" in kernels.row(result)

    def fails():
        raise RuntimeError("out of registers")

    broken = Case("b", "2", "product", 8, fails, lambda: torch.zeros(2), 1e-5)
    assert "FAILED RuntimeError: out of registers" in kernels.row(
        kernels.measure(broken, timed=False, rounds=1)
    )


def test_a_timed_row_names_rate_and_ratios():
    result = {
        "name": "add",
        "shape": "4",
        "error": 0.0,
        "correct": True,
        "unit": "GB/s",
        "rate": {"ours": 2000.0, "device copy": 2100.0},
        "ratio": {"device copy": 0.95},
        "peers_failed": {"torch.compile": "no compiler"},
    }
    text = kernels.row(result)
    assert "2,000 GB/s" in text
    assert "0.95x device copy" in text
    assert "torch.compile does not run: no compiler" in text


@pytest.mark.gpu
@pytest.mark.slow
def test_on_a_gpu_every_kernel_is_right_and_timed():
    report = kernels.run("cuda", rounds=1)
    assert all(r["correct"] for r in report["results"])
    assert all(r["rate"]["ours"] > 0 for r in report["results"])
