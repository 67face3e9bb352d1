"""The roofline of a serving step against enumeration, hand calculations and published figures."""

import itertools
from dataclasses import replace

import pytest

from minids3.config import get_config
from minids3.sim import parameters, serving
from minids3.sim.hardware import H100, H800
from minids3.sim.prices import OI_DAY
from minids3.sim.serving import V3_DECODE, V3_PREFILL, Deployment, decode_step, prefill_step

V3 = get_config("v3_671b")
TWIN = parameters.dense_twin(V3)


def met(choices, columns):
    """Mean number of different experts of ``columns`` tokens, every combination counted."""
    sizes = [len(set().union(*some)) for some in itertools.product(choices, repeat=columns)]
    return sum(sizes) / len(sizes)


@pytest.mark.parametrize("columns", [0, 1, 2, 3])
def test_expected_experts_by_enumeration(columns):
    free = list(itertools.combinations(range(5), 2))
    assert serving.expected_experts(columns, 5, 2) == pytest.approx(met(free, columns))
    # Limited to one of three groups of two, every expert is still chosen as often: nothing changes.
    limited = [(0, 1), (2, 3), (4, 5)]
    assert serving.expected_experts(columns, 6, 2) == pytest.approx(met(limited, columns))


def test_an_uneven_choice_meets_fewer_experts():
    uneven = [(0, 1), (0, 1), (0, 2), (3, 4)]
    assert met(uneven, 3) < serving.expected_experts(3, 5, 2) - 0.1


@pytest.mark.parametrize(
    ("nodes", "experts", "top_k"), [(4, 8, 3), (2, 6, 4), (3, 9, 2), (8, 8, 8)]
)
def test_expected_nodes_by_enumeration(nodes, experts, top_k):
    size = experts // nodes
    found = [
        len({e // size for e in some}) for some in itertools.combinations(range(experts), top_k)
    ]
    assert serving.expected_nodes(nodes, experts, top_k) == pytest.approx(sum(found) / len(found))


def test_published_counts_of_nodes():
    assert serving.expected_nodes(8, 256, 8) == pytest.approx(5.295, abs=5e-4)  # [C-nodes]


def test_weights_read_by_one_and_by_all():
    assert serving.weight_bytes_read(V3, 1, "bf16") == 2 * parameters.matmul_parameters(V3)
    norms = sum(p.norms * p.count for p in parameters.components(V3))
    table = V3.vocab_size * V3.hidden_size
    everything = parameters.total_parameters(V3) - table - norms
    assert serving.weight_bytes_read(V3, 10_000, "bf16") == pytest.approx(2 * everything)
    # FP8 halves all but router and head.
    wide = table + 58 * 256 * 7168
    assert serving.weight_bytes_read(V3, 1) == parameters.matmul_parameters(V3) + wide
    assert serving.weight_bytes_read(V3, 0) == 0


def test_a_second_column_is_expensive_at_small_batches_and_nearly_free_from_a_hundred_on():
    def more(batch):
        read = [serving.weight_bytes_read(V3, columns * batch, "bf16") for columns in (1, 2)]
        return round(100 * (read[1] / read[0] - 1))

    # [C-distinct]
    assert [more(b) for b in (1, 2, 4, 8, 16, 64, 100, 128)] == [54, 67, 73, 70, 57, 13, 4, 2]
    assert serving.weight_bytes_read(TWIN, 2) == serving.weight_bytes_read(TWIN, 1)


def test_experts_are_spread_and_replicas_are_places():
    one = parameters.expert_parameters(V3) * 58
    plain = serving.weight_bytes_read(V3, 1e6, gpus=1) - 256 * one
    assert serving.weight_bytes_read(V3, 1e6, gpus=144, places=288) == pytest.approx(
        plain + 2 * one
    )
    held = V3_DECODE.held_bytes()
    assert held == pytest.approx(plain + 2 * one + 2 * V3.vocab_size * V3.hidden_size)
    assert held / 1e9 == pytest.approx(24.2, abs=0.05)


def test_absorbed_attention_and_the_published_bound_of_links():
    assert serving.absorbed_macs(V3) == 61 * 139_264  # [C-absorb]
    tiny = get_config("tiny", num_hidden_layers=3, num_attention_heads=4, head_dim=16)
    assert serving.absorbed_macs(tiny) == 3 * 4 * 2 * 16
    # ISCA section 2: 32 tokens to 9 experts, 7K wide, at 50 GB/s; two of them in 61 layers.
    once = serving.all_to_all_seconds(32, 7000, 9, 50e9)
    assert once == pytest.approx(120.96e-6)
    assert 1 / (2 * 61 * once) == pytest.approx(67, abs=1)


def test_a_decoding_step_by_hand():
    step = decode_step(replace(V3_DECODE, micro_batches=1), batch=64, context=4096)
    expert, attention, dense = 3 * 7168 * 2048, 187_105_280, 3 * 7168 * 18_432
    wide = (129_280 + 58 * 256) * 7168  # head and routers, two bytes each
    # 9,216 tokens meet all 288 places, two of them on each GPU, and the shared expert.
    read = 61 * attention + 3 * dense + 58 * 3 * expert + 2 * wide
    assert step.weights == pytest.approx(read / 3.35e12)
    assert step.matrices == pytest.approx(2 * 64 * 36_624_596_992 / 1979e12, rel=1e-3)
    assert step.cache == pytest.approx(64 * 4096 * 70_272 / 3.35e12)
    assert step.attention == pytest.approx(2 * 64 * 4096 * 61 * 139_264 / 989.4e12)
    assert step.links == pytest.approx(58 * 64 * 9 * 7168 * 3 / 50e9)
    assert step.seconds == pytest.approx(step.weights + step.cache + step.links)
    assert step.tokens_per_second == 64 / step.seconds
    assert step.bound == "links"


def test_micro_batches_hide_the_links_and_read_the_weights_again():
    one, two = (decode_step(replace(V3_DECODE, micro_batches=n), 64, 4096) for n in (1, 2))
    assert two.weights == pytest.approx(2 * one.weights)
    assert {n: t for n, t in one.parts.items() if n != "weights"} == {
        n: t for n, t in two.parts.items() if n != "weights"
    }
    assert two.seconds == max(two.weights + two.cache, two.links) < one.seconds
    alone = decode_step(V3_DECODE, 1, 4096)  # a single sequence cannot be cut in two
    assert alone == decode_step(replace(V3_DECODE, micro_batches=1), 1, 4096)


def test_a_batch_is_free_until_the_multipliers_are_busy_but_not_with_experts():
    dense, moe = Deployment(TWIN), Deployment(V3)
    seconds = {
        b: (decode_step(dense, b, 0).seconds, decode_step(moe, b, 0).seconds) for b in (1, 2, 256)
    }
    assert seconds[2][0] == seconds[256][0] == seconds[1][0]
    assert seconds[2][1] / seconds[1][1] == pytest.approx(1.53, abs=0.01)
    assert seconds[256][1] > 15 * seconds[1][1]
    # FP8 weights: a byte is read in the time of 1979 / 3.35 FLOPs, 2 for each column.
    knee = 1979e12 / 3.35e12 / 2
    assert decode_step(dense, 0.99 * knee, 0).bound == "weights"
    assert decode_step(dense, 1.01 * knee, 0).bound == "matrices"


def test_more_sequences_and_shorter_contexts_give_more_tokens():
    rates = [decode_step(V3_DECODE, b, 4989).tokens_per_second for b in (2, 8, 32, 88)]
    assert rates == sorted(rates)
    rates = [decode_step(V3_DECODE, 4, c).tokens_per_second for c in (131_072, 32_768, 4_096)]
    assert rates == sorted(rates)
    # A batch never makes a token's own cache cheaper: 256 times the sequences, 256 times the time.
    one, many = (decode_step(V3_DECODE, b, 4989) for b in (1, 256))
    assert many.cache == pytest.approx(256 * one.cache)


def test_the_published_day_lies_below_the_bounds():
    # [C-roofline]: 21 tokens a second and user, so 88 sequences a GPU.
    per_gpu = OI_DAY.rate_out / 8
    decode = decode_step(V3_DECODE, per_gpu / 21, OI_DAY.cached_tokens_per_output)
    assert per_gpu / decode.tokens_per_second == pytest.approx(0.47, abs=0.01)
    fresh = OI_DAY.rate_in / 8 * OI_DAY.tokens_miss / OI_DAY.tokens_in
    prefill = prefill_step(V3_PREFILL, 16_384, 2048)
    assert fresh / prefill.tokens_per_second == pytest.approx(0.27, abs=0.01)
    assert decode.bound == prefill.bound == "links"


def test_prefill_by_hand_and_its_long_prompts():
    step = prefill_step(replace(V3_PREFILL, micro_batches=1), 16_384, 2048)
    assert step.attention == pytest.approx(2 * 16_384 * 2048 * 61 * 128 * 320 / 989.4e12)
    assert step.cache == pytest.approx(16_384 * 70_272 / 3.35e12)
    assert step.links == pytest.approx(58 * 16_384 * V3_PREFILL.copies * 7168 * 3 / 50e9)
    assert V3_PREFILL.copies == pytest.approx(3.6142 * 0.75, rel=1e-4)
    assert prefill_step(V3_PREFILL, 16_384, 65_536).bound == "attention"


def test_drafts_read_the_cache_once_and_the_links_twice():
    plain = decode_step(V3_DECODE, 16, 65_536)
    drafted = decode_step(V3_DECODE, 16, 65_536, queries=2, accepted=1.85)
    assert drafted.cache == plain.cache
    assert drafted.attention == 2 * plain.attention
    assert drafted.links == 2 * plain.links
    assert drafted.tokens == 16 * 1.85
    assert drafted.tokens_per_second > plain.tokens_per_second
    # Where the links are the limit a drafted token that fails is paid for in full.
    crowded = [
        decode_step(V3_DECODE, 128, 1024, q, a).tokens_per_second for q, a in ((1, 1), (2, 1.85))
    ]
    assert crowded[1] / crowded[0] == pytest.approx(1.85 / 2)


def test_largest_batch():
    room = 0.9 * 80e9 - V3_DECODE.held_bytes()
    assert serving.largest_batch(V3_DECODE, 131_072) == room // (131_072 * 70_272) == 5
    assert serving.largest_batch(V3_DECODE, 10**6) == 0
    with pytest.raises(ValueError, match=r"673\.0 GB of weights do not fit on a GPU of 80 GB"):
        serving.largest_batch(Deployment(V3), 4096)
    with pytest.raises(ValueError, match="reserve=1 must"):
        serving.largest_batch(V3_DECODE, 4096, reserve=1)


def test_links_within_a_node_and_figures_that_are_missing():
    near = Deployment(V3, gpus=8).link_seconds(1)
    assert near == pytest.approx(58 * 9 * 7168 * 3 / 200e9)
    assert Deployment(V3).link_seconds(1) == Deployment(TWIN, gpus=16).link_seconds(1) == 0
    assert Deployment(V3, gpus=16, copies=3, link=40e9).link_seconds(1) == pytest.approx(
        58 * 3 * 7168 * 3 / 40e9
    )
    with pytest.raises(ValueError, match="H100 has no figure for nic"):
        Deployment(V3, machine=H100, gpus=16).link_seconds(1)
    bare = replace(
        H800, fp8_flops=None, sources={k: v for k, v in H800.sources.items() if k != "fp8_flops"}
    )
    with pytest.raises(ValueError, match="no figure for fp8_flops"):
        decode_step(Deployment(V3, machine=bare), 1, 1)
    assert decode_step(Deployment(V3, machine=bare, weights="bf16"), 1, 1).seconds > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: serving.expected_experts(-1, 8, 2), "columns=-1 must be"),
        (lambda: serving.expected_experts(1, 8, 9), "top_k=9 must lie between 0 and n_experts=8"),
        (lambda: serving.expected_nodes(3, 256, 8), "256 experts cannot be divided .* 3 nodes"),
        (lambda: serving.expected_nodes(2, 8, 9), "top_k=9"),
        (lambda: serving.weight_bytes_read(V3, -1), "columns=-1"),
        (lambda: serving.weight_bytes_read(TWIN, -1), "columns=-1"),
        (lambda: serving.weight_bytes_read(V3, 1, places=255), "places=255 must be .* 256 or more"),
        (lambda: serving.weight_bytes_read(V3, 1, "fp4"), "dtype='fp4'"),
        (lambda: serving.all_to_all_seconds(1, 7168, 9, 0), "bandwidth=0 must be greater than 0"),
        (lambda: Deployment(V3, gpus=0), "gpus=0"),
        (lambda: Deployment(V3, places=100), "places=100"),
        (lambda: Deployment(V3, micro_batches=0), "micro_batches=0"),
        (lambda: Deployment(V3, link=0), "link=0 must be greater than 0"),
        (lambda: Deployment(V3, copies=-1), "copies=-1"),
        (lambda: Deployment(V3, weights="int3"), "dtype='int3'"),
        (lambda: decode_step(V3_DECODE, 0, 1), "batch=0 must be greater than 0"),
        (lambda: decode_step(V3_DECODE, float("nan"), 1), "batch=nan must be a finite number"),
        (lambda: decode_step(V3_DECODE, 1, float("inf")), "context=inf must be a finite number"),
        (lambda: decode_step(V3_DECODE, "1", 1), "batch='1'"),
        (lambda: decode_step(V3_DECODE, 1, 1, queries=0), "queries=0"),
        (lambda: decode_step(V3_DECODE, 1, 1, accepted=1.5), "accepted=1.5 cannot be more than"),
        (lambda: prefill_step(V3_PREFILL, 0, 1), "tokens=0 must be greater than 0"),
        (lambda: prefill_step(V3_PREFILL, 1, -1), "seen=-1"),
        (lambda: serving.largest_batch(V3_DECODE, 0), "context=0"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
