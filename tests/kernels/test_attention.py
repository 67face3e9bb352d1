"""Decoding over pages of latents: the kernels against float64, and what they must not read."""

import itertools
import math

import pytest
import torch

from minids3.kernels.attention import latent_decode, splits_for
from minids3.nn import LatentAttention
from minids3.ops import attention as ops
from minids3.ref.attention import (
    latent_decode_ref,
    merge_splits_ref,
    pack_latent_ref,
    packed_bytes,
    unpack_latent_ref,
)
from small_models import latent_model

SCALE = 0.3


def case(lengths, queries=1, heads=3, rank=24, rope=4, page=4, packed=False, seed=0):
    """Queries, poisoned pages in random order, table and lengths; keys ``[B][S, C + R]``."""
    generator = torch.Generator().manual_seed(seed)
    most = max(1, -(-max(lengths) // page)) + 1
    order = (1 + torch.randperm(len(lengths) * most, generator=generator)).view(len(lengths), most)
    q = torch.randn(len(lengths), queries, heads, rank + rope, generator=generator)
    pages = torch.full((len(lengths) * most + 1, page, rank + rope), float("nan"))
    if packed:
        pages = torch.full((*pages.shape[:2], packed_bytes(rank, rope)), 255, dtype=torch.uint8)
    keys = []
    for row, length in zip(order, lengths, strict=True):
        rows = torch.randn(length, rank + rope, generator=generator)
        stored = pack_latent_ref(rows, rank) if packed else rows
        keys.append(unpack_latent_ref(stored, rank) if packed else rows)
        for s in range(length):
            pages[row[s // page], s % page] = stored[s]
    used = -(-torch.tensor(lengths) // page)
    table = order.masked_fill(torch.arange(most) >= used[:, None], 10**6)  # not to be followed
    return q, pages, table.int(), torch.tensor(lengths, dtype=torch.int32), keys


def truth(q, keys, rank, scale=SCALE):
    """One query after the other, in float64; zeros where there is nothing to see."""
    out = torch.zeros(*q.shape[:-1], rank, dtype=torch.float64)
    for b, rows in enumerate(keys):
        rows = rows.double()
        for t in range(q.shape[1]):
            seen = rows[: max(0, len(rows) - q.shape[1] + t + 1)]
            if len(seen):
                weights = (q[b, t].double() @ seen.T * scale).softmax(-1)
                out[b, t] = weights @ seen[:, :rank]
    return out


LENGTHS = [[1], [5], [40], [1, 17, 33], [3, 0, 42]]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("queries", [1, 3])
def test_reference(lengths, queries):
    q, pages, table, lengths_, keys = case(lengths, queries)
    got = latent_decode_ref(q, pages, table, lengths_, rank=24, scale=SCALE)
    torch.testing.assert_close(got.double(), truth(q, keys, 24), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize(("queries", "splits"), [(1, 1), (1, 4), (2, 2), (6, 8)])
def test_kernel(device, guard, lengths, queries, splits):
    q, pages, table, lengths_, keys = case(lengths, queries, heads=3)
    inputs = [t.to(device) for t in (q, pages, table, lengths_)]
    got = latent_decode(*inputs, rank=24, scale=SCALE, splits=splits)
    assert guard.intact()
    torch.testing.assert_close(got.cpu().double(), truth(q, keys, 24), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("rank", "rope", "heads", "page"), [(7, 2, 1, 1), (64, 32, 20, 16)])
def test_other_widths(device, rank, rope, heads, page):
    q, pages, table, lengths, keys = case([9, 21], 2, heads, rank, rope, page)
    inputs = [t.to(device) for t in (q, pages, table.long(), lengths.long())]
    got = latent_decode(*inputs, rank=rank, scale=SCALE)
    torch.testing.assert_close(got.cpu().double(), truth(q, keys, rank), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rank", [128, 384])
@pytest.mark.parametrize("queries", [1, 2])
def test_lines_of_fp8(device, rank, queries):
    q, pages, table, lengths, keys = case([19, 2], queries, 2, rank, 6, packed=True)
    want = truth(q, keys, rank, 0.05)
    ref = latent_decode_ref(q, pages, table, lengths, rank=rank, scale=0.05)
    torch.testing.assert_close(ref.double(), want, rtol=1e-5, atol=1e-5)
    inputs = [t.to(device) for t in (q, pages, table, lengths)]
    got = latent_decode(*inputs, rank=rank, scale=0.05, splits=2)
    torch.testing.assert_close(got.cpu().double(), want, rtol=1e-5, atol=1e-5)


def test_large_scores_do_not_overflow(device):
    q, pages, table, lengths, keys = case([37], 2)
    q = q * 300
    inputs = [t.to(device) for t in (q, pages, table, lengths)]
    got = latent_decode(*inputs, rank=24, scale=1.0, splits=4)
    torch.testing.assert_close(got.cpu().double(), truth(q, keys, 24, 1.0), rtol=1e-4, atol=1e-4)


def test_a_line_of_v3_has_656_bytes():
    assert packed_bytes(512, 64) == 656
    latent = torch.randn(5, 3, 576)
    lines = pack_latent_ref(latent, 512)
    assert lines.shape == (5, 3, 656)
    assert lines.dtype == torch.uint8
    back = unpack_latent_ref(lines, 512)
    assert torch.equal(back[..., 512:], latent[..., 512:].bfloat16().float())
    error = (back - latent)[..., :512].unflatten(-1, (4, 128)).abs().amax(-1)
    largest = latent[..., :512].unflatten(-1, (4, 128)).abs().amax(-1)
    assert bool((error <= largest / 448 * 16).all())  # half a step of E4M3 in the top binade
    assert bool((error > 0).any())
    for rank, rope in ((64, 16), (0, 16), (192, 16), (128, 3)):
        with pytest.raises(ValueError, match="no FP8 line"):
            packed_bytes(rank, rope)


def parts_of(x, values, bounds, base=math.e):
    """Softmax of each part of the keys, and the logarithm of its sum of exponentials."""
    out, lse = [], []
    for a, b in itertools.pairwise(bounds):
        part = x[a:b]
        if a == b:
            out.append(torch.full((values.shape[1],), float("nan"), dtype=x.dtype))
            lse.append(torch.tensor(-math.inf, dtype=x.dtype))
        else:
            out.append(part.softmax(0) @ values[a:b])
            lse.append(part.logsumexp(0) / math.log(base))
    return torch.stack(out), torch.stack(lse)


def test_merging_parts_and_its_well_known_mistakes():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(10, generator=generator, dtype=torch.float64) * 2
    values = torch.randn(10, 3, generator=generator, dtype=torch.float64)
    want = x.softmax(0) @ values
    bounds = [0, 1, 1, 6, 10, 10]  # empty parts hold anything
    out, lse = parts_of(x, values, bounds)
    torch.testing.assert_close(merge_splits_ref(out, lse), want, rtol=1e-13, atol=1e-13)
    _, in_base_2 = parts_of(x, values, bounds, base=2)
    assert (merge_splits_ref(out, in_base_2) - want).abs().max() > 0.05
    lengths = torch.tensor([1.0, 0, 5, 4, 0], dtype=torch.float64)
    by_length = (lengths[:, None] * out.nan_to_num()).sum(0) / 10
    assert (by_length - want).abs().max() > 0.05
    nothing = merge_splits_ref(out[1:2].expand(2, 3), torch.full((2,), -math.inf).double())
    assert torch.equal(nothing, torch.zeros(3, dtype=torch.float64))


def test_absorbed_attention_of_a_layer_is_the_operation():
    model = latent_model(torch.float32, initializer_range=0.2)
    layer: LatentAttention = model.layers[0].self_attn
    x = torch.randn(2, 9, 16)
    cos, sin = model.rope_cos[:9], model.rope_sin[:9]
    with torch.no_grad():
        latent = layer.compress(x, cos, sin)
        q = layer.queries(x[:, -2:], cos[-2:], sin[-2:])
        want = layer.attend_absorbed(*q, latent)
        mean = ops.latent_decode(
            layer.fold_queries(*q).transpose(1, 2),
            latent,  # a page as long as the text
            torch.tensor([[0], [1]]),
            torch.tensor([9, 9]),
            rank=layer.rank,
            scale=layer.scale,
        )
        got = layer.unfold_values(mean.transpose(1, 2))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_refused(device):
    q, pages, table, lengths, _ = case([5, 6])
    right = {"q": q, "pages": pages, "table": table, "lengths": lengths}
    wrong = {
        "rank=28 must lie": {"rank": 28},
        "q must be": {"q": q[0]},
        "pages are 27 wide": {"pages": pages[..., :-1]},
        "2 sequences in q, 1 in table": {"table": table[:1]},
        "table holds torch.float32": {"table": table.float()},
        "lengths holds torch.bool": {"lengths": lengths.bool()},
        "has no FP8 line": {"pages": pages.to(torch.uint8)},
    }
    for face in (latent_decode, latent_decode_ref):
        for message, change in wrong.items():
            arguments = {**right, "rank": 24, "scale": 1.0, **change}
            with pytest.raises(ValueError, match=message):
                face(**arguments)


def test_splits_fill_a_gpu_and_stay_worth_a_start():
    assert splits_for(1, 128, 65536, 132) == 64
    assert splits_for(128, 128, 4096, 132) == 1
    assert splits_for(8, 128, 4096, 132) == 16
    assert splits_for(1, 4, 100, 132) == 1
    assert splits_for(1, 4, 0, 132) == 1
