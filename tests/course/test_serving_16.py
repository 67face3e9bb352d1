"""Notebook 16: what its exercises ask for is what the library and DeepSeek's program do."""

import gzip
import json
import math
from pathlib import Path

import pytest
import torch

from minids3.course.exercises.nb16_serving.decode import attend_pages
from minids3.course.exercises.nb16_serving.experts import _with_tensors, place_experts
from minids3.course.exercises.nb16_serving.merge import merge_splits
from minids3.course.exercises.nb16_serving.price import serving_cost
from minids3.course.exercises.nb16_serving.store import store_rows
from minids3.infer.paged import Pass, Piece
from minids3.ref.attention import latent_decode_ref, merge_splits_ref
from minids3.sim.prices import OI_DAY

ORACLE = Path(__file__).parents[1] / "sim" / "oracles" / "eplb.json.gz"
CASES = [
    case
    for case in json.loads(gzip.decompress(ORACLE.read_bytes()))["cases"]
    if case["policy"] == "global"
    and case["num_replicas"] > case["num_gpus"]
    and any(map(any, case["weight"]))
]


def test_there_are_enough_cases():
    assert len(CASES) >= 12
    assert max(len(case["weight"][0]) for case in CASES) == 256


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_experts_lie_where_the_original_program_puts_them(case):
    """To the place in float32, as there; in Python's floats two sums may be equal or not."""
    places, gpus = case["num_replicas"], case["num_gpus"]
    for load, wanted in zip(case["weight"], case["phy2log"], strict=True):
        assert [e for gpu in _with_tensors(load, places, gpus) for e in gpu] == wanted
        found = place_experts(load, places, gpus)
        count = torch.tensor(wanted).bincount(minlength=len(load))
        assert torch.tensor(found).flatten().bincount(minlength=len(load)).equal(count)
        share = torch.tensor(load, dtype=torch.float64) / count
        busiest = [
            share[torch.tensor(x).view(gpus, -1)].sum(1).max().item() for x in (found, wanted)
        ]
        assert busiest[0] == pytest.approx(busiest[1], rel=1e-6)


def test_rows_go_where_the_engine_puts_them():
    torch.manual_seed(0)
    lengths, counts, tables, free = [5, 4, 0], [2, 1, 6], [[3, 1], [7], []], [2, 9, 4, 5]
    rows, pages = torch.randn(9, 3), torch.zeros(10, 4, 3)
    got, made, left = store_rows(pages, tables, lengths, rows, counts, free)
    assert (made, left) == ([[3, 1], [7, 2], [9, 4]], [5])
    pieces = [Piece([0] * n, s, t) for n, s, t in zip(counts, lengths, made, strict=True)]
    batch = Pass.of(pieces, 4, torch.device("cpu"))
    memory = torch.zeros(10, 4, 3)
    order = torch.cat([torch.arange(9)[sum(counts[:i]) :][:n] for i, n in enumerate(counts)])
    given = torch.empty(9, 3)
    for i, place in enumerate(batch.order):
        given[place] = rows[order][sum(counts[:i]) :][: counts[i]]
    batch.store(memory.flatten(0, 1), given)
    assert torch.equal(memory, got)


def test_attention_and_merge_are_the_librarys():
    torch.manual_seed(1)
    q, pages = torch.randn(3, 2, 10), torch.randn(9, 4, 10)
    tables, lengths = torch.randint(9, (3, 4)), torch.tensor([16, 3, 9])
    wanted = latent_decode_ref(q[:, None], pages, tables, lengths, rank=8, scale=0.3)[:, 0]
    torch.testing.assert_close(attend_pages(q, pages, tables, lengths, 8, 0.3), wanted)
    out, lse = torch.randn(2, 5, 8), 9 * torch.randn(2, 5)
    lse[0, 2] = lse[1] = -math.inf
    merged, whole = merge_splits(out, lse)
    torch.testing.assert_close(merged, merge_splits_ref(out, lse))
    torch.testing.assert_close(whole, lse.logsumexp(-1))


def test_the_published_day():
    day = OI_DAY
    found = serving_cost(
        day.tokens_hit, day.tokens_miss, day.tokens_out, day.rate_in, day.rate_out, 8, 2.0
    )
    wanted = (day.prefill_nodes, day.decode_nodes, day.cost_in, day.cost_miss, day.cost_out)
    assert found == pytest.approx(wanted)
    assert found == pytest.approx((95.5, 131.4, 0.060, 0.138, 0.300), rel=0.01)
